//! The Lease that says which replica serves: carries out what [`Election`] wants of the API server, publishes the role.
//!
//! Decides nothing and retries nothing; the election does. One Lease for all replicas, and nothing else: its holder's
//! address stands in its annotations, because that is all that a replica which stands by must know to send agents on. A
//! Lease for each replica would cost a write every two seconds each, and somebody would have to clear away those of
//! dead pods. (They come when namespaces are shared among replicas: see [`owner`].)
//!
//! RBAC, in the aggregator's own namespace: `create` on leases; `get` and `update` on the one called [`LEASE`].

use {
    super::role::Role,
    crate::clock,
    healthscope_core::owner::{
        Address, EXPIRY, Election, Identity, Input, LEASE, Member, REQUEST_DEADLINE, Record, Request, owner,
    },
    healthscope_service::telemetry::chain,
    healthscope_shared::{name::Namespace, one_line},
    jiff::Timestamp,
    k8s_openapi::{
        api::coordination::v1::{Lease, LeaseSpec},
        apimachinery::pkg::apis::meta::v1::MicroTime,
    },
    kube::{
        Api, Client,
        api::{ObjectMeta, PostParams},
    },
    std::{
        collections::BTreeMap,
        future::{Future, pending},
        hash::{BuildHasher, Hasher, RandomState},
        pin::Pin,
        time::{Duration, Instant},
    },
    tokio::{sync::watch, time},
    tokio_util::sync::CancellationToken,
};

/// Annotation of the Lease: where agents reach the holder.
pub const ADDRESS: &str = "healthscope.core.oam.dev/address";
/// Annotation of the Lease: the name that the holder's certificate must have.
pub const SERVER_NAME: &str = "healthscope.core.oam.dev/server-name";
/// How long letting go may take at the end, within what the whole process may take. Without it another replica waits
/// for the Lease to expire.
pub const RELEASE_DEADLINE: Duration = Duration::from_millis(1_800);
/// What the API server writes into `managedFields` as ours.
const FIELD_MANAGER: &str = "healthscope-aggregator";
/// Longest text of a foreign holder or an error that is logged.
const MAX_LOGGED_BYTES: usize = 200;

/// What the task is given.
pub struct LeaseEnds {
    /// The API server. A client of its own: its connections are then not shared with watches that pile up behind a
    /// slow answer.
    pub client: Client,
    /// The aggregator's own namespace.
    pub namespace: String,
    /// Who this replica is; see [`identity`].
    pub me: Member,
    /// Where the role is published. Starts as [`Role::Standby`].
    pub role: watch::Sender<Role>,
}

/// The identity of this process: its pod's name and 64 random bits.
///
/// From the keys that the standard library draws for its hash tables: they tell namesakes apart and are no secret.
#[must_use]
pub fn identity(pod: &str) -> Identity {
    Identity::new(pod, random())
}

/// Takes part in the election until `shutdown`, then lets go, within [`RELEASE_DEADLINE`].
pub async fn run(ends: LeaseEnds, shutdown: CancellationToken) {
    let LeaseEnds {
        client,
        namespace,
        me,
        role,
    } = ends;
    let leases = Leases {
        api: Api::namespaced(client, &namespace),
        namespace,
        me: me.clone(),
    };
    let mut election = Election::new(me, clock::instant());
    let mut latest: Option<Lease> = None;
    let mut asked: Option<Pin<Box<dyn Future<Output = Answer> + Send>>> = None;
    let mut trouble: Option<String> = None;
    let mut stop_at: Option<Instant> = None;
    loop {
        let now = clock::instant();
        if let Some(request) = election.poll(now) {
            asked = Some(Box::pin(leases.clone().ask(request, latest.clone())));
        }
        publish(&role, &election, now);
        if election.is_over() {
            return;
        }
        let deadline = earlier(election.deadline(now), stop_at);
        // Cancel-safe: a token, a future that is kept, and a timer.
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if stop_at.is_none() => {
                let now = clock::instant();
                election.stop(now);
                stop_at = Some(now + RELEASE_DEADLINE);
            }
            answer = answered(&mut asked) => {
                asked = None;
                let input = match answer {
                    Ok((input, found)) => {
                        if trouble.take().is_some() {
                            tracing::info!(lease = LEASE, "the Lease can be read and written again");
                        }
                        if let Some(found) = found {
                            latest = found;
                        }
                        input
                    }
                    Err(problem) => {
                        complain(&mut trouble, problem);
                        Input::Failed
                    }
                };
                election.handle(input, clock::instant(), random());
            }
            () = sleep_until(deadline) => {
                if stop_at.is_some_and(|at| clock::instant() >= at) {
                    tracing::warn!(lease = LEASE, "could not let go of the Lease in time; the next replica waits for it to expire");
                    return;
                }
            }
        }
    }
}

