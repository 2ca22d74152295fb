//! Sees to it that a runner is up, and becomes what it stands in front of.
//!
//! There is one runner in a container: it holds an exclusive `flock` on the directory that its program lies in, which is
//! mounted in that container alone (the program itself is one file with many names: a lock on it would be one for the
//! whole pod). A lock works on a read-only mount, ends with its holder however that ends, and needs no file to be written,
//! cleaned up or missing. The lock is taken here and handed down to the runner as its standard input, so there is no
//! moment at which two could start.
//!
//! The runner is started through a process between, which makes a session of its own and ends at once: what the caller
//! becomes afterwards has no child that it does not know of, and no terminal is the runner's. Nothing is waited for
//! but that process, which lives for a millisecond.
//!
//! Environment, working directory and umask are left as they are: they are those of a command that the kubelet runs in
//! this container, and the checks are to have the same.

use {
    crate::{
        arguments::{Words, written},
        say,
    },
    rustix::{
        fs::{FlockOperation, Mode, OFlags},
        io::Errno,
    },
    std::{
        env,
        ffi::{OsStr, OsString},
        io,
        os::{fd::OwnedFd, unix::process::CommandExt},
        path::{Path, PathBuf},
        process::{Command, Stdio},
        sync::mpsc,
        thread,
        time::Duration,
    },
};

/// A postStart hook goes on after so long, whatever the runner does: until a hook has ended its container is not running,
/// and cannot be deleted either. A runner takes two milliseconds to start; on a node where many pods start at once more than
/// a hundred, and whoever goes on without it has none for as long as the container lives.
const START_LIMIT: Duration = Duration::from_secs(2);
/// Little more than a page: the thread that starts the runner calls nothing deep.
const STACK_BYTES: usize = 128 * 1024;

/// As a probe's command. Returns when there is nothing to become.
pub(crate) fn carry(name: &OsStr, checks: &[Words], then: Option<&[OsString]>) {
    tell(ensure(name, checks));
    become_or_return(then);
}

/// As a postStart hook: the same, within [`START_LIMIT`].
///
/// A thread keeps the time and not `alarm(2)`, because an alarm would be inherited by the hook that follows.
pub(crate) fn start(name: &OsStr, checks: Vec<Words>, then: Option<&[OsString]>) {
    let (sender, done) = mpsc::channel();
    let owned = name.to_owned();
    let starting = thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || sender.send(ensure(&owned, &checks)));
    match starting {
        Ok(_) => match done.recv_timeout(START_LIMIT) {
            Ok(result) => tell(result),
            Err(_) => say(format_args!("the runner did not start within {START_LIMIT:?}")),
        },
        Err(error) => say(format_args!("cannot start the runner: {error}")),
    }
    become_or_return(then);
}

/// Between the two: a session of its own, in which the runner is not the first.
pub(crate) fn detach(name: &OsStr, checks: &[Words]) {
    // Fails only for the leader of a group, which this process is not unless somebody started it by hand.
    let _ = rustix::process::setsid();
    let spawned = again(name, "serve", checks)
        // The lock goes on.
        .stdin(Stdio::inherit())
        .spawn();
    if let Err(error) = spawned {
        say(format_args!("cannot start the runner: {error}"));
    }
}

/// The directory of the program: what it shares with the agent.
pub(crate) fn directory(name: &OsStr) -> io::Result<PathBuf> {
    let directory = program(name).parent().map(Path::to_path_buf);
    directory.ok_or_else(|| io::Error::other("it is not known where this program lies"))
}

/// Takes the lock that one runner in this directory holds; `None` when one does.
pub(crate) fn lock(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn ensure(name: &OsStr, checks: &[Words]) -> io::Result<()> {
    let Some(lock) = lock(&directory(name)?)? else {
        return Ok(());
    };
    let mut between = again(name, "detach", checks).stdin(lock).spawn()?;
    between.wait().map(drop)
}

/// This program once more, with nothing of the caller's open.
fn again(name: &OsStr, task: &str, checks: &[Words]) -> Command {
    let mut command = Command::new(program(name));
    command
        .arg0("healthscope-runner")
        .arg(task)
        .args(written(checks))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Where this program lies. Without `/proc`, where the caller says that it does.
fn program(name: &OsStr) -> PathBuf {
    env::current_exe().unwrap_or_else(|_| PathBuf::from(name))
}

fn tell(result: io::Result<()>) {
    if let Err(error) = result {
        say(format_args!("cannot see to it that the runner is up: {error}"));
    }
}

/// Becomes the command. One that cannot be executed is an error that the kubelet throws away; what a probe answers
/// instead must not be a failure.
fn become_or_return(then: Option<&[OsString]>) {
    let Some((program, arguments)) = then.and_then(<[_]>::split_first) else {
        return;
    };
    let error = Command::new(program).args(arguments).exec();
    say(format_args!("cannot run {}: {error}", program.display()));
}
