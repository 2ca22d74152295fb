//! An installation as objects, and what is said when one of them is not as it should be.

use {
    super::{
        facts::{Asked, Facts, Place, Rehearsal, Right},
        judge,
        report::{Check, Outcome, Report},
        unstick::{Remedy, remedy},
    },
    crate::{golden, object, terminal::Terminal},
    base64::{Engine, engine::general_purpose::STANDARD},
    healthscope_core::breaker,
    rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair},
    serde_json::{Value, json},
    std::sync::LazyLock,
};

const IMAGE: &str = "registry/healthscope-agent:1";
const VERSION: &str = "0.3.0";

/// An authority that is valid for two thousand years.
static AUTHORITY: LazyLock<String> = LazyLock::new(|| authority(None));

/// One that ends so many days from now.
fn authority(ends: Option<i64>) -> String {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if let Some(ends) = ends {
        let end = golden::now() + jiff::SignedDuration::from_hours(24 * ends);
        let day = |days: i64| {
            let at = end - jiff::SignedDuration::from_hours(24 * days);
            let date = at.to_zoned(jiff::tz::TimeZone::UTC);
            let number = |part: i8| u8::try_from(part).unwrap();
            rcgen::date_time_ymd(date.year().into(), number(date.month()), number(date.day()))
        };
        (params.not_before, params.not_after) = (day(30), day(0));
    }
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}

fn list(items: &[Value]) -> Asked {
    Asked::Found(json!({"items": items}))
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": "healthscope-aggregator", "namespace": "healthscope-system", "labels": {
            "app.kubernetes.io/name": "healthscope", "app.kubernetes.io/component": "aggregator",
        }},
        "spec": {"replicas": 2, "template": {"spec": {
            "serviceAccountName": "healthscope-aggregator",
            "containers": [{
                "name": "aggregator", "image": format!("registry/healthscope-aggregator:{VERSION}"),
                "args": ["--kubernetes", "--tls-secret=healthscope-tls", "--webhook-listen=0.0.0.0:9443",
                         "--webhook-configuration=healthscope-agent-injector", format!("--agent-image={IMAGE}")],
            }],
        }}},
        "status": {"replicas": 2, "readyReplicas": 2},
    })
}

fn aggregator_pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "healthscope-system"},
        "status": {"phase": "Running", "containerStatuses": [{"name": "aggregator", "state": {"running": {}}}]},
    })
}

fn webhook() -> Value {
    let entry = |name: &str| {
        json!({
            "name": name, "failurePolicy": "Ignore",
            "clientConfig": {"caBundle": STANDARD.encode(AUTHORITY.as_str())},
        })
    };
    json!({"webhooks": [entry("namespace.inject.healthscope.core.oam.dev"), entry("pod.inject.healthscope.core.oam.dev")]})
}

