//! What the tests of the whole product share: the aggregator's own program against a cluster, and waiting for what it
//! writes. A test file takes it in with `#[path = "support/aggregator.rs"] mod support;`.
//!
//! Every wait has an end, and says what it saw last and how the aggregator's log ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "each test file uses its part of it")]

use {
    anyhow::{Context, bail, ensure},
    healthscope_e2e_cluster::{Cluster, Relay, spawn, wait_for},
    rcgen::{CertificateParams, KeyPair},
    rustix::process::{Pid, Signal, kill_process},
    rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned},
    rustls_pki_types::{CertificateDer, ServerName},
    serde_json::Value,
    std::{
        ffi::OsString,
        fs::{self, OpenOptions},
        io::{Read, Write},
        net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Child, Command, ExitStatus, Stdio},
        sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
        time::Duration,
    },
};

/// Longest wait for anything: two cores with other work take tens of times what an idle machine does.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// How long one answer of the aggregator may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Lines of the aggregator's log that a failure shows.
const TAIL_LINES: usize = 40;

/// The node's address in the cluster's network; pods reach what listens there.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// A program of the project; `cargo xtask test` builds it beside the tests.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap();
    let program = folder.join(name);
    assert!(
        program.is_file(),
        "{} is not there: build it with cargo build",
        program.display()
    );
    program
}

/// A folder in which kubectl finds `kubectl healthscope`.
pub(crate) fn plugins() -> &'static Path {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        symlink(program("healthscope"), folder.path().join("kubectl-healthscope")).unwrap();
        folder
    });
    FOLDER.path()
}

/// kubectl as a user types it, plugin included, in a namespace.
pub(crate) fn kubectl_command(cluster: &Cluster, namespace: &str, line: &str) -> Command {
    let mut command = cluster.kubectl_command();
    command
        .args(line.split(' '))
        .args(["-n", namespace])
        .env("PATH", plugins())
        .env("TZ", "UTC");
    command
}

/// Runs it; what it prints.
#[track_caller]
pub(crate) fn kubectl(cluster: &Cluster, namespace: &str, line: &str) -> String {
    let output = kubectl_command(cluster, namespace, line).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "kubectl {line}: {}\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

/// Makes the API server know HealthScopes, by the files that a user applies, and waits until it serves them.
pub(crate) fn install(cluster: &Cluster) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/healthscope/files/crds");
    for entry in fs::read_dir(&folder).unwrap() {
        // Server-side, because the descriptions are too long for the annotation that a plain apply leaves.
        cluster
            .kubectl([
                "apply",
                "--server-side",
                "-f",
                entry.unwrap().path().to_str().unwrap(),
            ])
            .unwrap();
    }
    cluster
        .kubectl([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/healthscopes.core.oam.dev",
        ])
        .unwrap();
    for version in ["v1beta1", "v1alpha2", "v1alpha1"] {
        // A path is served a moment after the condition is set.
        cluster
            .wait_for("HealthScopes to be served", LIMIT, || {
                Ok(cluster
                    .get(&format!("/apis/core.oam.dev/{version}/healthscopes"))
                    .ok())
            })
            .unwrap();
    }
}

/// A namespace of one test.
pub(crate) fn namespace(cluster: &Cluster, name: &str) {
    cluster.kubectl(["create", "namespace", name]).unwrap();
    if cluster.options().controller_manager {
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        cluster
            .wait_for("the ServiceAccount", LIMIT, || cluster.get(&account).map(Some))
            .unwrap();
    }
}

/// The processes of a pod that were started by a command line that begins like this, seen from this machine.
pub(crate) fn processes(pod: &Value, line: &str) -> Vec<Pid> {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        // A process may end meanwhile.
        let read = |name: &str| fs::read(path.join(name)).unwrap_or_default();
        let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let is_of_pod = String::from_utf8_lossy(&read("cgroup")).contains(uid);
        if is_of_pod && words.starts_with(line) {
            let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            found.extend(Pid::from_raw(id));
        }
    }
    found
}

