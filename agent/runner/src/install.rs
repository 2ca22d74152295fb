//! Puts the runner where the containers find it: one copy on the shared volume, and a name for it in the directory of
//! each.
//!
//! One file with many names (hard links) costs its memory once. The copy is made beside and renamed, so that nobody ever
//! executes half a program, and a runner that is up keeps the one it was started from. The kubelet makes a container's
//! directory too, whoever comes first; what matters is that names can be made in it.

use {
    healthscope_runner::{OWN_DIRECTORY, RUNNER},
    std::{
        fs::{self, DirBuilder, Permissions},
        io,
        os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        path::Path,
    },
};

/// Everybody may execute it, nobody may write it.
const PROGRAM_MODE: u32 = 0o555;
/// Any user of a target goes through to the socket.
const TARGET_MODE: u32 = 0o755;
/// Sockets and certificates of the agent are nobody else's.
const OWN_MODE: u32 = 0o700;

/// Puts this program into the directory of each target.
pub(crate) fn install(directory: &Path, targets: &[String]) -> io::Result<()> {
    let own = directory.join(OWN_DIRECTORY);
    make(&own, OWN_MODE)?;
    let copy = own.join(RUNNER);
    let beside = own.join("runner.new");
    remove(&beside)?;
    fs::copy("/proc/self/exe", &beside)?;
    fs::set_permissions(&beside, Permissions::from_mode(PROGRAM_MODE))?;
    fs::rename(&beside, &copy)?;
    // All of them are tried: one directory that is spoilt is one container's loss.
    let mut first_error = None;
    for target in targets {
        if let Err(error) = link(&copy, &directory.join(target)) {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn link(copy: &Path, target: &Path) -> io::Result<()> {
    make(target, TARGET_MODE)?;
    let beside = target.join(".runner.new");
    remove(&beside)?;
    fs::hard_link(copy, &beside)?;
    fs::rename(&beside, target.join(RUNNER))
}

/// Makes a directory with this mode whatever the umask; one that the kubelet made stays as it is.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            let is_ours = found.uid() == rustix::process::geteuid().as_raw();
            match (found.is_dir(), is_ours) {
                (false, _) => Err(io::ErrorKind::NotADirectory.into()),
                (true, true) => fs::set_permissions(path, Permissions::from_mode(mode)),
                (true, false) => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn every_target_has_the_same_file_and_a_second_time_changes_nothing_for_them() {
        let volume = tempfile::tempdir().unwrap();
        let targets = ["web".to_owned(), "db".to_owned()];
        // As the kubelet makes it.
        fs::create_dir(volume.path().join("db")).unwrap();
        for _ in 0..2 {
            install(volume.path(), &targets).unwrap();
            let inode = |name: &str| fs::metadata(volume.path().join(name)).unwrap().ino();
            assert_eq!(inode("web/runner"), inode(".agent/runner"));
            assert_eq!(inode("db/runner"), inode(".agent/runner"));
            assert_eq!(mode(&volume.path().join("web/runner")), 0o555);
            assert_eq!(mode(&volume.path().join("web")), 0o755);
            assert_eq!(mode(&volume.path().join(".agent")), 0o700);
            assert_eq!(fs::read_dir(volume.path().join("web")).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_file_in_the_way_is_one_target_s_loss() {
        let volume = tempfile::tempdir().unwrap();
        fs::write(volume.path().join("web"), "").unwrap();
        let targets = ["web".to_owned(), "db".to_owned()];
        assert!(install(volume.path(), &targets).is_err());
        assert!(volume.path().join("db/runner").is_file());
    }
}
