//! The CustomResourceDefinition as real API servers take it: the newest that we promise to work with, and the oldest.

use {
    healthscope_crd::{
        HealthScope, Unreadable,
        effective::{EffectiveScope, effective},
        manifest::rule::RULES,
        writer::{MANAGER, Versions, writers},
    },
    healthscope_e2e_cluster::{Cluster, Options, Version, timed},
    serde_json::{Map, Value, json},
    std::{collections::BTreeSet, sync::LazyLock, time::Duration},
};

const CRD: &str = include_str!("../../../charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml");
const RUDR: &str = include_str!("../../../examples/migration/rudr.yaml");
const OAM: &str = include_str!("../../../examples/migration/oam.yaml");
const KUBEVELA: &str = include_str!("../../../examples/migration/kubevela.yaml");

const LIMIT: Duration = Duration::from_secs(60);

const VERSIONS: [&str; 3] = ["v1beta1", "v1alpha2", "v1alpha1"];

static NEWEST: LazyLock<Cluster> = LazyLock::new(|| cluster(Version::V1_36));
static OLDEST: LazyLock<Cluster> = LazyLock::new(|| cluster(Version::V1_34));

fn cluster(version: Version) -> Cluster {
    let cluster = Cluster::start(&Options {
        version,
        ..Options::control_plane()
    })
    .unwrap();
    establish(&cluster);
    cluster
}

fn establish(cluster: &Cluster) {
    cluster.apply(CRD).unwrap();
    for version in VERSIONS {
        cluster
            .wait_for("the API of HealthScope", LIMIT, || {
                Ok(cluster.get(&path(version, "default", "")).ok())
            })
            .unwrap();
    }
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod kubernetes_1_36 {
            $(#[test] fn $name() { super::$name(&super::NEWEST); })*
        }
        mod kubernetes_1_34 {
            $(#[test] fn $name() { super::$name(&super::OLDEST); })*
        }
    };
}

on_both!(
    objects_of_rudr_oam_and_kubevela_apply_unmodified,
    no_column_of_health_is_blank_in_any_version,
    fields_are_explained,
    scopes_are_found_by_short_name_category_and_health,
    what_cannot_work_is_refused_with_what_to_do,
    no_field_is_lost_through_any_version,
    managed_fields_tell_which_versions_the_writers_speak,
    what_an_older_version_let_through_hides_nothing,
    an_older_version_writes_only_what_has_its_required_fields,
);

fn path(version: &str, namespace: &str, name: &str) -> String {
    let path = format!("/apis/core.oam.dev/{version}/namespaces/{namespace}/healthscopes");
    if name.is_empty() {
        path
    } else {
        format!("{path}/{name}")
    }
}

fn namespace<'a>(cluster: &Cluster, name: &'a str) -> &'a str {
    cluster.kubectl(["create", "namespace", name]).unwrap();
    name
}

fn resource(version: &str) -> String {
    format!("healthscopes.{version}.core.oam.dev")
}

