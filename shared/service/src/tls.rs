//! TLS 1.2 and 1.3 by rustls with the ring provider: configurations from PEM files.
//!
//! No part of a process builds a rustls configuration elsewhere. Files are read once; nothing here watches them. Whoever
//! does gives [`Served`] the certificate that the next handshake shows.

use {
    rustls::{
        ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
        client::{
            Resumption, WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
    rustls_pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    std::{
        fs::File,
        io::{self, Read},
        path::{Path, PathBuf},
        sync::{Arc, PoisonError, RwLock},
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

/// The certificate that a server shows, which may change while it serves. Without one, handshakes fail.
#[derive(Debug, Default)]
pub struct Served {
    key: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Served {
    /// Serves this until something else is given.
    #[must_use]
    pub fn new(key: Arc<CertifiedKey>) -> Self {
        Self {
            key: RwLock::new(Some(key)),
        }
    }

    /// Serves this from the next handshake on; connections that are open go on.
    pub fn set(&self, key: Arc<CertifiedKey>) {
        // No code that could panic runs under the lock.
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// What is served.
    pub fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

/// Reads a PEM certificate chain (the server's own first) and its PEM key, which must belong together.
pub fn certified_key(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_file("the certificate file", certificate)?;
    let private_key = read_file("the key file", key)?;
    certified_key_from_pem((certificate, &chain), (key, &private_key))
}

/// Makes what a server shows of a PEM certificate chain and its PEM key, each with what errors call it.
pub fn certified_key_from_pem(
    (certificate, chain): (&Path, &[u8]),
    (key, private_key): (&Path, &[u8]),
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates_in("the certificate file", certificate, chain)?;
    let private_key = key_in(key, private_key)?;
    CertifiedKey::from_der(chain, private_key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|source| TlsError::Identity {
            certificate: certificate.into(),
            key: key.into(),
            source,
        })
}

/// Makes the configuration of a server that shows what is `served` at the moment of each handshake.
///
/// Offers HTTP/1.1 by ALPN; clients show no certificate.
pub fn server_config(served: Arc<Served>) -> Arc<ServerConfig> {
    install_provider();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
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

/// Reads a PEM bundle of authorities, as text, once each certificate in it was read.
pub fn bundle(path: &Path) -> Result<String, TlsError> {
    let what = "the CA file";
    let pem = read_file(what, path)?;
    roots_of(path, &pem)?;
    // What is neither is not inside a certificate: comments.
    Ok(String::from_utf8_lossy(&pem).into_owned())
}

/// Says whether a client that trusts this authority alone would take this chain (the server's own certificate first) under
/// each of these names at this moment.
#[must_use]
pub fn is_vouched_for(
    authority: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    names: &[String],
    at: UnixTime,
) -> bool {
    let mut roots = RootCertStore::empty();
    let Some((own, others)) = chain.split_first() else {
        return false;
    };
    if roots.add(authority.clone()).is_err() {
        return false;
    }
    let provider = Arc::new(ring::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verifier.verify_server_cert(own, others, &name, &[], at).is_ok())
    })
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

fn key_in(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "the key file";
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
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

        fn key(&self) -> Arc<CertifiedKey> {
            certified_key(&self.path("cert.pem"), &self.path("key.pem")).unwrap()
        }

        fn authority(&self) -> CertificateDer<'static> {
            let pem = std::fs::read(self.path("ca.pem")).unwrap();
            CertificateDer::from_pem_slice(&pem).unwrap()
        }

        fn server(&self) -> Arc<ServerConfig> {
            server_config(Arc::new(Served::new(self.key())))
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
        roots.add(files.authority()).unwrap();
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

    #[tokio::test]
    async fn the_next_handshake_shows_what_is_served_then() {
        let (former, latter) = (Files::new(), Files::new());
        let served = Arc::new(Served::default());
        let server = server_config(served.clone());
        let trusting = |files: &Files| client_config(Some(&files.path("ca.pem"))).unwrap();
        let nothing = handshake(server.clone(), trusting(&former), "localhost").await;
        assert!(nothing.is_err(), "there is nothing to show yet");
        for files in [&former, &latter] {
            served.set(files.key());
            let done = handshake(server.clone(), trusting(files), "localhost").await;
            assert_eq!(done, Ok(()));
        }
        assert!(handshake(server, trusting(&former), "localhost").await.is_err());
    }

    #[test]
    fn an_authority_vouches_for_its_own_under_their_names() {
        let (files, strange) = (Files::new(), Files::new());
        let check = |authority: &Files, names: &[&str], at: UnixTime, expected: bool| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let found = is_vouched_for(&authority.authority(), &files.key().cert, &names, at);
            assert_eq!(found, expected, "{names:?}");
        };
        let now = UnixTime::now();
        check(&files, &["localhost"], now, true);
        check(&files, &["localhost", "elsewhere"], now, false);
        check(&files, &["no name"], now, false);
        check(&strange, &["localhost"], now, false);
        let long_ago = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        check(&files, &["localhost"], long_ago, false);
        assert!(!is_vouched_for(&files.authority(), &[], &[], now));
    }

    fn check_server_error(certificate: &Path, key: &Path, parts: &[&str]) {
        let error = chain(&certified_key(certificate, key).unwrap_err());
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
