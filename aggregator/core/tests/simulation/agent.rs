//! A simulated agent: its file, what is true of its probes, and the real session and outbox.

use {
    crate::random::Random,
    healthscope_shared::{
        backoff::Backoff,
        health::Reason,
        name::{AgentName, InstanceName, Name, Namespace, ProbeName},
        probe::{ProbeKind, outcome::ProbeState},
        session::{
            agent::AgentSession,
            outbox::{Observation, Outbox},
        },
        wire::{AnnouncedInstance, AnnouncedProbe, Epoch, ProbeId, Summary},
    },
    std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    },
};

/// What a person has written: instances with their probes. Survives the process.
#[derive(Clone, Debug)]
pub(crate) struct File(pub(crate) Vec<FileInstance>);

#[derive(Clone, Debug)]
pub(crate) struct FileInstance {
    pub(crate) component: Name,
    pub(crate) instance: InstanceName,
    /// Names, each with a number that changes when its definition does.
    pub(crate) probes: BTreeMap<ProbeName, u32>,
}

/// One probe of the running process, as it really is.
#[derive(Clone, Debug)]
pub(crate) struct True {
    pub(crate) component: Name,
    pub(crate) instance: InstanceName,
    pub(crate) name: ProbeName,
    definition: u32,
    pub(crate) state: ProbeState,
    pub(crate) flapping: bool,
    pub(crate) error: bool,
    pub(crate) streak: i32,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    /// Whether it has run.
    pub(crate) ran: bool,
}

/// A transition that really happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) instance: InstanceName,
    pub(crate) probe: ProbeName,
    pub(crate) from: ProbeState,
    pub(crate) to: ProbeState,
}

pub(crate) struct Agent {
    pub(crate) name: AgentName,
    /// Speaks for a name that belongs to another; leaves before the end.
    pub(crate) is_impostor: bool,
    pub(crate) file: File,
    pub(crate) process: Option<Process>,
    /// Rises with each process, so that events of a former one are told.
    pub(crate) generation: u32,
}

pub(crate) struct Process {
    pub(crate) epoch: Epoch,
    pub(crate) session: AgentSession,
    pub(crate) outbox: Outbox,
    pub(crate) backoff: Backoff,
    pub(crate) connection: Option<u64>,
    pub(crate) retry_at: u64,
    pub(crate) wake_at: Option<u64>,
    pub(crate) probes: BTreeMap<ProbeId, True>,
    next_id: u32,
    /// Every transition of this process; the first has number 1.
    pub(crate) history: Vec<Happened>,
    /// Transitions dropped by the simulation's own reckoning are not known; the outbox counts them.
    pub(crate) stopping: bool,
}

impl Process {
    pub(crate) fn summaries(&self) -> Vec<Summary> {
        self.probes
            .iter()
            .map(|(&probe, is)| Summary {
                probe,
                streak: is.streak,
                runs: 10,
                failures: 0,
                errors: 0,
                min_us: 1,
                avg_us: 2,
                max_us: 3,
                p99_us: 3,
            })
            .collect()
    }
}

impl Agent {
    pub(crate) fn start(&mut self, random: &mut Random, now: Instant, now_ms: u64) {
        let epoch = Epoch(random.next());
        self.generation += 1;
        self.process = Some(Process {
            epoch,
            session: AgentSession::new(self.name.clone(), "1", epoch),
            outbox: Outbox::new(),
            backoff: Backoff::reconnect(),
            connection: None,
            retry_at: now_ms,
            wake_at: None,
            probes: BTreeMap::new(),
            next_id: 1,
            history: Vec::new(),
            stopping: false,
        });
        self.announce(now);
    }

