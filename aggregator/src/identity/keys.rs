//! The keys that a cluster signs its tokens with, as it publishes them.
//!
//! [`Keyring`] verifies and is pure. When it is fetched anew is decided by [`Freshness`], which is pure as well; nothing
//! here talks to anybody.

use {
    super::claims::{Claims, Refused},
    jsonwebtoken::{
        Algorithm, DecodingKey, Validation,
        jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
    },
    serde_json::Value,
    std::{
        collections::HashMap,
        fmt,
        time::{Duration, Instant},
    },
};

/// Keys taken of one cluster; while keys are replaced there are two or three.
const MAX_KEYS: usize = 64;

/// How often the keys are looked at when all goes well: so long may a key that was withdrawn still be believed.
const PERIOD: Duration = Duration::from_secs(300);
/// Least time between two looks, whatever tokens come: unknown keys can be invented by the million.
const LEAST: Duration = Duration::from_secs(10);
/// How often to look again for keys that may not be read.
const HIDDEN_PERIOD: Duration = Duration::from_secs(60);

/// An issuer and its keys.
pub(super) struct Keyring {
    issuer: String,
    keys: HashMap<String, (Algorithm, DecodingKey)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("issuer", &self.issuer)
            .field("keys", &self.keys.len())
            .finish()
    }
}

/// What is published is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyringError {
    #[error("the cluster's description of itself has no issuer")]
    NoIssuer,
    #[error("the cluster's published keys are no list of keys")]
    NoKeys,
}

impl Keyring {
    /// Reads the two documents that a cluster publishes. Keys of kinds that are not taken are left out.
    pub(super) fn read(description: &str, published: &str) -> Result<Self, KeyringError> {
        let description: Value = serde_json::from_str(description).map_err(|_| KeyringError::NoIssuer)?;
        let issuer = description["issuer"].as_str().ok_or(KeyringError::NoIssuer)?;
        let mut published: Value = serde_json::from_str(published).map_err(|_| KeyringError::NoKeys)?;
        let Value::Array(published) = published["keys"].take() else {
            return Err(KeyringError::NoKeys);
        };
        let keys = published.into_iter().take(MAX_KEYS).filter_map(read_key);
        Ok(Self {
            issuer: issuer.to_owned(),
            keys: keys.collect(),
        })
    }

    /// Whether a key of this name is in it.
    pub(super) fn has(&self, key_id: &str) -> bool {
        self.keys.contains_key(key_id)
    }

    /// The issuer's name.
    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What a token says, if it is signed with the key of this name.
    pub(super) fn verify(&self, token: &str, key_id: &str) -> Result<Claims, Refused> {
        let (algorithm, key) = self.keys.get(key_id).ok_or(Refused::UnknownKey)?;
        let mut validation = Validation::new(*algorithm);
        // The claims are checked by `Claims`, with the time as an argument.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let verified = jsonwebtoken::decode::<Claims>(token, key, &validation);
        verified.map(|token| token.claims).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind;
            match error.kind() {
                ErrorKind::InvalidSignature => Refused::Signature,
                ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Refused::Algorithm,
                _ => Refused::Malformed,
            }
        })
    }
}

/// A key and its name. The kind of the key says the algorithm: a token has no say in how it is verified.
fn read_key(published: Value) -> Option<(String, (Algorithm, DecodingKey))> {
    let jwk: Jwk = serde_json::from_value(published).ok()?;
    let is_for_signatures = jwk
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        _ => return None,
    };
    if !is_for_signatures {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((jwk.common.key_id?, (algorithm, key)))
}

/// The name of the key that a token says it is signed with.
pub(super) fn key_id(token: &str) -> Result<String, Refused> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| {
        use jsonwebtoken::errors::ErrorKind;
        match error.kind() {
            // The head is JSON with an algorithm that nobody knows, `none` among them.
            ErrorKind::Json(error) if error.is_data() => Refused::Algorithm,
            _ => Refused::Malformed,
        }
    })?;
    match header.alg {
        Algorithm::RS256 | Algorithm::ES256 => header.kid.ok_or(Refused::UnknownKey),
        _ => Err(Refused::Algorithm),
    }
}

/// What a look at the published keys brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The keys.
    Found,
    /// They may not be read, or are not there.
    Hidden,
    /// No answer.
    Nothing,
}