fn object(version: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("core.oam.dev/{version}"),
        "kind": "HealthScope",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// What kubectl printed, or what it complained about.
type Answer = Result<String, String>;

/// Runs kubectl with an object on a file that only this call uses.
fn with_file(cluster: &Cluster, object: &Value, arguments: &[&str]) -> Answer {
    let name = object["metadata"]["name"].as_str().unwrap();
    let namespace = object["metadata"]["namespace"].as_str().unwrap();
    let file = cluster.folder().join(format!("{namespace}-{name}.json"));
    std::fs::write(&file, object.to_string()).unwrap();
    let file = file.display().to_string();
    let mut all = arguments.to_vec();
    all.extend(["-f", &file]);
    cluster.kubectl(all).map_err(|error| error.to_string())
}

fn read(cluster: &Cluster, namespace: &str, name: &str) -> Result<HealthScope, Box<Unreadable>> {
    healthscope_crd::read(cluster.get(&path("v1beta1", namespace, name)).unwrap())
}

fn effective_of(cluster: &Cluster, namespace: &str, name: &str) -> EffectiveScope {
    effective(&read(cluster, namespace, name).unwrap()).unwrap()
}

fn objects_of_rudr_oam_and_kubevela_apply_unmodified(cluster: &Cluster) {
    for example in [RUDR, OAM, KUBEVELA] {
        cluster.apply(example).unwrap();
    }
    let names = |scope: &EffectiveScope| -> Vec<String> {
        scope
            .members
            .iter()
            .map(|member| member.key.to_string())
            .collect()
    };
    let rudr = effective_of(cluster, "default", "my-health-scope");
    assert_eq!(rudr.policy.min_available, 99);
    assert_eq!(
        rudr.required.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["data-base", "front-end"]
    );
    let other = effective_of(cluster, "default", "my-other-health-scope");
    assert_eq!(
        (other.policy.min_available, &other.required),
        (80, &rudr.required)
    );
    let oam = effective_of(cluster, "default", "example-health-scope");
    assert_eq!(names(&oam), ["Deployment/web", "ContainerizedWorkload/front-end"]);
    assert_eq!(
        names(&effective_of(cluster, "default", "empty-health-scope")),
        [""; 0]
    );
    let vela = effective_of(cluster, "default", "vela-health-scope");
    assert_eq!(names(&vela), ["Deployment/front-end", "StatefulSet/data-base"]);
    // Applied again, nothing is different.
    let again = cluster
        .apply(&format!("{RUDR}\n---\n{OAM}\n---\n{KUBEVELA}"))
        .unwrap();
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
}

fn no_column_of_health_is_blank_in_any_version(cluster: &Cluster) {
    let here = namespace(cluster, "columns");
    with_file(cluster, &object("v1beta1", here, "shop", &json!({})), &["apply"]).unwrap();
    let table = |version: &str, more: &[&str]| -> Vec<String> {
        let resource = resource(version);
        let mut arguments = vec!["get", "-n", here, &resource];
        arguments.extend(more);
        let printed = cluster.kubectl(arguments).unwrap();
        // The age is not ours to test.
        printed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .map(|words| words[..words.len() - 1].join(" "))
            .collect()
    };
    assert_eq!(
        table("v1beta1", &[]),
        ["NAME HEALTH AVAILABLE ROOT CAUSE", "shop Unknown"]
    );
    assert_eq!(table("v1alpha2", &[]), ["NAME HEALTH", "shop UNKNOWN"]);
    assert_eq!(table("v1alpha1", &[]), ["NAME HEALTH", "shop Unknown"]);

    let status = json!({"status": {
        "health": "Degraded", "available": "3/4", "rootCause": "db: Database phase is Failed",
        "summary": {"total": 4, "healthy": 3, "degraded": 0, "unhealthy": 1, "unknown": 0},
        "scopeHealthCondition": {"healthStatus": "HEALTHY", "total": 4, "healthyWorkloads": 3, "unhealthyWorkloads": 1},
        "lastAggregateTimestamp": "2026-11-21T09:00:00Z",
    }});
    let patch = status.to_string();
    cluster
        .kubectl([
            "patch",
            "healthscope",
            "shop",
            "-n",
            here,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .unwrap();
    assert_eq!(
        table("v1beta1", &[])[1],
        "shop Degraded 3/4 db: Database phase is Failed"
    );
    assert_eq!(table("v1alpha2", &[])[1], "shop HEALTHY");
    assert_eq!(table("v1alpha1", &[])[1], "shop Degraded");
    let wide = table("v1beta1", &["-o", "wide"]);
    assert_eq!(
        wide[0],
        "NAME HEALTH AVAILABLE ROOT CAUSE TOTAL UNKNOWN LAST CHANGE"
    );
    assert!(
        wide[1].starts_with("shop Degraded 3/4 db: Database phase is Failed 4 0 "),
        "{}",
        wide[1]
    );
}

fn fields_are_explained(cluster: &Cluster) {
    let explain = |field: &str, version: &str| {
        let version = format!("core.oam.dev/{version}");
        // The description of a new resource comes a moment after the resource.
        cluster
            .wait_for(field, LIMIT, || {
                Ok(cluster
                    .kubectl(["explain", field, "--api-version", &version])
                    .ok())
            })
            .unwrap()
    };
    for (field, version, expected) in [
        (
            "healthscope.spec.policy",
            "v1beta1",
            "How the health of the components adds up to that of the scope.",
        ),
        ("healthscope.spec.policy.unknownPolicy", "v1beta1", "as undecided"),
        (
            "healthscope.spec.workloadRefs.healthyWhen",
            "v1beta1",
            "a CEL expression",
        ),
        (
            "healthscope.spec.healthThresholdPercentage",
            "v1beta1",
            "From v1alpha1 (Rudr).",
        ),
        ("healthscope.status.components", "v1beta1", "causedBy"),
        ("healthscope.spec.workloadRefs", "v1alpha2", "-required-"),
        ("healthscope.spec.probe-interval", "v1alpha2", "it has no effect"),
        ("healthscope.spec.probeMethod", "v1alpha1", "it has no effect"),
    ] {
        let text = explain(field, version);
        assert!(text.contains(expected), "{field}: {text}");
    }
}

fn scopes_are_found_by_short_name_category_and_health(cluster: &Cluster) {
    let here = namespace(cluster, "found");
    for (name, health) in [("good", "Healthy"), ("bad", "Unhealthy")] {
        with_file(
            cluster,
            &object("v1alpha2", here, name, &json!({"workloadRefs": []})),
            &["apply"],
        )
        .unwrap();
        let patch = json!({"status": {"health": health}}).to_string();
        cluster
            .kubectl([
                "patch",
                "health",
                name,
                "-n",
                here,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ])
            .unwrap();
    }
    with_file(cluster, &object("v1beta1", here, "new", &json!({})), &["apply"]).unwrap();
    let names = |arguments: &[&str]| {
        let mut all = vec!["get", "-n", here, "-o", "name"];
        all.extend(arguments);
        cluster
            .kubectl(all)
            .unwrap()
            .replace("healthscope.core.oam.dev/", "")
    };
    for word in ["health", "healthscope", "healthscopes", "oam"] {
        assert_eq!(names(&[word]), "bad\ngood\nnew\n", "{word}");
    }
    assert_eq!(
        names(&["health", "--field-selector=status.health=Unhealthy"]),
        "bad\n"
    );
    assert_eq!(
        names(&["health", "--field-selector=status.health!=Healthy"]),
        "bad\nnew\n"
    );
    assert_eq!(
        names(&["health", "--field-selector=status.health=Unknown"]),
        "new\n"
    );
}

fn what_cannot_work_is_refused_with_what_to_do(cluster: &Cluster) {
    let here = namespace(cluster, "refused");
    let reference = |reference: Value| json!({"workloadRefs": [reference]});
    let expression = |expression: Value| json!({"selector": {"matchExpressions": [expression]}});
    let deployment = |field: &str, value: &str| {
        let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
        deployment[field] = value.into();
        reference(deployment)
    };
    let refused = [
        (
            reference(json!({"kind": "HealthScope", "name": "refused"})),
            "a scope cannot be a member of itself",
        ),
        (
            json!({"policy": {"minAvailable": 50}, "healthThresholdPercentage": 80}),
            "policy.minAvailable contradicts",
        ),
        (
            json!({"policy": {"minAvailable": 50}, "health-threshold-percentage": 40}),
            "policy.minAvailable contradicts",
        ),
        (
            json!({"policy": {"minAvailable": 50}, "healthyRateThreshold": 51}),
            "policy.minAvailable contradicts",
        ),
        (
            json!({"policy": {"minAvailable": 50}, "failureRateThreshold": 80}),
            "policy.minAvailable contradicts",
        ),
        (deployment("kind", "deployment"), "write the kind as manifests do"),
        (deployment("name", "The Web"), "write the name of an object"),
        (
            deployment("apiVersion", "apps/v1/x"),
            "write group/version such as apps/v1, or v1",
        ),
        (
            reference(json!({"kind": "Deployment", "name": "web"})),
            "the apiVersion of this kind is needed",
        ),
        (
            reference(json!({"kind": "Component", "name": "web", "healthyWhen": "true"})),
            "healthyWhen is for Kubernetes objects",
        ),
        (
            json!({"selector": {"matchLabels": {"a b": "x"}}}),
            "write the key of each label",
        ),
        (
            json!({"selector": {"matchLabels": {"a": "x y"}}}),
            "write the value of a label",
        ),
        (
            expression(json!({"key": "a b", "operator": "Exists"})),
            "write the key of a label",
        ),
        (
            expression(json!({"key": "a", "operator": "In"})),
            "In and NotIn need at least one value",
        ),
        (
            expression(json!({"key": "a", "operator": "In", "values": ["x y"]})),
            "write the value of a label",
        ),
        (
            expression(json!({"key": "a", "operator": "Exists", "values": ["x"]})),
            "Exists and DoesNotExist take no",
        ),
        (
            json!({"maintenance": {"until": "tomorrow"}}),
            "write a time with its offset",
        ),
        (
            json!({"maintenance": {"until": "2026-12-01T06:00:00"}}),
            "write a time with its offset",
        ),
        (
            json!({"policy": {"minAvailable": 101}}),
            "should be less than or equal to 100",
        ),
        (
            json!({"policy": {"minHealthySeconds": 90_000}}),
            "should be less than or equal to 86400",
        ),
        (
            json!({"policy": {"unknownPolicy": "Panic"}}),
            "supported values: \"Unknown\", \"Unhealthy\", \"Ignore\"",
        ),
    ];
    let mut seen = BTreeSet::new();
    for (spec, expected) in &refused {
        let scope = object("v1beta1", here, "refused", spec);
        let error = with_file(cluster, &scope, &["create", "--dry-run=server"]).unwrap_err();
        assert!(error.contains(expected), "{spec}: {error}");
        seen.extend(
            RULES
                .iter()
                .map(|rule| rule.message)
                .filter(|message| error.contains(message)),
        );
        // The two agree, whichever of them an object meets first.
        let is_accepted = healthscope_crd::read(scope).is_ok_and(|scope| effective(&scope).is_ok());
        assert!(!is_accepted, "{spec}");
    }
    let all: BTreeSet<&str> = RULES.iter().map(|rule| rule.message).collect();
    assert_eq!(seen, all, "every rule has an object that breaks it");

    let accepted = [
        json!({}),
        reference(json!({"kind": "Component", "name": "web"})),
        reference(json!({"kind": "HealthScope", "name": "another"})),
        reference(
            json!({"apiVersion": "example.org/v1", "kind": "HealthScope", "name": "refused", "healthyWhen": "true"}),
        ),
        reference(json!({"apiVersion": "v1", "kind": "Service", "name": "a.b-c"})),
        json!({"selector": {"matchLabels": {"app.kubernetes.io/part-of": "shop", "empty": ""}}}),
        json!({"selector": {}}),
        expression(json!({"key": "tier", "operator": "NotIn", "values": ["a", ""]})),
        json!({"maintenance": {"until": "2026-12-01T06:00:00.123456789+01:00", "reason": "db"}}),
        json!({"policy": {"minAvailable": 67}, "healthThresholdPercentage": 66.6, "healthyRateThreshold": 1}),
        json!({"policy": {"minAvailable": 20}, "failureRateThreshold": 80}),
        json!({"policy": {"minAvailable": 100}, "healthThresholdPercentage": null}),
        json!({"requiredHealthyComponents": "a,b", "required-healthy-components": ["c"]}),
    ];
    for spec in &accepted {
        let scope = object("v1beta1", here, "refused", spec);
        with_file(cluster, &scope, &["create", "--dry-run=server"]).unwrap();
        let effective = healthscope_crd::read(scope).map(|scope| effective(&scope));
        assert!(matches!(effective, Ok(Ok(_))), "{spec}: {effective:?}");
    }

    // The largest that is possible stays below what rules may cost.
    let members: Vec<Value> = (0..10_000)
        .map(|number| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("web-{number}")}))
        .collect();
    let largest = object("v1beta1", here, "largest", &json!({"workloadRefs": members}));
    timed("10,000 members", || with_file(cluster, &largest, &["create"])).unwrap();
}

/// A small generator of pseudo-random numbers (xorshift), the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn word(&mut self) -> String {
        format!("w{}", self.below(1000))
    }

    fn number(&mut self) -> usize {
        1 + self.below(90)
    }
}

