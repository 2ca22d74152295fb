//! The first page: what is wrong, worst first, and why.

use {
    super::{
        Dashboard,
        layout::{self, Page, Place},
        page,
        parts::{self, Terminal, count},
        rows::{self, Depth, Row},
    },
    crate::{
        api::has_words,
        site::{problem::Problem, viewer::Viewer},
    },
    axum::{
        Extension,
        extract::{RawQuery, State},
        response::Response,
    },
    healthscope_core::{
        snapshot::{ScopeEntry, Snapshot},
        view::{MaintenanceView, MemberView, RecoveringView, ScopeView},
    },
    healthscope_crd::v1beta1::Summary,
    healthscope_shared::{health::Health, name::Namespace},
    http::StatusCode,
    jiff::Timestamp,
    maud::{Markup, html},
    std::{cmp::Reverse, sync::Arc},
};

/// Scopes on one page: what a person scrolls through, and a browser draws at once.
const PAGE: usize = 50;
/// Components of each scope; its own page has the others.
const ROWS: usize = 10;
/// Changes in the strip.
const CHANGES: usize = 20;
/// What is said of each component.
const DEPTH: Depth = Depth {
    output: 1_024,
    probes: 3,
};

/// What the address says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) problems_only: bool,
    pub(super) words: String,
    pub(super) number: usize,
}

impl Wanted {
    /// Reads the part behind `?`; what is not understood is left out, since people type addresses.
    pub(super) fn read(query: Option<&str>) -> Self {
        let mut wanted = Self {
            number: 1,
            ..Self::default()
        };
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*name {
                "problems" => wanted.problems_only = value == "1",
                "q" => wanted.words = healthscope_shared::truncate(value.trim(), 200).into_owned(),
                "page" => wanted.number = value.parse().unwrap_or(1).max(1),
                _ => {}
            }
        }
        wanted
    }

    /// The same page with something else.
    pub(super) fn link(&self, path: &str, problems_only: bool, number: usize) -> String {
        let mut parts = Vec::new();
        if problems_only {
            parts.push("problems=1".to_owned());
        }
        if !self.words.is_empty() {
            parts.push(format!("q={}", parts::encode(&self.words)));
        }
        if number > 1 {
            parts.push(format!("page={number}"));
        }
        if parts.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", parts.join("&"))
        }
    }
}

/// The row with the filter and the search field.
pub(super) fn filters(path: &str, wanted: &Wanted, label: &str) -> Markup {
    html! {
        form class="filters" method="get" action=(path) role="search" {
            div class="choice" role="group" aria-label="Filter" {
                (choice(&wanted.link(path, false, 1), "All", !wanted.problems_only))
                (choice(&wanted.link(path, true, 1), "Problems only", wanted.problems_only))
            }
            @if wanted.problems_only { input type="hidden" name="problems" value="1"; }
            label class="unseen" for="q" { (label) }
            input type="search" id="q" name="q" value=(wanted.words) placeholder=(label) autocomplete="off" spellcheck="false" maxlength="200";
            button class="quiet" { "Search" }
        }
    }
}

fn choice(path: &str, text: &str, is_chosen: bool) -> Markup {
    html! {
        @if is_chosen { a href=(path) aria-current="true" { (text) } } @else { a href=(path) { (text) } }
    }
}

/// Links to the pages before and after.
pub(super) fn pages(path: &str, wanted: &Wanted, size: usize, total: usize) -> Markup {
    let last = total.div_ceil(size).max(1);
    html! {
        @if last > 1 {
            nav class="pages" aria-label="Pages of the list" {
                @if wanted.number > 1 { a rel="prev" href=(wanted.link(path, wanted.problems_only, wanted.number - 1)) { "← Before" } }
                span { "Page " (wanted.number.min(last)) " of " (last) }
                @if wanted.number < last { a rel="next" href=(wanted.link(path, wanted.problems_only, wanted.number + 1)) { "After →" } }
            }
        }
    }
}

