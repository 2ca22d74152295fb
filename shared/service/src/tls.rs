//! TLS 1.2 and 1.3 by rustls with the ring provider: configurations from PEM files.
//!
//! No part of a process builds a rustls configuration elsewhere. Files are read once; nothing here watches them.

use {
    rustls::{
        ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
    },
    rustls_pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    std::{
        fs::File,
        io::{self, Read},
        path::{Path, PathBuf},
        sync::Arc,
    },
};

/// The longest PEM file taken: a whole public trust bundle is a quarter of this.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// Sessions a client remembers for resumption. A client here speaks to one aggregator; rustls' own default of 256
/// reserves room that a small agent would notice.
const CLIENT_SESSIONS: usize = 8;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be opened or read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is longer than any certificate chain.
    #[error("{what} {} is longer than {MAX_PEM_BYTES} bytes; is it the right file?", path.display())]
    TooLong {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A file is damaged or not PEM.
    #[error("cannot decode {what} {} as PEM", path.display())]
    Pem {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// A certificate file without a certificate.
    #[error("{what} {} has no PEM block \"CERTIFICATE\"", path.display())]
    NoCertificate {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A key file without a key that can be used.
    #[error(
        "the key file {} has no PEM block \"PRIVATE KEY\" (PKCS #8, PKCS #1 or SEC1); an encrypted key cannot be used",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key cannot be used together.
    #[error("cannot serve TLS with the certificate {} and the key {}", certificate.display(), key.display())]
    Identity {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// A certificate that cannot be trusted as an authority.
    #[error("cannot trust a certificate in the CA file {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The machine has no trust store.
    #[error("this machine has no certificate authorities to trust ({reason}); name a CA file")]
    NoPlatformRoots {
        /// Why none was found.
        reason: String,
    },
}

/// Makes ring the provider of every rustls user of the process. Any number of calls is fine.
pub fn install_provider() {
    if CryptoProvider::get_default().is_none() {
        // Losing a race against another call leaves the same provider in place.
        let _already_installed = ring::default_provider().install_default();
    }
}

/// Makes a server's configuration from a PEM certificate chain (the server's own first) and its PEM key.
///
/// Offers HTTP/1.1 by ALPN; clients show no certificate.
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    install_provider();
    let chain = read_certificates("the certificate file", certificate)?;
    let private_key = read_key(key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(|source| TlsError::Identity {
            certificate: certificate.into(),
            key: key.into(),
            source,
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Makes a client's configuration that trusts the authorities in the PEM file `ca`, and those alone; without one, those
/// of the machine (`SSL_CERT_FILE` and `SSL_CERT_DIR` first, then the system's own store).
///
/// The machine's store and not a built-in list, because that is where a company puts its own authority.
pub fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    install_provider();
    let roots = match ca {
        Some(path) => roots_of(path, &read_file("the CA file", path)?)?,
        None => platform_roots()?,
    };
    Ok(client_config_trusting(roots))
}

/// Makes a client's configuration that trusts the authorities in `pem`, and those alone. `origin` is what errors call
/// the text: it came from elsewhere than a file.
pub fn client_config_from_pem(origin: &Path, pem: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    install_provider();
    Ok(client_config_trusting(roots_of(origin, pem)?))
}

fn client_config_trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    Arc::new(config)
}

/// Makes a client's configuration that accepts any certificate of any server.
///
/// For HTTPS probes alone, which like the kubelet's ask whether something answers, not who. No session is resumed, so
/// that each probe makes a whole handshake.
pub fn insecure_client_config() -> Arc<ClientConfig> {
    install_provider();
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn roots_of(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in("the CA file", path, pem)? {
        roots.add(certificate).map_err(|source| TlsError::Authority {
            path: path.into(),
            source,
        })?;
    }
    Ok(roots)
}

fn platform_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A public store may hold a certificate that rustls does not understand; the others still count.
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() {
            "none found".to_owned()
        } else {
            reasons.join("; ")
        };
        return Err(TlsError::NoPlatformRoots { reason });
    }
    Ok(roots)
}

fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(what, path, &read_file(what, path)?)
}

fn certificates_in(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            what,
            path: path.into(),
            source,
        })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate {
            what,
            path: path.into(),
        });
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "the key file";
    let text = read_file(what, path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.into() },
        source => TlsError::Pem {
            what,
            path: path.into(),
            source,
        },
    })
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read_error = |source| TlsError::Read {
        what,
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(TlsError::TooLong {
            what,
            path: path.into(),
        });
    }
    Ok(bytes)
}