/// What a request gave: what to tell the election, and the Lease as it is now when that is known; or a problem.
type Answer = Result<(Input, Option<Option<Lease>>), String>;

async fn answered(asked: &mut Option<Pin<Box<dyn Future<Output = Answer> + Send>>>) -> Answer {
    match asked {
        Some(asked) => asked.await,
        None => pending().await,
    }
}

/// The API server, as far as one Lease is concerned.
#[derive(Clone)]
struct Leases {
    api: Api<Lease>,
    namespace: String,
    me: Member,
}

impl Leases {
    /// Carries out one request, within [`REQUEST_DEADLINE`].
    async fn ask(self, request: Request, latest: Option<Lease>) -> Answer {
        let params = PostParams {
            dry_run: false,
            field_manager: Some(FIELD_MANAGER.to_owned()),
        };
        let (verb, asking) = match request {
            Request::Read => ("get", self.read().await),
            Request::Create => {
                let lease = held(Lease::default(), &self.me, clock::now().wall);
                ("create", self.write(self.api.create(&params, &lease)).await)
            }
            Request::Hold { version } => {
                let lease = held(latest.unwrap_or_default(), &self.me, clock::now().wall);
                let lease = fenced(lease, version);
                (
                    "update",
                    self.write(self.api.replace(LEASE, &params, &lease)).await,
                )
            }
            Request::Release { version } => {
                let lease = fenced(released(latest.unwrap_or_default()), version);
                (
                    "update",
                    self.write(self.api.replace(LEASE, &params, &lease)).await,
                )
            }
        };
        asking.map_err(|problem| problem.describe(verb, &self.namespace))
    }

    async fn read(&self) -> Result<(Input, Option<Option<Lease>>), Problem> {
        let found = in_time(self.api.get_opt(LEASE)).await?;
        let record = found.as_ref().map(record);
        Ok((Input::Read(record), Some(found)))
    }

    async fn write(
        &self,
        asking: impl Future<Output = kube::Result<Lease>>,
    ) -> Result<(Input, Option<Option<Lease>>), Problem> {
        match in_time(asking).await {
            Ok(lease) => {
                let version = lease.metadata.resource_version.clone().unwrap_or_default();
                Ok((Input::Written { version }, Some(Some(lease))))
            }
            // Somebody else was faster, or deleted it. (A namespace that is gone is 404 as well, and read again.)
            Err(Problem::Api(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                Ok((Input::Refused, None))
            }
            Err(problem) => Err(problem),
        }
    }
}

/// Why there is no answer.
enum Problem {
    Late,
    Api(kube::Error),
}

impl Problem {
    fn describe(&self, verb: &str, namespace: &str) -> String {
        match self {
            Self::Late => format!("no answer to {verb} within {REQUEST_DEADLINE:?}"),
            Self::Api(kube::Error::Api(status)) if status.code == 403 => format!(
                "not allowed to {verb} the Lease {LEASE} in the namespace {namespace}; its Role needs apiGroups: \
                 [coordination.k8s.io], resources: [leases], verbs: [create, get, update]"
            ),
            Self::Api(kube::Error::Api(status)) => {
                format!(
                    "{verb}: {} {}",
                    status.code,
                    one_line(&status.message, MAX_LOGGED_BYTES)
                )
            }
            Self::Api(error) => format!("{verb}: {}", one_line(&chain(error), MAX_LOGGED_BYTES)),
        }
    }
}

async fn in_time<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
    match time::timeout(REQUEST_DEADLINE, asking).await {
        Ok(result) => result.map_err(Problem::Api),
        Err(_) => Err(Problem::Late),
    }
}

