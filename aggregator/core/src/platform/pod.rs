//! Pods: the few facts that are kept of each, and the one most useful reason why it is not ready.
//!
//! The reason is put into words once, when the pod is read, so that a verdict on ten thousand pods formats nothing.
//! Memory: a pod's facts are 40 bytes inside an [`Object`], and on the heap a healthy pod's facts are the names of its
//! containers and, where it has one, some hundred bytes about its agent. With names, uids, owner and three labels it takes 1.6 KiB, measured over 100,000.

use {
    super::{MAX_TEXT_BYTES, Object, agent::Beside, field, healthy},
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        one_line,
    },
    serde_json::Value,
    std::fmt::Write as _,
};

/// The name of the container by which HealthScope's agent is known.
pub const AGENT_CONTAINER: &str = "healthscope-agent";

/// Most containers whose names and states are looked at; real pods have a handful.
const MAX_CONTAINERS: usize = 64;
/// Longest cause shown beside other things.
const MAX_CAUSE_BYTES: usize = 100;
/// Longest image shown: a reference with its digest.
const MAX_IMAGE_BYTES: usize = 120;

/// Where a pod is in its life, as Kubernetes says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have been started once.
    #[default]
    Pending,
    /// Bound to a node, and at least one container runs or is being restarted.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one of them badly.
    Failed,
    /// The node cannot be asked.
    Unknown,
}

impl Phase {
    fn from_word(word: Option<&str>) -> Self {
        match word {
            Some("Running") => Self::Running,
            Some("Succeeded") => Self::Succeeded,
            Some("Failed") => Self::Failed,
            Some("Unknown") => Self::Unknown,
            _ => Self::Pending,
        }
    }

    /// Whether no container of it will ever run again.
    #[must_use]
    pub const fn is_over(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

/// The facts about a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether its Ready condition is true.
    pub ready: bool,
    /// The names of its containers, init containers first.
    pub containers: Box<[Box<str>]>,
    /// Why it is not ready; `None` when it is, and when it is over and was well.
    pub trouble: Option<Box<Trouble>>,
    /// What its status says of HealthScope's agent in it, where it has one.
    pub agent: Option<Box<Beside>>,
}

/// Why a pod is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How bad.
    pub severity: Severity,
    /// For machines.
    pub reason: Reason,
    /// For people, without the pod's name: `CrashLoopBackOff (exit 1, 5 restarts)`.
    pub text: Box<str>,
}

/// How much a pod's trouble says; of several pods the worst is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// On its way: it may well become ready by itself.
    Starting,
    /// It runs and is not ready.
    NotReady,
    /// It will not become ready unless something changes.
    Failing,
}

impl Trouble {
    fn new(severity: Severity, reason: Reason, text: &str) -> Self {
        Self {
            severity,
            reason,
            text: one_line(text, MAX_TEXT_BYTES).into(),
        }
    }

    /// One that Kubernetes gives a word for, and perhaps a message.
    fn said(severity: Severity, word: &str, message: Option<&str>) -> Self {
        let reason = Reason::from_untrusted(word);
        match message.filter(|message| !message.trim().is_empty()) {
            Some(message) => Self::new(severity, reason, &format!("{word}: {message}")),
            None => Self::new(severity, reason, word),
        }
    }
}

impl Pod {
    pub(super) fn decode(object: &Value) -> Self {
        let phase = Phase::from_word(field::text(object, &["status", "phase"]));
        let ready = field::condition_that_is(object, "Ready", "True").is_some() && !phase.is_over();
        let names = |containers: &'static str| {
            field::list(object, &["spec", containers])
                .iter()
                .filter_map(|container| field::text(container, &["name"]))
                .take(MAX_CONTAINERS)
                .map(|name| one_line(name, MAX_TEXT_BYTES).into())
        };
        let trouble = match phase {
            Phase::Succeeded => None,
            Phase::Failed => Some(why_failed(object)),
            Phase::Pending | Phase::Running | Phase::Unknown if ready => None,
            Phase::Pending | Phase::Running | Phase::Unknown => Some(why_not_ready(object, phase)),
        };
        Self {
            phase,
            ready,
            containers: names("initContainers").chain(names("containers")).collect(),
            trouble: trouble.map(Box::new),
            agent: Beside::decode(object).map(Box::new),
        }
    }

    /// Whether HealthScope's agent runs in it.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.containers.iter().any(|name| **name == *AGENT_CONTAINER)
    }

    /// The verdict on a pod that stands for itself.
    pub(super) fn verdict(&self) -> Verdict {
        let Some(trouble) = &self.trouble else {
            return healthy();
        };
        let health = match trouble.severity {
            Severity::Starting => Health::Unknown,
            Severity::NotReady | Severity::Failing => Health::Unhealthy,
        };
        Verdict::new(health, trouble.reason.clone(), format!("Pod {}", trouble.text))
    }
}

