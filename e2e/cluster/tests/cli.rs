//! The command line against a real API server: as `healthscope` and as `kubectl healthscope`. Statuses are written by
//! hand, so nothing here needs an aggregator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    healthscope_crd::manifest,
    healthscope_e2e_cluster::{Cluster, Component, Options, timed},
    serde_json::{Value, json},
    std::{
        ffi::OsStr,
        fs,
        io::{BufRead, BufReader, Read},
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Child, Command, Output, Stdio},
        sync::{Arc, Condvar, LazyLock, Mutex},
        thread,
        time::{Duration, Instant},
    },
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    install(&cluster);
    cluster
});

/// Makes the API server know HealthScopes.
fn install(cluster: &Cluster) {
    cluster
        .apply(&serde_json::to_string(&manifest::crd()).unwrap())
        .unwrap();
    cluster
        .kubectl([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/healthscopes.core.oam.dev",
        ])
        .unwrap();
    // The path is served a moment after the condition is set.
    cluster
        .wait_for("HealthScopes to be served", LIMIT, || {
            Ok(cluster.get("/apis/core.oam.dev/v1beta1/healthscopes").ok())
        })
        .unwrap();
}

/// The program that is tested; `cargo xtask test` builds it beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap();
    let program = folder.join("healthscope");
    assert!(
        program.is_file(),
        "{} is not there: cargo build -p healthscope",
        program.display()
    );
    program
}

/// A folder in which kubectl finds its plugin.
fn plugins() -> &'static Path {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kubectl-healthscope", "kubectl_complete-healthscope"] {
            symlink(program(), folder.path().join(name)).unwrap();
        }
        folder
    });
    FOLDER.path()
}

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// `healthscope` with a kubeconfig.
fn healthscope(kubeconfig: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("PATH", plugins())
        .env("HOME", plugins())
        .env("TZ", "UTC")
        .env("KUBECONFIG", kubeconfig)
        .arg("--kubernetes");
    command
}

fn run(cluster: &Cluster, line: &str) -> Answer {
    Answer::of(
        healthscope(cluster.kubeconfig())
            .args(line.split(' '))
            .output()
            .unwrap(),
    )
}

fn run_plugin(cluster: &Cluster, line: &str) -> Answer {
    let mut command = cluster.kubectl_command();
    command
        .arg("healthscope")
        .args(line.split(' '))
        .env("PATH", plugins());
    Answer::of(command.output().unwrap())
}

/// Both ways of calling it say the same. An age may tick between the two, but not each time.
#[track_caller]
fn run_both(cluster: &Cluster, line: &str) -> Answer {
    let mut said = Vec::new();
    for _ in 0..3 {
        let direct = run(cluster, line);
        let plugin = run_plugin(cluster, line);
        if (direct.code, &direct.out, &direct.err) == (plugin.code, &plugin.out, &plugin.err) {
            return direct;
        }
        said.push((direct, plugin));
    }
    panic!("{line}: {said:#?}");
}

/// A namespace for one test.
fn namespace(cluster: &Cluster, name: &str) -> String {
    cluster.kubectl(["create", "namespace", name]).unwrap();
    name.to_owned()
}

fn scope(namespace: &str, name: &str) -> Value {
    let mut members = vec![
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "required": true, "dependsOn": ["db"]}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db"}),
    ];
    if name != "payments" {
        members.push(json!({"kind": "HealthScope", "name": "payments"}));
    }
    json!({
        "apiVersion": "core.oam.dev/v1beta1",
        "kind": "HealthScope",
        "metadata": {"name": name, "namespace": namespace, "labels": {"team": name}},
        "spec": {
            "workloadRefs": members,
            "policy": {"minAvailable": 60},
        },
    })
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, generation: i64) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": "2026-01-02T05:00:00Z",
    })
}

fn component(kind: &str, name: &str, health: &str, reason: &str, message: &str) -> Value {
    let api_version = if kind == "HealthScope" {
        "core.oam.dev/v1beta1"
    } else {
        "apps/v1"
    };
    json!({
        "apiVersion": api_version, "kind": kind, "name": name, "health": health, "reason": reason,
        "message": message, "since": "2026-01-02T05:00:00Z",
    })
}

const UNHEALTHY_CAUSE: &str = "db: StatefulSet 0/1 ready, db-0 CrashLoopBackOff (exit code 1)";

