//! `healthscope why`: from a scope's health down to the check that explains it.

use {
    crate::{
        args::{ObjectOutput, WhyArgs},
        failure::{Answer, Failure},
        object,
        source::{Source, SourceError},
        terminal::Terminal,
    },
    healthscope_core::view::ScopeView,
    healthscope_shared::{
        health::Health,
        name::{Name, Namespace, ScopeKey},
    },
    jiff::Timestamp,
    std::collections::VecDeque,
    tree::Scopes,
};

pub(crate) mod tree;

/// Scopes below the one that is asked about that are looked at; nobody reads more.
const MAX_NESTED: usize = 100;

/// Explains a scope's health.
pub(crate) async fn run(
    args: &WhyArgs,
    namespace: &Namespace,
    source: &Source,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let WhyArgs { scope, output } = args;
    let name = scope.split_once('/').map_or(scope.as_str(), |(_, name)| name);
    let key = ScopeKey {
        namespace: namespace.clone(),
        name: Name::new(name).map_err(Failure::usage)?,
    };
    let (scope, source) = look(&key, source).await?;
    let text = match output {
        Some(ObjectOutput::Json) => object::json(&scope),
        Some(ObjectOutput::Yaml) => object::yaml(&scope),
        None => {
            let nested = nested(&scope, &source).await?;
            tree::render(&scope, &nested, Timestamp::now(), terminal)
        }
    };
    terminal.print(&text)?;
    Ok(Answer::from(scope.health.is_available()))
}

/// The scope, and where those in it are to be read. In a cluster the status says which components are ill; what their
/// checks printed only an aggregator knows, and without it the status has to do.
async fn look(key: &ScopeKey, source: &Source) -> Result<(ScopeView, Source), SourceError> {
    let scope = source.scope(key).await?;
    let is_explained = scope.view.health == Health::Healthy || matches!(source, Source::Server(_));
    if is_explained {
        return Ok((scope.view, source.clone()));
    }
    let detailed = match source.aggregator().await {
        Ok(client) => client
            .scope(key)
            .await
            .map(|view| (view, client))
            .map_err(SourceError::from),
        Err(error) => Err(error),
    };
    match detailed {
        Ok((mut view, client)) => {
            view.notes.extend(scope.behind);
            Ok((view, Source::Server(client)))
        }
        Err(error) => {
            let reason = error.to_string().replace('\n', " ");
            say(&format!("without what the checks printed: {reason}"));
            Ok((scope.view, source.clone()))
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "what is missing is said beside the result, not in it"
)]
fn say(message: &str) {
    eprintln!("{message}");
}

/// The scopes in this one that are not healthy, and those in them.
async fn nested(scope: &ScopeView, source: &Source) -> Result<Scopes, SourceError> {
    let mut found = Scopes::new();
    let keys = |scope: &ScopeView| -> Vec<ScopeKey> {
        let ill = scope
            .components
            .iter()
            .filter(|member| member.component.health != Health::Healthy);
        ill.filter_map(tree::nested_key).collect()
    };
    let mut wanted: VecDeque<ScopeKey> = keys(scope).into();
    while let Some(key) = wanted.pop_front() {
        if found.contains_key(&key) || found.len() >= MAX_NESTED {
            continue;
        }
        match source.scope(&key).await {
            Ok(inner) => {
                wanted.extend(keys(&inner.view));
                found.insert(key, inner.view);
            }
            // A member that does not exist is a finding, not an error.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
