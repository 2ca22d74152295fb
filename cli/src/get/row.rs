//! Objects as lines of tables. Pure: views in, cells out; the time is an argument.

use {
    super::what::Type,
    crate::{
        age::{self, age},
        client::ListedProbe,
        table::{Cell, Table},
        terminal::{Style, visible},
    },
    healthscope_core::view::{AgentView, ComponentSummary, ComponentView, Presence, ScopeView},
    healthscope_shared::{name::Namespace, one_line},
    jiff::Timestamp,
    serde::Serialize,
    serde_json::Value,
    std::time::Duration,
};

/// Messages in a table are cut: `why` and `-o json` have all of it.
const MAX_MESSAGE_BYTES: usize = 120;

/// An object that was found.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Missing for what is in no namespace.
    pub(crate) namespace: Option<Namespace>,
    /// `shop`; for a probe `web/readiness`.
    pub(crate) name: String,
    /// What makes it another line than one of the same name: a probe's instance.
    pub(crate) instance: String,
    /// After the name.
    cells: Vec<Cell>,
    /// The state has lasted since then; the column that changes by itself.
    since: Option<Timestamp>,
    /// Further cells of `-o wide`.
    wide: Vec<Cell>,
    /// For `-o json` and `-o yaml`.
    pub(crate) object: Value,
}

impl Row {
    /// Whether a reader would see another line, the passing of time aside.
    pub(crate) fn looks_like(&self, other: &Self, wide: bool) -> bool {
        self.cells == other.cells && self.since == other.since && (!wide || self.wide == other.wide)
    }

    /// Which line it is.
    pub(crate) fn identity(&self) -> (Option<&Namespace>, &str, &str) {
        (self.namespace.as_ref(), &self.name, &self.instance)
    }
}

/// How a table is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) kind: Type,
    pub(crate) namespaces: bool,
    pub(crate) wide: bool,
    /// Several types are printed: names say which.
    pub(crate) prefix: bool,
}

/// Lines under their headers.
pub(crate) fn table<'a>(layout: Layout, rows: impl IntoIterator<Item = &'a Row>, now: Timestamp) -> Table {
    let Layout {
        kind,
        namespaces,
        wide,
        prefix,
    } = layout;
    let (first, columns, more) = headers(kind);
    let mut headers = Vec::new();
    if namespaces && kind != Type::Agents {
        headers.push("NAMESPACE");
    }
    headers.extend(first);
    headers.extend(columns);
    headers.push("SINCE");
    if wide {
        headers.extend(more);
    }
    let mut table = Table::new(headers);
    for row in rows {
        let mut cells = Vec::new();
        if namespaces && kind != Type::Agents {
            cells.push(
                row.namespace
                    .as_ref()
                    .map_or_else(Cell::none, |namespace| namespace.as_str().into()),
            );
        }
        let type_prefix = if prefix {
            format!("{}/", kind.singular())
        } else {
            String::new()
        };
        match (kind, row.name.split_once('/')) {
            (Type::Probes, Some((component, probe))) => {
                cells.push(format!("{type_prefix}{component}").into());
                cells.push(probe.into());
            }
            _ => cells.push(format!("{type_prefix}{}", row.name).into()),
        }
        cells.extend(row.cells.iter().cloned());
        cells.push(row.since.map_or_else(Cell::none, |since| age(since, now).into()));
        if wide {
            cells.extend(row.wide.iter().cloned());
        }
        table.row(cells);
    }
    table
}

/// The name's headers, those before SINCE, and those of `-o wide`.
const fn headers(
    kind: Type,
) -> (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
) {
    match kind {
        Type::Scopes => (
            &["NAME"],
            &["HEALTH", "AVAILABLE", "ROOT CAUSE"],
            &["TOTAL", "UNKNOWN", "FLAPPING", "MAINTENANCE", "REASON"],
        ),
        Type::Components => (
            &["NAME"],
            &["HEALTH", "INSTANCES", "REASON"],
            &["FLAPPING", "MESSAGE"],
        ),
        Type::Probes => (
            &["COMPONENT", "PROBE"],
            &["TYPE", "STATE", "CHECK"],
            &["INSTANCE", "PERIOD", "RUNS", "FAILURES", "AVG", "P99", "MESSAGE"],
        ),
        Type::Agents => (
            &["NAME"],
            &["STATE", "VERSION", "INSTANCES", "PROBES"],
            &["PEER", "SESSIONS", "TRANSITIONS", "MISSED"],
        ),
    }
}

fn object(view: &impl Serialize) -> Value {
    serde_json::to_value(view).expect("views have text keys and no broken numbers")
}

fn message(text: &str) -> Cell {
    if text.is_empty() {
        Cell::none()
    } else {
        one_line(&visible(text), MAX_MESSAGE_BYTES).into()
    }
}

fn yes(flag: bool) -> Cell {
    if flag {
        Cell::styled(Style::Doubtful, "yes")
    } else {
        "no".into()
    }
}

/// The line of a scope; `whole` is the Kubernetes object, where whole objects are wanted.
pub(crate) fn scope(view: &ScopeView, whole: Option<Value>) -> Row {
    let ScopeView {
        namespace,
        name,
        health,
        reason,
        since,
        available,
        summary,
        root_cause,
        flapping,
        maintenance,
        ..
    } = view;
    let in_maintenance = maintenance.as_ref().is_some_and(|maintenance| maintenance.active);
    Row {
        namespace: Some(namespace.clone()),
        name: name.to_string(),
        instance: String::new(),
        cells: vec![
            Cell::styled((*health).into(), health.as_str()),
            message(available),
            message(root_cause.as_deref().unwrap_or_default()),
        ],
        since: Some(*since),
        wide: vec![
            summary.total.to_string().into(),
            summary.unknown.to_string().into(),
            yes(*flapping),
            yes(in_maintenance),
            reason.as_str().into(),
        ],
        object: whole.unwrap_or_else(|| object(view)),
    }
}

