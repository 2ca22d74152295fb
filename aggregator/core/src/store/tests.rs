//! The store, event by event, in time that only moves when told.

use {
    super::*,
    crate::view::{AgentView, Presence, ScopeView},
    healthscope_crd::{HealthScope, v1beta1::HealthScopeSpec},
    healthscope_shared::{
        name::{AgentName, ComponentKey, InstanceName, Name, Namespace, ProbeName},
        probe::{ProbeKind, outcome::ProbeState},
        wire::{AnnouncedProbe, Epoch, ProbeId, Seq, Summary},
    },
    jiff::Timestamp,
    std::time::Duration,
};

mod cluster;
mod lifecycle;
mod properties;
mod scopes;

/// A store with its own time, and what it published.
struct World {
    store: Store,
    start: Instant,
    elapsed: Duration,
    /// How far the wall clock is off, seconds.
    skew: i64,
    sessions: u64,
    /// Transitions of scopes and components, in words.
    told: Vec<String>,
    /// Transitions of probes, in words.
    probes: Vec<String>,
    /// Scopes rebuilt since they were last asked for.
    rebuilt: Vec<String>,
}

/// An agent as the store sees it: it counts its transitions.
struct Agent {
    name: &'static str,
    epoch: u64,
    session: SessionId,
    seq: u64,
    acked: u64,
}

/// Where the time of a test starts.
#[allow(
    clippy::disallowed_methods,
    reason = "there is no other way to an instant; tests only add to it"
)]
fn any_instant() -> Instant {
    Instant::now()
}

fn wall_start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

impl World {
    /// A store whose time of grace is over.
    fn new() -> Self {
        let mut world = Self::fresh(StoreConfig::default());
        world.wait(100);
        world
    }

