//! What Argo CD and Flux make of a HealthScope: the shipped Lua in Lua 5.1, which is what Argo CD's interpreter speaks,
//! and the shipped CEL, over statuses that the aggregator's own code writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use {
    healthscope_core::{
        status,
        view::{MaintenanceView, ScopeView},
    },
    healthscope_shared::health::Health,
    mlua::{Lua, LuaOptions, LuaSerdeExt, SerializeOptions, StdLib},
    serde_json::{Value, json},
    std::{fs, path::PathBuf},
};

/// Lives in `examples/gitops`.
fn example(file: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "examples", "gitops", file]
        .iter()
        .collect();
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An object with the status that an aggregator writes for a scope of this health.
fn scope(health: Health, change: impl FnOnce(&mut ScopeView)) -> Value {
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/scope-payments.json");
    let mut view: ScopeView = serde_json::from_str(&fs::read_to_string(recorded).unwrap()).unwrap();
    view.health = health;
    view.maintenance = None;
    if health == Health::Healthy {
        view.root_cause = None;
        view.message.clear();
        view.available = "1/1".into();
    }
    change(&mut view);
    let status = status::desired(
        &view,
        &status::OldWords::default(),
        Some(2),
        None,
        "2026-01-02T05:00:00Z".parse().unwrap(),
    );
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "HealthScope",
        "metadata": {"name": "payments", "namespace": "default", "generation": 2},
        "spec": {},
        "status": status,
    })
}

fn in_maintenance(view: &mut ScopeView) {
    view.maintenance = Some(MaintenanceView {
        active: true,
        until: Some("2026-12-01T06:00:00Z".parse().unwrap()),
        reason: "db upgrade".into(),
    });
}

fn maintenance_is_over(view: &mut ScopeView) {
    in_maintenance(view);
    if let Some(maintenance) = &mut view.maintenance {
        maintenance.active = false;
    }
}

fn stalled(view: &mut ScopeView) {
    view.stalled = vec!["spec.policy.minAvailable: 101 is not a percentage".into()];
}

const CAUSE: &str = "ledger: readiness exec false on laptop: exit code 1";

/// Every kind of scope, with what Argo CD says of it, and what Flux says, impatient and patient.
fn cases() -> Vec<(&'static str, Value, &'static str, String, [&'static str; 2])> {
    let unchanged = |_: &mut ScopeView| {};
    let mut behind = scope(Health::Healthy, unchanged);
    behind["metadata"]["generation"] = json!(3);
    let mut unreported = scope(Health::Healthy, unchanged);
    unreported.as_object_mut().unwrap().remove("status");
    let mut empty = unreported.clone();
    empty["status"] = json!({});
    let mut newer = scope(Health::Healthy, unchanged);
    newer["status"]["health"] = json!("Radiant");
    let progress = ["InProgress"; 2];
    let current = ["Current"; 2];
    vec![
        (
            "healthy",
            scope(Health::Healthy, unchanged),
            "Healthy",
            "Healthy, 1/1 available".into(),
            current,
        ),
        (
            "degraded",
            scope(Health::Degraded, unchanged),
            "Healthy",
            format!("Degraded, 0/1 available: {CAUSE}"),
            current,
        ),
        (
            "unhealthy",
            scope(Health::Unhealthy, unchanged),
            "Degraded",
            format!("Unhealthy, 0/1 available: {CAUSE}"),
            ["Failed", "InProgress"],
        ),
        (
            "unknown",
            scope(Health::Unknown, |view| {
                view.root_cause = None;
                view.message = "ledger is not known".into();
            }),
            "Progressing",
            "Unknown, 0/1 available: ledger is not known".into(),
            progress,
        ),
        (
            "unhealthy in maintenance",
            scope(Health::Unhealthy, in_maintenance),
            "Suspended",
            "in maintenance until 2026-12-01T06:00:00Z: db upgrade".into(),
            current,
        ),
        (
            "unknown in maintenance",
            scope(Health::Unknown, in_maintenance),
            "Suspended",
            "in maintenance until 2026-12-01T06:00:00Z: db upgrade".into(),
            current,
        ),
        (
            "unhealthy after maintenance",
            scope(Health::Unhealthy, maintenance_is_over),
            "Degraded",
            format!("Unhealthy, 0/1 available: {CAUSE}"),
            ["Failed", "InProgress"],
        ),
        (
            "stalled",
            scope(Health::Healthy, stalled),
            "Degraded",
            "InvalidSpec: spec.policy.minAvailable: 101 is not a percentage".into(),
            ["Failed"; 2],
        ),
        (
            "stalled before it was ever known",
            scope(Health::Unknown, stalled),
            "Degraded",
            "InvalidSpec: spec.policy.minAvailable: 101 is not a percentage".into(),
            ["Failed"; 2],
        ),
        (
            "of an older spec",
            behind,
            "Progressing",
            "the aggregator has not looked at the present spec yet".into(),
            progress,
        ),
        (
            "without a status",
            unreported,
            "Progressing",
            "no aggregator has reported on it yet".into(),
            progress,
        ),
        (
            "with an empty status",
            empty,
            "Progressing",
            "no aggregator has reported on it yet".into(),
            progress,
        ),
        (
            "of a newer version",
            newer,
            "Progressing",
            "Radiant, 1/1 available".into(),
            progress,
        ),
    ]
}

/// Runs the script as Argo CD does: the object is the global `obj`, the answer is a table.
fn argo_cd(script: &str, object: &Value) -> (String, String) {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING, LuaOptions::default()).unwrap();
    let options = SerializeOptions::new().serialize_none_to_null(false);
    let object = lua.to_value_with(object, options).unwrap();
    lua.globals().set("obj", object).unwrap();
    let answer: mlua::Table = lua.load(script).eval().unwrap();
    (answer.get("status").unwrap(), answer.get("message").unwrap())
}

