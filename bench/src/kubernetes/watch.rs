//! Follows the statuses of all HealthScopes of a group, as any client does: over one watch.

use {
    anyhow::Result,
    futures_util::TryStreamExt,
    kube::{
        Api, Client,
        api::{ApiResource, DynamicObject, WatchEvent, WatchParams},
    },
    serde_json::Value,
    std::time::{Duration, Instant},
    tokio::{task::JoinHandle, time},
};

/// After an error, so that an API server that has ended is not asked without end.
const AGAIN: Duration = Duration::from_millis(100);

/// A status as a watcher saw it.
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// The scope's name; names are unique over all namespaces here.
    pub(crate) name: String,
    pub(crate) status: Value,
}

impl Seen {
    /// Components that are listed, with their health.
    pub(crate) fn components(&self) -> impl Iterator<Item = (&str, &str)> {
        let listed = self.status["components"].as_array();
        listed
            .into_iter()
            .flatten()
            .filter_map(|component| Some((component["name"].as_str()?, component["health"].as_str()?)))
    }

    /// Why a component is as it is said to be.
    pub(crate) fn why(&self, name: &str) -> String {
        let mut listed = self.status["components"].as_array().into_iter().flatten();
        listed
            .find(|component| component["name"] == name)
            .map_or_else(String::new, |component| {
                format!("{} {}", component["reason"], component["message"])
            })
    }

    /// What a component's health is said to be.
    pub(crate) fn health_of(&self, name: &str) -> Option<&str> {
        let mut components = self.components();
        components
            .find(|(listed, _)| *listed == name)
            .map(|(_, health)| health)
    }
}

/// Follows a group's HealthScopes until dropped; every status goes to `tell`.
pub(crate) struct Watcher {
    following: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Watcher {
    pub(crate) fn start(client: &Client, group: &str, mut tell: impl FnMut(Seen) + Send + 'static) -> Self {
        let resource = ApiResource {
            group: group.to_owned(),
            version: "v1beta1".to_owned(),
            api_version: format!("{group}/v1beta1"),
            kind: "HealthScope".to_owned(),
            plural: "healthscopes".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let following = tokio::spawn(async move {
            let mut version = "0".to_owned();
            loop {
                // One that ends is taken up where it ended.
                if follow(&api, &mut version, &mut tell).await.is_err() {
                    version = "0".to_owned();
                    time::sleep(AGAIN).await;
                }
            }
        });
        Self { following }
    }
}

async fn follow(api: &Api<DynamicObject>, version: &mut String, tell: &mut impl FnMut(Seen)) -> Result<()> {
    let events = api.watch(&WatchParams::default().timeout(280), version).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await? {
        let at = Instant::now();
        let mut object = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => object,
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => anyhow::bail!("the watch ended: {error:?}"),
        };
        *version = object.metadata.resource_version.unwrap_or_default();
        tell(Seen {
            at,
            name: object.metadata.name.unwrap_or_default(),
            status: object.data["status"].take(),
        });
    }
    Ok(())
}
