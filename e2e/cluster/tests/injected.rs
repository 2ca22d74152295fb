//! Pods with agents on a real node, under Pod Security `restricted`, whatever goes wrong: the application starts, is ready and
//! stays ready, and the only thing that is lost is our verdict.
//!
//! One node and one installation for all cases. Pods whose story begins with their start are made at once, because what takes
//! long there is waiting.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/installation.rs"]
mod installation;
#[path = "support/aggregator.rs"]
mod support;

use {
    crate::{
        installation::{
            AGENT, AGENT_IMAGE, History, Installation, RELEASE, agent_image, is_injected, is_true,
            restricted, run_cases, scope_of, static_runner,
        },
        support::{Watched, program},
    },
    anyhow::ensure,
    base64::{Engine, engine::general_purpose::STANDARD},
    healthscope_e2e_cluster::{Component, Image, tell, timed},
    rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair},
    rustix::process::{Signal, kill_process},
    serde_json::{Value, json},
    std::{
        collections::BTreeSet,
        time::{Duration, Instant},
    },
};

/// Pods here get their agents from the webhook.
const ONLINE: &str = "online";
/// Pods here come with their agents in the manifest.
const OFFLINE: &str = "offline";
/// The injector's.
const CARRIER_PERIOD: Duration = Duration::from_secs(10);
const SLEEPER: &str = "sleep 1000000";
const RUNNER: &str = "healthscope-runner serve";

/// A container of busybox with these fields too.
fn container(name: &str, script: &str, fields: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": "local/busybox:1", "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "securityContext": restricted(1000),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    });
    for (field, value) in fields.as_object().unwrap() {
        container[field] = value.clone();
    }
    container
}

fn pod_of(name: &str, containers: &[Value], checks: &Value, fields: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"healthscope.core.oam.dev/probes": checks.to_string()}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": containers,
        },
    });
    for (field, value) in fields.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod
}

/// A check that the kubelet knows nothing of.
fn check(name: &str, container: &str, command: &[&str]) -> Value {
    json!({
        "name": name, "container": container, "exec": {"command": command},
        "periodSeconds": 1, "failureThreshold": 1,
    })
}

/// What a container does that waits, with a file for its check.
fn waiting() -> String {
    format!("echo fine >/tmp/ok; exec {SLEEPER}")
}

/// A pod with one command check, and nothing that the kubelet would start anything by.
fn simple(name: &str) -> Value {
    let checks = json!([check("file", "web", &["cat", "/tmp/ok"])]);
    pod_of(
        name,
        &[container("web", &waiting(), &json!({}))],
        &checks,
        &json!({}),
    )
}

/// Two containers of different users, of which one has nothing but one program in it.
fn pair() -> Value {
    let mut bare = container(
        "bare",
        "",
        &json!({"image": "local/pause:1", "securityContext": restricted(1001)}),
    );
    bare.as_object_mut().unwrap().remove("command");
    let checks = json!([
        check("file", "web", &["cat", "/tmp/ok"]),
        check("runner", "bare", &["/healthscope/runner", "--version"]),
    ]);
    let web = container("web", &waiting(), &json!({}));
    pod_of("pair", &[web, bare], &checks, &json!({}))
}

/// Its liveness is asked over TCP, so a postStart hook starts the runner, and then the hook that was there.
fn hooked() -> Value {
    let fields = json!({
        "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 5},
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hooked >/tmp/hook"]}}},
    });
    let script = "echo fine >/tmp/ok; exec httpd -f -p 8080 -h /tmp";
    let checks = json!([
        check("file", "web", &["cat", "/tmp/ok"]),
        check("hook", "web", &["grep", "hooked", "/tmp/hook"]),
    ]);
    let mut pod = pod_of(
        "hooked",
        &[container("web", script, &fields)],
        &checks,
        &json!({}),
    );
    pod["metadata"]["annotations"]["healthscope.core.oam.dev/post-start"] = json!("true");
    pod
}

