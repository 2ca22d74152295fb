//! Ages as kubectl writes them: `12s`, `4m13s`, `3h5m`, `2d4h`, `400d`, `3y20d`.
//!
//! The rule is `k8s.io/apimachinery/pkg/util/duration.HumanDuration`. Nothing here reads a clock.

use {jiff::Timestamp, std::time::Duration};

/// The time from `since` to `now` in a few characters; an age a little in the future is `0s` (two clocks never agree).
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    match Duration::try_from(now.duration_since(since)) {
        Ok(age) => human(age),
        Err(_) if since.duration_since(now).as_secs() < 2 => "0s".to_owned(),
        Err(_) => "<invalid>".to_owned(),
    }
}

/// A duration in at most two units.
pub(crate) fn human(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let seconds = duration.as_secs();
    let two = |unit: u64, name: char, smaller: u64, smaller_name: char| {
        let rest = seconds % unit / smaller;
        let whole = seconds / unit;
        if rest == 0 {
            format!("{whole}{name}")
        } else {
            format!("{whole}{name}{rest}{smaller_name}")
        }
    };
    if seconds < 2 * MINUTE {
        format!("{seconds}s")
    } else if seconds < 10 * MINUTE {
        two(MINUTE, 'm', 1, 's')
    } else if seconds < 3 * HOUR {
        format!("{}m", seconds / MINUTE)
    } else if seconds < 8 * HOUR {
        two(HOUR, 'h', MINUTE, 'm')
    } else if seconds < 2 * DAY {
        format!("{}h", seconds / HOUR)
    } else if seconds < 8 * DAY {
        two(DAY, 'd', HOUR, 'h')
    } else if seconds < 2 * YEAR {
        format!("{}d", seconds / DAY)
    } else if seconds < 8 * YEAR {
        two(YEAR, 'y', DAY, 'd')
    } else {
        format!("{}y", seconds / YEAR)
    }
}

/// A duration as it is configured: `500ms`, `1s`, `1m30s`, `2h`.
pub(crate) fn exact(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let millis = duration.subsec_millis();
    let mut text = String::new();
    for (amount, unit) in [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// How long a run took, with the digits that mean something: `0.42ms`, `12ms`, `1.03s`.
pub(crate) fn latency(latency: Duration) -> String {
    let millis = latency.as_secs_f64() * 1000.0;
    if millis < 10.0 {
        format!("{millis:.2}ms")
    } else if millis < 1000.0 {
        format!("{millis:.0}ms")
    } else {
        format!("{:.2}s", latency.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        for (seconds, expected) in [
            (0, "0s"),
            (70, "70s"),
            (70 * 60, "70m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (8 * 86_400 + 2 * 3600, "8d"),
            (367 * 86_400, "367d"),
            (2 * 365 * 86_400 + 25 * 86_400, "2y25d"),
            (8 * 365 * 86_400 + 2 * 86_400, "8y"),
            (253, "4m13s"),
            (240, "4m"),
            (3 * 3600 + 5 * 60, "3h5m"),
            (7 * 3600, "7h"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_gives_no_negative_age() {
        let now = Timestamp::from_second(1000).unwrap();
        for (since, expected) in [(999, "1s"), (1000, "0s"), (1001, "0s"), (1002, "<invalid>")] {
            assert_eq!(age(Timestamp::from_second(since).unwrap(), now), expected);
        }
    }

    #[test]
    fn configured_durations_are_exact() {
        for (millis, expected) in [
            (0, "0s"),
            (500, "500ms"),
            (1000, "1s"),
            (90_000, "1m30s"),
            (7_200_000, "2h"),
            (1_500, "1s500ms"),
        ] {
            assert_eq!(exact(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn latencies_keep_about_three_digits() {
        for (micros, expected) in [
            (420, "0.42ms"),
            (9_994, "9.99ms"),
            (12_345, "12ms"),
            (1_030_000, "1.03s"),
        ] {
            assert_eq!(latency(Duration::from_micros(micros)), expected);
        }
    }
}
