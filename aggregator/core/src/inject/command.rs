//! The runner's command lines in a pod, written and read back: `/healthscope/runner carry -c 2 cat /tmp/ok`.
//!
//! A list of checks is `-c N WORD1 … WORDN` once for each, counted from 0; the count makes every word possible. What
//! stands after `--` is the user's own command.

use std::collections::BTreeMap;

/// Where a target container finds the runner.
pub(super) const RUNNER: &str = "/healthscope/runner";

/// What the runner is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// In a probe: see that a runner is there.
    Carry,
    /// In a postStart hook: start one.
    Start,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Carry => "carry",
            Self::Start => "start",
        }
    }
}

/// The command line with these checks, and the user's own command at its end.
pub(super) fn write(verb: Verb, checks: &[Vec<String>], own: Option<&[String]>) -> Vec<String> {
    let mut line = vec![RUNNER.to_owned(), verb.as_str().to_owned()];
    for check in checks {
        line.push("-c".to_owned());
        line.push(check.len().to_string());
        line.extend_from_slice(check);
    }
    if let Some(own) = own {
        line.push("--".to_owned());
        line.extend_from_slice(own);
    }
    line
}

/// The user's own command in a command line of ours: `None` when the line is not ours, an inner `None` when it has none.
pub(super) fn read(verb: Verb, line: &[String]) -> Option<Option<&[String]>> {
    let mut rest = match line {
        [program, word, rest @ ..] if program == RUNNER && word == verb.as_str() => rest,
        _ => return None,
    };
    loop {
        match rest {
            [] => return Some(None),
            [dashes, own @ ..] if dashes == "--" => return Some(Some(own)),
            [flag, count, words @ ..] if flag == "-c" => {
                rest = words.get(count.parse::<usize>().ok()?..)?;
            }
            _ => return None,
        }
    }
}

/// A word as the kubelet hands it to a probe: `$(NAME)` replaced by a variable of the container, `$$` by `$`.
///
/// The kubelet does this for commands of probes and not for those of hooks, so whoever moves a command from one to the
/// other has to do it. The rules are those of Kubernetes' `third_party/forked/golang/expansion`.
pub(super) fn expand(word: &str, variables: &BTreeMap<&str, &str>) -> String {
    let mut expanded = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_line_is_read_back_whatever_the_words_are() {
        let checks = [words("cat /tmp/ok"), words("-- -c 3 --"), vec![String::new()]];
        for own in [None, Some(words("-- cat")), Some(words("a"))] {
            for verb in [Verb::Carry, Verb::Start] {
                let line = write(verb, &checks, own.as_deref());
                assert_eq!(read(verb, &line), Some(own.as_deref()), "{line:?}");
            }
        }
    }

    #[test]
    fn lines_of_others_are_not_ours() {
        for line in [
            "cat /tmp/ok",
            "/healthscope/runner",
            "/healthscope/runner start -c 1 a",
            "/healthscope/runner carry -c 2 a",
            "/healthscope/runner carry -c x a",
            "/healthscope/runner carry -c 99999999999999999999999 a",
            "/healthscope/runner carry a",
        ] {
            assert_eq!(read(Verb::Carry, &words(line)), None, "{line}");
        }
    }

    #[test]
    fn variables_are_replaced_as_the_kubelet_does() {
        let variables = BTreeMap::from([("A", "1"), ("B", "$(A)")]);
        for (word, expected) in [
            ("$(A)", "1"),
            ("x$(A)$(B)y", "x1$(A)y"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("kill -0 $$", "kill -0 $"),
            ("é$(A)ü", "é1ü"),
        ] {
            assert_eq!(expand(word, &variables), expected, "{word}");
        }
    }
}
