//! `healthscope up`: an agent and an aggregator in one process, over one real WebSocket on loopback.
//!
//! Both are the very crates of the two programs; what is here is what they are given (a file, or the demo shop) and what
//! a person sees of them.

use {
    crate::{
        args::{self, UpArgs},
        failure::{Answer, Failure},
        terminal::Terminal,
    },
    demo::{Shop, Target},
    healthscope_agent::{app as agent, local::Local, schedule::Limits, uplink},
    healthscope_aggregator::{
        app::{App as Aggregator, AppError},
        config::{Config, Source},
        declared::{self, Declared},
    },
    healthscope_core::snapshot::Snapshot,
    healthscope_service::{
        config_files::{INTERVAL, Loaded, Watcher},
        shutdown::{self, Shutdown},
        tasks::Tasks,
        telemetry::{self, LogFormat, chain},
    },
    healthscope_shared::{config::Component, name::AgentName},
    jiff::tz::TimeZone,
    rustix::process::{Resource, Rlimit, getrlimit, setrlimit},
    std::{
        io,
        net::{Ipv4Addr, SocketAddr},
        path::Path,
        sync::Arc,
        time::Duration,
    },
    tokio::{
        sync::watch,
        time::{Instant, timeout_at},
    },
};

mod demo;
mod port;
mod screen;

/// The end takes at most two seconds; the agent and the aggregator take less than this.
const END_DEADLINE: Duration = Duration::from_millis(1_800);
/// How long the aggregator may take to let its clients go.
const AGGREGATOR_END: Duration = Duration::from_millis(1_200);
/// How long the first table waits for the first verdicts. First runs come within a second.
const FIRST_VERDICTS: Duration = Duration::from_secs(3);
/// Changes are printed this far apart.
const BURST: Duration = Duration::from_millis(20);
/// Descriptors for the most runs of checks at once, and for clients of the page.
const DESCRIPTORS: u64 = 4_096;
/// The store's task logs what is wrong with the files, which is printed here.
const LOG_FILTER: &str = "warn,healthscope_aggregator::store_actor=off";
/// Threads for both programs: neither computes much.
const THREADS: usize = 2;

/// Runs until Ctrl-C.
pub(crate) fn run(args: &UpArgs, terminal: Terminal) -> Result<Answer, Failure> {
    let UpArgs { path, listen } = args;
    let listen = parse_listen(listen)?;
    start_logs()?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let result = runtime.block_on(up(path.as_deref(), listen, terminal));
    // A name that is being resolved would hold the process for as long as the resolver likes.
    runtime.shutdown_background();
    result
}

async fn up(path: Option<&Path>, listen: SocketAddr, terminal: Terminal) -> Result<Answer, Failure> {
    let shutdown = Shutdown::new();
    shutdown::signals(&shutdown).map_err(|error| Failure::error(chain(&error)))?;
    let tasks = Tasks::new(shutdown.clone());
    let subject = Subject::start(path, &tasks).await?;
    let declared = subject.declared.clone();

    let mut config = Config::new(listen, Source::Files(declared.clone()));
    config.timing.shutdown = AGGREGATOR_END;
    let aggregator = match Aggregator::bind(config) {
        Ok(aggregator) => aggregator,
        Err(error) => return Err(not_listening(error, listen).await),
    };
    let endpoint = aggregator
        .agent_url()
        .parse()
        .expect("the aggregator's own URL is one");
    let agent = agent::Config {
        agent: subject.agent.clone(),
        components: components(&declared, &tasks),
        uplink: uplink::Config {
            endpoint,
            tls: None,
            server_name: None,
            token: uplink::Token::None,
            ca_store: None,
            allow_plaintext: false,
        },
        // Its state is on the page; no socket of a passing demo is left in the file system.
        local: Local {
            unix: None,
            tcp: None,
        },
        limits: Limits::default(),
        pod: None,
    };
    let agent = agent::App::bind(agent)
        .await
        .map_err(|error| Failure::error(chain(&error)))?;

    let screen = Screen {
        terminal,
        zone: TimeZone::system(),
        snapshots: aggregator.snapshots(),
        declared,
        path: path.map(Path::to_owned),
        shown: Arc::default(),
        last: 0,
    };
    let url = aggregator.page_url();
    tasks.essential("aggregator", aggregator.run(shutdown.clone()));
    tasks.essential("agent", agent.run(shutdown.clone()));
    let shown = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        shown = screen.show(&url, subject.shop.as_ref()) => shown,
    };
    shutdown.trigger();
    tasks
        .join(END_DEADLINE)
        .await
        .map_err(|error| Failure::error(chain(&error)))?;
    shown?;
    Ok(Answer::Yes)
}

