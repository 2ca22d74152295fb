//! Every task of a process, by name, under one supervisor.
//!
//! [`Tasks`] spawns them, notices panics, ends the process when an essential task ends, and waits for all of them at
//! the end, but not for ever. It does not restart anything: a process that lost an essential part ends, and whoever
//! started it decides.

use {
    crate::{shutdown::Shutdown, telemetry::chain},
    futures_util::FutureExt,
    std::{
        any::Any,
        borrow::Cow,
        collections::HashMap,
        error::Error,
        future::Future,
        panic::AssertUnwindSafe,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::Duration,
    },
    tokio::task::AbortHandle,
    tokio_util::task::TaskTracker,
    tracing::Instrument,
};

/// A task's name, for logs and errors.
pub type TaskName = Cow<'static, str>;

type BoxError = Box<dyn Error + Send + Sync>;

/// How long aborted tasks may take to drop what they hold. A task that blocks its thread cannot be aborted and would
/// keep the process for ever.
const ABORT_GRACE: Duration = Duration::from_millis(100);

/// How many tasks that did not end are named in an error; the others are counted.
const MAX_NAMED: usize = 10;

/// Why the tasks did not end as they should.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// An essential task ended before anybody asked for shutdown.
    #[error("the task {name} ended by itself")]
    Ended {
        /// The task.
        name: TaskName,
    },
    /// An essential task gave up.
    #[error("the task {name} failed")]
    Failed {
        /// The task.
        name: TaskName,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// An essential task panicked.
    #[error("the task {name} panicked: {message}")]
    Panicked {
        /// The task.
        name: TaskName,
        /// What the panic said.
        message: String,
    },
    /// Tasks were still running at the deadline and were aborted.
    #[error("{count} tasks did not end in time: {}", names.join(", "))]
    Late {
        /// The first of them.
        names: Vec<String>,
        /// How many in all.
        count: usize,
    },
}

/// What a task may return: nothing, or a result whose error is reported.
pub trait TaskOutput: Send + 'static {
    /// Turns it into a result.
    fn into_result(self) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl TaskOutput for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError> + Send + 'static> TaskOutput for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

/// The supervisor of a process's tasks; clones share it.
#[derive(Clone, Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    tracker: TaskTracker,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    next_id: u64,
    /// Bounded by what callers spawn: each of them limits its own number of connections and probes.
    running: HashMap<u64, Running>,
    /// The first failure of an essential task; later ones are logged only, being mostly consequences.
    failure: Option<TaskError>,
}

#[derive(Debug)]
struct Running {
    name: TaskName,
    /// Missing for the moment between registration and spawn.
    abort: Option<AbortHandle>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Its end ends the process.
    Essential,
    /// Its end is its own affair.
    Ordinary,
}

