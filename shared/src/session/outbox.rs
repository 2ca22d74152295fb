//! What an agent has to tell: the latest state of every probe, the transitions that nobody has acknowledged, notes
//! and summaries; and in which order it is told.
//!
//! [`Outbox`] lives as long as the agent's process; connections come and go. It never grows beyond the number of
//! probes, [`RING`] transitions and [`OUTPUT_BUDGET`] bytes of output, connected or not: when the ring is full
//! the oldest transition is dropped, and the states of all probes are sent after the remaining ones, so that
//! the aggregator counts a gap and is right nevertheless.

use {
    super::{MAX_TEXT_BYTES, RING},
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

    /// The next report as a text frame of at most [`MAX_MESSAGE_BYTES`], or `None` when there is nothing to tell:
    /// transitions first, then states, then summaries, as many as fit.
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

    /// The next part.
    pub(super) fn next_part(&mut self, instances: &[AnnouncedInstance]) -> Announce {
        // An estimate that never falls short, so that no part need be encoded twice; parts may be smaller than
        // they could be.
        let mut room = MAX_MESSAGE_BYTES - 128;
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
            let head = encoded_len(&piece);
            if head > room {
                return announce;
            }
            room -= head;
            while let Some(probe) = instance.probes.get(self.probe) {
                let size = encoded_len(probe);
                if size > room {
                    if !piece.probes.is_empty() {
                        announce.instances.push(piece);
                    }
                    return announce;
                }
                room -= size;
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
}

impl ReportWriter {
    /// `],"complete":true}`, with room for `]` before it.
    const TAIL: usize = 32;

    fn new(seq: Seq) -> Self {
        Self {
            buffer: format!(r#"{{"type":"report","seq":{}"#, seq.0).into_bytes(),
            list: None,
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
        if self.buffer.len() + Self::TAIL > MAX_MESSAGE_BYTES {
            self.buffer.truncate(before);
            self.list = former;
            return false;
        }
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