/// The Lease as the election sees it. `renewTime` and `acquireTime` are of another machine's clock and not looked at.
fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let annotation = |key| lease.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let holder = spec
        .and_then(|spec| spec.holder_identity.as_deref())
        .and_then(Identity::written);
    let seconds = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .unwrap_or_default();
    Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: holder.map(|identity| Member {
            identity,
            address: annotation(ADDRESS)
                .zip(annotation(SERVER_NAME))
                .and_then(|(address, server_name)| Address::written(address, server_name)),
        }),
        duration: Duration::from_secs(seconds.try_into().unwrap_or_default()),
    }
}

/// The Lease with us as its holder. What others wrote beside it stays.
fn held(mut lease: Lease, me: &Member, wall: Timestamp) -> Lease {
    let now = Some(MicroTime(wall));
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    let is_new = spec.holder_identity.as_deref() != Some(me.identity.as_str());
    if is_new {
        let was_held = spec.renew_time.is_some();
        let transitions = spec.lease_transitions.unwrap_or_default();
        spec.lease_transitions = Some(transitions.saturating_add(was_held.into()));
        spec.acquire_time.clone_from(&now);
        spec.holder_identity = Some(me.identity.as_str().to_owned());
    }
    spec.renew_time = now;
    spec.lease_duration_seconds = Some(EXPIRY.as_secs().try_into().unwrap_or(i32::MAX));
    lease.metadata.name = Some(LEASE.to_owned());
    let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
    match &me.address {
        Some(Address { address, server_name }) => {
            annotations.insert(ADDRESS.to_owned(), address.clone());
            annotations.insert(SERVER_NAME.to_owned(), server_name.clone());
        }
        None => {
            annotations.remove(ADDRESS);
            annotations.remove(SERVER_NAME);
        }
    }
    lease
}

/// The Lease with nobody as its holder.
fn released(mut lease: Lease) -> Lease {
    lease.metadata.name = Some(LEASE.to_owned());
    if let Some(annotations) = &mut lease.metadata.annotations {
        annotations.remove(ADDRESS);
        annotations.remove(SERVER_NAME);
    }
    lease.spec.get_or_insert_with(LeaseSpec::default).holder_identity = Some(String::new());
    lease
}

/// The Lease, to be written only over this version.
fn fenced(lease: Lease, version: String) -> Lease {
    let metadata = ObjectMeta {
        resource_version: Some(version),
        ..lease.metadata
    };
    Lease { metadata, ..lease }
}

/// Publishes the role when it is another, and says so.
fn publish(role: &watch::Sender<Role>, election: &Election, now: Instant) {
    let members = election.members(now);
    // All namespaces have the same owner as yet, so that it does not matter which is asked for.
    let found = owner(&Namespace::default(), members);
    let next = match found {
        Some(member) if member.identity == election.me().identity => Role::Owner,
        Some(member) => Role::Standby {
            owner: member.address.clone(),
        },
        None => Role::Standby { owner: None },
    };
    role.send_if_modified(|current| {
        if *current == next {
            return false;
        }
        let owner = found.map(|member| one_line(member.identity.as_str(), MAX_LOGGED_BYTES));
        match (&*current, &next) {
            (_, Role::Owner) => tracing::info!(lease = LEASE, "this replica is the owner now"),
            (Role::Owner, Role::Standby { .. }) => {
                tracing::warn!(lease = LEASE, owner, "this replica is not the owner any more");
            }
            (Role::Standby { .. }, Role::Standby { .. }) => {
                tracing::info!(lease = LEASE, owner, "this replica stands by");
            }
        }
        *current = next;
        true
    });
}

