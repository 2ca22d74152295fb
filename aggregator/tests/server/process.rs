//! The program itself: files, signals, ports, descriptors.

use {
    crate::support::SHOP,
    std::{
        fs,
        io::{BufRead, BufReader, Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        path::Path,
        process::{Child, Command, Stdio},
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    },
    tempfile::TempDir,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The program with its log.
struct Program {
    child: Child,
    log: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    fn start(arguments: &[&str], limit: Option<u32>) -> Self {
        let binary = env!("CARGO_BIN_EXE_healthscope-aggregator");
        let mut command = match limit {
            None => Command::new(binary),
            Some(limit) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\""), binary]);
                command
            }
        };
        let mut child = command
            .args(arguments)
            .env_remove("HEALTHSCOPE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            log,
            seen: Vec::new(),
        }
    }

    /// Waits for a line of the log with these words.
    #[track_caller]
    fn until_logged(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.log.recv_timeout(wait) else {
                panic!("{words:?} is not in the log:\n{}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn address(&mut self) -> SocketAddr {
        let line = self.until_logged("listening");
        line.split("address=").nth(1).unwrap().trim().parse().unwrap()
    }

    fn end(&mut self, signal: &str) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        (self.code(), start.elapsed())
    }

    fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::yield_now();
        }
        panic!("the program does not end");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn written(text: &str) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("shop.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// Waits until a scope is known, whatever its health.
#[track_caller]
fn until_known(address: SocketAddr, scope: &str) {
    let deadline = Instant::now() + PATIENCE;
    let target = format!("/scopes/{scope}");
    while !ask(address, &target).unwrap().ends_with("Unknown") {
        assert!(Instant::now() < deadline, "{scope} is not known");
        thread::yield_now();
    }
}

fn ask(address: SocketAddr, target: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nhost: localhost\r\naccept: text/plain\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn start(path: &str, limit: Option<u32>) -> Program {
    Program::start(&[&["--config", path], &LISTEN[..]].concat(), limit)
}

#[test]
fn the_program_serves_and_ends_on_a_signal() {
    let (_directory, path) = written(SHOP);
    for signal in ["-TERM", "-INT"] {
        let mut program = start(&path, None);
        let address = program.address();
        // A reader and an idle connection must not hold it up.
        let mut reader = TcpStream::connect(address).unwrap();
        write!(reader, "GET /api/v1/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let _idle = TcpStream::connect(address).unwrap();
        assert!(ask(address, "/readyz").unwrap().contains("200 OK"));
        let (code, took) = program.end(signal);
        assert_eq!(code, Some(0), "{signal}");
        assert!(took <= Duration::from_millis(2_500), "{signal} took {took:?}");
    }
}

#[test]
fn edits_apply_and_broken_ones_do_not() {
    let (_directory, path) = written(SHOP);
    let mut program = start(&path, None);
    let address = program.address();
    let renamed = SHOP.replace("name: shop", "name: store");
    fs::write(&path, &renamed).unwrap();
    program.until_logged("revision=2");
    until_known(address, "store");
    fs::write(&path, renamed.replace("workloadRefs", "workloadRef")).unwrap();
    let problem = program.until_logged("cannot be used");
    assert!(
        problem.contains("shop.yaml:6:3") && problem.contains("did you mean"),
        "{problem}"
    );
    until_known(address, "store");
    fs::write(&path, SHOP).unwrap();
    program.until_logged("revision=3");
    until_known(address, "shop");
}

#[track_caller]
fn check_failure(arguments: &[&str], code: i32, words: &[&str]) {
    let mut program = Program::start(arguments, None);
    assert_eq!(program.code(), Some(code), "{arguments:?}");
    let log: Vec<String> = program.log.iter().collect();
    let log = log.join("\n");
    for word in words {
        assert!(log.contains(word), "{arguments:?}: {word:?} is not in\n{log}");
    }
}

#[test]
fn what_cannot_work_is_said_and_ends_it() {
    let (directory, path) = written(SHOP);
    let (_other, broken) = written("kind: Pod\napiVersion: v1\n");
    let config = ["--config", &path];
    check_failure(
        &["--config", &broken, "--listen", "127.0.0.1:0"],
        1,
        &["shop.yaml:1:1", "\"Pod\""],
    );
    check_failure(
        &["--config", "/nowhere/at/all"],
        1,
        &["/nowhere/at/all", "no such file"],
    );
    check_failure(
        &[&config[..], &["--listen", "0.0.0.0:0"]].concat(),
        1,
        &["--tls-cert", "--allow-plaintext"],
    );
    check_failure(
        &[&config[..], &["--listen", "0.0.0.0:0", "--allow-plaintext"]].concat(),
        1,
        &["--token-file"],
    );
    let absent = Path::new("/nowhere/token").to_str().unwrap();
    check_failure(
        &[&config[..], &["--token-file", absent]].concat(),
        1,
        &["/nowhere/token"],
    );
    check_failure(
        &[&config[..], &["--heartbeat", "1h"]].concat(),
        1,
        &["from 1s to 15s"],
    );
    check_failure(
        &[&config[..], &["--heartbeat", "often"]].concat(),
        2,
        &["not a duration"],
    );
    check_failure(&[], 2, &["--config"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_failure(
        &[&config[..], &["--listen", &address]].concat(),
        1,
        &[&address, "another process listens there"],
    );
    drop(directory);
}

#[test]
fn running_out_of_descriptors_is_reported_and_over_when_there_are_some() {
    let (_directory, path) = written(SHOP);
    let mut program = start(&path, Some(40));
    let address = program.address();
    let held: Vec<TcpStream> = (0..60).map_while(|_| TcpStream::connect(address).ok()).collect();
    let line = program.until_logged("cannot accept connections");
    assert!(line.contains("descriptors"), "{line}");
    drop(held);
    program.until_logged("accepting connections again");
    assert!(ask(address, "/livez").unwrap().contains("200 OK"));
    let reports = program
        .seen
        .iter()
        .filter(|line| line.contains("cannot accept connections"));
    assert_eq!(reports.count(), 1, "once a period");
}
