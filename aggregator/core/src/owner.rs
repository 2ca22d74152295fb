//! Which replica serves: the split of namespaces among replicas, and the election of the one that leads.
//!
//! [`owner`] is the seam: whoever needs to know who serves a namespace asks it. In this version one replica, the leader,
//! serves all of them; the others stand by and point agents at it. [`Election`] finds the leader by one Lease in the
//! Kubernetes API.
//!
//! No clock of another machine is ever compared with ours. What counts is *when we saw the record change*, by our
//! monotonic clock: a replica takes over when it has not seen a change for [`EXPIRY`], and the holder stops by itself
//! [`RENEW_DEADLINE`] after the moment it *sent* the latest renewal that was confirmed. The record had changed no
//! earlier than it was sent and was seen to have changed no earlier than that, so the holder has stopped before anybody
//! else begins, as long as no two clocks run at rates more than a third apart. `renewTime` is written for people and never read.
//!
//! A Lease alone is no fence: a process that was stopped between asking "do I lead?" and writing writes late. Whatever
//! the leader writes must carry the resourceVersion that it was computed from.
//!
//! No clock, no randomness: both are arguments. No IO: [`Election::poll`] says what to ask of the API server.

use {
    healthscope_shared::name::Namespace,
    std::{
        fmt, slice,
        time::{Duration, Instant},
    },
};

/// Name of the Lease, in the aggregator's own namespace.
pub const LEASE: &str = "healthscope-aggregator";
/// How often the holder renews: three attempts fit before it must stop.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
/// The holder stops so long after it sent the latest renewal that was confirmed. Less than [`EXPIRY`] by a third: room
/// for clocks that run at different rates, and for tasks that get their turn late.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(6);
/// Another replica takes over when it has not seen the record change for so long. With a poll before and a request
/// after it, a replica that was killed is replaced within twelve seconds.
pub const EXPIRY: Duration = Duration::from_secs(9);
/// A record that asks for a longer wait than [`EXPIRY`] (written by a later release, or by anybody) is obeyed up to here.
pub const MAX_EXPIRY: Duration = Duration::from_secs(60);
/// How often a replica that stands by looks. A watch would tell sooner that the holder has let go, and would have to be
/// kept alive and doubted; one read of one small object a second costs nothing.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// When to ask again after a request that failed.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long one request may take: a lost one leaves time for another before [`RENEW_DEADLINE`].
pub const REQUEST_DEADLINE: Duration = Duration::from_millis(1_500);
/// A holder that has not been seen to renew for so long is not recommended to agents any more: it is more likely gone
/// than late. In normal life a change is seen every three seconds.
pub const DOUBT_AFTER: Duration = Duration::from_secs(5);

/// Longest address kept: a DNS name, a colon and a port.
const MAX_ADDRESS_BYTES: usize = 253 + 6;
/// Longest name of a certificate (RFC 1035, 2.3.4).
const MAX_SERVER_NAME_BYTES: usize = 253;

/// Says which of the replicas serves a namespace; `None` when nobody is known to.
///
/// The first version: one serves all. To share the work, members are all that renew a Lease of their own, and the
/// namespace's hash chooses among them.
#[must_use]
pub const fn owner<'a>(_namespace: &Namespace, members: &'a [Member]) -> Option<&'a Member> {
    members.first()
}

/// Who a replica is: different for each process, so that nobody ever takes what a former life or a namesake holds for
/// its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

impl Identity {
    /// The identity of this process, from its pod's name and a random number drawn at its start.
    #[must_use]
    pub fn new(pod: &str, random: u64) -> Self {
        Self(format!("{pod}_{random:016x}"))
    }

