//! Pins every message of the wire protocol to a file, and `docs/protocol.md` to the messages, codes and limits.
//!
//! `HEALTHSCOPE_BLESS=1 cargo test -p healthscope-shared --test golden` writes the files and the transcript anew; a
//! change of theirs is a change of the protocol, to be judged by what an older peer makes of it.

#![expect(
    clippy::disallowed_methods,
    reason = "a test may read the files that it checks"
)]
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use {
    healthscope_shared::{
        health::Reason,
        name::Namespace,
        probe::{ProbeKind, outcome::ProbeState},
        session, wire,
        wire::{
            Ack, AgentMessage, Announce, AnnouncedInstance, AnnouncedProbe, Ca, DecodeError, Drain, Epoch,
            Goodbye, Hello, ProbeId, Probed, Record, Redirect, Report, Resync, RunProbe, Seq, ServerMessage,
            Summary, Unsupported, Welcome, close,
        },
    },
    std::{
        collections::{BTreeMap, BTreeSet},
        path::{Path, PathBuf},
    },
};

/// A message of either side.
#[derive(Debug, PartialEq)]
enum Message {
    Agent(AgentMessage),
    Server(ServerMessage),
}

impl Message {
    fn encode(&self) -> String {
        match self {
            Self::Agent(message) => message.encode(),
            Self::Server(message) => message.encode(),
        }
    }

    /// Reads a message of the same side.
    fn decode(&self, text: &str) -> Result<Self, DecodeError> {
        match self {
            Self::Agent(_) => AgentMessage::decode(text).map(Self::Agent),
            Self::Server(_) => ServerMessage::decode(text).map(Self::Server),
        }
    }
}

fn record(seq: u64, probe: u32, state: ProbeState) -> Record {
    Record {
        seq: Seq(seq),
        probe: ProbeId(probe),
        age_ms: 12,
        state,
        flapping: false,
        error: false,
        streak: 1,
        latency_us: 850,
        reason: Reason::PASSING,
        message: String::new(),
        output: String::new(),
    }
}

fn failing(seq: u64, probe: u32) -> Record {
    Record {
        streak: -3,
        reason: Reason::EXIT_CODE,
        message: "exit code 1".into(),
        output: "no such table: orders\n".into(),
        ..record(seq, probe, ProbeState::Failing)
    }
}

fn probe(id: u32, name: &str, kind: ProbeKind, target: &str) -> AnnouncedProbe {
    AnnouncedProbe {
        id: ProbeId(id),
        name: name.parse().unwrap(),
        kind,
        target: target.into(),
        period_ms: 1_000,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: 3,
    }
}

fn instance(component: &str, probes: Vec<AnnouncedProbe>) -> AnnouncedInstance {
    AnnouncedInstance {
        namespace: Namespace::default(),
        component: component.parse().unwrap(),
        instance: "laptop".parse().unwrap(),
        labels: BTreeMap::new(),
        depends_on: vec![],
        probes,
    }
}

