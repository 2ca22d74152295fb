//! Runs beside each other, and after one that was killed.

use {
    healthscope_e2e_cluster::{Cluster, Options, timed, wait_for},
    serde_json::Value,
    std::{
        env, fs,
        io::{BufRead, BufReader},
        path::{Path, PathBuf},
        process::{Command, Stdio},
        thread,
        time::Duration,
    },
};

const LIMIT: Duration = Duration::from_secs(60);

/// Set in the copy of this program that is to be killed.
const VICTIM: &str = "HEALTHSCOPE_VICTIM";

fn both(options: &Options) -> (Cluster, Cluster) {
    thread::scope(|scope| {
        let first = scope.spawn(|| Cluster::start(options).unwrap());
        let second = Cluster::start(options).unwrap();
        (first.join().unwrap(), second)
    })
}

/// What only one of them has is not in the other.
fn check_apart(first: &Cluster, second: &Cluster) {
    first.kubectl(["create", "namespace", "of-the-first"]).unwrap();
    second.kubectl(["create", "namespace", "of-the-second"]).unwrap();
    first.get("/api/v1/namespaces/of-the-first").unwrap();
    second.get("/api/v1/namespaces/of-the-second").unwrap();
    assert!(first.get("/api/v1/namespaces/of-the-second").is_err());
    assert!(second.get("/api/v1/namespaces/of-the-first").is_err());
    assert_ne!(first.folder(), second.folder());
    assert_ne!(first.server(), second.server());
}

#[test]
fn two_control_planes_do_not_meet() {
    let (first, second) = timed("two control planes at once", || both(&Options::control_plane()));
    check_apart(&first, &second);
    first.stop().unwrap();
    second.get("/version").unwrap();
}

#[test]
fn two_nodes_do_not_meet() {
    let (first, second) = timed("two nodes at once", || both(&Options::node()));
    // The same addresses inside, so they would have met on the machine's network.
    assert_eq!(first.server_inside(), second.server_inside());
    check_apart(&first, &second);
    let folder = first.folder().to_owned();
    timed("stop of a node", || first.stop()).unwrap();
    check_gone(&folder);
    second.get("/api/v1/nodes/node1").unwrap();
}

fn cgroups(folder: &Path) -> Vec<PathBuf> {
    let name = folder.file_name().unwrap();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap();
    hierarchies
        .map(|entry| entry.unwrap().path().join(name))
        .chain([Path::new("/sys/fs/cgroup").join(name)])
        .filter(|cgroup| cgroup.exists())
        .collect()
}

fn check_gone(folder: &Path) {
    assert!(!folder.exists(), "{} is still there", folder.display());
    assert_eq!(cgroups(folder), [] as [PathBuf; 0]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&folder.display().to_string()), "{mounts}");
}

#[test]
fn a_killed_run_ends_its_processes_and_stops_nobody() {
    if env::var_os(VICTIM).is_some() {
        let cluster = Cluster::start(&Options::node()).unwrap();
        println!("folder={}", cluster.folder().display());
        loop {
            thread::park();
        }
    }
    let mut victim = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_run_ends_its_processes_and_stops_nobody",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    let folder = output
        .lines()
        .find_map(|line| {
            line.unwrap()
                .split_once("folder=")
                .map(|(_, path)| PathBuf::from(path))
        })
        .expect("the other process starts a node");
    let record: Value = serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap();
    let processes = record["processes"].as_array().unwrap();
    assert!(processes.len() >= 9, "{record}");
    assert!(!cgroups(&folder).is_empty());

    victim.kill().unwrap();
    victim.wait().unwrap();
    timed("end of the killed run's processes", || {
        wait_for("the processes to end", LIMIT, || {
            let is_alive =
                |process: &Value| Path::new(&format!("/proc/{}", process["process"]["id"])).exists();
            Ok((!processes.iter().any(is_alive)).then_some(()))
        })
    })
    .unwrap();
    assert!(folder.exists(), "nobody has taken it away yet");

    let next = Cluster::start(&Options::node()).unwrap();
    next.get("/api/v1/nodes/node1").unwrap();
    check_gone(&folder);
}
