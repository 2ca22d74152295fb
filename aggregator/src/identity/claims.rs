//! From what a token says to whose it is. Pure: knows nothing of signatures and reads no clock.
//!
//! Two ways lead to a [`PodIdentity`]: the claims of a token whose signature was verified here, and the API server's
//! review of one. Both end in the same checks.

use {
    healthscope_core::{event::PodRef, inject::AUDIENCE},
    healthscope_shared::name::{AgentName, Name, Namespace},
    jiff::Timestamp,
    k8s_openapi::api::authentication::v1::TokenReviewStatus,
    serde::Deserialize,
    std::{sync::Arc, time::Duration},
};

/// How far clocks of the control plane and of this node may be apart; as much as the API server allows.
const LEEWAY: Duration = Duration::from_secs(60);

/// How user names of ServiceAccounts begin.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// What a review says of the pod, among the user's extras.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The longest uid taken; the API server's own have 36 characters.
const MAX_UID_BYTES: usize = 64;

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// The pod's namespace.
    pub namespace: Namespace,
    /// The pod's name.
    pub pod: Name,
    /// The pod's uid: a pod of the same name later on is another.
    pub uid: Arc<str>,
    /// The ServiceAccount that the pod runs as.
    pub service_account: Name,
    /// When the token ends.
    pub expires: Timestamp,
}

impl PodIdentity {
    /// Which pod, for the store.
    #[must_use]
    pub fn pod_ref(&self) -> PodRef {
        PodRef {
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            uid: Arc::clone(&self.uid),
        }
    }

    /// What the agent of the pod is called, whatever it calls itself: `namespace.pod`. A namespace has no dot, so that
    /// no two pods share a name and the namespace can be told from it.
    #[must_use]
    pub fn agent_name(&self) -> AgentName {
        let Self {
            namespace, pod, uid, ..
        } = self;
        AgentName::new(format!("{namespace}.{pod}")).unwrap_or_else(|_| {
            // Only a pod's name that nobody would type makes it too long; its uid is as unique.
            AgentName::new(format!("{namespace}.{uid}")).unwrap_or_else(|_| AgentName::from_host(uid))
        })
    }
}

/// Why an agent is not let in. Said to the agent, which logs it, so each says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no token.
    #[error(
        "an agent must show the token of its pod: mount a projected ServiceAccount token with the audience \
         {AUDIENCE} and name it with --token-file"
    )]
    NoToken,
    /// Longer than any token of a pod.
    #[error(
        "the token is longer than {} bytes; is it the right file?",
        super::MAX_TOKEN_BYTES
    )]
    TooLong,
    /// No token of a ServiceAccount.
    #[error("this is not a token of a ServiceAccount; name the projected token of the pod with --token-file")]
    Malformed,
    /// Signed in a way that is not taken, or not at all.
    #[error("the token is not signed with RS256 or ES256, as this cluster's tokens are")]
    Algorithm,
    /// Signed by nobody that is known.
    #[error("the token is signed with a key that this cluster does not publish; is it of another cluster?")]
    UnknownKey,
    /// Forged or damaged.
    #[error("the token's signature is wrong")]
    Signature,
    /// Of somebody else.
    #[error("the token is of another issuer than this cluster's")]
    Issuer,
    /// For somebody else.
    #[error("the token is for another audience; request it with the audience {AUDIENCE}")]
    Audience,
    /// Too old.
    #[error("the token has expired; the kubelet renews it, so read its file anew for each connection")]
    Expired,
    /// Too new.
    #[error("the token is not valid yet; the clock of this node or of the control plane is wrong")]
    NotYetValid,
    /// Of a ServiceAccount as such.
    #[error(
        "the token is not bound to a pod; use a projected token (volumes.projected.serviceAccountToken), not one of a \
         Secret or of `kubectl create token`"
    )]
    NotBound,
    /// The API server says so.
    #[error("the API server does not accept the token; its pod or its ServiceAccount may be gone")]
    Rejected,
    /// Nobody can say.
    #[error("the token cannot be verified now, because the API server does not answer; try again later")]
    Unavailable,
    /// Verified, but too many of the same come at once.
    #[error("too many connections of this pod or of its namespace are open; try again later")]
    Crowded,
}