fn unhealthy(generation: i64) -> Value {
    let mut web = component("Deployment", "web", "Unhealthy", "NotReady", "0/2 ready");
    web["causedBy"] = json!("db");
    web["required"] = json!(true);
    json!({
        "observedGeneration": generation, "health": "Unhealthy", "available": "1/4",
        "rootCause": UNHEALTHY_CAUSE,
        "summary": {"total": 4, "healthy": 1, "degraded": 0, "unhealthy": 3, "unknown": 0},
        "components": [
            component("StatefulSet", "db", "Unhealthy", "CrashLoopBackOff", "0/1 ready, db-0 CrashLoopBackOff"),
            component("HealthScope", "payments", "Unhealthy", "PolicyNotMet", "ledger: gone"),
            web,
            component("Deployment", "mailer", "Healthy", "Passing", ""),
        ],
        "conditions": [
            condition("Ready", "True", "Accepted", "", generation),
            condition("Healthy", "False", "RequiredUnavailable", "required web is not available", generation),
            condition("Available", "False", "RequiredUnavailable", "required web is not available", generation),
            condition("Stalled", "False", "Accepted", "", generation),
        ],
    })
}

fn healthy(generation: i64) -> Value {
    let names = ["db", "mailer", "payments", "web"];
    let components: Vec<Value> = names
        .iter()
        .map(|name| {
            let kind = match *name {
                "db" => "StatefulSet",
                "payments" => "HealthScope",
                _ => "Deployment",
            };
            component(kind, name, "Healthy", "Passing", "")
        })
        .collect();
    json!({
        "observedGeneration": generation, "health": "Healthy", "available": "4/4", "rootCause": null,
        "summary": {"total": 4, "healthy": 4, "degraded": 0, "unhealthy": 0, "unknown": 0},
        "components": components,
        "conditions": [
            condition("Ready", "True", "Accepted", "", generation),
            condition("Healthy", "True", "AllHealthy", "", generation),
            condition("Available", "True", "AllHealthy", "", generation),
            condition("Stalled", "False", "Accepted", "", generation),
        ],
    })
}

fn ledger_gone() -> Value {
    json!({
        "observedGeneration": 1, "health": "Unhealthy", "available": "0/1", "rootCause": "ledger: gone",
        "summary": {"total": 1, "healthy": 0, "degraded": 0, "unhealthy": 1, "unknown": 0},
        "components": [component("Deployment", "ledger", "Unhealthy", "NotFound", "there is no Deployment ledger")],
        "conditions": [
            condition("Healthy", "False", "PolicyNotMet", "ledger: gone", 1),
            condition("Available", "False", "PolicyNotMet", "ledger: gone", 1),
        ],
    })
}

