//! The questions about identity that only the API server can answer. Asks once, with a deadline, and never retries.
//!
//! How many questions are open at once is bounded: what strangers send must not become a flood at the API server. At
//! the limit the next ones wait, at most until their deadline.

use {
    k8s_openapi::api::{
        authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
        authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec},
    },
    kube::{Api, Client, api::PostParams},
    std::{fmt, future::Future, time::Duration},
    tokio::{sync::Semaphore, time},
};

/// How long one question may take, waiting for its turn included.
const DEADLINE: Duration = Duration::from_secs(5);

/// Questions open at once. A review takes a millisecond, so that this is more than ten thousand a second.
const AT_ONCE: usize = 16;

const DESCRIPTION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The API server answers that this program may not ask.
    #[error("this program may not ask the API server; bind its ServiceAccount to the ClusterRole {role}")]
    Forbidden {
        /// What would allow it.
        role: &'static str,
    },
    /// No answer, or one that says nothing.
    #[error("the API server does not answer")]
    Unavailable(#[source] Option<Box<kube::Error>>),
}

/// The API server, for questions about identity.
pub(crate) struct ApiServer {
    client: Client,
    places: Semaphore,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiServer")
    }
}

impl ApiServer {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// Whose token it is; without audiences, of those that the API server takes itself.
    pub(crate) async fn review_token(
        &self,
        token: &str,
        audiences: Option<&[&str]>,
    ) -> Result<TokenReviewStatus, AskError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: audiences.map(|all| all.iter().map(ToString::to_string).collect()),
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let params = PostParams::default();
        let answer = self.ask("system:auth-delegator", api.create(&params, &review));
        answer.await?.status.ok_or(AskError::Unavailable(None))
    }

    /// Whether somebody may do something.
    pub(crate) async fn review_access(&self, spec: SubjectAccessReviewSpec) -> Result<bool, AskError> {
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let params = PostParams::default();
        let answer = self.ask("system:auth-delegator", api.create(&params, &review));
        let status = answer.await?.status.ok_or(AskError::Unavailable(None))?;
        Ok(status.allowed && status.denied != Some(true))
    }

    /// What the cluster publishes about its tokens: its description of itself, and its keys.
    pub(super) async fn published(&self) -> Result<(String, String), AskError> {
        let role = "system:service-account-issuer-discovery";
        let get = |path: &str, accept: &str| {
            let request = http::Request::get(path).header(http::header::ACCEPT, accept);
            let request = request
                .body(Vec::new())
                .expect("path and type are fit for a request");
            self.ask(role, self.client.request_text(request))
        };
        let description = get(DESCRIPTION, "application/json").await?;
        // Without its type the API server refuses to send them.
        let keys = get(KEYS, "application/jwk-set+json, application/json;q=0.5").await?;
        Ok((description, keys))
    }

    async fn ask<T>(
        &self,
        role: &'static str,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, AskError> {
        let asking = async {
            let _place = self.places.acquire().await.expect("nobody closes it");
            question.await
        };
        match time::timeout(DEADLINE, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403 | 404) => {
                Err(AskError::Forbidden { role })
            }
            Ok(Err(error)) => Err(AskError::Unavailable(Some(Box::new(error)))),
            Err(_too_late) => Err(AskError::Unavailable(None)),
        }
    }
}
