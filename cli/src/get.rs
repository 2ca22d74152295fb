//! `healthscope get`: tables and objects of what an aggregator or a cluster holds.
//!
//! With `-w` the newest list is looked at whenever something changed, and the lines that look different are printed: a
//! lost event cannot make the table wrong.

use {
    crate::{
        args::{GetArgs, GetOutput},
        client::{Client, ClientError, Interest},
        failure::{Answer, Failure},
        object,
        source::{Scope, Selection, Source, SourceError, Wake},
        table::Table,
        terminal::Terminal,
    },
    healthscope_crd::v1beta1,
    healthscope_shared::name::{ComponentKey, Name, Namespace},
    jiff::Timestamp,
    row::{Layout, Row},
    serde_json::{Value, json},
    std::{collections::BTreeMap, time::Duration},
    what::{Type, Wanted},
};

mod row;
mod what;

/// Lists under watch are asked for this far apart at least.
const BURST: Duration = Duration::from_millis(50);

/// Lists objects.
pub(crate) async fn run(
    args: &GetArgs,
    namespace: &Namespace,
    source: Source,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let GetArgs {
        what,
        names,
        everywhere,
        output,
        watch,
        no_headers,
        selector,
    } = args;
    let wanted = what::parse(what, names)?;
    if selector.is_some() && !names.is_empty() {
        return Err(Failure::usage("names and --selector exclude each other"));
    }
    // A cluster has objects for scopes alone; where others are wanted, all come from the same aggregator.
    let source = if wanted.iter().all(|wanted| wanted.kind == Type::Scopes) {
        source
    } else {
        Source::Server(source.aggregator().await?)
    };
    let list = List {
        source: &source,
        labels: selector.as_deref(),
        terminal,
        namespace: (!everywhere.all_namespaces).then_some(namespace),
        is_one: wanted.len() == 1 && wanted[0].names.len() == 1,
        has_several_types: wanted.len() > 1,
        output: *output,
        headers: !no_headers,
    };
    if *watch {
        list.watch(&wanted).await
    } else {
        list.once(&wanted).await
    }
}

struct List<'a> {
    source: &'a Source,
    labels: Option<&'a str>,
    terminal: Terminal,
    /// `None` means all.
    namespace: Option<&'a Namespace>,
    /// One object was asked for by name: whole, it is not a list.
    is_one: bool,
    has_several_types: bool,
    output: Option<GetOutput>,
    headers: bool,
}

