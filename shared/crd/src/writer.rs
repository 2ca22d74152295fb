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
///
/// A writer that has gone over to another version is still named with the old one for the fields that it has not
/// changed since: of each writer only what it said last counts.
#[must_use]
pub fn writers(managed_fields: &[ManagedFieldsEntry]) -> Versions {
    let mut versions = Versions::default();
    for entry in managed_fields {
        let is_ours =
            entry.manager.as_deref() == Some(MANAGER) && entry.subresource.as_deref() == Some(STATUS);
        let is_outdated = managed_fields
            .iter()
            .any(|other| is_same_writer(entry, other) && entry.time.is_some() && entry.time < other.time);
        if is_ours || is_outdated {
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

fn is_same_writer(a: &ManagedFieldsEntry, b: &ManagedFieldsEntry) -> bool {
    a.manager == b.manager && a.operation == b.operation && a.subresource == b.subresource
}

#[cfg(test)]
mod tests {
    use {super::*, jiff::Timestamp, k8s_openapi::apimachinery::pkg::apis::meta::v1::Time};

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

    #[test]
    fn of_each_writer_the_latest_version_counts() {
        let entry = |manager: &str, version: &str, second: i64| ManagedFieldsEntry {
            manager: Some(manager.into()),
            api_version: Some(version.into()),
            time: Some(Time(Timestamp::from_second(second).unwrap())),
            ..ManagedFieldsEntry::default()
        };
        let entries = [
            entry("kubectl", v1alpha2::API_VERSION, 1),
            entry("kubectl", v1beta1::API_VERSION, 2),
        ];
        let expected = Versions {
            v1beta1: true,
            ..Versions::default()
        };
        assert_eq!(writers(&entries), expected);
        let entries = [
            entry("vela", v1alpha2::API_VERSION, 1),
            entry("kubectl", v1beta1::API_VERSION, 2),
        ];
        assert!(writers(&entries).v1alpha2);
    }
}
