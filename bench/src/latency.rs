//! `latency`: from the moment a target answers differently to the aggregator's event stream.
//!
//! Real programs throughout: the agent probes a target inside this process over HTTP, the aggregator streams to this
//! process. The clock starts when the target has written the answer that changes the verdict, so the agent's own
//! reading of that answer is counted too.

use {
    crate::{
        process::{Process, release_binary},
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result, bail, ensure},
    clap::Args,
    std::{
        net::{Ipv4Addr, TcpListener as StdListener},
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, Instant},
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    },
};

/// How many changes.
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    /// Changes of state to measure.
    #[arg(long, default_value_t = 400)]
    changes: usize,
}

/// What the target answers, and when it first answered that.
#[derive(Default)]
struct Mood {
    is_broken: AtomicBool,
    answered: Mutex<Option<Instant>>,
}

/// Runs the measurement.
pub(crate) async fn latency(args: LatencyArgs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mood = Arc::new(Mood::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(serve(listener, mood.clone()));

    let config = folder.path().join("config.yaml");
    std::fs::write(
        &config,
        format!(
            "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: web}}\n\
             spec: {{readinessProbe: {{httpGet: {{port: {port}}}, period: 50ms, failureThreshold: 1}}}}\n---\n\
             apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: shop}}\n\
             spec: {{workloadRefs: [{{kind: Component, name: web}}]}}\n"
        ),
    )?;
    let config = config.display().to_string();
    let address = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let log = folder.path().join("log");
    let _aggregator = Process::spawn(
        &release_binary("healthscope-aggregator")?,
        &["--config", &config, "--listen", &address.to_string()],
        Some(&log),
    )?;
    let mut stream = open_stream(&format!("http://{address}/api/v1/stream")).await?;
    let socket = folder.path().join("agent.sock").display().to_string();
    let _agent = Process::spawn(
        &release_binary("healthscope-agent")?,
        &[
            "--config",
            &config,
            "--aggregator",
            &format!("ws://{address}"),
            "--socket",
            &socket,
        ],
        Some(&log),
    )?;

    let mut scope = Vec::with_capacity(args.changes);
    next_scope_change(&mut stream, "Healthy").await.with_context(|| {
        format!(
            "the scope did not become healthy: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        )
    })?;
    for change in 0..args.changes {
        let breaks = change % 2 == 0;
        *mood.answered.lock().expect("nobody panics with it") = None;
        mood.is_broken.store(breaks, Ordering::SeqCst);
        let seen = next_scope_change(&mut stream, if breaks { "Unhealthy" } else { "Healthy" }).await?;
        let answered = mood
            .answered
            .lock()
            .expect("nobody panics with it")
            .context("the target was not asked")?;
        scope.push(seen.duration_since(answered));
    }
    serving.abort();

    scope.sort_unstable();
    let shown = |share: f64| {
        quantile(&scope, share).map_or_else(String::new, |d| format!("{:.2} ms", d.as_secs_f64() * 1e3))
    };
    say(&format!(
        "{} changes: target's answer written → scope's transition on the event stream",
        scope.len()
    ));
    let mut table = Table::new(["", "p50", "p90", "p99", "max"]);
    table.row([
        "agent to stream".to_owned(),
        shown(0.5),
        shown(0.9),
        shown(0.99),
        shown(1.0),
    ]);
    table.print();
    Ok(())
}

/// Answers 200 or 503 as the mood is, one request a connection.
async fn serve(listener: TcpListener, mood: Arc<Mood>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut request = [0; 1024];
        if stream.read(&mut request).await.is_err() {
            continue;
        }
        let is_broken = mood.is_broken.load(Ordering::SeqCst);
        let answer: &[u8] = if is_broken {
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        };
        if stream.write_all(answer).await.is_ok() {
            let mut answered = mood.answered.lock().expect("nobody panics with it");
            // A mood that changed in between is answered next time.
            if is_broken == mood.is_broken.load(Ordering::SeqCst) {
                answered.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// The event stream, as it comes.
struct Events {
    response: reqwest::Response,
    text: String,
}

async fn open_stream(url: &str) -> Result<Events> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match reqwest::Client::new()
            .get(url)
            .header("Accept", "text/event-stream")
            .send()
            .await
        {
            Ok(response) => {
                return Ok(Events {
                    response: response.error_for_status()?,
                    text: String::new(),
                });
            }
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits for the scope's transition to `to`; answers when it was read.
async fn next_scope_change(events: &mut Events, to: &str) -> Result<Instant> {
    let wanted = format!("\"to\":\"{to}\"");
    let reading = async {
        loop {
            while let Some(end) = events.text.find('\n') {
                let line: String = events.text.drain(..=end).collect();
                let is_scope = line.starts_with("data:") && line.contains("\"level\":\"scope\"");
                if is_scope && line.contains(&wanted) {
                    return Ok(Instant::now());
                }
            }
            let Some(chunk) = events.response.chunk().await? else {
                bail!("the event stream ended")
            };
            events.text.push_str(std::str::from_utf8(&chunk)?);
            ensure!(
                events.text.len() < 16 * 1024 * 1024,
                "a line of the event stream never ends"
            );
        }
    };
    timeout(Duration::from_secs(30), reading)
        .await
        .with_context(|| format!("no change to {to} within 30 s"))?
}
