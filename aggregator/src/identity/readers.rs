//! Who a reader is and what they may do, as the cluster's own authentication and RBAC say.
//!
//! The API server decides everything; what it said is remembered for a moment, so that a page that asks for a hundred
//! things asks it once. Without an answer there is no access: what is remembered holds until it ends, and no longer.

use {
    super::{
        api_server::{ApiServer, AskError},
        left,
        remembered::{Remembered, key_of},
    },
    crate::clock,
    futures_util::{StreamExt, TryStreamExt, stream},
    healthscope_service::telemetry::chain,
    healthscope_shared::name::Namespace,
    jiff::Timestamp,
    k8s_openapi::api::{
        authentication::v1::{TokenReviewStatus, UserInfo},
        authorization::v1::{NonResourceAttributes, ResourceAttributes, SubjectAccessReviewSpec},
    },
    kube::Client,
    serde::{Deserialize, Serialize},
    std::{
        collections::{BTreeMap, BTreeSet},
        fmt,
        sync::Arc,
        time::Duration,
    },
};

/// The longest token of a person: those of identity providers list groups.
pub(crate) const MAX_TOKEN_BYTES: usize = 12 * 1024;

/// How long the API server's word about a token counts: what the API server itself grants a webhook that says yes.
const REVIEWED: Duration = Duration::from_secs(120);
/// How long its no counts.
const REJECTED: Duration = Duration::from_secs(10);
/// Reviews remembered, of a kilobyte or two each.
const MAX_REVIEWS: usize = 2_000;

/// How long a decision counts: a right that was taken away is gone by then.
const DECIDED: Duration = Duration::from_secs(30);
/// Decisions remembered, of some hundred bytes each: a few dozen people in the largest cluster.
const MAX_DECISIONS: usize = 50_000;
/// Decisions that are asked for at once by one reader.
const AT_ONCE: usize = 8;

const GROUP: &str = "core.oam.dev";
const RESOURCE: &str = "healthscopes";

/// Somebody whom the cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    #[serde(rename = "n")]
    pub(crate) name: String,
    #[serde(rename = "u", default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<String>,
    #[serde(rename = "e", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// Somebody who has shown a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reviewed {
    pub(crate) user: Arc<User>,
    /// When the token ends, if it says so.
    pub(crate) expires: Option<Timestamp>,
    /// When the API server has to be asked about it again.
    pub(crate) until: std::time::Instant,
}

/// Something that takes a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// See scopes, components and everything about them.
    Look,
    /// Have a probe run now.
    RunProbe,
    /// Have an agent forgotten that is gone for good.
    ForgetAgent,
}

impl Deed {
    /// Verb and subresource, as RBAC calls it.
    const fn right(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Look => ("list", None),
            Self::RunProbe => ("create", Some("probe")),
            Self::ForgetAgent => ("delete", Some("agent")),
        }
    }
}

/// As a rule of RBAC: `create healthscopes/probe (core.oam.dev)`.
impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, subresource) = self.right();
        write!(f, "{verb} {RESOURCE}")?;
        if let Some(subresource) = subresource {
            write!(f, "/{subresource}")?;
        }
        write!(f, " ({GROUP})")
    }
}

/// Why nobody can say who somebody is or what they may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster's API server, which decides who may see what, cannot be asked now; try again in a moment"
)]
pub(crate) struct Unavailable;

/// The cluster's word about readers.
pub struct Readers {
    server: ApiServer,
    reviews: Remembered<Option<Reviewed>, Unavailable>,
    decisions: Remembered<bool, Unavailable>,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readers")
    }
}

