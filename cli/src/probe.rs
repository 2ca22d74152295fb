//! `healthscope probe`: one run, now: of a component's own probes through its agent, or of any check from here.

use {
    crate::{
        age,
        args::{ObjectOutput, ProbeArgs},
        client::{Client, RunOutcome},
        failure::{Answer, Failure},
        object,
        terminal::{Style, Terminal, visible},
    },
    healthscope_agent::prober::{Certificate, ProberConfig, Probers},
    healthscope_shared::{
        health::Reason,
        name::{Name, Namespace, ProbeName},
        probe::{ProbeSpec, outcome::Outcome},
    },
    rustls::pki_types::{CertificateDer, pem::PemObject},
    serde_json::json,
    std::{path::Path, time::Duration},
};

mod adhoc;

/// Whether the arguments name a component, and not a check of their own.
pub(crate) fn is_component(args: &ProbeArgs) -> bool {
    args.target
        .as_deref()
        .is_some_and(|target| !adhoc::is_url(target))
}

/// Runs the check that the arguments describe, from here.
pub(crate) async fn run_here(
    args: &ProbeArgs,
    ca: Option<&Path>,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    let spec = adhoc::spec(args)?;
    // `--ca` is the aggregator's too, and may stand in the environment: alone it changes nothing here.
    let ca = ca.filter(|_| args.verify);
    let extra_roots = ca.map(read_authorities).transpose()?.unwrap_or_default();
    let probers = Probers::new(ProberConfig {
        extra_roots,
        ..ProberConfig::default()
    });
    // Dropping the run ends its connection, or its process group.
    let outcome = tokio::select! {
        outcome = probers.run(&spec) => outcome,
        _interrupted = tokio::signal::ctrl_c() => return Err(Failure::error("interrupted")),
    };
    let text = match args.output {
        None => describe(&spec, &outcome, terminal),
        Some(ObjectOutput::Json) => object::json(&whole(&spec, &outcome)),
        Some(ObjectOutput::Yaml) => object::yaml(&whole(&spec, &outcome)),
    };
    terminal.print(&text)?;
    Ok(Answer::from(outcome.result.is_success()))
}

/// Longest wait for an agent's answer; the API's own limit.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Runs the probes of a component, through its agent.
pub(crate) async fn run_there(
    args: &ProbeArgs,
    namespace: &Namespace,
    client: &Client,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    if adhoc::has_http_options(args) {
        return Err(Failure::usage(
            "--expect-status, --expect-body, --header and --verify are for URLs; a component's probes are as its file \
             says",
        ));
    }
    let wait = args.timeout.as_deref().map(parse_wait).transpose()?;
    let target = args.target.as_deref().unwrap_or_default();
    let (component, probe) = match target.split_once('/') {
        Some((component, probe)) => (component, Some(probe)),
        None => (target, None),
    };
    if target.contains(':') {
        let shown = healthscope_shared::one_line(target, 80);
        return Err(Failure::usage(format!(
            "{shown:?} is no name of a component; write http://{shown}, https://{shown} or tcp://{shown} to check an \
             address"
        )));
    }
    let component = Name::new(component).map_err(Failure::usage)?;
    let names = match probe {
        Some(probe) => vec![ProbeName::new(probe).map_err(Failure::usage)?],
        None => probes_of(&component, namespace, client).await?,
    };
    let mut all = Vec::new();
    for name in &names {
        all.push(client.run_probe(namespace, &component, name, wait).await?);
    }
    let runs: Vec<&RunOutcome> = all.iter().flat_map(|answer| &answer.runs).collect();
    let is_well = !runs.is_empty() && runs.iter().all(|run| is_success(run));
    let text = match args.output {
        None => {
            let mut text: String = runs
                .iter()
                .map(|run| describe_run(run, &component, terminal))
                .collect();
            if all.iter().any(|answer| answer.truncated) {
                text.push_str("... and more instances, which were not asked\n");
            }
            text
        }
        Some(ObjectOutput::Json) => object::json(&json!({"runs": runs})),
        Some(ObjectOutput::Yaml) => object::yaml(&json!({"runs": runs})),
    };
    terminal.print(&text)?;
    Ok(Answer::from(is_well))
}