    /// The identity that a record names, whoever wrote it; `None` when it names nobody.
    #[must_use]
    pub fn written(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Where agents reach a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `host:port`.
    pub address: String,
    /// The name that its certificate must have.
    pub server_name: String,
}

impl Address {
    /// Checks what a record says: agents are sent there, so nothing that is not `host:port` may get through.
    #[must_use]
    pub fn written(address: &str, server_name: &str) -> Option<Self> {
        let (host, port) = address.rsplit_once(':')?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let is_host = if is_bracketed {
            host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_ok()
        } else {
            is_name(host)
        };
        let is_usable = is_port
            && is_host
            && address.len() <= MAX_ADDRESS_BYTES
            && server_name.len() <= MAX_SERVER_NAME_BYTES
            && (is_name(server_name) || server_name.parse::<std::net::IpAddr>().is_ok());
        is_usable.then(|| Self {
            address: address.to_owned(),
            server_name: server_name.to_owned(),
        })
    }
}

/// A DNS name or an IPv4 address.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

/// A replica, as others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub identity: Identity,
    /// Where agents reach it; `None` when it does not say, or nothing that can be used.
    pub address: Option<Address>,
}

/// The Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its resourceVersion: fences what is written next, and is different after every change.
    pub version: String,
    /// Who holds it; `None` when it was let go, or says nothing.
    pub holder: Option<Member>,
    /// How long the holder wants others to wait.
    pub duration: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The answer to [`Request::Read`]: the record, or that there is none.
    Read(Option<Record>),
    /// What was to be written is written; the version that the record has now.
    Written {
        /// Its resourceVersion.
        version: String,
    },
    /// It is not written: the record is another by now, is there already, or is gone.
    Refused,
    /// No answer, or none that can be used. What was asked for may have been done, may still be done, or never.
    Failed,
}

/// What to ask of the API server. One at a time, each answered by one [`Input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read the record.
    Read,
    /// Create it with us as the holder.
    Create,
    /// Write us down as the holder, of a record that still has this version.
    Hold {
        /// Its resourceVersion.
        version: String,
    },
    /// Write down that nobody is the holder, into a record that still has this version.
    Release {
        /// Its resourceVersion.
        version: String,
    },
}

/// One replica's part in the election.
///
/// ```text
/// loop   while let Some(request) = election.poll(now) { send it; on the answer: election.handle(input, now, random) }
///        publish election.members(now)
///        wait for the answer, the shutdown (election.stop(now)), or election.deadline(now)
/// until  election.is_over()
/// ```
#[derive(Debug)]
pub struct Election {
    me: Member,
    known: Known,
    /// The record may have changed by our own hand or another's: read before anything is written.
    is_stale: bool,
    /// We lead until then.
    leads_until: Option<Instant>,
    /// The request that is not answered yet, and when it was sent.
    pending: Option<(Request, Instant)>,
    /// When to send the next one.
    due: Instant,
    is_stopping: bool,
    /// A creation of ours was never answered. It carries no version, so it may still be carried out, even after somebody
    /// deleted what another replica holds: a record that names us is then no proof that nobody else leads.
    has_lost_creation: bool,
}

/// What is known of the record.
#[derive(Clone, Debug)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// There is none, and we have never seen one: a fresh installation, where nobody needs to be waited for.
    Never,
    /// It was there, and since then it is gone: somebody deleted it, and its holder may still lead. A creation carries
    /// no version, so this wait is as good as the promise that nobody deletes it twice within a minute.
    Gone { since: Instant },
    /// There it is, unchanged since we first saw it so.
    There { record: Record, since: Instant },
}

impl Election {
    /// A replica that knows nothing yet. `random` is uniform over all of `u64`, here and in [`Election::handle`].
    #[must_use]
    pub const fn new(me: Member, now: Instant) -> Self {
        Self {
            me,
            known: Known::Nothing,
            is_stale: true,
            leads_until: None,
            pending: None,
            due: now,
            is_stopping: false,
            has_lost_creation: false,
        }
    }

    /// Who this replica is.
    #[must_use]
    pub const fn me(&self) -> &Member {
        &self.me
    }

