//! The agent's process, with a directory of its own.

use {
    crate::{PATIENCE, soon},
    rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit},
    std::{
        env,
        ffi::OsString,
        fs,
        io::{BufRead, BufReader},
        path::PathBuf,
        process::{Child, Command, ExitStatus, Stdio},
        thread,
        time::{Duration, Instant},
    },
    tempfile::TempDir,
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
        sync::watch,
    },
};

/// The program that is tested: cargo's, or the one that is named, which may be another machine's and run through an emulator.
pub(crate) fn tested() -> OsString {
    let named = env::var_os("HEALTHSCOPE_TEST_AGENT");
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_healthscope-agent").into())
}

/// Where an agent's files are, before and after it runs.
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    pub(crate) fn new(config: &str) -> Self {
        let home = Self {
            directory: TempDir::new().unwrap(),
        };
        home.write("config.yaml", config);
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        // As editors do it: never half a file.
        let temporary = self.path(&format!(".{name}.new"));
        fs::write(&temporary, content).unwrap();
        fs::rename(&temporary, &path).unwrap();
        path
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// The usual command line, in an environment that says nothing.
    pub(crate) fn command(&self, aggregator: &str) -> Command {
        let mut command = Command::new(tested());
        self.arguments(&mut command, aggregator);
        command
    }

    pub(crate) fn arguments(&self, command: &mut Command, aggregator: &str) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .arg("--config")
            .arg(self.path("config.yaml"))
            .arg("--socket")
            .arg(self.socket())
            .args(["--name", "host-1", "--aggregator", aggregator]);
    }

    pub(crate) fn start(&self, aggregator: &str) -> Agent {
        Agent::start(self, self.command(aggregator))
    }
}

/// A running agent; killed when the test is over, whatever became of it.
pub(crate) struct Agent {
    child: Option<Child>,
    socket: PathBuf,
    log: watch::Receiver<Vec<String>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _gone_already = child.kill();
            let _gone_already = child.wait();
        }
    }
}

impl Agent {
    #[allow(clippy::print_stdout, reason = "shown with the test that fails")]
    pub(crate) fn start(home: &Home, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, log) = watch::channel(Vec::new());
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("agent: {line}");
                tell.send_modify(|log: &mut Vec<String>| log.push(line));
            }
        });
        Self {
            child: Some(child),
            socket: home.socket(),
            log,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    pub(crate) fn soft_descriptor_limit(&self) -> u64 {
        self.descriptor_limits().0
    }

    fn hard_descriptor_limit(&self) -> u64 {
        self.descriptor_limits().1
    }

    fn descriptor_limits(&self) -> (u64, u64) {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.pid().as_raw_pid())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// Sets the soft limit of the running process; what it was.
    pub(crate) fn limit_descriptors(&self, soft: u64) -> u64 {
        let former = prlimit(
            Some(self.pid()),
            Resource::Nofile,
            Rlimit {
                current: Some(soft),
                maximum: Some(self.hard_descriptor_limit()),
            },
        );
        former.unwrap().current.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the process to end by itself; how long that took.
    pub(crate) async fn ended(mut self) -> (ExitStatus, Duration) {
        let mut child = self.child.take().unwrap();
        let started = Instant::now();
        let waiting = tokio::task::spawn_blocking(move || {
            let status = child.wait().unwrap();
            (status, started.elapsed())
        });
        soon("the end of the agent", waiting).await.unwrap()
    }

    pub(crate) async fn terminated(self) -> (ExitStatus, Duration) {
        self.signal(Signal::TERM);
        self.ended().await
    }

    pub(crate) async fn killed(self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Waits for a line of the log.
    pub(crate) async fn logged(&self, part: &str) -> String {
        let mut log = self.log.clone();
        let seen = log.wait_for(|log| log.iter().any(|line| line.contains(part)));
        let log = match tokio::time::timeout(PATIENCE, seen).await {
            Ok(log) => log.unwrap(),
            Err(_) => panic!("no line with {part:?} in the log"),
        };
        log.iter().find(|line| line.contains(part)).unwrap().clone()
    }

    pub(crate) fn count_logged(&self, part: &str) -> usize {
        self.log
            .borrow()
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }

    /// Asks the agent's own endpoint; status line and body.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let asking = async {
            let mut stream = UnixStream::connect(&self.socket).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.lines().next().unwrap().to_owned(), body.to_owned())
        };
        soon("an answer of the agent", asking).await
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status").await.1).unwrap()
    }

    /// A metric's value, by its name with labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .parse()
            .unwrap()
    }

    /// Asks again and again until a metric is as it should be: it changes by the agent's own clock.
    pub(crate) async fn metric_reaches(&self, name: &str, is_reached: impl Fn(f64) -> bool) {
        let asking = async {
            while !is_reached(self.metric(name).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(name, asking).await;
    }
}

/// A component with one TCP probe, quick enough for a test.
pub(crate) fn tcp_component(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: {name}}}\nspec:\n  \
         readinessProbe: {{tcpSocket: {{port: {port}}}, period: 50ms, timeout: 1s, failureThreshold: 1}}\n"
    )
}

/// A component with one command.
pub(crate) fn exec_component(name: &str, script: &str) -> String {
    format!(
        "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: {name}}}\nspec:\n  \
         readinessProbe: {{exec: {{command: [sh, -c, {script:?}]}}, period: 100ms, timeout: 60s, failureThreshold: 1}}\n"
    )
}
