//! The agent's process: command line, logs, runtime, signals, exit code. Everything else is the library's.

use {
    anyhow::Context,
    clap::{CommandFactory, Parser, error::ErrorKind},
    healthscope_agent::{
        app::{App, Config},
        args::Args,
        config::{self, Settings, WatchedSource, reader},
        schedule::Limits,
    },
    healthscope_service::{
        build,
        config_files::{self, Loaded, Watcher},
        shutdown::{self, Shutdown},
        telemetry,
    },
    healthscope_shared::config::Component,
    rustix::process::{Resource, Rlimit, getrlimit, setrlimit},
    std::{
        env,
        io::{self, Write},
        process::ExitCode,
        slice,
        sync::Arc,
        thread,
        time::Duration,
    },
    tokio::{runtime, sync::watch},
};

/// Descriptors that the most runs at once can need, with room: what programs that a check starts are given is inherited,
/// and some of them go through all the descriptors that they might have.
const MAX_DESCRIPTORS: u64 = 4096;
/// Threads for what cannot be waited for otherwise: names to resolve, directories to read.
const MAX_BLOCKING_THREADS: usize = 8;
/// How long such a thread is kept: a thread that idles costs memory.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    if env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == reader::ARGUMENT)
    {
        return match reader::serve(io::stdin().lock(), io::stdout().lock()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // On a stack of its own, which is given back: reading the command line takes more of it than anything later.
    let result = match thread::spawn(prepare).join() {
        Ok(prepared) => prepared.and_then(Prepared::run),
        Err(_) => Err(anyhow::anyhow!("a defect of the agent: its start panicked")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; there is nowhere else to say so.
            let _nobody_reads = writeln!(io::stderr(), "healthscope-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the process runs with.
struct Prepared {
    settings: Settings,
    limits: Limits,
    watched: Watched,
}

/// What is watched, as it is written.
enum Watched {
    /// In files, which may change.
    Files(Watcher<Arc<Vec<Component>>>),
    /// On the command line, for good.
    Given(Arc<Vec<Component>>),
}

/// Reads command line and files. Ends the process when the command line is wrong or asks for help.
fn prepare() -> anyhow::Result<Prepared> {
    let args = Args::parse();
    if let Err(error) = config::check(&args) {
        Args::command().error(ErrorKind::ArgumentConflict, error).exit();
    }
    telemetry::init(args.log_format, None)?;
    let limits = config::limits(raise_descriptor_limit());
    let settings = Settings::new(args)?;
    let watched = match &settings.watched {
        WatchedSource::Files(path) => {
            let watcher = Watcher::load(path, config_files::INTERVAL, reader::read_apart)
                .map_err(|problems| anyhow::anyhow!("the configuration cannot be used\n{problems}"))?;
            Watched::Files(watcher)
        }
        WatchedSource::Given(component) => {
            let components = reader::read_apart(slice::from_ref(component)).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("the Component cannot be used\n{}", lines.join("\n"))
            })?;
            Watched::Given(components)
        }
    };
    Ok(Prepared {
        settings,
        limits,
        watched,
    })
}

impl Prepared {
    fn run(self) -> anyhow::Result<()> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_keep_alive(THREAD_KEEP_ALIVE)
            .build()
            .context("cannot start")?;
        let result = runtime.block_on(run(self));
        // A name that is being resolved would hold the process for as long as the resolver likes.
        runtime.shutdown_background();
        result
    }
}

async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let Prepared {
        settings,
        limits,
        watched,
    } = prepared;
    let Settings {
        watched: _,
        agent,
        uplink,
        local,
        pod,
    } = settings;
    let shutdown = Shutdown::new();
    shutdown::signals(&shutdown)?;
    tracing::info!(version = build::version(), %agent, aggregator = %uplink.endpoint, "starting");

    let (first, watcher) = match watched {
        Watched::Files(watcher) => {
            let first = Arc::clone(&*watcher.subscribe().borrow().value);
            (first, Some(watcher))
        }
        Watched::Given(components) => (components, None),
    };
    describe(&first);
    let (sender, components) = watch::channel(first);
    let app = App::bind(Config {
        agent,
        components,
        uplink,
        local,
        limits,
        pod,
    })
    .await?;
    if let Some(address) = app.tcp_address() {
        tracing::info!(%address, "answering");
    }
    // Both end with the runtime: neither holds anything that has to be given back.
    let following = watcher.map(|watcher| {
        let following = tokio::spawn(follow(watcher.subscribe(), sender));
        let watching = tokio::spawn(watcher.run(shutdown.token()));
        [watching.abort_handle(), following.abort_handle()]
    });
    let result = app.run(shutdown).await;
    for task in following.into_iter().flatten() {
        task.abort();
    }
    Ok(result?)
}

/// Hands on what can be used, and says what cannot.
async fn follow(
    mut loaded: watch::Receiver<Loaded<Arc<Vec<Component>>>>,
    components: watch::Sender<Arc<Vec<Component>>>,
) {
    let mut revision = loaded.borrow().revision;
    while loaded.changed().await.is_ok() {
        let now = loaded.borrow_and_update().clone();
        match now.problems {
            Some(problems) => {
                for problem in problems.list() {
                    tracing::warn!("{problem}");
                }
                tracing::warn!("the configuration cannot be used; what is watched stays as it was");
            }
            None if now.revision != revision => {
                revision = now.revision;
                describe(&now.value);
                components.send_replace(Arc::clone(&*now.value));
            }
            None => tracing::info!("the configuration is as it was"),
        }
    }
}

fn describe(components: &[Component]) {
    let probes: usize = components.iter().map(|component| component.probes.len()).sum();
    if probes == 0 {
        tracing::warn!("the configuration has no Component; nothing is watched");
    } else {
        tracing::info!(components = components.len(), probes, "watching");
    }
}

/// Raises the soft limit, which is often 1024, as far as this process could use; what it is then.
fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
    let current = current.unwrap_or(MAX_DESCRIPTORS);
    if current >= wanted {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}