#[test]
fn argo_cd_reads_every_health() {
    let script = example("argocd/health.lua");
    for (name, object, status, message, _) in cases() {
        assert_eq!(argo_cd(&script, &object), (status.to_owned(), message), "{name}");
    }
}

#[test]
fn the_config_map_carries_the_script_that_is_tested() {
    let map: Value = serde_saphyr::from_str(&example("argocd/argocd-cm.yaml")).unwrap();
    assert_eq!(
        map["data"]["resource.customizations.health.core.oam.dev_HealthScope"],
        example("argocd/health.lua")
    );
}

/// What Flux's status evaluator says: a status of an older spec first, then the expressions in their order. One that
/// cannot be evaluated is tried again until the timeout.
fn flux(expressions: &Value, object: &Value) -> &'static str {
    let observed = &object["status"]["observedGeneration"];
    if !observed.is_null() && *observed != object["metadata"]["generation"] {
        return "InProgress";
    }
    let mut context = cel::Context::default();
    for (name, value) in object.as_object().unwrap() {
        context.add_variable(name.as_str(), value).unwrap();
    }
    for (field, verdict) in [
        ("inProgress", "InProgress"),
        ("failed", "Failed"),
        ("current", "Current"),
    ] {
        let text = expressions[field].as_str().unwrap();
        let program = cel::Program::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => return verdict,
            Ok(cel::Value::Bool(false)) => {}
            Ok(other) => panic!("{text}: {other:?}"),
            Err(_) if object.get("status").is_none() => return "InProgress",
            Err(error) => panic!("{text}: {error}"),
        }
    }
    "InProgress"
}

#[test]
fn flux_reads_every_health() {
    for (index, file) in ["flux/kustomization.yaml", "flux/kustomization-patient.yaml"]
        .iter()
        .enumerate()
    {
        let kustomization: Value = serde_saphyr::from_str(&example(file)).unwrap();
        let expressions = &kustomization["spec"]["healthCheckExprs"][0];
        assert_eq!(
            (&expressions["apiVersion"], &expressions["kind"]),
            (&json!("core.oam.dev/v1beta1"), &json!("HealthScope"))
        );
        for (name, object, _, _, expected) in cases() {
            assert_eq!(flux(expressions, &object), expected[index], "{file}: {name}");
        }
    }
}
