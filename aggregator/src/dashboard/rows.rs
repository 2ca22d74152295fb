//! Components in tables, and changes in lists: what several pages show alike.

use {
    super::parts::{self, Terminal},
    healthscope_core::view::{Change, ComponentSummary, FailingView, MemberView, ProbeView, TransitionView},
    healthscope_shared::health::Health,
    jiff::Timestamp,
    maud::{Markup, html},
    std::{cmp::Reverse, sync::Arc},
};

/// How much a table says about each component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depth {
    /// Bytes of what a failing probe printed.
    pub(super) output: usize,
    /// Failing probes of each component.
    pub(super) probes: usize,
}

/// One component of a scope or of a list.
pub(super) struct Row<'a> {
    pub(super) component: &'a ComponentSummary,
    pub(super) member: Option<&'a MemberView>,
}

impl<'a> Row<'a> {
    pub(super) fn member(member: &'a MemberView) -> Self {
        Self {
            component: &member.component,
            member: Some(member),
        }
    }

    pub(super) fn alone(component: &'a ComponentSummary) -> Self {
        Self {
            component,
            member: None,
        }
    }
}

/// Puts what nothing else explains before its consequences, within one health.
pub(super) fn causes_first(members: &mut [&MemberView]) {
    members.sort_by_key(|member| (Reverse(member.component.health), member.caused_by.is_some()));
}

/// A table of components.
pub(super) fn table<'a>(
    caption: &str,
    key: &str,
    rows: impl Iterator<Item = Row<'a>>,
    depth: Depth,
    now: Timestamp,
) -> Markup {
    html! {
        table class="components" {
            caption class="unseen" { (caption) }
            thead {
                tr {
                    th scope="col" { "Health" }
                    th scope="col" { "Component" }
                    th scope="col" { "Why" }
                    th scope="col" class="age" { "For" }
                }
            }
            tbody {
                @for row in rows { (line(&row, key, depth, now)) }
            }
        }
    }
}

fn line(row: &Row<'_>, key: &str, depth: Depth, now: Timestamp) -> Markup {
    let Row { component, member } = row;
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
        failing,
    } = component;
    let is_well = *health == Health::Healthy;
    html! {
        tr class=(parts::class(*health)) data-key=(format!("{key}/{kind}/{name}")) {
            td class="what" { (parts::health(*health)) }
            th scope="row" class="name" {
                a href=(parts::component_path(namespace, kind, name)) { (parts::component_name(kind, name)) }
                @if let Some(member) = member {
                    @if member.required { " " span class="tag" title="The scope is Unhealthy as soon as this is not available" { "required" } }
                    @if member.ignored { " " span class="tag" title="Unknown, and the policy leaves unknown ones out" { "ignored" } }
                }
                @if *flapping { " " span class="tag alert" title="A check changes too often to be believed" { "flapping" } }
            }
            td class="why" {
                @if let Some(cause) = member.and_then(|member| member.caused_by.as_ref()) {
                    p class="cause" { "because of " b { (cause) } }
                }
                @if !is_well || !message.is_empty() {
                    p {
                        span class="reason" { (reason.as_str()) }
                        @if !message.is_empty() { " " span class="message" { (parts::visible(message)) } }
                    }
                } @else if instances.total > 1 {
                    p class="muted" { (instances.healthy) " of " (instances.total) " instances" }
                }
                @let shown = &failing[..failing.len().min(depth.probes)];
                @if !shown.is_empty() { (failures(shown, key, component, depth, now)) }
            }
            td class="age" { (parts::since(*since, now)) }
        }
    }
}

fn failures(
    failing: &[FailingView],
    key: &str,
    component: &ComponentSummary,
    depth: Depth,
    now: Timestamp,
) -> Markup {
    let label = match failing {
        [only] if *only.probe.probe == *only.probe.kind.as_str() => format!("{} probe", only.probe.kind),
        [only] => format!("{} probe {}", only.probe.kind, only.probe.probe),
        several => format!("{} probes", several.len()),
    };
    html! {
        details class="failing" data-key=(format!("{key}/{}/{}/failing", component.kind, component.name)) {
            summary { (label) }
            ul {
                @for FailingView { instance, agent, probe } in failing {
                    li data-key=(format!("{instance}/{agent}/{}", probe.probe)) {
                        p { (probe_line(probe)) " on " b { (instance) } }
                        @if !probe.message.is_empty() { p class="message" { (parts::visible(&probe.message)) } }
                        @if let Some(since) = probe.since { p class="muted" { (probe.state.as_str()) " for " (parts::since(since, now)) } }
                        @if !probe.output.is_empty() { (parts::output(&probe.output, depth.output)) }
                    }
                }
            }
        }
    }
}

/// `readiness probe disk: exec df`.
pub(super) fn probe_line(probe: &ProbeView) -> Markup {
    html! {
        (probe.kind)
        @if *probe.probe != *probe.kind.as_str() { " " b { (probe.probe) } }
        " " code { (parts::visible(&probe.target)) }
    }
}

/// The latest changes, newest first.
pub(super) fn changes(transitions: &[Arc<TransitionView>], terminal: Terminal, now: Timestamp) -> Markup {
    html! {
        h2 { "Latest changes" }
        @if transitions.is_empty() {
            p class="muted" { "Nothing has changed yet." }
        } @else {
            ol class="changes" {
                @for transition in transitions { (change(transition, now)) }
            }
        }
        (terminal.command("watch", None))
    }
}

fn change(transition: &TransitionView, now: Timestamp) -> Markup {
    let TransitionView {
        id,
        time,
        change,
        namespace,
        kind,
        name,
        reason,
        message,
    } = transition;
    let to = match change {
        Change::Scope { to, .. } => Some(*to),
        Change::Component { to, .. } => *to,
        Change::Probe { to, .. } => Some(parts::of_state(*to)),
    };
    let (from, word, is_scope) = match change {
        Change::Scope { from, to, .. } => (from.as_str(), to.as_str(), true),
        Change::Component { from, to } => (from.as_str(), to.map_or("gone", Health::as_str), false),
        Change::Probe { from, to, .. } => (from.unwrap_or(*to).as_str(), to.as_str(), false),
    };
    let is_quiet = matches!(
        change,
        Change::Scope {
            maintenance: true,
            ..
        }
    );
    html! {
        li data-key=(id) class=(if is_scope { "of-scope" } else { "of-component" }) {
            div class="when" { (parts::clock(*time, now)) }
            div class="what" {
                p {
                    span class=(to.map_or("health unknown", health_class)) { (parts::shape(to.unwrap_or(Health::Unknown))) }
                    " "
                    a href=(parts::component_path(namespace, kind, name)) {
                        @if is_scope { (name) } @else { (parts::component_name(kind, name)) }
                    }
                    @if is_scope { " " span class="tag" { "scope" } }
                    @if is_quiet { " " span class="tag" { "maintenance" } }
                }
                p class="muted" { (from) " → " b { (word) } }
                @if !message.is_empty() {
                    p class="message" { (parts::visible(message)) }
                } @else if to != Some(Health::Healthy) {
                    p class="message" { (reason.as_str()) }
                }
            }
        }
    }
}

fn health_class(health: Health) -> &'static str {
    match health {
        Health::Healthy => "health healthy",
        Health::Degraded => "health degraded",
        Health::Unknown => "health unknown",
        Health::Unhealthy => "health unhealthy",
    }
}
