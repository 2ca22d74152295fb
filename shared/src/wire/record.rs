//! The two compact records, JSON arrays whose trailing empty elements are left out, and the fast way to read a
//! report made of them.

use {
    super::{MAX_MESSAGE_BYTES, ProbeId, Report, Seq},
    crate::{health::Reason, probe::outcome::ProbeState},
    serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{self, IgnoredAny, SeqAccess},
        ser::SerializeSeq,
    },
    std::fmt,
};

/// The state of one probe, at a transition or now:
/// `[seq, probe, ageMs, state, flags, streak, latencyUs, reason, message, output]`.
///
/// `state` is 0 pending, 1 passing, 2 failing; `flags` adds 1 for flapping and 2 when the last run could not be
/// made. `reason`, `message` and `output` may be left out from the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// In `transitions`: its own number. In `states`: that of the probe's latest transition, 0 before the first.
    pub seq: Seq,
    /// Which probe.
    pub probe: ProbeId,
    /// How long the state has lasted when this is sent, milliseconds.
    pub age_ms: u64,
    /// The state.
    pub state: ProbeState,
    /// It changes too often to be believed.
    pub flapping: bool,
    /// The last run could not be made at all.
    pub error: bool,
    /// Successes (positive) or failures (negative) in a row.
    pub streak: i32,
    /// How long the last run took, microseconds.
    pub latency_us: u64,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for a person; empty when all is well.
    pub message: String,
    /// What the last failing run printed.
    pub output: String,
}

const FLAPPING: u8 = 1;
const ERROR: u8 = 2;

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            seq,
            probe,
            age_ms,
            state,
            flapping,
            error,
            streak,
            latency_us,
            reason,
            message,
            output,
        } = self;
        let mut seq_out = serializer.serialize_seq(None)?;
        seq_out.serialize_element(seq)?;
        seq_out.serialize_element(probe)?;
        seq_out.serialize_element(age_ms)?;
        seq_out.serialize_element(&match state {
            ProbeState::Pending => 0_u8,
            ProbeState::Passing => 1,
            ProbeState::Failing => 2,
        })?;
        let flags = if *flapping { FLAPPING } else { 0 } | if *error { ERROR } else { 0 };
        seq_out.serialize_element(&flags)?;
        seq_out.serialize_element(streak)?;
        seq_out.serialize_element(latency_us)?;
        let last = match (output.is_empty(), message.is_empty(), *reason == Reason::PASSING) {
            (false, _, _) => 3,
            (true, false, _) => 2,
            (true, true, false) => 1,
            (true, true, true) => 0,
        };
        if last >= 1 {
            seq_out.serialize_element(reason)?;
        }
        if last >= 2 {
            seq_out.serialize_element(message)?;
        }
        if last >= 3 {
            seq_out.serialize_element(output)?;
        }
        seq_out.end()
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Record;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record [seq, probe, ageMs, state, flags, streak, latencyUs, ...]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Record, A::Error> {
                let record = Record {
                    seq: required(&mut seq, 0)?,
                    probe: required(&mut seq, 1)?,
                    age_ms: required(&mut seq, 2)?,
                    state: match required::<u8, _>(&mut seq, 3)? {
                        0 => ProbeState::Pending,
                        1 => ProbeState::Passing,
                        2 => ProbeState::Failing,
                        other => {
                            return Err(de::Error::invalid_value(
                                de::Unexpected::Unsigned(other.into()),
                                &"0 (pending), 1 (passing) or 2 (failing)",
                            ));
                        }
                    },
                    flapping: false,
                    error: false,
                    streak: 0,
                    latency_us: 0,
                    reason: Reason::PASSING,
                    message: String::new(),
                    output: String::new(),
                };
                let flags: u8 = required(&mut seq, 4)?;
                let record = Record {
                    flapping: flags & FLAPPING != 0,
                    error: flags & ERROR != 0,
                    streak: required(&mut seq, 5)?,
                    latency_us: required(&mut seq, 6)?,
                    reason: seq.next_element()?.unwrap_or(Reason::PASSING),
                    message: seq.next_element()?.unwrap_or_default(),
                    output: seq.next_element()?.unwrap_or_default(),
                    ..record
                };
                drain(&mut seq)?;
                Ok(record)
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}

