//! HTTPS checks: any certificate will do, unless the probe says `verify`.

use {
    crate::{LONG, SHORT, failed, http_get, run_for, spec, succeeded, target::Target},
    healthscope_agent::prober::{Certificate, ProberConfig, Probers},
    healthscope_shared::{
        health::Reason,
        probe::{Handler, HttpGetAction, Scheme, outcome::Outcome},
    },
    rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd},
    rustls::{
        ServerConfig, ServerConnection, StreamOwned,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
    std::{
        io::{Read, Write},
        sync::Arc,
    },
};

/// An authority made for one test.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// A server with a certificate for `name`.
    fn server(&self, name: &str, expired: bool) -> Target {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        Target::raw(move |stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut request = [0; 1024];
            if matches!(stream.read(&mut request), Ok(1..)) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                let _ = stream.read(&mut request);
            }
        })
    }
}

async fn get(target: &Target, host: &str, verify: bool, trusted: &[&Authority]) -> Outcome {
    let extra_roots = trusted
        .iter()
        .map(|authority| authority.certificate.clone())
        .collect();
    let action = HttpGetAction {
        scheme: Scheme::Https,
        verify_tls: verify,
        ..http_get(host, target.port(), "/")
    };
    let probers = Probers::new(ProberConfig {
        extra_roots,
        ..ProberConfig::default()
    });
    probers.run(&spec(Handler::HttpGet(action), LONG)).await
}

#[track_caller]
fn tls_failed(outcome: &Outcome, about: &str) {
    assert_eq!(outcome.result.reason(), Some(&Reason::TLS_FAILED), "{outcome:?}");
    assert!(
        !outcome.result.is_success() && outcome.message.contains(about),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn any_certificate_will_do_for_a_probe_that_does_not_verify() {
    let authority = Authority::new("ours");
    succeeded(&get(&authority.server("localhost", false), "127.0.0.1", false, &[]).await);
    succeeded(&get(&authority.server("other.example", true), "localhost", false, &[]).await);
}

#[tokio::test]
async fn a_verified_certificate_must_be_trusted_named_and_valid() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = ours.server("localhost", false);
    succeeded(&get(&server, "localhost", true, &[&ours]).await);
    succeeded(&get(&ours.server("127.0.0.1", false), "127.0.0.1", true, &[&ours]).await);
    tls_failed(&get(&server, "localhost", true, &[&other]).await, "UnknownIssuer");
    tls_failed(&get(&server, "localhost", true, &[]).await, "TLS handshake: ");
    tls_failed(
        &get(&ours.server("other.example", false), "localhost", true, &[&ours]).await,
        "not valid for name",
    );
    tls_failed(
        &get(&ours.server("localhost", true), "localhost", true, &[&ours]).await,
        "expired",
    );
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_fails_the_handshake() {
    let plain = Target::raw(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        crate::target::hold(&mut stream);
    });
    tls_failed(&get(&plain, "127.0.0.1", false, &[]).await, "TLS handshake: ");
}

#[tokio::test]
async fn a_handshake_that_stalls_times_out() {
    let silent = Target::raw(|mut stream| crate::target::hold(&mut stream));
    let action = HttpGetAction {
        scheme: Scheme::Https,
        ..http_get("127.0.0.1", silent.port(), "/")
    };
    let outcome = run_for(SHORT, Handler::HttpGet(action)).await;
    failed(
        &outcome,
        Reason::TIMED_OUT,
        "TLS handshake not finished within 300ms",
    );
}

#[tokio::test]
async fn https_redirects_are_followed_on_the_same_host() {
    let authority = Authority::new("ours");
    let secure = authority.server("localhost", false);
    let location = format!("location: https://127.0.0.1:{}/\r\n", secure.port());
    let plain = Target::answering(crate::target::answer(301, &location, ""));
    let outcome = run_for(LONG, Handler::HttpGet(http_get("127.0.0.1", plain.port(), "/"))).await;
    succeeded(&outcome);
}
