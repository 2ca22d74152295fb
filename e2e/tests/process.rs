//! The real programs on loopback, and what can happen to them: killed, stopped, cut off, out of descriptors.

use {
    anyhow::{Context, Result, ensure},
    healthscope_e2e::{
        api::Api,
        program::{Program, free_address, run, runs},
        target::Target,
        wait::eventually,
    },
    rustix::process::Signal,
    serde_json::Value,
    std::{
        fs,
        net::SocketAddr,
        path::{Path, PathBuf},
        time::Duration,
    },
    tempfile::TempDir,
    tokio::{net::TcpStream, process::Command},
};

/// One component `web` behind `port` and one scope `shop` around it.
fn shop(port: u16) -> String {
    format!(
        "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: web}}\n\
         spec: {{readinessProbe: {{httpGet: {{port: {port}}}, period: 50ms, failureThreshold: 1}}}}\n---\n\
         apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: shop}}\n\
         spec: {{workloadRefs: [{{kind: Component, name: web}}]}}\n"
    )
}

/// A folder with a configuration file, and the aggregator and agent that read it.
struct Bench {
    folder: TempDir,
    config: PathBuf,
    address: SocketAddr,
}

impl Bench {
    fn new(config: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("config.yaml");
        fs::write(&path, config)?;
        Ok(Self {
            config: path,
            address: free_address()?,
            folder,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn api(&self) -> Api {
        Api::new(self.address)
    }

    fn aggregator_arguments(&self) -> Vec<String> {
        let config = self.config.display().to_string();
        vec![
            "--config".into(),
            config,
            "--listen".into(),
            self.address.to_string(),
        ]
    }

    fn aggregator(&self) -> Result<Program> {
        Program::start(
            "healthscope-aggregator",
            &self.aggregator_arguments(),
            self.path(),
        )
    }

    fn agent_arguments(&self) -> Vec<String> {
        let socket = self.path().join("agent.sock").display().to_string();
        let config = self.config.display().to_string();
        let url = format!("ws://{}", self.address);
        ["--config", &config, "--aggregator", &url, "--socket", &socket]
            .map(str::to_owned)
            .into()
    }

    fn agent(&self) -> Result<Program> {
        Program::start("healthscope-agent", &self.agent_arguments(), self.path())
    }
}

/// Sequence number and new state of each transition of a probe that the aggregator remembers.
async fn probe_transitions(api: &Api) -> Result<Vec<(u64, String)>> {
    let transitions = api.transitions("probe").await?;
    transitions
        .iter()
        .map(|transition| {
            let seq = transition["seq"].as_u64().context("a sequence number")?;
            Ok((seq, transition["to"].as_str().unwrap_or_default().to_owned()))
        })
        .collect()
}

#[tokio::test]
async fn the_verdict_follows_the_target_across_processes() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let _aggregator = bench.aggregator()?;
    let _agent = bench.agent()?;
    let api = bench.api();

    api.until_health("shop", "Healthy").await?;
    assert_eq!(api.text("/shop").await?, (200, "healthy".into()));
    target.answer(503);
    let view = api.until_health("shop", "Unhealthy").await?;
    let root_cause = view["rootCause"].as_str().unwrap_or_default();
    assert!(
        root_cause.starts_with("web: readiness http 127.0.0.1:"),
        "{root_cause}"
    );
    assert!(root_cause.contains("503"), "{root_cause}");
    assert_eq!(api.text("/shop").await?, (200, "unhealthy".into()));
    assert_eq!(api.text("/scopes/shop").await?.0, 503);
    target.answer(200);
    api.until_health("shop", "Healthy").await?;
    Ok(())
}

#[tokio::test]
async fn agents_on_other_machines_use_tls_and_a_token() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()])?;
    let file = |name: &str, content: &str| -> Result<String> {
        let path = bench.path().join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let cert = file("cert.pem", &made.cert.pem())?;
    let key = file("key.pem", &made.signing_key.serialize_pem())?;
    let token = file("token", "a-long-and-secret-token\n")?;
    let wrong = file("wrong", "another-token\n")?;

    let mut arguments = bench.aggregator_arguments();
    arguments.extend(["--tls-cert", &cert, "--tls-key", &key, "--token-file", &token].map(str::to_owned));
    let _aggregator = Program::start("healthscope-aggregator", &arguments, bench.path())?;
    let agent_arguments = |token: &str, socket: &str| {
        let mut arguments = bench.agent_arguments();
        arguments[3] = format!("wss://{}", bench.address);
        arguments[5] = bench.path().join(socket).display().to_string();
        arguments.extend(["--ca", &cert, "--token-file", token].map(str::to_owned));
        arguments
    };
    let mut intruder = Program::start(
        "healthscope-agent",
        &agent_arguments(&wrong, "wrong.sock"),
        bench.path(),
    )?;
    intruder.printed("401").await?;
    intruder.kill().await?;

    let _agent = Program::start(
        "healthscope-agent",
        &agent_arguments(&token, "agent.sock"),
        bench.path(),
    )?;
    let api = Api::over_tls(bench.address, &made.cert.pem(), Some("a-long-and-secret-token"))?;
    api.until_health("shop", "Healthy").await?;
    target.answer(500);
    api.until_health("shop", "Unhealthy").await?;

    let stranger = Api::over_tls(bench.address, &made.cert.pem(), None)?;
    let (status, body) = stranger.text("/api/v1/scopes").await?;
    // Loopback needs no token to read unless the aggregator has one.
    assert_eq!(status, 401, "{body}");
    assert!(!body.contains("web"), "{body}");
    Ok(())
}