/// The same without leave to use a hook: nothing can start the runner.
fn without_leave() -> Value {
    let fields = json!({"livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 5}});
    let script = "echo fine >/tmp/ok; exec httpd -f -p 8080 -h /tmp";
    let checks = json!([check("file", "web", &["cat", "/tmp/ok"])]);
    pod_of(
        "without-leave",
        &[container("web", script, &fields)],
        &checks,
        &json!({}),
    )
}

/// Its liveness is asked over TCP, and its readiness command may start the runner.
fn by_readiness() -> Value {
    let fields = json!({
        "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 5},
        "readinessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 5, "timeoutSeconds": 10},
    });
    let script = "echo fine >/tmp/ok; exec httpd -f -p 8080 -h /tmp";
    let mut pod = pod_of(
        "by-readiness",
        &[container("web", script, &fields)],
        &json!([]),
        &json!({}),
    );
    pod["metadata"]["annotations"]["healthscope.core.oam.dev/carry-readiness"] = json!("true");
    pod
}

/// Its own liveness command starts the runner.
fn in_place() -> Value {
    let fields = json!({"livenessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 2}});
    pod_of(
        "in-place",
        &[container("web", &waiting(), &fields)],
        &json!([]),
        &json!({}),
    )
}

/// Images of agents that do harm, as far as one can.
const CRASHING: &str = "local/agent:crashing";
const CRASHING_LATER: &str = "local/agent:crashing-later";
const MISSING: &str = "local/agent:missing";

fn faulty_images() -> [Image; 3] {
    let script = |name: &str, script: &str| {
        agent_image(name)
            .file("/bin/busybox", "/bin/busybox", 0o755)
            .file("/agent", program("healthscope-agent"), 0o755)
            .content(
                "/healthscope-agent",
                format!("#!/bin/busybox sh\n{script}\n"),
                0o755,
            )
    };
    let later = "/agent &\n/bin/busybox sleep 4\nkill -9 $!\nexit 3";
    let missing = Image::new(MISSING)
        .file("/healthscope-runner", static_runner(), 0o755)
        .user("2102:2102");
    [script(CRASHING, "exit 3"), script(CRASHING_LATER, later), missing]
}

/// An authority that nobody trusts.
fn other_authority() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}

/// The node, the installation, and what happened to pods.
struct World {
    installation: Installation,
    online: History,
    offline: History,
    authority: String,
}

impl World {
    fn new() -> Self {
        let installation = Installation::start();
        timed("import of faulty agents", || {
            for image in faulty_images() {
                installation.cluster.import(&image).unwrap();
            }
        });
        installation.namespace(ONLINE, true);
        installation.namespace(OFFLINE, false);
        let world = Self {
            online: History::begin(&installation.cluster, ONLINE),
            offline: History::begin(&installation.cluster, OFFLINE),
            authority: installation.authority(),
            installation,
        };
        world.start_pods();
        world
    }

    /// The pods whose story begins with their start.
    fn start_pods(&self) {
        for name in ["good", "killed", "restarted"] {
            self.start_online(&simple(name));
        }
        for pod in [pair(), hooked(), without_leave(), in_place(), by_readiness()] {
            self.start_online(&pod);
        }
        let mut shared = simple("shared");
        shared["spec"]["shareProcessNamespace"] = json!(true);
        self.start_online(&shared);
        let mut own_users = simple("own-users");
        own_users["spec"]["hostUsers"] = json!(false);
        self.start_online(&own_users);

        for (name, image) in [
            ("crashing", CRASHING),
            ("crashing-later", CRASHING_LATER),
            ("missing", MISSING),
        ] {
            self.start_offline(name, image, &self.authority, |_| ());
        }
        self.start_offline("untrusted", AGENT_IMAGE, &other_authority(), |_| ());
        self.start_offline("refused", AGENT_IMAGE, &self.authority, |pod| {
            let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
            let token = volumes
                .iter_mut()
                .find(|volume| volume["name"] == "healthscope-token");
            token.unwrap()["projected"]["sources"][0]["serviceAccountToken"]["audience"] =
                json!("somebody-else");
        });
    }

    fn start_online(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let scope = scope_of("v1", "Pod", name);
        self.installation.apply(ONLINE, &format!("{pod}\n---\n{scope}"));
    }

    fn start_offline(&self, name: &str, image: &str, authority: &str, change: impl Fn(&mut Value)) {
        let mut pod = self
            .installation
            .injected_offline(&simple(name), image, authority);
        change(&mut pod);
        let scope = scope_of("v1", "Pod", name);
        self.installation.apply(OFFLINE, &format!("{pod}\n---\n{scope}"));
    }

    fn pod(&self, name: &str) -> Value {
        self.installation.pod(ONLINE, name).unwrap()
    }

    fn until_ready(&self, namespace: &str, name: &str) {
        self.installation.until(&format!("{name} to be ready"), || {
            let pod = self.installation.pod(namespace, name)?;
            ensure!(is_true(&pod, "Ready"), "{:#}", pod["status"]);
            Ok(Some(()))
        });
    }

    fn no_harm(&self, history: &History, names: &[&str]) {
        let harm: Vec<String> = names.iter().filter_map(|name| history.harm(name)).collect();
        assert!(harm.is_empty(), "{}", harm.join("\n"));
    }

    /// The last lines of what the agent's container says.
    fn agent_log(&self, namespace: &str, pod: &str) -> String {
        let words = ["logs", "-n", namespace, pod, "-c", AGENT, "--tail=5"];
        self.installation.cluster.kubectl(words).unwrap()
    }

    /// Breaks the file that the pod's check looks at, and mends it.
    fn break_and_mend(&self, name: &str) {
        self.installation.exec(ONLINE, name, "web", "rm /tmp/ok");
        let words = [
            "exec cat /tmp/ok in container web",
            "exit code 1",
            "No such file or directory",
        ];
        self.installation
            .until_component(ONLINE, name, name, "Unhealthy", &words);
        self.installation.exec(ONLINE, name, "web", "echo fine >/tmp/ok");
        self.installation.until_health(ONLINE, name, "Healthy");
    }

    fn every_way_of_starting_a_runner(&self) {
        let begun = Instant::now();
        for name in [
            "hooked",
            "by-readiness",
            "in-place",
            "good",
            "killed",
            "restarted",
            "pair",
            "shared",
            "own-users",
        ] {
            self.installation.until_passing(ONLINE, name);
            tell(&format!(
                "{name}: healthy from inside after {:.1?} more",
                begun.elapsed()
            ));
        }
        for name in ["good", "pair", "shared", "own-users", "hooked"] {
            self.break_and_mend(name);
        }
        self.no_harm(
            &self.online,
            &[
                "good",
                "killed",
                "restarted",
                "pair",
                "shared",
                "own-users",
                "hooked",
                "in-place",
                "by-readiness",
            ],
        );
    }

    fn a_container_that_cannot_have_a_runner_says_which_annotation_helps(&self) {
        self.installation.until_passing(ONLINE, "without-leave");
        let pod = self.pod("without-leave");
        assert!(is_injected(&pod));
        let note = pod["metadata"]["annotations"]["healthscope.core.oam.dev/injected"]
            .as_str()
            .unwrap();
        assert!(
            note.contains("Unsupported") && note.contains("post-start"),
            "{note}"
        );
        self.no_harm(&self.online, &["without-leave"]);
    }

    fn faulty_agents_harm_nobody(&self) {
        let lost = "the agent of pod";
        for name in ["crashing", "missing", "untrusted", "refused"] {
            self.until_ready(OFFLINE, name);
            let entry = self
                .installation
                .until_component(OFFLINE, name, name, "Unknown", &[lost]);
            assert_eq!(entry["reason"], "AgentLost", "{entry}");
            tell(&format!(
                "{name}: {}; its log ends\n{}",
                entry["message"],
                self.agent_log(OFFLINE, name)
            ));
        }
        self.no_harm(
            &self.offline,
            &["crashing", "crashing-later", "missing", "untrusted", "refused"],
        );
    }

    fn an_agent_that_is_killed_comes_back(&self) {
        let watched = Watched::begin(&self.installation.cluster, ONLINE, "killed");
        let pod = self.pod("killed");
        for _ in 0..2 {
            let agent = self.installation.process(&pod, "/healthscope-agent");
            kill_process(agent, Signal::KILL).unwrap();
            timed("a killed agent to be back", || {
                self.installation.until("another agent", || {
                    let agents = support::processes(&pod, "/healthscope-agent");
                    ensure!(agents.len() == 1 && agents[0] != agent, "there are {agents:?}");
                    Ok(Some(()))
                });
            });
        }
        self.break_and_mend("killed");
        let broken = watched
            .seen()
            .iter()
            .filter(|line| line.starts_with("Unhealthy"))
            .count();
        assert_eq!(broken, 1, "{:#?}", watched.seen());
        self.no_harm(&self.online, &["killed"]);
    }

    fn a_runner_that_is_killed_is_back_within_a_carrier_period(&self) {
        let watched = Watched::begin(&self.installation.cluster, ONLINE, "killed");
        let pod = self.pod("killed");
        let runner = self.installation.process(&pod, RUNNER);
        let begun = Instant::now();
        kill_process(runner, Signal::KILL).unwrap();
        self.installation.until("Unknown for a killed runner", || {
            let seen = watched.seen();
            ensure!(
                seen.iter().any(|line| line.starts_with("Unknown")),
                "seen were {seen:?}"
            );
            Ok(Some(()))
        });
        let noticed = begun.elapsed();
        self.installation.until_health(ONLINE, "killed", "Healthy");
        tell(&format!(
            "a killed runner: Unknown after {noticed:.1?}, back after {:.1?}, with a carrier period of {CARRIER_PERIOD:?}",
            begun.elapsed()
        ));
        watched.never(&["Unhealthy"]);
        assert_eq!(support::processes(&pod, RUNNER).len(), 1);
        self.no_harm(&self.online, &["killed"]);
    }

    fn a_container_that_dies_is_told_before_the_kubelet_tells_it(&self) {
        let pod = self.pod("restarted");
        let sleeper = self.installation.process(&pod, SLEEPER);
        let begun = Instant::now();
        kill_process(sleeper, Signal::KILL).unwrap();
        let (mut in_scope, mut in_pod) = (None, None);
        self.installation
            .until("the end of the container in both views", || {
                let status = support::status(&self.installation.cluster, ONLINE, "restarted")?;
                if status["health"] != "Healthy" {
                    in_scope.get_or_insert_with(|| begun.elapsed());
                }
                let status = self.pod("restarted")["status"]["containerStatuses"][0].clone();
                if status["state"]["running"].is_null() || status["restartCount"] != 0 {
                    in_pod.get_or_insert_with(|| begun.elapsed());
                }
                Ok(in_scope.zip(in_pod))
            });
        tell(&format!(
            "a killed container: in the scope's status after {in_scope:.1?}, in the pod's after {in_pod:.1?}"
        ));
        timed("a restarted container's runner to be back without help", || {
            self.installation.until_health(ONLINE, "restarted", "Healthy")
        });
        self.break_and_mend("restarted");
        assert_eq!(support::processes(&self.pod("restarted"), RUNNER).len(), 1);
    }

    fn a_carried_probe_is_what_it_was(&self) {
        let probe = |command: &[&str], failures: i32| {
            json!({"livenessProbe": {
                "exec": {"command": command}, "periodSeconds": 2, "failureThreshold": failures,
            }})
        };
        let often = 1_000_000;
        let commands: [(&str, Value); 6] = [
            ("passes", probe(&["true"], often)),
            (
                "fails",
                probe(&["sh", "-c", "echo out; echo err >&2; exit 3"], often),
            ),
            ("hangs", probe(&["sleep", "1000"], often)),
            ("is-killed", probe(&["sh", "-c", "kill -9 $$$$"], often)),
            ("is-not-there", probe(&["/no/such/command"], often)),
            ("restarts", probe(&["false"], 1)),
        ];
        let containers = commands.map(|(name, fields)| container(name, &waiting(), &fields));
        let pod = pod_of("carried", &containers, &json!([]), &json!({}));
        for namespace in [ONLINE, OFFLINE] {
            self.installation.apply(namespace, &pod.to_string());
        }
        assert!(is_injected(&self.pod("carried")));
        assert!(!is_injected(&self.installation.pod(OFFLINE, "carried").unwrap()));
        let mut plain = self.said_of_probes(OFFLINE);
        let carried = self.said_of_probes(ONLINE);
        tell(&format!("said of unwrapped probes: {plain:#?}"));
        // An error that the kubelet throws away: the carrier throws it away itself, and neither container is the worse for it.
        plain.retain(|line| !(line.contains("{is-not-there}") && line.contains("errored")));
        assert_eq!(carried, plain);
        for namespace in [ONLINE, OFFLINE] {
            self.installation
                .kubectl(namespace, "delete pod carried --wait=false");
        }
    }

    /// What the kubelet says of the probes of the pod `carried`, as soon as it has said something of each that fails, and has
    /// restarted the container that it must.
    fn said_of_probes(&self, namespace: &str) -> BTreeSet<String> {
        self.installation.until("the failing probes", || {
            let pod = self.installation.pod(namespace, "carried")?;
            let statuses = pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let again: Vec<&str> = statuses
                .iter()
                .filter(|status| status["restartCount"] != 0)
                .filter_map(|status| status["name"].as_str())
                .collect();
            ensure!(again == ["restarts"], "started again were {again:?}");
            let events = self
                .installation
                .cluster
                .get(&format!("/api/v1/namespaces/{namespace}/events"))?;
            let mut said = BTreeSet::new();
            for event in events["items"].as_array().into_iter().flatten() {
                let object = &event["involvedObject"];
                let reason = event["reason"].as_str().unwrap_or_default();
                if object["name"] != "carried"
                    || !["Unhealthy", "ProbeWarning", "ProbeError"].contains(&reason)
                {
                    continue;
                }
                let place = object["fieldPath"].as_str().unwrap_or_default();
                // How long a command was waited for is said with the command, which is another one.
                let message = event["message"].as_str().unwrap_or_default();
                let message = message.split("command timed out").next().unwrap_or_default();
                said.insert(format!("{reason} {place} {message}"));
            }
            let failing = ["fails", "hangs", "is-killed", "restarts"];
            let missing = failing
                .iter()
                .find(|name| !said.iter().any(|line| line.contains(&format!("{{{name}}}"))));
            ensure!(missing.is_none(), "nothing is said of {missing:?}: {said:#?}");
            Ok(Some(said))
        })
    }

    fn normal_life_is_silent(&self) {
        let names = [
            "good",
            "pair",
            "shared",
            "own-users",
            "hooked",
            "without-leave",
            "in-place",
        ];
        let events = self
            .installation
            .cluster
            .get(&format!("/api/v1/namespaces/{ONLINE}/events"))
            .unwrap();
        for event in events["items"].as_array().unwrap() {
            let object = &event["involvedObject"];
            // A scope has the name of its pod, and Events of its own.
            let is_of_these = object["kind"] == "Pod" && names.iter().any(|name| object["name"] == *name);
            assert!(!is_of_these || event["type"] == "Normal", "{event:#}");
        }
        for name in names {
            let log = self.installation.kubectl(ONLINE, &format!("logs {name} -c web"));
            assert_eq!(log, "", "{name}");
        }
        tell(&format!(
            "what the agent of a good pod says:\n{}",
            self.agent_log(ONLINE, "good")
        ));
    }

    fn pods_start_and_stay_without_an_aggregator(&self) {
        let watched = Watched::begin(&self.installation.cluster, ONLINE, "good");
        self.installation
            .kubectl(RELEASE, "scale deployment healthscope-aggregator --replicas=0");
        self.installation.kubectl(
            RELEASE,
            "wait --for=delete pod --selector=app.kubernetes.io/component=aggregator --timeout=60s",
        );
        let begun = Instant::now();
        self.start_online(&simple("alone"));
        tell(&format!(
            "a pod was admitted without a webhook in {:.1?}",
            begun.elapsed()
        ));
        self.start_offline("orphan", AGENT_IMAGE, &self.authority, |_| ());
        self.until_ready(ONLINE, "alone");
        self.until_ready(OFFLINE, "orphan");
        assert!(!is_injected(&self.pod("alone")));

        self.installation
            .kubectl(RELEASE, "scale deployment healthscope-aggregator --replicas=2");
        timed("an orphan's agent to be heard", || {
            self.installation.until_health(OFFLINE, "orphan", "Healthy")
        });
        self.installation.until_injecting();
        self.installation.until_health(ONLINE, "good", "Healthy");
        watched.never(&["Unhealthy"]);
        self.no_harm(&self.online, &["alone", "good", "pair"]);
        self.no_harm(&self.offline, &["orphan"]);
    }

    fn pods_start_and_stay_without_dns(&self) {
        self.installation.cluster.kill(Component::CoreDns).unwrap();
        self.start_online(&simple("nameless"));
        self.until_ready(ONLINE, "nameless");
        assert!(is_injected(&self.pod("nameless")));
        let entry = self.installation.until_component(
            ONLINE,
            "nameless",
            "nameless",
            "Unknown",
            &["the agent of pod nameless has not connected; its log says why"],
        );
        tell(&format!(
            "without DNS: {} {}; the agent says\n{}",
            entry["reason"],
            entry["message"],
            self.agent_log(ONLINE, "nameless")
        ));
        self.installation.cluster.start_again(Component::CoreDns).unwrap();
        timed("an agent to be heard after DNS is back", || {
            self.installation.until_health(ONLINE, "nameless", "Healthy")
        });
        self.no_harm(&self.online, &["nameless", "good"]);
    }

    fn secret(&self) -> Value {
        self.installation
            .cluster
            .get(&format!("/api/v1/namespaces/{RELEASE}/secrets/healthscope-tls"))
            .unwrap()["data"]
            .clone()
    }

    fn set_secret(&self, data: &Value) {
        let patch = json!([{"op": "add", "path": "/data", "value": data}]).to_string();
        let words = [
            "patch",
            "secret",
            "healthscope-tls",
            "-n",
            RELEASE,
            "--type=json",
            "-p",
            &patch,
        ];
        self.installation.cluster.kubectl(words).unwrap();
    }

    /// A certificate that has ended is put into the Secret, properly signed: it is renewed, and nobody notices.
    fn an_expired_certificate_is_renewed(&self) {
        let watched = Watched::begin(&self.installation.cluster, ONLINE, "good");
        let mut data = self.secret();
        let text =
            |field: &Value| String::from_utf8(STANDARD.decode(field.as_str().unwrap()).unwrap()).unwrap();
        let key = KeyPair::from_pem(&text(&data["ca.key"])).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&text(&data["ca.crt"]), key).unwrap();
        let names =
            ["healthscope-aggregator", "healthscope-webhook"].map(|name| format!("{name}.{RELEASE}.svc"));
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&leaf_key, &issuer).unwrap();
        data["tls.crt"] = json!(STANDARD.encode(leaf.pem()));
        data["tls.key"] = json!(STANDARD.encode(leaf_key.serialize_pem()));
        self.set_secret(&data);
        timed("an expired certificate to be renewed", || {
            self.installation.until("another certificate", || {
                let now = self.secret()["tls.crt"].clone();
                ensure!(now != data["tls.crt"], "it is still there");
                Ok(Some(()))
            });
        });
        self.start_online(&simple("renewed"));
        self.until_ready(ONLINE, "renewed");
        assert!(is_injected(&self.pod("renewed")));
        self.installation.until_passing(ONLINE, "renewed");
        watched.never(&["Unhealthy", "Unknown"]);
        self.no_harm(&self.online, &["renewed", "good"]);
    }

    /// A new authority, as after a theft: agents that run trust the old one alone, and are lost until their pods are made anew.
    fn agents_of_another_authority_are_lost_and_their_pods_are_not(&self) {
        let watched = Watched::begin(&self.installation.cluster, ONLINE, "good");
        self.installation
            .kubectl(RELEASE, "scale deployment healthscope-aggregator --replicas=0");
        self.installation.kubectl(
            RELEASE,
            "wait --for=delete pod --selector=app.kubernetes.io/component=aggregator --timeout=60s",
        );
        self.set_secret(&json!({}));
        self.installation
            .kubectl(RELEASE, "scale deployment healthscope-aggregator --replicas=2");
        self.installation.until_injecting();
        assert_ne!(self.installation.authority(), self.authority);
        let entry = self
            .installation
            .until_component(ONLINE, "good", "good", "Unknown", &["good"]);
        tell(&format!(
            "with another authority: {} {}",
            entry["reason"], entry["message"]
        ));
        assert_eq!(entry["reason"], "AgentLost");
        self.start_online(&simple("anew"));
        self.until_ready(ONLINE, "anew");
        self.installation.until_passing(ONLINE, "anew");
        watched.never(&["Unhealthy"]);
        self.no_harm(
            &self.online,
            &["anew", "good", "pair", "shared", "own-users", "killed"],
        );
    }

    /// By now it has crashed many times.
    fn an_agent_that_crashes_again_and_again_harms_nobody(&self) {
        self.no_harm(&self.offline, &["crashing", "crashing-later", "missing"]);
        let log = self.agent_log(OFFLINE, "crashing-later");
        assert!(log.contains("starting it again"), "{log}");
    }
}

#[test]
fn whatever_goes_wrong_the_pod_is_ready_throughout() {
    let world = World::new();
    run_cases(&[
        ("every way of starting a runner", &|| {
            world.every_way_of_starting_a_runner();
        }),
        ("a container that cannot have a runner", &|| {
            world.a_container_that_cannot_have_a_runner_says_which_annotation_helps();
        }),
        ("a carried probe", &|| world.a_carried_probe_is_what_it_was()),
        ("faulty agents", &|| world.faulty_agents_harm_nobody()),
        ("a killed runner", &|| {
            world.a_runner_that_is_killed_is_back_within_a_carrier_period();
        }),
        ("a killed agent", &|| world.an_agent_that_is_killed_comes_back()),
        ("normal life", &|| world.normal_life_is_silent()),
        ("a killed container", &|| {
            world.a_container_that_dies_is_told_before_the_kubelet_tells_it();
        }),
        ("no DNS", &|| world.pods_start_and_stay_without_dns()),
        ("an expired certificate", &|| {
            world.an_expired_certificate_is_renewed();
        }),
        ("no aggregator", &|| {
            world.pods_start_and_stay_without_an_aggregator();
        }),
        ("another authority", &|| {
            world.agents_of_another_authority_are_lost_and_their_pods_are_not();
        }),
        ("crashes", &|| {
            world.an_agent_that_crashes_again_and_again_harms_nobody();
        }),
    ]);
}
