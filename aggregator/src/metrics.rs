//! The aggregator's own metrics: one struct for each part, registered here and passed in.
//!
//! Label sets are closed and touched at start, so that zero is visible. The scopes' states are not counted here but
//! written from the newest snapshot by [`scopes`].

use {
    crate::identity::Refused,
    healthscope_core::view::{Change, TransitionView},
    healthscope_service::build,
    healthscope_shared::wire::close,
    prometheus::{
        Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
        TextEncoder, core::Collector,
    },
    std::sync::Arc,
};

pub(crate) mod admission;
pub(crate) mod breaker;
pub(crate) mod certificates;
pub(crate) mod process;
pub(crate) mod scopes;
pub(crate) mod writer;

/// Content type of the Prometheus text format.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    /// Whether this replica serves; set when somebody looks.
    pub(crate) serving: IntGauge,
    pub(crate) connections: ConnectionMetrics,
    pub(crate) webhook_connections: ConnectionMetrics,
    pub(crate) certificates: certificates::CertificateMetrics,
    pub(crate) admission: admission::AdmissionMetrics,
    pub(crate) breaker: breaker::BreakerMetrics,
    pub(crate) agents: AgentMetrics,
    pub(crate) store: StoreMetrics,
    pub(crate) http: HttpMetrics,
    pub(crate) watches: WatchMetrics,
    pub(crate) writer: writer::WriterMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let maker = Maker(&registry);
        let info = maker.gauges(
            "build_info",
            "Which build this is; always 1.",
            &["version", "commit"],
        );
        info.with_label_values(&[build::VERSION, build::COMMIT.unwrap_or_default()])
            .set(1);
        maker.register(process::ProcessCollector::new());
        let serving = maker.gauge(
            "serving",
            "1 for the replica that serves: takes agents in and writes statuses; 0 for one that stands by.",
        );
        Self {
            serving,
            connections: ConnectionMetrics::new(&maker, ""),
            webhook_connections: ConnectionMetrics::new(&maker, "webhook_"),
            certificates: certificates::CertificateMetrics::new(&maker),
            admission: admission::AdmissionMetrics::new(&maker),
            breaker: breaker::BreakerMetrics::new(&maker),
            agents: AgentMetrics::new(&maker),
            store: StoreMetrics::new(&maker),
            http: HttpMetrics::new(&maker),
            watches: WatchMetrics::new(&maker),
            writer: writer::WriterMetrics::new(&maker),
            registry,
        }
    }

    /// Everything in the Prometheus text format.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory, and every family has a name and a metric");
        text
    }
}

/// The watches of a Kubernetes API; all zero without one.
#[derive(Clone)]
pub(crate) struct WatchMetrics {
    pub(crate) events: IntCounter,
    pub(crate) restarts: IntCounter,
    pub(crate) unreadable: IntCounter,
}

impl WatchMetrics {
    fn new(maker: &Maker<'_>) -> Self {
        Self {
            events: maker.counter(
                "watch_events_total",
                "What watches of the Kubernetes API told the store.",
            ),
            restarts: maker.counter(
                "watch_errors_total",
                "Errors of lists and watches of the Kubernetes API, each followed by another attempt.",
            ),
            unreadable: maker.counter(
                "watch_unreadable_objects_total",
                "Objects that came by a watch and could not be read.",
            ),
        }
    }
}

/// One accept loop.
#[derive(Clone)]
pub(crate) struct ConnectionMetrics {
    pub(crate) open: IntGauge,
    pub(crate) accepted: IntCounter,
    pub(crate) accept_errors: IntCounter,
    pub(crate) over_limit: IntCounter,
    pub(crate) tls_errors: IntCounter,
}

impl ConnectionMetrics {
    /// Those of one listener; the main one's names have no prefix.
    fn new(maker: &Maker<'_>, prefix: &str) -> Self {
        let name = |name: &str| format!("{prefix}{name}");
        Self {
            open: maker.gauge(
                &name("connections"),
                "Connections that are open, those of agents with a session not among them.",
            ),
            accepted: maker.counter(&name("connections_accepted_total"), "Connections accepted."),
            accept_errors: maker.counter(
                &name("connections_accept_errors_total"),
                "Failures to accept, such as running out of descriptors.",
            ),
            over_limit: maker.counter(
                &name("connections_over_limit_total"),
                "Connections closed at once because their address had its share.",
            ),
            tls_errors: maker.counter(
                &name("connections_tls_errors_total"),
                "TLS handshakes that failed or took too long.",
            ),
        }
    }
}

