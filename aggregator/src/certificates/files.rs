//! Certificates in files that somebody else keeps, such as cert-manager through a Secret volume.
//!
//! Files are read whole and compared: what a volume swaps at once has neither new times nor new sizes for sure.

use {
    super::{Files, Shown, State, ending},
    healthscope_service::{
        telemetry::chain,
        tls::{self, TlsError},
    },
    rustls::sign::CertifiedKey,
    std::{path::Path, sync::Arc, time::Duration},
    tokio::time::{self, MissedTickBehavior},
    tokio_util::sync::CancellationToken,
};

/// How often they are read; the kubelet takes a minute to bring a new Secret into a volume.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was found in them.
pub(super) struct Found {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) state: State,
}

/// Reads them.
pub(super) fn read(files: &Files) -> Result<Found, TlsError> {
    let Files {
        certificate,
        key,
        authorities,
    } = files;
    let key = tls::certified_key(certificate, key)?;
    let bundle = authorities
        .as_deref()
        .map(|path: &Path| tls::bundle(path))
        .transpose()?;
    let state = State {
        until: ending(&key.cert),
        bundle: bundle.map(Arc::from),
    };
    Ok(Found { key, state })
}

/// Takes up what changes in them until `shutdown`.
pub(super) async fn watch(files: Files, shown: Shown, shutdown: CancellationToken) {
    let files = Arc::new(files);
    let mut trouble: Option<String> = None;
    let mut ticks = time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel-safe, both.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let reading = files.clone();
        // Reading ends by itself.
        let found = match tokio::task::spawn_blocking(move || read(&reading)).await {
            Ok(found) => found,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match found {
            Ok(Found { key, state }) => {
                if trouble.take().is_some() {
                    tracing::info!("the certificate's files can be used again");
                }
                shown.show(key, state);
            }
            Err(error) => {
                let problem = chain(&error);
                if trouble.as_ref() != Some(&problem) {
                    shown.metrics.problem_files.inc();
                    tracing::warn!(
                        error = problem,
                        "new certificate files cannot be used; the former ones stay"
                    );
                    trouble = Some(problem);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::{certificates::Certificates, metrics::Metrics},
        rcgen::{CertificateParams, KeyPair},
        std::fs,
        tempfile::TempDir,
    };

    fn write(folder: &TempDir, certificate: bool, key: bool) {
        let made = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let signed = params.self_signed(&made).unwrap();
        if certificate {
            fs::write(folder.path().join("tls.crt"), signed.pem()).unwrap();
        }
        if key {
            fs::write(folder.path().join("tls.key"), made.serialize_pem()).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_fit_together_are_taken_up_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, true, true);
        let certificates = Certificates::from_files(Files {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
            authorities: None,
        })
        .unwrap();
        let served = certificates.served.clone();
        let first = served.get().unwrap().cert.clone();
        let stop = CancellationToken::new();
        let metrics = Metrics::new().certificates.clone();
        let keeping = tokio::spawn(certificates.keep(None, metrics.clone(), stop.clone()));
        // Half of a swap: the key is not the certificate's.
        write(&folder, true, false);
        time::sleep(INTERVAL * 3).await;
        assert_eq!(served.get().unwrap().cert, first);
        assert_eq!(metrics.problem_files.get(), 1, "told once");
        write(&folder, true, true);
        let mut waited = 0;
        while served.get().unwrap().cert == first {
            time::sleep(INTERVAL).await;
            waited += 1;
            assert!(waited < 100);
        }
        stop.cancel();
        keeping.await.unwrap();
    }
}