impl Refused {
    /// All of them, in order.
    pub const ALL: [Self; 14] = [
        Self::NoToken,
        Self::TooLong,
        Self::Malformed,
        Self::Algorithm,
        Self::UnknownKey,
        Self::Signature,
        Self::Issuer,
        Self::Audience,
        Self::Expired,
        Self::NotYetValid,
        Self::NotBound,
        Self::Rejected,
        Self::Unavailable,
        Self::Crowded,
    ];

    /// The word, for a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NotBound => "not_bound",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
            Self::Crowded => "crowded",
        }
    }

    /// Whether the same token may be taken later.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        match self {
            Self::Unavailable | Self::Crowded => true,
            Self::NoToken
            | Self::TooLong
            | Self::Malformed
            | Self::Algorithm
            | Self::UnknownKey
            | Self::Signature
            | Self::Issuer
            | Self::Audience
            | Self::Expired
            | Self::NotYetValid
            | Self::NotBound
            | Self::Rejected => false,
        }
    }
}

/// What a token of a ServiceAccount says, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Option<Bound>,
}

/// One audience or several (RFC 7519, 4.1.3).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default)]
    pod: Option<Object>,
    #[serde(default)]
    serviceaccount: Option<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    name: String,
    uid: String,
}

impl Claims {
    /// When the token ends.
    pub(super) fn expires(&self) -> Result<Timestamp, Refused> {
        Timestamp::from_second(self.exp).map_err(|_| Refused::Malformed)
    }

    /// Whose token it is, for a token of `issuer` whose signature is right.
    pub(super) fn identify(self, issuer: &str, now: Timestamp) -> Result<PodIdentity, Refused> {
        if self.iss != issuer {
            return Err(Refused::Issuer);
        }
        self.check(now)?;
        let expires = self.expires()?;
        let Bound {
            namespace,
            pod,
            serviceaccount,
        } = self.kubernetes.ok_or(Refused::NotBound)?;
        let Object { name: pod, uid } = pod.ok_or(Refused::NotBound)?;
        let Object {
            name: service_account,
            uid: _,
        } = serviceaccount.ok_or(Refused::Malformed)?;
        identity(&namespace, &pod, &uid, &service_account, expires)
    }

    /// Checks what needs neither key nor API server. Said of a token that is not verified, it only saves the API server
    /// a question whose answer would be no.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), Refused> {
        let is_ours = match &self.aud {
            Audience::One(audience) => audience == AUDIENCE,
            Audience::Several(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
        };
        if !is_ours {
            return Err(Refused::Audience);
        }
        let leeway = i64::try_from(LEEWAY.as_secs()).unwrap_or(i64::MAX);
        if self.exp.saturating_add(leeway) <= now.as_second() {
            return Err(Refused::Expired);
        }
        if self
            .nbf
            .is_some_and(|begin| begin.saturating_sub(leeway) > now.as_second())
        {
            return Err(Refused::NotYetValid);
        }
        if self.kubernetes.as_ref().is_none_or(|bound| bound.pod.is_none()) {
            return Err(Refused::NotBound);
        }
        Ok(())
    }
}

