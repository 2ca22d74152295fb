//! Agents' connections: the WebSocket handshake, and a task for each session afterwards.
//!
//! Decides nothing about health and holds no state of agents beyond their session: what they say goes to the store.

use {
    crate::{
        bus::StoreSender,
        certificates::State,
        config::{AgentAuth, Timing},
        identity::{PodIdentity, Refused},
        kubernetes::role::Role,
        listen::From,
        mailbox::{Leave, NoSession, Sessions},
        metrics::AgentMetrics,
        site::{access::bearer, problem::Problem},
    },
    axum::{
        body::Body,
        response::{IntoResponse, Response},
    },
    healthscope_service::tasks::Tasks,
    healthscope_shared::{
        session::peer,
        wire::{self, Redirect},
    },
    http::{
        HeaderMap, Method, Request, StatusCode, Version,
        header::{
            ALLOW, CONNECTION, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
            SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
        },
    },
    hyper::body::Incoming,
    std::{sync::Arc, time::Duration},
    tokio::sync::watch,
    tokio_tungstenite::tungstenite::handshake::derive_accept_key,
    tokio_util::sync::CancellationToken,
};

pub(crate) mod quota;
mod session;
mod socket;

use {
    quota::{Counted, Quota},
    session::Guest,
};

/// Length of `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455, 4.1).
const KEY_LENGTH: usize = 24;

/// Takes agents in, or sends them where they are taken in.
pub(crate) struct Ingest {
    pub(crate) auth: AgentAuth,
    pub(crate) quota: Arc<Quota>,
    pub(crate) store: StoreSender,
    /// Whether agents are taken in, or sent to the replica that does.
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) sessions: Arc<Sessions>,
    /// Certificates of our own, whose authorities agents are told of.
    pub(crate) certificates: Option<watch::Receiver<State>>,
    pub(crate) timing: Timing,
    pub(crate) limits: peer::Limits,
    pub(crate) metrics: AgentMetrics,
    pub(crate) tasks: Tasks,
}

impl Ingest {
    /// Answers a request for [`wire::PATH`]: 101, and the connection becomes a session; or a problem.
    pub(crate) async fn upgrade(self: &Arc<Self>, from: From, request: Request<Incoming>) -> Response {
        self.try_upgrade(from, request).await.unwrap_or_else(|problem| {
            self.metrics.refused_handshakes.inc();
            problem.into_response()
        })
    }

    async fn try_upgrade(
        self: &Arc<Self>,
        from: From,
        mut request: Request<Incoming>,
    ) -> Result<Response, Problem> {
        let key = check_handshake(&request)?;
        let guest = self.check_identity(request.headers()).await?;
        let open = self.sessions.open().map_err(|reason| match reason {
            NoSession::Full => Problem::unavailable(
                "as many agents are connected as --max-agents allows; try again later",
                "10",
            ),
            NoSession::Draining => Problem::unavailable("the aggregator is shutting down", "2"),
        })?;
        let accept = derive_accept_key(key.as_bytes());
        let accept = HeaderValue::from_str(&accept).expect("base64 is fit for a header");
        let upgrade = hyper::upgrade::on(&mut request);
        let ingest = self.clone();
        // The name comes without the peer: a hundred thousand names would be most of what the list of tasks holds.
        self.tasks.spawn_small("session", async move {
            ingest.converse(from, upgrade, open, guest).await;
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(wire::SUBPROTOCOL),
        );
        Ok(response)
    }

    /// Who wants to be let in; nobody in particular where agents share a token or need none.
    async fn check_identity(&self, headers: &HeaderMap) -> Result<Option<Guest>, Problem> {
        match &self.auth {
            AgentAuth::Open => Ok(None),
            AgentAuth::Token(token) => {
                let is_known = bearer(headers).is_some_and(|candidate| token.matches(candidate));
                if is_known { Ok(None) } else { Err(unauthorized()) }
            }
            AgentAuth::Kubernetes(identity) => {
                let token = bearer(headers).and_then(|token| std::str::from_utf8(token).ok());
                let verified = identity.verify(token.unwrap_or_default()).await;
                let counted = verified.and_then(|identity| {
                    let counted: Counted = self.quota.count(&identity)?;
                    Ok((identity, counted))
                });
                let (identity, counted): (PodIdentity, _) = counted.map_err(|refused| {
                    self.metrics.refused_identity(refused);
                    tracing::debug!(%refused, "an agent's identity was refused");
                    refuse(refused)
                })?;
                Ok(Some(Guest::new(identity, counted, self.timing.renewal)))
            }
        }
    }
}

/// What an agent gets whose identity was refused.
fn refuse(refused: Refused) -> Problem {
    if refused.is_temporary() {
        return Problem::unavailable(refused.to_string(), "5");
    }
    Problem::new(StatusCode::UNAUTHORIZED, refused.to_string()).header(
        WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"healthscope\", error=\"invalid_token\""),
    )
}

