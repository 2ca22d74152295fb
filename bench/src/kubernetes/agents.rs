//! Simulated agents of pods: each shows its pod's token, says how its probes are, sends summaries, comes back when cut.

use {
    super::Component,
    crate::swarm::{self, Connection, Target},
    anyhow::{Result, ensure},
    healthscope_shared::{
        probe::outcome::ProbeState,
        wire::{AgentMessage, ProbeId, Report, Seq, ServerMessage, Summary},
    },
    std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    },
    tokio::{sync::mpsc, task::JoinSet, time},
};

/// Probes of each agent: startup, readiness and liveness, so to speak.
pub(crate) const PROBES: u32 = 3;
/// How often agents send summaries.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long an agent waits before it tries again, twice as long each time, as its real kin does; spread by its number.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What an agent is told.
enum Order {
    /// Its first probe passes from now on, or fails.
    Passes(bool),
    /// Its connection is cut.
    Reconnect,
}

/// The agents of all components.
pub(crate) struct Agents {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    connected: Arc<AtomicUsize>,
    sessions: Arc<AtomicUsize>,
    _running: JoinSet<()>,
}

impl Agents {
    /// Starts an agent for each component. They find an aggregator at one of these addresses.
    pub(crate) fn start(components: &[Component], addresses: &[SocketAddr]) -> Self {
        let (connected, sessions) = (Arc::default(), Arc::default());
        let mut running = JoinSet::new();
        let mut orders = Vec::with_capacity(components.len());
        for component in components {
            let (sender, receiver) = mpsc::unbounded_channel();
            orders.push(sender);
            let agent = Agent {
                index: component.index,
                token: component.token.clone(),
                orders: receiver,
                seq: 1,
                acked: Seq(0),
                passes: true,
                connected: Arc::clone(&connected),
                sessions: Arc::clone(&sessions),
            };
            running.spawn(agent.run(addresses.to_vec()));
        }
        Self {
            orders,
            connected,
            sessions,
            _running: running,
        }
    }

    /// What the first probe of an agent finds from now on.
    pub(crate) fn set(&self, index: usize, passes: bool) {
        // An agent only ends with all of them.
        drop(self.orders[index].send(Order::Passes(passes)));
    }

    /// Cuts every agent's connection.
    pub(crate) fn cut_all(&self) {
        for orders in &self.orders {
            drop(orders.send(Order::Reconnect));
        }
    }

    /// How many are in session and have told everything.
    pub(crate) fn connected(&self) -> usize {
        self.connected.load(Ordering::SeqCst)
    }

    /// How many sessions there were in all.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::SeqCst)
    }
}

struct Agent {
    index: usize,
    token: Arc<str>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// The latest transition.
    seq: u64,
    /// What an aggregator has taken in.
    acked: Seq,
    passes: bool,
    connected: Arc<AtomicUsize>,
    sessions: Arc<AtomicUsize>,
}

/// Counts as connected until dropped.
struct Connected(Arc<AtomicUsize>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Agent {
    async fn run(mut self, addresses: Vec<SocketAddr>) {
        let mut wait = RETRY.0;
        for address in addresses.into_iter().cycle() {
            let before = self.sessions.load(Ordering::SeqCst);
            let target = Target { address, tls: None };
            // Whatever ended the session, the next one tells everything again.
            drop(self.session(&target).await);
            let was_open = self.sessions.load(Ordering::SeqCst) > before;
            wait = if was_open {
                RETRY.0
            } else {
                (wait * 2).min(RETRY.1)
            };
            time::sleep(wait.mul_f64(0.5 + spread(self.index))).await;
        }
    }

    async fn session(&mut self, target: &Target) -> Result<()> {
        let opening = Connection::open_with(target, self.index, Some(&self.token));
        let mut connection = time::timeout(Duration::from_secs(15), opening).await??;
        let (hello, announce) = swarm::introduction_at(self.index, PROBES, Seq(self.seq), self.acked);
        connection.write(&hello).await?;
        let welcome = connection.message().await?;
        ensure!(matches!(welcome, ServerMessage::Welcome(_)), "not welcome");
        connection.write(&announce).await?;
        connection.write(&self.full_state()).await?;
        self.sessions.fetch_add(1, Ordering::SeqCst);
        self.connected.fetch_add(1, Ordering::SeqCst);
        let _connected = Connected(Arc::clone(&self.connected));
        let mut heartbeat = time::interval_at(
            time::Instant::now() + HEARTBEAT.mul_f64(spread(self.index)),
            HEARTBEAT,
        );
        loop {
            // Reading is cancel-safe but for the answer to a ping, which is written at once; the others are, too.
            tokio::select! {
                message = connection.message() => match message? {
                    ServerMessage::Ack(ack) => {
                        self.acked = ack.seq;
                    }
                    ServerMessage::Resync(_) => connection.write(&self.full_state()).await?,
                    ServerMessage::Redirect(_) | ServerMessage::Drain(_) => return Ok(()),
                    _ => {}
                },
                order = self.orders.recv() => match order {
                    Some(Order::Passes(passes)) => {
                        self.passes = passes;
                        self.seq += 1;
                        connection.write(&self.transition()).await?;
                    }
                    Some(Order::Reconnect) | None => return Ok(()),
                },
                _ = heartbeat.tick() => connection.write(&self.summaries()).await?,
            }
        }
    }

    fn state(&self) -> ProbeState {
        if self.passes {
            ProbeState::Passing
        } else {
            ProbeState::Failing
        }
    }

    fn transition(&self) -> Vec<u8> {
        swarm::text(&AgentMessage::Report(Report {
            seq: Seq(self.seq),
            transitions: vec![swarm::record(self.seq, 0, self.state())],
            ..Report::default()
        }))
    }

    fn full_state(&self) -> Vec<u8> {
        let others = (1..PROBES).map(|probe| swarm::record(0, probe, ProbeState::Passing));
        let first = swarm::record(self.seq, 0, self.state());
        swarm::text(&AgentMessage::Report(Report {
            seq: Seq(self.seq),
            transitions: (self.acked.0 < self.seq)
                .then(|| first.clone())
                .into_iter()
                .collect(),
            states: std::iter::once(first).chain(others).collect(),
            complete: true,
            ..Report::default()
        }))
    }

    fn summaries(&self) -> Vec<u8> {
        let summaries = (0..PROBES).map(|probe| Summary {
            probe: ProbeId(probe),
            streak: if probe > 0 || self.passes { 100 } else { -100 },
            runs: 1,
            failures: u32::from(probe == 0 && !self.passes),
            errors: 0,
            min_us: 700,
            avg_us: 850,
            max_us: 1200,
            p99_us: 1190,
        });
        swarm::text(&AgentMessage::Report(Report {
            seq: Seq(self.seq),
            summaries: summaries.collect(),
            ..Report::default()
        }))
    }
}

/// From 0 to 1, evenly over consecutive numbers.
fn spread(index: usize) -> f64 {
    f64::from(u32::try_from(index % 997).unwrap_or(0)) / 997.0
}