/// Whose token it is, by the API server's review.
pub(super) fn identify_reviewed(
    status: &TokenReviewStatus,
    expires: Timestamp,
) -> Result<PodIdentity, Refused> {
    let TokenReviewStatus {
        audiences,
        authenticated,
        error: _,
        user,
    } = status;
    if *authenticated != Some(true) {
        return Err(Refused::Rejected);
    }
    // A server that does not know of audiences answers without any, and has then accepted a token for itself.
    let is_ours = audiences.iter().flatten().any(|audience| audience == AUDIENCE);
    if !is_ours {
        return Err(Refused::Audience);
    }
    let user = user.as_ref().ok_or(Refused::Rejected)?;
    let account = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix(SERVICE_ACCOUNT));
    let (namespace, service_account) = account
        .and_then(|account| account.split_once(':'))
        .ok_or(Refused::NotBound)?;
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        match values.as_slice() {
            [only] => Some(only.as_str()),
            _ => None,
        }
    };
    let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(Refused::NotBound);
    };
    identity(namespace, pod, uid, service_account, expires)
}

fn identity(
    namespace: &str,
    pod: &str,
    uid: &str,
    service_account: &str,
    expires: Timestamp,
) -> Result<PodIdentity, Refused> {
    if uid.is_empty() || uid.len() > MAX_UID_BYTES {
        return Err(Refused::Malformed);
    }
    let malformed = |_| Refused::Malformed;
    Ok(PodIdentity {
        namespace: Namespace::new(namespace).map_err(malformed)?,
        pod: Name::new(pod).map_err(malformed)?,
        uid: uid.into(),
        service_account: Name::new(service_account).map_err(malformed)?,
        expires,
    })
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        serde_json::{Value, json},
    };

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
    const NOW: i64 = 1_800_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn good() -> Value {
        json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": "system:serviceaccount:shop:web",
            "exp": NOW + 600,
            "nbf": NOW - 10,
            "kubernetes.io": {
                "namespace": "shop",
                "node": {"name": "node1", "uid": "n"},
                "pod": {"name": "web-7d9-x2", "uid": "u-1"},
                "serviceaccount": {"name": "web", "uid": "s"},
            },
        })
    }

    fn with(path: &str, value: Value) -> Value {
        let mut claims = good();
        *claims.pointer_mut(path).unwrap() = value;
        claims
    }

    #[track_caller]
    fn check(claims: Value, expected: Result<(), Refused>) {
        let shown = claims.to_string();
        let read: Result<Claims, _> = serde_json::from_value(claims);
        let result = read
            .map_err(|_| Refused::Malformed)
            .and_then(|claims| claims.identify(ISSUER, now()))
            .map(drop);
        assert_eq!(result, expected, "{shown}");
    }

    #[test]
    fn a_pods_token_says_which_pod() {
        let claims: Claims = serde_json::from_value(good()).unwrap();
        let identity = claims.identify(ISSUER, now()).unwrap();
        let expected = PodIdentity {
            namespace: Namespace::new("shop").unwrap(),
            pod: Name::new("web-7d9-x2").unwrap(),
            uid: "u-1".into(),
            service_account: Name::new("web").unwrap(),
            expires: Timestamp::from_second(NOW + 600).unwrap(),
        };
        assert_eq!(identity, expected);
        assert_eq!(identity.agent_name().as_str(), "shop.web-7d9-x2");
    }

    #[test]
    fn what_is_not_ours_now_and_of_a_pod_is_refused() {
        check(good(), Ok(()));
        check(with("/aud", json!(AUDIENCE)), Ok(()));
        check(with("/aud", json!(["other", AUDIENCE])), Ok(()));
        check(with("/aud", json!(["other"])), Err(Refused::Audience));
        check(with("/aud", json!([])), Err(Refused::Audience));
        check(with("/aud", json!(ISSUER)), Err(Refused::Audience));
        check(
            with("/iss", json!("https://elsewhere.example")),
            Err(Refused::Issuer),
        );
        // The leeway of a minute, on both sides.
        check(with("/exp", json!(NOW - 59)), Ok(()));
        check(with("/exp", json!(NOW - 60)), Err(Refused::Expired));
        check(with("/exp", json!(0)), Err(Refused::Expired));
        check(with("/exp", json!(i64::MIN)), Err(Refused::Expired));
        check(with("/exp", json!(i64::MAX)), Err(Refused::Malformed));
        check(with("/exp", json!("never")), Err(Refused::Malformed));
        check(with("/nbf", json!(NOW + 60)), Ok(()));
        check(with("/nbf", json!(NOW + 61)), Err(Refused::NotYetValid));
        check(with("/nbf", Value::Null), Ok(()));
        check(with("/kubernetes.io", Value::Null), Err(Refused::NotBound));
        check(with("/kubernetes.io/pod", Value::Null), Err(Refused::NotBound));
        for (path, value) in [
            ("/kubernetes.io/pod/name", "../etc"),
            ("/kubernetes.io/pod/uid", ""),
            ("/kubernetes.io/namespace", "a.b"),
            ("/kubernetes.io/serviceaccount/name", "A"),
        ] {
            check(with(path, json!(value)), Err(Refused::Malformed));
        }
        check(
            with("/kubernetes.io/pod/uid", json!("u".repeat(65))),
            Err(Refused::Malformed),
        );
        check(json!({"iss": ISSUER}), Err(Refused::Malformed));
        check(json!([]), Err(Refused::Malformed));
    }

    fn review() -> Value {
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "groups": ["system:serviceaccounts"],
                "extra": {POD_NAME: ["web-7d9-x2"], POD_UID: ["u-1"]},
            },
        })
    }

    #[track_caller]
    fn check_review(change: impl FnOnce(&mut Value), expected: Result<&str, Refused>) {
        let mut status = review();
        change(&mut status);
        let status: TokenReviewStatus = serde_json::from_value(status).unwrap();
        let result = identify_reviewed(&status, now());
        let result = result.map(|identity| identity.agent_name().to_string());
        assert_eq!(result.as_deref().map_err(|&refused| refused), expected);
    }

    #[test]
    fn a_review_counts_only_for_our_audience_and_a_pod() {
        check_review(|_| (), Ok("shop.web-7d9-x2"));
        check_review(|s| s["authenticated"] = json!(false), Err(Refused::Rejected));
        check_review(|s| s["authenticated"] = Value::Null, Err(Refused::Rejected));
        check_review(|s| s["audiences"] = Value::Null, Err(Refused::Audience));
        check_review(|s| s["audiences"] = json!(["other"]), Err(Refused::Audience));
        check_review(|s| s["user"] = Value::Null, Err(Refused::Rejected));
        check_review(|s| s["user"]["username"] = json!("alice"), Err(Refused::NotBound));
        check_review(
            |s| s["user"]["username"] = json!("system:serviceaccount:shop"),
            Err(Refused::NotBound),
        );
        check_review(|s| s["user"]["extra"] = Value::Null, Err(Refused::NotBound));
        check_review(
            |s| s["user"]["extra"][POD_NAME] = json!(["a", "b"]),
            Err(Refused::NotBound),
        );
        check_review(
            |s| s["user"]["extra"][POD_UID] = json!([]),
            Err(Refused::NotBound),
        );
    }

    #[test]
    fn an_agents_name_fits_whatever_its_pod_is_called() {
        let identity = |pod: &str| PodIdentity {
            namespace: Namespace::new("n".repeat(63)).unwrap(),
            pod: Name::new(pod).unwrap(),
            uid: "0b5c6a1e-0000-4000-8000-000000000001".into(),
            service_account: Name::new("default").unwrap(),
            expires: now(),
        };
        let short = identity("db-0.example");
        assert!(short.agent_name().as_str().ends_with("n.db-0.example"));
        let long = identity(&"p".repeat(253)).agent_name();
        assert!(long.as_str().ends_with("n.0b5c6a1e-0000-4000-8000-000000000001"));
    }

    #[test]
    fn every_refusal_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> =
            Refused::ALL.iter().map(|refused| refused.as_str()).collect();
        assert_eq!(words.len(), Refused::ALL.len());
    }
}
