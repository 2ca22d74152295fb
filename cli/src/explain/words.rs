//! The words of a verdict: the four healths, and the reasons that HealthScope gives. Pure.

use {
    super::COLUMNS,
    crate::schema,
    healthscope_shared::health::{Health, Reason},
};

/// The word that lists all of them.
const ALL: &str = "reasons";

/// What a word means, in whatever case it is written; a word may be a health and a reason.
pub(super) fn explain(word: &str) -> Option<String> {
    if word.eq_ignore_ascii_case(ALL) {
        return Some(all());
    }
    let mut pages = Vec::new();
    if let Some(health) = Health::ALL
        .into_iter()
        .find(|health| health.as_str().eq_ignore_ascii_case(word))
    {
        pages.push(page("HEALTH", health.as_str(), meaning(health)));
    }
    let reason = reasons().find(|(reason, _)| reason.as_str().eq_ignore_ascii_case(word));
    if let Some((reason, meaning)) = reason {
        pages.push(page("REASON", reason.as_str(), &meaning));
    }
    (!pages.is_empty()).then(|| pages.join("\n"))
}

/// Our reasons with what they mean. Others come from Kubernetes and are explained there.
fn reasons() -> impl Iterator<Item = (&'static Reason, String)> {
    Reason::OURS
        .iter()
        .zip(Reason::MEANINGS)
        .map(|(reason, meaning)| (reason, meaning.split_whitespace().collect::<Vec<_>>().join(" ")))
}

const fn meaning(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Everything is as it should be. It counts as available.",
        Health::Degraded => {
            "It works, but not all of it is well. It counts as available: the policy of a scope is met by Healthy and \
             Degraded components."
        }
        Health::Unknown => {
            "Nothing is known, or what was known is too old to be believed. It counts as neither available nor failed; \
             the scope's unknownPolicy says what that means for the scope."
        }
        Health::Unhealthy => "It does not work. It does not count as available.",
    }
}

fn page(kind: &str, word: &str, meaning: &str) -> String {
    format!(
        "{:<12}{word}\n\nDESCRIPTION:\n{}",
        format!("{kind}:"),
        schema::wrap(meaning, "    ", COLUMNS)
    )
}

fn all() -> String {
    let mut text = String::from("HEALTHS:\n");
    for health in Health::ALL {
        text.push_str(&format!(
            "  {health}\n{}",
            schema::wrap(meaning(health), "    ", COLUMNS)
        ));
    }
    text.push_str("\nREASONS:\n");
    for (reason, meaning) in reasons() {
        text.push_str(&format!(
            "  {reason}\n{}",
            schema::wrap(&meaning, "    ", COLUMNS)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: &str) {
        let text = explain(word).unwrap();
        assert!(text.contains(expected), "{word}: {text}");
    }

    #[test]
    fn words_are_explained_in_any_case() {
        check(
            "degraded",
            "HEALTH:     Degraded\n\nDESCRIPTION:\n    It works, but",
        );
        check(
            "AgentLost",
            "REASON:     AgentLost\n\nDESCRIPTION:\n    The agent is silent, or its connection ended",
        );
        check("unknown", "HEALTH:     Unknown");
        check("unknown", "REASON:     Unknown");
        assert_eq!(explain("healthscope.spec"), None);
        assert_eq!(explain("health"), None);
    }

    #[test]
    fn every_reason_is_explained() {
        assert_eq!(Reason::OURS.len(), Reason::MEANINGS.len());
        let all = all();
        for (reason, meaning) in reasons() {
            assert!(
                meaning.ends_with('.') && all.contains(reason.as_str()),
                "{reason}: {meaning}"
            );
        }
    }
}
