//! CPU time of the node's own programs and of one pod, by cgroup: to the nanosecond, and none of it counted twice.
//!
//! The kubelet, containerd and its shims are put into a cgroup of their own, so that what they start (runc, once for each
//! exec probe) is counted there until it enters the container's cgroup, and there from then on.

use {
    anyhow::{Context, Result, ensure},
    std::{
        fs, io,
        path::{Path, PathBuf},
        time::Duration,
    },
};

/// Programs of the node whose time a pod costs.
const PROGRAMS: [&str; 3] = ["kubelet", "containerd", "containerd-shim"];
/// Where version 1 counts CPU time, and where version 2 is.
const VERSION_1: &str = "/sys/fs/cgroup/cpuacct";
const VERSION_2: &str = "/sys/fs/cgroup";

/// The cgroup of the node's programs, removed with this value.
pub(crate) struct Account {
    own: PathBuf,
    /// That of all pods of this node.
    pods: PathBuf,
}

/// CPU time that was used up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Kubelet, containerd, shims, and what they run.
    pub(crate) node: Duration,
    /// Of that, the kubelet alone.
    pub(crate) kubelet: Duration,
    /// The pod.
    pub(crate) pod: Duration,
}

impl Spent {
    pub(crate) fn since(self, former: Self) -> Self {
        let Self { node, kubelet, pod } = self;
        Self {
            node: node.saturating_sub(former.node),
            kubelet: kubelet.saturating_sub(former.kubelet),
            pod: pod.saturating_sub(former.pod),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Those that are still in it go back; it goes with the machine otherwise.
        let parent = self.own.parent().map(|parent| parent.join("cgroup.procs"));
        let members = fs::read_to_string(self.own.join("cgroup.procs")).unwrap_or_default();
        for (member, parent) in members.lines().zip(parent.iter().cycle()) {
            drop(fs::write(parent, member));
        }
        drop(fs::remove_dir(&self.own));
    }
}

impl Account {
    /// Takes the node's programs in: those that this process has started, and what they have started.
    pub(crate) fn open(pods_cgroup: &str) -> Result<Self> {
        let root = if Path::new(VERSION_1).join("cgroup.procs").exists() {
            VERSION_1
        } else {
            VERSION_2
        };
        let own = Path::new(root).join(format!("healthscope-bench-{}", std::process::id()));
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let account = Self {
            own,
            pods: Path::new(root).join(pods_cgroup),
        };
        ensure!(account.pods.is_dir(), "there is no {}", account.pods.display());
        account.take_in()?;
        Ok(account)
    }

    /// Shims that were started before are taken in as well.
    fn take_in(&self) -> Result<()> {
        let mut taken = 0;
        for id in processes()? {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            // The kernel cuts names to 15 bytes.
            let is_wanted = PROGRAMS
                .iter()
                .any(|program| name.trim() == &program[..program.len().min(15)]);
            if is_wanted && is_descendant(id) {
                fs::write(self.own.join("cgroup.procs"), id.to_string())?;
                taken += 1;
            }
        }
        ensure!(taken >= 2, "neither kubelet nor containerd was found");
        Ok(())
    }

    /// What was used up to now, with a pod by its uid.
    pub(crate) fn spent(&self, pod: &str) -> Result<Spent> {
        Ok(Spent {
            node: usage(&self.own)?,
            kubelet: self.kubelet()?,
            pod: usage(&self.pod(pod)?)?,
        })
    }

    /// What the container of a process has used.
    pub(crate) fn of_container(process: u32) -> Result<Duration> {
        let lines = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        for line in lines.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let root = match controllers {
                "" => VERSION_2,
                some if some.split(',').any(|one| one == "cpuacct") => VERSION_1,
                _ => continue,
            };
            if let Ok(found) = usage(&Path::new(root).join(path.trim_start_matches('/'))) {
                return Ok(found);
            }
        }
        anyhow::bail!("process {process} is in no cgroup that counts CPU time")
    }

    fn kubelet(&self) -> Result<Duration> {
        let members = fs::read_to_string(self.own.join("cgroup.procs"))?;
        let is_kubelet = |id: &&str| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "kubelet")
        };
        let id = members.lines().find(is_kubelet).context("the kubelet has gone")?;
        crate::process::cpu_of(id)
    }

    fn pod(&self, uid: &str) -> Result<PathBuf> {
        find(&self.pods, uid, 4)?.with_context(|| format!("pod {uid} has no cgroup"))
    }
}

/// Ids of all processes.
pub(crate) fn processes() -> Result<Vec<u32>> {
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// Whether this process, or one that it started, has started it.
fn is_descendant(mut id: u32) -> bool {
    let own = std::process::id();
    while id > 1 {
        if id == own {
            return true;
        }
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok());
        match parent {
            Some(parent) => id = parent,
            None => return false,
        }
    }
    false
}

/// The folder below `folder`, at most so deep, whose name has `uid` in it, by either of the two ways of writing it.
fn find(folder: &Path, uid: &str, depth: u32) -> io::Result<Option<PathBuf>> {
    let other = uid.replace('-', "_");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.contains(uid) || name.contains(&other) {
            return Ok(Some(entry.path()));
        }
        if depth > 0
            && let Some(found) = find(&entry.path(), uid, depth - 1)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a cgroup and those below it have used.
fn usage(cgroup: &Path) -> Result<Duration> {
    if let Ok(nanoseconds) = fs::read_to_string(cgroup.join("cpuacct.usage")) {
        return Ok(Duration::from_nanos(nanoseconds.trim().parse()?));
    }
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(Duration::from_micros(
        line.context("no usage_usec")?.trim().parse()?,
    ))
}
