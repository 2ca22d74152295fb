//! What only an aggregator knows: a tunnel to one of its pods, with the user's own token.
//!
//! The API server's service proxy strips `Authorization`, so this is a port-forward, as `kubectl port-forward` makes
//! it. The token goes through TLS to a peer that has proven to be the aggregator, or not at all.

use {
    super::{Cluster, error::ClusterError},
    crate::{cause, client::Client},
    healthscope_service::token::Secret,
    healthscope_shared::{name::Namespace, one_line},
    http::{HeaderValue, Request, Response, header::AUTHORIZATION},
    k8s_openapi::api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod},
    },
    kube::{
        Api,
        api::{ListParams, Portforwarder},
        client::{Body, ConfigExt},
    },
    std::{net::Ipv4Addr, sync::Arc, time::Duration},
    tokio::{
        net::{TcpListener, TcpStream},
        sync::Semaphore,
    },
    tower::{BoxError, Layer, ServiceExt, service_fn},
};

/// Holds the certificates of the aggregator's authorities.
const AUTHORITY_CONFIG_MAP: &str = "healthscope-ca";
/// Where they are in it.
const AUTHORITY_KEY: &str = "ca.crt";
/// The aggregator's Service: its certificate is for `healthscope-aggregator.NAMESPACE.svc`.
const SERVICE: &str = "healthscope-aggregator";
/// The Lease that says which replica serves.
const LEASE: &str = "healthscope-aggregator";
/// The name of the port in the aggregator's pod that speaks TLS.
const PORT_NAME: &str = "https";
/// That port where no port has the name.
const DEFAULT_PORT: u16 = 7575;
/// How long finding the pod and opening the tunnel may take: the answer without detail is not held up for longer.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// Connections through the tunnel at once: a command asks one thing at a time, beside one stream of events.
const MAX_CONNECTIONS: usize = 8;
/// Pods looked at for a ready one.
const MAX_PODS: u32 = 50;

/// Why there is nothing from an aggregator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetailError {
    /// The user has no token.
    #[error(
        "your kubeconfig has no token for this cluster (a client certificate cannot be passed on), and the aggregator \
         takes nothing else"
    )]
    NoToken,
    /// The user's token cannot be had.
    #[error("your token cannot be had: {0}")]
    Token(String),
    /// The API server says no.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// No pod to connect to.
    #[error(
        "no aggregator is ready in the namespace {namespace} (pods with the labels {selector}); \
         --aggregator-namespace and --aggregator-selector name others"
    )]
    NoPod {
        /// Where.
        namespace: String,
        /// What was looked for.
        selector: String,
    },
    /// Nothing to verify the aggregator with.
    #[error(
        "the ConfigMap {AUTHORITY_CONFIG_MAP} in the namespace {0} with the aggregator's authority ({AUTHORITY_KEY}) \
         cannot be used, and nothing is sent to somebody who cannot be verified: {1}"
    )]
    NoAuthority(String, String),
    /// This machine has no port left, or the client cannot be made.
    #[error("{0}")]
    Local(String),
    /// It takes too long.
    #[error("there was no answer within {} seconds", OPEN_TIME.as_secs())]
    TooSlow,
}

impl Cluster {
    /// A client for an aggregator in the cluster. The tunnel lives as long as the process.
    pub(crate) async fn aggregator(&self) -> Result<Client, DetailError> {
        tokio::time::timeout(OPEN_TIME, self.open())
            .await
            .map_err(|_| DetailError::TooSlow)?
    }

    /// The certificates of the authorities that sign for the aggregator, PEM.
    pub(crate) async fn trusted(&self) -> Result<String, DetailError> {
        let namespace = self.home()?;
        tokio::time::timeout(OPEN_TIME, self.authorities(&namespace))
            .await
            .map_err(|_| DetailError::TooSlow)?
    }

    /// The aggregator's namespace.
    fn home(&self) -> Result<Namespace, DetailError> {
        Namespace::new(&self.args.aggregator_namespace).map_err(|error| DetailError::Local(error.to_string()))
    }

