//! The explanation of a scope's health, as text. Pure: views in, text out; the time is an argument.

use {
    crate::{
        age::age,
        terminal::{Style, Terminal, visible},
    },
    healthscope_core::view::{FailingView, MemberView, ProbeView, ScopeView},
    healthscope_crd::v1beta1,
    healthscope_shared::{
        health::Health,
        name::{Name, ScopeKey},
        one_line,
        probe::outcome::ProbeState,
    },
    jiff::Timestamp,
    std::collections::BTreeMap,
};

/// Members written out; a person reads the first ones, `get components` has all.
const MAX_MEMBERS: usize = 20;
/// Lines of output written out for each probe; `-o json` has the rest.
const MAX_OUTPUT_LINES: usize = 20;
/// Longest target shown; scripts in a command can be long.
const MAX_TARGET_BYTES: usize = 100;
/// Healthy members named before the others are counted.
const MAX_HEALTHY_NAMES: usize = 10;
/// Scopes in scopes in scopes: deeper than anybody builds.
pub(crate) const MAX_DEPTH: usize = 8;

/// What is known of the scopes that are asked about and of those in them.
pub(crate) type Scopes = BTreeMap<ScopeKey, ScopeView>;

/// Writes why `scope` is as it is.
pub(crate) fn render(scope: &ScopeView, nested: &Scopes, now: Timestamp, terminal: Terminal) -> String {
    let mut text = headline(scope, now, terminal);
    let is_well = scope.health == Health::Healthy;
    if is_well && scope.stalled.is_empty() {
        return text;
    }
    if !is_well {
        text.push('\n');
        let mut tree = Tree {
            nested,
            now,
            terminal,
            text: String::new(),
            path: Vec::new(),
        };
        tree.members(scope, "");
        text.push_str(&tree.text);
    }
    text
}

/// The first lines: the verdict, the root cause, and what else bears on it.
fn headline(scope: &ScopeView, now: Timestamp, terminal: Terminal) -> String {
    let ScopeView {
        name,
        health,
        since,
        available,
        summary,
        policy,
        ..
    } = scope;
    let counted = if available.is_empty() {
        "nothing is known of its components".to_owned()
    } else if summary.total == 0 {
        "it has no components".to_owned()
    } else if *health == Health::Healthy {
        format!("{available} components available")
    } else {
        format!("{available} components available, {} needed", policy.needed)
    };
    let mut text = format!(
        "{} is {} for {}: {counted}\n",
        terminal.paint(Style::Strong, name.as_str()),
        terminal.health(*health),
        age(*since, now),
    );
    if let Some(cause) = &scope.root_cause {
        text.push_str(&format!(
            "root cause: {}\n",
            terminal.paint(Style::Strong, visible(cause))
        ));
    } else if *health != Health::Healthy && !scope.message.is_empty() {
        text.push_str(&format!("because: {}\n", visible(&scope.message)));
    }
    if let Some(recovering) = &scope.recovering {
        let rest = age(now, recovering.at);
        text.push_str(&format!(
            "measured {} now; shown in {rest} if it lasts\n",
            recovering.health
        ));
    }
    if scope.flapping {
        text.push_str("flapping: it changes too often to be believed\n");
    }
    if let Some(maintenance) = scope
        .maintenance
        .as_ref()
        .filter(|maintenance| maintenance.active)
    {
        let until = maintenance
            .until
            .map(|until| format!(" until {until}"))
            .unwrap_or_default();
        let reason = match maintenance.reason.as_str() {
            "" => String::new(),
            reason => format!(": {}", visible(reason)),
        };
        text.push_str(&format!("in maintenance{until}{reason}; nobody is alarmed\n"));
    }
    for problem in &scope.stalled {
        text.push_str(&format!(
            "the spec cannot be used, the last usable one is in force: {}\n",
            visible(problem)
        ));
    }
    for note in &scope.notes {
        text.push_str(&format!("note: {}\n", visible(note)));
    }
    text
}

