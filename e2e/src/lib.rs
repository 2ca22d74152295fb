//! Tests with real processes, a real browser and a real API server.
