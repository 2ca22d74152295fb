//! Small parts of pages: marks, times, texts, links.

use {
    healthscope_shared::{
        health::Health,
        name::{Kind, Name, Namespace},
        probe::outcome::ProbeState,
        truncate,
    },
    jiff::Timestamp,
    maud::{Markup, PreEscaped, html},
    std::borrow::Cow,
};

/// The shape of a health: never colour alone. The word stands beside it, so it is hidden from screen readers.
pub(super) fn shape(health: Health) -> Markup {
    let (class, path) = match health {
        Health::Healthy => (
            "healthy",
            r#"<circle cx="8" cy="8" r="7"/><path class="cut" d="m4.6 8.3 2.3 2.3 4.5-4.9"/>"#,
        ),
        Health::Degraded => (
            "degraded",
            r#"<path d="M8 1.2 15.4 14a.8.8 0 0 1-.7 1.2H1.3A.8.8 0 0 1 .6 14Z"/><path class="cut" d="M8 6v4.2M8 12.4v.2"/>"#,
        ),
        Health::Unknown => (
            "unknown",
            r#"<path d="m8 .6 7.4 7.4L8 15.4.6 8Z"/><path class="cut" d="M6.3 6.4a1.7 1.7 0 1 1 2.5 1.5c-.6.3-.8.6-.8 1.1M8 11.1v.2"/>"#,
        ),
        Health::Unhealthy => (
            "unhealthy",
            r#"<path d="M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1Z"/><path class="cut" d="m5.5 5.5 5 5m0-5-5 5"/>"#,
        ),
    };
    html! {
        svg class={"shape " (class)} viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false" {
            (PreEscaped(path))
        }
    }
}

/// Shape and word.
pub(super) fn health(health: Health) -> Markup {
    html! {
        span class={"health " (class(health))} { (shape(health)) (health.as_str()) }
    }
}

/// The class of a health in the style sheet.
pub(super) const fn class(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unknown => "unknown",
        Health::Unhealthy => "unhealthy",
    }
}

/// The health that a probe's state looks like.
pub(super) const fn of_state(state: ProbeState) -> Health {
    match state {
        ProbeState::Pending => Health::Unknown,
        ProbeState::Passing => Health::Healthy,
        ProbeState::Failing => Health::Unhealthy,
    }
}

/// Shape and word of a probe's state.
pub(super) fn state(state: ProbeState) -> Markup {
    let health = of_state(state);
    html! {
        span class={"health " (class(health))} { (shape(health)) (state.as_str()) }
    }
}

/// How long something has lasted; the script keeps it counting.
pub(super) fn since(since: Timestamp, now: Timestamp) -> Markup {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    html! {
        time data-age datetime=(since.strftime("%Y-%m-%dT%H:%M:%SZ")) title=(full(since)) { (age(seconds)) }
    }
}

/// A time of day, with the date when it was not today.
pub(super) fn clock(at: Timestamp, now: Timestamp) -> Markup {
    let is_today = at.strftime("%F").to_string() == now.strftime("%F").to_string();
    let shown = if is_today {
        at.strftime("%H:%M:%S")
    } else {
        at.strftime("%b %-d, %H:%M")
    };
    html! {
        time datetime=(at.strftime("%Y-%m-%dT%H:%M:%SZ")) title=(full(at)) data-clock { (shown.to_string()) }
    }
}

fn full(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `12s`, `4m 12s`, `3h 20m`, `2d 4h`, as the script writes it too.
pub(super) fn age(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Untrusted text with its control characters made visible; lines stay lines.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(must_be_shown) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|c| match c {
        // Unicode has pictures of the first 32 and of DEL.
        '\0'..='\u{1f}' if must_be_shown(c) => char::from_u32(0x2400 + u32::from(c)).unwrap_or('�'),
        '\u{7f}' => '\u{2421}',
        _ if must_be_shown(c) => '�',
        _ => c,
    });
    Cow::Owned(shown.collect())
}

