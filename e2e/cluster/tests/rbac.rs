//! The plain installation against a real API server: that it applies as written, that docs/rbac.md says what it permits,
//! and that its permissions are exactly those that the aggregator uses, by the API server's own audit log.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    anyhow::{Context, ensure},
    healthscope_e2e_cluster::{Audit, Cluster, Options, tell, timed},
    rustls::{
        ClientConfig, ClientConnection, RootCertStore, StreamOwned,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
    serde_json::{Value, json},
    std::{
        collections::{BTreeMap, BTreeSet},
        fmt, fs,
        io::{Read, Write},
        net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Child, Command, Output, Stdio},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
        time::Duration,
    },
    tempfile::TempDir,
};

/// Longest wait for anything: two cores with other work take tens of times what an idle machine does.
const LIMIT: Duration = Duration::from_secs(120);
/// How long one answer of an aggregator may take.
const ANSWER: Duration = Duration::from_secs(20);

const MANIFEST: &str = include_str!("../../../examples/kubernetes/install.yaml");
/// What the chart makes of its defaults: tests/chart.rs keeps it so.
const CHART: &str = include_str!("chart/default.yaml");
const DOCUMENTATION: &str = include_str!("../../../docs/rbac.md");
const SERVICES: &str = include_str!("../../../examples/kubernetes/rbac/services.yaml");
const MORE_KINDS: [&str; 3] = [
    SERVICES,
    include_str!("../../../examples/kubernetes/rbac/persistentvolumeclaims.yaml"),
    include_str!("../../../examples/kubernetes/rbac/oam.yaml"),
];

const NAMESPACE: &str = "healthscope-system";
const NAME: &str = "healthscope-aggregator";
const SERVER_NAME: &str = "healthscope-aggregator.healthscope-system.svc";
const ACCOUNT: &str = "system:serviceaccount:healthscope-system:healthscope-aggregator";
const AGGREGATED: &str = "healthscope.core.oam.dev/aggregate-to-aggregator";

fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n");
    documents
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

fn words(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// One thing that a role permits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// Empty for the core group and for paths.
    group: String,
    /// With the subresource; or a path.
    what: String,
    /// The only object, where there is one.
    name: Option<String>,
    verb: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            what,
            name,
            verb,
        } = self;
        write!(f, "{verb} {what}")?;
        if let Some(name) = name {
            write!(f, " named {name}")?;
        }
        if group.is_empty() {
            Ok(())
        } else {
            write!(f, " ({group})")
        }
    }
}

/// The rights of a rule, one by one.
fn rights(rule: &Value) -> BTreeSet<Right> {
    let mut names: Vec<Option<String>> = words(&rule["resourceNames"]).into_iter().map(Some).collect();
    if names.is_empty() {
        names.push(None);
    }
    let mut groups = words(&rule["apiGroups"]);
    let mut whats = words(&rule["resources"]);
    if whats.is_empty() {
        groups.push(String::new());
        whats = words(&rule["nonResourceURLs"]);
    }
    let mut found = BTreeSet::new();
    for verb in words(&rule["verbs"]) {
        for group in &groups {
            for what in &whats {
                for name in &names {
                    found.insert(Right {
                        group: group.clone(),
                        what: what.clone(),
                        name: name.clone(),
                        verb: verb.clone(),
                    });
                }
            }
        }
    }
    assert!(!found.is_empty(), "{rule} permits nothing");
    found
}

/// What each role of a manifest permits, by `ClusterRole name`.
fn roles(manifest: &str) -> BTreeMap<String, BTreeSet<Right>> {
    let documents = documents(manifest);
    let roles = documents
        .iter()
        .filter(|document| matches!(document["kind"].as_str(), Some("Role" | "ClusterRole")));
    roles
        .map(|role| {
            let rules = role["rules"].as_array().into_iter().flatten();
            let title = format!(
                "{} {}",
                role["kind"].as_str().unwrap(),
                role["metadata"]["name"].as_str().unwrap()
            );
            (title, rules.flat_map(rights).collect())
        })
        .collect()
}