struct Tree<'a> {
    nested: &'a Scopes,
    now: Timestamp,
    terminal: Terminal,
    text: String,
    /// The scopes above, against cycles.
    path: Vec<Name>,
}

impl Tree<'_> {
    fn members(&mut self, scope: &ScopeView, indent: &str) {
        let (healthy, mut ill): (Vec<&MemberView>, Vec<&MemberView>) = scope
            .components
            .iter()
            .partition(|member| member.component.health == Health::Healthy);
        // What explains the others comes first; the view's own order, worst first, stays within.
        ill.sort_by_key(|member| member.caused_by.is_some());
        ill.truncate(MAX_MEMBERS);
        // A status of Kubernetes counts more than it lists.
        let summary = &scope.summary;
        let all_healthy = healthy.len().max(summary.healthy as usize);
        let hidden = (summary.total.saturating_sub(summary.healthy) as usize).saturating_sub(ill.len());
        let has_tail = hidden > 0 || all_healthy > 0;
        for (index, member) in ill.iter().enumerate() {
            let is_last = index + 1 == ill.len() && !has_tail;
            self.member(scope, member, indent, is_last);
        }
        if hidden > 0 {
            let branch = if all_healthy == 0 { "└─" } else { "├─" };
            self.line(indent, branch, &format!("and {hidden} more that are not healthy"));
        }
        if all_healthy > 0 {
            let mut names: Vec<String> = healthy
                .iter()
                .map(|member| name(member))
                .take(MAX_HEALTHY_NAMES)
                .collect();
            match all_healthy - names.len() {
                0 => {}
                all if names.is_empty() => names.push(format!("the other {all}")),
                more => names.push(format!("and {more} more")),
            }
            let word = self.terminal.health(Health::Healthy);
            self.line(indent, "└─", &format!("{word} {}", names.join(", ")));
        }
    }

    fn member(&mut self, scope: &ScopeView, member: &MemberView, indent: &str, is_last: bool) {
        let component = &member.component;
        let mut facts = vec![
            component.reason.to_string(),
            format!("for {}", age(component.since, self.now)),
        ];
        if member.required {
            facts.push("required".into());
        }
        if member.ignored {
            facts.push("left out of the verdict".into());
        }
        if component.flapping {
            facts.push("flapping".into());
        }
        match &member.caused_by {
            Some(cause) => facts.push(format!("caused by {cause}")),
            None if component.health == Health::Unhealthy => {
                facts.push(self.terminal.paint(Style::Strong, "root cause").into_owned());
            }
            None => {}
        }
        let word = self.terminal.health(component.health);
        self.line(
            indent,
            if is_last { "└─" } else { "├─" },
            &format!("{word} {} ({})", name(member), facts.join(", ")),
        );
        let below = format!("{indent}{}", if is_last { "   " } else { "│  " });

        let nested = nested_key(member).and_then(|key| self.nested.get(&key));
        if let Some(inner) =
            nested.filter(|_| self.path.len() < MAX_DEPTH && !self.path.contains(&component.name))
        {
            self.path.push(scope.name.clone());
            self.members(inner, &below);
            self.path.pop();
            return;
        }
        if component.failing.is_empty() && !component.message.is_empty() {
            self.line(&below, "└─", &visible(&component.message).replace('\n', " "));
        }
        for (index, failing) in component.failing.iter().enumerate() {
            self.leaf(failing, &below, index + 1 == component.failing.len());
        }
    }

    /// The check at the end of the branch, with what it said last.
    fn leaf(&mut self, failing: &FailingView, indent: &str, is_last: bool) {
        let FailingView {
            instance,
            agent: _,
            probe,
        } = failing;
        let ProbeView {
            probe: probe_name,
            kind: _,
            handler: _,
            target,
            state,
            reason,
            message,
            output,
            ..
        } = probe;
        let shown = one_line(&visible(target), MAX_TARGET_BYTES);
        let word = self.terminal.paint(Style::from(*state), state.as_str());
        let mut first = format!("{word} {probe_name} on {instance}: {shown}");
        if *state == ProbeState::Failing && probe.streak < -1 {
            first.push_str(&format!(" ({} failures in a row)", probe.streak.unsigned_abs()));
        }
        self.line(indent, if is_last { "└─" } else { "├─" }, &first);
        let below = format!("{indent}{}", if is_last { "     " } else { "│    " });
        let message = if message.is_empty() {
            reason.as_str()
        } else {
            message
        };
        let message = self
            .terminal
            .paint(Style::Strong, visible(message).replace('\n', " "))
            .into_owned();
        self.line(&below, "", &message);
        let shown = visible(output);
        let mut lines = shown.lines().filter(|line| !line.trim().is_empty());
        for line in lines.by_ref().take(MAX_OUTPUT_LINES) {
            let line = self
                .terminal
                .paint(Style::Faint, format!("| {line}"))
                .into_owned();
            self.line(&below, "", &line);
        }
        match lines.count() {
            0 => {}
            more => self.line(&below, "", &format!("| ... and {more} more lines, see -o json")),
        }
    }

    fn line(&mut self, indent: &str, branch: &str, text: &str) {
        let gap = if branch.is_empty() { "" } else { " " };
        let line = format!("{indent}{branch}{gap}{text}");
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

/// A member's name; its kind too, unless it is the usual one.
fn name(member: &MemberView) -> String {
    let component = &member.component;
    match component.kind.as_str() {
        "Component" => component.name.to_string(),
        kind => format!("{kind}/{}", component.name),
    }
}

/// The scope that a member is.
pub(crate) fn nested_key(member: &MemberView) -> Option<ScopeKey> {
    let component = &member.component;
    let is_scope =
        component.kind.as_str() == v1beta1::KIND && component.api_version.starts_with(v1beta1::GROUP);
    is_scope.then(|| ScopeKey {
        namespace: component.namespace.clone(),
        name: component.name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::golden::{self, recorded},
    };

    fn payments() -> ScopeView {
        recorded("scope-payments.json")
    }

    fn render_plain(scope: &ScopeView) -> String {
        let inner = payments();
        let key = ScopeKey {
            namespace: inner.namespace.clone(),
            name: inner.name.clone(),
        };
        render(
            scope,
            &Scopes::from([(key, inner)]),
            golden::now(),
            Terminal::plain(),
        )
    }

    #[test]
    fn the_tree_leads_to_the_failing_check() {
        golden::check("why-shop.txt", &render_plain(&recorded("scope-shop.json")));
    }

    #[test]
    fn a_healthy_scope_is_one_line() {
        let mut scope: ScopeView = recorded("scope-payments.json");
        scope.health = Health::Healthy;
        scope.available = "1/1".into();
        scope.root_cause = None;
        assert_eq!(
            render_plain(&scope),
            "payments is Healthy for 4m19s: 1/1 components available\n"
        );
    }

    #[test]
    fn what_bears_on_the_verdict_is_said() {
        let mut scope: ScopeView = recorded("scope-payments.json");
        scope.flapping = true;
        scope.stalled = vec!["spec.policy.minAvailable: 101 is not a percentage".into()];
        scope.notes = vec!["no component is called cart".into()];
        scope.recovering = Some(healthscope_core::view::RecoveringView {
            health: Health::Healthy,
            at: "2026-01-02T05:00:07Z".parse().unwrap(),
        });
        golden::check("why-payments.txt", &render_plain(&scope));
    }

    #[test]
    fn scopes_that_contain_each_other_end() {
        let shop: ScopeView = recorded("scope-shop.json");
        let mut inner = payments();
        inner.components = shop.components.clone();
        let key = ScopeKey {
            namespace: inner.namespace.clone(),
            name: inner.name.clone(),
        };
        let text = render(
            &shop,
            &Scopes::from([(key, inner)]),
            golden::now(),
            Terminal::plain(),
        );
        assert!(text.lines().count() < 200, "{text}");
    }
}
