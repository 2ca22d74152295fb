//! A list of checks in sections, and what it looks like. Pure: nothing here asks anybody.

use {
    crate::terminal::{Style, Terminal, visible},
    serde::Serialize,
    std::fmt::Write as _,
};

/// Objects written out under a check; the others are counted.
const MAX_OBJECTS: usize = 5;
/// Objects in JSON; the others are counted there, too.
const MAX_LISTED: usize = 100;

/// What a check found, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// Does not apply here.
    Skipped,
    /// As it should be.
    Ok,
    /// Works, or could not be looked at; somebody should look.
    Warning,
    /// Does not work.
    Failure,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Skipped => "-",
            Self::Ok => "√",
            Self::Warning => "‼",
            Self::Failure => "×",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Skipped => Style::Faint,
            Self::Ok => Style::Good,
            Self::Warning => Style::Doubtful,
            Self::Failure => Style::Bad,
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// Never changes: for programs.
    pub(super) id: &'static str,
    /// What is to be so.
    pub(super) title: String,
    #[serde(rename = "result")]
    pub(super) outcome: Outcome,
    /// What was seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) hint: String,
    /// What to type for it, one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) commands: Vec<String>,
    /// Whom it is about: `shop/web-1`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) objects: Vec<String>,
    /// How many these are, where they are too many to be listed.
    #[serde(rename = "objectsInAll", skip_serializing_if = "Option::is_none")]
    pub(super) objects_in_all: Option<usize>,
}

impl Check {
    fn new(outcome: Outcome, id: &'static str, title: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            id,
            title: title.into(),
            outcome,
            message: message.into(),
            hint: String::new(),
            commands: Vec::new(),
            objects: Vec::new(),
            objects_in_all: None,
        }
    }

    /// As it should be.
    pub(super) fn ok(id: &'static str, title: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Outcome::Ok, id, title, message)
    }

    /// Does not apply, and why.
    pub(super) fn skipped(id: &'static str, title: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Outcome::Skipped, id, title, message)
    }

    /// Works, or could not be looked at.
    pub(super) fn warning(id: &'static str, title: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Outcome::Warning, id, title, message)
    }

    /// Does not work.
    pub(super) fn failure(id: &'static str, title: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Outcome::Failure, id, title, message)
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What to type for that.
    pub(super) fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// Whom it is about.
    pub(super) fn about(mut self, objects: Vec<String>) -> Self {
        self.objects_in_all = (objects.len() > MAX_LISTED).then_some(objects.len());
        self.objects = objects;
        self.objects.truncate(MAX_LISTED);
        self
    }

    fn write(&self, text: &mut String, terminal: Terminal) {
        let Self {
            id: _,
            title,
            outcome,
            message,
            hint,
            commands,
            objects,
            objects_in_all,
        } = self;
        let (mark, indent) = if terminal.is_person() {
            (outcome.sign().to_owned(), "  ")
        } else {
            (format!("{:<8}", outcome.word()), "         ")
        };
        let mark = terminal.paint(outcome.style(), mark);
        let is_well = matches!(outcome, Outcome::Ok | Outcome::Skipped);
        let one_line = |text: &str| visible(text).replace('\n', " ");
        let mut line = |words: &str| {
            let _always_fits = writeln!(text, "{}", words.trim_end());
        };
        if is_well && !message.is_empty() {
            line(&format!("{mark} {} ({})", one_line(title), one_line(message)));
            return;
        }
        line(&format!("{mark} {}", one_line(title)));
        if !message.is_empty() {
            line(&format!("{indent}  {}", one_line(message)));
        }
        for object in objects.iter().take(MAX_OBJECTS) {
            line(&format!("{indent}    {}", one_line(object)));
        }
        let hidden = objects_in_all
            .unwrap_or(objects.len())
            .saturating_sub(MAX_OBJECTS);
        if hidden > 0 {
            line(&format!("{indent}    and {hidden} more"));
        }
        if !hint.is_empty() {
            line(&format!(
                "{indent}  {} {}",
                terminal.paint(Style::Strong, "hint:"),
                one_line(hint)
            ));
        }
        for command in commands {
            line(&format!("{indent}    {}", one_line(command)));
        }
    }
}

/// Checks that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    /// Never changes: for programs.
    pub(super) id: &'static str,
    pub(super) title: String,
    /// The namespace that it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) checks: Vec<Check>,
}

impl Section {
    /// A section about the installation.
    pub(super) fn new(id: &'static str, title: &str, checks: Vec<Check>) -> Self {
        Self {
            id,
            title: title.to_owned(),
            namespace: None,
            checks,
        }
    }
}

/// How many checks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    ok: usize,
    warning: usize,
    failure: usize,
    skipped: usize,
}

/// All that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Of this program.
    pub(super) version: String,
    /// Which cluster.
    pub(super) cluster: String,
    /// The worst of all.
    #[serde(rename = "result")]
    pub(super) outcome: Outcome,
    pub(super) summary: Summary,
    pub(super) sections: Vec<Section>,
}

