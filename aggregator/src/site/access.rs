//! Who may read: a token in a header, or a cookie that proves that a token was once typed into the form.
//!
//! What a token is depends on [`ReaderAuth`]: one that all readers share, or any that the cluster's API server takes. Nothing
//! is stored but what the API server said, for a moment; who has signed in is in their cookie.

use {
    super::{
        cookie::{Cookie, Cookies},
        problem::Problem,
        viewer::{SignedIn, Viewer},
    },
    crate::{
        clock,
        config::ReaderAuth,
        identity::{
            left,
            readers::{Readers, Reviewed, Unavailable},
        },
        ingest::unauthorized,
    },
    healthscope_service::token::Secret,
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
    },
    std::{
        collections::VecDeque,
        net::IpAddr,
        sync::{Arc, Mutex, PoisonError},
        time::{Duration, Instant, SystemTime},
    },
};

/// How long a sign-in lasts at most: a shift.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// What readers must show.
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// The token that all of them share.
    Token {
        /// The token.
        token: Secret,
        /// Made of the token, so that a new one signs everybody out.
        cookies: Box<Cookies>,
    },
    /// A token of the cluster.
    Kubernetes {
        /// The cluster.
        readers: Arc<Readers>,
        /// Of this process alone: a restart signs everybody out, since nobody else could say who they are.
        cookies: Box<Cookies>,
    },
}

/// There is no randomness to make cookies safe with.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers, which sign-ins need")]
pub struct NoRandomness;

/// What became of a sign-in.
pub(crate) enum SignIn {
    /// The token is right.
    Done(Cookie),
    /// It is nobody's.
    Wrong,
    /// It is right, but who it belongs to cannot be kept in a cookie.
    TooManyGroups,
}

impl Access {
    pub(crate) fn new(readers: ReaderAuth) -> Result<Self, NoRandomness> {
        Ok(match readers {
            ReaderAuth::Open { is_meant: _ } => Self::Open,
            ReaderAuth::Token(token) => Self::Token {
                cookies: Box::new(Cookies::from_secret(token.expose().as_bytes())),
                token,
            },
            ReaderAuth::Kubernetes(readers) => Self::Kubernetes {
                readers,
                cookies: Box::new(Cookies::random().map_err(|ring::error::Unspecified| NoRandomness)?),
            },
        })
    }

    /// Whether nobody needs to show anything.
    pub(crate) const fn is_open(&self) -> bool {
        match self {
            Self::Open => true,
            Self::Token { .. } | Self::Kubernetes { .. } => false,
        }
    }

    /// Whether readers show tokens of a cluster.
    pub(crate) const fn is_of_cluster(&self) -> bool {
        match self {
            Self::Open | Self::Token { .. } => false,
            Self::Kubernetes { .. } => true,
        }
    }

    /// Who shows a token in a header; `None` when there is none, or one that counts for nothing.
    pub(crate) async fn by_bearer(&self, headers: &HeaderMap) -> Result<Option<Viewer>, Unavailable> {
        let Some(candidate) = bearer(headers) else {
            return Ok(None);
        };
        match self {
            Self::Open => Ok(None),
            Self::Token { token, .. } => Ok(token.matches(candidate).then_some(Viewer::Anybody)),
            Self::Kubernetes { readers, .. } => {
                let candidate = std::str::from_utf8(candidate).unwrap_or_default();
                let reviewed = readers.review(candidate).await?;
                Ok(reviewed.map(|Reviewed { user, until, .. }| {
                    Viewer::User(Arc::new(SignedIn {
                        readers: Arc::clone(readers),
                        user,
                        until,
                    }))
                }))
            }
        }
    }

    /// Who has signed in, as the cookie says; everybody where nobody needs to.
    pub(crate) fn by_cookie(&self, headers: &HeaderMap, now: SystemTime) -> Option<Viewer> {
        match self {
            Self::Open => Some(Viewer::Anybody),
            Self::Token { cookies, .. } => cookies.read(headers, now).map(|_| Viewer::Anybody),
            Self::Kubernetes { readers, cookies } => {
                let (user, left) = cookies.read(headers, now)?;
                Some(Viewer::User(Arc::new(SignedIn {
                    readers: Arc::clone(readers),
                    user: Arc::new(serde_json::from_str(&user).ok()?),
                    until: clock::instant() + left,
                })))
            }
        }
    }

