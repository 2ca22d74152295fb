//! One component: its instances, their probes, and a button that runs one now.

use {
    super::{
        Dashboard,
        layout::{Page, Place},
        page, parts, rows,
    },
    crate::{
        api::component_view,
        identity::readers::Deed,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{
        Extension,
        extract::{Path, State},
        response::{IntoResponse, Response},
    },
    healthscope_core::view::{ComponentSummary, ComponentView, InstanceView, ProbeView, RunsView},
    healthscope_shared::{
        name::{Kind, Name, Namespace},
        probe::outcome::MAX_OUTPUT_BYTES,
    },
    http::StatusCode,
    jiff::Timestamp,
    maud::{Markup, html},
};

/// Instances shown; the JSON has all.
const INSTANCES: usize = 50;
/// Probes shown of each instance.
const PROBES: usize = 100;
/// Changes in the strip.
const CHANGES: usize = 30;

pub(super) async fn get(
    State(dashboard): State<Dashboard>,
    Extension(viewer): Extension<Viewer>,
    Path((namespace, kind, name)): Path<(String, String, String)>,
) -> Response {
    let (Ok(namespace), Ok(kind), Ok(name)) =
        (Namespace::new(&namespace), Kind::new(&kind), Name::new(&name))
    else {
        return Problem::not_found("there cannot be a component of this name").into_response();
    };
    let seen = async {
        let view = component_view(&dashboard.api, &viewer, namespace.clone(), name, Some(kind)).await?;
        let may_run = viewer.may(Deed::RunProbe, Some(&namespace)).await?;
        Ok((view, may_run, dashboard.api.sight(&viewer).await?))
    };
    let (view, may_run, sight) = match seen.await {
        Ok(seen) => seen,
        Err(problem) => return dashboard.missing(&problem),
    };
    let snapshot = &sight.snapshot;
    let now = Timestamp::now();
    let ComponentView {
        component,
        declared,
        labels,
        depends_on,
        scopes,
        running,
    } = view;
    let ComponentSummary {
        namespace,
        api_version: _,
        kind,
        name,
        health,
        reason,
        message,
        since,
        flapping,
        instances,
        failing: _,
    } = &*component;
    let word = health.as_str().to_lowercase();
    let content = html! {
        p class="trail" { a href="/ui/components" { "All components" } }
        section class={"verdict " (parts::class(*health))} data-key="verdict" {
            (parts::shape(*health))
            div {
                h1 { (name) " is " (word) }
                @if !message.is_empty() { p class="detail" { (parts::visible(message)) } }
                p class="muted" {
                    (kind) " in " (namespace) " · " (reason.as_str()) " · for " (parts::since(*since, now))
                    @if *flapping { " · " b { "flapping" } }
                }
            }
        }
        article class="card plain" data-key="facts" {
            dl class="facts-list" {
                dt { "Scopes" }
                dd {
                    @if scopes.is_empty() { span class="muted" { "none" } }
                    @for scope in &scopes { a class="chip" href=(parts::scope_path(namespace, scope)) { (scope) } " " }
                }
                @if !depends_on.is_empty() {
                    dt { "Depends on" }
                    dd { (depends_on.join(", ")) }
                }
                @if !labels.is_empty() {
                    dt { "Labels" }
                    dd { @for (key, value) in &labels { span class="chip" { (key) "=" (value) } " " } }
                }
                @if !declared {
                    dt { "Declared" }
                    dd { span class="muted" { "by its agent alone" } }
                }
            }
        }
        @if running.is_empty() { p class="empty" { "No agent speaks for this component." } }
        @for instance in running.iter().take(INSTANCES) { (instance_card(&component, instance, may_run, now)) }
        @if instances.total as usize > INSTANCES {
            p class="more" { "and " (instances.total as usize - INSTANCES) " more instances" }
        }
        (dashboard.terminal().command(&format!("probe {name}"), Some(namespace)))
    };
    let transitions: Vec<_> = snapshot
        .transitions
        .iter()
        .rev()
        .filter(|transition| {
            transition.namespace == *namespace && transition.kind == *kind && transition.name == *name
        })
        .take(CHANGES)
        .cloned()
        .collect();
    let markup = dashboard.lay_out(Page {
        title: format!("{name} is {word}"),
        icon: *health,
        place: Place::Elsewhere,
        now,
        viewer: &viewer,
        sight: &sight,
        summary: if message.is_empty() {
            format!("{name} is {word}")
        } else {
            format!("{name} is {word}: {message}")
        },
        content,
        aside: Some(rows::changes(&transitions, dashboard.terminal(), now)),
    });
    page(StatusCode::OK, markup)
}

fn instance_card(
    component: &ComponentSummary,
    instance: &InstanceView,
    may_run: bool,
    now: Timestamp,
) -> Markup {
    let InstanceView {
        name,
        agent,
        health,
        reason,
        message,
        since,
        probes,
    } = instance;
    html! {
        article class={"card " (parts::class(*health))} data-key=(format!("{name}/{agent}")) {
            header {
                h2 { (name) }
                (parts::health(*health))
                p class="facts" {
                    span class="muted" { "agent " (agent) }
                    span class="age" { "for " (parts::since(*since, now)) }
                }
            }
            @if !message.is_empty() {
                p class="scope-message" { span class="reason" { (reason.as_str()) } " " (parts::visible(message)) }
            }
            table class="probes" {
                caption class="unseen" { "Probes of " (name) }
                thead {
                    tr {
                        th scope="col" { "State" }
                        th scope="col" { "Probe" }
                        th scope="col" { "Checks" }
                        th scope="col" class="number" { "Took" }
                        th scope="col" class="age" { "For" }
                        th scope="col" { span class="unseen" { "Run" } }
                    }
                }
                tbody {
                    @for probe in probes.iter().take(PROBES) { (probe_rows(component, instance, probe, may_run, now)) }
                }
            }
            @if probes.len() > PROBES { p class="more" { "and " (probes.len() - PROBES) " more probes" } }
        }
    }
}

fn probe_rows(
    component: &ComponentSummary,
    instance: &InstanceView,
    probe: &ProbeView,
    may_run: bool,
    now: Timestamp,
) -> Markup {
    let run = format!(
        "/api/v1/components/{}/{}/probes/{}/run?kind={}&instance={}",
        component.namespace, component.name, probe.probe, component.kind, instance.name
    );
    let key = format!("{}/{}/{}", instance.name, instance.agent, probe.probe);
    let health = parts::of_state(probe.state);
    html! {
        tr class=(parts::class(health)) data-key=(key) {
            td class="what" { (parts::state(probe.state)) }
            th scope="row" class="name" {
                (probe.probe)
                @if *probe.probe != *probe.kind.as_str() { " " span class="tag" { (probe.kind) } }
                @if probe.flapping { " " span class="tag alert" { "flapping" } }
                @if let Some(attempt) = &probe.attempt { " " span class="tag" title="In a row, of those that change the state" { (attempt) } }
            }
            td class="why" {
                p { code { (parts::visible(&probe.target)) } }
                @if !probe.message.is_empty() {
                    p { span class="reason" { (probe.reason.as_str()) } " " span class="message" { (parts::visible(&probe.message)) } }
                }
                @if !probe.output.is_empty() {
                    details data-key=(format!("{key}/output")) {
                        summary { "Last output" }
                        (parts::output(&probe.output, MAX_OUTPUT_BYTES))
                    }
                }
                div class="result" data-result=(key) hidden {}
            }
            td class="number" { @if let Some(runs) = &probe.runs { (took(runs)) } }
            td class="age" { @if let Some(since) = probe.since { (parts::since(since, now)) } }
            td class="run" { @if may_run { button type="button" class="quiet" hidden data-run=(run) data-for=(key) { "Run now" } } }
        }
    }
}

/// What the runs took, and how many there were.
fn took(runs: &RunsView) -> Markup {
    let RunsView {
        period_ms,
        total,
        failures,
        errors,
        latency_us,
        min_us: _,
        avg_us,
        max_us: _,
        p99_us,
    } = *runs;
    let shown = if avg_us > 0 { avg_us } else { latency_us };
    let title = format!(
        "every {}, {total} runs, {failures} failures, {errors} errors; 99th percentile {}",
        millis(period_ms),
        micros(p99_us)
    );
    html! {
        @if shown > 0 { span title=(title) { (micros(shown)) } } @else { span class="muted" title=(title) { "–" } }
    }
}

fn micros(micros: u32) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", f64::from(micros) / 1_000.0),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", f64::from(micros) / 1_000_000.0),
    }
}

fn millis(millis: u32) -> String {
    if millis.is_multiple_of(1_000) {
        format!("{} s", millis / 1_000)
    } else {
        format!("{millis} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_fitting_unit() {
        for (value, expected) in [
            (850, "850 µs"),
            (1_234, "1.2 ms"),
            (45_678, "45 ms"),
            (2_500_000, "2.5 s"),
        ] {
            assert_eq!(micros(value), expected);
        }
        assert_eq!(
            (millis(10_000), millis(250)),
            ("10 s".to_owned(), "250 ms".to_owned())
        );
    }
}