/// The pod that explains best why its workload is short of ready ones: the worst, then the first by name. Pods that
/// are over or going away explain nothing.
pub(super) fn culprit<'a>(pods: &[&'a Object]) -> Option<(&'a Object, &'a Trouble)> {
    pods.iter()
        .filter(|pod| pod.deleting.is_none())
        .filter_map(|&object| {
            let pod = object.pod()?;
            (!pod.phase.is_over()).then_some((object, &**pod.trouble.as_ref()?))
        })
        .max_by(|(a, x), (b, y)| {
            let (worse, earlier) = (x.severity.cmp(&y.severity), b.key.name.cmp(&a.key.name));
            worse.then(earlier)
        })
}

fn why_failed(object: &Value) -> Trouble {
    if let Some(reason) = field::text(object, &["status", "reason"]).filter(|reason| !reason.is_empty()) {
        return Trouble::said(
            Severity::Failing,
            reason,
            field::text(object, &["status", "message"]),
        );
    }
    let ended = statuses(object).find_map(|status| {
        let ended = Ended::of(&status.value["state"])?;
        (ended.exit_code != Some(0)).then_some((status, ended))
    });
    match ended {
        Some((status, ended)) => Trouble::new(
            Severity::Failing,
            ended.reason(),
            &format!("Failed ({}{})", status.named(), ended.how()),
        ),
        None => Trouble::new(Severity::Failing, Reason::FAILED, "Failed"),
    }
}

/// The container that explains most, else what the pod itself says.
fn why_not_ready(object: &Value, phase: Phase) -> Trouble {
    let mut worst: Option<Trouble> = None;
    for status in statuses(object) {
        let Some(trouble) = status.trouble() else { continue };
        if worst
            .as_ref()
            .is_none_or(|worst| trouble.severity > worst.severity)
        {
            worst = Some(trouble);
        }
    }
    worst.unwrap_or_else(|| why_pod_not_ready(object, phase))
}

/// What the pod itself says, when none of its containers explains it.
fn why_pod_not_ready(object: &Value, phase: Phase) -> Trouble {
    if let Some(scheduled) = field::condition_that_is(object, "PodScheduled", "False") {
        let reason = field::text(scheduled, &["reason"]).unwrap_or("Unschedulable");
        let message = field::text(scheduled, &["message"]).map(nodes_alone);
        let severity = if reason == "Unschedulable" {
            Severity::Failing
        } else {
            Severity::Starting
        };
        return Trouble::said(severity, reason, message);
    }
    if let Some(reason) = field::text(object, &["status", "reason"]).filter(|reason| !reason.is_empty()) {
        return Trouble::said(
            Severity::Failing,
            reason,
            field::text(object, &["status", "message"]),
        );
    }
    let ready = field::condition(object, "Ready");
    let said = ready.and_then(|ready| field::text(ready, &["reason"]));
    match (phase, said.filter(|said| !said.is_empty())) {
        (Phase::Unknown, _) => Trouble::new(
            Severity::NotReady,
            Reason::UNKNOWN,
            "Unknown: its node does not answer",
        ),
        (Phase::Running | Phase::Succeeded | Phase::Failed, Some(said)) => {
            let message = ready.and_then(|ready| field::text(ready, &["message"]));
            Trouble::said(Severity::NotReady, said, message)
        }
        (Phase::Running | Phase::Succeeded | Phase::Failed, None) => {
            Trouble::new(Severity::NotReady, Reason::NOT_READY, "not ready")
        }
        (Phase::Pending, _) => Trouble::new(Severity::Starting, Reason::PENDING, "Pending"),
    }
}

/// The scheduler's message without what follows the nodes: what it would have to push aside, node by node.
fn nodes_alone(message: &str) -> &str {
    [" preemption:", " no new claims to deallocate"]
        .iter()
        .fold(message, |message, rest| {
            message.split(rest).next().unwrap_or(message)
        })
}

/// What a runtime puts before the cause, each part around the next.
const WRAPPERS: [&str; 8] = [
    "rpc error: code = Unknown desc = ",
    "failed to create containerd task: ",
    "failed to create shim task: ",
    "failed to start containerd task: ",
    "OCI runtime create failed: ",
    "runc create failed: ",
    "unable to start container process: ",
    "error during container init: ",
];

/// A runtime's message from its cause on.
fn cause(message: &str) -> &str {
    let mut cause = message.trim();
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| cause.strip_prefix(wrapper)) {
        cause = inner;
    }
    cause
}

/// How a container came to its end.
struct Ended<'a> {
    exit_code: Option<i64>,
    signal: Option<i64>,
    reason: &'a str,
    message: &'a str,
}

