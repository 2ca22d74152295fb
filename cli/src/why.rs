//! `healthscope why`: from a scope's health down to the check that explains it.

use {
    crate::{
        args::{ObjectOutput, WhyArgs},
        client::{Client, ClientError},
        failure::{Answer, Failure},
        object,
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

mod tree;

/// Scopes below the one that is asked about that are looked at; nobody reads more.
const MAX_NESTED: usize = 100;

/// Explains a scope's health.
pub(crate) async fn run(
    args: &WhyArgs,
    namespace: &Namespace,
    client: &Client,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let WhyArgs { scope, output } = args;
    let name = scope.split_once('/').map_or(scope.as_str(), |(_, name)| name);
    let key = ScopeKey {
        namespace: namespace.clone(),
        name: Name::new(name).map_err(Failure::usage)?,
    };
    let scope = client.scope(&key).await?;
    let text = match output {
        Some(ObjectOutput::Json) => object::json(&scope),
        Some(ObjectOutput::Yaml) => object::yaml(&scope),
        None => {
            let nested = nested(&scope, client).await?;
            tree::render(&scope, &nested, Timestamp::now(), terminal)
        }
    };
    terminal.print(&text)?;
    Ok(Answer::from(scope.health.is_available()))
}

/// The scopes in this one that are not healthy, and those in them.
async fn nested(scope: &ScopeView, client: &Client) -> Result<Scopes, ClientError> {
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
        match client.scope(&key).await {
            Ok(inner) => {
                wanted.extend(keys(&inner));
                found.insert(key, inner);
            }
            // A member that does not exist is a finding, not an error.
            Err(ClientError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
