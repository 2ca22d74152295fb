//! `healthscope completion`: a script for a shell; and what kubectl asks its plugins for.

use {
    crate::{
        args::{Args, CompletionArgs},
        failure::{Answer, Failure},
        terminal::Terminal,
    },
    clap::CommandFactory,
    clap_complete::engine,
    std::ffi::OsString,
};

/// Prints the script.
pub(crate) fn run(args: &CompletionArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let CompletionArgs { shell } = args;
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut Args::command(), "healthscope", &mut script);
    terminal.print(&String::from_utf8_lossy(&script))?;
    Ok(Answer::Yes)
}

/// Directives to the shell after the candidates, as kubectl's own completion has them.
const NO_FILES: &str = ":4\n";
const FILES: &str = ":0\n";

/// Answers kubectl, which runs `kubectl_complete-healthscope` with the words typed so far, the last of them unfinished.
pub(crate) fn for_kubectl(words: Vec<OsString>, terminal: Terminal) -> Result<Answer, Failure> {
    terminal.print(&candidates(words))?;
    Ok(Answer::Yes)
}

fn candidates(mut words: Vec<OsString>) -> String {
    words.insert(0, "healthscope".into());
    let last = words.len() - 1;
    // Nothing to offer is no error while somebody types.
    let found = engine::complete(&mut Args::command(), words, last, None).unwrap_or_default();
    let mut text = String::new();
    for candidate in found.iter().filter(|candidate| !candidate.is_hide_set()) {
        text.push_str(&candidate.get_value().to_string_lossy());
        if let Some(help) = candidate.get_help() {
            let help = help.to_string();
            text.push_str(&format!("\t{}", help.lines().next().unwrap_or_default()));
        }
        text.push('\n');
    }
    let directive = if text.is_empty() { FILES } else { NO_FILES };
    text + directive
}

#[cfg(test)]
mod tests {
    use {super::*, clap_complete::Shell};

    #[test]
    fn kubectl_is_offered_what_can_follow() {
        #[track_caller]
        fn check(words: &[&str], expected: &str, unexpected: &str) {
            let text = candidates(words.iter().map(OsString::from).collect());
            assert!(
                text.contains(expected) && !text.contains(unexpected),
                "{words:?}: {text}"
            );
        }
        check(&["w"], "why\tSay why a scope", "get\t");
        check(&[""], "wait\t", "docs\t");
        check(&["get", "scopes", "--out"], "--output\t", "--watch\t");
        check(&["get", "scopes", "-o", "j"], "json\tJSON", "yaml");
        check(&["get", "scopes", "-o", "j"], NO_FILES, FILES);
        check(&["nosuch", "x"], FILES, NO_FILES);
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "healthscope", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("wait") && script.contains("explain"), "{shell}");
        }
    }
}