impl<'a> Ended<'a> {
    /// Out of a container's `state` or `lastState`.
    fn of(state: &'a Value) -> Option<Self> {
        let terminated = field::at(state, &["terminated"])?.as_object()?;
        let word = |field: &str| terminated.get(field).and_then(Value::as_str).unwrap_or_default();
        Some(Self {
            exit_code: terminated.get("exitCode").and_then(Value::as_i64),
            signal: terminated
                .get("signal")
                .and_then(Value::as_i64)
                .filter(|&signal| signal != 0),
            reason: word("reason"),
            message: word("message"),
        })
    }

    fn is_out_of_memory(&self) -> bool {
        self.reason == "OOMKilled"
    }

    fn reason(&self) -> Reason {
        if self.reason.is_empty() {
            Reason::ERROR
        } else {
            Reason::from_untrusted(self.reason)
        }
    }

    /// `exit 1`, `OOMKilled`, `signal 9`, or another reason's word.
    fn how(&self) -> String {
        match (self.exit_code, self.signal, self.reason) {
            (_, _, "OOMKilled") => "OOMKilled".to_owned(),
            // Says more than the exit code 128 that is made up for it.
            (_, _, reason @ ("ContainerCannotRun" | "StartError")) if !self.message.is_empty() => {
                format!("{reason}: {}", one_line(cause(self.message), MAX_CAUSE_BYTES))
            }
            (_, _, reason @ ("ContainerCannotRun" | "StartError" | "DeadlineExceeded")) => reason.to_owned(),
            (_, Some(signal), _) => format!("signal {signal}"),
            (Some(code), None, _) => format!("exit {code}"),
            (None, None, "") => "ended".to_owned(),
            (None, None, reason) => reason.to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// Runs to its end before the others start.
    Init,
    /// Runs beside the others: an ordinary container, or an init container that is restarted always.
    Main,
}

/// The status of one container.
struct ContainerStatus<'a> {
    value: &'a Value,
    sort: Sort,
    /// Whether it must be named to be told from others.
    is_one_of_many: bool,
}

/// The statuses of all containers, init containers first.
fn statuses(object: &Value) -> impl Iterator<Item = ContainerStatus<'_>> {
    let is_one_of_many = field::list(object, &["status", "containerStatuses"]).len() > 1;
    let restarted: Vec<&str> = field::list(object, &["spec", "initContainers"])
        .iter()
        .filter(|container| field::text(container, &["restartPolicy"]) == Some("Always"))
        .filter_map(|container| field::text(container, &["name"]))
        .take(MAX_CONTAINERS)
        .collect();
    let init = field::list(object, &["status", "initContainerStatuses"])
        .iter()
        .take(MAX_CONTAINERS)
        .map(move |value| {
            let is_sidecar = field::text(value, &["name"]).is_some_and(|name| restarted.contains(&name));
            ContainerStatus {
                value,
                sort: if is_sidecar { Sort::Main } else { Sort::Init },
                is_one_of_many: true,
            }
        });
    let main = field::list(object, &["status", "containerStatuses"])
        .iter()
        .take(MAX_CONTAINERS)
        .map(move |value| ContainerStatus {
            value,
            sort: Sort::Main,
            is_one_of_many,
        });
    init.chain(main)
}

