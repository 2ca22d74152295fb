//! What goes into the store and what it answers at once.
//!
//! An agent's events come from one connection in their order. `Answer` is for the connection that the event came
//! from; what readers see changes with `Store::publish`.

use {
    crate::platform::Object,
    healthscope_crd::{HealthScope, Unreadable},
    healthscope_shared::{
        name::{AgentName, ComponentKey, InstanceName, Kind, Name, Namespace},
        wire::{self, AnnouncedProbe, Epoch, Report, Seq},
    },
    jiff::Timestamp,
    std::{collections::BTreeMap, sync::Arc, time::Instant},
};

/// The moment at which something happens, by both clocks.
///
/// Deadlines use the instant alone, so that a wall clock that jumps changes nothing but the times shown.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// By the wall clock.
    pub wall: Timestamp,
}

/// One connection of an agent; never used twice by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The aggregator's configuration was read; replaces the former as a whole.
    Configured(Configuration),
    /// A watch of the Kubernetes API said something.
    Cluster(ClusterEvent),
    /// This replica serves from now on, and another one did until now: what that one wrote is what was said last. The
    /// next [`Event::Configured`] brings it; agents have the time of a start to come.
    TakenOver,
    /// Another replica serves: no agent comes here, and what that one writes of the scopes is what there is to say of
    /// them. The next [`Event::Configured`] brings it, and each one after it.
    StandsBy,
    /// An agent said hello. Must come before any other event of its session.
    Opened(Opened),
    /// An agent said, completely, what it watches: all parts of one announcement put together.
    Announced {
        /// By whom.
        session: SessionId,
        /// Everything it watches; what is not there any more is gone on purpose.
        instances: Vec<AnnouncedInstance>,
    },
    /// An agent said what it found.
    Reported {
        /// By whom.
        session: SessionId,
        /// What; a report that skips transitions is taken in, and the gap counted.
        report: Report,
    },
    /// An agent was heard of otherwise: a pong, an unknown message.
    Alive {
        /// Which.
        session: SessionId,
    },
    /// An agent ends its session on purpose.
    Goodbye {
        /// Which.
        session: SessionId,
    },
    /// A connection ended, whatever the cause. Harmless after a goodbye or an eviction.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// Somebody wants an agent that is gone for good to be forgotten. Ignored while it has a session.
    Forget {
        /// Which.
        agent: AgentName,
    },
    /// Time passed: at or after `Store::next_deadline`.
    Tick,
}

/// What watches of the Kubernetes API say. Those of one watch come in their order.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// A watch begins to list everything; what was known stays until it is [`Self::Listed`].
    Listing(Watched),
    /// An object is there, new or changed or as before.
    Applied(Box<Object>),
    /// An object is gone.
    Deleted {
        /// Which.
        key: ComponentKey,
        /// Harmless when an object of that name has been made anew.
        uid: Arc<str>,
    },
    /// Everything was listed: what did not come since [`Self::Listing`] is gone.
    Listed(Watched),
    /// Objects cannot be read; what was known of them is not believed any more.
    Unavailable(Watched, Unavailable),
    /// Nobody asks for these objects any more.
    Unwatched(Watched),
}

/// What one watch is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watched {
    /// API group, empty for the core group.
    pub group: Arc<str>,
    /// Kind.
    pub kind: Kind,
    /// One namespace, or all of them.
    pub namespace: Option<Namespace>,
}

impl Watched {
    /// Whether an object comes by this watch.
    #[must_use]
    pub fn covers(&self, key: &ComponentKey) -> bool {
        *self.group == *key.group
            && self.kind == key.kind
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == key.namespace)
    }
}

/// Why objects cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The API server does not know the kind.
    NotInstalled,
    /// The aggregator may not.
    Forbidden {
        /// The RBAC rule that would allow it, as one line of YAML.
        rule: String,
    },
    /// It fails again and again.
    Failing {
        /// How.
        error: String,
    },
}

/// A pod, as the token of its agent names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Name,
    /// Its uid: another pod of the same name is another pod.
    pub uid: Arc<str>,
}

/// The scopes, and what the aggregator's own files say besides.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The scopes. One whose spec cannot be used is kept with its last good spec and is Stalled.
    pub scopes: Vec<Arc<HealthScope>>,
    /// Scopes whose spec cannot even be read: Stalled, with their last good spec or their last health.
    pub unreadable: Vec<Arc<Unreadable>>,
    /// Components that must be there.
    pub components: Vec<DeclaredComponent>,
}

/// A component that the aggregator's own files declare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredComponent {
    /// Which.
    pub key: ComponentKey,
    /// Its labels; they win over what agents announce.
    pub labels: BTreeMap<String, String>,
    /// What it depends on, each `name` or `Kind/name`; wins over what agents announce.
    pub depends_on: Vec<String>,
}