/// Why the keys are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A token came.
    Anyway,
    /// A token came that is signed with a key that is not among them.
    UnknownKey,
}

/// When the keys were looked at, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Freshness(Option<(Instant, Look)>);

impl Freshness {
    /// Remembers a look.
    pub(super) fn looked(&mut self, look: Look, now: Instant) {
        self.0 = Some((now, look));
    }

    /// Whether it is time to look.
    pub(super) fn is_due(self, wanted: Wanted, now: Instant) -> bool {
        let Some((at, look)) = self.0 else { return true };
        let wait = match (look, wanted) {
            (Look::Found, Wanted::Anyway) => PERIOD,
            (Look::Found, Wanted::UnknownKey) | (Look::Nothing, _) => LEAST,
            (Look::Hidden, _) => HIDDEN_PERIOD,
        };
        now.saturating_duration_since(at) >= wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_looked_at_now_and_then() {
        let start = Instant::now();
        #[track_caller]
        fn check(look: Look, wanted: Wanted, waits: Duration) {
            let start = Instant::now();
            let mut freshness = Freshness::default();
            freshness.looked(look, start);
            assert!(!freshness.is_due(wanted, start + waits - Duration::from_millis(1)));
            assert!(freshness.is_due(wanted, start + waits));
        }
        assert!(Freshness::default().is_due(Wanted::Anyway, start));
        check(Look::Found, Wanted::Anyway, PERIOD);
        check(Look::Found, Wanted::UnknownKey, LEAST);
        check(Look::Nothing, Wanted::Anyway, LEAST);
        check(Look::Nothing, Wanted::UnknownKey, LEAST);
        check(Look::Hidden, Wanted::Anyway, HIDDEN_PERIOD);
        check(Look::Hidden, Wanted::UnknownKey, HIDDEN_PERIOD);
    }

    #[test]
    fn only_keys_that_can_verify_are_taken() {
        let published = serde_json::json!({"keys": [
            {"kty": "RSA", "kid": "good", "use": "sig", "alg": "RS256", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "kid": "curve", "crv": "P-256", "x": "AQAB", "y": "AQAB"},
            {"kty": "EC", "kid": "other-curve", "crv": "P-384", "x": "AQAB", "y": "AQAB"},
            {"kty": "RSA", "kid": "encrypts", "use": "enc", "n": "AQAB", "e": "AQAB"},
            {"kty": "oct", "kid": "secret", "k": "AQAB"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
            {"kty": "new", "kid": "unheard-of"},
            7,
        ]});
        let keyring = Keyring::read(r#"{"issuer":"i"}"#, &published.to_string()).unwrap();
        let mut names: Vec<_> = keyring.keys.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["curve", "good"]);
        assert_eq!(keyring.issuer(), "i");
    }

    #[test]
    fn what_is_no_list_of_keys_is_an_error() {
        for (description, published) in [
            ("", r#"{"keys":[]}"#),
            ("{}", r#"{"keys":[]}"#),
            (r#"{"issuer":"i"}"#, ""),
            (r#"{"issuer":"i"}"#, "{}"),
        ] {
            assert!(
                Keyring::read(description, published).is_err(),
                "{description} {published}"
            );
        }
    }

    #[test]
    fn heads_that_name_no_usable_key_are_refused() {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

        #[track_caller]
        fn check(head: &str, expected: Result<&str, Refused>) {
            let token = format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(head));
            assert_eq!(
                key_id(&token).as_deref().map_err(|&refused| refused),
                expected,
                "{head}"
            );
        }
        check(r#"{"alg":"RS256","kid":"a"}"#, Ok("a"));
        check(r#"{"alg":"ES256","kid":"a"}"#, Ok("a"));
        check(r#"{"alg":"RS256"}"#, Err(Refused::UnknownKey));
        check(r#"{"alg":"HS256","kid":"a"}"#, Err(Refused::Algorithm));
        check(r#"{"alg":"none","kid":"a"}"#, Err(Refused::Algorithm));
        check(r#"{"kid":"a"}"#, Err(Refused::Algorithm));
        for token in ["", "a", "a.b", "..", "a.b.c", "a.b.c.d", "!.!.!"] {
            assert_eq!(key_id(token), Err(Refused::Malformed), "{token}");
        }
    }
}