/// Says what is wrong, once until something else is.
fn complain(trouble: &mut Option<String>, problem: String) {
    if trouble.as_ref() == Some(&problem) {
        tracing::debug!(lease = LEASE, problem, "still no Lease");
        return;
    }
    tracing::warn!(
        lease = LEASE,
        problem,
        "cannot use the Lease that says which replica is the owner; trying again"
    );
    *trouble = Some(problem);
}

/// A random number, uniform over all of `u64`.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Member {
        Member {
            identity: Identity::new("aggregator-0", 7),
            address: Address::written("10.0.0.1:7575", "aggregator"),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn read(text: &str) -> Lease {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let lease = fenced(held(Lease::default(), &me(), at(100)), "5".to_owned());
        let found = record(&lease);
        assert_eq!((found.holder, found.duration), (Some(me()), EXPIRY));
        assert_eq!(found.version, "5");
    }

    #[test]
    fn renewing_changes_the_time_and_taking_over_counts() {
        let first = held(Lease::default(), &me(), at(100));
        let renewed = held(first, &me(), at(102)).spec.unwrap();
        assert_eq!(
            (
                renewed.acquire_time,
                renewed.renew_time,
                renewed.lease_transitions
            ),
            (Some(MicroTime(at(100))), Some(MicroTime(at(102))), Some(0))
        );
        let other = Member {
            identity: Identity::new("aggregator-1", 8),
            address: None,
        };
        let taken = held(held(Lease::default(), &me(), at(100)), &other, at(50));
        assert_eq!(record(&taken).holder, Some(other));
        let spec = taken.spec.unwrap();
        assert_eq!(
            (spec.acquire_time, spec.lease_transitions),
            (Some(MicroTime(at(50))), Some(1))
        );
    }

    #[test]
    fn what_was_let_go_has_no_holder_and_no_address() {
        let lease = released(held(Lease::default(), &me(), at(100)));
        assert_eq!(record(&lease).holder, None);
        assert_eq!(lease.metadata.annotations, Some(BTreeMap::new()));
        assert_eq!(lease.spec.unwrap().lease_transitions, Some(0));
    }

    #[test]
    fn what_others_wrote_beside_it_stays() {
        let lease = read(
            r#"{"metadata":{"name":"healthscope-aggregator","labels":{"team":"a"},"annotations":{"note":"b"}}}"#,
        );
        let lease = held(lease, &me(), at(1));
        assert_eq!(lease.metadata.labels.unwrap()["team"], "a");
        assert_eq!(lease.metadata.annotations.unwrap()["note"], "b");
    }

    #[test]
    fn garbage_is_nobody_or_a_stranger_without_an_address() {
        for text in [
            "{}",
            r#"{"spec":{}}"#,
            r#"{"spec":{"holderIdentity":"","leaseDurationSeconds":-5}}"#,
        ] {
            let found = record(&read(text));
            assert_eq!((found.holder, found.duration), (None, Duration::ZERO), "{text}");
        }
        let found = record(&read(
            r#"{"metadata":{"annotations":{"healthscope.core.oam.dev/address":"http://evil/",
                "healthscope.core.oam.dev/server-name":"a"}},
                "spec":{"holderIdentity":"\u0000x","leaseDurationSeconds":2147483647}}"#,
        ));
        let holder = found.holder.unwrap();
        assert_eq!((holder.identity.as_str(), holder.address), ("\0x", None));
    }

    #[test]
    fn a_process_is_never_its_own_namesake() {
        assert_ne!(identity("aggregator-0"), identity("aggregator-0"));
    }
}
