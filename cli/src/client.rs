//! The aggregator's HTTP API, as the commands need it.
//!
//! Every answer has a limit of size and of time. Nothing here retries: those commands that wait do (see
//! [`crate::follow`]).

use {
    crate::{
        args::{self, ServerArgs},
        cause::{self, MAX_DETAIL_BYTES},
        failure::Failure,
        server::Server,
        sse,
    },
    healthscope_core::view::{AgentView, ComponentSummary, ComponentView, ProbeView, ScopeView},
    healthscope_service::{telemetry::chain, tls, token},
    healthscope_shared::{
        health::Reason,
        name::{AgentName, InstanceName, Kind, Name, Namespace, ProbeName, ScopeKey},
        one_line,
        probe::outcome::ProbeState,
    },
    reqwest::{Response, StatusCode, Url, redirect},
    serde::{Deserialize, Serialize, de::DeserializeOwned},
    serde_json::Value,
    std::{net::SocketAddr, path::Path, time::Duration},
};

/// Longest answer read: a whole page of 10,000 components is a tenth of it.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long nothing may arrive of an answer. The aggregator sends a comment every ten seconds on an idle stream.
const SILENCE: Duration = Duration::from_secs(30);
/// Objects asked for at once: the API's maximum.
const PAGE: &str = "10000";

/// Speaks to one aggregator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Server,
    token: Option<token::Secret>,
    reached: Reached,
}

/// How an aggregator is reached, and so what can be done when it is not.
#[derive(Clone, Copy, Debug)]
enum Reached {
    /// At the address that was named.
    Directly,
    /// Through a port-forward to a pod.
    Tunnel,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach the aggregator at {address}: {cause}{advice}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
        /// What to do, in a line of its own; may be empty.
        advice: String,
    },
    /// Somebody answers, who cannot prove to be the aggregator.
    #[error("the certificate of the aggregator at {address} is not accepted: {cause}")]
    Untrusted {
        /// Where.
        address: String,
        /// Why, and what to do.
        cause: String,
    },
    /// The token is missing or wrong.
    #[error("the aggregator at {address} wants a token: {detail}{advice}")]
    Unauthorized {
        /// What to do; may be empty.
        advice: &'static str,
        /// Where.
        address: String,
        /// What it said.
        detail: String,
    },
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Another answer than 2xx.
    #[error("the aggregator at {address} answers {status}: {detail}")]
    Refused {
        /// Where.
        address: String,
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        detail: String,
    },
    /// Something that is not this API.
    #[error("{address} does not answer like a HealthScope aggregator: {cause}; is --server right?")]
    Strange {
        /// Where.
        address: String,
        /// What is odd.
        cause: String,
    },
}

impl ClientError {
    /// Whether the same may work a moment later: an aggregator that is not there yet, or busy.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Untrusted { .. } | Self::Unauthorized { .. } | Self::NotFound(_) | Self::Strange { .. } => {
                false
            }
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::error(error)
    }
}

/// A page of things.
#[derive(Debug, Deserialize)]
struct List<T> {
    items: Vec<T>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// The aggregator about itself; it says more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    #[serde(default)]
    pub(crate) last_transition: u64,
}

/// A probe with everything that says where it belongs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedProbe {
    pub(crate) namespace: Namespace,
    pub(crate) kind: Kind,
    pub(crate) component: Name,
    pub(crate) instance: InstanceName,
    pub(crate) agent: AgentName,
    #[serde(flatten)]
    pub(crate) probe: ProbeView,
}

/// What came out of a probe that was run now, one for each instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Runs {
    pub(crate) runs: Vec<RunOutcome>,
    /// Whether the component has more instances than were asked.
    #[serde(default)]
    pub(crate) truncated: bool,
}

/// What one run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunOutcome {
    pub(crate) instance: InstanceName,
    pub(crate) agent: AgentName,
    pub(crate) probe: String,
    /// `success`, `warning`, `failure` or `error`; absent when the run was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) output: String,
    pub(crate) latency_us: u64,
    /// State of the probe after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<ProbeState>,
}

/// Which changes are of interest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    /// `None` means all.
    pub(crate) namespace: Option<Namespace>,
    /// This scope and its members only.
    pub(crate) scope: Option<Name>,
    /// Not the new states of scopes, which are large.
    pub(crate) only_transitions: bool,
    /// Transitions of probes too.
    pub(crate) probes: bool,
}

/// An RFC 9457 problem document.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIME)
        .read_timeout(SILENCE)
        .user_agent(concat!("healthscope/", env!("CARGO_PKG_VERSION")))
}

