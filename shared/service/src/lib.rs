//! What each HealthScope process needs: shutdown, tasks, telemetry, TLS.
