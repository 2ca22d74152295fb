//! What an agent has to tell: the latest state of every probe, the transitions that nobody has acknowledged, notes
//! and summaries; and in which order it is told.
//!
//! [`Outbox`] lives as long as the agent's process; connections come and go. It never grows beyond the number of
//! probes, [`RING`] transitions and [`OUTPUT_BUDGET`] bytes of output, connected or not: when the ring is full
//! the oldest transition is dropped, and the states of all probes are sent after the remaining ones, so that
//! the aggregator counts a gap and is right nevertheless.

use {
    super::{COMFORTABLE_MESSAGE_BYTES, MAX_TEXT_BYTES, RING},
    crate::{
        health::Reason,
        one_line,
        probe::outcome::{MAX_OUTPUT_BYTES, ProbeState},
        truncate,
        wire::{
            Announce, AnnouncedInstance, MAX_LABELS, MAX_MESSAGE_BYTES, MAX_PROBES_PER_AGENT,
            MAX_TARGET_BYTES, ProbeId, Record, Seq, Summary,
        },
    },
    std::{
        collections::{BTreeMap, BTreeSet, VecDeque},
        ops::Bound,
        time::{Duration, Instant},
    },
};

/// Most output of commands kept in all; when it is exceeded the oldest transitions lose theirs first, and then new
/// output is not kept. An agent should stay within a few MiB whatever the commands print.
pub const OUTPUT_BUDGET: usize = 512 * 1024;

/// What the latest run left a probe in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The state.
    pub state: ProbeState,
    /// It changes too often to be believed.
    pub flapping: bool,
    /// The last run could not be made at all.
    pub error: bool,
    /// Successes (positive) or failures (negative) in a row.
    pub streak: i32,
    /// How long the last run took.
    pub latency: Duration,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for a person; cut to [`MAX_TEXT_BYTES`].
    pub message: String,
    /// What the last failing run printed; cut to [`MAX_OUTPUT_BYTES`].
    pub output: String,
}

/// Why an announcement cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// More than the protocol allows.
    #[error("{0} probes are more than the {MAX_PROBES_PER_AGENT} that one agent may watch")]
    TooManyProbes(usize),
    /// The caller's mistake; the aggregator would end the session.
    #[error("probe id {0} is used twice")]
    DuplicateId(u32),
}

/// What there is to tell and how much of it has been told.
#[derive(Debug, Default)]
pub struct Outbox {
    revision: u32,
    instances: Vec<AnnouncedInstance>,
    cells: BTreeMap<ProbeId, Cell>,
    /// Number of the latest transition.
    seq: Seq,
    /// Acknowledged up to here, by whichever aggregator.
    acked: Seq,
    /// Transitions not acknowledged yet, oldest first; at most [`RING`].
    ring: VecDeque<Entry>,
    /// Number of the latest transition that left the ring without having been acknowledged.
    lost_through: Seq,
    lost: u64,
    /// Bytes of output held in ring and cells.
    output_bytes: usize,
    /// Rises with each heartbeat; a probe notes at most once in each.
    beat: u32,
    /// Probes whose state must be told: now, and from the next heartbeat on.
    ready: BTreeSet<ProbeId>,
    held: BTreeSet<ProbeId>,
    summaries: VecDeque<Summary>,
    session: Option<Sending>,
}

/// How far one session has come.
#[derive(Debug)]
struct Sending {
    /// Every transition up to here that is still held has been sent in this session.
    sent: Seq,
    /// The states of all probes are being sent.
    full: Option<FullState>,
}

/// Goes round the probes, so that a transition lost on the way lengthens the round but starves no probe.
#[derive(Clone, Copy, Debug)]
struct FullState {
    /// The latest probe sent.
    cursor: Option<ProbeId>,
    /// So many are still to be sent.
    left: usize,
}

/// One probe: its present state as it would be sent, but for the age.
#[derive(Debug)]
struct Cell {
    /// `seq` is that of its latest transition.
    record: Record,
    since: Instant,
    /// The heartbeat in which its latest note was sent.
    noted_in: Option<u32>,
    /// The latest note was sent after this transition; until a later transition is acknowledged nobody knows
    /// whether the note arrived.
    unconfirmed: Option<Seq>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    at: Instant,
}