fn canary() -> Value {
    json!({
        "metadata": {"name": "healthscope-canary-0", "namespace": "healthscope-system"},
        "spec": {"initContainers": [{"name": "healthscope-agent", "image": IMAGE}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A pod of the Deployment `web`, with an agent.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": name, "creationTimestamp": "2026-01-02T04:00:00Z",
            "labels": {"pod-template-hash": "5d8"},
            "annotations": {"healthscope.core.oam.dev/injected": r#"{"version": "0.3.0", "checks": 2}"#},
            "ownerReferences": [{"controller": true, "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8", "uid": "rs"}],
        },
        "spec": {
            "initContainers": [{
                "name": "healthscope-agent", "image": IMAGE, "restartPolicy": "Always",
                "command": ["/healthscope-runner", "supervise", "--dir", "/healthscope", "--target", "web", "--", "/healthscope-agent"],
            }],
            "containers": [{"name": "web", "image": "web", "readinessProbe": {"httpGet": {"path": "/", "port": 80}}}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [{
                "name": "healthscope-agent", "restartCount": 0, "state": {"running": {"startedAt": "2026-01-02T04:00:00Z"}},
            }],
            "containerStatuses": [{"name": "web", "state": {"running": {}}}],
        },
    })
}

fn without_agent(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["initContainers"] = json!([]);
    pod["status"]["initContainerStatuses"] = json!([]);
    pod["metadata"]["annotations"] = json!({});
    pod
}

fn stuck(name: &str) -> Value {
    let mut pod = pod(name);
    pod["status"]["phase"] = json!("Pending");
    pod["status"]["conditions"] = json!([]);
    pod["status"]["initContainerStatuses"][0]["state"] =
        json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
    pod
}

fn bare(mut pod: Value) -> Value {
    pod["metadata"]["ownerReferences"] = json!([]);
    pod
}

fn shop(pods: &[Value]) -> Place {
    Place {
        name: "shop".into(),
        namespace: Asked::Found(json!({
            "metadata": {
                "name": "shop", "labels": {"healthscope.core.oam.dev/inject": "enabled"},
                "managedFields": [{
                    "time": "2026-01-02T03:00:00Z",
                    "fieldsV1": {"f:metadata": {"f:labels": {"f:healthscope.core.oam.dev/inject": {}}}},
                }],
            },
        })),
        pods: list(pods),
        skips: list(&[]),
        scopes: list(&[json!({
            "metadata": {"name": "shop", "namespace": "shop"},
            "status": {"components": [{"kind": "Deployment", "name": "web", "health": "Healthy", "reason": "Passing"}]},
        })]),
    }
}

/// All is well.
fn healthy() -> Facts {
    let allowed = Asked::Found(json!({"status": {"allowed": true}}));
    Facts {
        now: golden::now(),
        cluster: "https://10.0.0.1:6443".into(),
        version: VERSION,
        program: "kubectl healthscope",
        expected: "healthscope-system".into(),
        server: Asked::Found(json!({"major": "1", "minor": "36+", "gitVersion": "v1.36.2"})),
        definition: Asked::Found(json!({
            "spec": {"versions": [
                {"name": "v1beta1", "served": true, "storage": true}, {"name": "v1alpha2", "served": true, "storage": false},
            ]},
            "status": {"conditions": [{"type": "Established", "status": "True"}], "storedVersions": ["v1beta1"]},
        })),
        deployments: list(&[deployment()]),
        pods: list(&[aggregator_pod("a"), aggregator_pod("b")]),
        lease: Asked::Found(json!({"spec": {
            "holderIdentity": "a_0123", "renewTime": "2026-01-02T04:59:58.000000Z", "leaseDurationSeconds": 9,
        }})),
        authorities: Asked::Found(json!({"data": {"ca.crt": AUTHORITY.as_str()}})),
        webhook: Asked::Found(webhook()),
        service: Asked::Found(json!({})),
        endpoints: list(&[
            json!({"endpoints": [{"conditions": {"ready": true}}, {"conditions": {"ready": true}}]}),
        ]),
        breaker: Asked::Found(json!({"data": {}})),
        canary_set: Asked::Found(json!({})),
        canary: Asked::Found(canary()),
        rights: vec![(Right::new("list", "", "pods", None), allowed)],
        rehearsal: Some(Rehearsal {
            namespace: "shop".into(),
            pod: Asked::Found(pod("healthscope-check")),
        }),
        labelled: list(&[]),
        places: vec![shop(&[pod("web-1"), pod("web-2")])],
    }
}

fn report(facts: &Facts) -> Report {
    Report::new(&facts.cluster, judge(facts, false))
}

/// What is not well.
fn ill(facts: &Facts) -> Vec<Check> {
    let checks = judge(facts, false).into_iter().flat_map(|section| section.checks);
    checks.filter(|check| check.outcome >= Outcome::Warning).collect()
}

/// After this change exactly these checks are not well, the first with these words, and each says what to do.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), expected: &[(&str, Outcome)], words: &str) {
    let mut facts = healthy();
    change(&mut facts);
    let ill = ill(&facts);
    let found: Vec<(&str, Outcome)> = ill.iter().map(|check| (check.id, check.outcome)).collect();
    assert_eq!(found, expected, "{ill:#?}");
    let said = format!("{} {}", ill[0].message, ill[0].objects.join(" "));
    assert!(said.contains(words), "{words:?} is not in {said:?}");
    for check in &ill {
        assert!(!check.hint.is_empty() || !check.commands.is_empty(), "{check:?}");
    }
}

use Outcome::{Failure, Warning};

fn trip(level: &str, reduction: &str, cause: &str) -> Asked {
    let mut trip = json!({
        "level": level, "reduction": reduction, "cause": cause, "message": "manifest unknown", "image": IMAGE,
        "since": "2026-01-02T04:50:00Z", "pods": ["web-1"],
    });
    if level != "Cluster" {
        trip["namespace"] = json!("shop");
    }
    if level == "Owner" {
        trip["owner"] = json!({"kind": "Deployment", "name": "web"});
    }
    Asked::Found(json!({"data": {breaker::KEY: json!({"trips": [trip]}).to_string()}}))
}

#[test]
fn a_healthy_installation_has_nothing_to_complain_about() {
    let facts = healthy();
    assert_eq!(ill(&facts), []);
    golden::check(
        "check-installation.txt",
        &without_dates(&report(&facts).text(false, Terminal::plain())),
    );
}

/// The authority is made anew for each run, and ends in another age of the world.
fn without_dates(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once("(until ") {
        Some((before, _)) => format!("{before}(until ...)\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn much_that_is_wrong_is_a_list_of_what_to_do() {
    let mut facts = healthy();
    facts.version = "0.4.0";
    facts.breaker = trip("Owner", "Off", "ImagePull");
    facts.canary = Asked::Found(stuck("healthscope-canary-0"));
    facts.endpoints = Asked::Forbidden(Right::new(
        "list",
        "discovery.k8s.io",
        "endpointslices",
        Some("healthscope-system"),
    ));
    let mut left_out = pod("web-2");
    left_out["metadata"]["annotations"]["healthscope.core.oam.dev/injected"] = json!(
        r#"{"checks": 1, "leftOut": [{"container": "web", "probe": "readiness", "reason": "OtherHost",
            "message": "asks \"db\", and the agent asks its own pod only"}]}"#
    );
    facts.places = vec![shop(&[stuck("web-1"), left_out, without_agent("web-3")])];
    facts.rehearsal.as_mut().unwrap().pod = Asked::Found(without_agent("healthscope-check"));
    let report = report(&facts);
    golden::check(
        "check-installation-ill.txt",
        &without_dates(&report.text(true, Terminal::plain())),
    );
    let mut json = serde_json::to_value(&report).unwrap();
    // The version of this program, and the one date.
    json["version"] = json!("0.0.0");
    let text = object::json(&json);
    let lines = text.lines().filter(|line| !line.contains("\"until "));
    golden::check(
        "check-installation-ill.json",
        &(lines.collect::<Vec<_>>().join("\n") + "\n"),
    );
}

#[test]
fn what_is_wrong_with_the_cluster_and_the_definition_is_named() {
    let old = json!({"major": "1", "minor": "28", "gitVersion": "v1.28.1"});
    check(
        |facts| {
            facts.server = Asked::Found(old);
            facts.places.clear();
        },
        &[("kubernetes-version", Failure)],
        "it is 1.28; pods there get no agents",
    );
    check(
        |facts| facts.definition = Asked::Absent,
        &[("definition", Failure)],
        "there is no such CustomResourceDefinition",
    );
    check(
        |facts| {
            facts.definition = Asked::Forbidden(Right::new(
                "get",
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                None,
            ))
        },
        &[("definition", Warning)],
        "you may not get customresourcedefinitions in the whole cluster",
    );
    check(
        |facts| {
            facts.definition = Asked::Found(json!({
                "spec": {"versions": [{"name": "v1alpha2", "served": true, "storage": true}]},
                "status": {"conditions": [{"type": "Established", "status": "False", "message": "names clash"}]},
            }));
        },
        &[("definition", Failure), ("definition-versions", Failure)],
        "names clash",
    );
}

#[test]
fn what_is_wrong_with_the_control_plane_is_named() {
    check(
        |facts| {
            facts.deployments = list(&[]);
            facts.webhook = Asked::Absent;
            facts.places.clear();
        },
        &[("installed", Failure)],
        "there is no Deployment",
    );
    check(
        |facts| {
            facts.deployments = list(&[]);
            facts.places.clear();
        },
        &[("installed", Failure), ("webhook-left-over", Warning)],
        "there is no Deployment",
    );
    let mut other = deployment();
    other["metadata"]["namespace"] = json!("other");
    check(
        |facts| facts.deployments = list(&[deployment(), other]),
        &[("installed", Failure)],
        "other/healthscope-aggregator",
    );
    let replicas = |ready: u64| {
        let mut deployment = deployment();
        deployment["status"] = json!({"readyReplicas": ready, "conditions": [
            {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"},
        ]});
        list(&[deployment])
    };
    check(
        |facts| facts.deployments = replicas(1),
        &[("replicas", Warning)],
        "1 of 2: exceeded quota",
    );
    check(
        |facts| facts.deployments = replicas(0),
        &[("replicas", Failure)],
        "0 of 2: exceeded quota",
    );
    let mut crashing = aggregator_pod("a");
    crashing["status"]["containerStatuses"][0] = json!({
        "name": "aggregator", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
        "lastState": {"terminated": {"exitCode": 1, "message": "error: no\nsuch flag"}},
    });
    check(
        |facts| facts.pods = list(&[crashing, aggregator_pod("b")]),
        &[("pods", Failure)],
        "a: CrashLoopBackOff (exit code 1): error: no such flag",
    );
    check(
        |facts| facts.pods = list(&[]),
        &[("pods", Failure)],
        "there are none",
    );
    check(
        |facts| facts.version = "0.4.0",
        &[("version", Warning)],
        "the aggregator is 0.3.0 and this program is 0.4.0",
    );
    let renewed = |at: &str| {
        Asked::Found(
            json!({"spec": {"holderIdentity": "a_0123", "renewTime": at, "leaseDurationSeconds": 9}}),
        )
    };
    check(
        |facts| facts.lease = renewed("2026-01-02T04:59:40Z"),
        &[("lease", Warning)],
        "a renewed it 20s ago",
    );
    check(
        |facts| facts.lease = renewed("2026-01-02T04:50:00Z"),
        &[("lease", Failure)],
        "a renewed it 10m ago and is gone",
    );
    check(
        |facts| facts.lease = Asked::Absent,
        &[("lease", Failure)],
        "no replica has ever served",
    );
    let free = json!({"spec": {"holderIdentity": ""}});
    check(
        |facts| facts.lease = Asked::Found(free),
        &[("lease", Failure)],
        "nobody holds it",
    );
    check(
        |facts| facts.rights[0].1 = Asked::Found(json!({"status": {"allowed": false}})),
        &[("rights", Failure)],
        "its ServiceAccount healthscope-aggregator may not list pods in the whole cluster",
    );
    let review = Right::new("create", "authorization.k8s.io", "subjectaccessreviews", None);
    check(
        |facts| facts.rights[0].1 = Asked::Forbidden(review),
        &[("rights", Warning)],
        "you may not create subjectaccessreviews",
    );
}

#[test]
fn what_is_wrong_with_certificates_and_the_webhook_is_named() {
    let bundle = |text: &str| Asked::Found(json!({"data": {"ca.crt": text}}));
    check(
        |facts| facts.authorities = Asked::Absent,
        &[("authorities", Failure)],
        "it is not there",
    );
    check(
        |facts| facts.authorities = bundle("\n"),
        &[("authorities", Failure)],
        "it is empty",
    );
    check(
        |facts| facts.authorities = bundle("hello"),
        &[("authorities", Failure)],
        "it has no certificate",
    );
    check(
        |facts| facts.authorities = bundle("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        &[("authorities", Failure)],
        "something that is no certificate",
    );
    check(
        |facts| facts.authorities = bundle(&authority(None)),
        &[("webhook-trust", Failure)],
        "has others",
    );
    check(
        |facts| facts.authorities = bundle(&authority(Some(-1))),
        &[("authorities-valid", Failure), ("webhook-trust", Failure)],
        "the last one ended at 2026-01-01",
    );
    check(
        |facts| facts.authorities = bundle(&authority(Some(5))),
        &[("authorities-valid", Warning), ("webhook-trust", Failure)],
        "only until 2026-01-07",
    );

    check(
        |facts| facts.webhook = Asked::Absent,
        &[("webhook", Failure)],
        "no pod gets an agent",
    );
    let changed = |field: &str, value: Value| {
        let mut webhook = webhook();
        if field == "caBundle" {
            webhook["webhooks"][1]["clientConfig"][field] = value;
        } else {
            webhook["webhooks"][1][field] = value;
        }
        Asked::Found(webhook)
    };
    check(
        |facts| facts.webhook = changed("failurePolicy", json!("Fail")),
        &[("failure-policy", Failure)],
        "pods are refused pod.inject.healthscope.core.oam.dev",
    );
    check(
        |facts| facts.webhook = changed("caBundle", Value::Null),
        &[("webhook-trust", Failure), ("ca-bundle", Failure)],
        "the entry pod.inject.healthscope.core.oam.dev has none",
    );
    check(
        |facts| facts.service = Asked::Absent,
        &[("webhook-endpoints", Failure)],
        "there is no such Service",
    );
    let unready = json!({"endpoints": [{"conditions": {"ready": false}}]});
    check(
        |facts| facts.endpoints = list(&[unready]),
        &[("webhook-endpoints", Failure)],
        "no ready endpoint",
    );
    let rehearsed = |pod: Asked| {
        Some(Rehearsal {
            namespace: "shop".into(),
            pod,
        })
    };
    check(
        |facts| facts.rehearsal = rehearsed(Asked::Found(without_agent("x"))),
        &[("rehearsal", Failure)],
        "the webhook did not answer",
    );
    check(
        |facts| facts.rehearsal = rehearsed(Asked::Failed("exceeded quota".into())),
        &[("rehearsal", Warning)],
        "exceeded quota",
    );
}

#[test]
fn what_the_breaker_and_the_canary_say_is_passed_on() {
    check(
        |facts| facts.breaker = trip("Cluster", "Off", "AgentNotStarting"),
        &[("breaker", Failure)],
        "new pods get no agent since 2026-01-02T04:50:00Z (10m): the agent's container does not start or does not stay: \
         manifest unknown",
    );
    check(
        |facts| facts.breaker = trip("Owner", "WithoutCommands", "CarrierMissing"),
        &[("breaker", Failure)],
        "new pods get an agent without command checks",
    );
    let torn = Asked::Found(json!({"data": {breaker::KEY: "{"}}));
    check(
        |facts| facts.breaker = torn,
        &[("breaker", Warning)],
        "its record cannot be read",
    );
    check(
        |facts| facts.canary = Asked::Absent,
        &[("canary", Failure)],
        "its StatefulSet has no pod",
    );
    check(
        |facts| facts.canary = Asked::Found(stuck("healthscope-canary-0")),
        &[("canary", Failure)],
        "it is not ready: ImagePullBackOff: Back-off pulling image",
    );
    // Without a canary in the chart there is none to complain about.
    let mut facts = healthy();
    (facts.canary_set, facts.canary) = (Asked::Absent, Asked::Absent);
    assert_eq!(ill(&facts), []);
}

#[test]
fn what_is_wrong_with_pods_is_named() {
    let with = |pods: &[Value]| vec![shop(pods)];
    let mut older = without_agent("web-1");
    older["metadata"]["creationTimestamp"] = json!("2026-01-02T02:00:00Z");
    check(
        |facts| facts.places = with(&[older.clone(), pod("web-2")]),
        &[("agents", Warning)],
        "1 of 2 do not: OlderThanLabel: made before the namespace got its label (2026-01-02T03:00:00Z)",
    );
    let mut facts = healthy();
    facts.places = with(&[older]);
    assert_eq!(
        ill(&facts)[0].commands,
        ["kubectl -n shop rollout restart deployment/web"]
    );

    check(
        |facts| facts.places = with(&[without_agent("web-1")]),
        &[("agents", Warning)],
        "NotAsked: the webhook was not there when it was made",
    );
    check(
        |facts| {
            facts.places = with(&[without_agent("web-1")]);
            facts.places[0].skips = list(&[json!({
                "involvedObject": {"uid": "rs"}, "message": "QuotaExceeded: 3Mi are missing",
                "lastTimestamp": "2026-01-02T04:00:00Z",
            })]);
        },
        &[("agents", Warning)],
        "InjectionSkipped: QuotaExceeded: 3Mi are missing",
    );
    let mut wrong = without_agent("web-1");
    wrong["metadata"]["annotations"] = json!({"healthscope.core.oam.dev/mirror": "nobody"});
    check(
        |facts| facts.places = with(&[wrong]),
        &[("agents", Warning)],
        "InvalidAnnotation: the pod's annotation healthscope.core.oam.dev/mirror",
    );
    check(
        |facts| {
            facts.breaker = trip("Namespace", "Off", "FailedCreate");
            facts.places = with(&[without_agent("web-1")]);
        },
        &[("breaker", Failure), ("agents", Warning)],
        "pods were refused because of what was added to them",
    );
    check(
        |facts| facts.places = with(&[stuck("web-1")]),
        &[("agents-start", Failure)],
        "1 pod is stuck because of the agent's container shop/web-1: ImagePullBackOff: Back-off pulling image",
    );
    let mut restarted = pod("web-1");
    restarted["status"]["initContainerStatuses"][0]["restartCount"] = json!(2);
    restarted["status"]["initContainerStatuses"][0]["lastState"] =
        json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}});
    check(
        |facts| facts.places = with(&[restarted]),
        &[("agents-stay", Warning)],
        "shop/web-1: 2 restarts, the last: OOMKilled, exit code 137",
    );
    let mut of_old = pod("web-1");
    of_old["spec"]["initContainers"][0]["image"] = json!("registry/healthscope-agent:0");
    check(
        |facts| facts.places = with(&[of_old]),
        &[("agents-image", Warning)],
        "1 of another image",
    );
    check(
        |facts| {
            facts.places[0].scopes = list(&[json!({"metadata": {"name": "shop"}, "status": {"components": [
                {"kind": "Deployment", "name": "web", "reason": "AgentLost", "message": "silent for 40s"},
            ]}})]);
        },
        &[("agents-report", Warning)],
        "Deployment web (scope shop): AgentLost: silent for 40s",
    );
}

