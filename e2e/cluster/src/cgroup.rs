//! The cgroup below which a node's pods run, apart from those of other runs.

use {
    crate::{folder::VANISHING, lookup::wait_for},
    anyhow::Context,
    std::{
        fs, io,
        path::{Path, PathBuf},
    },
};

/// Makes the cgroup in each hierarchy of the machine.
pub(crate) fn create(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()?
        .into_iter()
        .filter(|hierarchy| hierarchy.has_controllers)
    {
        let folder = hierarchy.path.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        if hierarchy.is_unified {
            delegate(&hierarchy.path)?;
            delegate(&folder)?;
        }
    }
    Ok(())
}

/// Removes the cgroup and all below it, as soon as the processes in it are gone; also where only runc made it.
pub(crate) fn remove(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.path.join(name);
        wait_for(&format!("{} to be removed", folder.display()), VANISHING, || {
            remove_tree(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            Ok(Some(()))
        })?;
    }
    Ok(())
}

struct Hierarchy {
    path: PathBuf,
    /// Version 2, which has one tree for all controllers.
    is_unified: bool,
    /// A machine with both versions has the controllers in version 1, and only names processes in version 2.
    has_controllers: bool,
}

fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(hierarchies_in(&mounts))
}

fn hierarchies_in(mounts: &str) -> Vec<Hierarchy> {
    let of_kind = |wanted: &str| -> Vec<PathBuf> {
        mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (path, kind) = (fields.next()?, fields.next()?);
                (kind == wanted).then(|| PathBuf::from(path))
            })
            .collect()
    };
    let version1 = of_kind("cgroup");
    let version2 = of_kind("cgroup2");
    let is_alone = version1.is_empty();
    let version1 = version1.into_iter().map(|path| Hierarchy {
        path,
        is_unified: false,
        has_controllers: true,
    });
    let version2 = version2.into_iter().map(|path| Hierarchy {
        path,
        is_unified: true,
        has_controllers: is_alone,
    });
    version1.chain(version2).collect()
}

/// Gives every controller on to the cgroups below.
fn delegate(folder: &Path) -> anyhow::Result<()> {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers"))
        .with_context(|| format!("cannot read the controllers of {}", folder.display()))?;
    let file = folder.join("cgroup.subtree_control");
    for controller in controllers.split_whitespace() {
        fs::write(&file, format!("+{controller}"))
            .with_context(|| format!("cannot add {controller} to {}", file.display()))?;
    }
    Ok(())
}

/// A cgroup's folder is removed by itself, with its files, once no process and no other cgroup is in it.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, expected: &[(&str, bool, bool)]) {
        let found: Vec<(PathBuf, bool, bool)> = hierarchies_in(mounts)
            .into_iter()
            .map(|hierarchy| (hierarchy.path, hierarchy.is_unified, hierarchy.has_controllers))
            .collect();
        let expected: Vec<(PathBuf, bool, bool)> = expected
            .iter()
            .map(|(path, is_unified, has_controllers)| (PathBuf::from(path), *is_unified, *has_controllers))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn controllers_are_found_in_either_version() {
        check(
            "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
            &[("/sys/fs/cgroup", true, true)],
        );
        check(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0",
            &[
                ("/sys/fs/cgroup/cpu", false, true),
                ("/sys/fs/cgroup/memory", false, true),
                ("/sys/fs/cgroup/unified", true, false),
            ],
        );
    }

    #[test]
    fn a_cgroup_that_is_gone_needs_no_removal() {
        assert!(remove_tree(Path::new("/sys/fs/cgroup/healthscope-none")).is_ok());
    }
}