/// Why the session of an agent ended; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    Goodbye,
    Lost,
    Replaced,
    Silent,
    Protocol,
    Refused,
    Drained,
    Redirected,
    Slow,
}

impl EndReason {
    const ALL: [Self; 9] = [
        Self::Goodbye,
        Self::Lost,
        Self::Replaced,
        Self::Silent,
        Self::Protocol,
        Self::Refused,
        Self::Drained,
        Self::Redirected,
        Self::Slow,
    ];

    /// Which one stands behind a close code of ours.
    pub(crate) const fn of_code(code: u16) -> Self {
        match code {
            close::NORMAL => Self::Goodbye,
            close::GOING_AWAY => Self::Drained,
            close::POLICY | close::TRY_LATER => Self::Refused,
            close::REPLACED => Self::Replaced,
            close::SILENT => Self::Silent,
            _ => Self::Protocol,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Goodbye => "goodbye",
            Self::Lost => "lost",
            Self::Replaced => "replaced",
            Self::Silent => "silent",
            Self::Protocol => "protocol",
            Self::Refused => "refused",
            Self::Drained => "drained",
            Self::Redirected => "redirected",
            Self::Slow => "slow",
        }
    }
}

/// Sessions of agents.
#[derive(Clone)]
pub(crate) struct AgentMetrics {
    pub(crate) sessions: IntGauge,
    pub(crate) opened: IntCounter,
    ended: IntCounterVec,
    pub(crate) refused_handshakes: IntCounter,
    refused_identities: IntCounterVec,
    pub(crate) messages: IntCounter,
    pub(crate) transitions: IntCounter,
    pub(crate) states: IntCounter,
    pub(crate) summaries: IntCounter,
    pub(crate) replayed: IntCounter,
    pub(crate) removed: IntCounter,
    pub(crate) unknown: IntCounter,
}

impl AgentMetrics {
    fn new(maker: &Maker<'_>) -> Self {
        let ended = maker.counters(
            "agent_sessions_ended_total",
            "Sessions of agents that ended, by reason.",
            &["reason"],
        );
        for reason in EndReason::ALL {
            ended.with_label_values(&[reason.as_str()]);
        }
        let refused_identities = maker.counters(
            "agent_identities_refused_total",
            "Tokens of pods that were refused, by reason; always 0 where agents share a token.",
            &["reason"],
        );
        for refused in Refused::ALL {
            refused_identities.with_label_values(&[refused.as_str()]);
        }
        let records = maker.counters(
            "agent_records_total",
            "Records taken in from agents, by kind.",
            &["kind"],
        );
        let odd = maker.counters(
            "agent_odd_records_total",
            "Things in agents' messages that were odd but harmless: sent before, about a probe that was removed, or \
             unknown.",
            &["kind"],
        );
        Self {
            sessions: maker.gauge("agent_sessions", "Sessions of agents that are open, welcomed or not."),
            opened: maker.counter("agent_sessions_opened_total", "Sessions of agents that were opened."),
            ended,
            refused_handshakes: maker.counter(
                "agent_handshakes_refused_total",
                "Requests of agents that were answered with an error: no token, no subprotocol, too many agents.",
            ),
            refused_identities,
            messages: maker.counter("agent_messages_total", "Messages taken in from agents."),
            transitions: records.with_label_values(&["transition"]),
            states: records.with_label_values(&["state"]),
            summaries: records.with_label_values(&["summary"]),
            replayed: odd.with_label_values(&["replayed"]),
            removed: odd.with_label_values(&["removed"]),
            unknown: odd.with_label_values(&["unknown"]),
        }
    }

    pub(crate) fn refused_identity(&self, refused: Refused) {
        self.refused_identities
            .with_label_values(&[refused.as_str()])
            .inc();
    }

    pub(crate) fn ended(&self, reason: EndReason) {
        self.ended.with_label_values(&[reason.as_str()]).inc();
    }
}

/// The task that owns the store.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    pub(crate) queue: IntGauge,
    pub(crate) events: IntCounter,
    pub(crate) publications: IntCounter,
    pub(crate) publication_seconds: Histogram,
    pub(crate) configurations: IntCounter,
    pub(crate) configuration_problems: IntGauge,
    transitions: [IntCounter; 3],
}

