//! Wakes the engine at its next due time.
//!
//! tokio tells its own event loop (by a write to an eventfd, and a needless wake-up) whenever a timer is set for earlier
//! than every timer it knows of. A single timer that is always set anew for the next slot does that at every slot, and
//! leaves the timeouts of runs started in between to do it too. So there are two, for the next two due times: when one has
//! rung, the other already stands before everything that is set now.

use {
    std::{
        future::{Future, poll_fn},
        pin::Pin,
        task::Poll,
        time::Instant,
    },
    tokio::time::{Sleep, sleep_until},
};

/// Two timers.
#[derive(Debug)]
pub(super) struct Alarm {
    timers: [Timer; 2],
}

#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<Sleep>>,
    is_set: bool,
}

impl Alarm {
    /// Not set.
    pub(super) fn new() -> Self {
        let timer = || Timer {
            sleep: Box::pin(sleep_until(tokio::time::Instant::now())),
            is_set: false,
        };
        Self {
            timers: [timer(), timer()],
        }
    }

    /// Sets the next two due times, the earlier first.
    pub(super) fn set(&mut self, due: [Option<Instant>; 2]) {
        let holds = |timer: &Timer, due: Option<Instant>| {
            due.is_some_and(|due| timer.sleep.deadline() == tokio::time::Instant::from_std(due))
        };
        for timer in &mut self.timers {
            timer.is_set = due.iter().any(|&due| holds(timer, due));
        }
        // Backwards: the later one is set while the earlier one may still stand.
        for wanted in due.into_iter().rev() {
            if wanted.is_none()
                || self
                    .timers
                    .iter()
                    .any(|timer| timer.is_set && holds(timer, wanted))
            {
                continue;
            }
            let free = self.timers.iter_mut().find(|timer| !timer.is_set);
            if let (Some(timer), Some(wanted)) = (free, wanted) {
                timer.sleep.as_mut().reset(tokio::time::Instant::from_std(wanted));
                timer.is_set = true;
            }
        }
    }

    /// Waits for the earlier due time; for ever when none is set. Cancel-safe.
    pub(super) async fn rings(&mut self) {
        poll_fn(|cx| {
            let mut rings = Poll::Pending;
            for timer in &mut self.timers {
                if timer.is_set && timer.sleep.as_mut().poll(cx).is_ready() {
                    rings = Poll::Ready(());
                }
            }
            rings
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use {super::*, std::time::Duration, tokio::time::timeout};

    fn at(start: Instant, millis: u64) -> Option<Instant> {
        Some(start + Duration::from_millis(millis))
    }

    /// When the alarm rings, in milliseconds since `start`; `None` when not within a minute.
    async fn rings_at(alarm: &mut Alarm, start: Instant) -> Option<u128> {
        timeout(Duration::from_secs(60), alarm.rings()).await.ok()?;
        let now = tokio::time::Instant::now().into_std();
        Some(now.duration_since(start).as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_earlier_time_and_at_the_later_when_that_is_set_first() {
        let start = tokio::time::Instant::now().into_std();
        let mut alarm = Alarm::new();
        assert_eq!(rings_at(&mut alarm, start).await, None);
        let start = tokio::time::Instant::now().into_std();
        alarm.set([at(start, 5), at(start, 10)]);
        assert_eq!(rings_at(&mut alarm, start).await, Some(5));
        alarm.set([at(start, 10), at(start, 25)]);
        assert_eq!(rings_at(&mut alarm, start).await, Some(10));
        alarm.set([at(start, 25), None]);
        assert_eq!(rings_at(&mut alarm, start).await, Some(25));
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_when_due_times_change_before_it_rings() {
        let start = tokio::time::Instant::now().into_std();
        let mut alarm = Alarm::new();
        alarm.set([at(start, 50), at(start, 60)]);
        alarm.set([at(start, 20), at(start, 50)]);
        assert_eq!(rings_at(&mut alarm, start).await, Some(20));
        alarm.set([at(start, 40), at(start, 45)]);
        assert_eq!(rings_at(&mut alarm, start).await, Some(40));
        alarm.set([None, None]);
        assert_eq!(rings_at(&mut alarm, start).await, None);
    }
}
