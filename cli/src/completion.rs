//! `healthscope completion`: a script for a shell.

use {
    crate::{
        args::{Args, CompletionArgs},
        failure::{Answer, Failure},
        terminal::Terminal,
    },
    clap::CommandFactory,
};

/// Prints the script.
pub(crate) fn run(args: &CompletionArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let CompletionArgs { shell } = args;
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut Args::command(), "healthscope", &mut script);
    terminal.print(&String::from_utf8_lossy(&script))?;
    Ok(Answer::Yes)
}

#[cfg(test)]
mod tests {
    use {super::*, clap_complete::Shell};

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
