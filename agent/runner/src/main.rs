//! The one small program of HealthScope that stands in other people's containers, and PID 1 of the agent's own.
//!
//! `carry` and `start` see to it that a runner is up, `serve` is the runner, `supervise` is PID 1. What is asked of all of
//! them is that nothing of the pod ends, waits or fails because of them: a container is started, stopped and judged by
//! what its own programs do. So `carry` and `start` end with 0 whatever happens, and `supervise` does not end.

use {
    arguments::Task,
    std::{
        env,
        io::{self, Write},
        process::ExitCode,
    },
};

mod arguments;
mod carry;
mod install;
mod reap;
mod run;
mod serve;
mod supervise;

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    // What is to go on whatever the rest of the line says.
    let task = arguments.first().cloned().unwrap_or_default();
    match Task::parse(arguments) {
        Ok(Task::Carry { checks, then }) => carry::carry(&name, &checks, then.as_deref()),
        Ok(Task::Start { checks, then }) => carry::start(&name, checks, then.as_deref()),
        Ok(Task::Detach { checks }) => carry::detach(&name, &checks),
        Ok(Task::Serve { checks }) => serve::serve(&name, checks),
        Ok(Task::Supervise {
            directory,
            targets,
            agent,
        }) => supervise::supervise(Some((&directory, &targets, &agent))),
        Ok(Task::Version) => {
            let written = writeln!(io::stdout(), "healthscope-runner {}", env!("CARGO_PKG_VERSION"));
            return if written.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Err(error) => {
            say(format_args!("{error}"));
            match task.to_str() {
                Some("carry" | "start") => {}
                Some("supervise") => supervise::supervise(None),
                Some(_) | None => return ExitCode::from(2),
            }
        }
    }
    ExitCode::SUCCESS
}

/// One line for whoever reads the container's log, or nobody.
fn say(message: std::fmt::Arguments<'_>) {
    // Standard error may be closed; there is nowhere else to say so.
    let _nobody_reads = writeln!(io::stderr(), "healthscope-runner: {message}");
}
