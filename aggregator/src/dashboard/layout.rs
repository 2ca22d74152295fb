//! What every page has: head, navigation, totals, the line about the connection, the place for announcements.

use {
    super::{Dashboard, assets, parts},
    crate::{api::Sight, kubernetes::role::Role, site::viewer::Viewer},
    healthscope_core::view::Totals,
    healthscope_crd::v1beta1::Summary,
    healthscope_service::build,
    healthscope_shared::health::Health,
    jiff::Timestamp,
    maud::{DOCTYPE, Markup, html},
};

/// Which entry of the navigation is the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Scopes,
    Components,
    Agents,
    Elsewhere,
}

/// A page to be put together.
pub(super) struct Page<'a> {
    /// What the window is called.
    pub(super) title: String,
    /// Which icon the window has.
    pub(super) icon: Health,
    pub(super) place: Place,
    pub(super) now: Timestamp,
    /// Whom it is for.
    pub(super) viewer: &'a Viewer,
    /// What they may see.
    pub(super) sight: &'a Sight,
    /// What the part of a sentence says that is read out when it changes.
    pub(super) summary: String,
    pub(super) content: Markup,
    /// Beside the content, or below it on narrow screens.
    pub(super) aside: Option<Markup>,
}

/// How serious everything is together, for the icon of the window.
pub(super) fn worst(scopes: &Summary) -> Health {
    let Summary {
        total: _,
        healthy: _,
        degraded,
        unhealthy,
        unknown,
    } = *scopes;
    match (unhealthy, unknown, degraded) {
        (1.., _, _) => Health::Unhealthy,
        (0, 1.., _) => Health::Unknown,
        (0, 0, 1..) => Health::Degraded,
        (0, 0, 0) => Health::Healthy,
    }
}

impl Dashboard {
    /// The whole page.
    pub(super) fn lay_out(&self, page: Page<'_>) -> Markup {
        let Page {
            title,
            icon,
            place,
            now,
            viewer,
            sight,
            summary,
            content,
            aside,
        } = page;
        let icon = assets::path(&format!("{}.svg", parts::class(icon)));
        html! {
            (DOCTYPE)
            html lang="en" {
                (head(&title, &icon, true))
                body data-now=(now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")) {
                    a class="skip" href="#main" { "Skip to the content" }
                    header class="top" {
                        div class="bar" {
                            a class="brand" href="/" { (mark()) span { "Health" b { "Scope" } } }
                            nav aria-label="Pages" {
                                (entry("/", "Scopes", place == Place::Scopes))
                                (entry("/ui/components", "Components", place == Place::Components))
                                (entry("/ui/agents", "Agents", place == Place::Agents))
                            }
                            div class="numbers" id="numbers" data-live {
                                (numbers(&sight.snapshot.totals))
                            }
                            p class="pulse" id="pulse" { span class="dot" aria-hidden="true" {} span id="pulse-text" { "not live" } }
                            @if !self.access.is_open() {
                                form method="post" action="/logout" {
                                    @if let Some(name) = viewer.name() { span class="muted" { (parts::visible(name)) } " " }
                                    button class="quiet" { "Sign out" }
                                }
                            }
                        }
                    }
                    (self.standby())
                    @if sight.is_all() { (self.problems()) } @else { div id="configuration" data-live {} }
                    p id="lost" class="lost" hidden {
                        strong { "Connection lost. " }
                        "What you see is from " span id="lost-since" {} " and may be out of date. Trying again…"
                    }
                    p id="announcer" class="unseen" role="status" aria-live="polite" {}
                    div class=(if aside.is_some() { "columns" } else { "column" }) {
                        main id="main" tabindex="-1" data-live data-title=(title) data-icon=(icon) data-summary=(summary) {
                            (content)
                        }
                        @if let Some(aside) = aside {
                            aside id="aside" data-live aria-label="Latest changes" { (aside) }
                        }
                    }
                    footer class="bottom" {
                        p { "HealthScope " (build::version()) " · " a href="/openapi.json" { "API" } " · " a href="/metrics" { "Metrics" } }
                    }
                }
            }
        }
    }

    /// That another replica serves, for whoever looks for what only that one knows.
    fn standby(&self) -> Markup {
        let role = self.api.replica.role.borrow().clone();
        html! {
            div id="standby" data-live {
                @if let Role::Standby { owner } = role {
                    section class="warning" aria-label="This replica stands by" {
                        p {
                            strong { "This replica stands by. " }
                            "Scopes are shown as the replica that serves has written them; what checks inside of pods found, and the changes, only that one knows"
                            @if let Some(owner) = owner { ": " code { (parts::visible(&owner.address)) } } "."
                        }
                    }
                }
            }
        }
    }

    /// What is wrong with the configuration, for whoever has just edited it.
    fn problems(&self) -> Markup {
        let loaded = self.api.declared.borrow().clone();
        html! {
            div id="configuration" data-live {
                @if let Some(problems) = &loaded.problems {
                    section class="warning" aria-label="Problems of the configuration" {
                        p { strong { "The configuration cannot be used; the one before stays in force." } }
                        ul {
                            @for problem in problems.list().iter().take(5) {
                                li { code { (parts::visible(&problem.to_string())) } }
                            }
                        }
                        @if problems.list().len() > 5 { p { "and " (problems.list().len() - 5) " more" } }
                    }
                }
            }
        }
    }
}

/// The head of every page; pages that show nothing that changes have no script.
pub(super) fn head(title: &str, icon: &str, is_live: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · HealthScope" }
            link rel="icon" type="image/svg+xml" id="icon" href=(icon);
            link rel="stylesheet" href=(assets::path("page.css"));
            @if is_live {
                script type="module" src=(assets::path("page.js")) {}
                noscript { meta http-equiv="refresh" content="10"; }
            }
        }
    }
}

/// The sign of the program.
pub(super) fn mark() -> Markup {
    html! {
        svg class="mark" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" focusable="false" {
            circle cx="12" cy="12" r="10.25" {}
            path d="M3.5 12.4h4.2l2.3-5 3.6 9.6 2.3-4.6h4.6" {}
        }
    }
}

fn entry(path: &str, text: &str, is_here: bool) -> Markup {
    html! {
        @if is_here { a href=(path) aria-current="page" { (text) } } @else { a href=(path) { (text) } }
    }
}

fn numbers(totals: &Totals) -> Markup {
    let Summary {
        total,
        healthy,
        degraded,
        unhealthy,
        unknown,
    } = totals.scopes;
    let parts = [
        (Health::Unhealthy, unhealthy),
        (Health::Unknown, unknown),
        (Health::Degraded, degraded),
        (Health::Healthy, healthy),
    ];
    html! {
        @if total > 0 {
            ul aria-label="Scopes by health" {
                @for (health, count) in parts.into_iter().filter(|(_, count)| *count > 0) {
                    li class=(parts::class(health)) title=(format!("{count} {health}")) {
                        (parts::shape(health)) (count) span class="unseen" { " " (health.as_str()) }
                    }
                }
            }
        }
    }
}
