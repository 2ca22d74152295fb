//! A cluster that goes on running for a developer: `cargo xtask cluster`.
//!
//! A process in the background holds it. The others find it by its name in the record of its folder.

use {
    crate::{
        binaries::{Binaries, Program},
        cluster::{Cluster, Options},
        component::Component,
        folder::{self, Run},
        lookup::wait_for,
        prerequisite, process,
        version::Version,
    },
    anyhow::{Context, anyhow, bail},
    std::{
        env,
        fs::File,
        io::{Read, Write},
        os::unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
        process::{Command, Stdio},
        time::Duration,
    },
};

/// The cluster's name when none is given.
pub const NAME: &str = "dev";

/// The socket in a run's folder on which the holder hears that it is to stop.
const CONTROL: &str = "control.sock";

/// How long a start in the background may take: as many steps as there are, and no build.
const START: Duration = Duration::from_secs(600);

/// Starts a cluster in the background and returns what to tell about it. One of that name that runs already is left as
/// it is.
///
/// `hold` is a command that calls [`hold`] with the same options.
pub fn up(options: &Options, hold: &mut Command) -> anyhow::Result<String> {
    let name = options.name.as_deref().unwrap_or(NAME);
    if let Some(run) = find(name) {
        return Ok(format!(
            "already running; it was left as it is\n{}",
            describe(&run)?
        ));
    }
    // Here rather than in the background, where nobody sees how far it is.
    prerequisite::check(&options.packages())?;
    Binaries::ensure(options.programs(), options.version)?;
    let user = rustix::process::getuid().as_raw();
    let log_file = env::temp_dir().join(format!("healthscope-cluster-{user}-{name}.log"));
    let log = File::create(&log_file).with_context(|| format!("cannot write {}", log_file.display()))?;
    let mut holder = hold
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A key that ends this command does not end the cluster.
        .process_group(0)
        .spawn()
        .context("cannot start the holder of the cluster")?;
    let found = wait_for("the cluster", START, || {
        if let Some(status) = holder.try_wait().context("cannot wait for the holder")? {
            let tail = process::tail(&log_file);
            return Ok(Some(Err(anyhow!("the cluster did not start: {status}\n{tail}"))));
        }
        let is_ready = |run: &Run| run.record.ready.is_some();
        Ok(find(name).filter(is_ready).map(Ok))
    })?;
    describe(&found?)
}

/// Starts a cluster and holds it until [`down`] says so.
pub fn hold(options: &Options) -> anyhow::Result<()> {
    // Without a terminal, closing one ends nothing. It fails for who has none already, which is as good.
    let _ = rustix::process::setsid();
    let name = options.name.clone().unwrap_or_else(|| NAME.to_owned());
    let options = Options {
        name: Some(name),
        ..options.clone()
    };
    let cluster = Cluster::start(&options)?;
    let path = cluster.folder().join(CONTROL);
    let control =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // One word is enough: there is nothing else to say.
    let (mut asker, _) = control
        .accept()
        .with_context(|| format!("cannot accept on {}", path.display()))?;
    let stopped = cluster.stop();
    let answer = match &stopped {
        Ok(()) => String::new(),
        Err(error) => format!("{error:#}"),
    };
    // Who asked may have gone; the cluster has stopped all the same.
    let _ = asker.write_all(answer.as_bytes());
    stopped
}

/// Stops the cluster of that name.
pub fn down(name: &str) -> anyhow::Result<()> {
    let run = find(name).with_context(|| none(name))?;
    stop(&run)
}

/// Stops every cluster that a developer started, and takes away what killed runs left. Returns their names.
pub fn down_all() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for run in folder::runs() {
        if let Some(name) = run.record.name.clone() {
            stop(&run)?;
            names.push(name);
        }
    }
    folder::sweep()?;
    Ok(names)
}

fn stop(run: &Run) -> anyhow::Result<()> {
    let path = run.folder.join(CONTROL);
    match UnixStream::connect(&path) {
        Ok(mut holder) => {
            let mut complaint = String::new();
            holder
                .read_to_string(&mut complaint)
                .with_context(|| format!("no answer on {}", path.display()))?;
            if !complaint.is_empty() {
                bail!("the cluster did not stop cleanly: {complaint}");
            }
        }
        // It is only starting, or hangs.
        Err(_) => run.record.owner.kill(),
    }
    wait_for("the holder to end", Duration::from_secs(30), || {
        Ok((!run.record.owner.is_alive()).then_some(()))
    })?;
    folder::sweep()
}

/// kubectl as the administrator of the cluster of that name.
pub fn kubectl(name: &str) -> anyhow::Result<Command> {
    let run = find(name).with_context(|| none(name))?;
    let ready = run
        .record
        .ready
        .with_context(|| format!("the cluster {name:?} is not ready yet"))?;
    let mut command = Command::new(ready.kubectl);
    command.env("KUBECONFIG", run.folder.join("kubeconfig"));
    Ok(command)
}

/// Helm, as the administrator of the cluster of that name when there is one: charts are rendered without. Built first when
/// it is missing.
pub fn helm(name: &str) -> anyhow::Result<Command> {
    let binaries = Binaries::ensure(&[Program::Helm], Version::NEWEST)?;
    let mut command = Command::new(binaries.path(Program::Helm));
    if let Some(run) = find(name) {
        command.env("KUBECONFIG", run.folder.join("kubeconfig"));
    }
    Ok(command)
}

/// A command that prints the log of a component of the cluster of that name, and goes on with what is added when it is
/// to be followed.
pub fn log(name: &str, component: Component, follow: bool) -> anyhow::Result<Command> {
    let run = find(name).with_context(|| none(name))?;
    let path = run.folder.join(component.log_file());
    if !path.exists() {
        let all = Component::ALL.into_iter();
        let there: Vec<String> = all
            .filter(|other| run.folder.join(other.log_file()).exists())
            .map(|other| other.to_string())
            .collect();
        bail!(
            "the cluster {name:?} has no {component}; it has {}",
            there.join(", ")
        );
    }
    let mut command = Command::new("tail");
    command.args(["-n", "+1"]);
    if follow {
        command.arg("-F");
    }
    command.arg(path);
    Ok(command)
}

fn find(name: &str) -> Option<Run> {
    folder::runs()
        .into_iter()
        .find(|run| run.record.name.as_deref() == Some(name))
}

fn none(name: &str) -> String {
    format!("no cluster {name:?} is running; start one with `cargo xtask cluster up`")
}

fn describe(run: &Run) -> anyhow::Result<String> {
    let ready = run
        .record
        .ready
        .as_ref()
        .context("the cluster is not ready yet")?;
    let what = if ready.node {
        "with a node"
    } else {
        "control plane only"
    };
    let mut lines = vec![
        format!(
            "Kubernetes {}, {what}, started in {:.1} s",
            ready.version, ready.seconds
        ),
        format!("  export KUBECONFIG={}", run.folder.join("kubeconfig").display()),
    ];
    if let Some(sandbox) = ready.sandbox {
        lines.push(format!(
            "  nsenter --net=/proc/{sandbox}/ns/net COMMAND    # in its network, with {}",
            run.folder.join("kubeconfig-inside").display()
        ));
    }
    Ok(lines.join("\n"))
}
