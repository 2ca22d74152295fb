//! Who an agent is: the pod that its token is bound to, whatever the agent says about itself.
//!
//! Tokens are verified here, against the keys that the cluster publishes, so that ten thousand agents who come back at
//! once ask the API server nothing. Where those keys may not be read, the API server reviews each token, and what it said
//! is remembered for a while. Whether the pod still exists is not known here: the store knows.
//!
//! A token is never logged, and is kept nowhere: what is remembered is known by a digest of it.

use {
    crate::clock,
    api_server::{ApiServer, AskError},
    claims::Claims,
    healthscope_service::telemetry::chain,
    jiff::{SignedDuration, Timestamp},
    keys::{Freshness, Keyring, Look, Wanted},
    kube::Client,
    remembered::{Remembered, key_of},
    std::{
        fmt,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        time::{Duration, Instant},
    },
    tokio::time,
};

mod api_server;
mod claims;
mod keys;
pub mod readers;
mod remembered;
mod signature;

pub use {
    claims::{PodIdentity, Refused},
    healthscope_core::inject::AUDIENCE as AGENT_AUDIENCE,
};

/// The longest token of an agent; that of a pod takes 1 to 2 KiB, and the head of a request 8 at most.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// How long verifying may take in all; an agent waits 15 seconds for everything.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long the API server's word about a token counts, if the token lasts so long.
const REVIEWED: Duration = Duration::from_secs(600);
/// How long its no counts: an agent that tries again and again asks it every ten seconds.
const REJECTED: Duration = Duration::from_secs(10);
/// Reviews remembered, of some 300 bytes each: all agents of the largest cluster that this is made for.
const MAX_REVIEWS: usize = 20_000;

/// Verifies the tokens of agents.
pub struct Identity {
    server: ApiServer,
    /// The cluster's keys, as far as they may be read.
    published: Mutex<Published>,
    /// Held while the keys are looked at, so that one looks and the others wait or go on with what there is.
    looking: tokio::sync::Mutex<()>,
    reviews: Remembered<Result<PodIdentity, Refused>, Refused>,
}

#[derive(Default)]
struct Published {
    keyring: Option<Arc<Keyring>>,
    freshness: Freshness,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// Asks the API server through this client, when there is something to ask; nothing at first.
    #[must_use]
    pub fn new(client: Client) -> Arc<Self> {
        signature::install();
        Arc::new(Self {
            server: ApiServer::new(client),
            published: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            reviews: Remembered::new(MAX_REVIEWS),
        })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it is nobody's, or nobody can say.
    pub async fn verify(&self, token: &str) -> Result<PodIdentity, Refused> {
        if token.is_empty() {
            return Err(Refused::NoToken);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        // Boxed, since handshakes wait for it by the thousand and most need none of it.
        let verifying = Box::pin(self.verify_in_time(token));
        match time::timeout(DEADLINE, verifying).await {
            Ok(result) => result,
            Err(_too_late) => Err(Refused::Unavailable),
        }
    }

    async fn verify_in_time(&self, token: &str) -> Result<PodIdentity, Refused> {
        let key_id = keys::key_id(token)?;
        let Some(mut keyring) = self.keyring(Wanted::Anyway).await else {
            return self.review(token).await;
        };
        if !keyring.has(&key_id) {
            // Perhaps it is newer than our last look.
            match self.keyring(Wanted::UnknownKey).await {
                Some(newer) => keyring = newer,
                None => return self.review(token).await,
            }
        }
        let claims = keyring.verify(token, &key_id)?;
        claims.identify(keyring.issuer(), clock::now().wall)
    }

    /// The cluster's keys, looked at anew when it is time; `None` when they may not be read.
    async fn keyring(&self, wanted: Wanted) -> Option<Arc<Keyring>> {
        let (keyring, is_due) = {
            let published = self.lock();
            let is_due = published.freshness.is_due(wanted, clock::instant());
            (published.keyring.clone(), is_due)
        };
        if !is_due {
            return keyring;
        }
        let _looking = match (self.looking.try_lock(), wanted, &keyring) {
            (Ok(looking), _, _) => looking,
            // Somebody looks already, and what there is will do.
            (Err(_), Wanted::Anyway, Some(_)) => return keyring,
            (Err(_), Wanted::UnknownKey, _) | (Err(_), _, None) => self.looking.lock().await,
        };
        if !self.lock().freshness.is_due(wanted, clock::instant()) {
            return self.lock().keyring.clone();
        }
        let found = self.look().await;
        let mut published = self.lock();
        let look = match found {
            Ok(keyring) => {
                published.keyring = Some(Arc::new(keyring));
                Look::Found
            }
            Err(AskError::Forbidden { role }) => {
                if published.freshness == Freshness::default() || published.keyring.is_some() {
                    tracing::info!(
                        role,
                        "the cluster's published keys may not be read, so that the API server reviews each agent's token; \
                         bind this program's ServiceAccount to the ClusterRole to verify them here"
                    );
                }
                published.keyring = None;
                Look::Hidden
            }
            Err(error @ AskError::Unavailable(_)) => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot look at the cluster's published keys"
                );
                Look::Nothing
            }
        };
        published.freshness.looked(look, clock::instant());
        published.keyring.clone()
    }

    async fn look(&self) -> Result<Keyring, AskError> {
        let (description, keys) = self.server.published().await?;
        match Keyring::read(&description, &keys) {
            Ok(keyring) => Ok(keyring),
            Err(error) => {
                tracing::warn!(%error, "the cluster publishes something else than its keys");
                Err(AskError::Unavailable(None))
            }
        }
    }

    async fn review(&self, token: &str) -> Result<PodIdentity, Refused> {
        let claims: Claims =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Refused::Malformed)?;
        let now = clock::now();
        // Saves the API server the tokens to which its answer is known, and says why better than it would.
        claims.check(now.wall)?;
        let expires = claims.expires()?;
        let reviewed = self.reviews.get(key_of(&[token]), clock::instant, async || {
            let status = self.server.review_token(token, Some(&[AGENT_AUDIENCE])).await;
            let status = status.map_err(|error| {
                tracing::warn!(error = chain(&error), "cannot have an agent's token reviewed");
                Refused::Unavailable
            })?;
            let result = claims::identify_reviewed(&status, expires);
            let lasts = match &result {
                Ok(identity) => REVIEWED.min(left(identity.expires, clock::now().wall)),
                Err(_) => REJECTED,
            };
            Ok((result, clock::instant() + lasts))
        });
        reviewed.await?
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        // No code that could panic runs under the lock.
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is left of something that ends then.
pub(crate) fn left(ends: Timestamp, now: Timestamp) -> Duration {
    let left: SignedDuration = ends.duration_since(now);
    Duration::try_from(left).unwrap_or_default()
}

/// Until when, by the monotonic clock.
pub(crate) fn deadline(ends: Timestamp) -> Instant {
    let now = clock::now();
    now.instant + left(ends, now.wall)
}
