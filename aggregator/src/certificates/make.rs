//! Makes keys and certificates. Decides nothing: what is made is said by [`Making`].

use {
    super::read::{Contents, Material, pem},
    healthscope_core::certificate::{AUTHORITY_LIFETIME, LEAF_LIFETIME, Making, Signer, Validity},
    jiff::Timestamp,
    rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    },
    rustls_pki_types::CertificateDer,
    time::OffsetDateTime,
};

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// Keys, names or signatures failed.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The clock shows a time that certificates cannot say.
    #[error("this machine's clock shows a time that no certificate can have")]
    Time(#[from] time::error::ComponentRange),
    /// The authority that is to sign is not there.
    #[error("the authority's key is not there")]
    NoSigner,
}

/// Makes what is wanted, beside what stays of `material`, for a server that has these names.
pub(super) fn make(
    material: &Material,
    making: &Making,
    names: &[String],
    now: Timestamp,
) -> Result<Contents, MakeError> {
    let Making {
        why: _,
        authority,
        kept,
        leaf,
    } = making;
    let kept = kept
        .iter()
        .filter_map(|place| material.authorities.get(*place).cloned());
    let fresh = authority.then(|| Authority::make(now)).transpose()?;
    let mut contents = material.contents.clone();
    if let Some(signer) = leaf {
        let (certificate, key) = match (signer, &fresh) {
            (Signer::New, Some(Authority { certificate, key })) => sign(certificate, key, names, now)?,
            (Signer::Present, _) => {
                let place = material.holding.signer.ok_or(MakeError::NoSigner)?;
                let certificate = material.authorities.get(place).ok_or(MakeError::NoSigner)?;
                let key = material.authority_key.as_ref().ok_or(MakeError::NoSigner)?;
                sign(certificate, key, names, now)?
            }
            (Signer::New, None) => return Err(MakeError::NoSigner),
        };
        contents.certificate = certificate.into_bytes();
        contents.key = key.into_bytes();
    }
    let bundle: Vec<_> = match fresh {
        Some(Authority { certificate, key }) => {
            contents.authority_key = key.serialize_pem().into_bytes();
            std::iter::once(certificate).chain(kept).collect()
        }
        None => kept.collect(),
    };
    contents.authorities = pem(&bundle).into_bytes();
    Ok(contents)
}

struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    fn make(now: Timestamp) -> Result<Self, MakeError> {
        let mut params = CertificateParams::default();
        validate(&mut params, Validity::beginning(now, AUTHORITY_LIFETIME))?;
        // The moment tells namesakes apart: verifiers look for an issuer by its name.
        params.distinguished_name.push(
            DnType::CommonName,
            format!("healthscope-ca-{}", now.as_millisecond()),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, key })
    }
}

/// A certificate in PEM, and its key.
fn sign(
    authority: &CertificateDer<'_>,
    authority_key: &KeyPair,
    names: &[String],
    now: Timestamp,
) -> Result<(String, String), MakeError> {
    let mut params = CertificateParams::new(names)?;
    validate(&mut params, Validity::beginning(now, LEAF_LIFETIME))?;
    params
        .distinguished_name
        .push(DnType::CommonName, "healthscope-aggregator");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let issuer = Issuer::from_ca_cert_der(authority, authority_key)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((pem(&[certificate.der().clone()]), key.serialize_pem()))
}