/// Every kind of message, in the order of the transcript, each under the name of its file.
fn messages() -> Vec<(&'static str, Message)> {
    use Message::{Agent, Server};

    vec![
        (
            "hello",
            Agent(AgentMessage::Hello(Hello {
                protocol: 1,
                agent: "laptop".parse().unwrap(),
                version: "0.1.0".into(),
                epoch: Epoch(0x9f3c_5a71_0e2b_44d8),
                seq: Seq(2),
                acked: Seq(0),
            })),
        ),
        (
            "welcome",
            Server(ServerMessage::Welcome(Welcome {
                protocol: 1,
                version: "0.1.0".into(),
                heartbeat_ms: 10_000,
                spread_ms: 5_000,
                acked: None,
            })),
        ),
        (
            "announce",
            Agent(AgentMessage::Announce(Announce {
                revision: 1,
                part: 0,
                last: true,
                instances: vec![
                    AnnouncedInstance {
                        labels: [("app.kubernetes.io/part-of".into(), "shop".into())].into(),
                        depends_on: vec!["db".into()],
                        ..instance(
                            "web",
                            vec![probe(
                                1,
                                "readiness",
                                ProbeKind::Readiness,
                                "http 127.0.0.1:8080/healthz",
                            )],
                        )
                    },
                    instance(
                        "db",
                        vec![
                            probe(2, "startup", ProbeKind::Startup, "tcp 127.0.0.1:5432"),
                            probe(3, "liveness", ProbeKind::Liveness, "exec psql -c \"select 1\""),
                        ],
                    ),
                ],
            })),
        ),
        (
            "report-full",
            Agent(AgentMessage::Report(Report {
                seq: Seq(2),
                transitions: vec![
                    record(1, 1, ProbeState::Passing),
                    record(2, 2, ProbeState::Passing),
                ],
                states: vec![
                    record(1, 1, ProbeState::Passing),
                    record(2, 2, ProbeState::Passing),
                    Record {
                        streak: -1,
                        reason: Reason::TIMED_OUT,
                        message: "nothing within 1s".into(),
                        ..record(0, 3, ProbeState::Pending)
                    },
                ],
                complete: true,
                summaries: vec![],
            })),
        ),
        ("ack", Server(ServerMessage::Ack(Ack { seq: Seq(2) }))),
        (
            "report-transition",
            Agent(AgentMessage::Report(Report {
                seq: Seq(3),
                transitions: vec![failing(3, 3)],
                ..Report::default()
            })),
        ),
        (
            "report-note",
            Agent(AgentMessage::Report(Report {
                seq: Seq(3),
                states: vec![Record {
                    flapping: true,
                    error: true,
                    streak: -1,
                    reason: Reason::OUT_OF_RESOURCES,
                    message: "too many open files".into(),
                    ..record(1, 1, ProbeState::Passing)
                }],
                ..Report::default()
            })),
        ),
        (
            "report-summaries",
            Agent(AgentMessage::Report(Report {
                seq: Seq(3),
                summaries: vec![Summary {
                    probe: ProbeId(1),
                    streak: 9,
                    runs: 10,
                    failures: 1,
                    errors: 0,
                    min_us: 640,
                    avg_us: 812,
                    max_us: 2_100,
                    p99_us: 2_048,
                }],
                ..Report::default()
            })),
        ),
        (
            "probe",
            Server(ServerMessage::Probe(RunProbe {
                request: 17,
                probe: ProbeId(3),
            })),
        ),
        (
            "probed",
            Agent(AgentMessage::Probed(Probed {
                request: 17,
                result: Some("failure".into()),
                reason: Some(Reason::EXIT_CODE),
                message: "exit code 1".into(),
                output: "no such table: orders\n".into(),
                latency_us: 4_100,
                state: Some(ProbeState::Failing),
            })),
        ),
        (
            "probed-refused",
            Agent(AgentMessage::Probed(Probed {
                request: 18,
                result: None,
                reason: None,
                message: "probe 9 is not announced here".into(),
                output: String::new(),
                latency_us: 0,
                state: None,
            })),
        ),
        (
            "resync",
            Server(ServerMessage::Resync(Resync {
                reason: "transitions are missing".into(),
            })),
        ),
        (
            "ca",
            Server(ServerMessage::Ca(Ca {
                pem: "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n".into(),
            })),
        ),
        (
            "agent-unsupported",
            Agent(AgentMessage::Unsupported(Unsupported {
                what: "throttle".into(),
            })),
        ),
        (
            "server-unsupported",
            Server(ServerMessage::Unsupported(Unsupported {
                what: "digest".into(),
            })),
        ),
        (
            "goodbye",
            Agent(AgentMessage::Goodbye(Goodbye {
                reason: "stopped by SIGTERM".into(),
            })),
        ),
        (
            "welcome-resumed",
            Server(ServerMessage::Welcome(Welcome {
                protocol: 1,
                version: "0.1.0".into(),
                heartbeat_ms: 10_000,
                spread_ms: 5_000,
                acked: Some(Seq(3)),
            })),
        ),
        ("drain", Server(ServerMessage::Drain(Drain { spread_ms: 5_000 }))),
        (
            "redirect",
            Server(ServerMessage::Redirect(Redirect {
                address: "aggregator-1.healthscope:7575".into(),
                server_name: Some("aggregator-1.healthscope".into()),
                spread_ms: 2_000,
            })),
        ),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn is_blessing() -> bool {
    std::env::var_os("HEALTHSCOPE_BLESS").is_some()
}

/// JSON that remembers the order of its fields.
enum Ordered {
    Object(Vec<(String, Ordered)>),
    Array(Vec<Ordered>),
    Scalar(serde_json::Value),
}

impl<'de> serde::Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Ordered;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Ordered::Object(fields))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Ordered, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Ordered::Array(items))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Objects over several lines, an array on one when it holds scalars alone: a record stays readable.
fn pretty(value: &Ordered, indent: usize) -> String {
    let lines = |open: char, parts: Vec<String>, close: char| {
        let pad = "  ".repeat(indent + 1);
        let parts: Vec<String> = parts.iter().map(|part| format!("{pad}{part}")).collect();
        format!("{open}\n{}\n{}{close}", parts.join(",\n"), "  ".repeat(indent))
    };
    match value {
        Ordered::Scalar(scalar) => scalar.to_string(),
        Ordered::Object(fields) => {
            let field =
                |(name, value): &(String, Ordered)| format!("\"{name}\": {}", pretty(value, indent + 1));
            lines('{', fields.iter().map(field).collect(), '}')
        }
        Ordered::Array(items) => {
            let is_flat = items.iter().all(|item| matches!(item, Ordered::Scalar(_)));
            let items: Vec<String> = items.iter().map(|item| pretty(item, indent + 1)).collect();
            if is_flat {
                format!("[{}]", items.join(", "))
            } else {
                lines('[', items, ']')
            }
        }
    }
}

#[test]
fn every_message_is_what_its_file_says() {
    let mut files = BTreeSet::new();
    for (name, message) in messages() {
        let path = folder().join(format!("{name}.json"));
        files.insert(format!("{name}.json"));
        let encoded = message.encode();
        assert!(
            encoded.starts_with(r#"{"type":""#),
            "the type comes first: {encoded}"
        );
        let expected = pretty(&serde_json::from_str(&encoded).unwrap(), 0) + "\n";
        if is_blessing() {
            std::fs::write(&path, &expected).unwrap();
        }
        let golden =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(golden, expected, "{name} is written differently");
        assert_eq!(
            message.decode(&golden).unwrap(),
            message,
            "{name} is read differently"
        );
        assert_eq!(
            message.decode(&encoded).unwrap(),
            message,
            "{name} does not survive"
        );
    }
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        found, files,
        "files without a message, or messages without a file"
    );
}

#[test]
fn every_type_has_a_file() {
    let types: BTreeSet<(bool, String)> = messages()
        .iter()
        .map(|(_, message)| {
            let value: serde_json::Value = serde_json::from_str(&message.encode()).unwrap();
            let is_agent = matches!(message, Message::Agent(_));
            (is_agent, value["type"].as_str().unwrap().to_owned())
        })
        .collect();
    let known: BTreeSet<(bool, String)> = AgentMessage::TYPES
        .iter()
        .map(|name| (true, (*name).to_owned()))
        .chain(
            ServerMessage::TYPES
                .iter()
                .map(|name| (false, (*name).to_owned())),
        )
        .collect();
    assert_eq!(types, known);
}

#[test]
fn what_a_newer_peer_adds_is_ignored() {
    let report = |records: &str| format!(r#"{{"type":"report","seq":3,{records}}}"#);
    let cases = [
        // A field, at any depth.
        (
            "report-transition",
            report(r#""later":{"a":[1]},"transitions":[[3,3,12,2,0,-3,850,"ExitCode","exit code 1","no such table: orders\n"]]"#),
        ),
        // An element at the end of a record and of a summary.
        (
            "report-transition",
            report(r#""transitions":[[3,3,12,2,0,-3,850,"ExitCode","exit code 1","no such table: orders\n",7,{"a":1}]]"#),
        ),
        ("report-summaries", report(r#""summaries":[[1,9,10,1,0,640,812,2100,2048,99,"x"]]"#)),
        // Another order of the fields, the type last.
        (
            "report-summaries",
            r#"{"summaries":[[1,9,10,1,0,640,812,2100,2048]],"seq":3,"type":"report"}"#.into(),
        ),
        // A bit among the flags.
        (
            "report-note",
            report(r#""states":[[1,1,12,1,131,-1,850,"OutOfResources","too many open files"]]"#),
        ),
        // Empty texts written out.
        ("probed-refused", r#"{"type":"probed","request":18,"message":"probe 9 is not announced here","output":"","latencyUs":0,"new":null}"#.into()),
        ("ack", r#"{"type":"ack","seq":2,"credit":100}"#.into()),
        ("welcome", r#"{"type":"welcome","protocol":1,"version":"0.1.0","heartbeatMs":10000,"spreadMs":5000,"acked":null,"features":["x"]}"#.into()),
        // What an older peer does not say yet.
        ("hello", r#"{"type":"hello","protocol":1,"agent":"laptop","version":"0.1.0","epoch":"9f3c5a710e2b44d8","seq":2}"#.into()),
    ];
    let messages: BTreeMap<&str, Message> = messages().into_iter().collect();
    for (name, text) in cases {
        let expected = &messages[name];
        assert_eq!(&expected.decode(&text).unwrap(), expected, "{text}");
    }
}

#[test]
fn an_unknown_type_is_told_from_a_malformed_message() {
    let agent = |text: &str| AgentMessage::decode(text).unwrap_err();
    let server = |text: &str| ServerMessage::decode(text).unwrap_err();
    for text in [
        r#"{"type":"throttle"}"#,
        r#"{"rate":[1,{"a":2}],"type":"throttle"}"#,
    ] {
        assert!(
            matches!(agent(text), DecodeError::UnknownType(what) if what == "throttle"),
            "{text}"
        );
        assert!(
            matches!(server(text), DecodeError::UnknownType(what) if what == "throttle"),
            "{text}"
        );
    }
    // A type of the other side is unknown too.
    assert!(matches!(
        agent(r#"{"type":"welcome"}"#),
        DecodeError::UnknownType(_)
    ));
    assert!(matches!(
        server(r#"{"type":"hello"}"#),
        DecodeError::UnknownType(_)
    ));
    for text in [
        "",
        "{}",
        r#"{"type":"ack","seq":"1"}"#,
        r#"{"type":"ack"}"#,
        "{\"type\":\"throttle\"",
    ] {
        assert!(matches!(server(text), DecodeError::Malformed(_)), "{text}");
    }
    for text in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"goodbye"}"#,
        "{\"type\":\"throttle\"",
    ] {
        assert!(matches!(agent(text), DecodeError::Malformed(_)), "{text}");
    }
}

const PROTOCOL_DOCUMENT: &str = "../docs/protocol.md";
const TRANSCRIPT_START: &str = "<!-- transcript: written by shared/tests/golden.rs -->\n";
const TRANSCRIPT_END: &str = "<!-- end of transcript -->\n";

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PROTOCOL_DOCUMENT)).unwrap()
}

/// The messages as they are sent, `>` by the agent and `<` by the aggregator.
fn transcript() -> String {
    let lines: Vec<String> = messages()
        .iter()
        .map(|(_, message)| {
            let arrow = match message {
                Message::Agent(_) => '>',
                Message::Server(_) => '<',
            };
            format!("{arrow} {}\n", message.encode())
        })
        .collect();
    format!(
        "{TRANSCRIPT_START}\n```text\n{}```\n\n{TRANSCRIPT_END}",
        lines.concat()
    )
}

#[test]
fn the_document_shows_the_messages_as_they_are() {
    let text = document();
    let (before, rest) = text.split_once(TRANSCRIPT_START).expect("the transcript starts");
    let (_, after) = rest.split_once(TRANSCRIPT_END).expect("the transcript ends");
    let expected = format!("{before}{}{after}", transcript());
    if is_blessing() {
        std::fs::write(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(PROTOCOL_DOCUMENT),
            &expected,
        )
        .unwrap();
        return;
    }
    assert_eq!(text, expected, "HEALTHSCOPE_BLESS=1 writes the transcript");
}

#[test]
fn the_document_names_every_type_code_and_limit() {
    let text = document();
    for name in AgentMessage::TYPES.iter().chain(ServerMessage::TYPES) {
        assert!(
            text.contains(&format!("### `{name}`")),
            "message {name} has no heading"
        );
    }
    let codes: Vec<(&str, u64)> = close_codes();
    for (name, value) in &codes {
        assert!(
            text.contains(&format!("| {value} | `{name}` |")),
            "close code {value} {name}"
        );
    }
    let limits = limits();
    for (name, value) in &limits {
        assert!(
            text.contains(&format!("| `{name}` | {value} |")),
            "limit {name} {value}"
        );
    }
    // Both lists above are whole.
    let source = [include_str!("../src/wire.rs"), include_str!("../src/session.rs")].concat();
    let constants: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub const "))
        .filter(|line| !line.starts_with("fn ") && !line.contains("TYPES"))
        .filter_map(|line| line.split(':').next())
        .collect();
    let named: BTreeSet<&str> = codes
        .into_iter()
        .map(|(name, _)| name)
        .chain(limits.into_iter().map(|(name, _)| name))
        .collect();
    assert_eq!(constants, named);
}

fn close_codes() -> Vec<(&'static str, u64)> {
    macro_rules! codes {
        ($($name:ident),*) => { vec![$((stringify!($name), u64::from(close::$name))),*] };
    }
    codes!(
        NORMAL,
        GOING_AWAY,
        UNSUPPORTED_DATA,
        POLICY,
        TOO_BIG,
        TRY_LATER,
        REPLACED,
        SILENT,
        VERSION
    )
    .into_iter()
    .chain([("PROTOCOL", u64::from(close::PROTOCOL))])
    .collect()
}

/// Each constant with its value as the document writes it.
fn limits() -> Vec<(&'static str, String)> {
    macro_rules! numbers {
        ($from:ident: $($name:ident),*) => { [$((stringify!($name), grouped($from::$name as u64))),*] };
    }
    macro_rules! durations {
        ($($name:ident),*) => { [$((stringify!($name), format!("{} ms", grouped(session::$name.as_millis() as u64)))),*] };
    }
    let mut all = vec![
        ("SUBPROTOCOL", format!("`{}`", wire::SUBPROTOCOL)),
        ("PATH", format!("`{}`", wire::PATH)),
    ];
    all.extend(numbers!(wire: MAX_MESSAGE_BYTES, MAX_PROBES_PER_AGENT, MAX_LABELS, MAX_TARGET_BYTES));
    all.extend(numbers!(session: RING, MAX_RUNS, MAX_TEXT_BYTES, MAX_SAFE_INTEGER, MAX_CLOSE_REASON_BYTES, COMFORTABLE_MESSAGE_BYTES));
    all.extend(durations!(
        SILENCE,
        PING_AFTER,
        MIN_HEARTBEAT,
        MAX_HEARTBEAT,
        WELCOME_DEADLINE,
        HELLO_DEADLINE,
        ANNOUNCE_DEADLINE,
        ACK_DELAY,
        LEAVE_DEADLINE,
        WRITE_DEADLINE
    ));
    all
}

/// 65536 as 65,536.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
