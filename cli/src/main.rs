//! `healthscope`: the command line.

mod age;
mod args;
mod check;
mod client;
mod completion;
mod docs;
mod explain;
mod failure;
mod follow;
mod get;
#[cfg(test)]
mod golden;
mod object;
mod probe;
mod schema;
mod server;
mod sse;
mod table;
mod terminal;
mod transition;
mod up;
mod version;
mod wait;
mod watch;
mod why;

use {
    args::{Args, Command, Global},
    client::Client,
    failure::{Answer, Failure},
    healthscope_shared::name::Namespace,
    std::process::ExitCode,
    terminal::Terminal,
};

fn main() -> ExitCode {
    let args = Args::read();
    failure::conclude(run(args))
}

fn run(args: Args) -> Result<Answer, Failure> {
    let Args { global, command } = args;
    let terminal = Terminal::detect();
    match command {
        Command::Explain(args) => explain::run(&args, terminal),
        Command::Completion(args) => completion::run(&args, terminal),
        Command::Docs(args) => docs::run(&args, terminal),
        Command::Check(args) => check::run(&args, terminal),
        Command::Up(args) => up::run(&args, terminal),
        command => runtime()?.block_on(run_async(command, &global, terminal)),
    }
}

/// One thread: these commands wait for one answer at a time.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))
}

async fn run_async(command: Command, global: &Global, terminal: Terminal) -> Result<Answer, Failure> {
    let Global { server, namespace } = global;
    let namespace = match namespace {
        None => Namespace::default_namespace(),
        Some(name) => Namespace::new(name).map_err(Failure::usage)?,
    };
    match command {
        Command::Get(args) => get::run(&args, &namespace, &Client::new(server)?, terminal).await,
        Command::Why(args) => why::run(&args, &namespace, &Client::new(server)?, terminal).await,
        Command::Wait(args) => wait::run(&args, &namespace, &Client::new(server)?, terminal).await,
        Command::Probe(args) if !probe::is_component(&args) => {
            probe::run_here(&args, server.ca.as_deref(), terminal).await
        }
        Command::Version(args) => {
            let client = if args.client {
                None
            } else {
                Some(Client::new(server)?)
            };
            version::run(&args, client.as_ref(), terminal).await
        }
        Command::Watch(args) => watch::run(&args, &namespace, &Client::new(server)?, terminal).await,
        Command::Probe(args) => probe::run_there(&args, &namespace, &Client::new(server)?, terminal).await,
        Command::Up(_)
        | Command::Check(_)
        | Command::Explain(_)
        | Command::Completion(_)
        | Command::Docs(_) => {
            unreachable!("these commands have run without asking an aggregator")
        }
    }
}