fn validate(params: &mut CertificateParams, validity: Validity) -> Result<(), MakeError> {
    params.not_before = OffsetDateTime::from_unix_timestamp(validity.from.as_second())?;
    params.not_after = OffsetDateTime::from_unix_timestamp(validity.until.as_second())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::certificates::read::read,
        healthscope_core::certificate::{AUTHORITY_MARGIN, Holding, LEAF_MARGIN, Step, decide},
        jiff::SignedDuration,
    };

    fn names() -> Vec<String> {
        vec!["healthscope-webhook.x.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_hours(24 * days)
    }

    /// Does what is decided until nothing is left to do; how often something was made.
    fn settle(contents: Contents, now: Timestamp) -> (Material, usize) {
        let mut material = read(contents, &names(), now);
        for made in 0..5 {
            match decide(&material.holding, None, now) {
                Step::Make(making) => {
                    let contents = make(&material, &making, &names(), now).unwrap();
                    material = read(contents, &names(), now);
                }
                Step::Keep { .. } | Step::Restore => return (material, made),
            }
        }
        panic!("it never settles: {:?}", material.holding);
    }

    #[test]
    fn what_is_made_of_nothing_is_whole() {
        let (material, made) = settle(Contents::default(), at(0));
        assert_eq!(made, 1);
        assert_eq!(material.problems, Vec::<String>::new());
        assert_eq!(material.holding.signer, Some(0));
        assert_eq!(material.holding.leaf.unwrap().issuer, Some(0));
        assert!(material.holding.is_usable(at(89)));
        assert!(!material.holding.is_usable(at(91)));
        let same = read(material.contents.clone(), &names(), at(1));
        assert_eq!(same.holding, material.holding);
    }

    #[test]
    fn a_renewed_certificate_is_of_the_same_authority() {
        let (former, _) = settle(Contents::default(), at(0));
        let (latter, made) = settle(former.contents.clone(), at(61));
        assert_eq!(made, 1);
        assert_eq!(latter.authorities, former.authorities);
        assert_ne!(latter.contents.certificate, former.contents.certificate);
        assert_ne!(latter.contents.key, former.contents.key);
    }

    /// Whoever trusts what was published at any moment takes what is shown two months later.
    #[test]
    fn an_authority_is_followed_without_a_gap() {
        let whole_days = (AUTHORITY_LIFETIME.as_hours() - AUTHORITY_MARGIN.as_hours()) / 24;
        let (mut material, _) = settle(Contents::default(), at(0));
        let mut rotations = 0;
        let mut day = 0;
        while day < whole_days + 200 {
            day += (LEAF_MARGIN.as_hours() / 24) / 2;
            let (next, _) = settle(material.contents.clone(), at(day));
            let names = names();
            let trusted = &material.authorities;
            let shown = &next.shown.as_ref().unwrap().cert;
            let moment = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
                u64::try_from(at(day).as_second()).unwrap(),
            ));
            assert!(
                trusted
                    .iter()
                    .any(|authority| healthscope_service::tls::is_vouched_for(
                        authority, shown, &names, moment
                    )),
                "on day {day}"
            );
            rotations += usize::from(next.authorities.first() != material.authorities.first());
            material = next;
        }
        assert_eq!(rotations, 1);
        assert_eq!(
            material.holding.leaf.unwrap().issuer,
            Some(0),
            "the new one signs"
        );
        assert_eq!(material.authorities.len(), 2, "the old one is still trusted");
    }

    #[test]
    fn garbage_is_named_and_replaced() {
        let (whole, _) = settle(Contents::default(), at(0));
        let check = |change: &dyn Fn(&mut Contents), problem: &str, stays: bool| {
            let mut broken = whole.contents.clone();
            change(&mut broken);
            let found = read(broken.clone(), &names(), at(1));
            assert!(
                found.problems.iter().any(|found| found.contains(problem)) || problem.is_empty(),
                "{problem}: {:?}",
                found.problems
            );
            let (repaired, _) = settle(broken, at(1));
            assert!(repaired.holding.is_usable(at(1)));
            assert_eq!(
                repaired.authorities.contains(&whole.authorities[0]),
                stays,
                "{problem}"
            );
        };
        check(
            &|contents| contents.certificate = b"garbage".to_vec(),
            "tls.crt",
            true,
        );
        check(&|contents| contents.key = b"\xff\xfe".to_vec(), "tls.key", true);
        check(
            &|contents| contents.authority_key = b"garbage".to_vec(),
            "ca.key is no",
            true,
        );
        check(&|contents| contents.authority_key.clear(), "", true);
        check(
            &|contents| contents.authorities = b"garbage".to_vec(),
            "ca.crt",
            false,
        );
        check(
            &|contents| contents.authority_key.clone_from(&contents.key),
            "ca.key is the key of no",
            true,
        );
        let (other, _) = settle(Contents::default(), at(0));
        let foreign = other.contents.certificate;
        let key = other.contents.key;
        check(
            &|contents| {
                contents.certificate.clone_from(&foreign);
                contents.key.clone_from(&key);
            },
            "not signed by",
            true,
        );
    }

    #[test]
    fn other_names_make_another_certificate() {
        let (whole, _) = settle(Contents::default(), at(0));
        let moved = read(whole.contents, &["healthscope-webhook.y.svc".to_owned()], at(1));
        assert!(matches!(decide(&moved.holding, None, at(1)), Step::Make(_)));
        assert_ne!(moved.holding, Holding::default());
    }
}