#[tokio::test]
async fn no_transition_is_lost_or_invented_while_the_aggregator_is_away() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let aggregator = bench.aggregator()?;
    let _agent = bench.agent()?;
    let api = bench.api();
    api.until_health("shop", "Healthy").await?;
    aggregator.kill().await?;
    for status in [503, 200, 503, 200, 503] {
        target.answer(status);
        let asked = target.asked();
        eventually("the agent to have seen the change", async || {
            ensure!(
                target.asked() >= asked + 3,
                "asked {} times",
                target.asked() - asked
            );
            Ok(())
        })
        .await?;
    }
    let _aggregator = bench.aggregator()?;
    api.until_health("shop", "Unhealthy").await?;
    let seen = eventually("all transitions", async || {
        let seen = probe_transitions(&api).await?;
        ensure!(seen.len() >= 5, "{seen:?}");
        Ok(seen)
    })
    .await?;
    let expected: Vec<(u64, String)> = ["failing", "passing", "failing", "passing", "failing"]
        .iter()
        .zip(2..)
        .map(|(state, seq)| (seq, (*state).to_owned()))
        .collect();
    // The first one was acknowledged to the aggregator that was killed; it need not come again.
    let seen: Vec<_> = seen.into_iter().filter(|(seq, _)| *seq > 1).collect();
    assert_eq!(seen, expected);
    Ok(())
}