impl Client {
    /// A client for the aggregator that the arguments name; connects to nothing yet.
    pub(crate) fn new(args: &ServerArgs) -> Result<Self, Failure> {
        let ServerArgs {
            server,
            token_file,
            ca,
        } = args;
        let token = token_file
            .as_deref()
            .map(token::read)
            .transpose()
            .map_err(|error| Failure::error(chain(&error)))?;
        let server = Server::parse(server, token.is_some()).map_err(Failure::usage)?;
        // Plain HTTP reads no trust store: a machine without one can still be asked.
        let tls = if server.is_tls() {
            let config = tls::client_config(ca.as_deref()).map_err(|error| Failure::error(chain(&error)))?;
            rustls::ClientConfig::clone(&config)
        } else {
            tls::install_provider();
            rustls::ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth()
        };
        let mut builder = builder();
        if server.is_loopback() {
            builder = builder.no_proxy();
        }
        let http = builder
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| Failure::error(chain(&error)))?;
        Ok(Self {
            http,
            server,
            token,
            reached: Reached::Directly,
        })
    }

    /// A client for the aggregator that has a certificate for `host`, signed by an authority in `authorities`, and
    /// that is reached through `tunnel` on this machine.
    ///
    /// The token goes only to a peer with that certificate.
    pub(crate) fn through(
        tunnel: SocketAddr,
        host: &str,
        authorities: &[u8],
        token: token::Secret,
    ) -> Result<Self, Failure> {
        let server =
            Server::parse(&format!("https://{host}:{}", tunnel.port()), true).map_err(Failure::error)?;
        let tls = tls::client_config_from_pem(Path::new("of the aggregator"), authorities)
            .map_err(|error| Failure::error(chain(&error)))?;
        let http = builder()
            .no_proxy()
            .resolve(host, tunnel)
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&tls))
            .build()
            .map_err(|error| Failure::error(chain(&error)))?;
        Ok(Self {
            http,
            server,
            token: Some(token),
            reached: Reached::Tunnel,
        })
    }

    /// For people: `http://127.0.0.1:7575`.
    pub(crate) fn address(&self) -> String {
        self.server.address()
    }

    /// The aggregator about itself.
    pub(crate) async fn status(&self) -> Result<Status, ClientError> {
        self.get(self.server.page(&["api", "v1", "status"])).await
    }

    /// All scopes of a namespace, or of all.
    pub(crate) async fn scopes(&self, namespace: Option<&Namespace>) -> Result<Vec<ScopeView>, ClientError> {
        self.list("scopes", namespace).await
    }

    /// One scope with all its components.
    pub(crate) async fn scope(&self, key: &ScopeKey) -> Result<ScopeView, ClientError> {
        let ScopeKey { namespace, name } = key;
        self.get(
            self.server
                .page(&["api", "v1", "scopes", namespace.as_str(), name.as_str()]),
        )
        .await
    }

    /// The HealthScope objects, as `kubectl get -A -o json` gives them.
    pub(crate) async fn manifests(&self) -> Result<Vec<Value>, ClientError> {
        let list: List<Value> = self.get(self.server.page(&["scopes"])).await?;
        Ok(list.items)
    }

    /// All components of a namespace, or of all.
    pub(crate) async fn components(
        &self,
        namespace: Option<&Namespace>,
    ) -> Result<Vec<ComponentSummary>, ClientError> {
        self.list("components", namespace).await
    }

    /// All probes of a namespace, or of all.
    pub(crate) async fn probes(
        &self,
        namespace: Option<&Namespace>,
    ) -> Result<Vec<ListedProbe>, ClientError> {
        self.list("probes", namespace).await
    }

    /// One component with its instances and probes.
    pub(crate) async fn component(
        &self,
        namespace: &Namespace,
        name: &Name,
    ) -> Result<ComponentView, ClientError> {
        self.get(
            self.server
                .page(&["api", "v1", "components", namespace.as_str(), name.as_str()]),
        )
        .await
    }

    /// All agents.
    pub(crate) async fn agents(&self) -> Result<Vec<AgentView>, ClientError> {
        self.list("agents", None).await
    }

    /// Runs a probe now, on every instance, and waits for what comes out, at most `wait`.
    pub(crate) async fn run_probe(
        &self,
        namespace: &Namespace,
        component: &Name,
        probe: &ProbeName,
        wait: Option<Duration>,
    ) -> Result<Runs, ClientError> {
        let (namespace, component, probe) = (namespace.as_str(), component.as_str(), probe.as_str());
        let place = [
            "api",
            "v1",
            "components",
            namespace,
            component,
            "probes",
            probe,
            "run",
        ];
        let mut url = self.server.page(&place);
        if let Some(wait) = wait {
            let seconds = wait.as_secs_f64().ceil();
            url.query_pairs_mut()
                .append_pair("timeoutSeconds", &format!("{seconds}"));
        }
        // A probe may take longer than an answer usually is waited for.
        let request = self
            .authorized(self.http.post(url))
            .json(&serde_json::json!({}))
            .timeout(wait.unwrap_or(SILENCE) + SILENCE);
        self.read(self.send(request).await?).await
    }

    /// Changes from now on, or after the event `after`.
    pub(crate) async fn events(
        &self,
        interest: &Interest,
        after: Option<&str>,
    ) -> Result<Events, ClientError> {
        let Interest {
            namespace,
            scope,
            only_transitions,
            probes,
        } = interest;
        let mut url = self.server.page(&["api", "v1", "stream"]);
        let mut query = url.query_pairs_mut();
        if let Some(namespace) = namespace {
            query.append_pair("namespace", namespace.as_str());
        }
        if let Some(scope) = scope {
            query.append_pair("scope", scope.as_str());
        }
        if *only_transitions {
            query.append_pair("events", "snapshot,transition");
        }
        if !probes {
            query.append_pair("level", "scope,component");
        }
        drop(query);
        let mut request = self
            .authorized(self.http.get(url))
            .header("accept", "text/event-stream");
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        let response = self.send(request).await?;
        Ok(Events {
            response,
            parser: sse::Parser::default(),
            ready: Vec::new().into_iter(),
            client: self.clone(),
        })
    }

    async fn list<T: DeserializeOwned>(
        &self,
        what: &str,
        namespace: Option<&Namespace>,
    ) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut url = self.server.page(&["api", "v1", what]);
            let mut query = url.query_pairs_mut();
            query.append_pair("limit", PAGE);
            if let Some(namespace) = namespace {
                query.append_pair("namespace", namespace.as_str());
            }
            if let Some(after) = &after {
                query.append_pair("continue", after);
            }
            drop(query);
            let page: List<T> = self.get(url).await?;
            let is_empty = page.items.is_empty();
            items.extend(page.items);
            after = page.next;
            if after.is_none() || is_empty {
                return Ok(items);
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, ClientError> {
        let request = self.authorized(self.http.get(url));
        self.read(self.send(request).await?).await
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends a request; the answer is a good one.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let address = self.address();
        let body = read_body(response).await.unwrap_or_default();
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        let said = [problem.detail, problem.title]
            .into_iter()
            .find(|text| !text.is_empty());
        let detail = one_line(
            &said.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()),
            MAX_DETAIL_BYTES,
        );
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ClientError::Unauthorized {
                address,
                detail,
                advice: match self.reached {
                    Reached::Directly => "; name its file with --token-file",
                    Reached::Tunnel => "",
                },
            },
            StatusCode::NOT_FOUND => ClientError::NotFound(detail),
            _ => ClientError::Refused {
                address,
                status,
                detail,
            },
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let strange = |cause: String| ClientError::Strange {
            address: self.address(),
            cause: one_line(&cause, 200),
        };
        let body = read_body(response).await.map_err(strange)?;
        serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let address = self.address();
        if let Some(error) = cause::certificate(error) {
            let cause = match self.reached {
                Reached::Directly => certificate_words(error),
                Reached::Tunnel => one_line(&error.to_string(), MAX_DETAIL_BYTES),
            };
            return ClientError::Untrusted { address, cause };
        }
        self.lost(plain_cause(error))
    }

    fn lost(&self, cause: String) -> ClientError {
        let advice = match self.reached {
            Reached::Directly => format!(
                "\nis `{} up` running? --server or HEALTHSCOPE_SERVER names another address",
                args::program()
            ),
            Reached::Tunnel => String::new(),
        };
        ClientError::Unreachable {
            address: self.address(),
            cause,
            advice,
        }
    }
}

