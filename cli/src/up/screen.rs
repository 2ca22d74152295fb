//! What `up` prints, as text. Pure: snapshots in, text out.

use {
    crate::{
        table::{Cell, Table},
        terminal::{Style, Terminal, visible},
        transition,
    },
    healthscope_aggregator::declared::Declared,
    healthscope_core::{
        snapshot::{ScopeEntry, Snapshot},
        view::{Change, TransitionView},
    },
    healthscope_service::{build, config_files::Loaded},
    healthscope_shared::{name::Namespace, one_line},
    jiff::tz::TimeZone,
    std::{cmp::Reverse, collections::BTreeSet, sync::Arc},
};

/// Scopes of the first table; the page has all.
const MAX_SCOPES: usize = 20;
/// Names of components in the greeting.
const MAX_NAMES: usize = 5;
/// Changes written out at once, scopes first; nobody reads a thousand.
const MAX_LINES: usize = 40;
/// A root cause in the table; `why` has all of it.
const MAX_CAUSE_BYTES: usize = 120;

/// What is watched.
#[derive(Debug)]
pub(super) enum Subject {
    /// The demo shop, with the commands that break and mend its db.
    Demo {
        /// A line for a shell.
        break_db: String,
        /// Another.
        mend_db: String,
        /// A third, which asks why the shop is as it is.
        why: String,
    },
    /// Files, by the name that was typed.
    Files(String),
}

/// The first lines, before anything is known.
pub(super) fn greeting(url: &str, subject: &Subject, declared: &Declared, terminal: Terminal) -> String {
    let strong = |text: &str| terminal.paint(Style::Strong, text.to_owned()).into_owned();
    let mut lines = vec![
        format!("HealthScope {}   {}", build::VERSION, strong(url)),
        String::new(),
    ];
    match subject {
        Subject::Demo {
            break_db,
            mend_db,
            why,
        } => {
            lines.push("Watching a demo shop, where web needs cart and cart needs db.".into());
            lines.push(format!("  break db:  {}", strong(break_db)));
            lines.push(format!("  mend it:   {}", strong(mend_db)));
            lines.push(format!("  ask why:   {}", strong(why)));
        }
        Subject::Files(name) => {
            lines.push(format!("Watching {}: {}.", visible(name), summary(declared)));
            if declared.scopes.is_empty() {
                lines.push(
                    "There is no HealthScope in it, so nothing adds up: write one that selects them.".into(),
                );
            }
            if declared.components.is_empty() {
                lines.push("There is no Component in it, so nothing is checked here.".into());
            }
        }
    }
    lines.push("Ctrl-C ends it.".into());
    lines.push(String::new());
    lines.concat_lines()
}

trait ConcatLines {
    fn concat_lines(self) -> String;
}

impl ConcatLines for Vec<String> {
    fn concat_lines(self) -> String {
        self.into_iter().map(|line| line + "\n").collect()
    }
}

/// `web, cart, db with 4 probes, in 1 scope`.
fn summary(declared: &Declared) -> String {
    let Declared { scopes, components } = declared;
    let names: Vec<&str> = components
        .iter()
        .map(|component| component.name.as_str())
        .take(MAX_NAMES)
        .collect();
    let mut names = names.join(", ");
    match components.len() {
        0 => names.push_str("no component"),
        known if known > MAX_NAMES => names.push_str(&format!(" and {} more", known - MAX_NAMES)),
        _ => {}
    }
    let probes: usize = components.iter().map(|component| component.probes.len()).sum();
    let plural = |number: usize, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    format!(
        "{names} with {}, in {}",
        plural(probes, "probe"),
        plural(scopes.len(), "scope")
    )
}

/// The scopes, worst first.
pub(super) fn table(snapshot: &Snapshot, terminal: Terminal) -> String {
    let mut scopes: Vec<&Arc<ScopeEntry>> = snapshot.scopes.values().collect();
    if scopes.is_empty() {
        return String::new();
    }
    // Stable: equally ill ones stay in the order of their names.
    scopes.sort_by_key(|entry| Reverse(entry.view.health));
    let namespaces = scopes
        .iter()
        .any(|entry| entry.view.namespace != Namespace::default());
    let mut table = Table::new(vec!["NAME", "HEALTH", "AVAILABLE", "ROOT CAUSE"]);
    for entry in scopes.iter().take(MAX_SCOPES) {
        let view = &entry.view;
        let name = if namespaces {
            format!("{}/{}", view.namespace, view.name)
        } else {
            view.name.as_str().to_owned()
        };
        table.row(vec![
            name.into(),
            Cell::styled(view.health.into(), view.health.as_str()),
            view.available.as_str().into(),
            match &view.root_cause {
                None => Cell::none(),
                Some(cause) => one_line(&visible(cause), MAX_CAUSE_BYTES).into(),
            },
        ]);
    }
    let mut text = table.render(terminal);
    if let Some(hidden) = scopes.len().checked_sub(MAX_SCOPES).filter(|hidden| *hidden > 0) {
        text.push_str(&format!("... and {hidden} more: healthscope get scopes -A\n"));
    }
    text.push('\n');
    text
}