/// The line of a component.
pub(crate) fn component(summary: &ComponentSummary) -> Row {
    let counts = summary.instances;
    Row {
        namespace: Some(summary.namespace.clone()),
        name: summary.name.to_string(),
        instance: summary.kind.to_string(),
        cells: vec![
            Cell::styled(summary.health.into(), summary.health.as_str()),
            format!("{}/{}", counts.healthy, counts.total).into(),
            summary.reason.as_str().into(),
        ],
        since: Some(summary.since),
        wide: vec![yes(summary.flapping), message(&summary.message)],
        object: object(summary),
    }
}

/// A component with its instances and probes, as an object.
pub(crate) fn whole(view: &ComponentView) -> Value {
    object(view)
}

/// The line of a probe.
pub(crate) fn probe(listed: &ListedProbe) -> Row {
    let ListedProbe {
        namespace,
        kind: _,
        component,
        instance,
        agent: _,
        probe,
    } = listed;
    let micros = |micros: u32| age::latency(Duration::from_micros(micros.into()));
    let figures = match probe.runs {
        None => vec![
            Cell::none(),
            Cell::none(),
            Cell::none(),
            Cell::none(),
            Cell::none(),
        ],
        Some(runs) => vec![
            age::exact(Duration::from_millis(runs.period_ms.into())).into(),
            runs.total.to_string().into(),
            runs.failures.to_string().into(),
            if runs.max_us == 0 {
                Cell::none()
            } else {
                micros(runs.avg_us).into()
            },
            if runs.max_us == 0 {
                Cell::none()
            } else {
                micros(runs.p99_us).into()
            },
        ],
    };
    let mut wide = vec![instance.as_str().into()];
    wide.extend(figures);
    wide.push(message(&probe.message));
    Row {
        namespace: Some(namespace.clone()),
        name: format!("{component}/{}", probe.probe),
        instance: instance.to_string(),
        cells: vec![
            probe.kind.as_str().into(),
            Cell::styled(probe.state.into(), probe.state.as_str()),
            one_line(&visible(&probe.target), MAX_MESSAGE_BYTES).into(),
        ],
        since: probe.since,
        wide,
        object: object(listed),
    }
}

/// The line of an agent.
pub(crate) fn agent(view: &AgentView) -> Row {
    let AgentView {
        name,
        presence,
        since,
        version,
        peer,
        epoch: _,
        sessions,
        instances,
        probes,
        seq,
        missed,
    } = view;
    let (word, style) = match presence {
        Presence::Connected => ("connected", Style::Good),
        Presence::Syncing => ("syncing", Style::Doubtful),
        Presence::Held => ("away", Style::Doubtful),
        Presence::Lost => ("lost", Style::Bad),
        Presence::Stopped => ("stopped", Style::Doubtful),
    };
    Row {
        namespace: None,
        name: name.to_string(),
        instance: String::new(),
        cells: vec![
            Cell::styled(style, word),
            one_line(&visible(version), 40).into(),
            instances.to_string().into(),
            probes.to_string().into(),
        ],
        since: Some(*since),
        wide: vec![
            one_line(&visible(peer), 60).into(),
            sessions.to_string().into(),
            seq.to_string().into(),
            missed.to_string().into(),
        ],
        object: object(view),
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{
            golden::{self, recorded, recorded_items},
            terminal::Terminal,
        },
    };

    #[track_caller]
    fn check(kind: Type, wide: bool, rows: &[Row], file: &str) {
        let layout = Layout {
            kind,
            namespaces: wide,
            wide,
            prefix: false,
        };
        golden::check(
            file,
            &table(layout, rows, golden::now()).render(Terminal::plain()),
        );
    }

    #[test]
    fn tables_of_scopes() {
        let rows = ["scope-payments.json", "scope-shop.json"].map(|file| scope(&recorded(file), None));
        check(Type::Scopes, false, &rows, "get-scopes.txt");
        check(Type::Scopes, true, &rows, "get-scopes-wide.txt");
    }

    #[test]
    fn tables_of_components() {
        let rows: Vec<Row> = recorded_items("components.json").iter().map(component).collect();
        check(Type::Components, false, &rows, "get-components.txt");
        check(Type::Components, true, &rows, "get-components-wide.txt");
    }

    #[test]
    fn tables_of_probes() {
        let rows: Vec<Row> = recorded_items("probes.json").iter().map(probe).collect();
        check(Type::Probes, false, &rows, "get-probes.txt");
        check(Type::Probes, true, &rows, "get-probes-wide.txt");
    }

    #[test]
    fn tables_of_agents() {
        let rows: Vec<Row> = recorded_items("agents.json").iter().map(agent).collect();
        check(Type::Agents, false, &rows, "get-agents.txt");
        check(Type::Agents, true, &rows, "get-agents-wide.txt");
    }

    #[test]
    fn a_row_that_only_grew_older_looks_the_same() {
        let view: ScopeView = recorded("scope-shop.json");
        let mut other = view.clone();
        other.message = "not in the table".into();
        assert!(scope(&view, None).looks_like(&scope(&other, None), true));
        other.available = "2/7".into();
        assert!(!scope(&view, None).looks_like(&scope(&other, None), false));
    }
}