/// The words in backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What the tables of a page say, by heading: `### ClusterRole `name``.
fn tables(page: &str) -> BTreeMap<String, BTreeSet<Right>> {
    let mut found: BTreeMap<String, BTreeSet<Right>> = BTreeMap::new();
    let mut title = None;
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            let heading = heading.replace('`', "");
            found.insert(heading.clone(), BTreeSet::new());
            title = Some(heading);
        } else if line.starts_with("## ") {
            title = None;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (Some(title), [group, what, verbs, why, without]) = (&title, cells.as_slice()) else {
            continue;
        };
        if *group == "group" || group.starts_with("---") {
            continue;
        }
        assert!(!why.is_empty() && !without.is_empty(), "{line}");
        let (what, name) = match what.split_once(" named ") {
            Some((what, name)) => (what, quoted(name)),
            None => (*what, Vec::new()),
        };
        let mut rule = json!({
            "resourceNames": name,
            "verbs": verbs.split(", ").collect::<Vec<_>>(),
        });
        if *group == "–" {
            rule["nonResourceURLs"] = json!(quoted(what));
        } else {
            let group = quoted(group).pop().unwrap_or_default();
            rule["apiGroups"] = json!([group]);
            rule["resources"] = json!(quoted(what));
        }
        found.get_mut(title).unwrap().extend(rights(&rule));
    }
    found
}

#[test]
fn the_page_says_what_the_chart_permits() {
    let (written, permitted) = (tables(DOCUMENTATION), roles(CHART));
    let names = |roles: &BTreeMap<String, BTreeSet<Right>>| roles.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&written), names(&permitted));
    for (role, rights) in &permitted {
        assert_eq!(&written[role], rights, "{role}");
    }
    // The plain manifest permits no more.
    for (role, rights) in roles(MANIFEST) {
        let more: Vec<&Right> = rights.difference(&written[&role]).collect();
        assert_eq!(more, Vec::<&Right>::new(), "{role}");
    }
}

#[test]
fn nobody_is_permitted_everything_and_agents_nothing() {
    for (role, rights) in roles(CHART).into_iter().chain(roles(MANIFEST)) {
        for right in rights {
            let is_wild = [&right.group, &right.what, &right.verb].map(|word| word.contains('*'));
            assert_eq!(is_wild, [false; 3], "{role}: {right}");
            let is_own = right.name.as_deref() == Some("healthscope-tls") && right.verb != "list";
            assert!(right.what != "secrets" || is_own, "{role}: {right}");
        }
    }
    let mut documents = documents(CHART);
    documents.extend(self::documents(MANIFEST));
    let bindings = documents
        .iter()
        .filter(|document| document["kind"].as_str().unwrap().ends_with("Binding"));
    for binding in bindings {
        let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]);
        assert_eq!(binding["subjects"], subjects, "{binding}");
    }
    for text in MORE_KINDS {
        let role = documents_of_one(text);
        assert_eq!(role["metadata"]["labels"][AGGREGATED], "true", "{role}");
        for right in roles(text).into_values().flatten() {
            assert!(matches!(right.verb.as_str(), "list" | "watch"), "{right}");
        }
    }
}

fn documents_of_one(text: &str) -> Value {
    let mut documents = documents(text);
    assert_eq!(documents.len(), 1);
    documents.remove(0)
}

/// A cluster with HealthScope installed, as the first lines of the manifest say.
struct Installed {
    cluster: Cluster,
    /// Where the commands ran.
    folder: TempDir,
}