pub(super) async fn get(
    State(dashboard): State<Dashboard>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let wanted = Wanted::read(query.as_deref());
    let sight = dashboard.api.sight(&viewer).await?;
    let snapshot = &sight.snapshot;
    let now = Timestamp::now();
    let scopes = choose(snapshot, &wanted);
    let verdict = Verdict::of(snapshot);
    let content = html! {
        (verdict.markup(snapshot))
        @if !snapshot.scopes.is_empty() {
            (filters("/", &wanted, "Search scopes and components"))
            (list(&scopes, &wanted, dashboard.terminal(), now))
        }
        (dashboard.terminal().command("get scopes", None))
    };
    let transitions: Vec<_> = snapshot.transitions.iter().rev().take(CHANGES).cloned().collect();
    Ok(page(
        StatusCode::OK,
        dashboard.lay_out(Page {
            title: verdict.title.clone(),
            icon: layout::worst(&snapshot.totals.scopes),
            place: Place::Scopes,
            now,
            viewer: &viewer,
            sight: &sight,
            summary: verdict.spoken(),
            content,
            aside: Some(rows::changes(&transitions, dashboard.terminal(), now)),
        }),
    ))
}

/// The scopes that are wanted, worst first.
fn choose<'a>(snapshot: &'a Snapshot, wanted: &Wanted) -> Vec<&'a Arc<ScopeEntry>> {
    let mut scopes: Vec<_> = snapshot
        .scopes
        .values()
        .filter(|entry| !wanted.problems_only || is_problem(&entry.view))
        .filter(|entry| wanted.words.is_empty() || matches(&entry.view, &wanted.words))
        .collect();
    // The map's own order, namespace and name, stays within equals.
    scopes.sort_by_key(|entry| severity(&entry.view));
    scopes
}

/// Least is worst.
fn severity(scope: &ScopeView) -> (bool, Reverse<Health>) {
    (!scope.alarming, Reverse(scope.health))
}

/// Whether somebody may want to look at it.
fn is_problem(scope: &ScopeView) -> bool {
    scope.health != Health::Healthy || scope.flapping || !scope.stalled.is_empty()
}

fn matches(scope: &ScopeView, words: &str) -> bool {
    is_named(scope, words)
        || scope.components.iter().any(|member| {
            has_words(
                &format!(
                    "{} {} {}",
                    member.component.name, member.component.kind, member.component.message
                ),
                words,
            )
        })
}

fn is_named(scope: &ScopeView, words: &str) -> bool {
    has_words(&format!("{}/{}", scope.namespace, scope.name), words)
}

/// What is to be said of one scope: the fact, and its cause.
pub(super) fn sentence(scope: &ScopeView) -> (String, String) {
    let cause = scope.root_cause.as_ref().unwrap_or(&scope.message);
    let fact = format!("{} is {}", scope.name, scope.health.as_str().to_lowercase());
    (fact, cause.clone())
}

/// The sentence that an on-call reads first.
struct Verdict {
    title: String,
    detail: String,
    health: Health,
}

impl Verdict {
    fn of(snapshot: &Snapshot) -> Self {
        let Summary {
            total,
            healthy,
            degraded: _,
            unhealthy: _,
            unknown: _,
        } = snapshot.totals.scopes;
        let health = layout::worst(&snapshot.totals.scopes);
        let troubled: Vec<_> = snapshot
            .scopes
            .values()
            .filter(|entry| is_problem(&entry.view))
            .collect();
        let (title, detail) = match (total, &troubled[..]) {
            (0, _) => ("Nothing is watched yet".to_owned(), String::new()),
            (_, []) => {
                let title = if total == 1 {
                    let only = snapshot.scopes.values().next();
                    only.map_or_else(String::new, |entry| format!("{} is healthy", entry.view.name))
                } else {
                    format!("All {total} scopes are healthy")
                };
                (title, String::new())
            }
            (_, [only]) => sentence(&only.view),
            (_, several) => {
                let alarming: Vec<_> = several.iter().filter(|entry| entry.view.alarming).collect();
                match &alarming[..] {
                    [] => (
                        format!("{} of {total} scopes are not healthy", several.len()),
                        String::new(),
                    ),
                    [only] => sentence(&only.view),
                    _ => (
                        format!("{} of {total} scopes are not available", alarming.len()),
                        format!("{} healthy", count(healthy, "scope is", "scopes are")),
                    ),
                }
            }
        };
        Self {
            title,
            detail,
            health,
        }
    }

    fn spoken(&self) -> String {
        if self.detail.is_empty() {
            self.title.clone()
        } else {
            format!("{}: {}", self.title, self.detail)
        }
    }

