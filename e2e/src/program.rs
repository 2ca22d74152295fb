//! The project's own programs, as a user starts them.

use {
    crate::wait::{PATIENCE, eventually},
    anyhow::{Context, Result, ensure},
    rustix::process::{Pid, Signal, kill_process, test_kill_process},
    std::{
        ffi::OsStr,
        fs::{self, File},
        net::{Ipv4Addr, SocketAddr, TcpListener},
        path::{Path, PathBuf},
        process::{ExitStatus, Stdio},
        time::Duration,
    },
    tokio::{
        process::{Child, Command},
        time::timeout,
    },
};

/// Variables of the developer's shell that change what our programs do.
const UNSET: [&str; 3] = ["HEALTHSCOPE_SERVER", "HEALTHSCOPE_LOG", "HEALTHSCOPE_TOKEN_FILE"];

/// A running program; killed when this value goes.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts one of the project's binaries with `folder` as its working directory; what it prints goes to a file there.
    ///
    /// # Errors
    /// When it is not built, or cannot be started.
    pub fn start<S: AsRef<OsStr>>(name: &str, arguments: &[S], folder: &Path) -> Result<Self> {
        let mut command = Command::new(binary(name)?);
        command.args(arguments);
        Self::start_command(name, command, folder)
    }

    /// Starts any command the same way.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let number = fs::read_dir(folder)?.count();
        let log = folder.join(format!("{name}-{number}.log"));
        let output = File::create(&log)?;
        for variable in UNSET {
            command.env_remove(variable);
        }
        let child = command
            .current_dir(folder)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Everything that it has printed so far, both streams together.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it has not after a long while, or has ended before; with what it printed instead.
    pub async fn printed(&mut self, text: &str) -> Result<String> {
        eventually(&format!("{} to print {text:?}", self.name), async || {
            let log = self.log();
            if log.contains(text) {
                return Ok(log);
            }
            anyhow::bail!("it printed:\n{log}")
        })
        .await
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has ended.
    pub fn id(&self) -> Result<u32> {
        self.child
            .id()
            .with_context(|| format!("{} has ended:\n{}", self.name, self.log()))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()?)?;
        Ok(kill_process(
            Pid::from_raw(id).context("a process id is never 0")?,
            signal,
        )?)
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Asks it to end and waits at most `within`.
    ///
    /// # Errors
    /// When it takes longer.
    pub async fn end(mut self, signal: Signal, within: Duration) -> Result<(ExitStatus, String)> {
        self.signal(signal)?;
        let status = timeout(within, self.child.wait()).await;
        let status = status
            .with_context(|| format!("{} did not end within {within:?}:\n{}", self.name, self.log()))?;
        Ok((status?, self.log()))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(mut self) -> Result<(ExitStatus, String)> {
        let status = timeout(PATIENCE, self.child.wait()).await;
        let status = status.with_context(|| format!("{} did not end:\n{}", self.name, self.log()))?;
        Ok((status?, self.log()))
    }

    /// Ids of the processes that it has started and that still run.
    ///
    /// # Errors
    /// When it has ended.
    pub fn children(&self) -> Result<Vec<i32>> {
        let id = self.id()?;
        let mut children = Vec::new();
        for thread in fs::read_dir(format!("/proc/{id}/task"))? {
            let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            children.extend(list.split_whitespace().filter_map(|id| id.parse::<i32>().ok()));
        }
        Ok(children)
    }
}

/// Whether a process is there.
#[must_use]
pub fn runs(id: i32) -> bool {
    Pid::from_raw(id).is_some_and(|id| test_kill_process(id).is_ok())
}

/// Runs one of the project's binaries to its end: exit code, standard output, standard error.
///
/// # Errors
/// When it is not built or does not end.
pub async fn run<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(binary(name)?);
    for variable in UNSET {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .with_context(|| format!("{name} did not end"))??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout), text(output.stderr)))
}

/// A binary of this workspace, built by `cargo build --workspace` in the profile of the tests; an agent of another machine
/// when one is named.
///
/// # Errors
/// When it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    if name == "healthscope-agent"
        && let Some(named) = std::env::var_os("HEALTHSCOPE_TEST_AGENT")
    {
        return Ok(named.into());
    }
    let test = std::env::current_exe()?;
    let folder = test
        .parent()
        .and_then(Path::parent)
        .context("a test program lies in target/PROFILE/deps")?;
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{name} is not built: run `cargo xtask test`, which builds it first"
    );
    Ok(path)
}

/// An address on loopback that nobody listens on at the moment.
///
/// # Errors
/// When loopback has no free port.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
