//! Replicas of the aggregator and the Lease that makes one of them the owner, on a real API server.
//!
//! Each replica is the aggregator's own task with a client of its own. To be killed is to be dropped between two turns:
//! nothing is let go, its connections break off.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use {
    healthscope_aggregator::kubernetes::{
        lease::{self, LeaseEnds},
        role::Role,
    },
    healthscope_core::owner::{Address, LEASE, Member},
    healthscope_e2e_cluster::{Cluster, Component, Options, tell},
    kube::{
        Client, Config,
        config::{KubeConfigOptions, Kubeconfig},
    },
    std::{
        path::Path,
        sync::{
            Arc, LazyLock,
            atomic::{AtomicUsize, Ordering},
        },
        time::{Duration, Instant},
    },
    tokio::{sync::watch, task::JoinHandle, time},
    tokio_util::sync::CancellationToken,
};

/// Within which a replica that was killed is replaced.
const FAILOVER: Duration = Duration::from_secs(15);
/// Within which one that ends in order is replaced: the next look of another, and a request.
const HANDOVER: Duration = Duration::from_secs(3);
/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&Options::control_plane()).unwrap());

struct Replica {
    role: watch::Receiver<Role>,
    address: Option<Address>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

impl Replica {
    async fn start(cluster: &Cluster, namespace: &str, pod: &str) -> Self {
        Self::start_as(&cluster.kubeconfig(), namespace, pod).await
    }

    async fn start_as(kubeconfig: &Path, namespace: &str, pod: &str) -> Self {
        let address = Address::written(&format!("{pod}.aggregator:7575"), "aggregator");
        let (role, roles) = watch::channel(Role::Standby { owner: None });
        let shutdown = CancellationToken::new();
        let ends = LeaseEnds {
            client: client(kubeconfig).await,
            namespace: namespace.to_owned(),
            me: Member {
                identity: lease::identity(pod),
                address: address.clone(),
            },
            role,
        };
        Self {
            role: roles,
            address,
            running: tokio::spawn(lease::run(ends, shutdown.clone())),
            shutdown,
        }
    }

    fn is_owner(&self) -> bool {
        *self.role.borrow() == Role::Owner
    }

    async fn until(&self, limit: Duration, is_wanted: impl Fn(&Role) -> bool) {
        let mut role = self.role.clone();
        let found = time::timeout(limit, role.wait_for(|role| is_wanted(role))).await;
        assert!(
            matches!(found, Ok(Ok(_))),
            "{:?} after {limit:?}",
            self.role.borrow()
        );
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }

