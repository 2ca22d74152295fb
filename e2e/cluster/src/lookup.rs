//! Waiting on a value by looking at it again and again. The only place that sleeps.

use {
    anyhow::bail,
    std::{
        thread,
        time::{Duration, Instant},
    },
};

/// Time between two looks: far below what anything here takes, and too long to load two cores.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);

/// Looks until there is something, at most `limit` long.
///
/// An error from `look` means "not yet": the last one is in the message when time is up. Returns an error that names
/// `what` then.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if begun.elapsed() >= limit {
            let seconds = limit.as_secs_f64();
            match last {
                Some(error) => bail!("waited {seconds:.1} s in vain for {what}; lastly: {error:#}"),
                None => bail!("waited {seconds:.1} s in vain for {what}"),
            }
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_returned_at_once() {
        let found = wait_for("a number", Duration::ZERO, || Ok(Some(7)));
        assert_eq!(found.unwrap(), 7);
    }

    #[test]
    fn the_last_error_is_in_the_message() {
        let error = wait_for::<()>("a ship", Duration::ZERO, || bail!("fog")).unwrap_err();
        assert_eq!(error.to_string(), "waited 0.0 s in vain for a ship; lastly: fog");
    }
}
