//! Which versions of the API the writers of an object speak: who speaks an older one reads its status in the older
//! words.

use {
    crate::{v1alpha1, v1alpha2, v1beta1},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};

/// Under this name the aggregator writes.
pub const MANAGER: &str = "healthscope-aggregator";

/// The part of an object that the aggregator writes.
const STATUS: &str = "status";

/// Which versions there are among an object's writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Rudr's.
    pub v1alpha1: bool,
    /// OAM's.
    pub v1alpha2: bool,
    /// Ours.
    pub v1beta1: bool,
}

/// The versions in `metadata.managedFields`, without the aggregator's own writing of statuses.
#[must_use]
pub fn writers(managed_fields: &[ManagedFieldsEntry]) -> Versions {
    let mut versions = Versions::default();
    for entry in managed_fields {
        let is_ours =
            entry.manager.as_deref() == Some(MANAGER) && entry.subresource.as_deref() == Some(STATUS);
        if is_ours {
            continue;
        }
        match entry.api_version.as_deref() {
            Some(v1alpha1::API_VERSION) => versions.v1alpha1 = true,
            Some(v1alpha2::API_VERSION) => versions.v1alpha2 = true,
            Some(v1beta1::API_VERSION) => versions.v1beta1 = true,
            Some(_) | None => {}
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_others() {
        #[track_caller]
        fn check(entries: &[(&str, &str, Option<&str>)], expected: [bool; 3]) {
            let entries: Vec<ManagedFieldsEntry> = entries
                .iter()
                .map(|&(manager, version, subresource)| ManagedFieldsEntry {
                    manager: Some(manager.into()),
                    api_version: Some(version.into()),
                    subresource: subresource.map(Into::into),
                    ..ManagedFieldsEntry::default()
                })
                .collect();
            let Versions {
                v1alpha1,
                v1alpha2,
                v1beta1,
            } = writers(&entries);
            assert_eq!([v1alpha1, v1alpha2, v1beta1], expected, "{entries:?}");
        }
        check(&[], [false, false, false]);
        check(
            &[("kubectl", "core.oam.dev/v1alpha1", None)],
            [true, false, false],
        );
        check(
            &[
                ("kubectl", "core.oam.dev/v1alpha2", None),
                ("vela", "core.oam.dev/v1beta1", Some("status")),
            ],
            [false, true, true],
        );
        check(
            &[(MANAGER, "core.oam.dev/v1beta1", Some("status"))],
            [false, false, false],
        );
        check(&[(MANAGER, "core.oam.dev/v1beta1", None)], [false, false, true]);
        check(&[("kubectl", "v1", None)], [false, false, false]);
    }
}
