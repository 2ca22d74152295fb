//! `healthscope why`: from a scope's health down to the check that explains it.

use {
    crate::{
        args::{ObjectOutput, WhyArgs},
        check,
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
    serde_json::Value,
    std::collections::VecDeque,
    tree::Scopes,
};

pub(crate) mod tree;

/// Scopes below the one that is asked about that are looked at; nobody reads more.
const MAX_NESTED: usize = 100;
/// Checks named that injection left out; the annotation on the pods has all.
const MAX_LEFT_OUT: usize = 10;

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
    let pods = source;
    let (mut scope, source) = look(&key, source).await?;
    if let Source::Cluster(cluster) = pods {
        // Who may not list pods is told what the scope says, and that is what was asked for.
        let (pods, skips) = tokio::join!(
            cluster.pods_metadata(namespace),
            cluster.injection_skips(namespace)
        );
        let (pods, skips) = (pods.unwrap_or_default(), skips.unwrap_or_default());
        scope.notes.extend(left_out(&scope, &pods));
        scope.notes.extend(without_agent(&scope, &pods, &skips));
    }
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

/// Whether a component of the scope has this kind and name.
fn is_member(scope: &ScopeView, (kind, name): &(String, String)) -> bool {
    let mut members = scope.components.iter().map(|member| &member.component);
    members.any(|component| component.kind.as_str() == kind && component.name.as_str() == name)
}

/// Why pods of a scope's components have no agent, a sentence each.
fn without_agent(scope: &ScopeView, pods: &[Value], skips: &[Value]) -> Vec<String> {
    let all = check::without_agent(pods, skips)
        .into_iter()
        .filter(|(owner, _)| is_member(scope, owner));
    all.take(MAX_LEFT_OUT)
        .map(|((kind, name), why)| format!("{kind}/{name} has pods without an agent: {why}"))
        .collect()
}

/// Checks that injection left out of the pods of a scope's components, a sentence each.
fn left_out(scope: &ScopeView, pods: &[Value]) -> Vec<String> {
    let all = check::left_out(pods)
        .into_iter()
        .filter(|(owner, _)| is_member(scope, owner));
    let mut notes: Vec<String> = all
        .map(|((kind, name), note)| format!("{kind}/{name} is not checked in all that it asks for: {note}"))
        .collect();
    if notes.len() > MAX_LEFT_OUT {
        let more = notes.len() - MAX_LEFT_OUT;
        notes.truncate(MAX_LEFT_OUT);
        notes.push(format!("and {more} more checks that are left out"));
    }
    notes
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
        Ok((view, client)) => Ok((view, Source::Server(client))),
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

#[cfg(test)]
mod tests {
    use {super::*, crate::golden, serde_json::json};

    #[test]
    fn pods_without_an_agent_are_explained_by_the_newest_event_about_their_controller() {
        let mut scope: ScopeView = golden::recorded("scope-payments.json");
        let mut ledger = scope.components[0].component.as_ref().clone();
        ledger.kind = "Deployment".parse().unwrap();
        ledger.name = Name::new("ledger").unwrap();
        scope.components[0].component = std::sync::Arc::new(ledger);
        let pod = |owner: &str, annotations: Value| {
            json!({"metadata": {
                "name": "a", "labels": {"pod-template-hash": "7"}, "annotations": annotations,
                "ownerReferences": [{"controller": true, "kind": "ReplicaSet", "name": format!("{owner}-7"), "uid": owner}],
            }})
        };
        let event = |owner: &str, time: &str, message: &str| json!({"involvedObject": {"uid": owner}, "lastTimestamp": time, "message": message});
        let skips = [
            event("ledger", "2026-01-01T00:00:00Z", "LimitRange: no room"),
            event("ledger", "2026-01-02T00:00:00Z", "HostNetwork: its node's"),
            event("other", "2026-01-02T00:00:00Z", "HostPid: its node's"),
        ];
        let pods = [pod("ledger", Value::Null), pod("other", Value::Null)];
        let said = "Deployment/ledger has pods without an agent: HostNetwork: its node's";
        assert_eq!(without_agent(&scope, &pods, &skips), [said]);
        let injected = json!({"healthscope.core.oam.dev/injected": "{}"});
        assert!(without_agent(&scope, &[pod("ledger", injected)], &skips).is_empty());
        assert!(without_agent(&scope, &[pod("silent", Value::Null)], &skips).is_empty());
    }

    #[test]
    fn what_injection_left_out_of_a_component_s_pods_is_noted() {
        let mut scope: ScopeView = golden::recorded("scope-payments.json");
        let mut ledger = scope.components[0].component.as_ref().clone();
        ledger.kind = "Deployment".parse().unwrap();
        ledger.name = Name::new("ledger").unwrap();
        scope.components[0].component = std::sync::Arc::new(ledger);
        let pod = |name: &str, owner: &str, message: &str| {
            let note = json!({"container": "main", "probe": "liveness", "reason": "Unsupported", "message": message});
            json!({"metadata": {
                "name": name, "labels": {"pod-template-hash": "7"},
                "annotations": {"healthscope.core.oam.dev/injected": json!({"checks": 1, "leftOut": [note]}).to_string()},
                "ownerReferences": [{"controller": true, "kind": "ReplicaSet", "name": format!("{owner}-7")}],
            }})
        };
        let torn = json!({"metadata": {"annotations": {"healthscope.core.oam.dev/injected": "{"}}});
        let pods = [
            pod("a", "ledger", "no way"),
            pod("b", "ledger", "no way"),
            pod("c", "other", "no"),
            torn,
        ];
        let said =
            "Deployment/ledger is not checked in all that it asks for: Unsupported: main liveness: no way";
        assert_eq!(left_out(&scope, &pods), [said]);
        let many: Vec<Value> = (0..30)
            .map(|number| pod("a", "ledger", &number.to_string()))
            .collect();
        let notes = left_out(&scope, &many);
        assert_eq!(notes.len(), MAX_LEFT_OUT + 1);
        assert_eq!(notes[MAX_LEFT_OUT], "and 20 more checks that are left out");
    }
}