/// All probes that any instance of a component has, in the order of its file.
async fn probes_of(
    component: &Name,
    namespace: &Namespace,
    client: &Client,
) -> Result<Vec<ProbeName>, Failure> {
    let view = client.component(namespace, component).await?;
    let mut names: Vec<ProbeName> = Vec::new();
    for probe in view.running.iter().flat_map(|instance| &instance.probes) {
        if let Ok(name) = ProbeName::new(&*probe.probe)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    if names.is_empty() {
        let summary = &view.component;
        return Err(Failure::error(format!(
            "no agent reports probes of {component}: it is {} ({})",
            summary.health, summary.reason
        )));
    }
    Ok(names)
}

fn parse_wait(text: &str) -> Result<Duration, Failure> {
    let parsed = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|parsed| Duration::try_from(parsed).ok());
    match parsed {
        Some(wait) if !wait.is_zero() && wait <= MAX_WAIT => Ok(wait),
        Some(_) | None => Err(Failure::usage(format!(
            "--timeout {:?} is not a duration up to {}; write for example 5s",
            healthscope_shared::one_line(text, 40),
            age::exact(MAX_WAIT)
        ))),
    }
}

fn is_success(run: &RunOutcome) -> bool {
    matches!(run.result.as_deref(), Some("success" | "warning"))
}

fn describe_run(run: &RunOutcome, component: &Name, terminal: Terminal) -> String {
    let RunOutcome {
        instance,
        agent: _,
        probe,
        result,
        reason,
        message,
        output,
        latency_us,
        state,
    } = run;
    let style = if is_success(run) { Style::Good } else { Style::Bad };
    let word = result.as_deref().unwrap_or("not run");
    let state = state.map(|state| format!(", now {state}")).unwrap_or_default();
    let mut text = format!(
        "{}  {component}/{} on {instance}  in {}{state}\n",
        terminal.paint(style, visible(word)),
        visible(probe),
        age::latency(Duration::from_micros(*latency_us)),
    );
    text.push_str(&explanation(reason.as_ref(), message, output));
    text
}

/// Why, and what was printed.
fn explanation(reason: Option<&Reason>, message: &str, output: &str) -> String {
    let mut text = String::new();
    let message = visible(message).replace('\n', " ");
    match (reason, message.as_str()) {
        (None, "") => {}
        (None, message) => text.push_str(&format!("{message}\n")),
        (Some(reason), "") => text.push_str(&format!("{reason}\n")),
        (Some(reason), message) => text.push_str(&format!("{reason}: {message}\n")),
    }
    for line in visible(output).lines() {
        text.push_str(&format!("| {line}\n"));
    }
    text
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::error(format!("cannot read the CA file {}: {error}", path.display()))
    };
    let certificates: Vec<Certificate> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(&error))?;
    if certificates.is_empty() {
        return Err(failed(&"it has no PEM block \"CERTIFICATE\""));
    }
    Ok(certificates)
}

fn describe(spec: &ProbeSpec, outcome: &Outcome, terminal: Terminal) -> String {
    let Outcome {
        result,
        latency,
        message,
        output,
    } = outcome;
    let style = if result.is_success() {
        Style::Good
    } else {
        Style::Bad
    };
    let mut text = format!(
        "{}  {}  in {}\n",
        terminal.paint(style, result.as_str()),
        visible(&spec.handler.to_string()).replace('\n', " "),
        age::latency(*latency),
    );
    text.push_str(&explanation(result.reason(), message, output));
    text
}

fn whole(spec: &ProbeSpec, outcome: &Outcome) -> serde_json::Value {
    let Outcome {
        result,
        latency,
        message,
        output,
    } = outcome;
    json!({
        "target": spec.handler.to_string(),
        "result": result.as_str(),
        "reason": result.reason(),
        "message": message,
        "output": output,
        "latencyUs": u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
    })
}