impl Outbox {
    /// Nothing to tell.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces what is watched. Probes that are no longer there are forgotten with all that was to be told about
    /// them; new ones are pending since `now`. The ids of probes that stay must not change, and those of removed
    /// ones must never return in this process. Labels and dependencies that no aggregator would take (over-long, not
    /// plain ASCII, beyond the 64th) are left out, targets are cut.
    ///
    /// # Errors
    /// When there are too many probes or an id occurs twice; what was announced before stays.
    pub fn announce(
        &mut self,
        mut instances: Vec<AnnouncedInstance>,
        now: Instant,
    ) -> Result<(), AnnounceError> {
        let mut ids = BTreeSet::new();
        for probe in instances.iter().flat_map(|instance| &instance.probes) {
            if !ids.insert(probe.id) {
                return Err(AnnounceError::DuplicateId(probe.id.0));
            }
        }
        if ids.len() > MAX_PROBES_PER_AGENT {
            return Err(AnnounceError::TooManyProbes(ids.len()));
        }
        for instance in &mut instances {
            fit(instance);
        }
        self.instances = instances;
        self.revision += 1;

        let removed: Vec<ProbeId> = self
            .cells
            .keys()
            .filter(|id| !ids.contains(id))
            .copied()
            .collect();
        for id in &removed {
            if let Some(cell) = self.cells.remove(id) {
                self.output_bytes -= cell.record.output.len();
            }
            self.ready.remove(id);
            self.held.remove(id);
        }
        if !removed.is_empty() {
            self.summaries.retain(|summary| ids.contains(&summary.probe));
            let (kept, dropped): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.ring)
                .into_iter()
                .partition(|entry| ids.contains(&entry.record.probe));
            self.ring = kept;
            for entry in dropped {
                // Nobody will ask for the transitions of a probe that is gone, but their numbers are missing.
                self.dropped(&entry);
            }
        }
        for id in ids {
            self.cells.entry(id).or_insert_with(|| Cell {
                record: Record {
                    seq: Seq(0),
                    probe: id,
                    age_ms: 0,
                    state: ProbeState::Pending,
                    flapping: false,
                    error: false,
                    streak: 0,
                    latency_us: 0,
                    reason: Reason::STARTING,
                    message: String::new(),
                    output: String::new(),
                },
                since: now,
                noted_in: None,
                unconfirmed: None,
            });
        }
        let probes = self.cells.len();
        if let Some(Sending { full: Some(full), .. }) = &mut self.session {
            full.left = probes;
        }
        Ok(())
    }

    /// Takes in what a run left `probe` in; to be called after every run. Returns whether there is something to
    /// send at once. A probe that is not announced is ignored.
    pub fn record(&mut self, probe: ProbeId, observation: Observation, now: Instant) -> bool {
        let Some(cell) = self.cells.get_mut(&probe) else {
            return false;
        };
        let Observation {
            state,
            flapping,
            error,
            streak,
            latency,
            reason,
            mut message,
            mut output,
        } = observation;
        cut(&mut message, MAX_TEXT_BYTES);
        cut(&mut output, MAX_OUTPUT_BYTES);
        let former = &mut cell.record;
        let is_transition = former.state != state;
        let is_note = former.flapping != flapping
            || former.error != error
            || (former.streak < 0) != (streak < 0)
            || former.reason != reason
            || former.message != message;
        self.output_bytes -= former.output.len();
        *former = Record {
            seq: former.seq,
            probe,
            age_ms: 0,
            state,
            flapping,
            error,
            streak,
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
            reason,
            message,
            output: String::new(),
        };
        // Once in the cell, and once in the ring.
        let output = if self.make_room(output.len() * if is_transition { 2 } else { 1 }) {
            output
        } else {
            String::new()
        };
        self.output_bytes += output.len();
        let cell = self.cells.get_mut(&probe).expect("looked up above");
        cell.record.output = output;
        if is_transition {
            self.seq = self.seq.next();
            cell.record.seq = self.seq;
            cell.since = now;
            cell.unconfirmed = None;
            let record = cell.record.clone();
            self.output_bytes += record.output.len();
            self.ready.remove(&probe);
            self.held.remove(&probe);
            if self.ring.len() == RING
                && let Some(entry) = self.ring.pop_front()
            {
                self.dropped(&entry);
            }
            self.ring.push_back(Entry { record, at: now });
            return true;
        }
        if is_note {
            self.note(probe);
        }
        self.ready.contains(&probe)
    }

    /// Replaces the summaries not sent yet; those of unknown probes are left out. Called when
    /// [`super::agent::AgentSession::wants_summaries`] says so.
    pub fn summarize(&mut self, summaries: impl IntoIterator<Item = Summary>) {
        self.summaries = summaries
            .into_iter()
            .filter(|summary| self.cells.contains_key(&summary.probe))
            .collect();
    }

    /// Number of the latest transition, 0 before the first.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        self.seq
    }

    /// Number of the latest transition that any aggregator has acknowledged.
    #[must_use]
    pub const fn acked(&self) -> Seq {
        self.acked
    }

    /// Rises with every announcement; 0 before the first.
    #[must_use]
    pub const fn revision(&self) -> u32 {
        self.revision
    }

    /// What is watched.
    #[must_use]
    pub fn instances(&self) -> &[AnnouncedInstance] {
        &self.instances
    }

    /// Whether the probe is announced.
    #[must_use]
    pub fn knows(&self, probe: ProbeId) -> bool {
        self.cells.contains_key(&probe)
    }

    /// Transitions that wait for their acknowledgement; at most [`RING`].
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.ring.len()
    }

    /// Transitions that left the ring without having been acknowledged, since the start; for a counter.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes of output held; at most [`OUTPUT_BUDGET`].
    #[must_use]
    pub const fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// A session is open; `acked` is what the aggregator holds, `None` when it wants everything.
    pub(super) fn resume(&mut self, acked: Option<Seq>) {
        let covered = acked.is_some_and(|acked| acked >= self.lost_through);
        if let Some(acked) = acked {
            self.acknowledge(acked);
        }
        self.session = Some(Sending {
            sent: acked.unwrap_or_default(),
            full: None,
        });
        // Sent notes are not numbered: the ones that may have been lost are sent again.
        let lost: Vec<ProbeId> = self
            .cells
            .iter_mut()
            .filter_map(|(&id, cell)| {
                let sent_after = cell.unconfirmed.take()?;
                acked.is_none_or(|acked| acked <= sent_after).then_some(id)
            })
            .collect();
        self.ready.extend(lost);
        self.ready.append(&mut self.held);
        self.summaries.clear();
        if !covered {
            self.send_full_state();
        }
    }

    /// The session is over.
    pub(super) fn suspend(&mut self) {
        self.session = None;
        self.summaries.clear();
    }

    /// Everything up to `seq` has been taken in.
    pub(super) fn acknowledge(&mut self, seq: Seq) {
        self.acked = self.acked.max(seq);
        while let Some(entry) = self.ring.front()
            && entry.record.seq <= seq
        {
            self.output_bytes -= entry.record.output.len();
            self.ring.pop_front();
        }
    }

    /// The aggregator wants the states of all probes.
    pub(super) fn send_full_state(&mut self) {
        let left = self.cells.len();
        if let Some(session) = &mut self.session {
            let cursor = session.full.and_then(|full| full.cursor);
            session.full = Some(FullState { cursor, left });
        }
    }

    /// A heartbeat has passed: notes held back may go.
    pub(super) fn beat(&mut self) {
        self.beat = self.beat.wrapping_add(1);
        self.ready.append(&mut self.held);
    }

    /// Whether [`Self::next_report`] has something to send.
    pub(super) fn has_report(&self) -> bool {
        let Some(session) = &self.session else {
            return false;
        };
        self.ring
            .back()
            .is_some_and(|entry| entry.record.seq > session.sent)
            || session.full.is_some()
            || !self.ready.is_empty()
            || !self.summaries.is_empty()
    }

    /// The next report as a text frame of at most [`COMFORTABLE_MESSAGE_BYTES`], or one record, or `None` when there is
    /// nothing to tell: transitions first, then states, then summaries, as many as fit.
    pub(super) fn next_report(&mut self, now: Instant) -> Option<String> {
        if !self.has_report() {
            return None;
        }
        let session = self.session.as_mut()?;
        let mut writer = ReportWriter::new(self.seq);

        let first = self
            .ring
            .partition_point(|entry| entry.record.seq <= session.sent);
        let mut all_sent = true;
        for entry in self.ring.range_mut(first..) {
            entry.record.age_ms = age_ms(entry.at, now);
            if !writer.push("transitions", &entry.record) {
                all_sent = false;
                break;
            }
            session.sent = entry.record.seq;
        }
        if !all_sent {
            return Some(writer.finish());
        }
        // What left the ring is older than what remains, so nothing up to here is unsent.
        session.sent = self.seq;

        if let Some(full) = &mut session.full {
            while full.left > 0 {
                let after = full.cursor.map_or(Bound::Unbounded, Bound::Excluded);
                let Some(id) = self
                    .cells
                    .range((after, Bound::Unbounded))
                    .next()
                    .or_else(|| self.cells.iter().next())
                    .map(|(&id, _)| id)
                else {
                    break;
                };
                let cell = self.cells.get_mut(&id).expect("found above");
                cell.record.age_ms = age_ms(cell.since, now);
                if !writer.push("states", &cell.record) {
                    return Some(writer.finish());
                }
                if self.ready.remove(&id) || self.held.remove(&id) {
                    cell.unconfirmed = Some(session.sent);
                }
                full.cursor = Some(id);
                full.left -= 1;
            }
            session.full = None;
            writer.complete();
        } else {
            while let Some(&id) = self.ready.first() {
                let cell = self.cells.get_mut(&id).expect("only announced probes note");
                cell.record.age_ms = age_ms(cell.since, now);
                if !writer.push("states", &cell.record) {
                    return Some(writer.finish());
                }
                cell.noted_in = Some(self.beat);
                cell.unconfirmed = Some(session.sent);
                self.ready.remove(&id);
            }
        }

        while let Some(summary) = self.summaries.front() {
            if !writer.push("summaries", summary) {
                break;
            }
            self.summaries.pop_front();
        }
        Some(writer.finish())
    }

    /// Asks for the probe's state to be told: now, or after the heartbeat when it was told in this one.
    fn note(&mut self, probe: ProbeId) {
        let cell = &self.cells[&probe];
        if cell.noted_in == Some(self.beat) {
            self.held.insert(probe);
        } else {
            self.ready.insert(probe);
        }
    }

    /// Accounts for a transition that leaves the ring without having been acknowledged.
    fn dropped(&mut self, entry: &Entry) {
        self.output_bytes -= entry.record.output.len();
        self.lost += 1;
        self.lost_through = self.lost_through.max(entry.record.seq);
        let is_unsent = self
            .session
            .as_ref()
            .is_some_and(|session| entry.record.seq > session.sent);
        if is_unsent {
            self.send_full_state();
        }
    }

    /// Makes room for so many bytes of output, at the cost of the oldest transitions' output.
    fn make_room(&mut self, bytes: usize) -> bool {
        for entry in &mut self.ring {
            if self.output_bytes + bytes <= OUTPUT_BUDGET {
                break;
            }
            self.output_bytes -= entry.record.output.len();
            entry.record.output = String::new();
        }
        self.output_bytes + bytes <= OUTPUT_BUDGET
    }
}