/// A field of the spec, of any version, with a value.
fn random_spec_field(random: &mut Random) -> (&'static str, Value) {
    let field = random.one_of(&[
        "workloadRefs",
        "selector",
        "policy",
        "maintenance",
        "probeMethod",
        "probeEndpoint",
        "probeTimeout",
        "probeInterval",
        "failureRateThreshold",
        "healthyRateThreshold",
        "healthThresholdPercentage",
        "health-threshold-percentage",
        "requiredHealthyComponents",
        "required-healthy-components",
        "probe-timeout",
        "probe-interval",
        "appReferences",
    ]);
    let number = random.number();
    let word = random.word();
    let value = match field {
        "workloadRefs" => json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": random.word(), "required": true,
            "dependsOn": [random.word()], "healthyWhen": "true", "uid": random.word(), "namespace": "lost",
            "resourceVersion": "5", "fieldPath": random.word(),
        }]),
        "selector" => json!({
            "matchLabels": {random.word(): random.word()},
            "matchExpressions": [{"key": random.word(), "operator": "In", "values": [random.word()]}],
        }),
        "policy" => random.one_of(&[
            json!({"unknownPolicy": "Ignore"}),
            json!({"minHealthySeconds": number}),
        ]),
        "maintenance" => json!({"until": "2026-12-01T06:00:00Z", "reason": random.word()}),
        "probeMethod" | "probeEndpoint" => word.into(),
        "requiredHealthyComponents" | "required-healthy-components" => {
            random.one_of(&[json!([word]), json!("a,b")])
        }
        "appReferences" => json!([{"appName": random.word(), "compReferences": [{
            "compName": random.word(),
            "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": random.word(), "namespace": "lost"},
            "traits": [{"apiVersion": "v1", "kind": "Service", "name": random.word(), "uid": random.word()}],
        }]}]),
        "healthThresholdPercentage" | "health-threshold-percentage" => json!(80.5),
        _ => number.into(),
    };
    (field, value)
}