impl Installed {
    fn start() -> Self {
        let cluster = Cluster::start(&Options {
            controller_manager: true,
            audit: Some(Audit::Metadata),
            ..Options::control_plane()
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        symlink(
            cluster.kubectl_command().get_program(),
            folder.path().join("kubectl"),
        )
        .unwrap();
        fs::write(folder.path().join("install.yaml"), MANIFEST).unwrap();
        Self { cluster, folder }
    }

    /// Runs a line as somebody types it.
    fn shell(&self, line: &str) -> Output {
        let path = format!(
            "{}:{}",
            self.folder.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        Command::new("sh")
            .args(["-c", line])
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .output()
            .unwrap()
    }

    /// Runs a line that succeeds without a complaint; what it prints.
    #[track_caller]
    fn quietly(&self, line: &str) -> String {
        let output = self.shell(line);
        let (out, err) = (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        let complains = err.to_lowercase().contains("warning");
        assert!(output.status.success() && !complains, "{line}\n{out}{err}");
        out
    }

    /// Runs the commands of the manifest's first lines, but for the one that waits for pods: there is no node.
    #[track_caller]
    fn install(&self) {
        let commands: Vec<&str> = MANIFEST
            .lines()
            .skip_while(|line| !line.starts_with('#'))
            .take_while(|line| line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("#   "))
            .collect();
        let [apply, wait] = commands.as_slice() else {
            panic!("{commands:#?}");
        };
        self.quietly(apply);
        assert!(wait.starts_with("kubectl rollout status "), "{wait}");
        let established =
            "kubectl wait --for=condition=Established --timeout=60s crd/healthscopes.core.oam.dev";
        self.quietly(established);
        self.until("HealthScopes to be served", || {
            Ok(self.cluster.get("/apis/core.oam.dev/v1beta1/healthscopes").ok())
        });
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn until<T>(&self, what: &str, look: impl FnMut() -> anyhow::Result<Option<T>>) -> T {
        self.cluster.wait_for(what, LIMIT, look).unwrap()
    }

    /// A kubeconfig with the token of a ServiceAccount, and nothing else.
    fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.token_of(namespace, account);
        let admin = fs::read_to_string(self.cluster.kubeconfig()).unwrap();
        assert!(admin.contains(self.cluster.admin_token()));
        let file = self.file(&format!("{account}.kubeconfig"));
        fs::write(&file, admin.replace(self.cluster.admin_token(), &token)).unwrap();
        file
    }

    fn token_of(&self, namespace: &str, account: &str) -> String {
        let created = self
            .cluster
            .kubectl(["create", "token", account, "-n", namespace, "--duration=1h"]);
        created.unwrap().trim().to_owned()
    }

    /// The certificate that the aggregator tells everybody to trust.
    fn authority(&self) -> anyhow::Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/healthscope-ca");
        let published = self.cluster.get(&path)?;
        let authority = published["data"]["ca.crt"].as_str();
        Ok(authority.context("it is empty")?.to_owned())
    }

    /// What the API server was asked as this user, and what it answered.
    fn asked(&self, user: &str) -> Vec<Asked> {
        let log = fs::read_to_string(self.cluster.audit_log().unwrap()).unwrap();
        let entries = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries
            .filter(|entry| entry["user"]["username"] == user)
            .map(|entry| Asked::read(&entry))
            .collect()
    }
}

/// A request in the audit log.
#[derive(Debug)]
struct Asked {
    /// With the name of the object, if the request has one.
    right: Right,
    namespace: String,
    code: u64,
}

impl Asked {
    fn read(entry: &Value) -> Self {
        let object = &entry["objectRef"];
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let uri = entry["requestURI"].as_str().unwrap();
        let what = match (text("resource"), text("subresource")) {
            (resource, _) if resource.is_empty() => uri.split('?').next().unwrap_or_default().to_owned(),
            (resource, subresource) if subresource.is_empty() => resource,
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        Self {
            right: Right {
                group: text("apiGroup"),
                what,
                name: object["name"].as_str().map(str::to_owned),
                verb: entry["verb"].as_str().unwrap().to_owned(),
            },
            namespace: text("namespace"),
            code: entry["responseStatus"]["code"].as_u64().unwrap_or_default(),
        }
    }

    fn is_refused(&self) -> bool {
        self.code == 403
    }

    /// Whether a right lets this through.
    fn uses(&self, right: &Right) -> bool {
        let asked = &self.right;
        let is_named = right.name.is_none() || right.name == asked.name;
        !self.is_refused()
            && is_named
            && (&asked.group, &asked.what, &asked.verb) == (&right.group, &right.what, &right.verb)
    }
}

#[test]
fn the_installation_applies_as_written() {
    let installed = Installed::start();
    timed("the commands of the installation", || installed.install());

    // Again, it changes nothing.
    assert_eq!(installed.quietly("kubectl diff -f install.yaml"), "");

    // Pod Security lets its pods in, and others not.
    installed.until("both pods", || {
        let pods = installed.cluster.get(&format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=aggregator"
        ))?;
        Ok((pods["items"].as_array().map_or(0, Vec::len) == 2).then_some(()))
    });
    let lax = "kubectl run lax --image=local/none --namespace healthscope-system";
    let refused = installed.shell(lax);
    let err = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && err.contains("violates PodSecurity"),
        "{err}"
    );

    // The Service and the budget are about these pods, and nothing runs as root or writes to its image.
    let selected = "kubectl get pods -n healthscope-system -l app.kubernetes.io/name=healthscope,app.kubernetes.io/component=aggregator -o name";
    assert_eq!(installed.quietly(selected).lines().count(), 2);
    for text in MORE_KINDS {
        installed.cluster.apply(text).unwrap();
    }
    let listed = "kubectl auth can-i list services --all-namespaces --as=system:serviceaccount:healthscope-system:healthscope-aggregator";
    installed.until("the added kinds to be the aggregator's", || {
        Ok(installed.shell(listed).status.success().then_some(()))
    });

    // People's rights came with the ClusterRoles that they have anyway.
    let cluster = &installed.cluster;
    for (person, role) in [("vera", "view"), ("ed", "edit"), ("ada", "admin")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={person}"));
        cluster
            .kubectl(["create", "rolebinding", person, "-n", "default", &role, &user])
            .unwrap();
    }
    #[track_caller]
    fn check(installed: &Installed, person: &str, may: &str, expected: bool) {
        let line = format!("kubectl auth can-i {may} -n default --as={person}");
        installed.until(&line, || {
            Ok((installed.shell(&line).status.success() == expected).then_some(()))
        });
    }
    for (person, sees, edits, forgets) in [
        ("vera", true, false, false),
        ("ed", true, true, false),
        ("ada", true, true, true),
        ("stranger", false, false, false),
    ] {
        check(&installed, person, "watch healthscopes.core.oam.dev", sees);
        check(&installed, person, "patch healthscopes.core.oam.dev", edits);
        check(
            &installed,
            person,
            "create healthscopes.core.oam.dev --subresource=probe",
            edits,
        );
        check(
            &installed,
            person,
            "delete healthscopes.core.oam.dev --subresource=agent",
            forgets,
        );
        check(
            &installed,
            person,
            "update healthscopes.core.oam.dev --subresource=status",
            false,
        );
    }
}

/// A program of the project; `cargo xtask test` builds it beside the tests.
fn program(name: &str) -> PathBuf {
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

/// A program that runs until it is dropped.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it as a deleted pod ends.
    fn terminate(mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            tell(&format!("the end of {}:\n{tail}", self.log.display()));
        }
    }
}

/// A door to the API server. Connections that are open when it is stalled stay open, and nothing passes any more.
struct Door {
    address: SocketAddr,
    /// How often it was stalled; a connection belongs to the number that it began with.
    stalls: Arc<AtomicUsize>,
}

impl Door {
    /// Leads there until the test ends.
    fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let door = Self {
            address: listener.local_addr().unwrap(),
            stalls: Arc::default(),
        };
        let stalls = Arc::clone(&door.stalls);
        thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                let Ok(outside) = TcpStream::connect(target) else {
                    continue;
                };
                let begun = stalls.load(Ordering::SeqCst);
                for (from, to) in [(&inside, &outside), (&outside, &inside)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let stalls = Arc::clone(&stalls);
                    thread::spawn(move || Self::pass(from, to, || stalls.load(Ordering::SeqCst) == begun));
                }
            }
        });
        door
    }

    fn pass(mut from: TcpStream, mut to: TcpStream, is_open: impl Fn() -> bool) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if is_open() && to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // It may be shut already.
        let _ = to.shutdown(Shutdown::Both);
    }

    fn stall(&self) {
        self.stalls.fetch_add(1, Ordering::SeqCst);
    }
}

