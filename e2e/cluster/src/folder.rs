//! The folder of a run: everything it writes, and a record of what it started.
//!
//! The owner holds a lock on a file in it for as long as it lives, so that whether a run is over is never a guess. The
//! next run, or [`sweep`], takes away what a killed one left.

use {
    crate::{cgroup, lookup::wait_for, process::Identity, tell::tell},
    anyhow::{Context, bail},
    serde::{Deserialize, Serialize},
    std::{
        collections::BTreeSet,
        env,
        fs::{self, File},
        net::{Ipv4Addr, TcpListener},
        path::{Path, PathBuf},
        process,
        sync::{Mutex, PoisonError},
        time::Duration,
    },
};

/// What the folders' names begin with.
const PREFIX: &str = "healthscope-cluster-";

/// Held by the owner of the folder.
const LOCK: &str = "lock";

const RECORD: &str = "run.json";

/// Ports that API servers on the machine's loopback listen on: below those that the kernel gives out by itself, so that
/// none is taken by a connection between choosing and listening.
const PORTS: std::ops::Range<u16> = 21_000..22_000;

/// How long killed processes may take to vanish: the kernel takes apart their name spaces and mounts.
pub(crate) const VANISHING: Duration = Duration::from_secs(20);

/// What a run started, for whoever must take it away, and for the developer's commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Set when a developer keeps it running.
    pub(crate) name: Option<String>,
    pub(crate) owner: Identity,
    /// On the machine's loopback; not used in a network of its own.
    pub(crate) port: u16,
    pub(crate) processes: Vec<Recorded>,
    /// The cgroup's name below each hierarchy.
    pub(crate) cgroup: Option<String>,
    /// What to tell about the run, from the moment that it is ready.
    pub(crate) ready: Option<Ready>,
}

/// A process that the run started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) component: String,
    pub(crate) process: Identity,
}

/// How to use a cluster that a developer keeps running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) version: String,
    pub(crate) node: bool,
    pub(crate) kubectl: PathBuf,
    /// The process that holds the network; `None` on the machine's loopback.
    pub(crate) sandbox: Option<u32>,
    pub(crate) seconds: f64,
}

/// The folder of a run that this process owns.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    record: Mutex<Record>,
    /// Locked while this exists.
    _lock: File,
}

impl Folder {
    /// Makes a folder, after taking away those of runs that are over.
    pub(crate) fn create(name: Option<&str>) -> anyhow::Result<Self> {
        let parent = env::temp_dir();
        let gate = lock_gate(&parent)?;
        sweep_below(&parent);
        let others = runs_below(&parent);
        if let Some(name) = name
            && let Some(other) = others
                .iter()
                .find(|other| other.record.name.as_deref() == Some(name))
        {
            bail!(
                "a cluster {name:?} is already running in {}",
                other.folder.display()
            );
        }
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?
            .keep();
        let lock_file = path.join(LOCK);
        let lock =
            File::create(&lock_file).with_context(|| format!("cannot make {}", lock_file.display()))?;
        lock.try_lock()
            .with_context(|| format!("cannot lock {}", lock_file.display()))?;
        let taken: BTreeSet<u16> = others.iter().map(|other| other.record.port).collect();
        let record = Record {
            name: name.map(str::to_owned),
            owner: Identity::of(process::id()).context("cannot find this process in /proc")?,
            port: free_port(&taken)?,
            processes: Vec::new(),
            cgroup: None,
            ready: None,
        };
        let folder = Self {
            path,
            record: Mutex::new(record),
            _lock: lock,
        };
        folder.change(|_| {})?;
        drop(gate);
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A name that no other run has.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().expect("the folder was made with a name");
        name.to_string_lossy().into_owned()
    }

    pub(crate) fn port(&self) -> u16 {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).port
    }

    /// Changes the record, and the file with it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        let text = serde_json::to_vec_pretty(&*record).context("cannot write the record")?;
        let file = self.path.join(RECORD);
        let unfinished = self.path.join(".run.json");
        // Whoever reads it sees the old or the new one.
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Takes away what the run left; its processes must have been stopped.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        clean(&self.path, &record)
    }
}

/// A run of this user, as found in its folder.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) folder: PathBuf,
    pub(crate) record: Record,
}

/// The runs whose owners live.
pub(crate) fn runs() -> Vec<Run> {
    runs_below(&env::temp_dir())
}

/// Takes away what killed runs of this user left behind: processes, cgroups and folders. Runs that go on are not
/// touched. Says on standard error what it could not take away.
pub fn sweep() -> anyhow::Result<()> {
    let parent = env::temp_dir();
    let _gate = lock_gate(&parent)?;
    sweep_below(&parent);
    Ok(())
}

/// Folders are made and taken away by one process at a time.
fn lock_gate(parent: &Path) -> anyhow::Result<File> {
    let user = rustix::process::getuid().as_raw();
    let path = parent.join(format!("{PREFIX}{user}.lock"));
    let gate = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    gate.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(gate)
}

fn folders_below(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with(PREFIX)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
        })
        .map(|entry| entry.path())
        .collect()
}