/// An agent's hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The new session.
    pub session: SessionId,
    /// Who it is; one live session each, the newer wins.
    pub agent: AgentName,
    /// The run of the agent.
    pub epoch: Epoch,
    /// Its latest transition.
    pub seq: Seq,
    /// Up to where any aggregator has acknowledged this epoch: what came before is not a gap.
    pub acked: Seq,
    /// Its release, for people.
    pub version: String,
    /// Where it connects from, for people.
    pub peer: String,
    /// The pod that it speaks for and for no other, when a platform vouches for it; what it announces about components
    /// is then ignored. Boxed, since most events have nothing of the kind and wait in one queue.
    pub pod: Option<Box<PodRef>>,
}

/// One running copy of a component, as an agent announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedInstance {
    /// The component.
    pub component: ComponentKey,
    /// Labels of the component.
    pub labels: BTreeMap<String, String>,
    /// What the component depends on, each `name` or `Kind/name`.
    pub depends_on: Vec<String>,
    /// This copy.
    pub instance: InstanceName,
    /// Its probes.
    pub probes: Vec<AnnouncedProbe>,
}

/// Outside Kubernetes an agent speaks for components of `kind: Component` alone.
impl From<wire::AnnouncedInstance> for AnnouncedInstance {
    fn from(announced: wire::AnnouncedInstance) -> Self {
        let wire::AnnouncedInstance {
            namespace,
            component,
            instance,
            labels,
            depends_on,
            probes,
        } = announced;
        Self {
            component: ComponentKey::component(namespace, component),
            labels,
            depends_on,
            instance,
            probes,
        }
    }
}

/// What the connection has to do after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Done,
    /// After [`Event::Opened`]: the session is open.
    Opened {
        /// What is already held of this epoch, for `welcome.acked`; `None` asks for the state of all probes.
        resume: Option<Seq>,
        /// The agent's former session, to be closed.
        evicted: Option<SessionId>,
    },
    /// After [`Event::Reported`]: acknowledge.
    Applied {
        /// Everything up to here is taken in.
        ack: Seq,
        /// Transitions are missing: ask for the state of all probes.
        resync: bool,
    },
    /// Close the session: it is over a limit or contradicts itself. Nothing of the event was taken in.
    Refused(Refusal),
    /// The session is not, or no longer, the live one of an agent; nothing was taken in.
    UnknownSession,
}

/// Why something is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over [`Limits::agents`].
    #[error("the aggregator already holds {limit} agents, its limit")]
    TooManyAgents {
        /// The limit.
        limit: usize,
    },
    /// Over [`Limits::instances_per_agent`].
    #[error("{found} instances are more than the {limit} that one agent may announce")]
    TooManyInstances {
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Over [`Limits::probes_per_agent`].
    #[error("{found} probes are more than the {limit} that one agent may announce")]
    TooManyProbes {
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Over [`Limits::probes`].
    #[error("the aggregator cannot hold more than {limit} probes")]
    TooManyProbesInAll {
        /// The limit.
        limit: usize,
    },
    /// Its pod is not known, or not alive, or nobody knows yet who owns it.
    #[error(
        "pod {namespace}/{name} with uid {uid} is not known here, or is being deleted; try again in a moment"
    )]
    UnknownPod {
        /// The pod's namespace.
        namespace: Namespace,
        /// The pod's name.
        name: Name,
        /// The pod's uid.
        uid: Arc<str>,
    },
    /// One instance twice.
    #[error("instance {instance} of {component} is announced twice")]
    DuplicateInstance {
        /// The component.
        component: ComponentKey,
        /// The instance.
        instance: InstanceName,
    },
    /// One probe id twice.
    #[error("probe id {0} is announced twice")]
    DuplicateProbe(u32),
}

impl Refusal {
    pub(crate) fn unknown_pod(pod: &PodRef) -> Self {
        let PodRef { namespace, name, uid } = pod.clone();
        Self::UnknownPod { namespace, name, uid }
    }
}

/// How much is taken in; memory is bounded by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Agents, connected or not. Kubernetes holds at most 150,000 pods (its documented scale envelope).
    pub agents: usize,
    /// Instances of one agent; the protocol's limit, for it lets every probe have an instance of its own.
    pub instances_per_agent: usize,
    /// Probes of one agent; the protocol's limit.
    pub probes_per_agent: usize,
    /// Probes in all: about a hundred bytes each.
    pub probes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agents: 150_000,
            instances_per_agent: wire::MAX_PROBES_PER_AGENT,
            probes_per_agent: wire::MAX_PROBES_PER_AGENT,
            probes: 2_000_000,
        }
    }
}
