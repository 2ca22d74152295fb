//! Components as processes: started with a log each, ended by the id that was recorded at the start.
//!
//! A component dies with the process that started it, however that one ends. No component is looked for by name.

use {
    crate::component::Component,
    anyhow::{Context, anyhow},
    rustix::process::{Pid, Signal, kill_process},
    serde::{Deserialize, Serialize},
    std::{
        ffi::OsString,
        fs::{self, OpenOptions},
        io::{self, Read, Seek, SeekFrom},
        path::{Path, PathBuf},
        process::{Child, Command, ExitStatus, Stdio},
        sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
        thread,
    },
};

/// Where Debian keeps programs, whatever the user's own PATH is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lines of a log that an error shows: the cause is mostly among the last few.
const TAIL_LINES: usize = 25;

/// How far from a log's end to look for those lines.
const TAIL_BYTES: u64 = 16 << 10;

/// A process that can be found again, and not be mistaken for a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: u32,
    /// In the kernel's ticks since the machine started.
    start: u64,
}

impl Identity {
    /// The process with this id now; `None` when there is none, or only its remains.
    pub(crate) fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name in parentheses may contain anything, so count from its end.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let is_dead = matches!(fields.next()?, "Z" | "X");
        let start = fields.nth(18)?.parse().ok()?;
        (!is_dead).then_some(Self { id, start })
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.id) == Some(self)
    }

    /// Kills exactly this process; nothing happens when it has ended.
    pub(crate) fn kill(self) {
        if self.is_alive() {
            signal(self.id, Signal::KILL);
        }
    }
}

/// Where a component runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Among the machine's own processes, in its network.
    Machine,
    /// In the network of the sandbox that this process holds.
    Network(u32),
    /// In the network, among the processes and with the mounts of the sandbox that this process holds.
    Node(u32),
}

impl Place {
    /// The words before a command that is to run there.
    pub(crate) fn prefix(self) -> Vec<OsString> {
        let name_space =
            |flag: &str, id: u32, kind: &str| OsString::from(format!("--{flag}=/proc/{id}/ns/{kind}"));
        match self {
            Self::Machine => Vec::new(),
            Self::Network(id) => vec!["nsenter".into(), name_space("net", id, "net"), "--".into()],
            Self::Node(id) => vec![
                "nsenter".into(),
                name_space("net", id, "net"),
                name_space("mount", id, "mnt"),
                name_space("pid", id, "pid_for_children"),
                "--".into(),
            ],
        }
    }

    /// A command that runs there.
    pub(crate) fn command(self, program: impl Into<OsString>) -> Command {
        let mut words = self.prefix();
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

/// What to start, so that it can be started again.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) component: Component,
    pub(crate) place: Place,
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) folder: PathBuf,
}

/// A component that was started; it may have been stopped since.
#[derive(Debug)]
pub(crate) struct Process {
    plan: Plan,
    child: Mutex<Option<Child>>,
}

impl Process {
    pub(crate) fn start(plan: Plan) -> anyhow::Result<Self> {
        let process = Self {
            plan,
            child: Mutex::new(None),
        };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it with the same arguments, unless it runs.
    pub(crate) fn start_again(&self) -> anyhow::Result<()> {
        let mut child = self.lock();
        if child.is_none() {
            let started =
                spawn(self.command()?).with_context(|| format!("cannot start {}", self.component()))?;
            *child = Some(started);
        }
        Ok(())
    }

    pub(crate) fn component(&self) -> Component {
        self.plan.component
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.plan.folder.join(self.plan.component.log_file())
    }

    /// The id of the process that was started; with a [`Place::Node`] the component itself is its only child.
    pub(crate) fn id(&self) -> Option<u32> {
        self.lock().as_ref().map(Child::id)
    }

    /// How it ended by itself; `None` while it runs, or when it was killed with [`Process::kill`].
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.lock();
        // An error here means that somebody else waited for our child, which nobody does.
        child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = self.lock();
        if let Some(mut process) = child.take() {
            for id in with_children(process.id()) {
                signal(id, Signal::KILL);
            }
            // Killed, so this ends; and only an ended process could make it fail.
            let _ = process.wait();
        }
    }

    /// Sends a signal to the component.
    pub(crate) fn signal(&self, wanted: Signal) -> anyhow::Result<()> {
        let child = self.lock();
        let process = child
            .as_ref()
            .ok_or_else(|| anyhow!("{} is not running", self.component()))?;
        for id in with_children(process.id()) {
            signal(id, wanted);
        }
        Ok(())
    }

