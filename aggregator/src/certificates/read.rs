//! What a Secret holds, taken apart: what of it can be used, and why the rest cannot.
//!
//! Whoever may write Secrets in our namespace may write anything into this one; nothing here ends in an error.

use {
    base64::{Engine, engine::general_purpose::STANDARD},
    healthscope_core::certificate::{Holding, Leaf, MAX_AUTHORITIES, Validity},
    healthscope_service::{telemetry::chain, tls},
    jiff::Timestamp,
    k8s_openapi::{ByteString, api::core::v1::Secret},
    rcgen::{KeyPair, PublicKeyData},
    rustls::sign::CertifiedKey,
    rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject},
    std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration},
};

/// Keys in the Secret.
pub(super) const AUTHORITIES: &str = "ca.crt";
pub(super) const AUTHORITY_KEY: &str = "ca.key";
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";

/// The texts in a Secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) authorities: Vec<u8>,
    pub(super) authority_key: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contents(..)")
    }
}

impl Contents {
    pub(super) fn of(secret: &Secret) -> Self {
        let text = |key: &str| {
            let found = secret.data.as_ref().and_then(|data| data.get(key));
            found.map(|ByteString(bytes)| bytes.clone()).unwrap_or_default()
        };
        Self {
            authorities: text(AUTHORITIES),
            authority_key: text(AUTHORITY_KEY),
            certificate: text(CERTIFICATE),
            key: text(KEY),
        }
    }

    /// The same Secret with these texts.
    pub(super) fn put(&self, mut secret: Secret) -> Secret {
        let Self {
            authorities,
            authority_key,
            certificate,
            key,
        } = self;
        let data: &mut BTreeMap<_, _> = secret.data.get_or_insert_default();
        for (name, bytes) in [
            (AUTHORITIES, authorities),
            (AUTHORITY_KEY, authority_key),
            (CERTIFICATE, certificate),
            (KEY, key),
        ] {
            data.insert(name.to_owned(), ByteString(bytes.clone()));
        }
        secret
    }
}

/// What of it can be used.
#[derive(Clone)]
pub(super) struct Material {
    pub(super) contents: Contents,
    pub(super) holding: Holding,
    /// The authorities, in the order of [`Holding::bundle`].
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// The key of one of them.
    pub(super) authority_key: Option<Arc<KeyPair>>,
    /// What can be shown.
    pub(super) shown: Option<Arc<CertifiedKey>>,
    /// What is there and cannot be used, and why.
    pub(super) problems: Vec<String>,
}

/// Takes a Secret's contents apart, for a server that has these names.
pub(super) fn read(contents: Contents, names: &[String], now: Timestamp) -> Material {
    let mut problems = Vec::new();
    let (authorities, bundle) = read_authorities(&contents.authorities, &mut problems);
    let authority_key = read_key(&contents.authority_key, &mut problems).map(Arc::new);
    let signer = authority_key.as_ref().and_then(|key| {
        let key = key.subject_public_key_info();
        let found = authorities
            .iter()
            .position(|authority| public_key(authority).is_some_and(|public| public == key));
        if found.is_none() {
            problems.push(format!(
                "{AUTHORITY_KEY} is the key of no certificate in {AUTHORITIES}"
            ));
        }
        found
    });
    let shown = read_shown(&contents, &mut problems);
    let leaf = shown.as_ref().and_then(|shown| {
        let validity = validity(shown.cert.first()?)?;
        let at = unix(now.clamp(validity.from, validity.until));
        let issuer = authorities
            .iter()
            .position(|authority| tls::is_vouched_for(authority, &shown.cert, names, at));
        if issuer.is_none() {
            problems.push(format!(
                "{CERTIFICATE} is not signed by an authority in {AUTHORITIES}, or not for the names {}",
                names.join(", ")
            ));
        }
        Some(Leaf { validity, issuer })
    });
    let holding = Holding { bundle, signer, leaf };
    Material {
        contents,
        holding,
        authorities,
        authority_key,
        shown,
        problems,
    }
}

fn read_authorities(pem: &[u8], problems: &mut Vec<String>) -> (Vec<CertificateDer<'static>>, Vec<Validity>) {
    let mut found = Vec::new();
    // One more than is ever kept, so that a bundle that somebody else filled is noticed and cut.
    for certificate in CertificateDer::pem_slice_iter(pem).take(MAX_AUTHORITIES + 1) {
        match certificate {
            Ok(certificate) => match validity(&certificate) {
                Some(validity) => found.push((certificate, validity)),
                None => problems.push(format!("{AUTHORITIES} has a certificate that cannot be read")),
            },
            Err(error) => {
                problems.push(format!("{AUTHORITIES} is not PEM: {error}"));
                break;
            }
        }
    }
    if found.is_empty() && problems.is_empty() && !pem.is_empty() {
        problems.push(format!("{AUTHORITIES} has no certificate"));
    }
    found.into_iter().unzip()
}

fn read_key(pem: &[u8], problems: &mut Vec<String>) -> Option<KeyPair> {
    if pem.is_empty() {
        return None;
    }
    let key = std::str::from_utf8(pem)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok());
    if key.is_none() {
        problems.push(format!("{AUTHORITY_KEY} is no private key in PEM (PKCS #8)"));
    }
    key
}

fn read_shown(contents: &Contents, problems: &mut Vec<String>) -> Option<Arc<CertifiedKey>> {
    let Contents {
        authorities: _,
        authority_key: _,
        certificate,
        key,
    } = contents;
    if certificate.is_empty() && key.is_empty() {
        return None;
    }
    let read = tls::certified_key_from_pem((Path::new(CERTIFICATE), certificate), (Path::new(KEY), key));
    read.map_err(|error| problems.push(chain(&error))).ok()
}

/// From when to when a certificate is valid; `None` when it is none.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = certificate.validity();
    Some(Validity {
        from: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        until: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
    })
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(at.as_second()).unwrap_or_default(),
    ))
}

/// Certificates as PEM.
pub(super) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    /// Characters in a line; RFC 7468.
    const LINE: usize = 64;
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
