//! The program `healthscope-aggregator`: arguments to configuration, signals to shutdown, errors to an exit code.

use {
    anyhow::Context,
    clap::Parser,
    healthscope_aggregator::{
        App, Config,
        args::Args,
        config::{self, Source},
        declared::{self, Declared},
        kubernetes::Kubernetes,
    },
    healthscope_service::{
        build,
        config_files::{INTERVAL, Watcher},
        shutdown::{self, Shutdown},
        telemetry,
    },
    std::process::ExitCode,
};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = telemetry::init(args.log_format, args.log.as_deref()) {
        fail(&error.into());
        return ExitCode::from(2);
    }
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// There is no log yet.
#[expect(clippy::print_stderr, reason = "the log could not be set up")]
fn fail(error: &anyhow::Error) {
    eprintln!("healthscope-aggregator: {error:#}");
}

async fn run(args: Args) -> anyhow::Result<()> {
    tracing::info!(version = build::version(), "starting");
    let shutdown = Shutdown::new();
    shutdown::signals(&shutdown)?;
    match &args.config {
        Some(path) => {
            let watcher =
                Watcher::load(path, INTERVAL, declared::read).context("cannot use the configuration")?;
            serve_files(args, watcher, shutdown).await
        }
        None => {
            let source = Source::Kubernetes(Box::new(Kubernetes::infer(config::place(&args)?).await?));
            let app = App::bind(Config::from_args(args, source)?)?;
            Ok(app.run(shutdown).await?)
        }
    }
}

async fn serve_files(args: Args, watcher: Watcher<Declared>, shutdown: Shutdown) -> anyhow::Result<()> {
    let config = Config::from_args(args, Source::Files(watcher.subscribe()))?;
    let app = App::bind(config)?;
    let watching = tokio::spawn(watcher.run(shutdown.token()));
    app.run(shutdown.clone()).await?;
    watching.await.context("the watch of the configuration failed")?;
    Ok(())
}