#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::telemetry::chain,
        rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair},
        tempfile::TempDir,
        tokio_rustls::{TlsAcceptor, TlsConnector},
    };

    struct Files {
        directory: TempDir,
    }

    impl Files {
        /// Makes an authority `ca.pem` and a server `cert.pem` with `key.pem` for `localhost`.
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new(vec!["localhost".to_owned()])
                .unwrap()
                .signed_by(&key, &ca)
                .unwrap();
            let files = Self {
                directory: TempDir::new().unwrap(),
            };
            files.write("ca.pem", ca.pem().as_bytes());
            files.write("cert.pem", leaf.pem().as_bytes());
            files.write("key.pem", key.serialize_pem().as_bytes());
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            std::fs::write(self.path(name), bytes).unwrap();
            self.path(name)
        }

        fn server(&self) -> Arc<ServerConfig> {
            server_config(&self.path("cert.pem"), &self.path("key.pem")).unwrap()
        }
    }

    async fn handshake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &str,
    ) -> Result<(), String> {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(client);
        let acceptor = TlsAcceptor::from(server);
        let (client_end, _server_end) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        client_end.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn named_authority_and_no_other_is_trusted() {
        let files = Files::new();
        let own = client_config(Some(&files.path("ca.pem"))).unwrap();
        assert_eq!(handshake(files.server(), own.clone(), "localhost").await, Ok(()));
        let wrong_name = handshake(files.server(), own.clone(), "elsewhere")
            .await
            .unwrap_err();
        assert!(wrong_name.contains("not valid for name"), "{wrong_name}");
        let stranger = handshake(Files::new().server(), own, "localhost")
            .await
            .unwrap_err();
        assert!(
            stranger.contains("UnknownIssuer") || stranger.contains("BadSignature"),
            "{stranger}"
        );
    }

    #[tokio::test]
    async fn authority_that_came_by_another_way_is_trusted() {
        let files = Files::new();
        let origin = Path::new("from elsewhere");
        let pem = std::fs::read(files.path("ca.pem")).unwrap();
        let client = client_config_from_pem(origin, &pem).unwrap();
        assert_eq!(handshake(files.server(), client, "localhost").await, Ok(()));
        let error = client_config_from_pem(origin, b"no PEM").unwrap_err().to_string();
        assert_eq!(
            error,
            "the CA file from elsewhere has no PEM block \"CERTIFICATE\""
        );
    }

    #[tokio::test]
    async fn insecure_client_takes_any_server() {
        let files = Files::new();
        assert_eq!(
            handshake(files.server(), insecure_client_config(), "elsewhere").await,
            Ok(())
        );
    }

    #[tokio::test]
    async fn both_protocol_versions_are_spoken() {
        let files = Files::new();
        let mut roots = RootCertStore::empty();
        roots
            .add(
                read_certificates("the CA file", &files.path("ca.pem"))
                    .unwrap()
                    .remove(0),
            )
            .unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = ClientConfig::builder_with_protocol_versions(&[version])
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            assert_eq!(
                handshake(files.server(), Arc::new(client), "localhost").await,
                Ok(())
            );
        }
    }

    fn check_server_error(certificate: &Path, key: &Path, parts: &[&str]) {
        let error = chain(&server_config(certificate, key).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }

    #[test]
    fn errors_name_file_and_cause() {
        let files = Files::new();
        let (certificate, key) = (files.path("cert.pem"), files.path("key.pem"));
        let absent = files.path("absent.pem");
        check_server_error(&absent, &key, &["certificate file", "absent.pem", "No such file"]);
        check_server_error(&certificate, &absent, &["key file", "absent.pem", "No such file"]);
        let empty = files.write("empty.pem", b"");
        check_server_error(&empty, &key, &["empty.pem", "no PEM block"]);
        check_server_error(&certificate, &empty, &["empty.pem", "no PEM block"]);
        check_server_error(&key, &key, &["key.pem", "CERTIFICATE"]);
        let cut = files.write("cut.pem", b"-----BEGIN CERTIFICATE-----\nMIIB\n");
        check_server_error(&cut, &key, &["cut.pem", "cannot decode"]);
        let encrypted = files.write(
            "encrypted.pem",
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        check_server_error(&certificate, &encrypted, &["encrypted.pem", "encrypted key"]);
        let other = Files::new();
        check_server_error(
            &certificate,
            &other.path("key.pem"),
            &["cert.pem", "key.pem", "cannot serve TLS"],
        );
        check_server_error(Path::new("/dev/zero"), &key, &["/dev/zero", "longer than"]);
        let ca = chain(&client_config(Some(&absent)).unwrap_err());
        assert!(ca.contains("CA file") && ca.contains("absent.pem"), "{ca}");
        let nonsense = files.write(
            "nonsense.pem",
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        );
        let ca = chain(&client_config(Some(&nonsense)).unwrap_err());
        assert!(ca.contains("cannot trust") && ca.contains("nonsense.pem"), "{ca}");
    }
}
