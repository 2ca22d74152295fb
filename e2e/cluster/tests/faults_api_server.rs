//! An API server that is away, slow, cut off, too busy, or has forgotten what it was asked: the aggregator's own program
//! writes nothing false meanwhile, is right soon afterwards, and writes nothing that it need not.
//!
//! Two clusters side by side; the tests of each take turns, because an aggregator writes every scope there is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/faults.rs"]
mod faults;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        faults::{World, counts, scopes, until, within},
        support::Setup,
    },
    healthscope_e2e_cluster::{Audit, Cluster, Component, Options, spawn},
    serde_json::json,
    std::{
        fs,
        io::{self, BufRead, BufReader, Read, Write},
        net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
        os::unix::net::UnixStream,
        process::{Child, Command, Stdio},
        sync::{
            Arc, LazyLock,
            atomic::{AtomicBool, AtomicU64, Ordering},
            mpsc,
        },
        thread,
        time::{Duration, Instant},
    },
};

/// Within which a status is right after the API server can be reached again: a new owner may have to wait for the old
/// one's Lease (nine seconds), watches try again at least every few seconds, and this machine has other work.
const RECOVERY: Duration = Duration::from_secs(25);

/// The API server's second address in the cluster's network, which its certificate has, too: what is cut off there cuts
/// off nobody else.
const SECOND_ADDRESS: &str = "10.96.0.1";

/// Seconds for which an API server that is too busy wants to be left alone.
const RETRY_AFTER: u64 = 3;

/// On this machine's loopback.
static PLAIN: LazyLock<World> = LazyLock::new(|| {
    World::new(
        Cluster::start(&Options {
            audit: Some(Audit::Request),
            ..Options::control_plane()
        })
        .unwrap(),
    )
});

/// In a network of its own, in which connections can be cut.
static APART: LazyLock<World> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options {
        audit: Some(Audit::Request),
        own_network: true,
        ..Options::control_plane()
    })
    .unwrap();
    inside(
        &cluster,
        "ip",
        &["address", "add", &format!("{SECOND_ADDRESS}/32"), "dev", "lo"],
    );
    World::new(cluster)
});

/// Runs a program in the cluster's network.
#[track_caller]
fn inside(cluster: &Cluster, program: &str, arguments: &[&str]) {
    let output = cluster.command(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn an_api_server_that_was_killed_finds_everything_right_when_it_is_back() {
    let world = &*PLAIN;
    let _turn = world.turn();
    world.shop("killed");
    let aggregator = world.aggregator("killed");
    aggregator.until_health("killed", "shop", "Healthy");
    world.set_ready("killed", "db", false);
    aggregator.until_health("killed", "shop", "Unhealthy");
    // What the watches know is older than anything that the API server remembers when it is back: 410.
    for number in 0..20 {
        let name = format!("later-{number}");
        world.create(
            "/api/v1/namespaces/killed/configmaps",
            &json!({"metadata": {"name": name}}),
        );
    }
    let lists = || {
        let asked = world.requests("aggregator-killed").into_iter();
        asked
            .filter(|asked| asked.verb() == "list" && asked.code() == 200)
            .count()
    };
    let before = lists();

    world.cluster.kill(Component::ApiServer).unwrap();
    // Longer than the owner may lead without a word from the API server.
    thread::sleep(Duration::from_secs(8));
    world.cluster.start_again(Component::ApiServer).unwrap();
    until("the Deployment's status to be taken", || {
        world.try_set_ready("killed", "db", true).is_ok()
    });
    let took = world.until_health(&aggregator, "killed", "shop", "Healthy");
    within(RECOVERY, "right after the API server was killed", took);
    assert!(lists() > before, "what had expired was listed anew");

    // Nothing comes after.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(
        world.healths("killed", "shop"),
        ["Healthy", "Unhealthy", "Healthy"]
    );
    world.delete(&format!("{}/shop", scopes("killed")));
}

#[test]
fn twenty_seconds_without_etcd_change_nothing() {
    let world = &*PLAIN;
    let _turn = world.turn();
    world.shop("paused");
    let aggregator = world.aggregator("paused");
    aggregator.until_health("paused", "shop", "Healthy");
    world.set_ready("paused", "web", false);
    aggregator.until_health("paused", "shop", "Unhealthy");

    world.cluster.pause(Component::Etcd).unwrap();
    thread::sleep(Duration::from_secs(20));
    world.cluster.resume(Component::Etcd).unwrap();
    let took = world.until_health(&aggregator, "paused", "shop", "Unhealthy");
    until("the Deployment's status to be taken", || {
        world.try_set_ready("paused", "web", true).is_ok()
    });
    let took = took + world.until_health(&aggregator, "paused", "shop", "Healthy");
    within(RECOVERY, "right after etcd was paused", took);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(
        world.healths("paused", "shop"),
        ["Healthy", "Unhealthy", "Healthy"],
        "{:?}",
        counts(&world.writes("aggregator-paused"))
    );
    world.delete(&format!("{}/shop", scopes("paused")));
}

#[test]
fn an_api_server_that_is_too_busy_is_left_alone() {
    let world = &*PLAIN;
    let _turn = world.turn();
    world.shop("busy");
    let gate = Gate::open(world);
    let kubeconfig = world.cluster.folder().join("kubeconfig-busy");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "gate", "users": [],
        "clusters": [{"name": "gate", "cluster": {"server": format!("http://{}", gate.address)}}],
        "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": ""}}],
    });
    fs::write(&kubeconfig, text.to_string()).unwrap();
    let setup = Setup {
        kubeconfig: Some(kubeconfig),
        ..Setup::default()
    };
    let aggregator = world.launch("aggregator-busy", "busy", setup);
    aggregator.wait_ready();
    aggregator.until_health("busy", "shop", "Healthy");

    gate.refuse(true);
    let start = Instant::now();
    world.set_ready("busy", "db", false);
    until("a write to be refused", || gate.refused() > 0);
    // More changes while writes are refused: they become one write.
    for number in 0..5 {
        world.set_ready("busy", "web", number % 2 == 1);
        thread::sleep(Duration::from_millis(1_500));
    }
    let (refused, most) = (gate.refused(), 1 + start.elapsed().as_secs() / RETRY_AFTER);
    assert!(refused <= most, "{refused} tries, where {most} were allowed");
    assert_eq!(world.healths("busy", "shop"), ["Healthy"]);
    gate.refuse(false);
    let took = world.until_health(&aggregator, "busy", "shop", "Unhealthy");
    within(RECOVERY, "right after the API server was too busy", took);
    aggregator.until_component("busy", "shop", "web", "Unhealthy", &[]);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(world.healths("busy", "shop"), ["Healthy", "Unhealthy"]);
    world.delete(&format!("{}/shop", scopes("busy")));
}