impl List<'_> {
    async fn once(&self, wanted: &[Wanted]) -> Result<Answer, Failure> {
        let mut all = Vec::new();
        let mut missing = Vec::new();
        for wanted in wanted {
            let rows = self.fetch(wanted).await?;
            let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            missing.extend(wanted.missing(&names).into_iter().map(|name| (wanted.kind, name)));
            all.push((wanted.kind, rows));
        }
        let is_empty = all.iter().all(|(_, rows)| rows.is_empty());
        let text = match self.output {
            Some(GetOutput::Json) => object::json(&self.whole(&all)),
            Some(GetOutput::Yaml) => object::yaml(&self.whole(&all)),
            Some(GetOutput::Name) => names(&all),
            Some(GetOutput::Wide) | None => self.tables(&all),
        };
        let is_object = self.wants_objects();
        // A missing object is not an empty one.
        if !is_empty || (is_object && missing.is_empty()) {
            self.terminal.print(&text)?;
        }
        if missing.is_empty() {
            if is_empty && !is_object {
                say(&self.nothing(wanted));
            }
            return Ok(Answer::Yes);
        }
        for (kind, name) in missing {
            say(&format!(
                "error: {} {name:?} not found{}",
                kind.singular(),
                self.place(kind)
            ));
        }
        Ok(Answer::No)
    }

    async fn watch(&self, wanted: &[Wanted]) -> Result<Answer, Failure> {
        let interest = Interest {
            namespace: self.namespace.cloned(),
            probes: wanted.iter().any(|wanted| wanted.kind == Type::Probes),
            ..Interest::default()
        };
        let mut wake = Wake::start(self.source, interest, self.labels).await?;
        let mut shown: Vec<(BTreeMap<String, Row>, Option<Table>)> =
            wanted.iter().map(|_| Default::default()).collect();
        loop {
            for (wanted, (known, header)) in wanted.iter().zip(&mut shown) {
                let fetched = match wake.scopes() {
                    Some(scopes) => Ok(rows_of(scopes, wanted)),
                    None => self.fetch(wanted).await,
                };
                let rows = match fetched {
                    Ok(rows) => rows,
                    // The connection is coming back; so will the list.
                    Err(error) if error.is_passing() && header.is_some() => continue,
                    Err(error) => return Err(error.into()),
                };
                self.print_changes(wanted.kind, rows, known, header)?;
            }
            wake.changed().await?;
            // What comes in a burst is asked for once.
            tokio::time::sleep(BURST).await;
        }
    }

    /// Prints the rows that look different from those known, and knows them.
    fn print_changes(
        &self,
        kind: Type,
        rows: Vec<Row>,
        known: &mut BTreeMap<String, Row>,
        header: &mut Option<Table>,
    ) -> Result<(), Failure> {
        let layout = self.layout(kind);
        let identity = |row: &Row| format!("{:?}", row.identity());
        let changed: Vec<&Row> = rows
            .iter()
            .filter(|row| {
                known
                    .get(&identity(row))
                    .is_none_or(|old| !old.looks_like(row, layout.wide))
            })
            .collect();
        if changed.is_empty() && header.is_some() {
            return Ok(());
        }
        let text = match self.output {
            Some(GetOutput::Json) => changed.iter().map(|row| object::json(&row.object)).collect(),
            Some(GetOutput::Yaml) => changed
                .iter()
                .map(|row| format!("---\n{}", object::yaml(&row.object)))
                .collect(),
            Some(GetOutput::Name) => changed
                .iter()
                .map(|row| format!("{}\n", full_name(kind, row)))
                .collect(),
            Some(GetOutput::Wide) | None => {
                let mut table = row::table(layout, changed.iter().copied(), Timestamp::now());
                match header {
                    Some(first) => {
                        table.widen_like(first);
                        table.render_rows(self.terminal)
                    }
                    None if self.headers => table.render(self.terminal),
                    None => table.render_rows(self.terminal),
                }
            }
        };
        if header.is_none() {
            *header = Some(row::table(layout, &rows, Timestamp::now()));
        }
        self.terminal.print(&text)?;
        // Those that are gone are forgotten, so that they are news when they come back.
        *known = rows.into_iter().map(|row| (identity(&row), row)).collect();
        Ok(())
    }

    /// All rows that are wanted, in the aggregator's order.
    async fn fetch(&self, wanted: &Wanted) -> Result<Vec<Row>, SourceError> {
        let namespace = self.namespace;
        if wanted.kind == Type::Scopes {
            let selection = Selection {
                namespace,
                names: &wanted.names,
                labels: self.labels,
                whole: self.wants_objects(),
            };
            return Ok(rows_of(self.source.scopes(selection).await?, wanted));
        }
        if self.labels.is_some() {
            return Err(SourceError::NoLabels);
        }
        let client = self.source.aggregator().await?;
        let mut rows: Vec<Row> = match wanted.kind {
            Type::Scopes => Vec::new(),
            Type::Components => {
                let list = client.components(namespace).await?;
                let mut rows: Vec<Row> = list.iter().map(row::component).collect();
                self.complete(&client, &mut rows, wanted).await?;
                rows
            }
            Type::Probes => client.probes(namespace).await?.iter().map(row::probe).collect(),
            Type::Agents => client.agents().await?.iter().map(row::agent).collect(),
        };
        rows.retain(|row| wanted.matches(&row.name));
        Ok(rows)
    }

    /// Adds instances and probes to components that were asked for by name, where whole objects are wanted.
    async fn complete(&self, client: &Client, rows: &mut [Row], wanted: &Wanted) -> Result<(), ClientError> {
        if !self.wants_objects() || wanted.names.is_empty() {
            return Ok(());
        }
        for row in rows.iter_mut().filter(|row| wanted.matches(&row.name)) {
            let (Some(namespace), Ok(name)) = (&row.namespace, Name::new(&row.name)) else {
                continue;
            };
            match client.component(namespace, &name).await {
                Ok(view) => row.object = row::whole(&view),
                // Of another kind, or gone meanwhile: the short form stays.
                Err(ClientError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    const fn wants_objects(&self) -> bool {
        matches!(self.output, Some(GetOutput::Json | GetOutput::Yaml))
    }

    fn layout(&self, kind: Type) -> Layout {
        Layout {
            kind,
            namespaces: self.namespace.is_none(),
            wide: self.output == Some(GetOutput::Wide),
            prefix: self.has_several_types,
        }
    }

    fn tables(&self, all: &[(Type, Vec<Row>)]) -> String {
        let now = Timestamp::now();
        let tables: Vec<String> = all
            .iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(kind, rows)| {
                let table = row::table(self.layout(*kind), rows, now);
                if self.headers {
                    table.render(self.terminal)
                } else {
                    table.render_rows(self.terminal)
                }
            })
            .collect();
        tables.join("\n")
    }

    fn whole(&self, all: &[(Type, Vec<Row>)]) -> Value {
        let mut items: Vec<&Value> = all
            .iter()
            .flat_map(|(_, rows)| rows.iter().map(|row| &row.object))
            .collect();
        if self.is_one && items.len() == 1 {
            return items.remove(0).clone();
        }
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
    }

    fn place(&self, kind: Type) -> String {
        match self.namespace {
            Some(namespace) if kind != Type::Agents => format!(" in the namespace {namespace}"),
            Some(_) | None => String::new(),
        }
    }

    fn nothing(&self, wanted: &[Wanted]) -> String {
        let types: Vec<&str> = wanted.iter().map(|wanted| wanted.kind.plural()).collect();
        let kind = wanted.first().map_or(Type::Agents, |wanted| wanted.kind);
        format!("no {} found{}", types.join(" or "), self.place(kind))
    }
}

/// The lines of those scopes that are wanted.
fn rows_of(scopes: Vec<Scope>, wanted: &Wanted) -> Vec<Row> {
    scopes
        .into_iter()
        .filter(|scope| wanted.matches(scope.view.name.as_str()))
        .map(|scope| row::scope(&scope.view, scope.object))
        .collect()
}

fn names(all: &[(Type, Vec<Row>)]) -> String {
    let lines = all
        .iter()
        .flat_map(|(kind, rows)| rows.iter().map(|row| format!("{}\n", full_name(*kind, row))));
    let mut lines: Vec<String> = lines.collect();
    // A probe's instances share its name.
    lines.dedup();
    lines.concat()
}

/// `healthscope.core.oam.dev/shop`, as kubectl's `-o name`.
fn full_name(kind: Type, row: &Row) -> String {
    match kind {
        Type::Scopes => format!("{}.{}/{}", v1beta1::KIND.to_lowercase(), v1beta1::GROUP, row.name),
        Type::Components => format!(
            "{}.{}/{}",
            row.instance.to_lowercase(),
            ComponentKey::FILE_GROUP,
            row.name
        ),
        Type::Probes => format!("probe/{}", row.name),
        Type::Agents => format!("agent/{}", row.name),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "what was not found is said beside the result, not in it"
)]
fn say(message: &str) {
    eprintln!("{message}");
}