    /// The replicas among which [`owner`] chooses, as far as is known: the leader, or nobody.
    #[must_use]
    pub fn members(&self, now: Instant) -> &[Member] {
        if self.leads(now) {
            return slice::from_ref(&self.me);
        }
        match &self.known {
            Known::There { record, since } if now < *since + DOUBT_AFTER => match &record.holder {
                Some(holder) if holder.identity != self.me.identity => slice::from_ref(holder),
                // Ours by the record, but not confirmed or not any more.
                Some(_) | None => &[],
            },
            Known::There { .. } | Known::Nothing | Known::Never | Known::Gone { .. } => &[],
        }
    }

    /// Whether this replica leads at this moment.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        !self.is_stopping && self.leads_until.is_some_and(|until| now < until)
    }

    /// Whether nothing is left to be done after [`Election::stop`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_stopping && self.pending.is_none() && !self.is_stale && !self.is_ours()
    }

    /// Takes in the answer to the latest request.
    pub fn handle(&mut self, input: Input, now: Instant, random: u64) {
        let Some((request, sent)) = self.pending.take() else {
            debug_assert!(false, "an answer to nothing");
            return;
        };
        match input {
            Input::Read(found) => {
                self.is_stale = false;
                self.see(found, now);
                self.due = self.next_look(now, random);
            }
            Input::Written { version } => {
                self.written(&request, version, sent, now);
                // From the moment of sending: a slow API server must not eat the time that is left for retries.
                self.due = if self.is_stopping { now } else { sent + RENEW_EVERY };
            }
            Input::Refused | Input::Failed => {
                self.has_lost_creation |= request == Request::Create && input == Input::Failed;
                self.is_stale = true;
                self.due = now + jittered(RETRY_AFTER, random);
            }
        }
    }

    /// This process is about to end: it leads no more, and lets go of the record so that nobody has to wait for it to
    /// expire.
    pub fn stop(&mut self, now: Instant) {
        self.is_stopping = true;
        self.leads_until = None;
        self.due = now;
    }

    /// The next request, if there is one to send now.
    pub fn poll(&mut self, now: Instant) -> Option<Request> {
        if self.pending.is_some() || now < self.due || self.is_over() {
            return None;
        }
        let request = self.next_request(now);
        self.pending = Some((request.clone(), now));
        Some(request)
    }

    /// When to poll, and to look at [`Election::members`] again, if nothing else happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let due = self.pending.is_none().then_some(self.due);
        let doubt = match &self.known {
            Known::There { since, .. } => Some(*since + DOUBT_AFTER),
            Known::Nothing | Known::Never | Known::Gone { .. } => None,
        };
        // What has passed is seen already.
        let turns = [self.leads_until, doubt]
            .into_iter()
            .flatten()
            .filter(|at| *at > now);
        due.into_iter().chain(turns).min()
    }

    fn next_request(&self, now: Instant) -> Request {
        if self.is_stale {
            return Request::Read;
        }
        match &self.known {
            Known::Nothing => Request::Read,
            Known::Never => Request::Create,
            Known::Gone { since } => {
                // The leader puts its own record back; others cannot know whether it still leads.
                if self.leads(now) || now >= *since + EXPIRY {
                    Request::Create
                } else {
                    Request::Read
                }
            }
            Known::There { record, since } => {
                let version = record.version.clone();
                if self.is_stopping {
                    Request::Release { version }
                } else if now < self.free_at(record, *since, now) {
                    Request::Read
                } else {
                    Request::Hold { version }
                }
            }
        }
    }

    /// From when on we may write ourselves into a record that has not changed `since`.
    fn free_at(&self, record: &Record, since: Instant, now: Instant) -> Instant {
        match &record.holder {
            None => now,
            // Nobody else writes us down: a request of ours was carried out and its answer lost. It was fenced.
            Some(holder)
                if holder.identity == self.me.identity && (self.leads(now) || !self.has_lost_creation) =>
            {
                now
            }
            Some(_) => since + record.duration.clamp(EXPIRY, MAX_EXPIRY),
        }
    }

    /// Takes in a record that was read.
    fn see(&mut self, found: Option<Record>, now: Instant) {
        match found {
            None => {
                self.known = match std::mem::replace(&mut self.known, Known::Nothing) {
                    Known::Nothing | Known::Never => Known::Never,
                    Known::There { .. } => Known::Gone { since: now },
                    gone @ Known::Gone { .. } => gone,
                };
            }
            Some(record) => {
                let is_known = matches!(&self.known, Known::There { record: former, .. } if former.version == record.version);
                if !is_known {
                    self.known = Known::There { record, since: now };
                }
                if !self.is_ours() {
                    self.leads_until = None;
                }
            }
        }
    }

    fn written(&mut self, request: &Request, version: String, sent: Instant, now: Instant) {
        let holder = match request {
            Request::Create | Request::Hold { .. } => {
                if !self.is_stopping {
                    self.leads_until = Some(sent + RENEW_DEADLINE);
                }
                Some(self.me.clone())
            }
            Request::Release { .. } => None,
            Request::Read => {
                debug_assert!(false, "what is read is not written");
                return;
            }
        };
        self.known = Known::There {
            record: Record {
                version,
                holder,
                duration: EXPIRY,
            },
            since: now,
        };
    }

    /// Whether the record names us.
    fn is_ours(&self) -> bool {
        matches!(&self.known, Known::There { record, .. }
            if record.holder.as_ref().is_some_and(|holder| holder.identity == self.me.identity))
    }

    /// When to send something after the record has been read.
    fn next_look(&self, now: Instant, random: u64) -> Instant {
        let look = now + jittered(POLL_EVERY, random);
        match &self.known {
            Known::Nothing | Known::Never => now,
            Known::Gone { .. } if self.leads(now) => now,
            Known::Gone { since } => look.min(*since + EXPIRY),
            Known::There { .. } if self.is_stopping => now,
            Known::There { record, since } => look.min(self.free_at(record, *since, now)),
        }
    }
}