#[test]
fn a_black_hole_hides_a_change_no_longer_than_it_lasts() {
    let world = &*APART;
    let cluster = &world.cluster;
    let _turn = world.turn();
    world.shop("hole");
    let server = format!("https://{SECOND_ADDRESS}:6443");
    let setup = Setup {
        kubeconfig: Some(world.kubeconfig_by("aggregator-hole", &server)),
        is_inside: true,
        arguments: vec!["--allow-plaintext".to_owned()],
        ..Setup::default()
    };
    let aggregator = world.launch("aggregator-hole", "hole", setup);
    aggregator.wait_ready();
    aggregator.until_health("hole", "shop", "Healthy");

    let begun = Instant::now();
    inside(
        cluster,
        "nft",
        &[&format!(
            "table ip hole {{ chain in {{ type filter hook input priority 0; \
             ip daddr {SECOND_ADDRESS} tcp dport 6443 drop; ip saddr {SECOND_ADDRESS} tcp sport 6443 drop; }}; }}"
        )],
    );
    world.set_ready("hole", "db", false);
    // Long enough that the watches give up on their connections, which nobody closes.
    thread::sleep(Duration::from_secs(45).saturating_sub(begun.elapsed()));
    assert_eq!(world.healths("hole", "shop"), ["Healthy"]);
    inside(cluster, "nft", &["delete table ip hole"]);
    let took = world.until_health(&aggregator, "hole", "shop", "Unhealthy");
    within(RECOVERY, "right after a black hole", took);
    world.set_ready("hole", "db", true);
    let took = world.until_health(&aggregator, "hole", "shop", "Healthy");
    within(RECOVERY, "the next change", took);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(world.healths("hole", "shop"), ["Healthy", "Unhealthy", "Healthy"]);
    world.delete(&format!("{}/shop", scopes("hole")));
}

#[test]
fn a_slow_api_server_delays_and_an_unbearably_slow_one_silences() {
    let world = &*APART;
    let _turn = world.turn();
    world.shop("slow");
    let server = world.cluster.server();
    let line = LongLine::open(server.strip_prefix("https://").unwrap().parse().unwrap());
    let server = format!("https://{}", line.address);
    let setup = Setup {
        kubeconfig: Some(world.kubeconfig_by("aggregator-slow", &server)),
        ..Setup::default()
    };
    let aggregator = world.launch("aggregator-slow", "slow", setup);
    aggregator.wait_ready();
    aggregator.until_health("slow", "shop", "Healthy");

    line.delay(Duration::from_millis(200));
    world.set_ready("slow", "db", false);
    let took = world.until_health(&aggregator, "slow", "shop", "Unhealthy");
    within(RECOVERY, "a change over a line with 0.2 s each way", took);

    // No request is answered within its time: the Lease cannot be renewed.
    line.delay(Duration::from_secs(4));
    until("the aggregator to say that it is not the owner", || {
        aggregator.log().contains("not the owner any more")
    });
    world.set_ready("slow", "db", true);
    thread::sleep(Duration::from_secs(8));
    assert_eq!(world.healths("slow", "shop"), ["Healthy", "Unhealthy"]);
    line.delay(Duration::ZERO);
    let took = world.until_health(&aggregator, "slow", "shop", "Healthy");
    within(RECOVERY, "right after a line with 4 s each way", took);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(world.healths("slow", "shop"), ["Healthy", "Unhealthy", "Healthy"]);
    world.delete(&format!("{}/shop", scopes("slow")));
}

