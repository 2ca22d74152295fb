//! Who may read: the token in a header, or a cookie that proves that the token was once typed into the form.
//!
//! Nothing is stored: the cookie is an expiry time with its authentication code under the token, so that a restart signs
//! nobody out and a new token signs everybody out.

use {
    crate::config::ReaderAuth,
    healthscope_service::token::Secret,
    http::{
        HeaderMap,
        header::{AUTHORIZATION, COOKIE},
    },
    ring::hmac,
    std::{
        collections::VecDeque,
        net::IpAddr,
        sync::{Mutex, PoisonError},
        time::{Duration, Instant, SystemTime, UNIX_EPOCH},
    },
};

/// The cookie's name.
pub(crate) const COOKIE_NAME: &str = "healthscope_session";
/// How long a sign-in lasts: a shift.
pub(crate) const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// Distinguishes this use of the token from any other.
const PURPOSE: &str = "healthscope session v1 ";

/// What readers and agents must show.
pub(crate) struct Access {
    token: Option<(Secret, hmac::Key)>,
}

impl Access {
    pub(crate) fn new(readers: ReaderAuth) -> Self {
        let token = match readers {
            ReaderAuth::Open => None,
            ReaderAuth::Token(token) => Some(token),
        };
        let with_key = |token: Secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
            (token, key)
        };
        Self {
            token: token.map(with_key),
        }
    }

    /// Whether nobody needs to show anything.
    pub(crate) const fn is_open(&self) -> bool {
        self.token.is_none()
    }

    /// Whether `candidate` is the token; never when there is none.
    pub(crate) fn is_token(&self, candidate: &[u8]) -> bool {
        let token = self.token.as_ref();
        token.is_some_and(|(token, _)| token.matches(candidate))
    }

    /// Whether `Authorization: Bearer` shows the token.
    pub(crate) fn has_bearer(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|candidate| self.is_token(candidate))
    }

    /// Whether a cookie shows a sign-in that lasts.
    pub(crate) fn has_session(&self, headers: &HeaderMap, now: SystemTime) -> bool {
        let cookies = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(name, value)| name == COOKIE_NAME && self.is_session(value, now))
    }

    /// The value of a new cookie.
    pub(crate) fn session(&self, now: SystemTime) -> Option<String> {
        let (_, key) = self.token.as_ref()?;
        let expires = seconds(now + SESSION);
        let tag = hmac::sign(key, format!("{PURPOSE}{expires}").as_bytes());
        Some(format!("{expires}.{}", hex(tag.as_ref())))
    }

    fn is_session(&self, value: &str, now: SystemTime) -> bool {
        let Some((_, key)) = &self.token else { return false };
        let Some((expires, tag)) = value.split_once('.') else {
            return false;
        };
        let (Some(tag), Ok(until)) = (unhex(tag), expires.parse::<u64>()) else {
            return false;
        };
        let is_ours = hmac::verify(key, format!("{PURPOSE}{expires}").as_bytes(), &tag).is_ok();
        is_ours && seconds(now) < until
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

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| pair.iter().fold(0, |value, &digit| value << 4 | nibble(digit)))
            .collect()
    })
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
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

    fn access() -> Access {
        Access::new(ReaderAuth::Token(Secret::new("hush")))
    }

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_the_token_opens() {
        #[track_caller]
        fn check(value: &str, expected: bool) {
            assert_eq!(
                access().has_bearer(&headers(AUTHORIZATION, value)),
                expected,
                "{value:?}"
            );
        }
        check("Bearer hush", true);
        check("bearer hush", true);
        check("Bearer  hush ", true);
        check("Bearer hushh", false);
        check("Bearer", false);
        check("Basic hush", false);
        check("", false);
        assert!(!Access::new(ReaderAuth::Open).has_bearer(&headers(AUTHORIZATION, "Bearer ")));
    }

    #[test]
    fn a_cookie_is_good_until_it_expires() {
        let start = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let value = access().session(start).unwrap();
        let cookies = headers(COOKIE, &format!("a=b; {COOKIE_NAME}={value}"));
        assert!(access().has_session(&cookies, start));
        assert!(access().has_session(&cookies, start + SESSION - Duration::from_secs(1)));
        assert!(!access().has_session(&cookies, start + SESSION));
        let other = Access::new(ReaderAuth::Token(Secret::new("other")));
        assert!(!other.has_session(&cookies, start), "another token");
    }

    #[test]
    fn a_forged_cookie_is_no_cookie() {
        let start = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let value = access().session(start).unwrap();
        let (_, tag) = value.split_once('.').unwrap();
        for forged in [
            format!("99999999999.{tag}"),
            format!("{value}0"),
            "1".into(),
            ".".into(),
            format!("+1.{tag}"),
        ] {
            let cookies = headers(COOKIE, &format!("{COOKIE_NAME}={forged}"));
            assert!(!access().has_session(&cookies, start), "{forged}");
        }
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