    /// The component's name and how its log ends.
    pub(crate) fn tail(&self) -> String {
        format!("the end of {}:\n{}", self.log().display(), tail(&self.log()))
    }

    fn command(&self) -> anyhow::Result<Command> {
        let Plan {
            component: _,
            place,
            program,
            arguments,
            folder,
        } = &self.plan;
        let path = self.log();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(place.prefix())
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            // Nothing of the developer's shell: a proxy setting would lead the components astray.
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The process and, before it, its children: `nsenter` and the component that it entered the name space with.
fn with_children(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .chain([id])
        .collect()
}

fn signal(id: u32, signal: Signal) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    if let Some(id) = id {
        // It may have ended a moment ago.
        let _ = kill_process(id, signal);
    }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("(cannot be read: {error})"),
    }
}

/// Starts a process from a thread that lives as long as this program, so that `setpriv --pdeathsig` ends it with the
/// program.
///
/// The kernel's death signal comes when the *thread* that started a child ends. A test's thread ends before others have
/// finished with the cluster it started.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Full means that somebody waits, for one process, for the other ones before it.
        let (sender, receiver) = mpsc::sync_channel::<Request>(1);
        thread::Builder::new()
            .name("cluster-spawner".to_owned())
            .spawn(move || {
                while let Ok((mut command, reply)) = receiver.recv() {
                    // Who asked waits for the reply.
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a thread can be started before anything else runs");
        sender
    });
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    let (reply, answer) = mpsc::sync_channel(1);
    spawner
        .send((command, reply))
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    answer.recv().map_err(gone)?
}

#[cfg(test)]
mod tests {
    use {super::*, crate::lookup::wait_for, std::time::Duration};

    fn plan(folder: &Path, script: &str) -> Plan {
        Plan {
            component: Component::Etcd,
            place: Place::Machine,
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            folder: folder.to_owned(),
        }
    }

    fn state(id: u32) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    #[test]
    fn a_killed_component_is_gone_and_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(plan(folder.path(), "exec sleep 1000")).unwrap();
        let first = Identity::of(process.id().unwrap()).unwrap();
        process.kill();
        assert!(!first.is_alive());
        assert_eq!(process.ended(), None, "killed on purpose");
        process.start_again().unwrap();
        assert_ne!(process.id(), Some(first.id));
    }

    #[test]
    fn an_end_by_itself_is_seen_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(plan(folder.path(), "echo no luck; exit 7")).unwrap();
        let status = wait_for("the end", Duration::from_secs(10), || Ok(process.ended())).unwrap();
        assert_eq!(status.code(), Some(7));
        assert!(process.tail().ends_with("no luck"), "{}", process.tail());
    }

    #[test]
    fn a_component_is_paused_with_its_child() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(plan(folder.path(), "sleep 1000 & wait")).unwrap();
        let all = wait_for("the child", Duration::from_secs(10), || {
            let all = with_children(process.id().unwrap());
            Ok((all.len() == 2).then_some(all))
        })
        .unwrap();
        let all_are = |wanted: char| {
            let all = &all;
            move || Ok(all.iter().all(|id| state(*id) == Some(wanted)).then_some(()))
        };
        process.signal(Signal::STOP).unwrap();
        wait_for("both stopped", Duration::from_secs(10), all_are('T')).unwrap();
        process.signal(Signal::CONT).unwrap();
        wait_for("both sleeping", Duration::from_secs(10), all_are('S')).unwrap();
        process.kill();
        wait_for("both gone", Duration::from_secs(10), || {
            Ok(all.iter().all(|id| Identity::of(*id).is_none()).then_some(()))
        })
        .unwrap();
    }

    #[test]
    fn the_shell_s_settings_do_not_reach_a_component() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(plan(folder.path(), "exec env")).unwrap();
        wait_for("the end", Duration::from_secs(10), || Ok(process.ended())).unwrap();
        let log = fs::read_to_string(process.log()).unwrap();
        assert!(log.contains("HOME=") && !log.contains("CARGO"), "{log}");
    }

    #[test]
    fn the_same_id_later_is_another_process() {
        let ours = Identity::of(std::process::id()).unwrap();
        assert!(ours.is_alive());
        let earlier = Identity {
            start: ours.start - 1,
            ..ours
        };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let lines: Vec<String> = (0..5000).map(|line| format!("line {line}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(tail(&log), lines[5000 - TAIL_LINES..].join("\n"));
        assert!(tail(&folder.path().join("none")).starts_with("(cannot be read"));
    }
}