/// A duration between four and six fifths of `around`: replicas that started together do not ask together.
fn jittered(around: Duration, random: u64) -> Duration {
    let fifth = around / 5;
    let width = (2 * fifth).as_nanos();
    // The upper 64 bits of the product: uniform without a division's bias.
    let offset = (width * u128::from(random)) >> 64;
    4 * fifth + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);
    /// No jitter either way.
    const MIDDLE: u64 = u64::MAX / 2;

    #[expect(
        clippy::disallowed_methods,
        reason = "there is no other way to an instant; tests only add to it"
    )]
    fn any_instant() -> Instant {
        Instant::now()
    }

    fn member(name: &str) -> Member {
        Member {
            identity: Identity::written(name).unwrap(),
            address: Address::written(&format!("{name}.example:7575"), "aggregator.example"),
        }
    }

    fn record(version: &str, holder: Option<&str>) -> Record {
        Record {
            version: version.to_owned(),
            holder: holder.map(member),
            duration: EXPIRY,
        }
    }

    /// An election whose API server is the test.
    struct Replica {
        election: Election,
        now: Instant,
    }

    impl Replica {
        fn new() -> Self {
            let now = any_instant();
            Self {
                election: Election::new(member("me"), now),
                now,
            }
        }

        /// One that has just become the leader, of version `1`.
        fn leading() -> Self {
            let mut replica = Self::new();
            replica.expect(&Request::Read);
            replica.answer(Input::Read(None));
            replica.expect(&Request::Create);
            replica.written("1");
            assert!(replica.leads());
            replica
        }

        /// One that stands by while another holds version `1`.
        fn standing_by() -> Self {
            let mut replica = Self::new();
            replica.expect(&Request::Read);
            replica.answer(Input::Read(Some(record("1", Some("other")))));
            replica
        }

        #[track_caller]
        fn expect(&mut self, request: &Request) {
            assert_eq!(self.election.poll(self.now).as_ref(), Some(request));
        }

        fn answer(&mut self, input: Input) {
            self.election.handle(input, self.now, MIDDLE);
        }

        fn written(&mut self, version: &str) {
            let version = version.to_owned();
            self.answer(Input::Written { version });
        }

        /// Waits for the next deadline at which something is asked, and says what and after how long.
        fn next(&mut self) -> (Duration, Request) {
            let start = self.now;
            loop {
                self.now = self
                    .election
                    .deadline(self.now)
                    .expect("something is left to wait for");
                if let Some(request) = self.election.poll(self.now) {
                    return (self.now - start, request);
                }
                assert!(
                    self.now < start + 100 * SECOND,
                    "a deadline at which nothing happens"
                );
            }
        }

        /// Reads the same record again and again for as long as that is what is asked.
        fn read_until_something_else(&mut self, found: Option<&Record>) -> (Duration, Request) {
            let start = self.now;
            loop {
                let (_, request) = self.next();
                if request != Request::Read {
                    return (self.now - start, request);
                }
                self.answer(Input::Read(found.cloned()));
            }
        }

        fn leads(&self) -> bool {
            self.election.leads(self.now)
        }

        fn leader(&self) -> Option<&str> {
            let owner = owner(&Namespace::default(), self.election.members(self.now))?;
            Some(owner.identity.as_str())
        }
    }

    fn hold(version: &str) -> Request {
        Request::Hold {
            version: version.to_owned(),
        }
    }

    #[test]
    fn the_first_replica_leads_at_once() {
        let replica = Replica::leading();
        assert_eq!(replica.leader(), Some("me"));
    }

    #[test]
    fn the_holder_renews_every_two_seconds() {
        let mut replica = Replica::leading();
        for version in 1..20 {
            let (after, request) = replica.next();
            assert_eq!((after, request), (RENEW_EVERY, hold(&version.to_string())));
            replica.written(&(version + 1).to_string());
        }
        assert!(replica.leads());
    }

    #[test]
    fn the_holder_stops_by_itself_when_it_cannot_renew() {
        let mut replica = Replica::leading();
        let start = replica.now;
        let mut attempts = 0;
        while replica.leads() {
            let (_, request) = replica.next();
            attempts += 1;
            assert!(matches!(request, Request::Hold { .. } | Request::Read));
            replica.now += REQUEST_DEADLINE;
            replica.answer(Input::Failed);
        }
        assert!(replica.now < start + RENEW_DEADLINE + REQUEST_DEADLINE);
        assert!(attempts >= 2, "a lost request is not the end");
        assert_eq!(replica.leader(), None);
        assert!(!replica.election.leads(start + RENEW_DEADLINE));
        assert!(replica.election.leads(start + RENEW_DEADLINE - MS) || attempts > 0);
    }

    #[test]
    fn leading_counts_from_the_moment_of_sending() {
        let mut replica = Replica::leading();
        let (_, request) = replica.next();
        assert_eq!(request, hold("1"));
        let sent = replica.now;
        replica.now += REQUEST_DEADLINE;
        replica.written("2");
        assert!(replica.election.leads(sent + RENEW_DEADLINE - MS));
        assert!(!replica.election.leads(sent + RENEW_DEADLINE));
    }

    #[test]
    fn a_confirmation_that_comes_too_late_counts_for_nothing() {
        let mut replica = Replica::leading();
        replica.next();
        replica.now += RENEW_DEADLINE;
        replica.written("2");
        assert!(!replica.leads());
        assert_eq!(
            replica.next().1,
            hold("2"),
            "but the record is ours, to be renewed"
        );
        replica.written("3");
        assert!(replica.leads());
    }

    #[test]
    fn a_holder_that_is_not_seen_to_renew_is_replaced() {
        let mut replica = Replica::standing_by();
        assert_eq!(replica.leader(), Some("other"));
        let same = record("1", Some("other"));
        let (after, request) = replica.read_until_something_else(Some(&same));
        assert_eq!((after, request), (EXPIRY, hold("1")));
        assert_eq!(replica.leader(), None);
        replica.written("2");
        assert_eq!(replica.leader(), Some("me"));
    }

    #[test]
    fn a_holder_in_doubt_is_not_recommended() {
        let replica = Replica::standing_by();
        for (after, expected) in [(DOUBT_AFTER - MS, 1), (DOUBT_AFTER, 0)] {
            assert_eq!(replica.election.members(replica.now + after).len(), expected);
        }
    }

    #[test]
    fn a_holder_that_renews_is_left_alone() {
        let mut replica = Replica::standing_by();
        for second in 0..100 {
            let (after, request) = replica.next();
            assert_eq!((after.as_millis().div_ceil(10), request), (100, Request::Read));
            let version = (second / 8).to_string();
            replica.answer(Input::Read(Some(record(&version, Some("other")))));
        }
        assert!(!replica.leads());
    }

    #[test]
    fn who_was_slow_to_look_asks_with_the_version_it_knows() {
        let mut replica = Replica::standing_by();
        replica.now += 100 * SECOND;
        replica.expect(&hold("1"));
        replica.answer(Input::Refused);
        assert!(!replica.leads());
        let (after, request) = replica.next();
        assert!(after <= RETRY_AFTER);
        assert_eq!(request, Request::Read);
        let renewed = record("9", Some("other"));
        replica.answer(Input::Read(Some(renewed.clone())));
        assert_eq!(
            replica.read_until_something_else(Some(&renewed)),
            (EXPIRY, hold("9"))
        );
    }

    #[test]
    fn a_released_record_is_taken_at_once() {
        let mut replica = Replica::standing_by();
        assert_eq!(replica.next().1, Request::Read);
        replica.answer(Input::Read(Some(record("2", None))));
        assert_eq!(replica.leader(), None);
        replica.expect(&hold("2"));
        replica.written("3");
        assert!(replica.leads());
    }

    #[test]
    fn who_stops_lets_go_and_leads_no_more() {
        let mut replica = Replica::leading();
        replica.election.stop(replica.now);
        assert_eq!((replica.leads(), replica.leader()), (false, None));
        assert!(!replica.election.is_over());
        replica.expect(&Request::Release {
            version: "1".to_owned(),
        });
        replica.written("2");
        assert!(replica.election.is_over());
        assert_eq!(replica.election.poll(replica.now + 100 * SECOND), None);
        assert_eq!(replica.election.deadline(replica.now), None);
    }

    #[test]
    fn a_renewal_under_way_is_waited_for_before_letting_go() {
        for (answer, then) in [
            (
                Input::Written {
                    version: "2".to_owned(),
                },
                None,
            ),
            (Input::Failed, Some(Request::Read)),
            (Input::Refused, Some(Request::Read)),
        ] {
            let mut replica = Replica::leading();
            replica.next();
            replica.election.stop(replica.now);
            assert_eq!(replica.election.poll(replica.now), None);
            replica.answer(answer);
            if let Some(then) = then {
                assert_eq!(replica.next().1, then);
                replica.answer(Input::Read(Some(record("2", Some("me")))));
            }
            assert!(!replica.leads());
            replica.expect(&Request::Release {
                version: "2".to_owned(),
            });
        }
    }

    #[test]
    fn who_does_not_hold_the_record_leaves_it_alone_when_stopping() {
        let mut replica = Replica::standing_by();
        replica.election.stop(replica.now);
        assert!(replica.election.is_over());
        let mut replica = Replica::new();
        replica.expect(&Request::Read);
        replica.election.stop(replica.now);
        replica.answer(Input::Read(None));
        assert!(replica.election.is_over(), "nothing is created any more");
    }

    #[test]
    fn a_deleted_record_is_put_back_by_the_holder_and_nobody_else() {
        let mut holder = Replica::leading();
        holder.next();
        holder.answer(Input::Refused);
        assert!(holder.leads());
        holder.next();
        holder.answer(Input::Read(None));
        holder.expect(&Request::Create);
        holder.written("7");
        assert!(holder.leads());

        let mut other = Replica::standing_by();
        let (after, request) = other.read_until_something_else(None);
        assert_eq!(request, Request::Create);
        assert!(
            after > EXPIRY,
            "{after:?}: counted from when it was seen to be gone"
        );
    }

    #[test]
    fn somebody_else_in_the_record_ends_it_at_once() {
        let mut replica = Replica::leading();
        replica.next();
        replica.answer(Input::Refused);
        replica.next();
        replica.answer(Input::Read(Some(record("5", Some("usurper")))));
        assert_eq!(replica.leader(), Some("usurper"));
    }

    #[test]
    fn a_hand_on_the_record_does_not_disturb_the_holder() {
        let mut replica = Replica::leading();
        replica.next();
        replica.answer(Input::Refused);
        replica.next();
        replica.answer(Input::Read(Some(record("5", Some("me")))));
        assert!(replica.leads());
        replica.expect(&hold("5"));
    }

    #[test]
    fn a_former_life_and_a_namesake_are_strangers() {
        let (one, other) = (Identity::new("aggregator-0", 1), Identity::new("aggregator-0", 2));
        assert_ne!(one, other);
        assert_eq!(one.as_str(), "aggregator-0_0000000000000001");
        let mut replica = Replica::new();
        replica.election.me.identity = one;
        replica.expect(&Request::Read);
        replica.answer(Input::Read(Some(record("1", Some(other.as_str())))));
        assert!(
            matches!(replica.next(), (_, Request::Read)),
            "its record expires like any other"
        );
    }

    #[test]
    fn a_longer_wait_is_obeyed_within_reason() {
        for (duration, expected) in [
            (Duration::ZERO, EXPIRY),
            (20 * SECOND, 20 * SECOND),
            (Duration::MAX, MAX_EXPIRY),
        ] {
            let mut replica = Replica::new();
            let found = Record {
                duration,
                ..record("1", Some("other"))
            };
            replica.expect(&Request::Read);
            replica.answer(Input::Read(Some(found.clone())));
            assert_eq!(replica.read_until_something_else(Some(&found)).0, expected);
        }
    }

    #[test]
    fn a_lost_takeover_that_was_made_is_found_and_used() {
        let mut replica = Replica::standing_by();
        let same = record("1", Some("other"));
        replica.read_until_something_else(Some(&same));
        replica.answer(Input::Failed);
        assert_eq!(replica.next().1, Request::Read);
        replica.answer(Input::Read(Some(record("2", Some("me")))));
        assert_eq!(
            replica.leader(),
            None,
            "not before a renewal of our own is confirmed"
        );
        replica.expect(&hold("2"));
    }

    #[test]
    fn only_addresses_that_can_be_one_are_passed_on() {
        #[track_caller]
        fn check(address: &str, server_name: &str, expected: bool) {
            let found = Address::written(address, server_name);
            assert_eq!(found.is_some(), expected, "{address:?} {server_name:?}");
        }
        check("10.1.2.3:7575", "aggregator.healthscope.svc", true);
        check("[fd00::1]:7575", "fd00::1", true);
        check("aggregator-0.aggregator:1", "10.0.0.1", true);
        check("fd00::1:7575", "a", false);
        check("10.1.2.3", "a", false);
        check("10.1.2.3:0", "a", false);
        check("10.1.2.3:70000", "a", false);
        check(":7575", "a", false);
        check("a b:7575", "a", false);
        check("evil/@a:7575", "a", false);
        check("a:1", "", false);
        check("a:1", "a\nb", false);
        check(&format!("{}:1", "a".repeat(300)), "a", false);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for (random, expected) in [(0, 800), (MIDDLE, 999), (u64::MAX, 1_199)] {
            assert_eq!(jittered(SECOND, random).as_millis(), expected);
        }
    }
}