/// A field of the status, of any version, with a value.
fn random_status_field(random: &mut Random) -> (&'static str, Value) {
    let field = random.one_of(&[
        "health",
        "available",
        "summary",
        "components",
        "conditions",
        "scopeHealthCondition",
        "healthConditions",
        "appHealthConditions",
        "lastAggregateTimestamp",
    ]);
    let word = random.word();
    let workload = json!({
        "componentName": word, "healthStatus": "UNHEALTHY", "diagnosis": word, "workloadStatus": "{}",
        "targetWorkload": {"apiVersion": "v1", "kind": "Pod", "name": word, "uid": word},
        "customStatusMsg": word,
        "traits": [{"type": word, "resource": word, "healthStatus": "HEALTHY", "diagnosis": word}],
    });
    let value = match field {
        "health" => random.one_of(&[json!("Healthy"), json!("Degraded")]),
        "available" => format!("{}/99", random.number()).into(),
        "summary" => json!({"total": random.number(), "healthy": 1, "degraded": 0, "unhealthy": 0, "unknown": 0}),
        "components" => random.one_of(&[
            json!([{"name": word, "instanceName": word, "status": "healthy"}]),
            json!([{"name": word, "apiVersion": "v1", "kind": "Pod", "health": "Healthy", "reason": "R", "message": word,
                    "since": "2026-12-01T06:00:00Z", "causedBy": word, "required": true, "flapping": true}]),
        ]),
        "conditions" => json!([{
            "type": "Ready", "status": "True", "reason": "R", "lastTransitionTime": "2026-12-01T06:00:00Z",
            "observedGeneration": random.number(),
        }]),
        "scopeHealthCondition" => json!({"healthStatus": "UNHEALTHY", "total": random.number(), "unknownWorkloads": 1}),
        "healthConditions" => json!([workload]),
        "appHealthConditions" => json!([{"appName": word, "envName": word, "components": [workload]}]),
        _ => format!("2026-12-01T06:00:{}Z", random.number() % 50 + 10).into(),
    };
    (field, value)
}