impl Tasks {
    /// Makes a supervisor whose essential tasks give `shutdown` when they end.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            tracker: TaskTracker::new(),
            shared: Arc::default(),
        }
    }

    /// Returns the shutdown signal that these tasks obey.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Spawns a task without which the process is useless: when it ends before shutdown, fails or panics, shutdown
    /// is given and [`Tasks::join`] names it.
    pub fn essential<F>(&self, name: impl Into<TaskName>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput,
    {
        let name = name.into();
        let span = tracing::info_span!("task", name = &*name);
        self.start(name, Role::Essential, future.instrument(span));
    }

    /// Spawns a task whose end is normal. An error or a panic of it is logged and goes no further.
    pub fn spawn<F>(&self, name: impl Into<TaskName>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput,
    {
        let name = name.into();
        let span = tracing::info_span!("task", name = &*name);
        self.start(name, Role::Ordinary, future.instrument(span));
    }

    /// Spawns like [`Tasks::spawn`], without a span: for the tasks that exist by the thousand, one for each
    /// connection, where the memory of a span would count.
    pub fn spawn_small<F>(&self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput,
    {
        self.start(name.into(), Role::Ordinary, future);
    }

    /// Returns how many tasks are running.
    pub fn running(&self) -> usize {
        self.lock().running.len()
    }

    /// Waits for shutdown, then for all tasks, at most `deadline`; aborts and names those that are still running.
    ///
    /// An error of an essential task wins over late tasks, which are then only logged.
    pub async fn join(&self, deadline: Duration) -> Result<(), TaskError> {
        self.shutdown.cancelled().await;
        self.tracker.close();
        let in_time = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        let late = if in_time { None } else { self.abort_late().await };
        match (self.lock().failure.take(), late) {
            (Some(failure), _) => Err(failure),
            (None, Some(late)) => Err(late),
            (None, None) => Ok(()),
        }
    }

    async fn abort_late(&self) -> Option<TaskError> {
        let mut names: Vec<String> = {
            let shared = self.lock();
            for task in shared.running.values() {
                if let Some(abort) = &task.abort {
                    abort.abort();
                }
            }
            shared
                .running
                .values()
                .map(|task| task.name.to_string())
                .collect()
        };
        if names.is_empty() {
            return None;
        }
        let _blocked_anyway = tokio::time::timeout(ABORT_GRACE, self.tracker.wait()).await;
        names.sort_unstable();
        let count = names.len();
        names.truncate(MAX_NAMED);
        tracing::warn!(
            count,
            tasks = names.join(", "),
            "tasks did not end in time and were aborted"
        );
        Some(TaskError::Late { names, count })
    }

    fn start<F>(&self, name: TaskName, role: Role, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput,
    {
        let entry = {
            let mut shared = self.lock();
            let id = shared.next_id;
            shared.next_id += 1;
            shared.running.insert(id, Running { name, abort: None });
            Entry {
                id,
                tasks: self.clone(),
            }
        };
        let id = entry.id;
        let task = self.tracker.spawn(async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            entry.ended(role, outcome.map(TaskOutput::into_result));
        });
        // Gone already when the task ended on another thread before this line.
        if let Some(running) = self.lock().running.get_mut(&id) {
            running.abort = Some(task.abort_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // No code that could panic runs under the lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task's place in the list of running ones; leaves it when dropped, also by abort.
struct Entry {
    id: u64,
    tasks: Tasks,
}

impl Entry {
    fn ended(&self, role: Role, outcome: Result<Result<(), BoxError>, Box<dyn Any + Send>>) {
        let Some(name) = self
            .tasks
            .lock()
            .running
            .get(&self.id)
            .map(|task| task.name.clone())
        else {
            return;
        };
        let stopping = self.tasks.shutdown.is_triggered();
        let failure = match outcome {
            Ok(Ok(())) if role == Role::Essential && !stopping => TaskError::Ended { name },
            Ok(Ok(())) => return,
            Ok(Err(source)) => TaskError::Failed { name, source },
            Err(panic) => TaskError::Panicked {
                name,
                message: panic_message(panic.as_ref()),
            },
        };
        tracing::error!("{}", chain(&failure));
        if role == Role::Essential {
            self.tasks.lock().failure.get_or_insert(failure);
            self.tasks.shutdown.trigger();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tasks.lock().running.remove(&self.id);
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        std::{future::pending, io},
        tokio::{sync::oneshot, time::Instant},
    };

    const DEADLINE: Duration = Duration::from_secs(5);

    fn tasks() -> Tasks {
        Tasks::new(Shutdown::new())
    }

    /// Time is paused: waiting for ever fails at once instead.
    async fn join(tasks: &Tasks) -> Result<(), TaskError> {
        tokio::time::timeout(DEADLINE * 1000, tasks.join(DEADLINE))
            .await
            .expect("the tasks were never joined")
    }

    fn check(result: Result<(), TaskError>, expected: &str) {
        assert_eq!(chain(&result.unwrap_err()), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_an_essential_task_ends_the_process() {
        let tasks = tasks();
        tasks.essential("store", async {});
        check(join(&tasks).await, "the task store ended by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn panic_of_an_essential_task_ends_the_process() {
        let tasks = tasks();
        tasks.essential("store", async {
            let digit = 3;
            assert_eq!(digit, 4, "digit {digit}");
        });
        let message = join(&tasks).await.unwrap_err().to_string();
        assert!(
            message.starts_with("the task store panicked: ") && message.contains("digit 3"),
            "{message}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn error_of_an_essential_task_is_reported_with_its_cause() {
        let tasks = tasks();
        tasks.essential("listener", async { Err(io::Error::other("port in use")) });
        check(join(&tasks).await, "the task listener failed: port in use");
    }

    #[tokio::test(start_paused = true)]
    async fn essential_task_may_end_after_shutdown() {
        let tasks = tasks();
        let token = tasks.shutdown().token();
        tasks.essential("store", async move { token.cancelled().await });
        tasks.shutdown().trigger();
        assert!(join(&tasks).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn panic_of_an_ordinary_task_harms_nobody() {
        let tasks = tasks();
        let (tell, told) = oneshot::channel::<()>();
        tasks.spawn("connection", async move {
            let _tell = tell;
            let good_frame = false;
            assert!(good_frame, "bad frame");
        });
        tasks.spawn_small("connection", async { Err("refused") });
        assert!(told.await.is_err());
        assert!(!tasks.shutdown().is_triggered());
        tasks.shutdown().trigger();
        assert!(join(&tasks).await.is_ok());
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn late_tasks_are_aborted_and_named_at_the_deadline() {
        let tasks = tasks();
        let (held, dropped) = oneshot::channel::<()>();
        tasks.spawn("uplink", async move {
            let _held = held;
            pending::<()>().await;
        });
        tasks.spawn(format!("probe {}", 7), pending::<()>());
        tasks.spawn("quick", async {});
        tasks.shutdown().trigger();
        let started = Instant::now();
        check(join(&tasks).await, "2 tasks did not end in time: probe 7, uplink");
        assert_eq!(started.elapsed(), DEADLINE);
        assert!(dropped.await.is_err(), "an aborted task drops what it holds");
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn join_waits_for_shutdown_first() {
        let tasks = tasks();
        let mut join = std::pin::pin!(tasks.join(DEADLINE));
        assert!(tokio::time::timeout(DEADLINE * 100, &mut join).await.is_err());
        tasks.shutdown().trigger();
        assert!(join.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn first_failure_wins_over_later_ones_and_late_tasks() {
        let tasks = tasks();
        let token = tasks.shutdown().token();
        tasks.spawn("stuck", pending::<()>());
        tasks.essential("second", async move {
            token.cancelled().await;
            Err::<(), _>("consequence")
        });
        tasks.essential("first", async { Err::<(), _>("cause") });
        check(join(&tasks).await, "the task first failed: cause");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ended_tasks_leave_nothing_behind() {
        let tasks = tasks();
        for _ in 0..1000 {
            tasks.spawn_small("connection", async {});
        }
        tasks.shutdown().trigger();
        assert!(join(&tasks).await.is_ok());
        assert_eq!(tasks.running(), 0);
    }
}
