//! Which build this is.

/// The version of the release, without the commit: `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The git commit this was built from, if the build knew it (optimised builds in a checkout, or `HEALTHSCOPE_COMMIT`
/// set while building).
pub const COMMIT: Option<&str> = option_env!("HEALTHSCOPE_COMMIT");

/// The version for people: `0.1.0 (3f2a9c17b0de)`, or `0.1.0` when the commit is not known.
pub fn version() -> String {
    describe(VERSION, COMMIT)
}

fn describe(version: &str, commit: Option<&str>) -> String {
    match commit {
        Some(commit) if !commit.is_empty() => format!("{version} ({commit})"),
        Some(_) | None => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_is_shown_only_when_known() {
        assert_eq!(describe("1.2.3", Some("abc")), "1.2.3 (abc)");
        assert_eq!(describe("1.2.3", Some("")), "1.2.3");
        assert_eq!(describe("1.2.3", None), "1.2.3");
        assert!(version().starts_with(VERSION));
    }
}
