//! The certificate that is shown, and where the authorities to trust are published.

use {
    super::Maker,
    prometheus::{IntCounter, IntGauge},
};

/// Certificates of this process.
#[derive(Clone)]
pub(crate) struct CertificateMetrics {
    pub(crate) until: IntGauge,
    pub(crate) authority_until: IntGauge,
    pub(crate) made_leaves: IntCounter,
    pub(crate) made_authorities: IntCounter,
    pub(crate) problem_files: IntCounter,
    pub(crate) problem_read: IntCounter,
    pub(crate) problem_unusable: IntCounter,
    pub(crate) problem_write: IntCounter,
    pub(crate) problem_publish: IntCounter,
    pub(crate) published: IntCounter,
    pub(crate) repaired: IntCounter,
}

impl CertificateMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> Self {
        let made = maker.counters(
            "certificates_made_total",
            "Certificates that this replica made and stored, by kind.",
            &["kind"],
        );
        let problems = maker.counters(
            "certificate_problems_total",
            "What kept certificates from being as they should be: files or a Secret that cannot be read, contents that \
             cannot be used, a Secret that cannot be written, authorities that cannot be published.",
            &["problem"],
        );
        let publications = maker.counters(
            "certificate_publications_total",
            "Times that the authorities to trust were written where others read them, because they were new or because \
             somebody had changed them.",
            &["reason"],
        );
        Self {
            until: maker.gauge(
                "certificate_end_timestamp_seconds",
                "When the certificate ends that is shown; 0 without one.",
            ),
            authority_until: maker.gauge(
                "certificate_authority_end_timestamp_seconds",
                "When the newest of our own authorities ends; 0 without one.",
            ),
            made_leaves: made.with_label_values(&["server"]),
            made_authorities: made.with_label_values(&["authority"]),
            problem_files: problems.with_label_values(&["files"]),
            problem_read: problems.with_label_values(&["read"]),
            problem_unusable: problems.with_label_values(&["unusable"]),
            problem_write: problems.with_label_values(&["write"]),
            problem_publish: problems.with_label_values(&["publish"]),
            published: publications.with_label_values(&["new"]),
            repaired: publications.with_label_values(&["repaired"]),
        }
    }
}
