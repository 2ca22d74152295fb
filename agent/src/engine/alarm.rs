//! Wakes the engine at its next due time.
//!
//! A timer of the kernel's (timerfd) rings within some tens of microseconds; tokio's own rounds up to a millisecond, twice.
//! Where the kernel gives none, tokio's does.
//!
//! Beside it stands a *sentinel*, a tokio timer that nobody waits for. Whenever a tokio timer is set for earlier than all
//! others, tokio wakes its own event loop by a write to an eventfd: without the sentinel, the timeout of every run that
//! is started while no other is under way costs that. It is set only when several runs start at once, so an agent with few
//! probes never wakes for it.

use {
    rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
    std::{
        future::poll_fn,
        io,
        os::fd::OwnedFd,
        pin::Pin,
        task::{Context, Poll},
        time::{Duration, Instant},
    },
    tokio::{
        io::{Interest, unix::AsyncFd},
        time::{Sleep, sleep_until},
    },
};

/// How long a sentinel stands: shorter than the usual timeout of a second, long enough to cost nothing.
const SENTINEL: Duration = Duration::from_millis(500);
/// So many runs started at once make a sentinel worth its wake-up.
const BUSY: usize = 2;

/// One due time.
#[derive(Debug)]
pub(super) struct Alarm {
    clock: Clock,
    /// What it is set to.
    due: Option<Instant>,
    sentinel: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Clock {
    Kernel(AsyncFd<OwnedFd>),
    Tokio(Pin<Box<Sleep>>),
}

impl Alarm {
    /// Not set.
    pub(super) fn new() -> Self {
        Self::with(kernel_clock().unwrap_or_else(|error| {
            tracing::warn!(%error, "no timer of the kernel's: checks may start two milliseconds late");
            tokio_clock()
        }))
    }

    fn with(clock: Clock) -> Self {
        Self {
            clock,
            due: None,
            sentinel: Box::pin(sleep_until(tokio::time::Instant::now())),
        }
    }

    /// Sets the due time; nothing happens when it is the same as before.
    pub(super) fn set(&mut self, due: Option<Instant>) {
        if self.due == due {
            return;
        }
        self.due = due;
        match (&mut self.clock, due) {
            (Clock::Kernel(timer), due) => {
                let left = due.map(|due| due.saturating_duration_since(Instant::now()));
                // Fails for descriptors that are no timers and for times that are none, and this is neither.
                let _ = rustix::time::timerfd_settime(
                    timer.get_ref(),
                    TimerfdTimerFlags::empty(),
                    &once_after(left),
                );
            }
            (Clock::Tokio(sleep), Some(due)) => sleep.as_mut().reset(tokio::time::Instant::from_std(due)),
            (Clock::Tokio(_), None) => {}
        }
    }

    /// Says how many runs were started at once.
    pub(super) fn started(&mut self, runs: usize) {
        if runs >= BUSY {
            let now = tokio::time::Instant::now();
            if self.sentinel.deadline() <= now {
                self.sentinel.as_mut().reset(now + SENTINEL);
            }
        }
    }

    /// Waits for the due time; for ever when none is set. May rarely ring too early. Cancel-safe.
    pub(super) async fn rings(&mut self) {
        poll_fn(|cx| self.poll_rings(cx)).await;
    }

    fn poll_rings(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.clock {
            Clock::Kernel(timer) => {
                let Poll::Ready(guard) = timer.poll_read_ready(cx) else {
                    return Poll::Pending;
                };
                if let Ok(mut guard) = guard {
                    // The count of rings need not be read: setting the timer again forgets it.
                    guard.clear_ready();
                }
            }
            Clock::Tokio(sleep) => {
                if self.due.is_none() || sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        self.due = None;
        Poll::Ready(())
    }
}

fn kernel_clock() -> io::Result<Clock> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
    Ok(Clock::Kernel(crate::watch::watch(timer, Interest::READABLE)?))
}

fn tokio_clock() -> Clock {
    Clock::Tokio(Box::pin(sleep_until(tokio::time::Instant::now())))
}

/// What the kernel is told: one ring after that long, or none. Zero would mean none.
fn once_after(left: Option<Duration>) -> Itimerspec {
    let left = left.map_or(Duration::ZERO, |left| left.max(Duration::from_nanos(1)));
    let timespec = |duration: Duration| {
        Timespec::try_from(duration).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        })
    };
    Itimerspec {
        it_interval: timespec(Duration::ZERO),
        it_value: timespec(left),
    }
}

#[cfg(test)]
mod tests {
    use {super::*, tokio::time::timeout};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn both_clocks_ring_at_the_due_time_and_not_before() {
        for clock in [kernel_clock().unwrap(), tokio_clock()] {
            let mut alarm = Alarm::with(clock);
            for _ in 0..3 {
                let due = soon(20);
                alarm.set(Some(due));
                alarm.set(Some(due));
                timeout(PATIENCE, alarm.rings()).await.expect("it rings");
                assert!(Instant::now() >= due);
            }
            // What is past rings at once.
            alarm.set(Some(Instant::now()));
            timeout(PATIENCE, alarm.rings()).await.expect("it rings");
        }
    }

    #[tokio::test]
    async fn an_alarm_follows_when_its_due_time_is_changed_before_it_rings() {
        for clock in [kernel_clock().unwrap(), tokio_clock()] {
            let mut alarm = Alarm::with(clock);
            alarm.set(Some(soon(60_000)));
            alarm.set(Some(soon(10)));
            timeout(PATIENCE, alarm.rings()).await.expect("it rings");
            let later = soon(50);
            alarm.set(Some(soon(10)));
            alarm.set(Some(later));
            timeout(PATIENCE, alarm.rings()).await.expect("it rings");
            assert!(Instant::now() >= later);
        }
    }

    #[tokio::test]
    async fn an_alarm_that_is_not_set_does_not_ring() {
        for clock in [kernel_clock().unwrap(), tokio_clock()] {
            let mut alarm = Alarm::with(clock);
            let short = Duration::from_millis(30);
            assert!(timeout(short, alarm.rings()).await.is_err());
            alarm.set(Some(soon(10)));
            alarm.set(None);
            assert!(timeout(short, alarm.rings()).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_sentinel_stands_only_while_runs_start_together() {
        let mut alarm = Alarm::new();
        let now = tokio::time::Instant::now();
        alarm.started(1);
        assert!(alarm.sentinel.deadline() <= now);
        alarm.started(2);
        let stands = alarm.sentinel.deadline();
        assert!(stands >= now + SENTINEL);
        alarm.started(5);
        assert_eq!(alarm.sentinel.deadline(), stands);
    }
}