impl Report {
    /// Counts.
    pub(super) fn new(cluster: &str, sections: Vec<Section>) -> Self {
        let mut summary = Summary::default();
        let mut worst = Outcome::Ok;
        for check in sections.iter().flat_map(|section| &section.checks) {
            worst = worst.max(check.outcome);
            match check.outcome {
                Outcome::Ok => summary.ok += 1,
                Outcome::Warning => summary.warning += 1,
                Outcome::Failure => summary.failure += 1,
                Outcome::Skipped => summary.skipped += 1,
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: cluster.to_owned(),
            outcome: worst,
            summary,
            sections,
        }
    }

    /// Whether nothing fails.
    pub(super) fn is_good(&self) -> bool {
        self.outcome != Outcome::Failure
    }

    /// What fails, in one line: for who waits.
    pub(super) fn failures(&self) -> String {
        let failing = self
            .sections
            .iter()
            .flat_map(|section| &section.checks)
            .filter(|check| check.outcome == Outcome::Failure);
        failing
            .map(|check| check.title.as_str())
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// As text; `quiet` leaves out what is well.
    pub(super) fn text(&self, quiet: bool, terminal: Terminal) -> String {
        let mut text = String::new();
        for section in &self.sections {
            let is_shown = |check: &&Check| !quiet || check.outcome >= Outcome::Warning;
            let shown: Vec<&Check> = section.checks.iter().filter(is_shown).collect();
            if shown.is_empty() {
                continue;
            }
            let title = visible(&section.title);
            let _always_fits = writeln!(text, "{}", terminal.paint(Style::Strong, title.as_ref()));
            let _always_fits = writeln!(text, "{}", "-".repeat(title.chars().count()));
            for check in shown {
                check.write(&mut text, terminal);
            }
            text.push('\n');
        }
        let Summary {
            ok,
            warning,
            failure,
            skipped,
        } = self.summary;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let _always_fits = writeln!(
            text,
            "{}: {ok} ok, {warning} warning{}, {failure} failure{}, {skipped} skipped",
            terminal.paint(self.outcome.style(), self.outcome.word()),
            plural(warning),
            plural(failure)
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(
            "https://10.0.0.1:6443",
            vec![
                Section::new(
                    "a",
                    "First",
                    vec![
                        Check::ok("one", "one is so", "v1"),
                        Check::skipped("two", "two is so", "it is turned off"),
                        Check::warning("three", "three is so", "not \u{1b}[31mquite\nso")
                            .hint("do this")
                            .command("kubectl get pods")
                            .about((0..120).map(|number| format!("shop/web-{number}")).collect()),
                    ],
                ),
                Section::new(
                    "b",
                    "Second",
                    vec![Check::failure("four", "four is so", "it is not").hint("do that")],
                ),
            ],
        )
    }

    const PLAIN: &str = "\
First
-----
ok       one is so (v1)
skipped  two is so (it is turned off)
warning  three is so
           not \\x1b[31mquite so
             shop/web-0
             shop/web-1
             shop/web-2
             shop/web-3
             shop/web-4
             and 115 more
           hint: do this
             kubectl get pods

Second
------
failure  four is so
           it is not
           hint: do that

failure: 1 ok, 1 warning, 1 failure, 1 skipped
";

    #[test]
    fn programs_read_words_and_people_signs() {
        assert_eq!(report().text(false, Terminal::plain()), PLAIN);
        let seen = report().text(false, Terminal::coloured());
        for sign in [
            "\u{1b}[32m√\u{1b}[0m one",
            "\u{1b}[33m‼\u{1b}[0m three",
            "\u{1b}[31m×\u{1b}[0m four",
        ] {
            assert!(seen.contains(sign), "{seen:?}");
        }
    }

    #[test]
    fn quiet_leaves_out_what_is_well() {
        let text = report().text(true, Terminal::plain());
        assert!(
            !text.contains("one is so") && !text.contains("two is so"),
            "{text}"
        );
        assert!(
            text.contains("three is so") && text.contains("four is so"),
            "{text}"
        );
    }

    #[test]
    fn the_worst_counts_and_what_is_skipped_does_not() {
        assert_eq!(report().outcome, Outcome::Failure);
        assert_eq!(report().failures(), "four is so");
        let skipped = vec![Section::new("a", "A", vec![Check::skipped("x", "x", "")])];
        assert_eq!(Report::new("", skipped).outcome, Outcome::Ok);
        let json = serde_json::to_value(report()).unwrap();
        let about = &json["sections"][0]["checks"][2];
        assert_eq!(about["objects"].as_array().unwrap().len(), MAX_LISTED);
        assert_eq!(about["objectsInAll"], 120);
        assert_eq!(json["result"], "failure");
    }
}