/// What is watched, and where that is written.
struct Subject {
    declared: watch::Receiver<Loaded<Declared>>,
    agent: AgentName,
    shop: Option<Shop>,
}

impl Subject {
    async fn start(path: Option<&Path>, tasks: &Tasks) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Self::demo(tasks).await;
        };
        let watcher = Watcher::load(path, INTERVAL, declared::read).map_err(|problems| {
            Failure::error(format!("cannot start with this configuration\n{problems}"))
        })?;
        let declared = watcher.subscribe();
        tasks.essential("configuration", watcher.run(tasks.shutdown().token()));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            declared,
            agent: AgentName::from_host(&host),
            shop: None,
        })
    }

    async fn demo(tasks: &Tasks) -> Result<Self, Failure> {
        let shop = Shop::start(tasks).await.map_err(|error| {
            Failure::error(format!("cannot open the demo shop's ports on loopback: {error}"))
        })?;
        let value = declared::read(&[shop.file()]).expect("the demo's file is valid");
        let (sender, declared) = watch::channel(Loaded {
            value: Arc::new(value),
            revision: 1,
            problems: None,
        });
        let stop = tasks.shutdown().token();
        // The demo's file never changes; the channel lives as long as the process.
        tasks.essential("configuration", async move {
            stop.cancelled().await;
            drop(sender);
        });
        let agent = AgentName::new("demo").expect("a literal name");
        Ok(Self {
            declared,
            agent,
            shop: Some(shop),
        })
    }
}

/// The agent's share of what is declared, now and as it changes.
fn components(
    declared: &watch::Receiver<Loaded<Declared>>,
    tasks: &Tasks,
) -> watch::Receiver<Arc<Vec<Component>>> {
    let mut declared = declared.clone();
    let (mut revision, first) = {
        let loaded = declared.borrow_and_update();
        (loaded.revision, Arc::new(loaded.value.components.clone()))
    };
    let (sender, receiver) = watch::channel(first);
    let stop = tasks.shutdown().token();
    tasks.essential("components", async move {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = declared.changed() => if changed.is_err() {
                    // Only at the end; whoever sends lives until then.
                    stop.cancelled().await;
                    return;
                },
            }
            let loaded = declared.borrow_and_update().clone();
            if loaded.revision != revision {
                revision = loaded.revision;
                sender.send_replace(Arc::new(loaded.value.components.clone()));
            }
        }
    });
    receiver
}

/// What a person sees.
struct Screen {
    terminal: Terminal,
    zone: TimeZone,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    declared: watch::Receiver<Loaded<Declared>>,
    path: Option<std::path::PathBuf>,
    /// What was printed last.
    shown: Arc<Snapshot>,
    /// The latest transition that was printed.
    last: u64,
}