#[test]
fn what_is_wrong_with_a_namespace_is_named() {
    let labelled = |label: Value, annotations: Value| {
        let mut place = shop(&[]);
        place.namespace =
            Asked::Found(json!({"metadata": {"name": "shop", "labels": label, "annotations": annotations}}));
        place
    };
    let inject = |value: &str| json!({"healthscope.core.oam.dev/inject": value});
    check(
        |facts| facts.places = vec![labelled(json!({}), json!({}))],
        &[("labelled", Warning)],
        "it has none",
    );
    check(
        |facts| facts.places = vec![labelled(inject("yes"), json!({}))],
        &[("labelled", Failure)],
        "it says \"yes\", which means no",
    );
    check(
        |facts| {
            facts.places = vec![labelled(
                inject("enabled"),
                json!({"healthscope.core.oam.dev/resources": "much"}),
            )]
        },
        &[("annotations", Failure)],
        "the namespace's annotation healthscope.core.oam.dev/resources",
    );
    check(
        |facts| facts.places[0].pods = Asked::Forbidden(Right::new("list", "", "pods", Some("shop"))),
        &[("pods", Warning)],
        "you may not list pods in the namespace shop",
    );
    // Pods that want none, are done or are going are nobody's concern.
    let mut unwilling = without_agent("a");
    unwilling["metadata"]["labels"]["healthscope.core.oam.dev/inject"] = json!("disabled");
    let mut done = without_agent("b");
    done["status"]["phase"] = json!("Succeeded");
    let mut going = stuck("c");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-02T05:00:00Z");
    let mut facts = healthy();
    facts.places = vec![shop(&[unwilling, done, going])];
    assert_eq!(ill(&facts), []);
}

