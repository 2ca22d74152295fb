//! Tokens, certificates and names.

use {
    crate::{
        agent::{Home, exec_component},
        aggregator::Aggregator,
    },
    healthscope_service::tls::{self, Served},
    http::StatusCode,
    rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair},
    rustls::ServerConfig,
    std::sync::Arc,
};

#[tokio::test]
async fn token_is_shown_and_a_refusal_is_told_once() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(&exec_component("web", "true"));
    let token = home.write("token", "hush\n");
    let mut command = home.command(&aggregator.url());
    command.arg("--token-file").arg(&token);
    let agent = crate::agent::Agent::start(&home, command);
    for _ in 0..3 {
        let headers = aggregator.refuse(StatusCode::UNAUTHORIZED).await;
        assert_eq!(headers["authorization"], "Bearer hush");
        assert_eq!(
            headers["user-agent"],
            concat!("healthscope-agent/", env!("CARGO_PKG_VERSION"))
        );
    }
    agent.logged("refused this agent: 401 Unauthorized").await;
    assert_eq!(agent.count_logged("check the token"), 1);
    let problem = agent.status().await["aggregator"]["problem"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(problem.contains("401 Unauthorized"), "{problem}");
    aggregator.refuse(StatusCode::FORBIDDEN).await;
    agent.logged("403 Forbidden").await;
    home.write("token", "other");
    let session = aggregator.accept().await;
    assert_eq!(session.headers["authorization"], "Bearer other");
    assert_eq!(agent.count_logged("hush"), 0);
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    /// A server's configuration with a certificate for `name`.
    fn server(&self, home: &Home, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let certificate = home.write("cert.pem", &leaf.pem());
        let key = home.write("key.pem", &key.serialize_pem());
        let key = tls::certified_key(&certificate, &key).unwrap();
        tls::server_config(Arc::new(Served::new(key)))
    }
}

#[tokio::test]
async fn certificate_must_be_signed_by_the_named_authority_for_the_right_name() {
    let home = Home::new(&exec_component("web", "true"));
    let (ours, other) = (Authority::new(), Authority::new());
    let aggregator = Aggregator::tls(ours.server(&home, "scope.example.org")).await;
    let right = home.write("right.pem", &ours.issuer.pem());
    let wrong = home.write("wrong.pem", &other.issuer.pem());
    for (ca, name, expected) in [
        (&wrong, Some("scope.example.org"), "signed by nobody trusted here"),
        (&right, None, "its certificate is for another name"),
    ] {
        let mut command = home.command(&aggregator.url());
        command.arg("--ca").arg(ca);
        if let Some(name) = name {
            command.args(["--server-name", name]);
        }
        let agent = crate::agent::Agent::start(&home, command);
        tokio::select! {
            line = agent.logged("no TLS with") => assert!(line.contains(expected), "{line}"),
            _ = aggregator.accept() => panic!("trusted a certificate that {expected}"),
        }
        agent.killed().await;
    }
    let mut command = home.command(&aggregator.url());
    command
        .arg("--ca")
        .arg(&right)
        .args(["--server-name", "scope.example.org"]);
    let agent = crate::agent::Agent::start(&home, command);
    aggregator.open().await;
    agent.logged("connected").await;
}

#[tokio::test]
async fn each_process_is_an_epoch_of_its_own() {
    let aggregator = Aggregator::plain().await;
    let home = Home::new(&exec_component("web", "true"));
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let agent = home.start(&aggregator.url());
        let mut session = aggregator.accept().await;
        let hello = session.hello().await;
        epochs.push((hello.epoch, hello.seq));
        // A killed process leaves its socket behind; the next one replaces it.
        agent.killed().await;
        assert!(home.socket().exists());
    }
    assert_ne!(epochs[0].0, epochs[1].0);
    assert_eq!(epochs[1].1.0, 0);
}
