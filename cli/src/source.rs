//! Where scopes come from: an aggregator's API, or the HealthScope objects of a cluster. What is printed is the same.

use {
    crate::{
        args::{Backend, Global, KubernetesArgs},
        client::{Client, ClientError, Interest},
        cluster::{Cluster, DetailError, error::ClusterError, watch::Watch},
        failure::Failure,
        follow::Follow,
    },
    healthscope_core::view::ScopeView,
    healthscope_shared::name::{Namespace, ScopeKey},
    serde_json::Value,
    std::collections::BTreeMap,
};

/// Where scopes are read.
#[derive(Clone)]
pub(crate) enum Source {
    /// An aggregator.
    Server(Client),
    /// A Kubernetes cluster.
    Cluster(Box<Cluster>),
}

/// A scope as its source has it.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// What is known of it.
    pub(crate) view: ScopeView,
    /// Why that is not about the scope as it is wanted now: its status is older than its spec.
    pub(crate) behind: Option<String>,
    /// The Kubernetes object, where it was asked for.
    pub(crate) object: Option<Value>,
}

impl Scope {
    /// The number of its object's last change, 0 where it has none: API servers count up.
    pub(crate) fn version(&self) -> u64 {
        let version = self
            .object
            .as_ref()
            .map(|object| &object["metadata"]["resourceVersion"]);
        version
            .and_then(Value::as_str)
            .and_then(|version| version.parse().ok())
            .unwrap_or(0)
    }
}

/// Which scopes are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a> {
    /// `None` means all.
    pub(crate) namespace: Option<&'a Namespace>,
    /// Empty means all.
    pub(crate) names: &'a [String],
    /// A label selector.
    pub(crate) labels: Option<&'a str>,
    /// With their Kubernetes objects.
    pub(crate) whole: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Of an aggregator.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// Of a cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Of an aggregator in a cluster.
    #[error("only an aggregator knows that, and it cannot be asked: {0}")]
    Detail(#[from] DetailError),
    /// Labels are Kubernetes' own.
    #[error("--selector asks the API server for labels, and here an aggregator is asked")]
    NoLabels,
}

impl SourceError {
    /// Whether the same may work a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Server(error) => error.is_passing(),
            Self::Cluster(error) => error.is_passing(),
            Self::Detail(_) | Self::NoLabels => false,
        }
    }

    /// Whether there is simply no such scope.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Server(ClientError::NotFound(_)) | Self::Cluster(ClusterError::NotFound(_))
        )
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::NoLabels => Self::usage(error),
            SourceError::Server(_) | SourceError::Cluster(_) | SourceError::Detail(_) => Self::error(error),
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::error(error)
    }
}

impl Source {
    /// What the arguments name, and the namespace that is meant when none is typed; asks nobody yet.
    pub(crate) async fn new(backend: Backend, global: &Global) -> Result<(Self, Namespace), Failure> {
        let Global {
            server,
            kubernetes,
            namespace,
        } = global;
        let source = match backend {
            Backend::Server => Self::Server(Client::new(server)?),
            Backend::Cluster => Self::cluster(kubernetes).await?,
        };
        let namespace = match (namespace, &source) {
            (Some(name), _) => Namespace::new(name).map_err(Failure::usage)?,
            (None, Self::Server(_)) => Namespace::default_namespace(),
            (None, Self::Cluster(cluster)) => cluster.namespace()?,
        };
        Ok((source, namespace))
    }

    async fn cluster(args: &KubernetesArgs) -> Result<Self, Failure> {
        Ok(Self::Cluster(Box::new(Cluster::connect(args).await?)))
    }

    /// Who is asked, for people: `http://127.0.0.1:7575`, `https://10.0.0.1:6443`.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Server(client) => client.address(),
            Self::Cluster(cluster) => cluster.address(),
        }
    }

    /// The scopes that are wanted; those that do not exist are left out, others may be among them.
    pub(crate) async fn scopes(&self, wanted: Selection<'_>) -> Result<Vec<Scope>, SourceError> {
        let Selection {
            namespace,
            names,
            labels,
            whole,
        } = wanted;
        match self {
            Self::Cluster(cluster) => Ok(cluster.scopes(namespace, names, labels).await?),
            Self::Server(_) if labels.is_some() => Err(SourceError::NoLabels),
            Self::Server(client) => {
                let views = client.scopes(namespace).await?;
                let mut objects = if whole {
                    objects(client).await?
                } else {
                    BTreeMap::new()
                };
                let scopes = views.into_iter().map(|view| Scope {
                    object: objects.remove(&format!("{}/{}", view.namespace, view.name)),
                    view,
                    behind: None,
                });
                Ok(scopes.collect())
            }
        }
    }

    /// One scope.
    pub(crate) async fn scope(&self, key: &ScopeKey) -> Result<Scope, SourceError> {
        match self {
            Self::Cluster(cluster) => Ok(cluster.scope(key).await?),
            Self::Server(client) => Ok(Scope {
                view: client.scope(key).await?,
                behind: None,
                object: None,
            }),
        }
    }

    /// The aggregator: the one that was named, or one in the cluster, through a tunnel to its pod.
    pub(crate) async fn aggregator(&self) -> Result<Client, SourceError> {
        match self {
            Self::Server(client) => Ok(client.clone()),
            Self::Cluster(cluster) => Ok(cluster.aggregator().await?),
        }
    }
}

/// The Kubernetes objects that an aggregator has, by `namespace/name`.
async fn objects(client: &Client) -> Result<BTreeMap<String, Value>, ClientError> {
    let text =
        |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or("default").to_owned();
    let objects = client.manifests().await?;
    let named = objects.into_iter().map(|object| {
        (
            format!("{}/{}", text(&object, "namespace"), text(&object, "name")),
            object,
        )
    });
    Ok(named.collect())
}

/// Staying beside a source: a wake-up when something may have changed.
pub(crate) enum Wake<'a> {
    /// The event stream of an aggregator.
    Server(Box<Follow<'a>>),
    /// A watch of the cluster.
    Cluster(Box<Watch>),
}

impl<'a> Wake<'a> {
    /// Connects; a source that cannot be reached is an error here.
    pub(crate) async fn start(
        source: &'a Source,
        interest: Interest,
        labels: Option<&str>,
    ) -> Result<Self, SourceError> {
        match source {
            Source::Server(_) if labels.is_some() => Err(SourceError::NoLabels),
            Source::Server(client) => Ok(Self::Server(Box::new(Follow::start(client, interest).await?))),
            Source::Cluster(cluster) => {
                let mut watch = cluster.watch(&interest, labels);
                watch.synced().await?;
                Ok(Self::Cluster(Box::new(watch)))
            }
        }
    }

    /// Connects when it is possible.
    pub(crate) fn lazily(source: &'a Source, interest: Interest) -> Self {
        match source {
            Source::Server(client) => Self::Server(Box::new(Follow::lazily(client, interest))),
            Source::Cluster(cluster) => Self::Cluster(Box::new(cluster.watch(&interest, None))),
        }
    }

    /// Waits until something may have changed; any number of events that are there already count as one.
    pub(crate) async fn changed(&mut self) -> Result<(), Failure> {
        match self {
            Self::Server(follow) => follow.changed().await,
            Self::Cluster(watch) => Ok(watch.changed().await?),
        }
    }

    /// All scopes that are followed, where they are known without asking again.
    pub(crate) fn scopes(&self) -> Option<Vec<Scope>> {
        match self {
            Self::Server(_) => None,
            Self::Cluster(watch) => Some(watch.scopes()),
        }
    }
}
