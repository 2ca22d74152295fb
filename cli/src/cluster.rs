//! A Kubernetes cluster through the user's kubeconfig: the HealthScope objects in it.
//!
//! Reads only. Nothing here retries what a person waits for: [`watch`] does, as watches do.

use {
    crate::{args::KubernetesArgs, cause, source::Scope},
    error::ClusterError,
    healthscope_crd::HealthScope,
    healthscope_service::tls,
    healthscope_shared::name::{Name, Namespace, ScopeKey},
    k8s_openapi::api::core::v1::{Event, Pod},
    kube::{
        Api, Client, Config,
        api::{ApiResource, DynamicObject, ListParams},
        config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    },
    serde_json::{Value, json},
    std::time::Duration,
};

pub(crate) mod changes;
mod detail;
pub(crate) mod error;
mod object;
pub(crate) mod watch;

pub(crate) use detail::DetailError;

/// How long a connection to the API server may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long one answer of the API server may take: a list of 500 objects needs a fraction.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Objects asked for at once, as kubectl does.
const PAGE: u32 = 500;

/// One cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    config: Config,
    resource: ApiResource,
    args: KubernetesArgs,
}

impl Cluster {
    /// The cluster that the arguments and the kubeconfig name; connects to nothing yet.
    pub(crate) async fn connect(args: &KubernetesArgs) -> Result<Self, ClusterError> {
        tls::install_provider();
        let mut config = configuration(args).await?;
        config.connect_timeout = Some(CONNECT_TIME);
        let address = config.cluster_url.to_string();
        // Runs the kubeconfig's credential plugin, if it has one.
        let client = Client::try_from(config.clone()).map_err(|error| ClusterError::of(&error, &address))?;
        Ok(Self {
            client,
            config,
            resource: ApiResource::erase::<HealthScope>(&()),
            args: args.clone(),
        })
    }

    /// The client itself, for who asks for objects of many kinds.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace of the kubeconfig's context.
    pub(crate) fn namespace(&self) -> Result<Namespace, ClusterError> {
        let name = &self.config.default_namespace;
        Namespace::new(name).map_err(|error| ClusterError::Kubeconfig(error.to_string()))
    }

    /// Labels, annotations and owners of a namespace's pods, the first page of them.
    pub(crate) async fn pods_metadata(&self, namespace: &Namespace) -> Result<Vec<Value>, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace.as_str());
        let parameters = ListParams::default().limit(PAGE);
        let pods = self
            .answer(api.list_metadata(&parameters))
            .await
            .map_err(|error| error.about("list", "pods", namespace))?;
        let object = |metadata| json!({"metadata": metadata});
        Ok(pods.items.into_iter().map(|pod| object(pod.metadata)).collect())
    }

    /// The Events of a namespace about pods that were made without an agent, the first page of them.
    pub(crate) async fn injection_skips(&self, namespace: &Namespace) -> Result<Vec<Value>, ClusterError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace.as_str());
        let parameters = ListParams::default()
            .fields("reason=InjectionSkipped")
            .limit(PAGE);
        let events = self
            .answer(api.list(&parameters))
            .await
            .map_err(|error| error.about("list", "events", namespace))?;
        Ok(events.items.iter().map(|event| json!(event)).collect())
    }

    /// For people: `https://10.0.0.1:6443`.
    pub(crate) fn address(&self) -> String {
        self.config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned()
    }

    /// The scopes of a namespace, or of all; with `names` these alone, and those that do not exist are left out.
    pub(crate) async fn scopes(
        &self,
        namespace: Option<&Namespace>,
        names: &[String],
        labels: Option<&str>,
    ) -> Result<Vec<Scope>, ClusterError> {
        match namespace {
            // One by one: a user may be allowed to read these and not to list.
            Some(namespace) if !names.is_empty() && labels.is_none() => {
                let mut found = Vec::new();
                for name in names {
                    let key = ScopeKey {
                        namespace: namespace.clone(),
                        name: Name::new(name).map_err(|error| ClusterError::Strange(error.to_string()))?,
                    };
                    match self.scope(&key).await {
                        Ok(scope) => found.push(scope),
                        Err(ClusterError::NotFound(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(found)
            }
            Some(_) | None => self.list(namespace, labels).await,
        }
    }

    /// One scope.
    pub(crate) async fn scope(&self, key: &ScopeKey) -> Result<Scope, ClusterError> {
        let api = self.api(Some(&key.namespace));
        match self.answer(api.get(key.name.as_str())).await {
            Ok(object) => object::scope(&object),
            Err(ClusterError::NotFound(_)) => Err(ClusterError::NotFound(format!(
                "there is no HealthScope {} in the namespace {}",
                key.name, key.namespace
            ))),
            Err(error) => Err(error.asking_for("get", Some(&key.namespace))),
        }
    }

    async fn list(
        &self,
        namespace: Option<&Namespace>,
        labels: Option<&str>,
    ) -> Result<Vec<Scope>, ClusterError> {
        let api = self.api(namespace);
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.label_selector = labels.map(str::to_owned);
        let mut found = Vec::new();
        loop {
            let page = self
                .answer(api.list(&parameters))
                .await
                .map_err(|error| error.asking_for("list", namespace))?;
            for object in &page.items {
                found.push(object::scope(object)?);
            }
            match page.metadata.continue_ {
                Some(next) if !next.is_empty() => parameters.continue_token = Some(next),
                Some(_) | None => return Ok(found),
            }
        }
    }

    fn api(&self, namespace: Option<&Namespace>) -> Api<DynamicObject> {
        let client = self.client.clone();
        match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace.as_str(), &self.resource),
            None => Api::all_with(client, &self.resource),
        }
    }

    /// Waits for an answer, within a limit.
    async fn answer<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(ANSWER_TIME, request).await {
            Ok(answer) => answer.map_err(|error| ClusterError::of(&error, &self.address())),
            Err(_) => Err(ClusterError::Unreachable {
                address: self.address(),
                cause: format!("no answer within {} seconds", ANSWER_TIME.as_secs()),
            }),
        }
    }
}

/// Reads the kubeconfig as kubectl finds it; inside a pod without one, the pod's own account.
async fn configuration(args: &KubernetesArgs) -> Result<Config, ClusterError> {
    let KubernetesArgs {
        kubernetes: _,
        context,
        kubeconfig,
        aggregator_namespace: _,
        aggregator_selector: _,
    } = args;
    let unreadable = |error: KubeconfigError| ClusterError::Kubeconfig(cause::words(&error));
    let read = match kubeconfig {
        Some(file) => Kubeconfig::read_from(file).map_err(unreadable)?,
        None => match Kubeconfig::read() {
            Ok(read) => read,
            Err(error) if is_missing(&error) && std::env::var_os("KUBECONFIG").is_none() => {
                return Config::incluster().map_err(|_| ClusterError::NotConfigured);
            }
            Err(error) => return Err(unreadable(error)),
        },
    };
    let wanted = context.as_ref().or(read.current_context.as_ref());
    let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
        return Err(ClusterError::NoContext {
            known: contexts(&read),
        });
    };
    if !read.contexts.iter().any(|known| known.name == *wanted) {
        return Err(ClusterError::UnknownContext {
            name: wanted.clone(),
            known: contexts(&read),
        });
    }
    let options = KubeConfigOptions {
        context: Some(wanted.clone()),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(read, &options)
        .await
        .map_err(unreadable)
}

fn is_missing(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn contexts(kubeconfig: &Kubeconfig) -> Vec<String> {
    kubeconfig
        .contexts
        .iter()
        .map(|context| context.name.clone())
        .collect()
}