/// Control characters, and those that reorder or hide what a person reads.
fn must_be_shown(c: char) -> bool {
    let is_layout = matches!(c, '\n' | '\t');
    let is_hidden = matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    );
    c.is_control() && !is_layout || is_hidden
}

/// A root cause, `db: readiness tcp ...`, with the names set off from the reason.
pub(super) fn root_cause(text: &str) -> Markup {
    html! {
        @match text.split_once(": ") {
            Some((name, why)) if !name.contains(' ') => { b { (name) } " " (visible(why)) },
            Some(_) | None => { (visible(text)) },
        }
    }
}

/// What a check printed, at most so many bytes of it.
pub(super) fn output(text: &str, max_bytes: usize) -> Markup {
    html! {
        pre class="output" tabindex="0" aria-label="Last output" { (visible(&truncate(text, max_bytes))) }
    }
}

/// Whom the command line asks, for the commands that the page names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    /// The aggregator of this machine.
    Machine,
    /// The cluster, through kubectl.
    Cluster,
}

impl Terminal {
    /// The command that shows the same in a terminal; without a namespace of all of them.
    pub(super) fn command(self, words: &str, namespace: Option<&Namespace>) -> Markup {
        let words = self.words(words, namespace);
        html! {
            p class="command" {
                span class="prompt" aria-hidden="true" { "$ " }
                code { (words) }
                button type="button" class="copy" hidden data-copy=(words) { "Copy" }
            }
        }
    }

    fn words(self, words: &str, namespace: Option<&Namespace>) -> String {
        match (self, namespace) {
            (Self::Machine, None) => format!("healthscope {words}"),
            (Self::Machine, Some(namespace)) if *namespace == Namespace::default_namespace() => {
                format!("healthscope {words}")
            }
            (Self::Machine, Some(namespace)) => format!("healthscope {words} -n {namespace}"),
            (Self::Cluster, None) => format!("kubectl healthscope {words} -A"),
            // The context of whoever reads this may name any namespace.
            (Self::Cluster, Some(namespace)) => format!("kubectl healthscope {words} -n {namespace}"),
        }
    }
}

/// The page of a scope.
pub(super) fn scope_path(namespace: &Namespace, name: &Name) -> String {
    format!("/ui/scopes/{namespace}/{name}")
}

/// The page of a component; nested scopes have their own.
pub(super) fn component_path(namespace: &Namespace, kind: &Kind, name: &Name) -> String {
    if kind.as_str() == healthscope_crd::v1beta1::KIND {
        scope_path(namespace, name)
    } else {
        format!("/ui/components/{namespace}/{kind}/{name}")
    }
}

/// `name`, with the kind in front unless it is the usual one.
pub(super) fn component_name(kind: &Kind, name: &Name) -> Markup {
    html! {
        @if kind.as_str() != "Component" { span class="kind" { (kind) "/" } }
        (name)
    }
}

/// A parameter's value as it stands in a URL.
pub(super) fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// `1 scope`, `2 scopes`.
pub(super) fn count(number: impl Into<u64>, one: &str, many: &str) -> String {
    let number = number.into();
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_two_units_at_most() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (252, "4m 12s"),
            (12_000, "3h 20m"),
            (187_200, "2d 4h"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(visible("plain ünïcode\nline\t2"), "plain ünïcode\nline\t2");
        assert_eq!(visible("\u{1b}[31mred\r\0\u{7f}"), "␛[31mred␍␀␡");
        assert_eq!(visible("a\u{202e}b\u{200b}c\u{85}"), "a�b�c�");
    }

    #[test]
    fn untrusted_text_is_escaped() {
        let markup = output("<script>alert('x')</script>", 4_096).into_string();
        assert!(markup.contains("&lt;script&gt;"), "{markup}");
        let cut = output(&"x".repeat(100), 10).into_string();
        assert!(cut.contains("xxxxxxx…<"), "{cut}");
    }
}