    /// Reads the file.
    pub(crate) fn announce(&mut self, now: Instant) {
        let Some(process) = &mut self.process else { return };
        let mut former: BTreeMap<(InstanceName, Name, ProbeName, u32), (ProbeId, True)> =
            std::mem::take(&mut process.probes)
                .into_iter()
                .map(|(id, probe)| {
                    let key = (
                        probe.instance.clone(),
                        probe.component.clone(),
                        probe.name.clone(),
                        probe.definition,
                    );
                    (key, (id, probe))
                })
                .collect();
        let mut announced = Vec::new();
        for FileInstance {
            component,
            instance,
            probes,
        } in &self.file.0
        {
            let mut these = Vec::new();
            for (name, &definition) in probes {
                let key = (instance.clone(), component.clone(), name.clone(), definition);
                let (id, probe) = former.remove(&key).unwrap_or_else(|| {
                    let id = ProbeId(process.next_id);
                    process.next_id += 1;
                    let probe = True {
                        component: component.clone(),
                        instance: instance.clone(),
                        name: name.clone(),
                        definition,
                        state: ProbeState::Pending,
                        flapping: false,
                        error: false,
                        streak: 0,
                        reason: Reason::STARTING,
                        message: String::new(),
                        ran: false,
                    };
                    (id, probe)
                });
                these.push(AnnouncedProbe {
                    id,
                    name: name.clone(),
                    kind: ProbeKind::Readiness,
                    target: format!("tcp 127.0.0.1:{definition}"),
                    period_ms: 1_000,
                    timeout_ms: 1_000,
                    success_threshold: 1,
                    failure_threshold: 3,
                });
                process.probes.insert(id, probe);
            }
            announced.push(AnnouncedInstance {
                namespace: Namespace::default(),
                component: component.clone(),
                instance: instance.clone(),
                labels: BTreeMap::new(),
                depends_on: vec![],
                probes: these,
            });
        }
        process.outbox.announce(announced, now).expect("ids are unique");
    }

    /// A run of some probe ends.
    pub(crate) fn run(&mut self, random: &mut Random, flips: u64, now: Instant) {
        const REASONS: [Reason; 3] = [Reason::TIMED_OUT, Reason::EXIT_CODE, Reason::CONNECTION_REFUSED];
        let Some(process) = &mut self.process else { return };
        if process.probes.is_empty() {
            return;
        }
        let index = random.below(process.probes.len());
        let (&id, probe) = process.probes.iter_mut().nth(index).expect("within the number");
        let from = probe.state;
        if random.percent(flips) {
            probe.state = match from {
                ProbeState::Passing => ProbeState::Failing,
                ProbeState::Failing => ProbeState::Passing,
                ProbeState::Pending if random.percent(50) => ProbeState::Passing,
                ProbeState::Pending => ProbeState::Failing,
            };
        }
        let is_success = match probe.state {
            ProbeState::Passing => random.percent(90),
            ProbeState::Failing => random.percent(10),
            ProbeState::Pending => random.percent(50),
        };
        let length = 1 + i32::try_from(random.below(5)).expect("small");
        probe.streak = if is_success { length } else { -length };
        probe.flapping ^= random.percent(3);
        probe.error = !is_success && random.percent(20);
        probe.ran = true;
        (probe.reason, probe.message) = if is_success {
            (Reason::PASSING, String::new())
        } else {
            (
                random.pick(&REASONS).clone(),
                format!("cause {}", random.below(3)),
            )
        };
        let output = if is_success || random.percent(95) {
            String::new()
        } else {
            "x".repeat(random.below(5_000))
        };
        let observation = Observation {
            state: probe.state,
            flapping: probe.flapping,
            error: probe.error,
            streak: probe.streak,
            latency: Duration::from_micros(random.between(100..=900)),
            reason: probe.reason.clone(),
            message: probe.message.clone(),
            output,
        };
        if probe.state != from {
            process.history.push(Happened {
                instance: probe.instance.clone(),
                probe: probe.name.clone(),
                from,
                to: probe.state,
            });
        }
        process.outbox.record(id, observation, now);
    }

    /// Somebody edits the file.
    pub(crate) fn edit(&mut self, random: &mut Random, now: Instant) {
        let File(instances) = &mut self.file;
        match random.below(5) {
            0 if instances.len() < 6 => {
                let number = random.below(8);
                let component: Name = format!("c{}", number % 4).parse().expect("a name");
                let instance: InstanceName = format!("{}-{number}", self.name).parse().expect("a name");
                if !instances.iter().any(|other| other.instance == instance) {
                    instances.push(FileInstance {
                        component,
                        instance,
                        probes: probes(1..=2),
                    });
                }
            }
            1 if !instances.is_empty() => {
                instances.remove(random.below(instances.len()));
            }
            choice => {
                let count = instances.len();
                if count == 0 {
                    return;
                }
                let probes = &mut instances[random.below(count)].probes;
                let name: ProbeName = format!("p{}", random.below(6)).parse().expect("a name");
                match (choice, probes.get_mut(&name)) {
                    (2, _) => drop(probes.remove(&name)),
                    (_, Some(definition)) => *definition += 1,
                    (_, None) => drop(probes.insert(name, 1)),
                }
            }
        }
        self.announce(now);
    }
}

/// Probes with these numbers.
pub(crate) fn probes(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<ProbeName, u32> {
    numbers
        .into_iter()
        .map(|number| (format!("p{number}").parse().expect("a name"), 1))
        .collect()
}