fn write_status(cluster: &Cluster, namespace: &str, name: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    cluster
        .kubectl([
            "patch",
            "healthscope",
            name,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .unwrap();
}

/// A namespace with a scope `shop` that is not healthy and the scope `payments` in it.
fn shop(cluster: &Cluster, name: &str) -> String {
    let namespace = namespace(cluster, name);
    for scope_name in ["shop", "payments"] {
        cluster.apply(&scope(&namespace, scope_name).to_string()).unwrap();
    }
    write_status(cluster, &namespace, "shop", &unhealthy(1));
    write_status(cluster, &namespace, "payments", &ledger_gone());
    namespace
}

/// A line with its columns, the last of which grows older by itself.
fn columns(line: &str) -> Vec<&str> {
    let mut columns: Vec<&str> = line
        .split("   ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    columns.pop();
    columns
}

#[test]
fn scopes_are_listed_as_kubectl_lists_them() {
    let cluster = &*CLUSTER;
    let namespace = shop(cluster, "listed");
    let all = run_both(cluster, &format!("get scopes -n {namespace}"));
    assert_eq!(all.code, Some(0), "{all:?}");
    let lines: Vec<Vec<&str>> = all.out.lines().map(columns).collect();
    assert_eq!(
        lines,
        [
            vec!["NAME", "HEALTH", "AVAILABLE", "ROOT CAUSE"],
            vec!["payments", "Unhealthy", "0/1", "ledger: gone"],
            vec!["shop", "Unhealthy", "1/4", UNHEALTHY_CAUSE],
        ]
    );
    // The same values in kubectl's own columns, before AGE.
    let kubectl = cluster.kubectl(["get", "health", "-n", &namespace]).unwrap();
    assert_eq!(kubectl.lines().map(columns).collect::<Vec<_>>(), lines);

    let one = run_both(cluster, &format!("get scope/shop -n {namespace} -o json"));
    let kubectls: Value = serde_json::from_str(
        &cluster
            .kubectl(["get", "health", "shop", "-n", &namespace, "-o", "json"])
            .unwrap(),
    )
    .unwrap();
    assert_eq!(one.json(), kubectls);
    let list = run_both(cluster, &format!("get scopes -n {namespace} -o json"));
    assert_eq!(list.json()["items"].as_array().unwrap().len(), 2);
    let names = run_both(cluster, &format!("get health -n {namespace} -o name"));
    let kubectls = cluster
        .kubectl(["get", "health", "-n", &namespace, "-o", "name"])
        .unwrap();
    assert_eq!(names.out.trim(), kubectls.trim());

    let labelled = run_both(
        cluster,
        &format!("get scopes -n {namespace} -l team=shop -o name"),
    );
    assert_eq!(labelled.out, "healthscope.core.oam.dev/shop\n");
    let everywhere = run_both(cluster, "get scopes -A -o wide");
    let line = everywhere
        .out
        .lines()
        .find(|line| line.starts_with("listed") && line.contains("shop"))
        .unwrap();
    assert!(line.contains("RequiredUnavailable"), "{line}");

    let missing = run_both(cluster, &format!("get scopes shop nosuch -n {namespace}"));
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.out.contains("shop ")
            && missing
                .err
                .contains("scope \"nosuch\" not found in the namespace listed")
    );
}

#[test]
fn the_context_says_which_namespace_is_meant() {
    let cluster = &*CLUSTER;
    let namespace = shop(cluster, "preferred");
    let file = cluster.folder().join("preferred.kubeconfig");
    let text = fs::read_to_string(cluster.kubeconfig()).unwrap();
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    cluster
        .kubectl([
            "--kubeconfig",
            &file,
            "config",
            "set-context",
            "--current",
            "--namespace",
            &namespace,
        ])
        .unwrap();
    let listed = Answer::of(
        healthscope(&file)
            .args(["get", "scopes", "-o", "name"])
            .output()
            .unwrap(),
    );
    assert!(listed.out.contains("healthscope.core.oam.dev/shop"), "{listed:?}");

    let unknown = run(cluster, "get scopes --context nosuch");
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown
            .err
            .starts_with("error: the kubeconfig has no context \"nosuch\"; it has "),
        "{unknown:?}"
    );
    let nowhere = run(cluster, "get scopes --kubeconfig /nonexistent/file");
    assert!(
        nowhere.err.contains("cannot use the kubeconfig") && nowhere.code == Some(1),
        "{nowhere:?}"
    );
}

#[test]
fn why_leads_through_nested_scopes_and_says_what_is_missing() {
    let cluster = &*CLUSTER;
    let namespace = shop(cluster, "explained");
    let why = run_both(cluster, &format!("why shop -n {namespace}"));
    assert_eq!(why.code, Some(1), "{why:?}");
    assert!(
        why.err.starts_with("without what the checks printed: ")
            && why.err.contains("the ConfigMap healthscope-ca"),
        "{why:?}"
    );
    assert_eq!(why.err.lines().count(), 1, "{why:?}");
    let age = why
        .out
        .split(" for ")
        .nth(1)
        .unwrap()
        .split(':')
        .next()
        .unwrap()
        .to_owned();
    let expected = "\
shop is Unhealthy for AGE: 1/4 components available, 3 needed
root cause: db: StatefulSet 0/1 ready, db-0 CrashLoopBackOff (exit code 1)

├─ Unhealthy StatefulSet/db (CrashLoopBackOff, for AGE, root cause)
│  └─ 0/1 ready, db-0 CrashLoopBackOff
├─ Unhealthy HealthScope/payments (PolicyNotMet, for AGE, root cause)
│  └─ Unhealthy Deployment/ledger (NotFound, for AGE, root cause)
│     └─ there is no Deployment ledger
├─ Unhealthy Deployment/web (NotReady, for AGE, required, caused by db)
│  └─ 0/2 ready
└─ Healthy Deployment/mailer
";
    assert_eq!(why.out.replace(&age, "AGE"), expected);

    write_status(cluster, &namespace, "shop", &healthy(1));
    let well = run_both(cluster, &format!("why shop -n {namespace}"));
    assert_eq!((well.code, well.err.as_str()), (Some(0), ""), "{well:?}");
    let gone = run_both(cluster, &format!("why nosuch -n {namespace}"));
    assert_eq!(
        (gone.code, gone.err.as_str()),
        (
            Some(1),
            "error: there is no HealthScope nosuch in the namespace explained\n"
        )
    );
}

#[test]
fn a_scope_nobody_has_reported_on_is_unknown() {
    let cluster = &*CLUSTER;
    let namespace = namespace(cluster, "unreported");
    cluster.apply(&scope(&namespace, "shop").to_string()).unwrap();
    let listed = run_both(cluster, &format!("get scope shop -n {namespace} --no-headers"));
    assert_eq!(
        columns(listed.out.trim()),
        ["shop", "Unknown", "<none>", "<none>"]
    );
    let why = run_both(cluster, &format!("why shop -n {namespace}"));
    assert_eq!(why.code, Some(1));
    assert!(
        why.out.contains("no aggregator has reported on it yet"),
        "{why:?}"
    );
}

#[test]
fn a_user_who_may_not_look_is_told_which_rule_is_missing() {
    let cluster = &*CLUSTER;
    let namespace = shop(cluster, "forbidden");
    let kubeconfig = cluster.kubeconfig_for("nobody", None).unwrap();
    let ask = |line: &str| Answer::of(healthscope(&kubeconfig).args(line.split(' ')).output().unwrap());
    for (line, verb) in [
        ("get scopes -n forbidden", "list"),
        ("get scopes -n forbidden -w", "watch"),
        ("why shop -n forbidden", "get"),
        ("watch -n forbidden", "watch"),
        ("wait shop -n forbidden --for=healthy", "get"),
    ] {
        let refused = ask(line);
        let expected = format!(
            "error: you may not {verb} healthscopes in the namespace forbidden; it takes a Role with the rule \
             {{apiGroups: [\"core.oam.dev\"], resources: [\"healthscopes\"], verbs: [get, list, watch]}} ("
        );
        assert_eq!(
            (refused.code, refused.out.as_str()),
            (Some(1), ""),
            "{line}: {refused:?}"
        );
        assert!(refused.err.starts_with(&expected), "{line}: {refused:?}");
    }

    // The rule that is named is enough, also for one scope alone.
    let rule = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "look", "namespace": namespace},
        "rules": [{
            "apiGroups": ["core.oam.dev"], "resources": ["healthscopes"], "verbs": ["get", "list", "watch"],
            "resourceNames": ["shop"],
        }],
    });
    cluster.apply(&rule.to_string()).unwrap();
    cluster
        .kubectl([
            "create",
            "rolebinding",
            "look",
            "-n",
            &namespace,
            "--role=look",
            "--user=nobody",
        ])
        .unwrap();
    let allowed = cluster
        .wait_for("the role to count", LIMIT, || {
            let answer = ask("get scope shop -n forbidden -o name");
            Ok((answer.code == Some(0)).then_some(answer))
        })
        .unwrap();
    assert_eq!(allowed.out, "healthscope.core.oam.dev/shop\n");
    let waited = ask("wait shop -n forbidden --for=unhealthy");
    assert_eq!(waited.code, Some(0), "{waited:?}");
    // A client certificate cannot be passed on.
    let why = ask("why shop -n forbidden");
    assert_eq!(why.code, Some(1));
    assert!(why.err.contains("your kubeconfig has no token"), "{why:?}");
}

