//! Processes under measurement: started, read from `/proc`, and ended; only those that were started here.

use {
    anyhow::{Context, Result, ensure},
    rustix::process::{Pid, Signal, kill_process},
    std::{
        ffi::OsStr,
        fs::File,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    },
};

/// A child process that ends with this value.
pub(crate) struct Process {
    child: Child,
}

/// What a process holds, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident in all.
    pub(crate) resident: u64,
    /// Of that, its own: heap and stacks, without files and shared pages.
    pub(crate) own: u64,
}

impl Process {
    /// Starts `program`; its output goes to `log`, or nowhere.
    pub(crate) fn spawn<S: AsRef<OsStr>>(
        program: &Path,
        arguments: &[S],
        log: Option<&Path>,
    ) -> Result<Self> {
        Self::spawn_in(program, arguments, &[], log)
    }

    /// Starts `program` with these environment variables besides those of this process.
    pub(crate) fn spawn_in<S: AsRef<OsStr>>(
        program: &Path,
        arguments: &[S],
        environment: &[(&str, &Path)],
        log: Option<&Path>,
    ) -> Result<Self> {
        let output = |log: Option<&Path>| -> Result<Stdio> {
            Ok(match log {
                Some(log) => File::options().create(true).append(true).open(log)?.into(),
                None => Stdio::null(),
            })
        };
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output(log)?)
            .stderr(output(log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Starts this program again, in another mode.
    pub(crate) fn myself<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self> {
        Self::spawn(&std::env::current_exe()?, arguments, None)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used so far, in user and in system mode; children that it waited for count too.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.id().to_string())
    }

    /// What it holds now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .and_then(|kib| kib.parse().ok())
                .unwrap_or(0)
        };
        Ok(Memory {
            resident: kib("VmRSS") * 1024,
            own: kib("RssAnon") * 1024,
        })
    }

    /// Waits for its end by itself, at most for a while, and returns what it wrote to `log`.
    pub(crate) fn output(mut self, log: &Path, patience: Duration) -> Result<String> {
        let give_up = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < give_up, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let output = std::fs::read_to_string(log)?;
        ensure!(status.success(), "the process ended with {status}: {output}");
        Ok(output)
    }

    /// Asks it to end, as Kubernetes does, and waits for that, at most for a while.
    pub(crate) fn terminate(mut self, patience: Duration) -> Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(id.context("a process has an id")?, Signal::TERM)?;
        let give_up = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < give_up, "the process does not end when asked to");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Fails when it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "the process under measurement ended by itself: {ended:?}"
        );
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What [`Process::cpu`] is, of this process.
pub(crate) fn cpu_of_self() -> Result<Duration> {
    cpu_of("self")
}

pub(crate) fn cpu_of(process: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The program's name, in parentheses, may hold blanks.
    let (_, fields) = stat.rsplit_once(')').context("odd /proc/PID/stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// A release binary of this project, built beside this program.
pub(crate) fn release_binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{name} is not built: run it as `cargo xtask bench`, which builds it first"
    );
    Ok(path)
}