impl Readers {
    /// Asks the API server through this client, when there is something to ask.
    #[must_use]
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            server: ApiServer::new(client),
            reviews: Remembered::new(MAX_REVIEWS),
            decisions: Remembered::new(MAX_DECISIONS),
        })
    }

    /// Whose token it is; `None` when it is nobody's.
    pub(crate) async fn review(&self, token: &str) -> Result<Option<Reviewed>, Unavailable> {
        let is_token = !token.is_empty()
            && token.len() <= MAX_TOKEN_BYTES
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token {
            return Ok(None);
        }
        let reviewed = self.reviews.get(key_of(&[token]), clock::instant, async || {
            let status = self.server.review_token(token, None).await;
            let status = status.map_err(|error| warn(&error))?;
            let now = clock::now();
            let Some(user) = user(status) else {
                return Ok((None, now.instant + REJECTED));
            };
            let expires = expires(token);
            let lasts = expires.map_or(REVIEWED, |expires| REVIEWED.min(left(expires, now.wall)));
            let until = now.instant + lasts;
            let reviewed = Reviewed {
                user: Arc::new(user),
                expires,
                until,
            };
            Ok((Some(reviewed), until))
        });
        reviewed.await
    }

    /// Whether somebody may do something in a namespace; without one, in all of them.
    pub(crate) async fn may(
        &self,
        user: &User,
        deed: Deed,
        namespace: Option<&Namespace>,
    ) -> Result<bool, Unavailable> {
        let (verb, subresource) = deed.right();
        let attributes = ResourceAttributes {
            group: Some(GROUP.to_owned()),
            resource: Some(RESOURCE.to_owned()),
            subresource: subresource.map(str::to_owned),
            verb: Some(verb.to_owned()),
            namespace: namespace.map(ToString::to_string),
            ..ResourceAttributes::default()
        };
        let what = [
            verb,
            subresource.unwrap_or_default(),
            namespace.map_or("", Namespace::as_str),
        ];
        let spec = SubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        self.decide(user, &what, spec).await
    }

    /// Which of these namespaces somebody may look into.
    pub(crate) async fn visible(
        &self,
        user: &User,
        namespaces: BTreeSet<Namespace>,
    ) -> Result<BTreeSet<Namespace>, Unavailable> {
        let decisions = stream::iter(namespaces).map(|namespace| async move {
            let may = self.may(user, Deed::Look, Some(&namespace)).await?;
            Ok(may.then_some(namespace))
        });
        decisions
            .buffer_unordered(AT_ONCE)
            .try_filter_map(async |namespace| Ok(namespace))
            .try_collect()
            .await
    }

    /// Whether somebody may read a path that belongs to no object.
    pub(crate) async fn may_get(&self, user: &User, path: &str) -> Result<bool, Unavailable> {
        let spec = SubjectAccessReviewSpec {
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(path.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        };
        self.decide(user, &["get", path], spec).await
    }

    async fn decide(
        &self,
        user: &User,
        what: &[&str],
        spec: SubjectAccessReviewSpec,
    ) -> Result<bool, Unavailable> {
        let known_as = serde_json::to_string(user).expect("a user has only text");
        let parts: Vec<&str> = [known_as.as_str()].iter().chain(what).copied().collect();
        let decided = self.decisions.get(key_of(&parts), clock::instant, async || {
            let User {
                name,
                uid,
                groups,
                extra,
            } = user.clone();
            let spec = SubjectAccessReviewSpec {
                user: Some(name),
                uid: Some(uid).filter(|uid| !uid.is_empty()),
                groups: Some(groups),
                extra: Some(extra),
                ..spec
            };
            let allowed = self.server.review_access(spec).await;
            let allowed = allowed.map_err(|error| warn(&error))?;
            Ok((allowed, clock::instant() + DECIDED))
        });
        decided.await
    }
}

fn warn(error: &AskError) -> Unavailable {
    tracing::warn!(error = chain(error), "cannot ask about a reader");
    Unavailable
}

/// The user of a review that says yes.
fn user(status: TokenReviewStatus) -> Option<User> {
    let TokenReviewStatus {
        audiences: _,
        authenticated,
        error: _,
        user,
    } = status;
    let UserInfo {
        username,
        uid,
        groups,
        extra,
    } = user.filter(|_| authenticated == Some(true))?;
    Some(User {
        name: username.filter(|name| !name.is_empty())?,
        uid: uid.unwrap_or_default(),
        groups: groups.unwrap_or_default(),
        extra: extra.unwrap_or_default(),
    })
}

/// When a token ends, if it is one that says so. Nobody has to believe it who has not had it reviewed.
fn expires(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).ok()?;
    Timestamp::from_second(claims.exp).ok()
}

#[cfg(test)]
mod tests {
    use {super::*, serde_json::json};

    #[test]
    fn only_a_review_that_says_yes_names_somebody() {
        #[track_caller]
        fn check(status: serde_json::Value, expected: Option<&str>) {
            let status: TokenReviewStatus = serde_json::from_value(status).unwrap();
            assert_eq!(user(status).map(|user| user.name).as_deref(), expected);
        }
        let alice = json!({"username": "alice", "groups": ["staff"]});
        check(json!({"authenticated": true, "user": alice}), Some("alice"));
        check(json!({"authenticated": false, "user": alice}), None);
        check(json!({"user": alice}), None);
        check(json!({"authenticated": true, "user": {"username": ""}}), None);
        check(json!({"authenticated": true}), None);
    }

    #[test]
    fn rights_read_as_rules_of_rbac() {
        assert_eq!(Deed::Look.to_string(), "list healthscopes (core.oam.dev)");
        assert_eq!(
            Deed::RunProbe.to_string(),
            "create healthscopes/probe (core.oam.dev)"
        );
        assert_eq!(
            Deed::ForgetAgent.to_string(),
            "delete healthscopes/agent (core.oam.dev)"
        );
    }

    #[test]
    fn a_token_that_says_nothing_of_its_end_has_none() {
        assert_eq!(expires("opaque"), None);
        assert_eq!(expires("e30.e30.e30"), None);
        let ends = expires("e30.eyJleHAiOjYwfQ.e30").map(Timestamp::as_second);
        assert_eq!(ends, Some(60));
    }
}
