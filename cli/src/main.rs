//! `healthscope`: the command line.

mod age;
mod args;
mod cause;
mod check;
mod client;
mod cluster;
mod completion;
mod docs;
mod explain;
mod failure;
mod follow;
mod get;
#[cfg(test)]
mod golden;
mod inject;
mod object;
mod probe;
mod schema;
mod server;
mod source;
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
    args::{Args, Backend, Command},
    failure::{Answer, Failure},
    source::Source,
    std::process::ExitCode,
    terminal::Terminal,
};

fn main() -> ExitCode {
    if let Some(words) = args::words_to_complete() {
        return failure::conclude(completion::for_kubectl(words, Terminal::detect()));
    }
    let (args, backend) = Args::read();
    failure::conclude(backend.and_then(|backend| run(args, backend)))
}

fn run(args: Args, backend: Backend) -> Result<Answer, Failure> {
    let terminal = Terminal::detect();
    let Args { global, command } = args;
    match command {
        Command::Explain(args) => explain::run(&args, terminal),
        Command::Completion(args) => completion::run(&args, terminal),
        Command::Docs(args) => docs::run(&args, terminal),
        Command::Check(args) if !args.paths.is_empty() => check::files::run(&args, terminal),
        Command::Up(args) => up::run(&args, terminal),
        command => runtime()?.block_on(run_async(Args { global, command }, backend, terminal)),
    }
}

/// One thread: these commands wait for one answer at a time.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))
}

async fn run_async(args: Args, backend: Backend, terminal: Terminal) -> Result<Answer, Failure> {
    let Args { global, command } = args;
    match command {
        Command::Get(args) => {
            let (source, namespace) = Source::new(backend, &global).await?;
            get::run(&args, &namespace, source, terminal).await
        }
        Command::Why(args) => {
            let (source, namespace) = Source::new(backend, &global).await?;
            why::run(&args, &namespace, &source, terminal).await
        }
        Command::Wait(args) => {
            let (source, namespace) = Source::new(backend, &global).await?;
            wait::run(&args, &namespace, &source, terminal).await
        }
        Command::Watch(args) => {
            let (source, namespace) = Source::new(backend, &global).await?;
            watch::run(&args, &namespace, source, terminal).await
        }
        Command::Probe(args) if !probe::is_component(&args) => {
            probe::run_here(&args, global.server.ca.as_deref(), terminal).await
        }
        Command::Probe(args) => {
            let (source, namespace) = Source::new(backend, &global).await?;
            probe::run_there(&args, &namespace, &source.aggregator().await?, terminal).await
        }
        Command::Check(args) => check::run(&args, &global, terminal).await,
        Command::Inject(args) => inject::run(&args, &global, terminal).await,
        Command::Version(args) => {
            let source = if args.client {
                None
            } else {
                Some(Source::new(backend, &global).await?.0)
            };
            version::run(&args, source.as_ref(), terminal).await
        }
        Command::Up(_) | Command::Explain(_) | Command::Completion(_) | Command::Docs(_) => {
            unreachable!("these commands have run without asking anybody")
        }
    }
}
