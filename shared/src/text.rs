//! Bounded, printable text out of untrusted bytes: check output reaches pages, terminals and status.

use std::borrow::Cow;

/// Cuts `text` to at most `max_bytes` bytes at a character boundary, ending in `…` when something was cut.
///
/// The ellipsis counts: the result never exceeds `max_bytes` (except that a limit under three bytes gives
/// an empty string).
#[must_use]
pub fn truncate(text: &str, max_bytes: usize) -> Cow<'_, str> {
    const ELLIPSIS: &str = "…";
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let mut end = max_bytes.saturating_sub(ELLIPSIS.len());
    while end > 0 && !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 {
        return Cow::Borrowed("");
    }
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

/// Makes one printable line of at most `max_bytes` bytes: runs of white space become one blank, other control
/// characters (escape sequences among them) become `�`.
#[must_use]
pub fn one_line(text: &str, max_bytes: usize) -> String {
    // Twice the limit is enough input: collapsing only shortens.
    let mut line = String::with_capacity(text.len().min(max_bytes * 2));
    let mut blank = false;
    for c in text.trim().chars() {
        if line.len() > max_bytes {
            break;
        }
        if c.is_whitespace() {
            blank = true;
            continue;
        }
        if blank && !line.is_empty() {
            line.push(' ');
        }
        blank = false;
        line.push(if is_unprintable(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        });
    }
    truncate(&line, max_bytes).into_owned()
}

/// Makes text of several lines printable, at most `max_bytes` bytes: line feeds and tabs stay, carriage returns go,
/// other control characters (escape sequences among them) become `�`.
#[must_use]
pub fn printable(text: &str, max_bytes: usize) -> String {
    let is_fine = |c: char| matches!(c, '\n' | '\t') || !is_unprintable(c);
    let shown: String = truncate(text, max_bytes)
        .chars()
        .filter(|&c| c != '\r')
        .map(|c| {
            if is_fine(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect();
    // A replacement takes more bytes than what it replaces.
    truncate(&shown, max_bytes).into_owned()
}

/// Control characters and the bidirectional overrides that reorder what a person reads.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_respects_characters_and_the_limit() {
        assert_eq!(truncate("short", 10), "short");
        assert_eq!(truncate("abcdefgh", 6), "abc…");
        assert_eq!(truncate("ééééé", 8), "éé…");
        assert_eq!(truncate("abc", 2), "");
    }

    #[test]
    fn printable_text_keeps_its_lines_and_nothing_else() {
        assert_eq!(
            printable("a\n\tb\r\x1b[31m\u{202e}", 100),
            "a\n\tb\u{fffd}[31m\u{fffd}"
        );
        assert!(printable(&"\0".repeat(100), 40).len() <= 40);
    }

    #[test]
    fn one_line_shows_control_characters_and_folds_blanks() {
        assert_eq!(
            one_line("  a\n\tb \x1b[31mred\0 ", 100),
            "a b \u{fffd}[31mred\u{fffd}"
        );
        assert_eq!(one_line("x\u{202e}y", 100), "x\u{fffd}y");
        assert_eq!(one_line(&"long ".repeat(100), 12), "long long…");
    }
}
