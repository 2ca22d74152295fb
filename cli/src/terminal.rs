//! Standard output: whole texts at a time, colours only where a person looks, and text of others made harmless.
//!
//! Nothing else in the program writes to standard output. A reader that goes away (`healthscope watch | head -1`) is
//! not an error: see [`crate::failure::Failure::Output`].

use {
    healthscope_shared::{health::Health, probe::outcome::ProbeState},
    std::{
        borrow::Cow,
        fmt::Write as _,
        io::{self, IsTerminal, Write},
    },
};

/// Where a command's result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    colour: bool,
    person: bool,
}

/// What a piece of text is, from which its colour follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it comes.
    Plain,
    /// What the eye should find first.
    Strong,
    /// What is there for completeness.
    Faint,
    /// All is well.
    Good,
    /// Something is not well, or not known.
    Doubtful,
    /// It does not work.
    Bad,
}

impl From<Health> for Style {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy => Self::Good,
            Health::Degraded | Health::Unknown => Self::Doubtful,
            Health::Unhealthy => Self::Bad,
        }
    }
}

impl From<ProbeState> for Style {
    fn from(state: ProbeState) -> Self {
        match state {
            ProbeState::Passing => Self::Good,
            ProbeState::Pending => Self::Doubtful,
            ProbeState::Failing => Self::Bad,
        }
    }
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Doubtful => "33",
            Self::Bad => "31",
        }
    }
}

impl Terminal {
    /// Colours when standard output is a terminal that has them and `NO_COLOR` is not set.
    pub(crate) fn detect() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let person = io::stdout().is_terminal();
        Self {
            colour: person && !is_set("NO_COLOR") && !is_dumb,
            person,
        }
    }

    /// Without colours.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self {
            colour: false,
            person: false,
        }
    }

    /// With colours.
    #[cfg(test)]
    pub(crate) const fn coloured() -> Self {
        Self {
            colour: true,
            person: true,
        }
    }

    /// Whether a person looks, to whom signs say more than words.
    pub(crate) const fn is_person(self) -> bool {
        self.person
    }

    /// Paints a text.
    pub(crate) fn paint<'a>(self, style: Style, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let text = text.into();
        let code = style.code();
        if !self.colour || code.is_empty() || text.is_empty() {
            return text;
        }
        Cow::Owned(format!("\u{1b}[{code}m{text}\u{1b}[0m"))
    }

    /// Paints a health's word.
    pub(crate) fn health(self, health: Health) -> Cow<'static, str> {
        self.paint(health.into(), health.as_str())
    }

    /// Writes a text and makes sure that it is seen.
    pub(crate) fn print(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// Text from elsewhere with its control characters made visible, `\x1b`, and the characters that reorder what a person
/// reads, `\u{202e}`. Line ends and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !is_control(c);
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_harmless(c) => shown.push(c),
            '\r' => shown.push_str("\\r"),
            '\0' => shown.push_str("\\0"),
            c if u32::from(c) <= 0xff => {
                let _always_fits = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _always_fits = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(shown)
}

fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        for (text, expected) in [
            ("plain\n\ttext é", "plain\n\ttext é"),
            ("\u{1b}[31mred\u{7}\r\0", "\\x1b[31mred\\x07\\r\\0"),
            ("a\u{202e}b\u{9b}c", "a\\u{202e}b\\x9bc"),
        ] {
            assert_eq!(visible(text), expected);
        }
    }

    #[test]
    fn colours_come_only_where_wanted() {
        assert_eq!(Terminal::plain().health(Health::Unhealthy), "Unhealthy");
        assert_eq!(
            Terminal::coloured().health(Health::Unhealthy),
            "\u{1b}[31mUnhealthy\u{1b}[0m"
        );
        assert_eq!(Terminal::coloured().paint(Style::Plain, "x"), "x");
    }
}
