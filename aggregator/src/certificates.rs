//! The certificate that this process shows, from files or from a Secret of its own, taken up when it changes.
//!
//! All listeners show the same one. What is shown is never replaced by something that clients would not take: files that do
//! not fit together and a Secret that somebody broke leave the last good one in place, and are told of in the log and in
//! metrics. Nothing here opens a connection's stream.
//!
//! ```text
//! files ---- files ----.
//!                      +--> Served --> handshakes
//! Secret <-> secret ---'      '------> State --> publish --> ConfigMap, caBundle
//!                                        '-----> admission --> what injected agents trust
//! ```

mod files;
mod make;
pub(crate) mod publish;
mod read;
mod secret;

use {
    crate::metrics::certificates::CertificateMetrics,
    healthscope_service::tls::{self, Served, TlsError},
    jiff::Timestamp,
    kube::Client,
    rustls::{ServerConfig, sign::CertifiedKey},
    rustls_pki_types::CertificateDer,
    std::{fmt, path::PathBuf, sync::Arc},
    tokio::sync::watch,
    tokio_util::sync::CancellationToken,
};

/// What this process shows, and where that comes from.
#[derive(Clone, Debug)]
pub struct Certificates {
    served: Arc<Served>,
    config: Arc<ServerConfig>,
    state: Arc<watch::Sender<State>>,
    origin: Origin,
}

/// Where certificates come from.
#[derive(Clone, Debug)]
enum Origin {
    Files(Files),
    /// Our own, in a Secret of this name.
    Secret(String),
}

/// Files that somebody else keeps.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// What injected agents are to trust, PEM.
    pub authorities: Option<PathBuf>,
}

/// What is shown now.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// When the certificate ends; `None` while there is none.
    pub(crate) until: Option<Timestamp>,
    /// The authorities to trust, PEM, where they are known.
    pub(crate) bundle: Option<Arc<str>>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Whether there is a certificate that clients take.
    pub(crate) fn is_good(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now <= until)
    }
}

/// Where a process keeps its own certificates.
pub(crate) struct Home {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Certificates {
    /// Those of files, which are read now and watched later.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn from_files(files: Files) -> Result<Self, TlsError> {
        let found = files::read(&files)?;
        let served = Arc::new(Served::new(found.key));
        Ok(Self {
            config: tls::server_config(served.clone()),
            served,
            state: Arc::new(watch::channel(found.state).0),
            origin: Origin::Files(files),
        })
    }

    /// Our own, in a Secret; nothing is shown until that has been read.
    #[must_use]
    pub fn from_secret(name: String) -> Self {
        let served = Arc::new(Served::default());
        Self {
            config: tls::server_config(served.clone()),
            served,
            state: Arc::default(),
            origin: Origin::Secret(name),
        }
    }

    /// What listeners take.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Whether they are made here.
    pub(crate) const fn are_our_own(&self) -> bool {
        matches!(self.origin, Origin::Secret(_))
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Keeps them up to date until `shutdown`. `home` is needed for those in a Secret.
    pub(crate) async fn keep(
        self,
        home: Option<Home>,
        metrics: CertificateMetrics,
        shutdown: CancellationToken,
    ) {
        let shown = Shown {
            served: self.served,
            state: self.state,
            metrics,
        };
        match (self.origin, home) {
            (Origin::Files(files), _) => files::watch(files, shown, shutdown).await,
            (Origin::Secret(name), Some(home)) => secret::keep(name, home, shown, shutdown).await,
            // Checked with the configuration.
            (Origin::Secret(_), None) => shutdown.cancelled().await,
        }
    }
}

/// Where what is to be shown is put.
struct Shown {
    served: Arc<Served>,
    state: Arc<watch::Sender<State>>,
    metrics: CertificateMetrics,
}

impl Shown {
    fn show(&self, key: Arc<CertifiedKey>, state: State) {
        let is_new = self.served.get().is_none_or(|shown| shown.cert != key.cert);
        if is_new {
            self.served.set(key);
            tracing::info!(
                until = state.until.map(tracing::field::display),
                "a certificate is shown from now on"
            );
        }
        let until = state.until.map_or(0, Timestamp::as_second);
        self.metrics.until.set(until);
        self.state.send_if_modified(|former| {
            let differs = *former != state;
            *former = state;
            differs
        });
    }
}

/// When a chain ends: with the first of its certificates that does.
fn ending(chain: &[CertificateDer<'_>]) -> Option<Timestamp> {
    chain
        .iter()
        .map(|certificate| read::validity(certificate).map(|validity| validity.until))
        .min()
        .flatten()
}
