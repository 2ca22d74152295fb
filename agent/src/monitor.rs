//! What the runs of one probe add up to: its state, its streak, whether it flaps, and figures for the next summary;
//! and which probes of a component may run at all ([`Gate`]).
//!
//! Pure: the time is an argument. Nothing here knows where probes run or where reports go. The fixed part of a
//! [`Monitor`] is at most 512 bytes; beside it stands the text of the last run, at most
//! [`MAX_OUTPUT_BYTES`](healthscope_shared::probe::outcome::MAX_OUTPUT_BYTES) and a line.

use {
    healthscope_shared::{
        flap::Flap,
        probe::{
            ProbeKind, ProbeSpec,
            outcome::{Outcome, ProbeState, RunResult},
        },
        threshold::{Attempt, Threshold},
    },
    std::time::{Duration, Instant},
};

pub mod window;

use window::{Figures, Window};

/// Notes of one probe are at least this far apart, so that traffic does not grow with the rate of a probe whose
/// results keep changing below the threshold. The first result and changes of state do not wait.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// What a result meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing that a person would want to know at once.
    Quiet,
    /// The state is as it was, but something about it is new: the first result, a turn from successes to failures
    /// or back below the threshold, another reason, the flapping flag.
    Note,
    /// The state changed.
    Transition {
        /// What it was.
        from: ProbeState,
    },
}

/// The sum of one probe's runs.
#[derive(Clone, Debug)]
pub struct Monitor {
    threshold: Threshold,
    flap: Flap,
    since: Instant,
    noted: Option<Instant>,
    /// Something is worth a note that had to wait for [`NOTE_INTERVAL`].
    note_waits: bool,
    window: Window,
    last: Option<Box<Outcome>>,
}

impl Monitor {
    /// A probe that was taken up at `now` and has not run.
    #[must_use]
    pub fn new(spec: &ProbeSpec, now: Instant) -> Self {
        Self {
            threshold: Threshold::new(spec.success_threshold, spec.failure_threshold),
            flap: Flap::default(),
            since: now,
            noted: None,
            note_waits: false,
            window: Window::default(),
            last: None,
        }
    }

    /// Takes in the run that ended at `now`.
    pub fn observe(&mut self, outcome: Outcome, now: Instant) -> Observation {
        let reason_changed = self
            .last
            .as_ref()
            .is_none_or(|last| last.result != outcome.result);
        let success = match &outcome.result {
            RunResult::Success | RunResult::Warning(_) => Some(true),
            RunResult::Failure(_) | RunResult::Error(_) => Some(false),
            RunResult::Unavailable(_) => None,
        };
        if success.is_some() {
            self.window.add(&outcome);
        }
        self.last = Some(Box::new(outcome));
        let flap_changed = success.is_some_and(|success| self.flap.observe(success));
        let former = match success {
            Some(success) => self.threshold.observe(success),
            // Nothing ran, so nothing is counted.
            None => self.threshold.reset(),
        };
        if let Some(from) = former {
            self.since = now;
            self.note_waits = false;
            self.noted = Some(now);
            return Observation::Transition { from };
        }
        self.note_waits |= reason_changed || flap_changed;
        let may_note = self
            .noted
            .is_none_or(|noted| now.saturating_duration_since(noted) >= NOTE_INTERVAL);
        if self.note_waits && may_note {
            self.note_waits = false;
            self.noted = Some(now);
            return Observation::Note;
        }
        Observation::Quiet
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> ProbeState {
        self.threshold.state()
    }

    /// When the state began.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// Equal results in a row: positive for successes, negative for failures, 0 before the first.
    #[must_use]
    pub const fn streak(&self) -> i32 {
        self.threshold.streak()
    }

    /// How far the streak is on its way to another state.
    #[must_use]
    pub const fn attempt(&self) -> Option<Attempt> {
        self.threshold.attempt()
    }

    /// Whether the results change too often to be believed.
    #[must_use]
    pub const fn is_flapping(&self) -> bool {
        self.flap.is_flapping()
    }

    /// The last 64 results.
    #[must_use]
    pub const fn history(&self) -> &Flap {
        &self.flap
    }

    /// The last run; `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<&Outcome> {
        self.last.as_deref()
    }

    /// Figures since they were taken last.
    pub fn take_figures(&mut self) -> Figures {
        let figures = self.window.figures();
        self.window = Window::default();
        figures
    }
}

/// Which probes of one component run: until every startup probe has passed, only those; from then on, only the
/// others. Nothing restarts the component, so a startup probe that failed goes on until it passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    startup_left: usize,
}

impl Gate {
    /// A gate that opens when `startup` more startup probes have passed.
    #[must_use]
    pub const fn new(startup: usize) -> Self {
        Self {
            startup_left: startup,
        }
    }

    /// Whether every startup probe has passed.
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.startup_left == 0
    }

    /// Whether a probe of this kind runs; `passed` says whether it has passed already.
    #[must_use]
    pub const fn lets_run(self, kind: ProbeKind, passed: bool) -> bool {
        match kind {
            ProbeKind::Startup => !passed,
            ProbeKind::Liveness | ProbeKind::Readiness => self.is_open(),
        }
    }

    /// A startup probe passed; `true` when it was the last one.
    pub const fn startup_passed(&mut self) -> bool {
        let was_open = self.is_open();
        self.startup_left = self.startup_left.saturating_sub(1);
        !was_open && self.is_open()
    }
}

#[cfg(test)]
mod tests;