/// Sends the agents away whenever this replica is not the owner any more: to the one that is when it is known, otherwise
/// to whatever answers when they come back. Nothing is acknowledged to them from then on, so that they tell it again.
///
/// A session that says hello later is sent away by itself.
pub(crate) async fn follow(
    mut role: watch::Receiver<Role>,
    sessions: Arc<Sessions>,
    spread: Duration,
    shutdown: CancellationToken,
) {
    loop {
        // Both are cancel-safe.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Ok(()) = role.changed() => {}
            // The role cannot change any more.
            else => {
                shutdown.cancelled().await;
                return;
            }
        }
        let leave = elsewhere(&role.borrow_and_update(), spread, spread);
        if let Some(leave) = leave {
            sessions.send_away(&leave);
        }
    }
}

/// Tells agents of new authorities to trust, until `shutdown`. Those that come later are told when they come.
pub(crate) async fn spread_trust(
    mut certificates: watch::Receiver<State>,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
) {
    let mut told = certificates.borrow_and_update().bundle.clone();
    loop {
        // Both are cancel-safe.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Ok(()) = certificates.changed() => {}
            // They cannot change any more.
            else => {
                shutdown.cancelled().await;
                return;
            }
        }
        let bundle = certificates.borrow_and_update().bundle.clone();
        if bundle != told {
            if let Some(bundle) = &bundle {
                sessions.trust(bundle);
            }
            told = bundle;
        }
    }
}

/// Where an agent belongs that cannot stay here; `None` when it can. `spread` is for the way to the owner, `patience`
/// for coming back.
fn elsewhere(role: &Role, spread: Duration, patience: Duration) -> Option<Leave> {
    match role {
        Role::Owner => None,
        Role::Standby { owner: Some(owner) } => Some(Leave::To(Arc::new(Redirect {
            address: owner.address.clone(),
            server_name: Some(owner.server_name.clone()),
            spread_ms: u64::try_from(spread.as_millis()).unwrap_or(u64::MAX),
        }))),
        Role::Standby { owner: None } => Some(Leave::Back(patience)),
    }
}

/// Checks a request for a session and returns its `Sec-WebSocket-Key`.
fn check_handshake<B>(request: &Request<B>) -> Result<HeaderValue, Problem> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "agents connect with GET");
        return Err(problem.header(ALLOW, HeaderValue::from_static("GET")));
    }
    // Browsers say where a WebSocket comes from and cannot leave it out; agents never say it.
    if headers.contains_key(ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "this is for agents, not for pages; pages read /api/v1/stream",
        ));
    }
    let is_websocket = request.version() == Version::HTTP_11
        && has_word(headers, CONNECTION, "upgrade")
        && has_word(headers, UPGRADE, "websocket");
    let is_version_13 = headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_some_and(|version| version == "13");
    if !is_websocket || !is_version_13 {
        let problem = Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "agents connect by WebSocket, version 13 (RFC 6455); see docs/protocol.md",
        );
        return Err(problem
            .header(UPGRADE, HeaderValue::from_static("websocket"))
            .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    if !has_word(headers, SEC_WEBSOCKET_PROTOCOL, wire::SUBPROTOCOL) {
        return Err(Problem::bad_request(format!(
            "the subprotocol {} must be offered in Sec-WebSocket-Protocol",
            wire::SUBPROTOCOL
        )));
    }
    headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| key.len() == KEY_LENGTH)
        .cloned()
        .ok_or_else(|| Problem::bad_request("Sec-WebSocket-Key must be 16 bytes in base64"))
}

/// What a request without the token gets.
pub(crate) fn unauthorized() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "the token is needed: send it as Authorization: Bearer TOKEN",
    )
    .header(
        WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"healthscope\""),
    )
}

/// Whether a comma-separated list in a header has a word, in whatever case.
fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(word))
}