/// What a merge does: objects by their fields, everything else as a whole.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => into.clone_from(from),
    }
}

fn no_field_is_lost_through_any_version(cluster: &Cluster) {
    let here = namespace(cluster, "lost");
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // kubectl takes what it applied itself for what it may remove when it goes over to server-side apply; so
        // parts are applied server-side only where it has not applied the whole.
        let applies_parts = seed % 2 == 0;
        let name = format!("scope-{seed}");
        // What every version requires, so that each may write.
        let mut spec = json!({"workloadRefs": [], "probeMethod": "kube-get", "probeEndpoint": ".status"});
        let mut status = json!({"health": "Unknown", "scopeHealthCondition": {"healthStatus": "UNKNOWN"}});
        let version = random.one_of(&VERSIONS);
        let first = if applies_parts { "create" } else { "apply" };
        with_file(cluster, &object(version, here, &name, &spec), &[first]).unwrap();
        let mut history = vec![format!("seed {seed}: {first} as {version}")];
        for step in 0..16 {
            let version = random.one_of(&VERSIONS);
            let resource = resource(version);
            let (field, value) = random_spec_field(&mut random);
            let change = json!({field: value});
            let way = random.one_of(&[
                if applies_parts { "apply a part" } else { "apply" },
                "merge patch",
                "JSON patch",
                "replace",
                "status",
            ]);
            history.push(format!("{way} through {version}: {change}"));
            let done = match way {
                "apply" => {
                    merge(&mut spec, &change);
                    let arguments: &[&str] = random.one_of(&[
                        ["apply"].as_slice(),
                        &["apply", "--server-side", "--force-conflicts"],
                    ]);
                    with_file(cluster, &object(version, here, &name, &spec), arguments)
                }
                "apply a part" => {
                    merge(&mut spec, &change);
                    let manager = format!("--field-manager=manager-{step}");
                    let arguments = ["apply", "--server-side", "--force-conflicts", &manager];
                    with_file(cluster, &object(version, here, &name, &change), &arguments)
                }
                "merge patch" => {
                    merge(&mut spec, &change);
                    let patch = json!({"spec": change}).to_string();
                    patched(cluster, here, &resource, &name, &["--type=merge", "-p", &patch])
                }
                "JSON patch" => {
                    spec[field].clone_from(&change[field]);
                    let patch =
                        json!([{"op": "add", "path": format!("/spec/{field}"), "value": change[field]}]);
                    patched(
                        cluster,
                        here,
                        &resource,
                        &name,
                        &["--type=json", "-p", &patch.to_string()],
                    )
                }
                "replace" => {
                    spec[field].clone_from(&change[field]);
                    let found = cluster.get(&path(version, here, &name)).unwrap();
                    let mut whole = object(version, here, &name, &found["spec"]);
                    whole["spec"][field].clone_from(&change[field]);
                    with_file(cluster, &whole, &["replace"])
                }
                _ => {
                    let (field, value) = random_status_field(&mut random);
                    let change = json!({field: value});
                    history.push(format!("    {change}"));
                    merge(&mut status, &change);
                    let patch = json!({"status": change}).to_string();
                    patched(
                        cluster,
                        here,
                        &resource,
                        &name,
                        &["--subresource=status", "--type=merge", "-p", &patch],
                    )
                }
            };
            assert!(done.is_ok(), "{done:?}\n{}", history.join("\n"));
            for version in VERSIONS {
                let found = cluster.get(&path(version, here, &name)).unwrap();
                assert_eq!(found["spec"], spec, "as {version}\n{}", history.join("\n"));
                assert_eq!(found["status"], status, "as {version}\n{}", history.join("\n"));
                assert_eq!(found["apiVersion"], format!("core.oam.dev/{version}"));
            }
            let read = read(cluster, here, &name).unwrap();
            let again = serde_json::to_value(read.status).unwrap();
            let known: Map<String, Value> = again.as_object().unwrap().clone();
            assert!(
                status
                    .as_object()
                    .unwrap()
                    .keys()
                    .all(|field| known.contains_key(field)),
                "{again}"
            );
        }
    }
}