/// What the runs of a probe since the last summary added up to:
/// `[probe, streak, runs, failures, errors, minUs, avgUs, maxUs, p99Us]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Which probe.
    pub probe: ProbeId,
    /// Successes (positive) or failures (negative) in a row, now.
    pub streak: i32,
    /// Runs since the last summary.
    pub runs: u32,
    /// Of these, failures.
    pub failures: u32,
    /// Of these, errors; not counted as failures here.
    pub errors: u32,
    /// Shortest run, microseconds; 0 when there was none.
    pub min_us: u64,
    /// Mean, microseconds.
    pub avg_us: u64,
    /// Longest, microseconds.
    pub max_us: u64,
    /// 99th percentile, microseconds, as near as the agent's buckets are.
    pub p99_us: u64,
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            probe,
            streak,
            runs,
            failures,
            errors,
            min_us,
            avg_us,
            max_us,
            p99_us,
        } = self;
        (
            probe, streak, runs, failures, errors, min_us, avg_us, max_us, p99_us,
        )
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Summary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Summary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a summary [probe, streak, runs, failures, errors, minUs, avgUs, maxUs, p99Us]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Summary, A::Error> {
                let summary = Summary {
                    probe: required(&mut seq, 0)?,
                    streak: required(&mut seq, 1)?,
                    runs: required(&mut seq, 2)?,
                    failures: required(&mut seq, 3)?,
                    errors: required(&mut seq, 4)?,
                    min_us: required(&mut seq, 5)?,
                    avg_us: required(&mut seq, 6)?,
                    max_us: required(&mut seq, 7)?,
                    p99_us: required(&mut seq, 8)?,
                };
                drain(&mut seq)?;
                Ok(summary)
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}

fn required<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(seq: &mut A, index: usize) -> Result<T, A::Error> {
    seq.next_element()?
        .ok_or_else(|| de::Error::invalid_length(index, &"more elements"))
}

/// Skips what a newer peer added.
fn drain<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// Reads a report whose `type` comes first, as our agent writes it; anything else is left to the general way.
pub(super) fn decode_report(text: &str) -> Option<Report> {
    #[derive(Deserialize)]
    enum Type {
        #[serde(rename = "report")]
        Report,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Tagged {
        #[serde(rename = "type")]
        _type: Type,
        #[serde(default)]
        seq: Seq,
        #[serde(default)]
        transitions: Vec<Record>,
        #[serde(default)]
        states: Vec<Record>,
        #[serde(default)]
        complete: bool,
        #[serde(default)]
        summaries: Vec<Summary>,
    }

    if text.len() > MAX_MESSAGE_BYTES || !text.starts_with(r#"{"type":"report""#) {
        return None;
    }
    let Tagged {
        _type,
        seq,
        transitions,
        states,
        complete,
        summaries,
    } = serde_json::from_str(text).ok()?;
    Some(Report {
        seq,
        transitions,
        states,
        complete,
        summaries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            seq: Seq(7),
            probe: ProbeId(3),
            age_ms: 12,
            state: ProbeState::Failing,
            flapping: true,
            error: false,
            streak: -3,
            latency_us: 850,
            reason: Reason::HTTP_STATUS,
            message: "503 Service Unavailable".into(),
            output: String::new(),
        }
    }

    #[test]
    fn a_record_is_a_short_array() {
        let json = serde_json::to_string(&record()).unwrap();
        assert_eq!(
            json,
            r#"[7,3,12,2,1,-3,850,"HttpStatus","503 Service Unavailable"]"#
        );
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record());
    }

    #[test]
    fn elements_that_a_newer_peer_added_are_skipped() {
        let json = r#"[7,3,12,2,1,-3,850,"HttpStatus","503 Service Unavailable","",{"new":[1]},2]"#;
        assert_eq!(serde_json::from_str::<Record>(json).unwrap(), record());
    }

    #[test]
    fn a_short_or_odd_record_is_refused() {
        for json in [
            "[]",
            "[1,2,3]",
            r#"[1,2,3,9,0,0,0]"#,
            r#"["a",2,3,1,0,0,0]"#,
            "[1,2,-3,1,0,0,0]",
            "7",
        ] {
            assert!(serde_json::from_str::<Record>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_fast_and_the_general_way_read_a_report_alike() {
        let report = Report {
            seq: Seq(9),
            transitions: vec![record()],
            states: vec![],
            complete: true,
            summaries: vec![Summary {
                probe: ProbeId(1),
                streak: 5,
                runs: 10,
                failures: 0,
                errors: 0,
                min_us: 1,
                avg_us: 2,
                max_us: 3,
                p99_us: 3,
            }],
        };
        let text = super::super::AgentMessage::Report(report.clone()).encode();
        assert_eq!(decode_report(&text), Some(report.clone()));
        let general: super::super::AgentMessage = serde_json::from_str(&text).unwrap();
        assert_eq!(general, super::super::AgentMessage::Report(report));
    }
}