/// What happened between two snapshots, a line each: the changes after the one with the id `last`, and scopes that are as
/// ill as before for another reason (the check of a dependency may come a moment after those that depend on it).
pub(super) fn transitions(
    before: &Snapshot,
    now: &Snapshot,
    last: u64,
    zone: &TimeZone,
    terminal: Terminal,
) -> String {
    let new: Vec<_> = now
        .transitions
        .iter()
        .filter(|transition| transition.id > last)
        .collect();
    let is_scope = |transition: &&&Arc<TransitionView>| matches!(transition.change, Change::Scope { .. });
    let shown: BTreeSet<u64> = new
        .iter()
        .filter(is_scope)
        .chain(new.iter().filter(|transition| !is_scope(transition)))
        .map(|transition| transition.id)
        .take(MAX_LINES)
        .collect();
    let mut text: String = new
        .iter()
        .filter(|transition| shown.contains(&transition.id))
        .map(|transition| transition::line(transition, zone, terminal))
        .collect();
    if new.len() > shown.len() {
        text.push_str(&format!(
            "          ... and {} more changes\n",
            new.len() - shown.len()
        ));
    }
    for (key, entry) in now.scopes.iter() {
        let view = &entry.view;
        let old = before.scopes.get(key).map(|entry| &entry.view);
        let is_told = new.iter().any(|transition| {
            matches!(transition.change, Change::Scope { .. })
                && transition.name == key.name
                && transition.namespace == key.namespace
        });
        let is_other = old.is_some_and(|old| {
            old.health == view.health && old.root_causes.first() != view.root_causes.first()
        });
        if let (Some(cause), Some(at)) = (&view.root_cause, now.at)
            && is_other
            && !is_told
        {
            text.push_str(&transition::still(key, view.health, cause, at, zone, terminal));
        }
    }
    text
}

/// What there is to say about the files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing that was not said before.
    Nothing,
    /// They cannot be used as they are.
    Problem(String),
    /// They are in force.
    News(String),
}