#[test]
fn wait_ends_when_somebody_else_writes_the_status() {
    let cluster = &*CLUSTER;
    let namespace = shop(cluster, "waited");
    let late = run_both(
        cluster,
        &format!("wait shop -n {namespace} --for=healthy --timeout=300ms"),
    );
    assert_eq!(late.code, Some(1));
    assert!(
        late.err.contains(&format!(
            "timed out after 300ms waiting for shop to be Healthy: shop is Unhealthy: {UNHEALTHY_CAUSE}"
        )),
        "{late:?}"
    );

    // A status of an older spec does not count, whatever it says.
    write_status(cluster, &namespace, "shop", &healthy(1));
    cluster
        .kubectl([
            "patch",
            "health",
            "shop",
            "-n",
            &namespace,
            "--type=merge",
            "-p",
            r#"{"spec":{"policy":{"minAvailable":70}}}"#,
        ])
        .unwrap();
    let behind = run_both(
        cluster,
        &format!("wait shop -n {namespace} --for=healthy --timeout=300ms"),
    );
    assert!(
        behind
            .err
            .contains("the status is about generation 1 and the spec is at 2"),
        "{behind:?}"
    );
    for goal in ["healthy", "available", "condition=Healthy"] {
        let waiting = healthscope(cluster.kubeconfig())
            .args([
                "wait",
                "shop",
                "-n",
                &namespace,
                "--timeout=60s",
                &format!("--for={goal}"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        write_status(cluster, &namespace, "shop", &healthy(2));
        let answer = Answer::of(waiting.wait_with_output().unwrap());
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (Some(0), "healthscope.core.oam.dev/shop condition met\n"),
            "{goal}: {answer:?}"
        );
        write_status(cluster, &namespace, "shop", &unhealthy(2));
    }
    let waiting = healthscope(cluster.kubeconfig())
        .args(["wait", "shop", "-n", &namespace, "--for=delete", "--timeout=60s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cluster
        .kubectl(["delete", "health", "shop", "-n", &namespace])
        .unwrap();
    let answer = Answer::of(waiting.wait_with_output().unwrap());
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

/// A running command and what it prints, both streams in one.
struct Running {
    child: Child,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Running {
    fn start(cluster: &Cluster, line: &str) -> Self {
        let mut child = healthscope(cluster.kubeconfig())
            .args(line.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::default();
        collect(child.stdout.take().unwrap(), &lines);
        collect(child.stderr.take().unwrap(), &lines);
        Self { child, lines }
    }

    #[track_caller]
    fn wait_for(&self, part: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        let (lines, changed) = &*self.lines;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with {part:?}, only {lines:#?}");
            lines = changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    fn all(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, lines: &Arc<(Mutex<Vec<String>>, Condvar)>) {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.0.lock().unwrap().push(line);
            lines.1.notify_all();
        }
    });
}

#[test]
fn a_cluster_without_healthscope_is_told_and_a_watch_outlives_the_api_server() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    for line in [
        "get scopes",
        "why shop",
        "watch",
        "wait shop --for=healthy",
        "get scopes -w",
    ] {
        let refused = run_both(&cluster, line);
        assert_eq!(refused.code, Some(1), "{line}: {refused:?}");
        assert!(
            refused
                .err
                .starts_with("error: HealthScope is not installed in this cluster: "),
            "{line}: {refused:?}"
        );
    }
    install(&cluster);
    let namespace = shop(&cluster, "watched");
    let changes = Running::start(&cluster, &format!("watch -n {namespace}"));
    let rows = Running::start(&cluster, &format!("get scopes -n {namespace} -w"));
    rows.wait_for("payments");
    // The watch prints nothing before something changes, so changes are made until it has seen one.
    cluster
        .wait_for("the watch to begin", LIMIT, || {
            write_status(&cluster, &namespace, "payments", &healthy(1));
            write_status(&cluster, &namespace, "payments", &ledger_gone());
            Ok((!changes.all().is_empty()).then_some(()))
        })
        .unwrap();

    cluster.kill(Component::ApiServer).unwrap();
    changes.wait_for("connection lost: cannot reach the cluster at https://127.0.0.1:");
    let unreachable = run_both(&cluster, "get scopes");
    assert!(
        unreachable.code == Some(1) && unreachable.err.contains("connection refused; is it running"),
        "{unreachable:?}"
    );
    timed("the API server again", || {
        cluster.start_again(Component::ApiServer)
    })
    .unwrap();
    write_status(&cluster, &namespace, "shop", &healthy(1));
    let change = changes.wait_for("scope watched/shop");
    assert!(change.contains("Unhealthy → Healthy"), "{change}");
    changes.wait_for("component watched/db");
    rows.wait_for("shop       Healthy     4/4");
    changes.wait_for("connection is back");
}