    /// A store that has just started.
    fn fresh(config: StoreConfig) -> Self {
        let start = any_instant();
        let now = Now {
            instant: start,
            wall: wall_start(),
        };
        Self {
            store: Store::new(config, now),
            start,
            elapsed: Duration::ZERO,
            skew: 0,
            sessions: 0,
            told: Vec::new(),
            probes: Vec::new(),
            rebuilt: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        let ahead = i64::try_from(self.elapsed.as_millis()).unwrap() + self.skew * 1000;
        Now {
            instant: self.start + self.elapsed,
            wall: wall_start() + jiff::SignedDuration::from_millis(ahead),
        }
    }

    fn apply(&mut self, event: Event) -> Answer {
        let answer = self.store.apply(self.now(), event);
        self.publish();
        answer
    }

    fn publish(&mut self) -> Changes {
        let changes = self.store.publish(self.now());
        assert!(!self.store.is_dirty(), "a publication leaves nothing behind");
        self.rebuilt
            .extend(changes.scopes.iter().map(|entry| entry.view.name.to_string()));
        for transition in &changes.transitions {
            let TransitionView {
                name,
                reason,
                message,
                ..
            } = &**transition;
            let separator = if message.is_empty() { "" } else { ": " };
            match &transition.change {
                Change::Scope { from, to, .. } => {
                    self.told.push(format!(
                        "scope {name} {from} → {to} ({reason}){separator}{message}"
                    ));
                }
                Change::Component { from, to } => {
                    let to = to.map_or("gone", Health::as_str);
                    self.told
                        .push(format!("{name} {from} → {to} ({reason}){separator}{message}"));
                }
                Change::Probe {
                    from,
                    to,
                    probe,
                    instance,
                    seq,
                    ..
                } => {
                    let from = from.map_or("?", ProbeState::as_str);
                    self.probes
                        .push(format!("{seq}: {probe} on {instance} {from} → {to}"));
                }
            }
        }
        self.store.check();
        changes
    }

    /// Lets time pass, tick by tick.
    fn wait(&mut self, seconds: u64) {
        self.wait_ms(seconds * 1000);
    }

    fn wait_ms(&mut self, ms: u64) {
        let target = self.elapsed + Duration::from_millis(ms);
        while let Some(deadline) = self.store.next_deadline().map(|deadline| deadline - self.start)
            && deadline <= target
        {
            assert!(deadline >= self.elapsed, "a deadline that passed was carried out");
            self.elapsed = self.elapsed.max(deadline);
            self.apply(Event::Tick);
        }
        self.elapsed = target;
    }

    /// Configures scopes (name and spec) and declares components (name and labels).
    fn configure(&mut self, scopes: &[(&str, &str)], components: &[(&str, &[(&str, &str)])]) {
        let scopes = scopes
            .iter()
            .map(|&(name, spec)| Arc::new(scope_object(name, spec)))
            .collect();
        let components = components
            .iter()
            .map(|&(name, labels)| DeclaredComponent {
                key: key(name),
                labels: labels
                    .iter()
                    .map(|&(key, value)| (key.into(), value.into()))
                    .collect(),
                depends_on: Vec::new(),
            })
            .collect();
        self.apply(Event::Configured(Configuration {
            scopes,
            unreadable: Vec::new(),
            components,
        }));
    }

    /// An agent process starts and connects.
    fn connect(&mut self, name: &'static str, epoch: u64) -> Agent {
        let mut agent = Agent {
            name,
            epoch,
            session: SessionId(0),
            seq: 0,
            acked: 0,
        };
        self.reconnect(&mut agent);
        agent
    }

    fn reconnect(&mut self, agent: &mut Agent) -> (Option<u64>, Option<SessionId>) {
        self.sessions += 1;
        agent.session = SessionId(self.sessions);
        let answer = self.apply(Event::Opened(Opened {
            session: agent.session,
            agent: AgentName::new(agent.name).unwrap(),
            epoch: Epoch(agent.epoch),
            seq: Seq(agent.seq),
            acked: Seq(agent.acked),
            version: "0.1.0".into(),
            peer: "127.0.0.1".into(),
            pod: None,
        }));
        match answer {
            Answer::Opened { resume, evicted } => (resume.map(|seq| seq.0), evicted),
            other => panic!("not opened: {other:?}"),
        }
    }

    /// Announces `component/instance: probe probe` separated by `;`; a probe is called by its kind, or `kind:name`.
    /// Ids count from 0.
    fn announce(&mut self, agent: &Agent, text: &str) -> Answer {
        self.announce_with(agent, text, |_| {})
    }

    fn announce_with(
        &mut self,
        agent: &Agent,
        text: &str,
        mut change: impl FnMut(&mut AnnouncedInstance),
    ) -> Answer {
        let mut instances = announcement(text, 0);
        instances.iter_mut().for_each(&mut change);
        self.apply(Event::Announced {
            session: agent.session,
            instances,
        })
    }

    /// The agent's transitions: probe id and state letter, `0P 1F`.
    fn report(&mut self, agent: &mut Agent, text: &str) -> Answer {
        let transitions = agent.transitions(text);
        let seq = Seq(agent.seq);
        let answer = self.apply(Event::Reported {
            session: agent.session,
            report: Report {
                seq,
                transitions,
                ..Report::default()
            },
        });
        if let Answer::Applied { ack, .. } = answer {
            agent.acked = ack.0;
        }
        answer
    }

    /// The agent's full state.
    fn states(&mut self, agent: &mut Agent, text: &str) -> Answer {
        let states = records(text, agent.seq);
        let seq = Seq(agent.seq);
        let report = Report {
            seq,
            states,
            complete: true,
            ..Report::default()
        };
        let answer = self.apply(Event::Reported {
            session: agent.session,
            report,
        });
        if let Answer::Applied { ack, .. } = answer {
            agent.acked = ack.0;
        }
        answer
    }

    /// A connected agent whose probes have these states.
    fn agent(&mut self, name: &'static str, announced: &str, states: &str) -> Agent {
        let mut agent = self.connect(name, 1);
        assert_eq!(self.announce(&agent, announced), Answer::Done);
        self.states(&mut agent, states);
        agent
    }

    fn scope(&self, name: &str) -> ScopeView {
        let key = ScopeKey {
            namespace: Namespace::default(),
            name: Name::new(name).unwrap(),
        };
        self.store.snapshot().scopes[&key].view.clone()
    }

    fn health(&self, component: &str) -> String {
        let view = self.store.component(&key(component)).expect("a known component");
        format!("{} {}", view.component.health, view.component.reason)
    }

    fn agent_view(&self, name: &str) -> AgentView {
        self.store
            .agent(&AgentName::new(name).unwrap())
            .expect("a known agent")
    }

    #[track_caller]
    fn expect(&mut self, told: &[&str]) {
        assert_eq!(std::mem::take(&mut self.told), told);
    }
}

impl Agent {
    fn transitions(&mut self, text: &str) -> Vec<Record> {
        let mut records = records(text, 0);
        for record in &mut records {
            self.seq += 1;
            record.seq = Seq(self.seq);
        }
        records
    }
}

fn key(component: &str) -> ComponentKey {
    ComponentKey::component(Namespace::default(), Name::new(component).unwrap())
}

fn scope_object(name: &str, spec: &str) -> HealthScope {
    let spec: HealthScopeSpec = serde_json::from_str(spec).expect("a spec as JSON");
    HealthScope::new(name, spec)
}

/// As [`World::announce`] says, ids from `first`.
fn announcement(text: &str, first: u32) -> Vec<AnnouncedInstance> {
    let mut id = first;
    text.split(';')
        .filter(|instance| !instance.trim().is_empty())
        .map(|instance| {
            let (name, probes) = instance.split_once(':').unwrap_or((instance, ""));
            let (component, instance) = name.trim().split_once('/').expect("component/instance");
            let probes = probes
                .split_whitespace()
                .map(|probe| {
                    let (kind, name) = probe.split_once('=').unwrap_or((probe, probe));
                    let kind = match kind {
                        "liveness" => ProbeKind::Liveness,
                        "readiness" => ProbeKind::Readiness,
                        "startup" => ProbeKind::Startup,
                        other => panic!("{other} is no kind"),
                    };
                    id += 1;
                    AnnouncedProbe {
                        id: ProbeId(id - 1),
                        name: ProbeName::new(name).unwrap(),
                        kind,
                        target: format!("tcp {component}:1"),
                        period_ms: 1_000,
                        timeout_ms: 1_000,
                        success_threshold: 1,
                        failure_threshold: 3,
                    }
                })
                .collect();
            AnnouncedInstance {
                component: key(component),
                labels: BTreeMap::new(),
                depends_on: Vec::new(),
                instance: InstanceName::new(instance).unwrap(),
                probes,
            }
        })
        .collect()
}

/// Records from `0P 1F 2- 3U`: probe id and Passing, Failing, Pending, or that its runner never came up (`U`); `*` behind sets
/// the flapping flag.
fn records(text: &str, seq: u64) -> Vec<Record> {
    text.split_whitespace()
        .map(|word| {
            let flapping = word.ends_with('*');
            let word = word.trim_end_matches('*');
            let (id, letter) = word.split_at(word.len() - 1);
            let (state, streak, reason, message) = match letter {
                "P" => (ProbeState::Passing, 1, Reason::PASSING, ""),
                "F" => (
                    ProbeState::Failing,
                    -3,
                    Reason::CONNECTION_REFUSED,
                    "connection refused",
                ),
                "-" => (ProbeState::Pending, 0, Reason::STARTING, ""),
                "U" => (
                    ProbeState::Pending,
                    0,
                    Reason::UNSUPPORTED,
                    "no runner has started",
                ),
                other => panic!("{other} is no state"),
            };
            Record {
                seq: Seq(seq),
                probe: ProbeId(id.parse().expect("a probe id")),
                age_ms: 0,
                state,
                flapping,
                error: false,
                streak,
                latency_us: 100,
                reason,
                message: message.into(),
                output: String::new(),
            }
        })
        .collect()
}

impl Store {
    /// Compares every counter and index with what it is derived from.
    pub(super) fn check(&self) {
        self.fleet.check();
        let mut summary = healthscope_crd::v1beta1::Summary::default();
        for (id, component) in self.components.iter() {
            let mut counts = crate::view::InstanceCounts::default();
            let mut flapping = 0;
            for &instance in &component.instances {
                let instance = self.fleet.instance(instance);
                assert_eq!(instance.component, id);
                counts.total += 1;
                match instance.shown.health() {
                    Health::Healthy => counts.healthy += 1,
                    Health::Unhealthy | Health::Degraded => counts.unhealthy += 1,
                    Health::Unknown => counts.unknown += 1,
                }
                flapping += instance.flapping_told;
            }
            assert_eq!(
                (component.counts, component.flapping),
                (counts, flapping),
                "{}",
                component.key
            );
            assert_eq!(component.sick.len() as u32, counts.total - counts.healthy);
            assert_eq!(
                component.health,
                component.measured(self.starting),
                "{}",
                component.key
            );
            assert!(component.is_known(), "{}", component.key);
            if !component.is_scope() {
                summary.add(component.health);
            }
            let mut by_label = self.index.scopes(&component.key.namespace, &component.labels);
            if !component.is_selectable() {
                by_label.clear();
            }
            if let Some(cluster) = &self.cluster
                && component.sort == Sort::Other
            {
                by_label = cluster.scopes_by_label(&component.key, &self.index);
            }
            let mut scopes: Vec<u32> = by_label
                .iter()
                .map(|&scope| scope as u32)
                .chain(component.named_by.clone())
                .collect();
            scopes.sort_unstable();
            scopes.dedup();
            assert_eq!(component.scopes, scopes, "{}", component.key);
            for &scope in &scopes {
                let members = &self.scopes[scope as usize].members;
                assert!(
                    members.list.iter().any(|member| member.id == id),
                    "{}",
                    component.key
                );
            }
        }
        assert_eq!(self.components.summary(), summary);
        for scope in &self.scopes {
            let entry = scope.entry.as_ref().expect("published");
            assert_eq!(entry.view.components.len(), scope.members.list.len());
            for member in &scope.members.list {
                let component = self.components.get(member.id);
                let summary = component.summary.as_ref().expect("kept for members");
                assert_eq!(**summary, self.summary(member.id));
            }
        }
    }
}