    fn markup(&self, snapshot: &Snapshot) -> Markup {
        let totals = &snapshot.totals;
        let Self {
            title,
            detail,
            health,
        } = self;
        html! {
            section class={"verdict " (parts::class(*health))} data-key="verdict" {
                (parts::shape(*health))
                div {
                    h1 { (title) }
                    @if !detail.is_empty() { p class="detail" { (parts::root_cause(detail)) } }
                    p class="muted" {
                        (count(totals.components.total, "component", "components")) " · "
                        (count(totals.probes, "probe", "probes")) " · "
                        (count(totals.agents_connected, "agent connected", "agents connected"))
                        @if totals.agents_absent > 0 { ", " b { (totals.agents_absent) " absent" } }
                    }
                }
            }
            @if totals.scopes.total == 0 { (nothing_yet(totals.components.total)) }
        }
    }
}

fn nothing_yet(components: u32) -> Markup {
    html! {
        section class="card plain" {
            p { "A HealthScope names the components of an application and says when it counts as healthy. Write one into the aggregator's configuration:" }
            pre class="example" {
                "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: shop}\nspec:\n  selector:\n    matchLabels: {app.kubernetes.io/part-of: shop}\n"
            }
            @if components > 0 {
                p { a href="/ui/components" { (count(components, "component is", "components are")) " reported by agents" } " and waiting for a scope." }
            }
        }
    }
}

fn list(scopes: &[&Arc<ScopeEntry>], wanted: &Wanted, terminal: Terminal, now: Timestamp) -> Markup {
    let last = scopes.len().div_ceil(PAGE).max(1);
    let start = (wanted.number.min(last) - 1) * PAGE;
    let shown = &scopes[start..scopes.len().min(start + PAGE)];
    let healthy_from = shown
        .iter()
        .position(|entry| !is_problem(&entry.view) && wanted.words.is_empty())
        .unwrap_or(shown.len());
    let (troubled, healthy) = shown.split_at(healthy_from);
    // A single healthy application deserves its table too.
    let (troubled, healthy) = if shown.len() <= 3 {
        (shown, &[][..])
    } else {
        (troubled, healthy)
    };
    html! {
        @if shown.is_empty() {
            p class="empty" {
                @if wanted.words.is_empty() { "No problems. " a href="/" { "Show all scopes" } }
                @else { "Nothing matches “" (wanted.words) "”. " a href=(Wanted::default().link("/", wanted.problems_only, 1)) { "Clear the search" } }
            }
        }
        @for entry in troubled { (card(&entry.view, &wanted.words, terminal, now)) }
        @if !healthy.is_empty() {
            section class="well" data-key="well" aria-label="Healthy scopes" {
                h2 { "Healthy" }
                ul {
                    @for entry in healthy { (brief(&entry.view, now)) }
                }
            }
        }
        (pages("/", wanted, PAGE, scopes.len()))
    }
}

fn brief(scope: &ScopeView, now: Timestamp) -> Markup {
    html! {
        li data-key=(format!("{}/{}", scope.namespace, scope.name)) {
            a href=(parts::scope_path(&scope.namespace, &scope.name)) {
                span class="health healthy" { (parts::shape(scope.health)) }
                span class="name" { (scope_name(scope)) }
                span class="available" { (scope.available) }
                (badges(scope, now))
                span class="age" { (parts::since(scope.since, now)) }
            }
        }
    }
}

fn scope_name(scope: &ScopeView) -> Markup {
    html! {
        @if scope.namespace != Namespace::default_namespace() { span class="kind" { (scope.namespace) "/" } }
        (scope.name)
    }
}

fn card(scope: &ScopeView, words: &str, terminal: Terminal, now: Timestamp) -> Markup {
    let (shown, hidden) = members(scope, words);
    let path = parts::scope_path(&scope.namespace, &scope.name);
    let key = format!("{}/{}", scope.namespace, scope.name);
    html! {
        article class={"card " (parts::class(scope.health)) (if scope.alarming { " alarming" } else { "" })} data-key=(key) aria-labelledby=(format!("scope-{key}")) {
            (heading(scope, Some(&path), now))
            (cause(scope))
            @if !shown.is_empty() {
                (rows::table(&format!("Components of {}", scope.name), &key, shown.iter().map(|member| Row::member(member)), DEPTH, now))
            }
            @if hidden > 0 { p class="more" { a href=(path) { "Show " (count(hidden as u64, "more component", "more components")) } } }
            (terminal.command(&format!("why {}", scope.name), Some(&scope.namespace)))
        }
    }
}