/// What is wrong with a certificate, for those who have not read X.509.
fn certificate_words(error: &rustls::CertificateError) -> String {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };
    match error {
        UnknownIssuer => "nobody that is trusted here has signed it; name its authority with --ca".to_owned(),
        Expired | ExpiredContext { .. } => "it has expired".to_owned(),
        NotValidForName | NotValidForNameContext { .. } => {
            "it is for another name; use the name that it is for in --server".to_owned()
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is an authority's (CA:TRUE), which cannot be a server's; make one with CA:FALSE".to_owned()
        }
        other => one_line(&other.to_string(), MAX_DETAIL_BYTES),
    }
}

fn plain_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    cause::words(error)
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER_BYTES => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(format!("an answer of more than {MAX_ANSWER_BYTES} bytes")),
            Err(error) => return Err(plain_cause(&error)),
        }
    }
}

/// Changes as they happen.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    parser: sse::Parser,
    ready: std::vec::IntoIter<sse::Event>,
    client: Client,
}

impl Events {
    /// The next event; an error when the connection ends, however it ends. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<sse::Event, ClientError> {
        loop {
            if let Some(event) = self.ready.next() {
                return Ok(event);
            }
            let lost = |cause: String| self.client.lost(cause);
            let chunk = match self.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Err(lost("the connection was closed".into())),
                Err(error) => return Err(lost(plain_cause(&error))),
            };
            let events = self.parser.push(&chunk).map_err(|error| ClientError::Strange {
                address: self.client.address(),
                cause: error.to_string(),
            })?;
            self.ready = events.into_iter();
        }
    }
}