fn is_owned(folder: &Path) -> bool {
    // Without the file it was not finished, or another user's, whose files we may not open.
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

fn read_record(folder: &Path) -> Option<Record> {
    let text = fs::read(folder.join(RECORD)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn runs_below(parent: &Path) -> Vec<Run> {
    folders_below(parent)
        .into_iter()
        .filter(|folder| is_owned(folder))
        .filter_map(|folder| {
            let record = read_record(&folder)?;
            Some(Run { folder, record })
        })
        .collect()
}

fn sweep_below(parent: &Path) {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::getuid().as_raw();
    for folder in folders_below(parent) {
        let is_ours = fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.uid() == user);
        if !is_ours || is_owned(&folder) {
            continue;
        }
        let cleaned = match read_record(&folder) {
            Some(record) => clean(&folder, &record),
            // Nothing had been started yet.
            None => remove_folder(&folder),
        };
        if let Err(error) = cleaned {
            // It stops nobody.
            tell(&format!("cannot take away {}: {error:#}", folder.display()));
        }
    }
}

fn clean(folder: &Path, record: &Record) -> anyhow::Result<()> {
    for recorded in &record.processes {
        recorded.process.kill();
    }
    wait_for("the run's processes to end", VANISHING, || {
        let alive: Vec<&str> = record
            .processes
            .iter()
            .filter(|recorded| recorded.process.is_alive())
            .map(|recorded| recorded.component.as_str())
            .collect();
        if alive.is_empty() {
            Ok(Some(()))
        } else {
            bail!("still there: {}", alive.join(", "))
        }
    })?;
    if let Some(cgroup) = &record.cgroup {
        cgroup::remove(cgroup)?;
    }
    remove_folder(folder)
}

/// Deletes the folder, unless something is mounted in it, which would be deleted too.
fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let below = format!("{}/", folder.display());
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|target| target.starts_with(&below));
    if let Some(target) = mounted {
        bail!("{target} is still mounted; unmount it, then delete the folder");
    }
    fs::remove_dir_all(folder).with_context(|| format!("cannot delete {}", folder.display()))
}

fn free_port(taken: &BTreeSet<u16>) -> anyhow::Result<u16> {
    PORTS
        .filter(|port| !taken.contains(port))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .with_context(|| format!("no port from {} to {} is free", PORTS.start, PORTS.end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: Identity) -> Record {
        Record {
            name: None,
            owner,
            port: 21_000,
            processes: Vec::new(),
            cgroup: None,
            ready: None,
        }
    }

    fn write(parent: &Path, name: &str, record: &Record) -> PathBuf {
        let folder = parent.join(format!("{PREFIX}{name}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(LOCK), "").unwrap();
        fs::write(folder.join(RECORD), serde_json::to_vec(record).unwrap()).unwrap();
        folder
    }

    #[test]
    fn a_run_that_is_over_is_taken_away_with_its_processes() {
        let parent = tempfile::tempdir().unwrap();
        let mut child = process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut over = record(Identity::of(process::id()).unwrap());
        over.processes.push(Recorded {
            component: "sleep".to_owned(),
            process: Identity::of(child.id()).unwrap(),
        });
        let folder = write(parent.path(), "over", &over);
        sweep_below(parent.path());
        assert!(!folder.exists());
        assert!(!child.wait().unwrap().success(), "killed");
    }

    #[test]
    fn a_run_that_goes_on_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = write(
            parent.path(),
            "alive",
            &record(Identity::of(process::id()).unwrap()),
        );
        let lock = File::open(folder.join(LOCK)).unwrap();
        lock.lock().unwrap();
        sweep_below(parent.path());
        assert_eq!(runs_below(parent.path()).len(), 1);
        // Not by closing it: a child that another test is just starting may have it still.
        lock.unlock().unwrap();
        assert_eq!(runs_below(parent.path()).len(), 0);
        sweep_below(parent.path());
        assert!(!folder.exists());
    }

    #[test]
    fn a_process_that_only_has_the_id_of_a_recorded_one_is_not_killed() {
        let parent = tempfile::tempdir().unwrap();
        let mut child = process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut over = record(Identity::of(process::id()).unwrap());
        let text = format!(r#"{{"id":{},"start":1}}"#, child.id());
        over.processes.push(Recorded {
            component: "sleep".to_owned(),
            process: serde_json::from_str(&text).unwrap(),
        });
        let folder = write(parent.path(), "reused", &over);
        sweep_below(parent.path());
        assert!(!folder.exists());
        assert!(child.try_wait().unwrap().is_none(), "still running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_folder_without_a_record_is_taken_away() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(format!("{PREFIX}unfinished"));
        fs::create_dir(&folder).unwrap();
        let other = parent.path().join("something-else");
        fs::create_dir(&other).unwrap();
        sweep_below(parent.path());
        assert!(!folder.exists() && other.exists());
    }

    #[test]
    fn a_port_of_another_run_is_not_chosen() {
        let first = free_port(&BTreeSet::new()).unwrap();
        let second = free_port(&BTreeSet::from([first])).unwrap();
        assert_ne!(first, second);
    }
}