impl StoreMetrics {
    fn new(maker: &Maker<'_>) -> Self {
        let transitions = maker.counters(
            "transitions_total",
            "Changes that were seen, by level.",
            &["level"],
        );
        Self {
            transitions: ["scope", "component", "probe"].map(|level| transitions.with_label_values(&[level])),
            queue: maker.gauge(
                "store_queue_length",
                "Events that waited for the store when it last looked.",
            ),
            events: maker.counter("store_events_total", "Events applied to the store."),
            publications: maker.counter(
                "store_publications_total",
                "Pictures of all scopes given to readers.",
            ),
            publication_seconds: maker.histogram(
                "store_publication_seconds",
                "How long it took to make a picture of all scopes.",
                &[0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0],
            ),
            configurations: maker.counter(
                "configurations_applied_total",
                "Configurations applied since the start.",
            ),
            configuration_problems: maker.gauge(
                "configuration_problems",
                "Problems of the present configuration; while there are any, an earlier one stays in force.",
            ),
        }
    }

    pub(crate) fn transitions_seen(&self, transitions: &[Arc<TransitionView>]) {
        let [scopes, components, probes] = &self.transitions;
        for transition in transitions {
            match transition.change {
                Change::Scope { .. } => scopes.inc(),
                Change::Component { .. } => components.inc(),
                Change::Probe { .. } => probes.inc(),
            }
        }
    }
}

/// What kind of thing a request was for; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteClass {
    Agent,
    Api,
    Page,
    Asset,
    Stream,
    Scopes,
    Metrics,
    Health,
    Other,
}

impl RouteClass {
    const ALL: [Self; 9] = [
        Self::Agent,
        Self::Api,
        Self::Page,
        Self::Asset,
        Self::Stream,
        Self::Scopes,
        Self::Metrics,
        Self::Health,
        Self::Other,
    ];

    /// The class of a path.
    pub(crate) fn of(path: &str) -> Self {
        let mut parts = path.split('/').skip(1);
        match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
            ("v1", Some("agent"), None) => Self::Agent,
            ("api", Some("v1"), Some("stream")) => Self::Stream,
            ("api", _, _) | ("openapi.json", None, _) => Self::Api,
            ("" | "login" | "logout" | "ui", _, _) => Self::Page,
            ("assets", _, _) => Self::Asset,
            ("scopes", _, _) => Self::Scopes,
            ("metrics", None, _) => Self::Metrics,
            ("livez" | "readyz" | "healthz", None, _) => Self::Health,
            _ => Self::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Api => "api",
            Self::Page => "page",
            Self::Asset => "asset",
            Self::Stream => "stream",
            Self::Scopes => "scopes",
            Self::Metrics => "metrics",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

/// Requests and streams.
#[derive(Clone)]
pub(crate) struct HttpMetrics {
    requests: IntCounterVec,
    pub(crate) streams: IntGauge,
    pub(crate) streams_cut: IntCounter,
    pub(crate) sign_ins_failed: IntCounter,
    pub(crate) runs: IntCounter,
}

impl HttpMetrics {
    /// Classes of status, as in `2xx`.
    const CLASSES: [&'static str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

    fn new(maker: &Maker<'_>) -> Self {
        let requests = maker.counters(
            "http_requests_total",
            "Requests answered, by kind of route and class of status.",
            &["route", "status"],
        );
        for route in RouteClass::ALL {
            for class in Self::CLASSES {
                requests.with_label_values(&[route.as_str(), class]);
            }
        }
        Self {
            requests,
            streams: maker.gauge("streams", "Streams of events that are open."),
            streams_cut: maker.counter(
                "streams_caught_up_total",
                "Times that a reader of a stream was too slow and got a fresh snapshot instead of what it missed.",
            ),
            sign_ins_failed: maker.counter("sign_ins_failed_total", "Wrong tokens in the sign-in form."),
            runs: maker.counter("probe_runs_requested_total", "Runs of probes that were asked for."),
        }
    }

    pub(crate) fn answered(&self, route: RouteClass, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        let class = Self::CLASSES[class.min(Self::CLASSES.len() - 1)];
        self.requests.with_label_values(&[route.as_str(), class]).inc();
    }
}

/// Makes metrics under our prefix and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)).expect("the name is valid"))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels).expect("name and labels are valid"))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)).expect("the name is valid"))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels).expect("name and labels are valid"))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts).expect("name and buckets are valid"))
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0
            .register(Box::new(collector.clone()))
            .expect("every metric is registered once");
        collector
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("healthscope_{name}"), help)
}
