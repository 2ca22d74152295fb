//! The metrics, read like Prometheus reads them.

use {
    crate::support::{SHOP, healthy_shop, serve},
    std::collections::{BTreeMap, BTreeSet},
};

/// Checks the text format: every family is described once, and its series follow it and differ.
fn lint(text: &str) -> BTreeMap<String, String> {
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(helped.insert(name.to_owned()), "{name} is described twice");
            assert!(help.ends_with('.'), "{line}");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "TYPE follows HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name.to_owned()), "{name} twice");
            let plain = name.split('{').next().unwrap();
            let is_part = types.get(&current).is_some_and(|kind| kind == "histogram")
                && ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|end| plain.strip_suffix(end) == Some(current.as_str()));
            assert!(plain == current || is_part, "{line} under {current}");
            assert!(
                plain.starts_with("healthscope_") || plain.starts_with("process_"),
                "{line}"
            );
        }
    }
    types
}

#[tokio::test]
async fn every_family_is_well_formed() {
    let (served, _agent) = healthy_shop().await;
    let answer = served.get("/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let families = lint(&answer.body);
    for name in [
        "healthscope_scope_health",
        "healthscope_scope_available",
        "healthscope_agent_sessions",
        "healthscope_agent_messages_total",
        "healthscope_agent_records_total",
        "healthscope_store_queue_length",
        "healthscope_store_publications_total",
        "healthscope_streams",
        "healthscope_http_requests_total",
        "healthscope_build_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(families.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_scope_has_one_series_for_each_health() {
    let (served, _agent) = healthy_shop().await;
    for (health, value) in [
        ("Healthy", 1.0),
        ("Degraded", 0.0),
        ("Unknown", 0.0),
        ("Unhealthy", 0.0),
    ] {
        let series =
            format!("healthscope_scope_health{{namespace=\"default\",scope=\"shop\",health=\"{health}\"}}");
        assert_eq!(
            served.metric(&series).await.to_bits(),
            f64::to_bits(value),
            "{health}"
        );
    }
    assert_eq!(
        served
            .metric("healthscope_scope_available{namespace=\"default\",scope=\"shop\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn zero_is_visible_from_the_start() {
    let served = serve(SHOP).await;
    let text = served.get("/metrics").await.body;
    lint(&text);
    for series in [
        "healthscope_agent_sessions_ended_total{reason=\"silent\"} 0",
        "healthscope_agent_records_total{kind=\"summary\"} 0",
        "healthscope_http_requests_total{route=\"agent\",status=\"1xx\"} 0",
        "healthscope_transitions_total{level=\"probe\"} 0",
        "healthscope_agents{state=\"connected\"} 0",
    ] {
        assert!(
            text.lines().any(|line| line == series),
            "{series} is not in\n{text}"
        );
    }
}