fn patched(cluster: &Cluster, namespace: &str, resource: &str, name: &str, how: &[&str]) -> Answer {
    let mut arguments = vec!["patch", "-n", namespace, resource, name];
    arguments.extend(how);
    cluster.kubectl(arguments).map_err(|error| error.to_string())
}

fn managed_fields_tell_which_versions_the_writers_speak(cluster: &Cluster) {
    let here = namespace(cluster, "writers");
    let versions = |name: &str| {
        let scope = read(cluster, here, name).unwrap();
        let Versions {
            v1alpha1,
            v1alpha2,
            v1beta1,
        } = writers(&scope.metadata.managed_fields.unwrap());
        [v1alpha1, v1alpha2, v1beta1]
    };
    let spec = json!({"workloadRefs": [], "probeMethod": "kube-get", "probeEndpoint": ".status"});
    for (version, expected) in [
        ("v1alpha1", [true, false, false]),
        ("v1alpha2", [false, true, false]),
        ("v1beta1", [false, false, true]),
    ] {
        with_file(cluster, &object(version, here, version, &spec), &["apply"]).unwrap();
        assert_eq!(versions(version), expected, "{version}");
        let manager = format!("--field-manager={MANAGER}");
        let status = [
            "--subresource=status",
            "--type=merge",
            &manager,
            "-p",
            r#"{"status":{"health":"Healthy"}}"#,
        ];
        patched(
            cluster,
            here,
            "healthscopes.v1beta1.core.oam.dev",
            version,
            &status,
        )
        .unwrap();
        assert_eq!(
            versions(version),
            expected,
            "{version}: our own status does not count"
        );
    }
    // Who goes over to our version is no longer answered in the words of the old one. Times are in whole seconds.
    let mut attempt = 0;
    cluster
        .wait_for("a later second", LIMIT, || {
            attempt += 1;
            let mut ours = object("v1beta1", here, "v1alpha2", &spec);
            ours["metadata"]["labels"] = json!({"attempt": attempt.to_string()});
            with_file(cluster, &ours, &["apply"]).unwrap();
            Ok((versions("v1alpha2") == [false, false, true]).then_some(()))
        })
        .unwrap();
    let applied = object("v1alpha2", here, "applied", &spec);
    with_file(cluster, &applied, &["apply", "--server-side"]).unwrap();
    assert_eq!(versions("applied"), [false, true, false]);
    with_file(
        cluster,
        &object("v1beta1", here, "applied", &spec),
        &["apply", "--server-side"],
    )
    .unwrap();
    assert_eq!(versions("applied"), [false, false, true]);
}