    /// What a request gets that shows nothing that counts.
    pub(crate) fn unauthorized(&self, headers: &HeaderMap) -> Problem {
        if !self.is_of_cluster() {
            return unauthorized();
        }
        let detail = if bearer(headers).is_some() {
            "the cluster does not accept this token; it may have expired, or be for another audience than the API server"
        } else {
            "a token of the cluster is needed: send it as Authorization: Bearer TOKEN (`kubectl create token ACCOUNT` makes \
             one)"
        };
        Problem::new(StatusCode::UNAUTHORIZED, detail).header(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"healthscope\""),
        )
    }

    /// What the form does with a token.
    pub(crate) async fn sign_in(&self, candidate: &str, now: SystemTime) -> Result<SignIn, Unavailable> {
        match self {
            Self::Open => Ok(SignIn::Wrong),
            Self::Token { token, cookies } => {
                if !token.matches(candidate.as_bytes()) {
                    return Ok(SignIn::Wrong);
                }
                let made = cookies.make("", now, SESSION);
                Ok(made.map_or(SignIn::TooManyGroups, SignIn::Done))
            }
            Self::Kubernetes { readers, cookies } => {
                let Some(Reviewed { user, expires, .. }) = readers.review(candidate).await? else {
                    return Ok(SignIn::Wrong);
                };
                let lasts = expires.map_or(SESSION, |expires| SESSION.min(left(expires, clock::now().wall)));
                let user = serde_json::to_string(&*user).expect("a user has only text");
                let made = cookies.make(&user, now, lasts);
                Ok(made.map_or(SignIn::TooManyGroups, SignIn::Done))
            }
        }
    }
}

/// The token in `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// Failed sign-ins by address: after [`Self::FREE`] within [`Self::WINDOW`] an address has to wait.
#[derive(Default)]
pub(crate) struct SignInLimit {
    /// Oldest first.
    failures: Mutex<VecDeque<(Instant, IpAddr)>>,
}

impl SignInLimit {
    /// Wrong tokens that an address may send within the window.
    const FREE: usize = 10;
    /// How long a wrong token counts.
    pub(crate) const WINDOW: Duration = Duration::from_secs(60);
    /// Failures remembered; when more come within the window everybody waits, which only a flood brings about.
    const REMEMBERED: usize = 4_096;

    /// Whether `address` may try now.
    pub(crate) fn allows(&self, address: IpAddr, now: Instant) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        while failures
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= Self::WINDOW)
        {
            failures.pop_front();
        }
        failures.len() < Self::REMEMBERED
            && failures.iter().filter(|(_, from)| *from == address).count() < Self::FREE
    }

    /// Remembers a wrong token.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < Self::REMEMBERED {
            failures.push_back((now, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use {super::*, http::HeaderValue};

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[tokio::test]
    async fn only_the_token_opens() {
        let access = Access::new(ReaderAuth::Token(Secret::new("hush"))).unwrap();
        for (value, expected) in [
            ("Bearer hush", true),
            ("bearer hush", true),
            ("Bearer  hush ", true),
            ("Bearer hushh", false),
            ("Bearer", false),
            ("Basic hush", false),
            ("", false),
        ] {
            let viewer = access.by_bearer(&headers(AUTHORIZATION, value)).await.unwrap();
            assert_eq!(viewer.is_some(), expected, "{value:?}");
        }
        let open = Access::new(ReaderAuth::Open { is_meant: false }).unwrap();
        let nothing = headers(AUTHORIZATION, "Bearer ");
        assert!(open.by_bearer(&nothing).await.unwrap().is_none());
        assert!(open.by_cookie(&nothing, SystemTime::now()).is_some());
    }

    #[tokio::test]
    async fn a_sign_in_gives_a_cookie_that_counts() {
        let access = Access::new(ReaderAuth::Token(Secret::new("hush"))).unwrap();
        let now = SystemTime::now();
        assert!(matches!(access.sign_in("guess", now).await, Ok(SignIn::Wrong)));
        let Ok(SignIn::Done(cookie)) = access.sign_in("hush", now).await else {
            panic!("the token is right");
        };
        assert_eq!(cookie.lasts, SESSION);
        let line = format!("{}={}", super::super::cookie::COOKIE_NAME, cookie.value);
        let line = headers(http::header::COOKIE, &line);
        assert!(access.by_cookie(&line, now).is_some());
        assert!(access.by_cookie(&line, now + SESSION).is_none());
        let other = Access::new(ReaderAuth::Token(Secret::new("other"))).unwrap();
        assert!(other.by_cookie(&line, now).is_none(), "another token");
    }

    #[test]
    fn wrong_tokens_make_their_sender_wait() {
        let (limit, start) = (SignInLimit::default(), Instant::now());
        let [guesser, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        for _ in 0..SignInLimit::FREE {
            assert!(limit.allows(guesser, start));
            limit.failed(guesser, start);
        }
        assert!(!limit.allows(guesser, start));
        assert!(limit.allows(other, start));
        assert!(limit.allows(guesser, start + SignInLimit::WINDOW));
    }
}
