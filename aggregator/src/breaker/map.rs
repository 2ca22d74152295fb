//! The ConfigMap with the record: followed by all replicas.

use {
    super::{MAX_PROBLEM_BYTES, REQUEST},
    futures_util::StreamExt,
    healthscope_core::breaker::{CONFIG_MAP, KEY, Record},
    healthscope_service::telemetry::chain,
    healthscope_shared::one_line,
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        Api,
        api::{PostParams, WatchEvent, WatchParams},
    },
    std::{pin::pin, sync::Arc, time::Duration},
    tokio::{sync::watch, time},
};

/// The API server ends each watch after so many seconds; then the ConfigMap is read again.
const WATCH_SECONDS: u32 = 30;
/// Between two looks at least: a watch that ends at once must not make a hot loop.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// What the API server writes into `managedFields` as ours.
const FIELD_MANAGER: &str = "healthscope-breaker";

/// What came of a look.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    There(Map),
    /// It is not there, or may not be read.
    Not(String),
}

/// The ConfigMap at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    pub(super) version: String,
    map: Arc<ConfigMap>,
}

impl Map {
    pub(super) fn new(map: ConfigMap) -> Self {
        Self {
            version: map.metadata.resource_version.clone().unwrap_or_default(),
            map: Arc::new(map),
        }
    }

    pub(super) fn record(&self) -> Result<Record, String> {
        let text = self.map.data.as_ref().and_then(|data| data.get(KEY));
        Record::read(text.map(String::as_str))
    }

    /// The same with another record.
    pub(super) fn with(&self, record: &Record) -> ConfigMap {
        let mut map = ConfigMap::clone(&self.map);
        map.metadata.managed_fields = None;
        map.data
            .get_or_insert_default()
            .insert(KEY.to_owned(), record.write());
        map
    }

    /// Whether it is not the other, nor of the time before it: a watch may be behind what we wrote. Versions are numbers
    /// that grow; where one is not, what comes counts as news.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let number = |map: &Self| map.version.parse::<u64>();
        match (number(self), number(other)) {
            (Ok(own), Ok(other)) => own > other,
            (Err(_), _) | (_, Err(_)) => self.version != other.version,
        }
    }
}

pub(super) fn params() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    }
}

/// Follows it for ever.
pub(super) async fn follow(api: Api<ConfigMap>, found: watch::Sender<Option<Found>>) {
    loop {
        let now = match time::timeout(REQUEST, api.get_opt(CONFIG_MAP)).await {
            Ok(Ok(Some(map))) => Ok(map),
            Ok(Ok(None)) => Err(format!(
                "the ConfigMap {CONFIG_MAP} is not there; apply the chart again, which makes it empty"
            )),
            Ok(Err(error)) => Err(describe("get", &error)),
            Err(_) => Err(format!("no answer about the ConfigMap {CONFIG_MAP} in time")),
        };
        match now {
            Ok(map) => {
                tell(&found, Found::There(Map::new(map)));
                changes(&api, &found).await;
                time::sleep(MIN_WAIT).await;
            }
            Err(problem) => {
                tell(&found, Found::Not(problem));
                time::sleep(RETRY).await;
            }
        }
    }
}

/// Tells every change until the watch ends.
async fn changes(api: &Api<ConfigMap>, found: &watch::Sender<Option<Found>>) {
    let params = WatchParams::default()
        .fields(&format!("metadata.name={CONFIG_MAP}"))
        .timeout(WATCH_SECONDS);
    // From any version on: what there is now comes first, so that nothing can be too old.
    let events = match api.watch(&params, "0").await {
        Ok(events) => events,
        Err(error) => {
            let error = describe("watch", &error);
            tracing::debug!(error, "no watch; the breaker's record is read every now and then");
            time::sleep(RETRY).await;
            return;
        }
    };
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(WatchEvent::Added(map) | WatchEvent::Modified(map)) => {
                tell(found, Found::There(Map::new(map)));
            }
            Ok(WatchEvent::Bookmark(_)) => {}
            Ok(WatchEvent::Deleted(_) | WatchEvent::Error(_)) | Err(_) => return,
        }
    }
}

fn tell(found: &watch::Sender<Option<Found>>, now: Found) {
    found.send_if_modified(|found| {
        let is_news = found.as_ref() != Some(&now);
        *found = Some(now);
        is_news
    });
}

pub(super) fn describe(verb: &str, error: &kube::Error) -> String {
    let text = one_line(&chain(error), MAX_PROBLEM_BYTES);
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; our ServiceAccount needs get, watch and update on this ConfigMap"
        }
        _ => "",
    };
    format!("cannot {verb} the ConfigMap {CONFIG_MAP}: {text}{hint}")
}

#[cfg(test)]
mod tests {
    use {super::*, k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta};

    #[test]
    fn a_watch_that_is_behind_takes_nothing_back() {
        #[track_caller]
        fn check(own: &str, other: &str, expected: bool) {
            let map = |version: &str| {
                Map::new(ConfigMap {
                    metadata: ObjectMeta {
                        resource_version: Some(version.to_owned()),
                        ..ObjectMeta::default()
                    },
                    ..ConfigMap::default()
                })
            };
            assert_eq!(map(own).is_newer_than(&map(other)), expected, "{own} {other}");
        }
        check("10", "9", true);
        check("9", "10", false);
        check("10", "10", false);
        check("a", "10", true);
        check("a", "a", false);
    }
}