/// One replica, with the arguments and the environment of the Deployment.
struct Replica {
    pod: String,
    address: SocketAddr,
    running: Running,
    roots: Arc<ClientConfig>,
    /// Its way to the API server.
    door: Door,
}

impl Replica {
    fn start(installed: &Installed, pod: &str, kubeconfig: &Path) -> Self {
        let server = installed.cluster.server();
        let door = Door::open(server.trim_start_matches("https://").parse().unwrap());
        let text = fs::read_to_string(kubeconfig).unwrap();
        let kubeconfig = installed.file(&format!("{pod}.kubeconfig"));
        fs::write(
            &kubeconfig,
            text.replace(&server, &format!("https://{}", door.address)),
        )
        .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let documents = documents(MANIFEST);
        let deployment = documents
            .iter()
            .find(|document| document["kind"] == "Deployment")
            .unwrap();
        let spec = &deployment["spec"]["template"]["spec"];
        assert_eq!(spec["serviceAccountName"], NAME);
        let container = &spec["containers"][0];
        let name = container["command"][0].as_str().unwrap().trim_start_matches('/');
        let mut command = Command::new(program(name));
        command.env_clear().env("KUBECONFIG", kubeconfig);
        for argument in words(&container["args"]) {
            let argument = argument
                .replace("0.0.0.0:7575", &address.to_string())
                .replace("0.0.0.0:9443", "127.0.0.1:0")
                .replace("$(POD_IP):7575", &address.to_string());
            command.arg(argument);
        }
        for variable in container["env"].as_array().unwrap() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap() {
                "metadata.name" => pod.to_owned(),
                "metadata.namespace" => NAMESPACE.to_owned(),
                "status.podIP" => address.ip().to_string(),
                other => panic!("{other}"),
            };
            command.env(variable["name"].as_str().unwrap(), value);
        }
        let running = Running::start(command, installed.file(&format!("{pod}.log")));
        let authority = installed.until("the authority to be published", || {
            installed.authority().map(Some)
        });
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let roots = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            pod: pod.to_owned(),
            address,
            running,
            roots: Arc::new(roots),
            door,
        }
    }

    /// Asks as whoever has the token, over TLS and by the Service's name.
    fn ask(&self, method: &str, path: &str, token: Option<&str>) -> anyhow::Result<(u16, String)> {
        let stream = TcpStream::connect_timeout(&self.address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.roots), name)?, stream);
        let authorization =
            token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Type: application/json\r\n\
             Content-Length: 0\r\nConnection: close\r\n{authorization}\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let code = head.split(' ').nth(1).context("no HTTP")?.parse()?;
        Ok((code, body.to_owned()))
    }

    fn get(&self, path: &str, token: Option<&str>) -> anyhow::Result<(u16, String)> {
        self.ask("GET", path, token)
    }
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec: {containers: [{name: main, image: local/none}]}
---
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: web, namespace: shop}
spec:
  workloadRefs:
  - {apiVersion: v1, kind: Pod, name: web-0}