#[tokio::test]
async fn a_killed_agent_becomes_unknown_and_comes_back_without_a_false_verdict() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let _aggregator = bench.aggregator()?;
    let agent = bench.agent()?;
    let api = bench.api();
    api.until_health("shop", "Healthy").await?;
    agent.kill().await?;

    // Ten seconds after the connection broke, but not within thirty after the aggregator started.
    let view = match api.until_health("shop", "Unknown").await {
        Ok(view) => view,
        Err(_) => api.until_health("shop", "Unknown").await?,
    };
    assert_eq!(view["components"][0]["reason"], "AgentLost", "{view}");

    let _agent = bench.agent()?;
    api.until_health("shop", "Healthy").await?;
    let words: Vec<String> = api
        .transitions("scope")
        .await?
        .iter()
        .map(|transition| transition["to"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(!words.iter().any(|word| word == "Unhealthy"), "{words:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_restarted_quickly_changes_nothing() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let _aggregator = bench.aggregator()?;
    let agent = bench.agent()?;
    let api = bench.api();
    api.until_health("shop", "Healthy").await?;
    let (status, _) = agent.end(Signal::TERM, Duration::from_secs(2)).await?;
    assert_eq!(status.code(), Some(0));
    let _agent = bench.agent()?;
    eventually("the second session", async || {
        let agents = api.get("/api/v1/agents").await?;
        let list = agents.get("items").unwrap_or(&agents);
        ensure!(
            list[0]["presence"] == "connected" && list[0]["sessions"] == 2,
            "{agents}"
        );
        Ok(())
    })
    .await?;
    let scope: Vec<Value> = api.transitions("scope").await?;
    assert!(
        scope.iter().all(|transition| transition["to"] == "Healthy"),
        "{scope:?}"
    );
    Ok(())
}

#[tokio::test]
async fn ending_an_agent_ends_its_commands() -> Result<()> {
    let config = "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: slow}\n\
                  spec: {probes: [{name: slow, exec: {command: [sleep, '300']}, timeout: 5m, period: 5m}]}\n";
    let bench = Bench::new(config)?;
    let agent = bench.agent()?;
    let child = eventually("the command", async || {
        // Not just any child: the agent reads its configuration in one.
        let name = |id: &i32| std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        let mut children = agent.children()?.into_iter();
        children
            .find(|id| name(id).trim() == "sleep")
            .context("no command yet")
    })
    .await?;
    let (status, log) = agent.end(Signal::TERM, Duration::from_secs(2)).await?;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!runs(child), "the command outlived its agent");
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_said_plainly() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let mut arguments = bench.aggregator_arguments();
    arguments[3] = target.address.to_string();
    let (code, _, said) = run("healthscope-aggregator", &arguments).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&target.address.to_string()) && said.contains("--listen"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn an_aggregator_asked_to_end_under_load_ends_in_time() -> Result<()> {
    let target = Target::start().await?;
    let mut config = String::new();
    for n in 0..200 {
        config.push_str(&format!(
            "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: c{n}, labels: {{a: b}}}}\n\
             spec: {{readinessProbe: {{httpGet: {{port: {}}}, period: 100ms, failureThreshold: 1}}}}\n",
            target.address.port()
        ));
    }
    config.push_str(
        "---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: shop}\n\
         spec: {selector: {matchLabels: {a: b}}}\n",
    );
    let bench = Bench::new(&config)?;
    let aggregator = bench.aggregator()?;
    let _agent = bench.agent()?;
    bench.api().until_health("shop", "Healthy").await?;
    // A reader that never reads must not hold the end up.
    let mut reader = TcpStream::connect(bench.address).await?;
    tokio::io::AsyncWriteExt::write_all(
        &mut reader,
        b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .await?;
    target.answer(503);
    let (status, log) = aggregator.end(Signal::TERM, Duration::from_secs(3)).await?;
    assert_eq!(status.code(), Some(0), "{log}");
    Ok(())
}

#[tokio::test]
async fn an_aggregator_out_of_descriptors_says_so_and_recovers() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let mut command = Command::new("prlimit");
    command
        .arg("--nofile=40:40")
        .arg(healthscope_e2e::program::binary("healthscope-aggregator")?);
    command.args(bench.aggregator_arguments());
    let mut aggregator = Program::start_command("healthscope-aggregator", command, bench.path())?;
    let api = bench.api();
    eventually("the aggregator", async || api.get("/api/v1/scopes").await).await?;
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(TcpStream::connect(bench.address).await?);
    }
    aggregator.printed("descriptors").await?;
    drop(idle);
    eventually("an answer again", async || api.get("/api/v1/scopes").await).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_that_cannot_make_its_socket_says_which() -> Result<()> {
    let target = Target::start().await?;
    let bench = Bench::new(&shop(target.address.port()))?;
    let _aggregator = bench.aggregator()?;
    let mut arguments = bench.agent_arguments();
    arguments[5] = "/proc/agent.sock".to_owned();
    let (code, _, said) = run("healthscope-agent", &arguments).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/proc/agent.sock"), "{said}");
    Ok(())
}