    async fn open(&self) -> Result<Client, DetailError> {
        let token = self.token().await?;
        let namespace = self.home()?;
        let authorities = self.authorities(&namespace).await?;
        let tunnel = Tunnel {
            cluster: self.clone(),
            namespace: namespace.clone(),
        };
        // What stands in the way is said here and now. Later connections look again, because pods come and go.
        let first = tunnel.forward().await?;
        let local = |error: &dyn std::fmt::Display| DetailError::Local(error.to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(|error| local(&error))?;
        let address = listener.local_addr().map_err(|error| local(&error))?;
        tokio::spawn(tunnel.serve(listener, first));
        let host = format!("{SERVICE}.{namespace}.svc");
        Client::through(address, &host, authorities.as_bytes(), token)
            .map_err(|failure| DetailError::NoAuthority(namespace.to_string(), failure.to_string()))
    }

    /// The token that this user shows to the API server.
    async fn token(&self) -> Result<Secret, DetailError> {
        let unusable = |error: &(dyn std::error::Error + 'static)| DetailError::Token(cause::words(error));
        let layer = self.config.auth_layer().map_err(|error| unusable(&error))?;
        let Some(layer) = layer else {
            return Err(DetailError::NoToken);
        };
        // The layer that puts credentials on requests knows files, plugins and renewals: it is asked what it would put.
        let reader = service_fn(|request: Request<Body>| async move {
            Ok::<_, BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
        });
        let answer = layer
            .layer(reader)
            .oneshot(Request::new(Body::empty()))
            .await
            .map_err(|error| DetailError::Token(one_line(&error.to_string(), cause::MAX_DETAIL_BYTES)))?;
        let header: Option<HeaderValue> = answer.into_body();
        let header = header.ok_or(DetailError::NoToken)?;
        let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        match token {
            Some(token) => Ok(Secret::new(token)),
            // A password of old.
            None => Err(DetailError::NoToken),
        }
    }

    async fn authorities(&self, namespace: &Namespace) -> Result<String, DetailError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace.as_str());
        let found = self.answer(api.get(AUTHORITY_CONFIG_MAP)).await;
        let refused = |cause: &dyn std::fmt::Display| {
            DetailError::NoAuthority(namespace.to_string(), cause.to_string())
        };
        let map = found.map_err(|error| refused(&error.about("get", "configmaps", namespace)))?;
        map.data
            .and_then(|mut data| data.remove(AUTHORITY_KEY))
            .ok_or_else(|| refused(&format!("it has no {AUTHORITY_KEY}")))
    }
}

/// Carries connections of this machine to a pod.
struct Tunnel {
    cluster: Cluster,
    namespace: Namespace,
}

/// A pod that takes connections.
struct Place {
    pod: String,
    port: u16,
}

impl Tunnel {
    async fn find(&self) -> Result<Place, DetailError> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.namespace.as_str());
        let selector = &self.cluster.args.aggregator_selector;
        let parameters = ListParams::default().labels(selector).limit(MAX_PODS);
        let pods = self
            .cluster
            .answer(api.list(&parameters))
            .await
            .map_err(|error| error.about("list", "pods", &self.namespace))?;
        let serving = self.serving().await;
        let is_serving = |pod: &Pod| serving.is_some() && pod.metadata.name == serving;
        let mut ready: Vec<&Pod> = pods.items.iter().filter(|pod| is_ready(pod)).collect();
        ready.sort_by_key(|pod| !is_serving(pod));
        ready
            .into_iter()
            .find_map(place)
            .ok_or_else(|| DetailError::NoPod {
                namespace: self.namespace.to_string(),
                selector: selector.clone(),
            })
    }

    /// The pod of the replica that serves, as the Lease says. Where that cannot be read any ready one is asked: without
    /// replicas it is the right one, and one that stands by still answers what it can.
    async fn serving(&self) -> Option<String> {
        let api: Api<Lease> = Api::namespaced(self.cluster.client.clone(), self.namespace.as_str());
        let lease = self.cluster.answer(api.get(LEASE)).await.ok()?;
        let holder = lease.spec?.holder_identity?;
        // The pod's name, and what tells its processes apart.
        holder.rsplit_once('_').map(|(pod, _)| pod.to_owned())
    }

    async fn serve(self, listener: TcpListener, first: Forward) {
        let mut first = Some(first);
        let tunnel = Arc::new(self);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let tunnel = Arc::clone(&tunnel);
            let open = first.take();
            tokio::spawn(async move {
                let forward = match open {
                    Some(forward) => Ok(forward),
                    None => tunnel.forward().await,
                };
                // Without one the connection is closed, and the client says what that means for it.
                if let Ok(forward) = forward {
                    forward.carry(stream).await;
                }
                drop(permit);
            });
        }
    }

    /// Opens a way to the aggregator's port.
    async fn forward(&self) -> Result<Forward, DetailError> {
        let Place { pod, port } = self.find().await?;
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.namespace.as_str());
        let forwarder = self
            .cluster
            .answer(api.portforward(&pod, &[port]))
            .await
            .map_err(|error| error.about("create", "pods/portforward", &self.namespace))?;
        Ok(Forward { forwarder, port })
    }
}

/// An open way to the aggregator's port.
struct Forward {
    forwarder: Portforwarder,
    port: u16,
}

impl Forward {
    async fn carry(mut self, mut stream: TcpStream) {
        if let Some(mut remote) = self.forwarder.take_stream(self.port) {
            // Whichever end goes first, both are closed.
            let _ended = tokio::io::copy_bidirectional(&mut stream, &mut remote).await;
        }
        self.forwarder.abort();
    }
}

fn is_ready(pod: &Pod) -> bool {
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    !is_leaving
        && conditions.is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

fn place(pod: &Pod) -> Option<Place> {
    let ports = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let named = ports
        .filter(|port| port.name.as_deref() == Some(PORT_NAME))
        .find_map(|port| u16::try_from(port.container_port).ok());
    Some(Place {
        pod: pod.metadata.name.clone()?,
        port: named.unwrap_or(DEFAULT_PORT),
    })
}
