//! The scopes' states in the Prometheus text format, written from a snapshot: ten thousand scopes need no ten thousand
//! registered metrics.

use {
    healthscope_core::{
        snapshot::{ScopeEntry, Snapshot},
        view::Totals,
    },
    healthscope_crd::v1beta1::Summary,
    healthscope_shared::{health::Health, name::ScopeKey},
    std::fmt::Write,
};

/// Writes all families that are about what is watched.
pub(crate) fn write(snapshot: &Snapshot, out: &mut String) {
    let Snapshot {
        at: _,
        scopes,
        transitions: _,
        totals,
        last_transition: _,
        forgotten_transition: _,
    } = snapshot;
    type Value = fn(&ScopeEntry) -> Option<f64>;
    head(
        out,
        "scope_health",
        "1 for the health that the scope has, 0 for the others.",
    );
    for (key, entry) in scopes.iter() {
        for health in Health::ALL {
            let value = u8::from(entry.view.health == health);
            scope_line(out, "scope_health", key, &format!(",health=\"{health}\""), value);
        }
    }
    head(out, "scope_components", "Components of the scope, by health.");
    for (key, entry) in scopes.iter() {
        for (health, count) in by_health(&entry.view.summary) {
            scope_line(
                out,
                "scope_components",
                key,
                &format!(",health=\"{health}\""),
                count,
            );
        }
    }
    let families: [(&str, &str, Value); 5] = [
        (
            "scope_available",
            "Whether the scope's policy is met (Healthy or Degraded).",
            |entry| Some(flag(entry.view.health.is_available())),
        ),
        (
            "scope_alarming",
            "Whether somebody should be alarmed: not available, and not in maintenance.",
            |entry| Some(flag(entry.view.alarming)),
        ),
        (
            "scope_maintenance",
            "Whether the scope is in maintenance.",
            |entry| {
                Some(flag(
                    entry
                        .view
                        .maintenance
                        .as_ref()
                        .is_some_and(|maintenance| maintenance.active),
                ))
            },
        ),
        (
            "scope_flapping",
            "Whether the scope's health changes too often to be believed.",
            |entry| Some(flag(entry.view.flapping)),
        ),
        (
            "scope_health_since_seconds",
            "Since when the scope's health has been what it is, seconds since 1970.",
            #[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
            |entry| Some(entry.view.since.as_second() as f64),
        ),
    ];
    for (name, help, value) in families {
        head(out, name, help);
        for (key, entry) in scopes.iter() {
            if let Some(value) = value(entry) {
                scope_line(out, name, key, "", value);
            }
        }
    }
    write_totals(totals, out);
}

fn write_totals(totals: &Totals, out: &mut String) {
    let Totals {
        scopes,
        components,
        agents_connected,
        agents_absent,
        instances,
        probes,
        missed_transitions,
        dropped_transitions,
    } = totals;
    head(out, "scopes", "Scopes, by health.");
    for (health, count) in by_health(scopes) {
        line(out, "scopes", &format!("health=\"{health}\""), count);
    }
    head(
        out,
        "components",
        "Components, by health; nested scopes are not among them.",
    );
    for (health, count) in by_health(components) {
        line(out, "components", &format!("health=\"{health}\""), count);
    }
    head(
        out,
        "agents",
        "Agents that are known, by whether they have a session.",
    );
    line(out, "agents", "state=\"connected\"", agents_connected);
    line(out, "agents", "state=\"absent\"", agents_absent);
    head(out, "instances", "Instances that agents speak for.");
    line(out, "instances", "", instances);
    head(out, "probes", "Probes that agents run.");
    line(out, "probes", "", probes);
    let counters = [
        (
            "missed_transitions_total",
            "Transitions that were never seen one by one: a later state covers them.",
            missed_transitions,
        ),
        (
            "dropped_transitions_total",
            "Transitions of probes that were counted but not handed out, because too many came at once.",
            dropped_transitions,
        ),
    ];
    for (name, help, value) in counters {
        let _never_fails = writeln!(
            out,
            "# HELP healthscope_{name} {help}\n# TYPE healthscope_{name} counter"
        );
        line(out, name, "", value);
    }
}

fn by_health(summary: &Summary) -> [(Health, u32); 4] {
    let Summary {
        total: _,
        healthy,
        degraded,
        unhealthy,
        unknown,
    } = *summary;
    Health::ALL.map(|health| {
        let count = match health {
            Health::Healthy => healthy,
            Health::Degraded => degraded,
            Health::Unknown => unknown,
            Health::Unhealthy => unhealthy,
        };
        (health, count)
    })
}

const fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn head(out: &mut String, name: &str, help: &str) {
    let _never_fails = writeln!(
        out,
        "# HELP healthscope_{name} {help}\n# TYPE healthscope_{name} gauge"
    );
}

/// Names of scopes and namespaces need no escaping: they are lower-case letters, digits, '-' and '.'.
fn scope_line(out: &mut String, name: &str, key: &ScopeKey, labels: &str, value: impl std::fmt::Display) {
    let ScopeKey {
        namespace,
        name: scope,
    } = key;
    line(
        out,
        name,
        &format!("namespace=\"{namespace}\",scope=\"{scope}\"{labels}"),
        value,
    );
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _never_fails = if labels.is_empty() {
        writeln!(out, "healthscope_{name} {value}")
    } else {
        writeln!(out, "healthscope_{name}{{{labels}}} {value}")
    };
}
