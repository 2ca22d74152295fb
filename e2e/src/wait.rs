//! Waiting for a value, with a limit that only a broken program meets.

use {
    anyhow::{Result, bail},
    std::time::{Duration, Instant},
};

/// Longest wait for anything that should take milliseconds: the machine may be busy with builds.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a value is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value; `what` says in the error what was waited for, with the last thing seen.
///
/// # Errors
/// When [`PATIENCE`] is over.
pub async fn eventually<T, F: Future<Output = Result<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > deadline => bail!("waited in vain for {what}: {last:#}"),
            Err(_) => tokio::time::sleep(GLANCE).await,
        }
    }
}