impl Screen {
    /// Prints until the process ends.
    async fn show(mut self, url: &str, shop: Option<&Shop>) -> Result<(), Failure> {
        let loaded = self.declared.borrow_and_update().clone();
        let subject = match (&self.path, shop) {
            (None, Some(shop)) => screen::Subject::Demo {
                break_db: shop.command("break", Target::Db),
                mend_db: shop.command("mend", Target::Db),
                why: why_command(url),
            },
            (path, _) => screen::Subject::Files(
                path.as_ref()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
            ),
        };
        self.terminal
            .print(&screen::greeting(url, &subject, &loaded.value, self.terminal))?;
        self.first_table(&loaded.value).await?;
        let mut told = loaded;
        loop {
            tokio::select! {
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => {
                        self.transitions()?;
                        // What comes in a burst is put together.
                        tokio::time::sleep(BURST).await;
                    }
                    // The aggregator has ended, and with it the process.
                    Err(_) => return Ok(()),
                },
                changed = self.declared.changed() => match changed {
                    Ok(()) => {
                        let now = self.declared.borrow_and_update().clone();
                        self.tell_files(&told, &now)?;
                        told = now;
                    }
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    /// Waits a moment for the first verdicts, then prints them.
    async fn first_table(&mut self, declared: &Declared) -> Result<(), Failure> {
        let deadline = Instant::now() + FIRST_VERDICTS;
        let is_known = |snapshot: &Arc<Snapshot>| {
            let known = snapshot.scopes.len() >= declared.scopes.len()
                && snapshot.totals.components.total as usize >= declared.components.len();
            known && snapshot.totals.components.unknown == 0 && snapshot.totals.scopes.unknown == 0
        };
        // Late ones are shown as Unknown, and as transitions when they come.
        drop(timeout_at(deadline, self.snapshots.wait_for(is_known)).await);
        let snapshot = self.snapshots.borrow_and_update().clone();
        self.last = snapshot.last_transition;
        self.shown = snapshot.clone();
        self.terminal.print(&screen::table(&snapshot, self.terminal))?;
        Ok(())
    }

    fn transitions(&mut self) -> Result<(), Failure> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let text = screen::transitions(&self.shown, &snapshot, self.last, &self.zone, self.terminal);
        self.last = self.last.max(snapshot.last_transition);
        self.shown = snapshot;
        if !text.is_empty() {
            self.terminal.print(&text)?;
        }
        Ok(())
    }

    fn tell_files(&self, before: &Loaded<Declared>, now: &Loaded<Declared>) -> Result<(), Failure> {
        let name = self
            .path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        match screen::files(&name, before, now) {
            screen::Told::Nothing => {}
            screen::Told::Problem(text) => complain(&text),
            screen::Told::News(text) => self.terminal.print(&text)?,
        }
        Ok(())
    }
}

/// What to type, in another terminal at the same place, to ask this aggregator.
fn why_command(url: &str) -> String {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let program = args::invocation();
    if address == args::DEFAULT_SERVER {
        format!("{program} why shop")
    } else {
        format!("{program} -s {address} why shop")
    }
}

#[expect(
    clippy::print_stderr,
    reason = "what is wrong with the files goes to standard error"
)]
fn complain(text: &str) {
    eprint!("{text}");
}

/// Only what needs somebody. Transitions, and what is wrong with the files, are printed in another way.
fn start_logs() -> Result<(), Failure> {
    let is_chosen = std::env::var_os(telemetry::FILTER_VARIABLE).is_some_and(|filter| !filter.is_empty());
    let filter = if is_chosen { None } else { Some(LOG_FILTER) };
    telemetry::init(LogFormat::Human, filter).map_err(|error| Failure::usage(chain(&error)))
}

/// As many descriptors as the most checks at once need, where the system allows.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if current.is_some_and(|current| current < wanted) {
        // With fewer, checks wait their turn or say that they could not be made.
        let _as_it_was = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum,
            },
        );
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, Failure> {
    let with_host = match text.strip_prefix(':') {
        Some(port) => format!("{}:{port}", Ipv4Addr::LOCALHOST),
        None => text.replace("localhost:", "127.0.0.1:"),
    };
    let address: SocketAddr = with_host.parse().map_err(|_| {
        Failure::usage(format!(
            "--listen {text:?} is not an address; write 127.0.0.1:7575"
        ))
    })?;
    if address.ip().to_canonical().is_loopback() {
        return Ok(address);
    }
    Err(Failure::usage(format!(
        "--listen {text}: `up` serves this machine alone; for others run healthscope-aggregator, with --tls-cert, \
         --tls-key and --token-file"
    )))
}

/// Says who has the port, and what to do.
async fn not_listening(error: AppError, listen: SocketAddr) -> Failure {
    match error {
        AppError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
            let owner = port::owner(address).await;
            let port = if listen.port() == u16::MAX {
                0
            } else {
                listen.port() + 1
            };
            let other = SocketAddr::new(listen.ip(), port);
            Failure::error(format!(
                "{address} is in use by {owner}; end that, or choose another address: --listen {other}"
            ))
        }
        error @ (AppError::Listen { .. } | AppError::Config(_) | AppError::SignIn(_) | AppError::Task(_)) => {
            Failure::error(chain(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_on() {
        for (text, expected) in [
            ("127.0.0.1:7575", Ok("127.0.0.1:7575")),
            ("[::1]:0", Ok("[::1]:0")),
            ("localhost:80", Ok("127.0.0.1:80")),
            (":7576", Ok("127.0.0.1:7576")),
            ("0.0.0.0:7575", Err("run healthscope-aggregator")),
            ("192.0.2.1:7575", Err("run healthscope-aggregator")),
            ("7575", Err("is not an address")),
        ] {
            match (parse_listen(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(Failure::Usage(found)), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
            }
        }
    }
}