/// Watches end every half minute. What bookmarks told of what else changed lets each go on where the former ended.
#[test]
fn watches_of_what_does_not_change_go_on_without_listing() {
    let world = &*APART;
    let _turn = world.turn();
    world.shop("quiet");
    let aggregator = world.aggregator("quiet");
    aggregator.until_health("quiet", "shop", "Healthy");
    let of = |verb: &str| {
        let asked = world.requests("aggregator-quiet").into_iter();
        asked
            .filter(|asked| asked.verb() == verb && asked.resource() == "deployments")
            .count()
    };
    let begun = Instant::now();
    let (lists, watches) = (of("list"), of("watch"));
    let mut number = 0;
    while begun.elapsed() < Duration::from_secs(35) || of("watch") == watches {
        number += 1;
        let name = format!("other-{number}");
        world.create(
            "/api/v1/namespaces/quiet/configmaps",
            &json!({"metadata": {"name": name}}),
        );
        thread::sleep(Duration::from_millis(250));
        assert!(begun.elapsed() < support::LIMIT, "no watch was begun anew");
    }
    assert_eq!(
        of("list"),
        lists,
        "{:?}",
        counts(&world.requests("aggregator-quiet"))
    );
    world.set_ready("quiet", "db", false);
    aggregator.until_health("quiet", "shop", "Unhealthy");
    assert_eq!(world.healths("quiet", "shop"), ["Healthy", "Unhealthy"]);
    world.delete(&format!("{}/shop", scopes("quiet")));
}

/// A port that leads to the API server, as a user that may do everything; it can answer writes of statuses itself, as an API
/// server does that has too much to do.
///
/// `kubectl proxy` speaks TLS to the API server, so that what goes through here can be read.
struct Gate {
    address: SocketAddr,
    is_refusing: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    proxy: Child,
}

impl Gate {
    /// Its threads end with their connections, and the first one with the program.
    fn open(world: &World) -> Self {
        let user = world
            .cluster
            .kubeconfig_for("aggregator-busy", Some("system:masters"));
        let socket = world.cluster.folder().join("gate");
        let kubectl = world.cluster.kubectl_command();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(kubectl.get_program())
            .arg("proxy")
            .arg(format!("--unix-socket={}", socket.display()))
            .env("KUBECONFIG", user.unwrap())
            .stdout(Stdio::null());
        let mut gate = Self {
            proxy: spawn(command).unwrap(),
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            is_refusing: Arc::default(),
            refused: Arc::default(),
        };
        until("kubectl proxy", || UnixStream::connect(&socket).is_ok());
        let listener = TcpListener::bind(gate.address).unwrap();
        gate.address = listener.local_addr().unwrap();
        let (is_refusing, refused) = (gate.is_refusing.clone(), gate.refused.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), UnixStream::connect(&socket).unwrap());
                let (is_refusing, refused) = (is_refusing.clone(), refused.clone());
                thread::spawn(move || {
                    // A connection that ends ends.
                    let _ = pass(&near, &far, &is_refusing, &refused);
                    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
                });
            }
        });
        gate
    }

    fn refuse(&self, is_refusing: bool) {
        self.is_refusing.store(is_refusing, Ordering::SeqCst);
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = (self.proxy.kill(), self.proxy.wait());
    }
}

/// Passes on what both sides say, request by request; the client waits for each answer before it asks again.
fn pass(near: &TcpStream, far: &UnixStream, is_refusing: &AtomicBool, refused: &AtomicU64) -> io::Result<()> {
    let (mut answers, mut back) = (far.try_clone()?, near.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut requests = BufReader::new(near);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if requests.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, length)| length.trim().parse().unwrap());
        let mut body = vec![0; length];
        requests.read_exact(&mut body)?;
        let is_write =
            head.starts_with("PUT ") && head.contains("/healthscopes/") && head.contains("/status?");
        if is_write && is_refusing.load(Ordering::SeqCst) {
            refused.fetch_add(1, Ordering::SeqCst);
            write!(
                { near },
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {RETRY_AFTER}\r\nContent-Length: 0\r\n\r\n"
            )?;
        } else {
            let mut far = far;
            far.write_all(head.as_bytes())?;
            far.write_all(&body)?;
        }
    }
}

/// A port that leads to another, with as much delay in each direction as is asked for at the moment.
struct LongLine {
    address: SocketAddr,
    delay: Arc<AtomicU64>,
}

impl LongLine {
    /// Its threads end with their connections, and the first one with the program.
    fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let delay = Arc::new(AtomicU64::new(0));
        let line = Self {
            address,
            delay: delay.clone(),
        };
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(target).unwrap());
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let _ = to.set_nodelay(true);
                    carry(from, to, delay.clone());
                }
            }
        });
        line
    }

    fn delay(&self, delay: Duration) {
        self.delay
            .store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

/// Passes on what comes, in its order, each piece as late as it was to be when it came.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Arc<AtomicU64>) {
    let (sender, pieces) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
            if sender.send((due, buffer[..length].to_vec())).is_err() || length == 0 {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
