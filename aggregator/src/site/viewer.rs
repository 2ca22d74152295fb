//! Whom an answer is for, and what they may see and do. What there is to see is not known here.

use {
    super::problem::Problem,
    crate::identity::readers::{Deed, Readers, Unavailable, User},
    healthscope_shared::name::Namespace,
    http::StatusCode,
    std::{collections::BTreeSet, sync::Arc, time::Instant},
};

/// Whom an answer is for.
#[derive(Clone)]
pub(crate) enum Viewer {
    /// Somebody who may see and do everything: nobody needs to show anything, or the shared token was shown.
    Anybody,
    /// Somebody whom the cluster knows.
    User(Arc<SignedIn>),
}

/// Somebody whom the cluster knows.
pub(crate) struct SignedIn {
    pub(super) readers: Arc<Readers>,
    pub(super) user: Arc<User>,
    /// Who it is must be proven again then.
    pub(super) until: Instant,
}

/// Namespaces that somebody may look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Visible {
    /// All that there are.
    All,
    /// These, of those that were asked about.
    Only(BTreeSet<Namespace>),
}

impl Visible {
    pub(crate) fn has(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Only(namespaces) => namespaces.contains(namespace),
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        Self::unavailable(unavailable.to_string(), "5")
    }
}

impl Viewer {
    /// What somebody is called, where it is known.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Anybody => None,
            Self::User(signed_in) => Some(&signed_in.user.name),
        }
    }

    /// When who it is must be proven again.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self {
            Self::Anybody => None,
            Self::User(signed_in) => Some(signed_in.until),
        }
    }

    /// Whether everything may be seen.
    pub(crate) async fn sees_all(&self) -> Result<bool, Unavailable> {
        match self {
            Self::Anybody => Ok(true),
            Self::User(signed_in) => signed_in.readers.may(&signed_in.user, Deed::Look, None).await,
        }
    }

    /// What of these namespaces may be seen.
    pub(crate) async fn visible(&self, namespaces: BTreeSet<Namespace>) -> Result<Visible, Unavailable> {
        let Self::User(signed_in) = self else {
            return Ok(Visible::All);
        };
        if self.sees_all().await? {
            return Ok(Visible::All);
        }
        let SignedIn { readers, user, .. } = &**signed_in;
        Ok(Visible::Only(readers.visible(user, namespaces).await?))
    }

    /// Whether something may be done in a namespace; without one, in all of them.
    pub(crate) async fn may(&self, deed: Deed, namespace: Option<&Namespace>) -> Result<bool, Unavailable> {
        let Self::User(signed_in) = self else {
            return Ok(true);
        };
        let SignedIn { readers, user, .. } = &**signed_in;
        // Who may in all of them may in each, and is asked about once.
        Ok(readers.may(user, deed, None).await?
            || namespace.is_some() && readers.may(user, deed, namespace).await?)
    }

    /// Refuses somebody who asks for a whole namespace that they may not look into. Says the same of namespaces that do
    /// not exist.
    pub(crate) async fn check_namespace(&self, namespace: Option<&Namespace>) -> Result<(), Problem> {
        match namespace {
            Some(namespace) if !self.may(Deed::Look, Some(namespace)).await? => {
                Err(self.forbidden(Deed::Look, Some(namespace)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses somebody who asks for one thing in a namespace that they may not look into, in the words for a thing that
    /// does not exist, so that nobody learns which is the case.
    pub(crate) async fn check_one(&self, namespace: &Namespace) -> Result<(), Problem> {
        if self.may(Deed::Look, Some(namespace)).await? {
            return Ok(());
        }
        Err(Problem::not_found(format!(
            "there is nothing of this name that you may see in the namespace {namespace}; what is there takes the right to \
             {}",
            Deed::Look
        )))
    }

    /// Refuses somebody who may see something but not do this with it.
    pub(crate) async fn check_deed(&self, deed: Deed, namespace: Option<&Namespace>) -> Result<(), Problem> {
        if self.may(deed, namespace).await? {
            return Ok(());
        }
        Err(self.forbidden(deed, namespace))
    }

    /// Refuses somebody who may not read a path that belongs to no object.
    pub(crate) async fn check_path(&self, path: &str) -> Result<(), Problem> {
        let Self::User(signed_in) = self else {
            return Ok(());
        };
        let SignedIn { readers, user, .. } = &**signed_in;
        if readers.may_get(user, path).await? {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "{} may not read {path}; a ClusterRole with nonResourceURLs [{path}] and verbs [get] allows it",
                user.name
            ),
        ))
    }

    fn forbidden(&self, deed: Deed, namespace: Option<&Namespace>) -> Problem {
        let who = self.name().unwrap_or("this reader");
        let place = match namespace {
            Some(namespace) => format!("in the namespace {namespace}"),
            None => "in all namespaces".to_owned(),
        };
        Problem::new(
            StatusCode::FORBIDDEN,
            format!("{who} may not {deed} {place}; a Role or ClusterRole with this rule allows it"),
        )
    }
}