fn what_an_older_version_let_through_hides_nothing(cluster: &Cluster) {
    let here = namespace(cluster, "garbage");
    let bad = json!({"workloadRefs": [], "selector": 5, "requiredHealthyComponents": {"a": 1}});
    with_file(cluster, &object("v1alpha2", here, "bad", &bad), &["create"]).unwrap();
    with_file(
        cluster,
        &object("v1beta1", here, "good", &json!({"future": 1})),
        &["create", "--validate=false"],
    )
    .unwrap();
    let list = cluster.get(&path("v1beta1", here, "")).unwrap();
    let read: Vec<Result<HealthScope, Box<Unreadable>>> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .map(healthscope_crd::read)
        .collect();
    let unreadable = read[0].as_ref().unwrap_err();
    assert_eq!(unreadable.metadata.name.as_deref(), Some("bad"));
    assert!(unreadable.metadata.uid.is_some() && unreadable.metadata.generation == Some(1));
    assert!(unreadable.error.path.starts_with("spec."), "{unreadable}");
    assert_eq!(read[1].as_ref().unwrap().metadata.name.as_deref(), Some("good"));
    // It can be shown as what it is, mended, and deleted.
    let status = [
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"health":"Unknown","rootCause":"spec.selector"}}"#,
    ];
    patched(cluster, here, "healthscopes.v1beta1.core.oam.dev", "bad", &status).unwrap();
    let mend = [
        "--type=merge",
        "-p",
        r#"{"spec":{"selector":null,"requiredHealthyComponents":null}}"#,
    ];
    patched(cluster, here, "healthscopes.v1beta1.core.oam.dev", "bad", &mend).unwrap();
    effective_of(cluster, here, "bad");
    cluster
        .kubectl(["delete", "health", "-n", here, "--all"])
        .unwrap();
}

