//! Everything that talks to a Kubernetes API server: watches in, statuses out.
//!
//! Decides nothing about health: what is watched goes to the store, what the store says is written.

pub mod lease;
pub(crate) mod raw;
pub mod role;
pub(crate) mod watch;

use kube::{Client, Config};

/// Why the API server cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// Neither in a cluster nor is there a kubeconfig.
    #[error(
        "cannot find a Kubernetes cluster: neither is this a pod with a service account, nor does KUBECONFIG or \
         ~/.kube/config name one"
    )]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("cannot connect to the Kubernetes cluster")]
    Client(#[source] kube::Error),
}

/// A cluster to serve.
#[derive(Clone)]
pub struct Kubernetes {
    pub(crate) client: Client,
    /// The namespace that this process runs in, for what is its own there.
    pub(crate) namespace: String,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// The cluster that this process runs in, or that `KUBECONFIG` or `~/.kube/config` names.
    ///
    /// # Errors
    /// When there is none or its configuration cannot be used. Whether it answers is not asked.
    pub async fn infer() -> Result<Self, KubernetesError> {
        let config = Config::infer().await.map_err(KubernetesError::Config)?;
        Self::connect(config)
    }

    fn connect(mut config: Config) -> Result<Self, KubernetesError> {
        // Watches live for minutes; the API server's own bound ends them, and bookmarks show that they live.
        config.read_timeout = Some(watch::SILENCE);
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(KubernetesError::Client)?;
        Ok(Self { client, namespace })
    }
}
