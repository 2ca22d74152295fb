//! How many sessions one pod, and the pods of one namespace, may have at once.
//!
//! The store lets only the newest session of a pod speak; this bounds those that have not spoken yet. Agents without an
//! identity are bounded by the number of all sessions alone.

use {
    crate::identity::{PodIdentity, Refused},
    healthscope_shared::name::Namespace,
    std::{
        collections::HashMap,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
    },
};

/// Sessions of one pod: the live one, one that is lost and not yet given up, the next, and one to spare.
const PER_POD: u32 = 4;

/// Counts the sessions of pods.
#[derive(Debug)]
pub(crate) struct Quota {
    per_namespace: usize,
    open: Mutex<Open>,
}

/// Entries are there while sessions are, which are bounded.
#[derive(Debug, Default)]
struct Open {
    pods: HashMap<Arc<str>, u32>,
    namespaces: HashMap<Namespace, usize>,
}

/// A counted session; given back when dropped.
#[derive(Debug)]
pub(super) struct Counted {
    quota: Arc<Quota>,
    uid: Arc<str>,
    namespace: Namespace,
}

impl Quota {
    /// One namespace gets three quarters of all sessions: much for a cluster that has only one, and yet none can lock
    /// all others out.
    pub(crate) fn new(sessions: usize) -> Arc<Self> {
        Arc::new(Self {
            per_namespace: (sessions - sessions / 4).max(1),
            open: Mutex::default(),
        })
    }

    /// Counts one more session of this pod.
    pub(super) fn count(self: &Arc<Self>, identity: &PodIdentity) -> Result<Counted, Refused> {
        let PodIdentity { namespace, uid, .. } = identity;
        let mut open = self.lock();
        let of_pod = open.pods.get(uid).copied().unwrap_or(0);
        let of_namespace = open.namespaces.get(namespace).copied().unwrap_or(0);
        if of_pod >= PER_POD || of_namespace >= self.per_namespace {
            return Err(Refused::Crowded);
        }
        open.pods.insert(Arc::clone(uid), of_pod + 1);
        open.namespaces.insert(namespace.clone(), of_namespace + 1);
        Ok(Counted {
            quota: Arc::clone(self),
            uid: Arc::clone(uid),
            namespace: namespace.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // No code that could panic runs under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.quota.lock();
        if let Some(count) = open.pods.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.pods.remove(&self.uid);
            }
        }
        if let Some(count) = open.namespaces.get_mut(&self.namespace) {
            *count -= 1;
            if *count == 0 {
                open.namespaces.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_shared::name::Name, jiff::Timestamp};

    fn pod(namespace: &str, uid: &str) -> PodIdentity {
        PodIdentity {
            namespace: Namespace::new(namespace).unwrap(),
            pod: Name::new("web").unwrap(),
            uid: uid.into(),
            service_account: Name::new("default").unwrap(),
            expires: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_pod_and_a_namespace_get_their_share() {
        let quota = Quota::new(8);
        let mut of_one: Vec<_> = (0..PER_POD)
            .map(|_| quota.count(&pod("a", "1")).unwrap())
            .collect();
        assert_eq!(quota.count(&pod("a", "1")).unwrap_err(), Refused::Crowded);
        let others = [
            quota.count(&pod("a", "2")).unwrap(),
            quota.count(&pod("a", "3")).unwrap(),
        ];
        assert_eq!(
            quota.count(&pod("a", "4")).unwrap_err(),
            Refused::Crowded,
            "six of eight"
        );
        let elsewhere = quota.count(&pod("b", "5")).unwrap();
        of_one.pop();
        let again = quota.count(&pod("a", "1")).unwrap();
        drop((of_one, others, elsewhere, again));
        let open = quota.lock();
        assert!(open.pods.is_empty() && open.namespaces.is_empty());
    }
}
