//! Everything that talks to a Kubernetes API server: watches in, statuses out.
//!
//! Decides nothing about health: what is watched goes to the store, what the store says is written.

pub(crate) mod events;
pub mod lease;
pub(crate) mod raw;
pub(crate) mod request;
pub mod role;
pub(crate) mod watch;
pub(crate) mod writer;

use {
    healthscope_core::owner::Address,
    kube::{Client, Config},
};

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
    /// For the election alone, so that no slow answer holds up a renewal.
    pub(crate) lease_client: Client,
    /// The namespace that this process runs in, for what is its own there.
    pub(crate) namespace: String,
    /// Who this process is, in Events and Leases: the pod, or the host.
    pub(crate) instance: String,
    /// Where agents reach this process when another one sends them here.
    pub(crate) address: Option<Address>,
}

/// What this process is called in its cluster; what is `None` is found out.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The namespace of what is its own; otherwise that of its service account, or the kubeconfig's.
    pub namespace: Option<String>,
    /// Its pod; otherwise the host's name, which is the pod's in a pod.
    pub pod: Option<String>,
    /// Where agents reach this very process; otherwise other replicas send none here.
    pub address: Option<Address>,
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
    pub async fn infer(place: Place) -> Result<Self, KubernetesError> {
        let config = Config::infer().await.map_err(KubernetesError::Config)?;
        Self::connect(config, place)
    }

    /// The cluster of a configuration.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn connect(mut config: Config, place: Place) -> Result<Self, KubernetesError> {
        let Place {
            namespace,
            pod,
            address,
        } = place;
        // The writer and the election try again by themselves, and obey what the server asks for.
        config.default_retry = false;
        // Watches live for minutes; the API server's own bound ends them, and bookmarks show that they live.
        config.read_timeout = Some(watch::SILENCE);
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config.clone()).map_err(KubernetesError::Client)?;
        let lease_client = Client::try_from(config).map_err(KubernetesError::Client)?;
        Ok(Self {
            client,
            lease_client,
            namespace,
            instance: pod.unwrap_or_else(host_name),
            address,
        })
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    if name.is_empty() {
        "healthscope-aggregator".to_owned()
    } else {
        name.into_owned()
    }
}
