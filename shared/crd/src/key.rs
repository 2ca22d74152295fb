//! Labels and annotations by which a component says which scopes it belongs to and what it depends on, and a pod what
//! its agent checks.

use {healthscope_shared::name::Name, std::collections::BTreeMap};

/// What all our labels and annotations start with.
pub const PREFIX: &str = "healthscope.core.oam.dev/";
/// Label: the component belongs to the scope of this name.
pub const SCOPE_NAME: &str = "healthscope.core.oam.dev/name";
/// Annotation: the components that this one depends on, `db,cache`, each `name` or `Kind/name`.
pub const DEPENDS_ON: &str = "healthscope.core.oam.dev/depends-on";
/// Label of a namespace or a pod, `enabled` or `disabled`: whether pods get an agent. The pod's own wins.
pub const INJECT: &str = "healthscope.core.oam.dev/inject";
/// Annotation: the containers whose own probes the agent repeats.
pub const MIRROR: &str = "healthscope.core.oam.dev/mirror";
/// Annotation: the containers whose command checks are run.
pub const EXEC: &str = "healthscope.core.oam.dev/exec";
/// Annotation: the containers in which a postStart hook may start the runner.
pub const POST_START: &str = "healthscope.core.oam.dev/post-start";
/// Annotation: the containers whose readiness command may start the runner.
pub const CARRY_READINESS: &str = "healthscope.core.oam.dev/carry-readiness";
/// Annotation of a pod: checks beside those that its containers declare.
pub const PROBES: &str = "healthscope.core.oam.dev/probes";
/// Annotation: requests and limits of the agent's container.
pub const RESOURCES: &str = "healthscope.core.oam.dev/resources";
/// Annotation that the injector leaves on a pod: what it added, and what it could not.
pub const INJECTED: &str = "healthscope.core.oam.dev/injected";
/// Annotation of a namespace: injection that the breaker reduced there is tried again whenever its value changes.
pub const RETRY_INJECTION: &str = "healthscope.core.oam.dev/retry-injection";
/// Keys after [`PREFIX`] that mean something else: a scope that is called like one of these is named by
/// [`SCOPE_NAME`] alone.
pub const RESERVED: &[&str] = &[
    "carry-readiness",
    "depends-on",
    "exec",
    "inject",
    "injected",
    "mirror",
    "name",
    "post-start",
    "probes",
    "resources",
    "retry-injection",
];
/// Longest name part of a label key in Kubernetes; a scope with a longer name is named by [`SCOPE_NAME`] alone.
pub const MAX_KEY_NAME_BYTES: usize = 63;

/// The names of the scopes to which these labels say that their bearer belongs, in no particular order; a name may
/// come twice.
pub fn scope_names(labels: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    let by_value = labels.get(SCOPE_NAME).map(String::as_str);
    let by_key = labels
        .range(PREFIX.to_owned()..)
        .take_while(|(key, _)| key.starts_with(PREFIX))
        .filter_map(|(key, value)| {
            let name = &key[PREFIX.len()..];
            (value == "true" && !RESERVED.contains(&name)).then_some(name)
        });
    by_value.into_iter().chain(by_key)
}

/// The entries of a depends-on annotation, without blanks and empty ones.
pub fn depends_on(annotation: &str) -> impl Iterator<Item = &str> {
    annotation
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// Whether Kubernetes accepts `key` as the key of a label: `name` or `domain/name`.
#[must_use]
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(|prefix| Name::new(prefix).is_ok())
}

/// Whether Kubernetes accepts `value` as the value of a label.
#[must_use]
pub fn is_label_value(value: &str) -> bool {
    value.len() <= MAX_KEY_NAME_BYTES
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && value.bytes().next().is_none_or(|b| b.is_ascii_alphanumeric())
        && value
            .bytes()
            .next_back()
            .is_none_or(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_named_by_value_and_by_key() {
        #[track_caller]
        fn check(labels: &[(&str, &str)], expected: &[&str]) {
            let labels = labels
                .iter()
                .map(|&(key, value)| (key.into(), value.into()))
                .collect();
            assert_eq!(scope_names(&labels).collect::<Vec<_>>(), expected);
        }
        check(&[], &[]);
        check(&[("app", "shop"), ("name", "shop")], &[]);
        check(&[("healthscope.core.oam.dev/name", "shop")], &["shop"]);
        check(&[("healthscope.core.oam.dev/shop", "true")], &["shop"]);
        check(&[("healthscope.core.oam.dev/shop", "false")], &[]);
        check(&[("healthscope.core.oam.dev/inject", "true")], &[]);
        check(
            &[
                ("healthscope.core.oam.dev/a", "true"),
                ("healthscope.core.oam.dev/name", "true"),
                ("healthscope.core.oam.dev/z", "true"),
                ("z", "true"),
            ],
            &["true", "a", "z"],
        );
    }

    #[test]
    fn a_depends_on_annotation_is_a_list() {
        assert_eq!(
            depends_on(" db, Component/cache ,,").collect::<Vec<_>>(),
            ["db", "Component/cache"]
        );
        assert_eq!(depends_on("").count(), 0);
    }
}
