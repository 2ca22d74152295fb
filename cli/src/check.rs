//! `healthscope check`: files, or the installation in a cluster.
//!
//! Of an installation: [`ask`] collects facts, [`installation`] and [`pods`] make a list of checks of them, [`report`]
//! writes it; [`fix`] carries out what [`unstick`] decides. Changes nothing without `--fix`.

mod ask;
mod facts;
pub(crate) mod files;
mod fix;
mod installation;
mod pods;
mod report;
#[cfg(test)]
mod tests;
mod unstick;

use {
    crate::{
        args::{CheckArgs, Global, ObjectOutput},
        cluster::{Cluster, error::ClusterError},
        failure::{Answer, Failure},
        object,
        terminal::Terminal,
        wait::parse_duration,
    },
    ask::{Asker, Interest},
    facts::Facts,
    healthscope_crd::key,
    healthscope_shared::name::{Name, Namespace},
    report::{Report, Section},
    serde_json::Value,
    std::{collections::BTreeSet, time::Duration},
    tokio::time::{Instant, sleep, timeout_at},
};

/// How long is waited until everything is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// What injection left out of pods, by their owners: `("Deployment", "web")` and a sentence.
pub(crate) fn left_out(pods: &[Value]) -> BTreeSet<((String, String), String)> {
    let of_pod = |pod: &Value| {
        let owner = facts::owner(pod).unwrap_or_else(|| ("Pod".to_owned(), facts::name(pod).to_owned()));
        let notes = pods::notes(pod).into_iter();
        let said = notes.map(move |note| (owner.clone(), format!("{}: {note}", note.reason.as_str())));
        said.collect::<Vec<_>>()
    };
    pods.iter().flat_map(of_pod).collect()
}

/// Why pods without an agent have none, by their owners, as Events say.
pub(crate) fn without_agent(pods: &[Value], skips: &[Value]) -> BTreeSet<((String, String), String)> {
    let of_pod = |pod: &Value| {
        if !pod["metadata"]["annotations"][key::INJECTED].is_null() {
            return None;
        }
        let why = pods::told(pod, skips)?;
        Some((facts::owner(pod)?, why))
    };
    pods.iter().filter_map(of_pod).collect()
}

/// Looks at the installation in the cluster of the kubeconfig.
pub(crate) async fn run(args: &CheckArgs, global: &Global, terminal: Terminal) -> Result<Answer, Failure> {
    let CheckArgs {
        paths: _,
        output,
        quiet,
        wait,
        pod,
        pre,
        fix,
        yes,
    } = args;
    let wait = match wait {
        Some(wait) => parse_duration("--wait", wait).map_err(Failure::Usage)?,
        None => Duration::ZERO,
    };
    let cluster = Cluster::connect(&global.kubernetes)
        .await
        .map_err(Failure::unanswered)?;
    let typed = global
        .namespace
        .as_deref()
        .map(Namespace::new)
        .transpose()
        .map_err(Failure::usage)?;
    // A pod is in one namespace, which need not be typed.
    let namespace = match (typed, pod) {
        (None, Some(_)) => Some(cluster.namespace().map_err(Failure::unanswered)?),
        (typed, _) => typed,
    };
    let pod = pod
        .as_deref()
        .map(Name::new)
        .transpose()
        .map_err(Failure::usage)?;
    let interest = Interest {
        before: *pre,
        namespace: namespace.map(|namespace| namespace.to_string()),
        expected: global.kubernetes.aggregator_namespace.clone(),
        selector: global.kubernetes.aggregator_selector.clone(),
        rehearse: !*fix,
    };
    let asker = Asker::new(cluster);
    let pod = pod.as_ref().map(Name::as_str);
    if *fix {
        let facts = asker.facts(&interest).await.map_err(Failure::unanswered)?;
        return fix::run(&asker, &facts, pod, *yes, terminal).await;
    }
    let report = look_until_good(&asker, &interest, pod, wait).await?;
    let text = match output {
        None => report.text(*quiet, terminal),
        Some(ObjectOutput::Json) => object::json(&report),
        Some(ObjectOutput::Yaml) => object::yaml(&report),
    };
    terminal.print(&text)?;
    Ok(Answer::from(report.is_good()))
}

/// Looks, and as long as something fails, again, within a time; the last look counts.
async fn look_until_good(
    asker: &Asker,
    interest: &Interest,
    pod: Option<&str>,
    wait: Duration,
) -> Result<Report, Failure> {
    let deadline = Instant::now() + wait;
    let mut said = String::new();
    let mut last: Option<Report> = None;
    loop {
        let looking = look(asker, interest, pod);
        let looked = if wait.is_zero() {
            looking.await
        } else {
            match (timeout_at(deadline, looking).await, last.take()) {
                (Ok(looked), _) => looked,
                (Err(_), Some(report)) => return Ok(report),
                (Err(_), None) => {
                    return Err(Failure::unanswered(
                        "not everything was answered in the time of --wait",
                    ));
                }
            }
        };
        let problem = match looked {
            Ok(report) if report.is_good() => return Ok(report),
            Ok(report) => {
                let problem = report.failures();
                last = Some(report);
                problem
            }
            Err(error) if error.is_passing() => {
                last = None;
                if Instant::now() + AGAIN >= deadline {
                    return Err(Failure::unanswered(error));
                }
                error.to_string()
            }
            Err(error) => return Err(Failure::unanswered(error)),
        };
        if Instant::now() + AGAIN >= deadline
            && let Some(report) = last
        {
            return Ok(report);
        }
        if problem != said {
            say(&format!("waiting, not yet so: {problem}"));
            said = problem;
        }
        sleep(AGAIN).await;
    }
}

#[expect(
    clippy::print_stderr,
    reason = "progress is said beside the result, not in it"
)]
fn say(message: &str) {
    eprintln!("{}", crate::terminal::visible(message));
}

async fn look(asker: &Asker, interest: &Interest, pod: Option<&str>) -> Result<Report, ClusterError> {
    let facts = asker.facts(interest).await?;
    let mut sections = judge(&facts, interest.before);
    if let (Some(pod), Some(place)) = (pod, facts.places.first()) {
        let events = asker.events(&place.name, pod).await;
        sections.push(pods::pod(&facts, place, pod, &events));
    }
    Ok(Report::new(&facts.cluster, sections))
}

/// All that is to be said about facts.
fn judge(facts: &Facts, before: bool) -> Vec<Section> {
    if before {
        return installation::before(facts);
    }
    let mut sections = installation::sections(facts);
    sections.extend(pods::sections(facts));
    sections
}