/// Compares what was told of the files with what they are now.
pub(super) fn files(name: &str, before: &Loaded<Declared>, now: &Loaded<Declared>) -> Told {
    if let Some(problems) = &now.problems {
        if before.problems.as_ref() == Some(problems) {
            return Told::Nothing;
        }
        let problems: String = problems
            .to_string()
            .lines()
            .map(|line| format!("  {}\n", visible(line)))
            .collect();
        return Told::Problem(format!(
            "{} cannot be used as it is now; what it was stays in force:\n{problems}",
            visible(name)
        ));
    }
    if now.revision == before.revision {
        return Told::Nothing;
    }
    let again = if before.problems.is_some() {
        "is valid again and in force"
    } else {
        "has changed and is in force"
    };
    Told::News(format!("{} {again}: {}.\n", visible(name), summary(&now.value)))
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        healthscope_aggregator::declared,
        healthscope_service::config_files::Problems,
        healthscope_shared::document::{DocumentError, Place, Source},
    };

    fn shop() -> Declared {
        declared::read(&[Source::new(
            "shop.yaml",
            include_str!("../../../examples/shop.yaml"),
        )])
        .unwrap()
    }

    #[test]
    fn the_greeting_says_where_to_look_and_what_to_try() {
        let subject = Subject::Demo {
            break_db: "curl a".into(),
            mend_db: "curl b".into(),
            why: "healthscope why shop".into(),
        };
        let expected = format!(
            "HealthScope {}   http://127.0.0.1:7575/\n\nWatching a demo shop, where web needs cart and cart needs db.\n\
             \x20 break db:  curl a\n  mend it:   curl b\n  ask why:   healthscope why shop\nCtrl-C ends it.\n\n",
            build::VERSION
        );
        assert_eq!(
            greeting("http://127.0.0.1:7575/", &subject, &shop(), Terminal::plain()),
            expected
        );
        let files = greeting(
            "http://x/",
            &Subject::Files("shop.yaml".into()),
            &shop(),
            Terminal::plain(),
        );
        assert!(
            files.contains("\nWatching shop.yaml: web, cart, db with 4 probes, in 1 scope.\n"),
            "{files}"
        );
    }

    fn snapshot(root_cause: &str, transitions: Vec<TransitionView>) -> Snapshot {
        let mut view: healthscope_core::view::ScopeView = crate::golden::recorded("scope-shop.json");
        view.root_cause = Some(format!("{root_cause}: connection refused"));
        view.root_causes = vec![root_cause.into()];
        let key = healthscope_shared::name::ScopeKey {
            namespace: view.namespace.clone(),
            name: view.name.clone(),
        };
        let entry = ScopeEntry {
            object: Arc::new(shop().scopes[0].object.clone()),
            status: healthscope_crd::v1beta1::HealthScopeStatus::default(),
            view,
            settled: true,
        };
        Snapshot {
            at: Some("2026-01-02T05:00:00Z".parse().unwrap()),
            scopes: Arc::new([(key, Arc::new(entry))].into()),
            transitions: transitions.into_iter().map(Arc::new).collect(),
            ..Snapshot::default()
        }
    }

    fn change(id: u64, level: &str, name: &str) -> TransitionView {
        serde_json::from_value(serde_json::json!({
            "id": id, "time": "2026-01-02T05:00:00Z", "level": level, "from": "Healthy", "to": "Unhealthy",
            "maintenance": false, "namespace": "default", "kind": "X", "name": name, "reason": "ReadinessFailed",
        }))
        .unwrap()
    }

    fn between(before: &Snapshot, now: &Snapshot) -> String {
        transitions(before, now, 0, &TimeZone::UTC, Terminal::plain())
    }

    #[test]
    fn a_root_cause_that_is_found_later_is_told() {
        let cart = snapshot("cart", Vec::new());
        let db = snapshot("db", Vec::new());
        assert_eq!(
            between(&cart, &db),
            "05:00:00  scope shop            still Unhealthy        root cause is db: connection refused\n"
        );
        assert_eq!(between(&db, &db), "");
        // The scope's own change says it already.
        let told = snapshot("db", vec![change(1, "scope", "shop")]);
        assert_eq!(between(&cart, &told).lines().count(), 1);
    }

    #[test]
    fn a_flood_of_changes_is_cut_and_scopes_are_not_lost_in_it() {
        let mut changes: Vec<_> = (1..=100).map(|id| change(id, "component", "web")).collect();
        changes.push(change(101, "scope", "shop"));
        let flood = snapshot("db", changes);
        let text = between(&flood, &flood);
        assert_eq!(text.lines().count(), MAX_LINES + 1);
        assert!(text.ends_with("\n          ... and 61 more changes\n"), "{text}");
        assert!(text.contains("scope shop"), "{text}");
    }

    #[test]
    fn files_are_told_once() {
        let loaded = |revision: u64, problem: Option<&str>| Loaded {
            value: Arc::new(shop()),
            revision,
            problems: problem.map(|message| {
                let place = Place {
                    source: "shop.yaml".into(),
                    line: 3,
                    column: 5,
                };
                Arc::new(Problems::from(vec![DocumentError {
                    place,
                    message: message.into(),
                }]))
            }),
        };
        let told = |before, now| files("shop.yaml", &before, &now);
        assert_eq!(told(loaded(1, None), loaded(1, None)), Told::Nothing);
        assert_eq!(
            told(loaded(1, None), loaded(1, Some("bad"))),
            Told::Problem(
                "shop.yaml cannot be used as it is now; what it was stays in force:\n  shop.yaml:3:5: bad\n"
                    .into()
            )
        );
        assert_eq!(
            told(loaded(1, Some("bad")), loaded(1, Some("bad"))),
            Told::Nothing
        );
        assert!(matches!(
            told(loaded(1, Some("bad")), loaded(1, Some("worse"))),
            Told::Problem(_)
        ));
        assert_eq!(
            told(loaded(1, Some("bad")), loaded(2, None)),
            Told::News(
                "shop.yaml is valid again and in force: web, cart, db with 4 probes, in 1 scope.\n".into()
            )
        );
        assert!(
            matches!(told(loaded(1, None), loaded(2, None)), Told::News(text) if text.contains("has changed"))
        );
    }
}