    /// As by SIGKILL: no word to anybody.
    fn kill(self) {
        self.running.abort();
    }
}

/// All replicas of a test, looked at all the time.
struct Watched {
    most: Arc<AtomicUsize>,
    looking: JoinHandle<()>,
}

impl Watched {
    fn new(replicas: &[&Replica]) -> Self {
        let roles: Vec<_> = replicas.iter().map(|replica| replica.role.clone()).collect();
        let most = Arc::new(AtomicUsize::new(0));
        let seen = most.clone();
        let looking = tokio::spawn(async move {
            loop {
                // A role whose task is gone is that of a dead process.
                let is_owner = |role: &&watch::Receiver<Role>| {
                    role.has_changed().is_ok() && *role.borrow() == Role::Owner
                };
                seen.fetch_max(roles.iter().filter(is_owner).count(), Ordering::Relaxed);
                time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { most, looking }
    }

    fn never_two_owners(&self) {
        assert!(!self.looking.is_finished());
        // None was seen where the test was over before the first look.
        let most = self.most.load(Ordering::Relaxed);
        assert!(most <= 1, "{most} owners at once");
        self.looking.abort();
    }
}

/// Waits until one of them is the owner; its place.
async fn owner_among(replicas: &[Replica], limit: Duration) -> usize {
    let start = Instant::now();
    loop {
        if let Some(place) = replicas.iter().position(Replica::is_owner) {
            return place;
        }
        assert!(start.elapsed() < limit, "no owner within {limit:?}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

fn namespace(cluster: &Cluster, name: &str) {
    cluster.kubectl(["create", "namespace", name]).unwrap();
}

/// A field of the Lease.
fn field(cluster: &Cluster, namespace: &str, path: &str) -> String {
    let path = format!("jsonpath={path}");
    cluster
        .kubectl(["get", "lease", LEASE, "-n", namespace, "-o", &path])
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_the_owner_and_the_others_know_where() {
    namespace(&CLUSTER, "three");
    let mut replicas = Vec::new();
    for pod in ["a-0", "a-1", "a-2"] {
        replicas.push(Replica::start(&CLUSTER, "three", pod).await);
    }
    let watched = Watched::new(&replicas.iter().collect::<Vec<_>>());
    let place = owner_among(&replicas, HANDOVER).await;
    let owner = replicas[place].address.clone();
    assert!(owner.is_some());
    for (other, replica) in replicas.iter().enumerate() {
        if other != place {
            replica
                .until(HANDOVER, |role| *role == Role::Standby { owner: owner.clone() })
                .await;
        }
    }
    time::sleep(Duration::from_secs(10)).await;
    assert!(replicas[place].is_owner(), "who is well stays the owner");

    let start = Instant::now();
    replicas.remove(place).kill();
    let place = owner_among(&replicas, FAILOVER).await;
    tell(&format!("failover after a kill took {:.1?}", start.elapsed()));

    let start = Instant::now();
    replicas.remove(place).stop().await;
    let place = owner_among(&replicas, HANDOVER).await;
    tell(&format!("handover in order took {:.1?}", start.elapsed()));
    watched.never_two_owners();

    replicas.remove(place).stop().await;
    assert_eq!(field(&CLUSTER, "three", "{.spec.holderIdentity}"), "");
    assert_eq!(field(&CLUSTER, "three", "{.spec.leaseTransitions}"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_hands_over_each_time() {
    namespace(&CLUSTER, "rolling");
    let mut replicas = Vec::new();
    for pod in ["a-0", "a-1", "a-2"] {
        replicas.push(Replica::start(&CLUSTER, "rolling", pod).await);
    }
    owner_among(&replicas, HANDOVER).await;
    for pod in ["b-0", "b-1", "b-2"] {
        let next = Replica::start(&CLUSTER, "rolling", pod).await;
        // It knows the owner before another is stopped, as its readiness would say.
        next.until(HANDOVER, |role| matches!(role, Role::Standby { owner: Some(_) }))
            .await;
        replicas.push(next);
        let watched = Watched::new(&replicas.iter().collect::<Vec<_>>());
        replicas.remove(0).stop().await;
        owner_among(&replicas, HANDOVER).await;
        watched.never_two_owners();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lease_is_put_back_by_its_holder() {
    namespace(&CLUSTER, "deleted");
    let replicas = [
        Replica::start(&CLUSTER, "deleted", "a-0").await,
        Replica::start(&CLUSTER, "deleted", "a-1").await,
    ];
    let place = owner_among(&replicas, HANDOVER).await;
    replicas[1 - place]
        .until(HANDOVER, |role| matches!(role, Role::Standby { owner: Some(_) }))
        .await;
    let watched = Watched::new(&replicas.iter().collect::<Vec<_>>());
    let holder = field(&CLUSTER, "deleted", "{.spec.holderIdentity}");
    CLUSTER
        .kubectl(["delete", "lease", LEASE, "-n", "deleted"])
        .unwrap();
    time::sleep(Duration::from_secs(12)).await;
    assert_eq!(field(&CLUSTER, "deleted", "{.spec.holderIdentity}"), holder);
    assert!(replicas[place].is_owner());
    watched.never_two_owners();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_in_the_lease_is_waited_for_whatever_its_clock_says() {
    for (name, renewed) in [
        ("behind", "2020-01-01T00:00:00.000000Z"),
        ("ahead", "2099-01-01T00:00:00.000000Z"),
    ] {
        namespace(&CLUSTER, name);
        let replica = Replica::start(&CLUSTER, name, "a-0").await;
        replica.until(HANDOVER, |role| *role == Role::Owner).await;
        let patch = format!(
            r#"{{"metadata":{{"annotations":{{"{}":"http://evil/"}}}},
                "spec":{{"holderIdentity":"stranger","renewTime":"{renewed}"}}}}"#,
            lease::ADDRESS
        );
        // The holder renews meanwhile, and a merge patch does not mind.
        CLUSTER
            .kubectl(["patch", "lease", LEASE, "-n", name, "--type=merge", "-p", &patch])
            .unwrap();
        replica
            .until(HANDOVER, |role| *role == Role::Standby { owner: None })
            .await;
        let start = Instant::now();
        replica.until(FAILOVER, |role| *role == Role::Owner).await;
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(8), "{name}: {waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_name_are_two() {
    namespace(&CLUSTER, "namesakes");
    let mut replicas = vec![
        Replica::start(&CLUSTER, "namesakes", "a-0").await,
        Replica::start(&CLUSTER, "namesakes", "a-0").await,
    ];
    let watched = Watched::new(&replicas.iter().collect::<Vec<_>>());
    let place = owner_among(&replicas, HANDOVER).await;
    time::sleep(Duration::from_secs(5)).await;
    assert!(replicas[place].is_owner() && !replicas[1 - place].is_owner());
    replicas.remove(place).kill();
    owner_among(&replicas, FAILOVER).await;
    watched.never_two_owners();
}

#[tokio::test(flavor = "multi_thread")]
async fn these_permissions_are_enough_and_are_waited_for() {
    namespace(&CLUSTER, "permitted");
    let kubeconfig = CLUSTER.kubeconfig_for("aggregator", None).unwrap();
    let replica = Replica::start_as(&kubeconfig, "permitted", "a-0").await;
    time::sleep(Duration::from_secs(2)).await;
    assert!(!replica.is_owner());
    CLUSTER
        .apply(&format!(
            "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: lease, namespace: permitted}}
rules:
- {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}}
- {{apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [{LEASE}], verbs: [get, update]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: lease, namespace: permitted}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: lease}}
subjects: [{{kind: User, name: aggregator, apiGroup: rbac.authorization.k8s.io}}]
"
        ))
        .unwrap();
    replica.until(FAILOVER, |role| *role == Role::Owner).await;
    replica.stop().await;
    assert_eq!(field(&CLUSTER, "permitted", "{.spec.holderIdentity}"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_nobody_is_the_owner() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    let replicas = [
        Replica::start(&cluster, "default", "a-0").await,
        Replica::start(&cluster, "default", "a-1").await,
        Replica::start(&cluster, "default", "a-2").await,
    ];
    let watched = Watched::new(&replicas.iter().collect::<Vec<_>>());
    for how in ["killed", "paused"] {
        let place = owner_among(&replicas, FAILOVER).await;
        let start = Instant::now();
        if how == "killed" {
            cluster.kill(Component::ApiServer).unwrap();
        } else {
            cluster.pause(Component::Etcd).unwrap();
        }
        replicas[place]
            .until(Duration::from_secs(7), |role| *role != Role::Owner)
            .await;
        tell(&format!(
            "{how}: not the owner any more after {:.1?}",
            start.elapsed()
        ));
        time::sleep(Duration::from_secs(8)).await;
        assert!(!replicas.iter().any(Replica::is_owner), "nobody can know");
        let start = Instant::now();
        if how == "killed" {
            cluster.start_again(Component::ApiServer).unwrap();
        } else {
            cluster.resume(Component::Etcd).unwrap();
        }
        owner_among(&replicas, PATIENCE).await;
        tell(&format!(
            "{how}: an owner again {:.1?} after the return",
            start.elapsed()
        ));
        time::sleep(Duration::from_secs(4)).await;
        assert_eq!(replicas.iter().filter(|replica| replica.is_owner()).count(), 1);
    }
    watched.never_two_owners();
}