---
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: others, namespace: shop}
spec:
  workloadRefs:
  - {apiVersion: apps/v1, kind: Deployment, name: cart}
  - {apiVersion: v1, kind: Service, name: web}
"#;

/// A pod with an agent in it, which this test runs beside it. Created when its ServiceAccount is there.
const WEB: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop}
spec:
  serviceAccountName: web
  automountServiceAccountToken: false
  initContainers: [{name: healthscope-agent, image: local/none, restartPolicy: Always}]
  containers: [{name: main, image: local/none}]
";

/// What a kubelet says of a pod that runs.
const RUNS: &str = r#"{"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
    "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
    "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0, "image": "local/none",
        "imageID": "none", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}}"#;

/// A pod whose agent's image cannot be had, and the canary, which no controller makes here.
const STUCK: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: stuck-0, namespace: shop}
spec:
  serviceAccountName: web
  automountServiceAccountToken: false
  initContainers: [{name: healthscope-agent, image: local/none, restartPolicy: Always}]
  containers: [{name: main, image: local/none}]
---
apiVersion: v1
kind: Pod
metadata: {name: healthscope-canary-0, namespace: healthscope-system}
spec:
  serviceAccountName: healthscope-canary
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 2102, seccompProfile: {type: RuntimeDefault}}
  initContainers:
    - {name: healthscope-agent, image: local/none, restartPolicy: Always, securityContext: &restricted {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
  containers:
    - {name: canary, image: local/none, securityContext: *restricted}
";

/// What a kubelet says of it.
const CANNOT_PULL: &str = r#"{"status": {"phase": "Pending", "initContainerStatuses": [
    {"name": "healthscope-agent", "ready": false, "restartCount": 0, "image": "local/none", "imageID": "",
        "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}}"#;

/// What a scope says of its component of a kind: health, reason, message.
fn says(installed: &Installed, scope: &str, kind: &str) -> anyhow::Result<(String, String, String)> {
    let path = format!("/apis/core.oam.dev/v1beta1/namespaces/shop/healthscopes/{scope}");
    let scope = installed.cluster.get(&path)?;
    let components = scope["status"]["components"].as_array().context("no status")?;
    let component = components
        .iter()
        .find(|component| component["kind"] == kind)
        .context("no component")?;
    let text = |field: &str| component[field].as_str().unwrap_or_default().to_owned();
    Ok((text("health"), text("reason"), text("message")))
}

/// Whether the pod is known to be so.
fn pod_is(installed: &Installed, expected: &str) -> anyhow::Result<Option<()>> {
    let (health, reason, message) = says(installed, "web", "Pod")?;
    ensure!(health == expected, "{health} {reason} {message}");
    Ok(Some(()))
}

/// Starts the real agent of the pod `web-0`, which is ready while a file is there.
fn agent(installed: &Installed, aggregator: &Replica, ready: &Path) -> Running {
    let pod = installed
        .cluster
        .get("/api/v1/namespaces/shop/pods/web-0")
        .unwrap();
    let uid = format!("--bound-object-uid={}", pod["metadata"]["uid"].as_str().unwrap());
    let token = installed
        .cluster
        .kubectl([
            "create",
            "token",
            "web",
            "-n",
            "shop",
            "--audience=healthscope.core.oam.dev",
            "--bound-object-kind=Pod",
            "--bound-object-name=web-0",
            &uid,
        ])
        .unwrap();
    let [token_file, config, authority] =
        ["agent.token", "agent.yaml", "ca.crt"].map(|name| installed.file(name));
    fs::write(&token_file, token.trim()).unwrap();
    fs::write(&authority, installed.authority().unwrap()).unwrap();
    let component = format!(
        "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: web}}\nspec: {{readinessProbe: \
         {{exec: {{command: [test, -e, {}]}}, periodSeconds: 1, failureThreshold: 1}}}}\n",
        ready.display()
    );
    fs::write(&config, component).unwrap();
    let mut command = Command::new(program("healthscope-agent"));
    command
        .env_remove("HEALTHSCOPE_SERVER")
        .arg("--config")
        .arg(config)
        .arg(format!("--aggregator=wss://{}", aggregator.address))
        .arg(format!("--server-name={SERVER_NAME}"))
        .arg("--ca")
        .arg(authority)
        .arg("--token-file")
        .arg(token_file)
        .arg("--socket")
        .arg(installed.file("agent.sock"));
    Running::start(command, installed.file("agent.log"))
}

/// The pod that holds the Lease, as it calls itself.
fn holder(installed: &Installed) -> anyhow::Result<String> {
    let lease = installed.cluster.get(&format!(
        "/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{NAME}"
    ))?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    ensure!(!holder.is_empty(), "nobody holds the Lease");
    Ok(holder.to_owned())
}

#[test]
fn the_aggregator_uses_all_of_its_rights_and_asks_for_no_more() {
    let installed = Installed::start();
    installed.install();
    let cluster = &installed.cluster;
    cluster.apply(SHOP).unwrap();
    cluster.apply(WEB).unwrap();
    let runs = [
        "patch",
        "pod",
        "web-0",
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        RUNS,
    ];
    cluster.kubectl(runs).unwrap();
    for (name, role) in [("edit", "edit"), ("metrics", "healthscope-metrics")] {
        let (kind, role) = match name {
            "edit" => ("rolebinding", format!("--clusterrole={role}")),
            _ => ("clusterrolebinding", format!("--clusterrole={role}")),
        };
        let binding = [
            "create",
            kind,
            name,
            "-n",
            "shop",
            &role,
            "--serviceaccount=shop:reader",
        ];
        cluster.kubectl(binding).unwrap();
    }

    let kubeconfig = installed.kubeconfig_of(NAMESPACE, NAME);
    let replicas = ["aggregator-a", "aggregator-b"].map(|pod| Replica::start(&installed, pod, &kubeconfig));
    for replica in &replicas {
        installed.until("a replica to be ready", || {
            let (code, body) = replica.get("/readyz", None)?;
            ensure!(code == 200, "{code} {body}");
            Ok(Some(()))
        });
        assert_eq!(replica.get("/livez", None).unwrap().0, 200);
    }

    // One of them serves; the other sends agents to it.
    let first = installed.until("a holder of the Lease", || holder(&installed).map(Some));
    let [a, b] = replicas;
    let (owner, standby) = if first.starts_with(&a.pod) { (a, b) } else { (b, a) };
    assert!(first.starts_with(&owner.pod), "{first}");
    let ready = installed.file("ready");
    fs::write(&ready, "").unwrap();
    let agent = agent(&installed, &standby, &ready);
    let reader = installed.token_of("shop", "reader");
    installed.until("the agent to come by way of the other replica", || {
        let (code, body) = owner.get("/api/v1/agents?presence=connected", Some(&reader))?;
        ensure!(
            code == 200 && body.contains("web-0"),
            "{code} {body}\n{}",
            agent.log()
        );
        Ok(Some(()))
    });
    installed.until("the pod to be healthy", || pod_is(&installed, "Healthy"));

    // A kind that nobody was given, and how it is given.
    let message = installed.until("the Service to be Forbidden", || {
        let (health, reason, message) = says(&installed, "others", "Service")?;
        ensure!(reason == "Forbidden", "{health} {reason} {message}");
        Ok(Some(message))
    });
    let rule = r#"{apiGroups: [""], resources: [services], verbs: [list, watch]}"#;
    assert!(message.contains(rule) && SERVICES.contains(rule), "{message}");
    let label = format!("{AGGREGATED}: \"true\"");
    assert!(message.contains(&label) && SERVICES.contains(&label), "{message}");
    cluster.apply(SERVICES).unwrap();
    timed("a kind that may be read from now on", || {
        installed.until("the Service to be read", || {
            let (health, reason, message) = says(&installed, "others", "Service")?;
            ensure!(reason != "Forbidden", "{health} {reason} {message}");
            Ok(Some(()))
        });
    });

    // Who applies the manifest again takes nothing away.
    let kept = |installed: &Installed| {
        let webhooks =
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/healthscope-agent-injector";
        let webhooks = installed.cluster.get(webhooks).unwrap();
        let secret = format!("/api/v1/namespaces/{NAMESPACE}/secrets/healthscope-tls");
        let secret = installed.cluster.get(&secret).unwrap();
        let bundle = webhooks["webhooks"][0]["clientConfig"]["caBundle"].clone();
        (bundle, secret["data"].clone(), installed.authority().unwrap())
    };
    let before = kept(&installed);
    assert!(
        before.0.is_string() && before.1["tls.key"].is_string(),
        "{before:?}"
    );
    installed.quietly("kubectl apply -f install.yaml");
    assert_eq!(before, kept(&installed));

    // What a reader may see and do, is the cluster's affair.
    let (code, body) = owner.get("/api/v1/scopes", Some(&reader)).unwrap();
    assert!(code == 200 && body.contains("\"others\""), "{code} {body}");
    let stranger = installed.token_of("default", "default");
    let (code, body) = owner.get("/api/v1/scopes", Some(&stranger)).unwrap();
    assert!(!body.contains("\"others\""), "{code} {body}");
    assert_eq!(owner.get("/metrics", Some(&reader)).unwrap().0, 200);
    assert_eq!(owner.get("/metrics", Some(&stranger)).unwrap().0, 403);
    assert_eq!(owner.get("/api/v1/scopes", None).unwrap().0, 401);

    // Where an agent keeps a pod from starting, less is injected, and another canary is to show when that may end.
    let canary = || -> anyhow::Result<Value> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/healthscope-canary-0");
        Ok(cluster.get(&path)?["metadata"]["uid"].clone())
    };
    let first_canary = installed.until("the first canary", || canary().map(Some));
    cluster.apply(STUCK).unwrap();
    let stuck = [
        "patch",
        "pod",
        "stuck-0",
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        CANNOT_PULL,
    ];
    cluster.kubectl(stuck).unwrap();
    installed.until("the breaker to open", || {
        let map = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/healthscope-breaker");
        let record = cluster.get(&map)?["data"]["record.json"].to_string();
        Ok(record.contains("ImagePull").then_some(()))
    });
    installed.until("the canary to be made anew", || {
        Ok((canary()? != first_canary).then_some(()))
    });
    cluster
        .kubectl(["delete", "pod", "stuck-0", "-n", "shop", "--wait=false"])
        .unwrap();

    // The watch brings nothing any more, and somebody changes the scope: the next write is a conflict that only a look
    // at the object explains.
    owner.door.stall();
    let touch = ["annotate", "healthscope", "web", "-n", "shop", "touched=now"];
    cluster.kubectl(touch).unwrap();
    fs::remove_file(&ready).unwrap();
    timed("a write over a change that the watch did not bring", || {
        installed.until("the change to be written", || pod_is(&installed, "Unhealthy"));
    });

    // One owner at a time: the other takes over when it goes, and what it writes is right.
    let second = installed.until("a holder of the Lease", || holder(&installed).map(Some));
    let (leaving, staying) = if second.starts_with(&owner.pod) {
        (owner, standby)
    } else {
        (standby, owner)
    };
    assert!(second.starts_with(&leaving.pod), "{second}");
    leaving.running.terminate();
    installed.until("the other to take over", || {
        let now = holder(&installed)?;
        ensure!(now.starts_with(&staying.pod), "{now}");
        Ok(Some(()))
    });
    installed.until("the agent to come to the other", || {
        let (code, body) = staying.get("/api/v1/agents?presence=connected", Some(&reader))?;
        ensure!(code == 200 && body.contains("web-0"), "{code} {body}");
        Ok(Some(()))
    });
    fs::write(&ready, "").unwrap();
    installed.until("a change to be written by the other", || {
        pod_is(&installed, "Healthy")
    });
    // One Event for each transition, by whoever served then: none for the change of replicas.
    let told = |event: &Value| (event["reportingInstance"].clone(), event["reason"].clone());
    installed.until("the Events", || {
        let events = cluster.get("/apis/events.k8s.io/v1/namespaces/shop/events")?;
        let mut events: Vec<&Value> = events["items"]
            .as_array()
            .context("no list")?
            .iter()
            .filter(|event| {
                event["regarding"]["kind"] == "HealthScope" && event["regarding"]["name"] == "web"
            })
            .collect();
        events.sort_by_key(|event| event["eventTime"].as_str().map(str::to_owned));
        let told: Vec<(Value, Value)> = events.into_iter().map(told).collect();
        let expected = [
            (json!(leaving.pod), json!("PolicyNotMet")),
            (json!(staying.pod), json!("Recovered")),
        ];
        ensure!(told.ends_with(&expected), "{told:?}");
        Ok(Some(()))
    });
    staying.running.terminate();
    drop(agent);

    let asked = installed.asked(ACCOUNT);
    let refused: BTreeSet<String> = asked
        .iter()
        .filter(|asked| asked.is_refused())
        .map(|asked| format!("{} in {}", asked.right, asked.namespace))
        .collect();
    assert_eq!(refused, BTreeSet::from(["list services in shop".to_owned()]));
    let roles = roles(MANIFEST);
    let mut granted = roles["ClusterRole healthscope-aggregator"].clone();
    granted.extend(roles["ClusterRole healthscope-aggregator-injector"].clone());
    granted.extend(roles["Role healthscope-aggregator"].clone());
    granted.extend(self::roles(SERVICES).into_values().flatten());
    let unused: Vec<String> = granted
        .iter()
        .filter(|right| !asked.iter().any(|asked| asked.uses(right)))
        .map(ToString::to_string)
        .collect();
    assert_eq!(unused, Vec::<String>::new(), "rights that nothing needed");
    // The pod's token opens the aggregator's door and no other.
    assert_eq!(installed.asked("system:serviceaccount:shop:web").len(), 0);
}