/// Applies objects in a namespace.
#[track_caller]
pub(crate) fn apply(cluster: &Cluster, namespace: &str, objects: &str) {
    let mut child = cluster
        .kubectl_command()
        .args(["apply", "-n", namespace, "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(objects.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{objects}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A HealthScope as the API server has it, in the stored version.
pub(crate) fn scope(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Value> {
    cluster.get(&format!(
        "/apis/core.oam.dev/v1beta1/namespaces/{namespace}/healthscopes/{name}"
    ))
}

/// What the aggregator wrote about a HealthScope; null when nothing yet.
pub(crate) fn status(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Value> {
    Ok(scope(cluster, namespace, name)?["status"].take())
}

/// The component of this name in a status.
pub(crate) fn component<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["components"]
        .as_array()?
        .iter()
        .find(|component| component["name"] == name)
}

/// The condition of this type in a status.
pub(crate) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// A certificate for an aggregator at [`NODE_ADDRESS`] and on loopback, which is its own authority.
#[derive(Debug)]
pub(crate) struct Tls {
    /// In PEM, for `--tls-cert` and for whoever connects.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) pem: String,
    der: CertificateDer<'static>,
    _folder: tempfile::TempDir,
}

impl Tls {
    pub(crate) fn create() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let names = [NODE_ADDRESS.to_string(), Ipv4Addr::LOCALHOST.to_string()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let tls = Self {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
            pem: certificate.pem(),
            der: certificate.der().clone(),
            _folder: folder,
        };
        fs::write(&tls.certificate, &tls.pem).unwrap();
        fs::write(&tls.key, key.serialize_pem()).unwrap();
        tls
    }
}

/// How to start an aggregator.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// In the cluster's network, where pods reach it at [`NODE_ADDRESS`]; else on this machine's loopback.
    pub(crate) is_inside: bool,
    /// Serve TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Other than the administrator's.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The port to listen on; else a free one.
    pub(crate) port: Option<u16>,
    /// More arguments, such as `--pod-name`.
    pub(crate) arguments: Vec<String>,
    /// More variables.
    pub(crate) environment: Vec<(String, String)>,
    /// Name of the log; else `aggregator`. One for each aggregator beside another.
    pub(crate) name: Option<String>,
}

/// The aggregator's own program, against a cluster; killed when this value goes, or the test program ends.
#[derive(Debug)]
pub(crate) struct Aggregator<'a> {
    pub(crate) cluster: &'a Cluster,
    setup: Setup,
    port: u16,
    log: PathBuf,
    relay: Option<Relay>,
    child: Mutex<Option<Child>>,
}

impl<'a> Aggregator<'a> {
    /// Starts one on this machine's loopback, and waits until it is ready.
    pub(crate) fn start(cluster: &'a Cluster) -> Self {
        let aggregator = Self::launch(cluster, Setup::default());
        aggregator.wait_ready();
        aggregator
    }

    /// Starts one, without waiting.
    pub(crate) fn launch(cluster: &'a Cluster, setup: Setup) -> Self {
        // Free a moment ago; nobody else on this machine hands out this port again soon.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let port = setup.port.unwrap_or_else(|| free().unwrap().port());
        let name = setup.name.as_deref().unwrap_or("aggregator");
        let log = cluster.folder().join(format!("{name}.log"));
        let relay = setup
            .is_inside
            .then(|| cluster.relay((NODE_ADDRESS, port).into()).unwrap());
        let aggregator = Self {
            cluster,
            setup,
            port,
            log,
            relay,
            child: Mutex::new(None),
        };
        aggregator.start_again();
        aggregator
    }

    /// Starts it again after [`Aggregator::end`] or [`Aggregator::kill`], with the same arguments. Does not wait.
    pub(crate) fn start_again(&self) {
        let mut child = self.child();
        assert!(child.is_none(), "it runs already");
        *child = Some(spawn(self.command()).unwrap());
    }

    fn command(&self) -> Command {
        let Setup {
            is_inside,
            tls,
            kubeconfig,
            port: _,
            arguments,
            environment,
            name: _,
        } = &self.setup;
        let (place, address, admin): (Vec<OsString>, _, _) = if *is_inside {
            let command = self.cluster.command(program("healthscope-aggregator"));
            let mut words = vec![command.get_program().to_owned()];
            words.extend(command.get_args().map(ToOwned::to_owned));
            (words, Ipv4Addr::UNSPECIFIED, self.cluster.kubeconfig_inside())
        } else {
            (
                vec![program("healthscope-aggregator").into()],
                Ipv4Addr::LOCALHOST,
                self.cluster.kubeconfig(),
            )
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(place)
            .arg("--kubernetes")
            .arg("--listen")
            .arg(SocketAddr::from((address, self.port)).to_string())
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.cluster.folder())
            .env("NO_COLOR", "1")
            .env("KUBECONFIG", kubeconfig.as_ref().unwrap_or(&admin))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(tls) = tls {
            command
                .arg("--tls-cert")
                .arg(&tls.certificate)
                .arg("--tls-key")
                .arg(&tls.key);
        }
        command
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Where this test reaches it.
    pub(crate) fn address(&self) -> SocketAddr {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        self.relay.as_ref().map_or(loopback, Relay::address)
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.until("the aggregator to be ready", || {
            let (code, body) = self.get("/readyz")?;
            ensure!(code == 200, "it answers {code}: {body}");
            Ok(Some(()))
        });
    }

    /// Asks it, as the cluster's administrator; the answer's code and body.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let stream = TcpStream::connect_timeout(&self.address(), ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            self.cluster.admin_token()
        );
        let exchange = |stream: &mut dyn ReadWrite| -> anyhow::Result<String> {
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = match &self.setup.tls {
            None => exchange(&mut { stream })?,
            Some(tls) => {
                let mut roots = RootCertStore::empty();
                roots.add(tls.der.clone())?;
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
                let session = ClientConnection::new(Arc::new(config), name)?;
                exchange(&mut StreamOwned::new(session, stream))?
            }
        };
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let code = head.split(' ').nth(1).context("no HTTP")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// The sum of a metric's series whose line contains each of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let (code, body) = self.get("/metrics")?;
        ensure!(code == 200, "/metrics answers {code}: {body}");
        let values = body
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        let values: Vec<f64> = values.collect::<Result<_, _>>()?;
        ensure!(!values.is_empty(), "there is no metric {name} with {labels:?}");
        Ok(values.iter().sum())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.id().expect("it runs"), signal);
    }

    /// Sends it a signal and waits for its end.
    #[track_caller]
    pub(crate) fn end(&self, signal: Signal) -> ExitStatus {
        // Taken before, so that nobody who waits for something meanwhile takes this for a crash.
        let mut child = self.child().take().expect("it runs");
        send(child.id(), signal);
        match wait_for("the aggregator to end", LIMIT, || Ok(child.try_wait()?)) {
            Ok(ended) => ended,
            Err(_) => panic!("it does not end after {signal:?}\n{}", self.tail()),
        }
    }

    /// Ends it as a crash would.
    #[track_caller]
    pub(crate) fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// Everything that it logged, from its first start on.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How its log ends.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("the end of {}:\n{tail}", self.log.display())
    }

    /// Looks until there is something, at most [`LIMIT`] long; an error means "not yet", and the last one is shown.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> T {
        let found = self.cluster.wait_for(what, LIMIT, || {
            let ended = self.child().as_mut().and_then(|child| child.try_wait().ok()?);
            match ended {
                // Looking on would only hide it.
                Some(ended) => Ok(Err(ended)),
                None => look().map(Ok),
            }
            .map(|found| match found {
                Ok(None) => None,
                Ok(Some(found)) => Some(Ok(found)),
                Err(ended) => Some(Err(ended)),
            })
        });
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(ended)) => panic!("the aggregator ended by itself: {ended}\n{}", self.tail()),
            Err(error) => {
                // What the cluster's parts logged comes after; the cause is in these two.
                let error = format!("{error:#}");
                let error = error.lines().next().unwrap_or_default();
                panic!("{error}\n{}", self.tail())
            }
        }
    }

    /// Waits until a scope's status is as wanted; the status. `is_wanted` says what is missing.
    #[track_caller]
    pub(crate) fn until_status(
        &self,
        what: &str,
        namespace: &str,
        scope: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let what = format!("{namespace}/{scope} {what}");
        self.until(&what, || {
            let status = status(self.cluster, namespace, scope)?;
            if !is_wanted(&status) {
                bail!("its status is {status:#}");
            }
            Ok(Some(status))
        })
    }

    /// Waits until a scope has this health; its status.
    #[track_caller]
    pub(crate) fn until_health(&self, namespace: &str, scope: &str, health: &str) -> Value {
        self.until_status(&format!("to be {health}"), namespace, scope, |status| {
            status["health"] == health
        })
    }

    /// Waits until a component of a scope has this health, and a message that contains these words; its entry. Components
    /// that are healthy are listed only in small scopes.
    #[track_caller]
    pub(crate) fn until_component(
        &self,
        namespace: &str,
        scope: &str,
        name: &str,
        health: &str,
        words: &[&str],
    ) -> Value {
        let what = format!("to have {name} {health} with {words:?}");
        let status = self.until_status(&what, namespace, scope, |status| {
            component(status, name).is_some_and(|component| {
                let message = component["message"].as_str().unwrap_or_default();
                component["health"] == health && words.iter().all(|word| message.contains(word))
            })
        });
        component(&status, name).unwrap().clone()
    }
}