fn an_older_version_writes_only_what_has_its_required_fields(cluster: &Cluster) {
    let here = namespace(cluster, "ratchet");
    with_file(
        cluster,
        &object("v1beta1", here, "shop", &json!({"selector": {}})),
        &["apply"],
    )
    .unwrap();
    let label = |version: &str| {
        cluster
            .kubectl([
                "label",
                "-n",
                here,
                &resource(version),
                "shop",
                "through=it",
                "--overwrite",
            ])
            .map_err(|error| error.to_string())
    };
    for (version, required) in [
        ("v1alpha1", "spec.probeMethod"),
        ("v1alpha2", "spec.workloadRefs"),
    ] {
        assert_eq!(
            cluster.get(&path(version, here, "shop")).unwrap()["spec"],
            json!({"selector": {}})
        );
        let error = label(version).unwrap_err();
        assert!(error.contains(&format!("{required}: Required value")), "{error}");
    }
    label("v1beta1").unwrap();
    cluster
        .kubectl(["delete", "-n", here, &resource("v1alpha2"), "shop"])
        .unwrap();
}

/// As oam-kubernetes-runtime installed it, in what matters here.
const OAM_CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: healthscopes.core.oam.dev}
spec:
  group: core.oam.dev
  scope: Namespaced
  names: {plural: healthscopes, singular: healthscope, kind: HealthScope, listKind: HealthScopeList, categories: [crossplane, oam]}
  versions:
  - name: v1alpha2
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: HEALTH, type: string, jsonPath: .status.health}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

#[test]
fn what_oam_stored_is_there_after_its_definition_was_replaced() {
    let cluster = Cluster::start(&Options::control_plane()).unwrap();
    cluster.apply(OAM_CRD).unwrap();
    cluster
        .wait_for("OAM's API", LIMIT, || {
            Ok(cluster.get(&path("v1alpha2", "default", "")).ok())
        })
        .unwrap();
    cluster.apply(OAM).unwrap();
    let status = r#"{"status":{"scopeHealthCondition":{"healthStatus":"UNHEALTHY","total":2,"unknownWorkloads":2},
        "healthConditions":[{"healthStatus":"UNKNOWN","diagnosis":"d"}]}}"#;
    patched(
        &cluster,
        "default",
        "healthscope",
        "example-health-scope",
        &["--subresource=status", "--type=merge", "-p", status],
    )
    .unwrap();
    let before = cluster
        .get(&path("v1alpha2", "default", "example-health-scope"))
        .unwrap();

    establish(&cluster);
    let after = cluster
        .get(&path("v1alpha2", "default", "example-health-scope"))
        .unwrap();
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(
        after["status"]["healthConditions"],
        before["status"]["healthConditions"]
    );
    assert_eq!(
        after["status"]["scopeHealthCondition"],
        before["status"]["scopeHealthCondition"]
    );
    let table = cluster.kubectl(["get", "health"]).unwrap();
    assert!(
        table.lines().skip(1).all(|line| line.contains(" Unknown ")),
        "{table}"
    );
    // Stored anew, in our version, by whatever writes next.
    cluster
        .kubectl(["label", "health", "--all", "seen=true"])
        .unwrap();
    assert_eq!(
        effective_of(&cluster, "default", "example-health-scope")
            .members
            .len(),
        2
    );
}
