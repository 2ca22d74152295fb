//! Running `healthscope`, and waiting for what it says.
//!
//! Nothing sleeps: lines wake those who wait for them, and `healthscope wait` waits for verdicts.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

/// Longest wait for anything. Far more than anything takes, because ten thousand components are read without
/// optimisation while other tests run beside.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);
/// The same for the command line.
pub(crate) const TIMEOUT: &str = "--timeout=300s";

/// Variables that would change what the program does.
const UNSET: [&str; 7] = [
    "HEALTHSCOPE_AGGREGATOR",
    "HEALTHSCOPE_SERVER",
    "HEALTHSCOPE_TOKEN_FILE",
    "HEALTHSCOPE_CA",
    "HEALTHSCOPE_LOG",
    "NO_COLOR",
    "RUST_BACKTRACE",
];

/// The program, with nothing of the environment that matters.
pub(crate) fn healthscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_healthscope"));
    for variable in UNSET {
        command.env_remove(variable);
    }
    command.env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
#[track_caller]
pub(crate) fn run(arguments: &[&str]) -> Answer {
    Answer::of(healthscope().args(arguments).output().unwrap())
}

/// What a run said, and how it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The lines of a stream so far.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    pub(crate) fn read(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                writer.0.0.lock().unwrap().push(line);
                writer.0.1.notify_all();
            }
        });
        lines
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits for a line that has `part` in it.
    #[track_caller]
    pub(crate) fn wait_for(&self, part: &str) -> String {
        self.wait_for_after(0, part).1
    }

    /// Waits for a line after the first `skip` ones; gives its number and text.
    #[track_caller]
    pub(crate) fn wait_for_after(&self, skip: usize, part: &str) -> (usize, String) {
        let deadline = Instant::now() + DEADLINE;
        let (lines, changed) = &*self.0;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some((at, line)) = lines
                .iter()
                .enumerate()
                .skip(skip)
                .find(|(_, line)| line.contains(part))
            {
                return (at, line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with {part:?}, only {lines:#?}");
            lines = changed.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A running `healthscope up`.
pub(crate) struct Up {
    child: Child,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
}

impl Up {
    /// Starts it on a port of its own and waits until it says where that is.
    #[track_caller]
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let listen: &[&str] = if arguments.contains(&"--listen") {
            &[]
        } else {
            &["--listen", "127.0.0.1:0"]
        };
        let mut child = healthscope()
            .arg("up")
            .args(arguments)
            .args(listen)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = Lines::read(child.stdout.take().unwrap());
        let err = Lines::read(child.stderr.take().unwrap());
        let greeting = out.wait_for("http://127.0.0.1:");
        let address = greeting
            .split("http://")
            .nth(1)
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        Self {
            child,
            out,
            err,
            address,
        }
    }

    /// Asks it.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> Answer {
        let output = healthscope()
            .args(arguments)
            .env("HEALTHSCOPE_SERVER", &self.address)
            .output()
            .unwrap();
        Answer::of(output)
    }

    /// Waits until a scope is as wanted.
    #[track_caller]
    pub(crate) fn wait(&self, scope: &str, goal: &str) {
        let answer = self.ask(&["wait", scope, &format!("--for={goal}"), TIMEOUT]);
        assert_eq!(answer.code, 0, "{answer:?}");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends Ctrl-C and waits for the end; says how long that took.
    pub(crate) fn interrupt(mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        signal(self.child.id(), rustix::process::Signal::INT);
        let status = self.child.wait().unwrap();
        (status, started.elapsed())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already ended where the test ended it.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

pub(crate) fn signal(process: u32, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(process.try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}

/// Carries out a `curl -X POST URL` line.
#[track_caller]
pub(crate) fn post(curl: &str) -> String {
    let url = curl.split("http://").nth(1).unwrap().trim();
    let (address, path) = url.split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
        .split("\r\n\r\n")
        .nth(1)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Processes with this word among their arguments.
pub(crate) fn processes_with(word: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.split(' ').any(|argument| argument == word))
        .collect()
}

/// A file as users write it.
pub(crate) fn component(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: {name}, labels: {{app: \
         shop}}}}\nspec: {spec}\n---\n"
    )
}

/// A scope of everything that [`component`] makes.
pub(crate) fn scope(name: &str) -> String {
    format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: {name}}}\nspec: {{selector: \
         {{matchLabels: {{app: shop}}}}}}\n"
    )
}

/// Replaces a file as careful editors do.
pub(crate) fn save(path: &Path, text: &str) {
    let other = path.with_extension("new");
    fs::write(&other, text).unwrap();
    fs::rename(&other, path).unwrap();
}