impl Drop for Aggregator<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn send(id: u32, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

/// Everything that a watcher sees of a scope, from before something happens to after it.
#[derive(Debug)]
pub(crate) struct Watched {
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Watched {
    /// Begins to watch a scope that is there.
    #[track_caller]
    pub(crate) fn begin(cluster: &Cluster, namespace: &str, scope: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("seen");
        let columns = r"jsonpath={.status.health} {.status.available} {.status.rootCause}{'\n'}";
        let mut command = cluster.kubectl_command();
        command
            .args([
                "get",
                "healthscope",
                scope,
                "-n",
                namespace,
                "--watch",
                "-o",
                columns,
            ])
            .stdout(fs::File::create(&log).unwrap())
            .stderr(Stdio::null());
        let watched = Self {
            child: command.spawn().unwrap(),
            log,
            _folder: folder,
        };
        wait_for("the watch to begin", LIMIT, || {
            Ok((!watched.seen().is_empty()).then_some(()))
        })
        .unwrap();
        watched
    }

    /// What was seen so far: health, available and root cause, once for each change of the object.
    pub(crate) fn seen(&self) -> Vec<String> {
        let seen = fs::read_to_string(&self.log).unwrap();
        seen.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Nothing of these words was seen.
    #[track_caller]
    pub(crate) fn never(&self, words: &[&str]) {
        let seen = self.seen();
        let found = seen
            .iter()
            .find(|line| words.iter().any(|word| line.contains(word)));
        assert_eq!(found, None, "none of {words:?} was to be in {seen:#?}");
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended with its API server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stream, with or without TLS.
trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}
