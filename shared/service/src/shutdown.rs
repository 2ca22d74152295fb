//! One shutdown signal for the whole process.
//!
//! [`Shutdown`] is asked for by a signal, by the end of an essential task or by the program itself; everybody else waits
//! for it. It is never taken back.

use {
    std::io,
    tokio::signal::unix::{Signal, SignalKind, signal},
    tokio_util::sync::CancellationToken,
};

/// The process's shutdown signal; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Makes a signal that nobody has given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the token under this signal, for parts that take one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Gives the signal; a second time changes nothing.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// Says whether the signal was given.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the signal is given. Cancel-safe.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

/// Why signals cannot be listened to.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {signal}")]
pub struct SignalError {
    signal: &'static str,
    #[source]
    source: io::Error,
}

/// Exit code of a process ended by SIGINT, as shells count.
const EXIT_INTERRUPTED: i32 = 130;
/// Exit code of a process ended by SIGTERM, as shells count.
const EXIT_TERMINATED: i32 = 143;

/// Gives `shutdown` on the first SIGINT or SIGTERM; the second one ends the process at once with 130 or 143.
///
/// The handlers are in place when this returns. Must be called inside a tokio runtime; both signals are read by a task
/// of that runtime, so a loop that never yields delays the second one too.
pub fn signals(shutdown: &Shutdown) -> Result<(), SignalError> {
    let interrupt = listen("SIGINT", SignalKind::interrupt())?;
    let terminate = listen("SIGTERM", SignalKind::terminate())?;
    // Not in `Tasks`: it must outlive the ordered end that it may have to cut short.
    tokio::spawn(obey(shutdown.clone(), interrupt, terminate));
    Ok(())
}

fn listen(name: &'static str, kind: SignalKind) -> Result<Signal, SignalError> {
    signal(kind).map_err(|source| SignalError { signal: name, source })
}

async fn obey(shutdown: Shutdown, mut interrupt: Signal, mut terminate: Signal) {
    let mut seen_one = false;
    loop {
        let (name, code) = tokio::select! {
            _ = interrupt.recv() => ("SIGINT", EXIT_INTERRUPTED),
            _ = terminate.recv() => ("SIGTERM", EXIT_TERMINATED),
        };
        if seen_one {
            tracing::warn!(signal = name, "second signal: exiting at once");
            std::process::exit(code);
        }
        seen_one = true;
        tracing::info!(signal = name, "shutting down");
        shutdown.trigger();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trigger_wakes_every_clone_and_its_token() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        let token = shutdown.token();
        assert!(!other.is_triggered());
        let waiting = tokio::spawn(async move { other.cancelled().await });
        shutdown.trigger();
        shutdown.trigger();
        waiting.await.unwrap();
        token.cancelled().await;
        assert!(shutdown.is_triggered());
    }
}