fn age_ms(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}

fn cut(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        *text = truncate(text, max_bytes).into_owned();
    }
}

/// Longest label key that Kubernetes allows (prefix, `/`, name), and longest dependency (`Kind/name`).
const MAX_KEY_BYTES: usize = 317;
/// Longest label value that Kubernetes allows.
const MAX_VALUE_BYTES: usize = 63;

/// Whether a label may be announced: it needs no escaping in JSON, so that its size on the wire is known.
pub(super) fn is_label(key: &str, value: &str) -> bool {
    is_plain(key, MAX_KEY_BYTES) && !key.is_empty() && is_plain(value, MAX_VALUE_BYTES)
}

/// Whether a dependency may be announced.
pub(super) fn is_dependency(text: &str) -> bool {
    is_plain(text, MAX_KEY_BYTES) && !text.is_empty()
}

fn is_plain(text: &str, max_bytes: usize) -> bool {
    text.len() <= max_bytes
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// Leaves out what an aggregator would not take. An instance without its probes is smaller than a message then
/// (64 labels of 386 bytes and 64 dependencies of 320), with room for a probe.
fn fit(instance: &mut AnnouncedInstance) {
    let labels = &mut instance.labels;
    labels.retain(|key, value| is_label(key, value));
    while labels.len() > MAX_LABELS {
        labels.pop_last();
    }
    instance.depends_on.retain(|dependency| is_dependency(dependency));
    instance.depends_on.truncate(MAX_LABELS);
    for probe in &mut instance.probes {
        probe.target = one_line(&probe.target, MAX_TARGET_BYTES);
    }
}

/// Cuts an announcement into messages; lives while one is being sent.
#[derive(Debug)]
pub(super) struct AnnounceCursor {
    revision: u32,
    part: u32,
    instance: usize,
    probe: usize,
}

impl AnnounceCursor {
    pub(super) const fn new(revision: u32) -> Self {
        Self {
            revision,
            part: 0,
            instance: 0,
            probe: 0,
        }
    }

    pub(super) const fn revision(&self) -> u32 {
        self.revision
    }

    /// The next part: of at most [`COMFORTABLE_MESSAGE_BYTES`], or one instance with one probe.
    pub(super) fn next_part(&mut self, instances: &[AnnouncedInstance]) -> Announce {
        // An estimate that never falls short, so that no part need be encoded twice; parts may be smaller than
        // they could be.
        let mut size = 128;
        let mut announce = Announce {
            revision: self.revision,
            part: self.part,
            last: false,
            instances: Vec::new(),
        };
        self.part += 1;
        while let Some(instance) = instances.get(self.instance) {
            let is_continued = self.probe > 0;
            let mut piece = AnnouncedInstance {
                namespace: instance.namespace.clone(),
                component: instance.component.clone(),
                instance: instance.instance.clone(),
                labels: BTreeMap::new(),
                depends_on: Vec::new(),
                probes: Vec::new(),
            };
            if !is_continued {
                piece.labels = instance.labels.clone();
                piece.depends_on = instance.depends_on.clone();
            }
            size += encoded_len(&piece);
            if size > COMFORTABLE_MESSAGE_BYTES && !announce.instances.is_empty() {
                return announce;
            }
            while let Some(probe) = instance.probes.get(self.probe) {
                size += encoded_len(probe);
                let is_first = announce.instances.is_empty() && piece.probes.is_empty();
                if size > COMFORTABLE_MESSAGE_BYTES && !is_first {
                    if !piece.probes.is_empty() {
                        announce.instances.push(piece);
                    }
                    return announce;
                }
                piece.probes.push(probe.clone());
                self.probe += 1;
            }
            announce.instances.push(piece);
            self.instance += 1;
            self.probe = 0;
        }
        announce.last = true;
        announce
    }
}

/// With the comma.
fn encoded_len(value: &impl serde::Serialize) -> usize {
    serde_json::to_string(value)
        .expect("announcements have only string keys and finite numbers")
        .len()
        + 1
}

/// Writes a report record by record up to the limit, exactly as [`crate::wire::AgentMessage::encode`] would.
struct ReportWriter {
    buffer: Vec<u8>,
    /// The list that is open.
    list: Option<&'static str>,
    is_empty: bool,
}

impl ReportWriter {
    /// `],"complete":true}`, with room for `]` before it.
    const TAIL: usize = 32;

    fn new(seq: Seq) -> Self {
        Self {
            buffer: format!(r#"{{"type":"report","seq":{}"#, seq.0).into_bytes(),
            list: None,
            is_empty: true,
        }
    }

    /// Adds to a list, unless it does not fit. Lists are written in the order in which they are first added to.
    fn push(&mut self, list: &'static str, record: &impl serde::Serialize) -> bool {
        let before = self.buffer.len();
        let former = self.list;
        if self.list == Some(list) {
            self.buffer.push(b',');
        } else {
            self.close_list();
            self.buffer
                .extend_from_slice(format!(r#","{list}":["#).as_bytes());
            self.list = Some(list);
        }
        serde_json::to_writer(&mut self.buffer, record).expect("records are numbers and strings");
        // One record always fits, however long its output is.
        let limit = if self.is_empty {
            MAX_MESSAGE_BYTES
        } else {
            COMFORTABLE_MESSAGE_BYTES
        };
        if self.buffer.len() + Self::TAIL > limit {
            self.buffer.truncate(before);
            self.list = former;
            return false;
        }
        self.is_empty = false;
        true
    }

    fn complete(&mut self) {
        self.close_list();
        self.buffer.extend_from_slice(br#","complete":true"#);
    }

    fn close_list(&mut self) {
        if self.list.take().is_some() {
            self.buffer.push(b']');
        }
    }

    fn finish(mut self) -> String {
        self.close_list();
        self.buffer.push(b'}');
        String::from_utf8(self.buffer).expect("serde_json writes UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{
            name::Namespace,
            probe::ProbeKind,
            session::any_instant,
            wire::{AgentMessage, AnnouncedProbe, Report},
        },
    };

    fn instance(name: &str, ids: impl IntoIterator<Item = u32>) -> AnnouncedInstance {
        AnnouncedInstance {
            namespace: Namespace::default(),
            component: name.parse().unwrap(),
            instance: format!("{name}-1").parse().unwrap(),
            labels: BTreeMap::new(),
            depends_on: vec![],
            probes: ids
                .into_iter()
                .map(|id| AnnouncedProbe {
                    id: ProbeId(id),
                    name: format!("p{id}").parse().unwrap(),
                    kind: ProbeKind::Readiness,
                    target: "tcp 127.0.0.1:80".into(),
                    period_ms: 1000,
                    timeout_ms: 1000,
                    success_threshold: 1,
                    failure_threshold: 3,
                })
                .collect(),
        }
    }

    fn seen(state: ProbeState, streak: i32) -> Observation {
        Observation {
            state,
            flapping: false,
            error: false,
            streak,
            latency: Duration::from_micros(100),
            reason: if streak < 0 {
                Reason::TIMED_OUT
            } else {
                Reason::PASSING
            },
            message: String::new(),
            output: String::new(),
        }
    }

    const PASSING: ProbeState = ProbeState::Passing;
    const FAILING: ProbeState = ProbeState::Failing;

    /// An outbox with so many probes, from 1 on.
    fn outbox(probes: u32) -> (Outbox, Instant) {
        let now = any_instant();
        let mut outbox = Outbox::new();
        outbox.announce(vec![instance("web", 1..=probes)], now).unwrap();
        (outbox, now)
    }

    fn reports(outbox: &mut Outbox, now: Instant) -> Vec<Report> {
        let mut reports = Vec::new();
        while let Some(text) = outbox.next_report(now) {
            assert!(text.len() <= MAX_MESSAGE_BYTES, "{}", text.len());
            let message = AgentMessage::decode(&text).unwrap();
            assert_eq!(message.encode(), text, "written as the message would be");
            let AgentMessage::Report(report) = message else {
                panic!("{text}");
            };
            let records = report.transitions.len() + report.states.len() + report.summaries.len();
            assert!(
                text.len() <= COMFORTABLE_MESSAGE_BYTES || records == 1,
                "{}",
                text.len()
            );
            reports.push(report);
        }
        reports
    }

    fn numbers(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.seq.0).collect()
    }

    fn probes(records: &[Record]) -> Vec<u32> {
        records.iter().map(|record| record.probe.0).collect()
    }

    #[test]
    fn only_changes_of_state_are_transitions() {
        let (mut outbox, now) = outbox(1);
        outbox.resume(Some(Seq(0)));
        for (state, streak, expected) in [
            (PASSING, 1, true),
            (PASSING, 2, false),
            (PASSING, 3, false),
            (FAILING, -3, true),
            (FAILING, -4, false),
        ] {
            assert_eq!(outbox.record(ProbeId(1), seen(state, streak), now), expected);
        }
        let reports = reports(&mut outbox, now + Duration::from_millis(40));
        assert_eq!(reports.len(), 1);
        assert_eq!(numbers(&reports[0].transitions), [1, 2]);
        assert_eq!(reports[0].transitions[0].state, PASSING);
        assert_eq!(reports[0].transitions[1].age_ms, 40);
        assert_eq!(reports[0].states, []);
    }

    #[test]
    fn nothing_is_sent_without_a_session() {
        let (mut outbox, now) = outbox(1);
        outbox.record(ProbeId(1), seen(PASSING, 1), now);
        assert_eq!(outbox.next_report(now), None);
        outbox.resume(Some(Seq(0)));
        outbox.suspend();
        assert_eq!(outbox.next_report(now), None);
    }

    #[test]
    fn a_session_goes_on_where_the_former_was_acknowledged() {
        let (mut outbox, now) = outbox(2);
        outbox.resume(None);
        for state in [PASSING, FAILING, PASSING, FAILING] {
            outbox.record(ProbeId(1), seen(state, 1), now);
        }
        reports(&mut outbox, now);
        outbox.acknowledge(Seq(1));
        outbox.suspend();
        outbox.record(ProbeId(2), seen(PASSING, 1), now);
        // The aggregator has more than it could acknowledge.
        outbox.resume(Some(Seq(3)));
        let reports = reports(&mut outbox, now);
        assert_eq!(numbers(&reports[0].transitions), [4, 5]);
        assert_eq!(reports[0].states, [], "edges alone");
        assert!(!reports[0].complete);
        outbox.acknowledge(Seq(5));
        assert_eq!(outbox.unacknowledged(), 0);
    }

    #[test]
    fn an_aggregator_that_knows_nothing_gets_the_ring_and_then_all_states() {
        let (mut outbox, now) = outbox(3);
        outbox.record(ProbeId(1), seen(PASSING, 1), now);
        outbox.record(ProbeId(2), seen(FAILING, -3), now);
        outbox.resume(None);
        let reports = reports(&mut outbox, now);
        assert_eq!(reports.len(), 1);
        assert_eq!(numbers(&reports[0].transitions), [1, 2]);
        assert_eq!(probes(&reports[0].states), [1, 2, 3]);
        assert_eq!(reports[0].states[2].state, ProbeState::Pending);
        assert!(reports[0].complete);
    }

    #[test]
    fn a_full_state_takes_as_many_messages_as_it_needs() {
        let (mut outbox, now) = outbox(5_000);
        for id in 1..=5_000 {
            outbox.record(ProbeId(id), seen(PASSING, 1), now);
        }
        assert_eq!(outbox.unacknowledged(), RING);
        assert_eq!(outbox.lost(), 5_000 - RING as u64);
        outbox.resume(Some(Seq(0)));
        let reports = reports(&mut outbox, now);
        assert!(reports.len() > 1);
        let (last, others) = reports.split_last().unwrap();
        assert!(last.complete && others.iter().all(|report| !report.complete));
        let sent: Vec<u32> = reports.iter().flat_map(|report| probes(&report.states)).collect();
        assert!(sent.into_iter().eq(1..=5_000));
    }

    #[test]
    fn a_transition_lost_unsent_lengthens_the_round_of_states() {
        let (mut outbox, now) = outbox(3_000);
        outbox.resume(None);
        let first = outbox.next_report(now).unwrap();
        let AgentMessage::Report(first) = AgentMessage::decode(&first).unwrap() else {
            panic!();
        };
        assert_eq!(first.states[0].probe, ProbeId(1), "already told as pending");
        assert!(!first.complete);
        for id in 1..=RING as u32 + 1 {
            outbox.record(ProbeId(id), seen(PASSING, 1), now);
        }
        let reports = reports(&mut outbox, now);
        assert_eq!(reports[0].transitions[0].seq, Seq(2), "the first is lost");
        let again = reports
            .iter()
            .flat_map(|report| &report.states)
            .find(|record| record.probe == ProbeId(1))
            .expect("told again");
        assert_eq!((again.state, again.seq), (PASSING, Seq(1)));
        assert_eq!(reports.iter().filter(|report| report.complete).count(), 1);
        assert!(reports.last().unwrap().complete);
    }

    #[test]
    fn an_overflow_that_was_already_sent_needs_no_states() {
        let (mut outbox, now) = outbox(1);
        outbox.resume(Some(Seq(0)));
        for n in 0..RING * 2 {
            let state = if n % 2 == 0 { PASSING } else { FAILING };
            outbox.record(ProbeId(1), seen(state, 1), now);
            for report in reports(&mut outbox, now) {
                assert_eq!(report.transitions.len(), 1);
                assert_eq!(report.states, []);
            }
        }
        assert_eq!(outbox.unacknowledged(), RING);
        // But a new session cannot go on from what the ring has lost.
        outbox.suspend();
        outbox.resume(Some(Seq(10)));
        let reports = reports(&mut outbox, now);
        assert_eq!(numbers(&reports[0].transitions)[0], RING as u64 + 1);
        assert!(reports.last().unwrap().complete);
    }

    #[test]
    fn a_run_of_failures_below_the_threshold_is_noted_once_per_heartbeat() {
        let (mut outbox, now) = outbox(1);
        outbox.resume(Some(Seq(0)));
        outbox.record(ProbeId(1), seen(PASSING, 1), now);
        reports(&mut outbox, now);

        assert!(outbox.record(ProbeId(1), seen(PASSING, -1), now));
        let first = reports(&mut outbox, now);
        assert_eq!(first[0].transitions, []);
        assert_eq!(first[0].states[0].streak, -1);
        assert_eq!(first[0].states[0].seq, Seq(1));

        assert!(
            !outbox.record(ProbeId(1), seen(PASSING, -2), now),
            "the sign is the same"
        );
        assert!(!outbox.record(ProbeId(1), seen(PASSING, 1), now), "held back");
        assert!(!outbox.record(ProbeId(1), seen(PASSING, -1), now), "held back");
        assert_eq!(reports(&mut outbox, now), []);
        outbox.beat();
        let next = reports(&mut outbox, now);
        assert_eq!(next[0].states.len(), 1, "the latest alone");
        assert_eq!(next[0].states[0].streak, -1);
    }

    #[test]
    fn a_note_that_may_have_been_lost_is_sent_again() {
        let (mut outbox, now) = outbox(2);
        outbox.resume(Some(Seq(0)));
        outbox.record(ProbeId(1), seen(PASSING, 1), now);
        reports(&mut outbox, now);
        outbox.record(ProbeId(1), seen(PASSING, -1), now);
        reports(&mut outbox, now);
        for _ in 0..2 {
            outbox.suspend();
            outbox.resume(Some(Seq(1)));
            assert_eq!(probes(&reports(&mut outbox, now)[0].states), [1]);
        }
        // A later transition that arrived proves that the note did.
        outbox.record(ProbeId(2), seen(PASSING, 1), now);
        reports(&mut outbox, now);
        outbox.suspend();
        outbox.resume(Some(Seq(2)));
        assert_eq!(reports(&mut outbox, now), []);
    }

    #[test]
    fn a_removed_probe_leaves_nothing_behind() {
        let (mut outbox, now) = outbox(2);
        let mut failing = seen(FAILING, -3);
        failing.output = "o".repeat(100);
        outbox.record(ProbeId(1), failing.clone(), now);
        outbox.record(ProbeId(2), failing, now);
        outbox.record(ProbeId(1), seen(FAILING, 1), now);
        outbox.announce(vec![instance("web", [2, 3])], now).unwrap();
        assert_eq!(outbox.output_bytes(), 200);
        assert!(!outbox.record(ProbeId(1), seen(PASSING, 1), now));
        outbox.summarize([summary(1), summary(2)]);
        outbox.resume(Some(Seq(0)));
        outbox.summarize([summary(1), summary(2)]);
        let reports = reports(&mut outbox, now);
        assert_eq!(numbers(&reports[0].transitions), [2]);
        assert_eq!(probes(&reports[0].states), [2, 3], "the gap is covered");
        assert!(reports[0].complete);
        assert_eq!(reports[0].summaries.len(), 1);
        outbox.acknowledge(Seq(2));
        outbox.announce(vec![], now).unwrap();
        assert_eq!((outbox.output_bytes(), outbox.unacknowledged()), (0, 0));
    }

    fn summary(id: u32) -> Summary {
        Summary {
            probe: ProbeId(id),
            streak: 1,
            runs: 10,
            failures: 0,
            errors: 0,
            min_us: 1,
            avg_us: 2,
            max_us: 3,
            p99_us: 3,
        }
    }

    #[test]
    fn summaries_follow_states_and_the_newest_replace_the_older() {
        let (mut outbox, now) = outbox(3_000);
        outbox.resume(Some(Seq(0)));
        outbox.summarize((1..=3_000).map(summary));
        outbox.summarize((1..=3_000).map(summary));
        let all = reports(&mut outbox, now);
        assert_eq!(
            all.iter().map(|report| report.summaries.len()).sum::<usize>(),
            3_000
        );
        assert!(all.len() > 1);
    }

    #[test]
    fn output_is_cut_and_bounded_in_all() {
        let (mut outbox, now) = outbox(1_000);
        outbox.resume(None);
        for n in 0..3_000_u32 {
            let state = if n < 1_000 { FAILING } else { PASSING };
            let mut observation = seen(state, -1);
            observation.message = "\u{1}".repeat(10_000);
            observation.output = "\u{1}".repeat(1 << 20);
            outbox.record(ProbeId(n % 1_000 + 1), observation, now);
            assert!(outbox.output_bytes() <= OUTPUT_BUDGET);
            let held: usize = outbox
                .ring
                .iter()
                .map(|entry| entry.record.output.len())
                .sum::<usize>()
                + outbox
                    .cells
                    .values()
                    .map(|cell| cell.record.output.len())
                    .sum::<usize>();
            assert_eq!(held, outbox.output_bytes());
        }
        // Every byte takes six when escaped; nothing is too large to be sent.
        assert!(reports(&mut outbox, now).last().unwrap().complete);
    }

    #[test]
    fn the_newest_output_is_kept_at_the_cost_of_the_oldest() {
        let (mut outbox, now) = outbox(1);
        for n in 0..RING {
            let state = if n % 2 == 0 { FAILING } else { PASSING };
            let mut observation = seen(state, -1);
            observation.output = "o".repeat(MAX_OUTPUT_BYTES);
            outbox.record(ProbeId(1), observation, now);
        }
        assert_eq!(outbox.ring[0].record.output, "");
        assert_eq!(outbox.ring[RING - 1].record.output.len(), MAX_OUTPUT_BYTES);
    }

    #[test]
    fn an_announcement_that_cannot_be_made_changes_nothing() {
        let (mut outbox, now) = outbox(1);
        for (instances, expected) in [
            (
                vec![instance("a", [1]), instance("b", [1])],
                AnnounceError::DuplicateId(1),
            ),
            (
                vec![instance("a", 0..MAX_PROBES_PER_AGENT as u32 + 1)],
                AnnounceError::TooManyProbes(MAX_PROBES_PER_AGENT + 1),
            ),
        ] {
            assert_eq!(outbox.announce(instances, now), Err(expected));
            assert_eq!(outbox.revision(), 1);
            assert!(outbox.knows(ProbeId(1)));
        }
    }

    #[test]
    fn the_parts_of_an_announcement_fit_and_hold_everything() {
        let mut large = instance("large", 1..=2_000);
        for n in 0..100 {
            large.labels.insert(format!("{n:0>317}"), "v".repeat(63));
            large.depends_on.push(format!("{n:d>317}"));
        }
        large.labels.insert("not plain".into(), String::new());
        for probe in &mut large.probes {
            probe.target = "\"\u{1}".repeat(300);
        }
        let mut outbox = Outbox::new();
        let instances = vec![instance("empty", []), large, instance("small", [0])];
        outbox.announce(instances, any_instant()).unwrap();
        let mut cursor = AnnounceCursor::new(outbox.revision());
        let mut parts = Vec::new();
        loop {
            let part = cursor.next_part(outbox.instances());
            let last = part.last;
            assert_eq!(part.part as usize, parts.len());
            assert!(AgentMessage::Announce(part.clone()).encode().len() <= MAX_MESSAGE_BYTES);
            parts.push(part);
            if last {
                break;
            }
        }
        let probes: Vec<u32> = parts
            .iter()
            .flat_map(|part| &part.instances)
            .flat_map(|instance| instance.probes.iter().map(|probe| probe.id.0))
            .collect();
        assert!(probes.into_iter().eq((1..=2_000).chain([0])));
        assert_eq!(parts[0].instances[0].component.as_str(), "empty");
        assert_eq!(
            parts
                .iter()
                .flat_map(|part| &part.instances)
                .filter(|i| !i.labels.is_empty())
                .count(),
            1
        );
    }
}