/// The components that the card shows, worst first, and how many it leaves out.
fn members<'a>(scope: &'a ScopeView, words: &str) -> (Vec<&'a MemberView>, usize) {
    let is_searched = !words.is_empty() && !is_named(scope, words);
    let mut found: Vec<_> = scope
        .components
        .iter()
        .filter(|member| {
            !is_searched
                || has_words(
                    &format!(
                        "{} {} {}",
                        member.component.name, member.component.kind, member.component.message
                    ),
                    words,
                )
        })
        .collect();
    let total = scope.components.len();
    rows::causes_first(&mut found);
    let shown: Vec<_> = found.into_iter().take(ROWS).collect();
    let hidden = total - shown.len();
    (shown, hidden)
}

/// Name, health, numbers and marks of a scope.
pub(super) fn heading(scope: &ScopeView, path: Option<&str>, now: Timestamp) -> Markup {
    let key = format!("{}/{}", scope.namespace, scope.name);
    html! {
        header {
            h2 id=(format!("scope-{key}")) {
                @match path {
                    Some(path) => a href=(path) { (scope_name(scope)) },
                    None => (scope_name(scope)),
                }
            }
            (parts::health(scope.health))
            (badges(scope, now))
            p class="facts" {
                span class="available" { b { (scope.available) } " available" }
                (bar(&scope.summary))
                span class="age" { "for " (parts::since(scope.since, now)) }
            }
        }
    }
}

/// Marks that do not change the health but how it is to be read.
fn badges(scope: &ScopeView, now: Timestamp) -> Markup {
    html! {
        @if let Some(MaintenanceView { active: true, until, reason }) = &scope.maintenance {
            span class="badge maintenance" {
                "Maintenance"
                @if !reason.is_empty() { ": " (parts::visible(reason)) }
                @if let Some(until) = until { " until " (parts::clock(*until, now)) }
            }
        }
        @if scope.flapping { span class="badge alert" title="The health changes too often to be believed" { "Flapping" } }
        @if let Some(RecoveringView { health, at }) = &scope.recovering {
            span class="badge" title="A better health has to last before it is shown" { "Measured " (health.as_str()) ", shown at " (parts::clock(*at, now)) }
        }
        @if !scope.stalled.is_empty() { span class="badge alert" title="The spec cannot be used as it is" { "Stalled" } }
    }
}

/// Root cause first, in plain words; then what is odd about the spec.
pub(super) fn cause(scope: &ScopeView) -> Markup {
    let others = scope.root_causes.get(1..).unwrap_or_default();
    html! {
        @if let Some(root) = &scope.root_cause {
            div class="cause-box" {
                p class="label" { "Root cause" }
                p class="root" { (parts::root_cause(root)) }
                @if !others.is_empty() { p class="muted" { "also " (others.join(", ")) } }
            }
        } @else if !scope.message.is_empty() {
            p class="scope-message" { (parts::visible(&scope.message)) }
        }
        @for problem in &scope.stalled { p class="note alert" { "The spec cannot be used as it is: " (parts::visible(problem)) } }
        @for note in &scope.notes { p class="note" { (parts::visible(note)) } }
    }
}

/// How the components are spread over the healths; the numbers beside it say the same.
fn bar(summary: &Summary) -> Markup {
    let parts = [
        (Health::Unhealthy, summary.unhealthy),
        (Health::Unknown, summary.unknown),
        (Health::Degraded, summary.degraded),
        (Health::Healthy, summary.healthy),
    ];
    let total = f64::from(summary.total.max(1));
    let mut start = 0.0;
    html! {
        svg class="spread" viewBox="0 0 100 6" width="100" height="6" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            @for (health, count) in parts {
                @let width = f64::from(count) / total * 100.0;
                @if count > 0 {
                    rect class=(parts::class(health)) x=(format!("{start:.2}")) y="0" width=(format!("{width:.2}")) height="6" {}
                }
                @let () = start += width;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_leniently_and_written_shortly() {
        #[track_caller]
        fn check(query: &str, expected: &str) {
            let wanted = Wanted::read(Some(query));
            assert_eq!(wanted.link("/", wanted.problems_only, wanted.number), expected);
        }
        check("", "/");
        check("problems=1", "/?problems=1");
        check("q=a+b%26c&page=3", "/?q=a+b%26c&page=3");
        check("page=x&other=1&problems=yes", "/");
        check("page=0", "/");
    }
}
