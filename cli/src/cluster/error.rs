//! Why a cluster gives no answer, in one sentence each that says what to do.

use {
    crate::cause::{self, MAX_DETAIL_BYTES},
    healthscope_crd::v1beta1,
    healthscope_shared::{name::Namespace, one_line},
};

/// Most contexts named in an error.
const MAX_CONTEXTS: usize = 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// Neither a kubeconfig nor a pod's account.
    #[error(
        "no cluster is configured: there is no ~/.kube/config and KUBECONFIG is not set; name a file with --kubeconfig"
    )]
    NotConfigured,
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(String),
    /// It names no current context.
    #[error(
        "the kubeconfig has no current context; choose one with --context{}",
        known_contexts(known)
    )]
    NoContext {
        /// Those that it has.
        known: Vec<String>,
    },
    /// It has no such context.
    #[error("the kubeconfig has no context {name:?}{}", known_contexts(known))]
    UnknownContext {
        /// The one asked for.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// Credentials cannot be had.
    #[error("cannot log in to the cluster at {address}: {cause}")]
    Credentials {
        /// Which cluster.
        address: String,
        /// What failed.
        cause: String,
    },
    /// Nobody answers.
    #[error(
        "cannot reach the cluster at {address}: {cause}; is it running, and is the kubeconfig's context the right one?"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// Somebody answers, who cannot prove to be the API server.
    #[error("the certificate of the API server at {address} is not accepted: {cause}")]
    Untrusted {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// The credentials are not accepted.
    #[error("the cluster at {address} does not accept your credentials ({detail}); log in again")]
    Unauthorized {
        /// Where.
        address: String,
        /// What it said.
        detail: String,
    },
    /// The API server does not know HealthScopes.
    #[error(
        "HealthScope is not installed in this cluster: the API server at {address} has no {}s in {}; install \
         HealthScope there, or choose another cluster with --context",
        v1beta1::KIND,
        v1beta1::API_VERSION
    )]
    NotInstalled {
        /// Where.
        address: String,
    },
    /// The user may not do it.
    #[error("you may not {verb} {resource}{place}; it takes a {role} with the rule {rule} ({detail})")]
    Forbidden {
        /// `list`.
        verb: &'static str,
        /// `healthscopes`.
        resource: &'static str,
        /// ` in the namespace shop`.
        place: String,
        /// `Role` or `ClusterRole`.
        role: &'static str,
        /// The RBAC rule that is missing, as YAML.
        rule: String,
        /// What the API server said.
        detail: String,
    },
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// Another answer than 2xx.
    #[error("the cluster at {address} answers {code}: {detail}")]
    Refused {
        /// Where.
        address: String,
        /// The HTTP status.
        code: u16,
        /// What it said.
        detail: String,
    },
    /// Something that is not a HealthScope.
    #[error("the cluster gave something that is no HealthScope: {0}")]
    Strange(String),
}

impl ClusterError {
    /// What an error of the client means, of a request that is about HealthScopes in all namespaces until
    /// [`Self::asking_for`] says more.
    pub(crate) fn of(error: &kube::Error, address: &str) -> Self {
        let address = address.trim_end_matches('/').to_owned();
        match error {
            kube::Error::Api(status) => Self::of_status(status, address),
            kube::Error::Auth(error) => Self::Credentials {
                address,
                cause: one_line(&error.to_string(), MAX_DETAIL_BYTES),
            },
            other => match cause::certificate(other) {
                Some(error) => Self::Untrusted {
                    address,
                    cause: one_line(&error.to_string(), MAX_DETAIL_BYTES),
                },
                None => Self::Unreachable {
                    address,
                    cause: cause::words(other),
                },
            },
        }
    }

    /// The same for an answer that came as an event of a watch.
    pub(super) fn of_status(status: &kube::core::Status, address: String) -> Self {
        let detail = one_line(&status.message, MAX_DETAIL_BYTES);
        match status.code {
            401 => Self::Unauthorized { address, detail },
            403 => Self::forbidden("list", "healthscopes", v1beta1::GROUP, None, detail),
            // An object that is missing has details; a path that is missing is a kind that is not served.
            404 if status
                .details
                .as_ref()
                .is_none_or(|details| details.name.is_empty()) =>
            {
                Self::NotInstalled { address }
            }
            404 => Self::NotFound(detail),
            code => Self::Refused {
                address,
                code,
                detail,
            },
        }
    }

    /// Says what was asked for, where that is part of the answer.
    pub(super) fn asking_for(self, verb: &'static str, namespace: Option<&Namespace>) -> Self {
        match self {
            Self::Forbidden { detail, .. } => {
                Self::forbidden(verb, "healthscopes", v1beta1::GROUP, namespace, detail)
            }
            other => other,
        }
    }

    /// The same for core objects, such as pods.
    pub(super) fn about(self, verb: &'static str, resource: &'static str, namespace: &Namespace) -> Self {
        match self {
            Self::Forbidden { detail, .. } => Self::forbidden(verb, resource, "", Some(namespace), detail),
            other => other,
        }
    }

    /// A refusal with the RBAC rule that would have allowed it.
    fn forbidden(
        verb: &'static str,
        resource: &'static str,
        group: &str,
        namespace: Option<&Namespace>,
        detail: String,
    ) -> Self {
        // Who may look at one scope will want to list and to watch, too.
        let verbs = match resource {
            "healthscopes" => "get, list, watch",
            "pods/portforward" => "create, get",
            _ => verb,
        };
        Self::Forbidden {
            verb,
            resource,
            place: namespace.map_or_else(
                || " in all namespaces".to_owned(),
                |namespace| format!(" in the namespace {namespace}"),
            ),
            role: if namespace.is_some() {
                "Role"
            } else {
                "ClusterRole"
            },
            rule: format!("{{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [{verbs}]}}"),
            detail,
        }
    }

    /// Whether the same may work a moment later: an API server that is not there yet, or busy.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => *code >= 500 || *code == 429,
            Self::NotConfigured
            | Self::Kubeconfig(_)
            | Self::NoContext { .. }
            | Self::UnknownContext { .. }
            | Self::Credentials { .. }
            | Self::Untrusted { .. }
            | Self::Unauthorized { .. }
            | Self::NotInstalled { .. }
            | Self::Forbidden { .. }
            | Self::NotFound(_)
            | Self::Strange(_) => false,
        }
    }
}

fn known_contexts(known: &[String]) -> String {
    match known {
        [] => "; it has none".to_owned(),
        known if known.len() > MAX_CONTEXTS => format!(
            "; it has {} and {} more",
            known[..MAX_CONTEXTS].join(", "),
            known.len() - MAX_CONTEXTS
        ),
        known => format!("; it has {}", known.join(", ")),
    }
}