impl<'a> ContainerStatus<'a> {
    fn name(&self) -> &'a str {
        field::text(self.value, &["name"]).unwrap_or("?")
    }

    /// `container NAME, ` where it is one of several.
    fn named(&self) -> String {
        match (self.sort, self.is_one_of_many) {
            (Sort::Init, _) => format!("init container {}, ", self.name()),
            (Sort::Main, true) => format!("container {}, ", self.name()),
            (Sort::Main, false) => String::new(),
        }
    }

    fn image(&self) -> String {
        one_line(
            field::text(self.value, &["image"]).unwrap_or_default(),
            MAX_IMAGE_BYTES,
        )
    }

    /// Why the pod is not ready, as far as this container goes.
    fn trouble(&self) -> Option<Trouble> {
        let state = &self.value["state"];
        if let Some(waiting) = field::at(state, &["waiting"]).filter(|waiting| waiting.is_object()) {
            return Some(self.waiting(waiting));
        }
        if let Some(ended) = Ended::of(state) {
            return self.ended(&ended);
        }
        let has_what_it_needs = match self.sort {
            Sort::Init => false,
            Sort::Main => field::flag(self.value, &["ready"]),
        };
        (!has_what_it_needs).then(|| self.running())
    }

    fn waiting(&self, waiting: &Value) -> Trouble {
        let word = field::text(waiting, &["reason"])
            .filter(|word| !word.is_empty())
            .unwrap_or("Waiting");
        let message = field::text(waiting, &["message"]).filter(|message| !message.trim().is_empty());
        let named = self.named();
        match word {
            "CrashLoopBackOff" => self.crash_loop(Ended::of(&self.value["lastState"]).as_ref()),
            "ContainerCreating" | "PodInitializing" | "Waiting" => {
                let reason = Reason::from_untrusted(word);
                let named = named.trim_end_matches(", ");
                let text = match (message, named) {
                    (Some(message), _) => format!("{word}: {message}"),
                    // Without a message the container's name says nothing more.
                    (None, _) => word.to_owned(),
                };
                Trouble::new(Severity::Starting, reason, &text)
            }
            "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "SignatureValidationFailed" => {
                // The kubelet says in turn that it failed and that it waits: one trouble, and its status stays as it is.
                let why = ["RegistryUnavailable", "SignatureValidationFailed"]
                    .into_iter()
                    .find(|why| word == *why || message.is_some_and(|message| message.contains(why)))
                    .map(|why| format!(", {why}"))
                    .unwrap_or_default();
                Trouble::new(
                    Severity::Failing,
                    Reason::IMAGE_PULL_BACK_OFF,
                    &format!("ImagePullBackOff ({named}image {}{why})", self.image()),
                )
            }
            "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => Trouble::new(
                Severity::Failing,
                Reason::from_untrusted(word),
                &format!("{word} ({named}image {})", self.image()),
            ),
            _ => {
                let word = if named.is_empty() {
                    word.to_owned()
                } else {
                    format!("{word} ({})", named.trim_end_matches(", "))
                };
                Trouble::said(Severity::Failing, &word, message.map(cause))
            }
        }
    }

    /// A container that ends again and again.
    fn crash_loop(&self, last: Option<&Ended<'_>>) -> Trouble {
        let reason = match last {
            Some(last) if last.is_out_of_memory() => Reason::OOM_KILLED,
            _ => Reason::CRASH_LOOP_BACK_OFF,
        };
        let text = format!("CrashLoopBackOff ({}{})", self.named(), self.history(last));
        Trouble::new(Severity::Failing, reason, &text)
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Trouble> {
        if self.sort == Sort::Init && ended.exit_code == Some(0) {
            return None;
        }
        // The kubelet says in turn how it ended and that it waits: one trouble, and its status stays as it is.
        if ended.exit_code != Some(0) && field::count(self.value, &["restartCount"]) > 0 {
            return Some(self.crash_loop(Some(ended)));
        }
        let word = ended.reason();
        let text = match word.as_str() {
            "OOMKilled" => format!("OOMKilled ({}{})", self.named(), self.restarts()),
            word => format!("{word} ({}{})", self.named(), self.history(Some(ended))),
        };
        Some(Trouble::new(
            Severity::Failing,
            word,
            &text.replace(", )", ")").replace(" ()", ""),
        ))
    }

    /// A container that runs, though the pod is not ready.
    fn running(&self) -> Trouble {
        let name = self.name();
        if self.sort == Sort::Init {
            return Trouble::new(
                Severity::Starting,
                Reason::POD_INITIALIZING,
                &format!("init container {name} has not finished"),
            );
        }
        let last = Ended::of(&self.value["lastState"]);
        let mut text = if self.value["started"] == Value::Bool(false) {
            format!("container {name} has not started")
        } else {
            format!("not ready: container {name}")
        };
        if last.is_some() {
            // Writing to a String cannot fail.
            let _ = write!(text, " (last {})", self.history(last.as_ref()));
        }
        if self.value["started"] == Value::Bool(false) {
            Trouble::new(Severity::Starting, Reason::STARTING, &text)
        } else {
            Trouble::new(Severity::NotReady, Reason::CONTAINERS_NOT_READY, &text)
        }
    }

    /// `exit 1, 5 restarts`.
    fn history(&self, last: Option<&Ended<'_>>) -> String {
        let (how, restarts) = (last.map(Ended::how).unwrap_or_default(), self.restarts());
        let joint = if how.is_empty() || restarts.is_empty() {
            ""
        } else {
            ", "
        };
        format!("{how}{joint}{restarts}")
    }

    /// `5 restarts`, rounded down in steps: a status must not change with every restart.
    fn restarts(&self) -> String {
        match field::count(self.value, &["restartCount"]) {
            0 => String::new(),
            1 => "1 restart".to_owned(),
            few @ 2..=5 => format!("{few} restarts"),
            many => {
                let step = [1000, 500, 200, 100, 50, 20, 10, 6]
                    .into_iter()
                    .find(|&step| many >= step)
                    .unwrap_or(6);
                format!("{step}+ restarts")
            }
        }
    }
}
