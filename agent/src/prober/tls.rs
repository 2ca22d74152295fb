//! TLS for HTTPS checks: the kubelet's way (any certificate will do), or verified when the probe says so.
//!
//! Both configurations are made when a probe first needs them, so an agent without HTTPS checks never reads the trust
//! store. Sessions are not resumed: each probe is a handshake of its own, as it would be for a new client.

use {
    super::{Deadline, Found, Probers},
    healthscope_service::tls,
    healthscope_shared::health::Reason,
    rustls::{
        ClientConfig, RootCertStore,
        client::Resumption,
        pki_types::{CertificateDer, ServerName},
    },
    std::{
        error::Error as _,
        io,
        os::fd::OwnedFd,
        sync::{Arc, OnceLock},
    },
    tokio::{net::TcpStream, time::timeout_at},
    tokio_rustls::{TlsConnector, client::TlsStream},
};

/// A certificate in DER form.
pub type Certificate = CertificateDer<'static>;

/// The two client configurations.
#[derive(Debug)]
pub(super) struct Clients {
    extra_roots: Vec<Certificate>,
    trusting: OnceLock<Arc<ClientConfig>>,
    verifying: OnceLock<Arc<ClientConfig>>,
}

impl Clients {
    pub(super) const fn new(extra_roots: Vec<Certificate>) -> Self {
        Self {
            extra_roots,
            trusting: OnceLock::new(),
            verifying: OnceLock::new(),
        }
    }

    fn config(&self, verify: bool) -> Arc<ClientConfig> {
        let made = if verify {
            self.verifying.get_or_init(|| Arc::new(self.verifying()))
        } else {
            self.trusting.get_or_init(tls::insecure_client_config)
        };
        Arc::clone(made)
    }

    fn verifying(&self) -> ClientConfig {
        tls::install_provider();
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "part of the system's trust store cannot be read");
        }
        let (_, unusable) = roots.add_parsable_certificates(native.certs);
        tracing::debug!(trusted = roots.len(), unusable, "read the system's trust store");
        roots.add_parsable_certificates(self.extra_roots.iter().cloned());
        // With no roots at all every verification fails, which is then what the probe reports.
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config
    }
}

impl Probers {
    /// Makes a connected socket a TLS connection to `host`.
    pub(super) async fn handshake(
        &self,
        socket: OwnedFd,
        host: &str,
        verify: bool,
        deadline: Deadline,
    ) -> Result<TlsStream<TcpStream>, Found> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| tls_failed(format!("{host} cannot be asked for by TLS: {error}")))?;
        let stream = TcpStream::from_std(socket.into()).map_err(|error| Found::io(&error, "connect"))?;
        let connector = TlsConnector::from(self.tls.config(verify));
        match timeout_at(deadline.at, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(handshake_failed(&error)),
            Err(_) => Err(deadline.passed("TLS handshake not finished")),
        }
    }
}

fn tls_failed(message: String) -> Found {
    Found::failure(Reason::TLS_FAILED, message)
}

fn handshake_failed(error: &io::Error) -> Found {
    if super::is_shortage(error) {
        return Found::io(error, "TLS handshake");
    }
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let mut text = cause.map_or_else(|| super::plain(error), ToString::to_string);
    let mut source = cause.and_then(rustls::Error::source);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    tls_failed(format!("TLS handshake: {text}"))
}