#[test]
fn a_pod_is_looked_at_in_depth() {
    #[track_caller]
    fn check(pod: Value, expected: &[(&str, Outcome)]) {
        let facts = healthy();
        let section = super::pods::pod(&facts, &shop(&[pod]), "web-1", &list(&[]));
        let found: Vec<(&str, Outcome)> = section
            .checks
            .iter()
            .filter(|check| check.outcome != Outcome::Ok)
            .map(|check| (check.id, check.outcome))
            .collect();
        assert_eq!(found, expected, "{:#?}", section.checks);
    }
    check(pod("web-1"), &[]);
    check(pod("web-2"), &[("pod", Failure)]);
    check(without_agent("web-1"), &[("agent", Warning)]);
    check(
        stuck("web-1"),
        &[("agent-runs", Failure), ("containers", Warning)],
    );
    let mut web = pod("web-1");
    web["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    check(web, &[("containers", Warning)]);
}

#[test]
fn a_pod_is_sent_away_only_when_the_next_one_starts() {
    #[track_caller]
    fn check(pod: &Value, change: impl FnOnce(&mut Facts), expected: Result<&str, &str>) {
        let mut facts = healthy();
        facts.places = vec![shop(&[])];
        change(&mut facts);
        let found = remedy(&facts, &facts.places[0], pod);
        match (&found, expected) {
            (Remedy::Evict { owner, because }, Ok(words)) => {
                assert!(format!("{owner}: {because}").contains(words), "{found:?}");
            }
            (Remedy::Patch { index, from, to }, Ok(words)) => {
                assert_eq!(format!("{index}: {from} -> {to}"), words)
            }
            (Remedy::Leave { why, .. }, Err(words)) => assert!(why.contains(words), "{found:?}"),
            _ => panic!("{found:?}"),
        }
    }
    let stuck_pod = stuck("web-1");
    let goes_on = Err("injection goes on there, so the next one would be stuck in the same way");
    check(&stuck_pod, |_| {}, goes_on);
    check(
        &stuck_pod,
        |facts| facts.breaker = trip("Owner", "Off", "ImagePull"),
        Ok("Deployment web: the breaker is open"),
    );
    check(
        &stuck_pod,
        |facts| facts.breaker = trip("Cluster", "Off", "ImagePull"),
        Ok("the breaker is open"),
    );
    // The agent is what is stuck, and it would come again.
    check(
        &stuck_pod,
        |facts| facts.breaker = trip("Owner", "WithoutCommands", "CarrierMissing"),
        goes_on,
    );
    let mut of_other = stuck("web-1");
    of_other["metadata"]["labels"]["pod-template-hash"] = json!("77");
    of_other["metadata"]["ownerReferences"][0]["name"] = json!("cart-77");
    check(
        &of_other,
        |facts| facts.breaker = trip("Owner", "Off", "ImagePull"),
        goes_on,
    );

    let unlabelled = Asked::Found(json!({"metadata": {"name": "shop", "labels": {}}}));
    check(
        &stuck_pod,
        |facts| facts.places[0].namespace = unlabelled,
        Ok("pods there get no agents any more"),
    );
    // Whoever may not look at the namespace does not know that.
    let unknown = Asked::Forbidden(Right::new("get", "", "namespaces", None));
    check(&stuck_pod, |facts| facts.places[0].namespace = unknown, goes_on);
    check(
        &stuck_pod,
        |facts| facts.webhook = Asked::Absent,
        Ok("nothing injects in this cluster now"),
    );

    let mut of_old = stuck("web-1");
    of_old["spec"]["initContainers"][0]["image"] = json!("registry/healthscope-agent:0");
    check(
        &of_old,
        |_| {},
        Ok("the next one gets the image registry/healthscope-agent:1"),
    );
    check(&of_old, |facts| facts.canary = Asked::Absent, goes_on);

    // What nobody makes again stays.
    check(
        &bare(of_old.clone()),
        |_| {},
        Ok("0: registry/healthscope-agent:0 -> registry/healthscope-agent:1"),
    );
    check(
        &bare(of_old),
        |facts| facts.canary = Asked::Found(stuck("healthscope-canary-0")),
        Err("is not proven by a canary that is ready"),
    );
    check(
        &bare(stuck_pod),
        |facts| facts.breaker = trip("Cluster", "Off", "ImagePull"),
        Err("it has the installation's image already"),
    );
}

#[test]
fn before_an_installation_other_things_count() {
    let mut facts = healthy();
    facts.deployments = list(&[]);
    facts.definition = Asked::Absent;
    let found = |facts: &Facts| -> Vec<(&'static str, Outcome)> {
        let checks = judge(facts, true).into_iter().flat_map(|section| section.checks);
        checks
            .filter(|check| check.outcome >= Outcome::Warning)
            .map(|check| (check.id, check.outcome))
            .collect()
    };
    assert_eq!(found(&facts), []);
    facts.rights[0].1 = Asked::Found(json!({"status": {"allowed": false}}));
    facts.definition = Asked::Found(json!({"metadata": {}}));
    facts.deployments = list(&[deployment()]);
    assert_eq!(
        found(&facts),
        [
            ("rights-to-install", Failure),
            ("not-installed", Warning),
            ("definition-free", Warning)
        ]
    );
}
