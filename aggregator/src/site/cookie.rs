//! Cookies that nobody else can make: a time, something to remember, and an authentication code over both.
//!
//! Nothing is stored here: whoever has the key can read any cookie that was made with it.

use {
    base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD},
    http::{HeaderMap, header::COOKIE},
    ring::{error::Unspecified, hmac, rand::SystemRandom},
    std::time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The cookie's name.
pub(crate) const COOKIE_NAME: &str = "healthscope_session";
/// The most that a cookie may remember: browsers keep 4096 bytes of name, value and attributes.
const MAX_CONTENT_BYTES: usize = 2_800;
/// Distinguishes this use of the key from any other.
const PURPOSE: &str = "healthscope session v2 ";

/// Makes and reads cookies.
pub(crate) struct Cookies {
    key: hmac::Key,
}

/// A cookie to be set.
#[derive(Debug)]
pub(crate) struct Cookie {
    pub(crate) value: String,
    pub(crate) lasts: Duration,
}

/// It would not fit into a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Cookies {
    /// With a key made of a secret: a restart signs nobody out, and a new secret signs everybody out.
    pub(super) fn from_secret(secret: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// With a key that this process alone has.
    pub(super) fn random() -> Result<Self, Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self { key })
    }

    /// Makes one that is good for so long.
    pub(super) fn make(&self, content: &str, now: SystemTime, lasts: Duration) -> Result<Cookie, TooLong> {
        if content.len() > MAX_CONTENT_BYTES {
            return Err(TooLong);
        }
        let signed = format!("{}.{}", seconds(now + lasts), URL_SAFE_NO_PAD.encode(content));
        let tag = hmac::sign(&self.key, format!("{PURPOSE}{signed}").as_bytes());
        Ok(Cookie {
            value: format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)),
            lasts,
        })
    }

    /// What the cookie among these headers remembers, and how long it is still good; `None` when there is none that is.
    pub(super) fn read(&self, headers: &HeaderMap, now: SystemTime) -> Option<(String, Duration)> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(name, _)| *name == COOKIE_NAME)
            .find_map(|(_, value)| self.open(value, now))
    }

    fn open(&self, value: &str, now: SystemTime) -> Option<(String, Duration)> {
        let (signed, tag) = value.rsplit_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.key, format!("{PURPOSE}{signed}").as_bytes(), &tag).ok()?;
        let (until, content) = signed.split_once('.')?;
        let left = until.parse::<u64>().ok()?.checked_sub(seconds(now))?;
        let content = String::from_utf8(URL_SAFE_NO_PAD.decode(content).ok()?).ok()?;
        (left > 0).then(|| (content, Duration::from_secs(left)))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use {super::*, http::HeaderValue};

    const LASTS: Duration = Duration::from_secs(3_600);

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(value).unwrap())])
    }

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[test]
    fn a_cookie_is_good_until_it_expires() {
        let cookies = Cookies::from_secret(b"hush");
        let made = cookies.make("who", start(), LASTS).unwrap();
        let line = headers(&format!("a=b; {COOKIE_NAME}={}", made.value));
        let read = |cookies: &Cookies, now| cookies.read(&line, now).map(|(content, _)| content);
        assert_eq!(cookies.read(&line, start()), Some(("who".to_owned(), LASTS)));
        assert_eq!(
            read(&cookies, start() + LASTS - Duration::from_secs(1)).as_deref(),
            Some("who")
        );
        assert_eq!(read(&cookies, start() + LASTS), None);
        assert_eq!(read(&Cookies::from_secret(b"other"), start()), None);
        assert_eq!(read(&Cookies::random().unwrap(), start()), None);
    }

    #[test]
    fn a_forged_cookie_is_no_cookie() {
        let cookies = Cookies::from_secret(b"hush");
        let value = cookies.make("who", start(), LASTS).unwrap().value;
        let (until, rest) = value.split_once('.').unwrap();
        let (content, tag) = rest.split_once('.').unwrap();
        for forged in [
            format!("99999999999.{rest}"),
            format!("{until}.YWRtaW4.{tag}"),
            format!("{until}{content}.{tag}"),
            format!("{value}0"),
            format!("{until}.{content}."),
            "1".into(),
            "..".into(),
            String::new(),
        ] {
            let line = headers(&format!("{COOKIE_NAME}={forged}"));
            assert_eq!(cookies.read(&line, start()), None, "{forged}");
        }
    }

    #[test]
    fn what_no_browser_would_keep_is_not_made() {
        let cookies = Cookies::from_secret(b"hush");
        let longest = cookies
            .make(&"x".repeat(MAX_CONTENT_BYTES), start(), LASTS)
            .unwrap();
        assert!(longest.value.len() + COOKIE_NAME.len() < 4_000);
        let longer = "x".repeat(MAX_CONTENT_BYTES + 1);
        assert_eq!(cookies.make(&longer, start(), LASTS).unwrap_err(), TooLong);
    }
}
