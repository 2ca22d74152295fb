//! What is to be so of injected namespaces and of their pods. Pure: facts in, checks out.

use {
    super::{
        facts::{
            Asked, Facts, Place, agent, agent_status, array, flag, full_name, is_over, is_ready, map, name,
            owner, text, time, trouble,
        },
        installation::{MAX_MESSAGE_BYTES, trip_for, unanswered},
        report::{Check, Section},
    },
    crate::age::age,
    healthscope_core::{
        admission::is_as_meant,
        breaker::Reduction,
        inject::{self, Injection, Note, Options, Resources, SkipReason, Stance, Surroundings},
    },
    healthscope_crd::key,
    healthscope_shared::{health::Reason, one_line},
    serde_json::{Value, json},
    std::collections::{BTreeMap, BTreeSet},
};

/// A pod like those that people have, for a look at what injection makes of one there. It passes Pod Security
/// `restricted` and asks for next to nothing.
pub(super) fn rehearsal_pod(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "healthscope-check", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "default",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65_532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": "healthscope.invalid/nothing",
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}},
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// One section for each namespace that was looked into.
pub(super) fn sections(facts: &Facts) -> Vec<Section> {
    let mut sections: Vec<Section> = facts.places.iter().map(|place| namespace(facts, place)).collect();
    let title = format!("namespaces with the label {} are known", key::INJECT);
    let whole = match &facts.labelled {
        Asked::Found(_) if facts.places.is_empty() => {
            Some(Check::skipped("namespaces", title, "no namespace has it").hint("label one"))
        }
        Asked::Found(_) | Asked::Unasked => None,
        other => Some(unanswered("namespaces", title, other)),
    };
    if let Some(check) = whole {
        sections.insert(0, Section::new("namespaces", "Namespaces", vec![check]));
    }
    sections
}

fn namespace(facts: &Facts, place: &Place) -> Section {
    let mut checks = labelled(facts, place);
    if matches!(place.pods, Asked::Found(_)) {
        checks.extend(without_agent(facts, place));
        checks.push(starting(facts, place));
        checks.push(restarting(place));
        checks.push(outdated(facts, place));
        checks.push(left_out(place));
    } else if place.namespace != Asked::Absent {
        checks.push(unanswered("pods", "its pods have agents", &place.pods));
    }
    if place.namespace != Asked::Absent {
        checks.push(connected(facts, place));
    }
    Section {
        id: "namespace",
        title: format!("Namespace {}", place.name),
        namespace: Some(place.name.clone()),
        checks,
    }
}

/// The label, and whether its annotations can be meant.
fn labelled(facts: &Facts, place: &Place) -> Vec<Check> {
    let title = format!("it has the label {}=enabled", key::INJECT);
    let set = format!(
        "kubectl label namespace {} {}=enabled --overwrite",
        place.name,
        key::INJECT
    );
    let namespace = match &place.namespace {
        Asked::Found(namespace) => namespace,
        Asked::Absent => {
            return vec![Check::failure(
                "labelled",
                title,
                format!("there is no namespace {}", place.name),
            )];
        }
        other => return vec![unanswered("labelled", title, other)],
    };
    let labels = map(&namespace["metadata"]["labels"]);
    let mut checks = vec![match labels.get(key::INJECT).map(String::as_str) {
        Some("enabled") => Check::ok("labelled", title, ""),
        Some("disabled") => Check::skipped(
            "labelled",
            title,
            "it says disabled: only pods that say enabled themselves get agents",
        ),
        Some(other) => {
            let message = format!("it says {other:?}, which means no");
            Check::failure("labelled", title, message)
                .hint("write enabled or disabled")
                .command(set)
        }
        None => Check::warning(
            "labelled",
            title,
            "it has none: only pods that have the label themselves get agents",
        )
        .hint("give it the label, if its pods are to have agents")
        .command(set),
    }];
    let title = "its annotations can be meant";
    let reason = decide(facts, place, &rehearsal_pod(&place.name));
    if let Err(SkipReason::InvalidAnnotation { .. }) = &reason {
        let message = reason.err().map(|reason| reason.to_string()).unwrap_or_default();
        checks.push(
            Check::failure(
                "annotations",
                title,
                format!("{message}; no pod there gets an agent"),
            )
            .hint("the annotations and their values are in docs/injection.md")
            .command(format!("kubectl get namespace {} -o yaml", place.name)),
        );
    }
    checks
}

/// What injection makes of a pod there now, breaker and limits aside.
pub(super) fn decide(facts: &Facts, place: &Place, pod: &Value) -> Result<(), SkipReason> {
    let empty = Value::Null;
    let metadata = place
        .namespace
        .found()
        .map_or(&empty, |namespace| &namespace["metadata"]);
    let (labels, annotations) = (map(&metadata["labels"]), map(&metadata["annotations"]));
    let around = Surroundings {
        labels: &labels,
        annotations: &annotations,
        limit_ranges: &[],
        quotas: &[],
    };
    let options = Options {
        image: facts.agent_image().unwrap_or_default().to_owned(),
        aggregator: String::new(),
        server_name: None,
        ca_pem: None,
        audience: inject::AUDIENCE.to_owned(),
        resources: Resources::default(),
        post_start: facts
            .deployment()
            .is_some_and(|deployment| flag(deployment, "--post-start").is_some()),
        kubernetes: facts.kubernetes(),
        admitted: false,
        stance: Stance::Full,
    };
    match inject::inject(pod, &around, &options) {
        Injection::Injected(_) => Ok(()),
        Injection::Skipped(reason) => Err(reason),
    }
}

/// Whether pods there are asked to be injected; `None` when that is not known. By labels alone: every other reason to leave
/// a pod as it is may be gone in the next one.
pub(super) fn injects(place: &Place, pod: &Value) -> Option<bool> {
    let is_enabled = |object: &Value| object["metadata"]["labels"][key::INJECT] == "enabled";
    // A label on the pod that says disabled may have come after its template made it.
    place
        .namespace
        .found()
        .map(|namespace| is_enabled(namespace) || is_enabled(pod))
}

/// When the namespace got its label, as far as who wrote it says.
fn labelled_at(namespace: &Value) -> Option<jiff::Timestamp> {
    let label = format!("f:{}", key::INJECT);
    array(&namespace["metadata"]["managedFields"])
        .iter()
        .filter(|entry| !entry["fieldsV1"]["f:metadata"]["f:labels"][&label].is_null())
        .filter_map(|entry| time(&entry["time"]))
        .max()
}

/// Why a pod has no agent: a word to group by, a sentence, and whether it is to be told.
struct Without {
    code: &'static str,
    why: String,
    is_meant: bool,
}

fn why_without(facts: &Facts, place: &Place, pod: &Value) -> Without {
    let without = |code, why: String| Without {
        code,
        why,
        is_meant: false,
    };
    if let Err(reason) = decide(facts, place, pod) {
        return Without {
            code: reason.code(),
            why: reason.to_string(),
            is_meant: is_as_meant(&reason),
        };
    }
    let owner = owner(pod);
    let record = facts.record();
    if let Some(trip) = trip_for(&record, &place.name, owner.as_ref())
        && trip.reduction == Reduction::Off
    {
        return without(
            "BreakerOpen",
            "injection was stopped because it did harm (see the breaker above)".to_owned(),
        );
    }
    if let Some(why) = told(pod, place.skips.items()) {
        return without("InjectionSkipped", why);
    }
    let made = time(&pod["metadata"]["creationTimestamp"]);
    let since = place.namespace.found().and_then(labelled_at);
    match (made, since) {
        (Some(made), Some(since)) if made < since => without(
            "OlderThanLabel",
            format!("made before the namespace got its label ({since})"),
        ),
        _ => without(
            "NotAsked",
            "the webhook was not there when it was made, or the label is younger than the pod".to_owned(),
        ),
    }
}

/// What the newest Event about a pod's controller says of why it has no agent.
pub(super) fn told(pod: &Value, skips: &[Value]) -> Option<String> {
    let event = array(&pod["metadata"]["ownerReferences"])
        .iter()
        .find_map(|controller| {
            let is_about = |event: &&Value| event["involvedObject"]["uid"] == controller["uid"];
            skips.iter().filter(is_about).max_by_key(|event| {
                time(&event["lastTimestamp"])
                    .or(time(&event["eventTime"]))
                    .or(time(&event["metadata"]["creationTimestamp"]))
            })
        })?;
    Some(one_line(text(&event["message"]), MAX_MESSAGE_BYTES))
}

/// Pods that have no agent, by the reason.
fn without_agent(facts: &Facts, place: &Place) -> Vec<Check> {
    let title = "its pods have agents";
    let living: Vec<&Value> = place.pods.items().iter().filter(|pod| !is_over(pod)).collect();
    let (with, without): (Vec<&Value>, Vec<&Value>) = living.iter().partition(|pod| agent(pod).is_some());
    let mut left = 0;
    let mut groups: BTreeMap<(&'static str, String), Vec<&Value>> = BTreeMap::new();
    for pod in without {
        let Without { code, why, is_meant } = why_without(facts, place, pod);
        if is_meant {
            left += 1;
        } else {
            groups.entry((code, why)).or_default().push(pod);
        }
    }
    if groups.is_empty() {
        let meant = if left == 0 {
            String::new()
        } else {
            format!("; {left} without by their own wish")
        };
        return vec![if living.is_empty() {
            Check::skipped("agents", title, "it has no pods")
        } else {
            Check::ok(
                "agents",
                title,
                format!("{} of {}{meant}", with.len(), living.len()),
            )
        }];
    }
    let groups = groups.into_iter().map(|((code, why), pods)| {
        let count = format!("{} of {} do not: {code}: {why}", pods.len(), living.len());
        let check = Check::warning("agents", title, count).about(pods.iter().map(|pod| full_name(pod)).collect());
        match code {
            "OlderThanLabel" | "NotAsked" => with_restarts(
                check.hint("pods get agents when they are made: have them made anew"),
                &place.name,
                &pods,
            ),
            "BreakerOpen" => check.hint("put right what the breaker saw; then have the pods made anew"),
            "NothingToCheck" => check.hint("give a container a probe, or add checks by the annotation probes (docs/injection.md)"),
            _ => check.hint("the reasons, and what to do about each, are in docs/injection.md; then have the pods made anew"),
        }
    });
    groups.collect()
}

/// Adds what makes pods anew, at most a handful of commands.
fn with_restarts(mut check: Check, namespace: &str, pods: &[&Value]) -> Check {
    const MAX_COMMANDS: usize = 5;
    let owners: BTreeSet<(String, String)> = pods.iter().filter_map(|pod| owner(pod)).collect();
    for (kind, name) in owners.iter().take(MAX_COMMANDS) {
        let kind = kind.to_lowercase();
        check = match kind.as_str() {
            "deployment" | "statefulset" | "daemonset" => {
                check.command(format!("kubectl -n {namespace} rollout restart {kind}/{name}"))
            }
            _ => check.command(format!(
                "kubectl -n {namespace} describe {kind} {name}    # its next pods get agents"
            )),
        };
    }
    if owners.len() > MAX_COMMANDS {
        check = check.command(format!(
            "kubectl -n {namespace} rollout restart deployment    # and {} more",
            owners.len() - MAX_COMMANDS
        ));
    }
    if pods.iter().any(|pod| owner(pod).is_none()) {
        check = check.command("# pods without a controller: delete them and create them again");
    }
    check
}

/// Whether a pod is held up by our container, and how.
pub(super) fn stuck(pod: &Value) -> Option<(&str, &str)> {
    if is_over(pod) {
        return None;
    }
    agent(pod)?;
    trouble(agent_status(pod))
}

/// Pods that our container holds up.
fn starting(facts: &Facts, place: &Place) -> Check {
    let title = "agents start, so that their pods do";
    let mut about = Vec::new();
    let mut covered = true;
    let record = facts.record();
    for pod in place.pods.items() {
        let Some((reason, message)) = stuck(pod) else {
            continue;
        };
        let trip = trip_for(&record, &place.name, owner(pod).as_ref());
        covered &= trip.is_some_and(|trip| trip.reduction == Reduction::Off);
        about.push(format!(
            "{}: {reason}: {}",
            full_name(pod),
            one_line(message, MAX_MESSAGE_BYTES)
        ));
    }
    if about.is_empty() {
        return Check::ok("agents-start", title, "");
    }
    let noun = if about.len() == 1 { "pod is" } else { "pods are" };
    let check = Check::failure(
        "agents-start",
        title,
        format!("{} {noun} stuck because of the agent's container", about.len()),
    );
    let fix = format!("{} check -n {} --fix", facts.program, place.name);
    let check = if covered {
        check
            .hint("new pods come up without an agent; these are un-stuck one by one")
            .command(fix)
    } else {
        check
            .hint(
                "injection goes on there, so a new pod would be stuck like them: make the agent's image run, or stop injecting \
                 and un-stick them",
            )
            .command(format!("kubectl label namespace {} {}=disabled --overwrite", place.name, key::INJECT))
            .command(fix)
    };
    check.about(about)
}

/// The supervisor never ends, so each restart of its container has a reason.
fn restarting(place: &Place) -> Check {
    let title = "agents' containers stay up";
    let restarted = place
        .pods
        .items()
        .iter()
        .filter(|pod| !is_over(pod))
        .filter_map(|pod| {
            let status = agent_status(pod);
            let count = status["restartCount"].as_u64().filter(|count| *count > 0)?;
            let ended = &status["lastState"]["terminated"];
            let noun = if count == 1 { "restart" } else { "restarts" };
            let code = ended["exitCode"]
                .as_i64()
                .map(|code| format!(", exit code {code}"))
                .unwrap_or_default();
            Some(format!(
                "{}: {count} {noun}, the last: {}{code}",
                full_name(pod),
                text(&ended["reason"])
            ))
        });
    let restarted: Vec<String> = restarted.collect();
    if restarted.is_empty() {
        return Check::ok("agents-stay", title, "");
    }
    Check::warning(
        "agents-stay",
        title,
        format!("{} were restarted", restarted.len()),
    )
    .hint("OOMKilled: give the agent more by the annotation resources; otherwise its log says why")
    .about(restarted)
}

/// Agents of another image than new pods get.
fn outdated(facts: &Facts, place: &Place) -> Check {
    let title = "agents are of the installation's image";
    let Some(image) = facts.agent_image() else {
        return Check::skipped(
            "agents-image",
            title,
            "the installation names none, or may not be looked at",
        );
    };
    let others: Vec<&Value> = place
        .pods
        .items()
        .iter()
        .filter(|pod| !is_over(pod))
        .filter(|pod| agent(pod).is_some_and(|agent| agent["image"] != image))
        .collect();
    if others.is_empty() {
        return Check::ok("agents-image", title, image);
    }
    let check = Check::warning(
        "agents-image",
        title,
        format!("{} of another image than {image}", others.len()),
    )
    .hint("they go on working; pods that are made anew get the new one")
    .about(others.iter().map(|pod| full_name(pod)).collect());
    with_restarts(check, &place.name, &others)
}

/// What injection could not add, as it stands on a pod.
pub(super) fn notes(pod: &Value) -> Vec<Note> {
    let annotation = text(&pod["metadata"]["annotations"][key::INJECTED]);
    let kept: Value = serde_json::from_str(annotation).unwrap_or_default();
    let notes = array(&kept["leftOut"]).iter();
    notes
        .filter_map(|note| serde_json::from_value(note.clone()).ok())
        .collect()
}

fn left_out(place: &Place) -> Check {
    let title = "all checks that its pods ask for are made";
    let mut lines: BTreeSet<String> = BTreeSet::new();
    for pod in place.pods.items().iter().filter(|pod| !is_over(pod)) {
        let whose = owner(pod).map_or_else(
            || format!("Pod {}", name(pod)),
            |(kind, name)| format!("{kind} {name}"),
        );
        for note in notes(pod) {
            lines.insert(format!("{whose}: {}: {note}", note.reason.as_str()));
        }
    }
    if lines.is_empty() {
        return Check::ok("checks-left-out", title, "");
    }
    Check::warning("checks-left-out", title, format!("{} are left out", lines.len()))
        .hint("each sentence says what would change it; docs/injection.md says more")
        .about(lines.into_iter().collect())
}

/// Components of which nothing is heard though their agents should speak.
fn connected(facts: &Facts, place: &Place) -> Check {
    let title = "its agents report";
    match &place.scopes {
        Asked::Found(_) => {}
        Asked::Absent => return Check::skipped("agents-report", title, "HealthScopes are not defined here"),
        other => return unanswered("agents-report", title, other),
    }
    let silent = [Reason::AGENT_LOST, Reason::AGENT_STOPPED, Reason::RUNNER_MISSING];
    let mut about = BTreeSet::new();
    for scope in place.scopes.items() {
        for component in array(&scope["status"]["components"]) {
            let reason = text(&component["reason"]);
            if !silent.iter().any(|silent| silent.as_str() == reason) {
                continue;
            }
            about.insert(format!(
                "{} {} (scope {}): {reason}: {}",
                text(&component["kind"]),
                text(&component["name"]),
                name(scope),
                one_line(text(&component["message"]), MAX_MESSAGE_BYTES)
            ));
        }
    }
    if place.scopes.items().is_empty() {
        return Check::skipped("agents-report", title, "it has no HealthScope");
    }
    if about.is_empty() {
        return Check::ok("agents-report", title, "");
    }
    Check::warning("agents-report", title, format!("nothing certain is known of {}", about.len()))
        .hint("can pods reach the aggregator (NetworkPolicy, DNS), and are its certificates valid? An agent's log says")
        .command(format!(
            "kubectl -n {} logs POD -c healthscope-agent --tail=20    # to {}",
            place.name,
            facts
                .deployment()
                .and_then(|deployment| flag(deployment, "--agent-aggregator"))
                .map_or_else(|| format!("wss://healthscope-aggregator.{}.svc:7575", facts.home()), str::to_owned)
        ))
        .about(about.into_iter().collect())
}

/// One pod in depth, from a place that has it, and the Events about it.
pub(super) fn pod(facts: &Facts, place: &Place, pod_name: &str, events: &Asked) -> Section {
    let section = |checks| Section {
        id: "pod",
        title: format!("Pod {}/{pod_name}", place.name),
        namespace: Some(place.name.clone()),
        checks,
    };
    let title = "the pod is there";
    let found = place.pods.items().iter().find(|pod| name(pod) == pod_name);
    let Some(pod) = found else {
        return section(vec![match &place.pods {
            Asked::Found(_) => Check::failure("pod", title, "there is none of this name")
                .command(format!("kubectl -n {} get pods", place.name)),
            other => unanswered("pod", title, other),
        }]);
    };
    let phase = text(&pod["status"]["phase"]);
    let whose = owner(pod)
        .map(|(kind, name)| format!(", of {kind} {name}"))
        .unwrap_or_default();
    let mut checks = vec![Check::ok("pod", title, format!("{phase}{whose}"))];
    let title = "it has an agent";
    let Some(agent) = agent(pod) else {
        let Without { code, why, is_meant } = why_without(facts, place, pod);
        let message = format!("{code}: {why}");
        checks.push(if is_meant {
            Check::skipped("agent", title, message)
        } else {
            let check = Check::warning("agent", title, message);
            with_restarts(
                check.hint("put that right, then have the pod made anew"),
                &place.name,
                &[pod],
            )
        });
        return section(checks);
    };
    let kept: Value =
        serde_json::from_str(text(&pod["metadata"]["annotations"][key::INJECTED])).unwrap_or_default();
    let made = kept["checks"]
        .as_u64()
        .map(|checks| format!(", {checks} checks"))
        .unwrap_or_default();
    checks.push(Check::ok(
        "agent",
        title,
        format!("{}{made}", text(&agent["image"])),
    ));

    let title = "the agent's container runs";
    let status = agent_status(pod);
    let since = time(&status["state"]["running"]["startedAt"]);
    checks.push(match (stuck(pod), since) {
        (Some((reason, message)), _) => {
            let message = format!("{reason}: {}", one_line(message, MAX_MESSAGE_BYTES));
            Check::failure("agent-runs", title, message)
                .hint("the pod does not start before it does")
                .command(format!(
                    "{} check -n {} --pod {pod_name} --fix",
                    facts.program, place.name
                ))
        }
        (None, Some(since)) => {
            let restarts = status["restartCount"].as_u64().unwrap_or(0);
            let up = format!("for {}, {restarts} restarts", age(since, facts.now));
            if restarts == 0 {
                Check::ok("agent-runs", title, up)
            } else {
                Check::warning("agent-runs", title, up)
                    .hint("it is made never to end; its log before the last restart says why it did")
                    .command(format!(
                        "kubectl -n {} logs {pod_name} -c healthscope-agent --previous",
                        place.name
                    ))
            }
        }
        (None, None) => Check::warning("agent-runs", title, "the kubelet has not started it yet"),
    });

    let targets = targets(agent);
    let title = "command checks can run in its containers";
    let events_about: Vec<String> = events
        .items()
        .iter()
        .filter(|event| event["type"] == "Warning" && text(&event["message"]).contains("/healthscope/runner"))
        .map(|event| one_line(text(&event["message"]), MAX_MESSAGE_BYTES))
        .collect();
    let missing = runner_missing(place, pod);
    checks.push(if targets.is_empty() {
        Check::skipped("runners", title, "it has no command checks")
    } else if let Some(message) = missing {
        Check::warning("runners", title, format!("a runner is missing: {message}"))
            .hint(
                "it is started by a probe or a hook of its container, which may have been changed or refused",
            )
            .command(format!("kubectl -n {} describe pod {pod_name}", place.name))
            .about(events_about)
    } else if !events_about.is_empty() {
        Check::warning(
            "runners",
            title,
            format!("the kubelet could not start a runner in {}", targets.join(", ")),
        )
        .hint("the message is the kubelet's")
        .about(events_about)
    } else {
        Check::ok("runners", title, targets.join(", "))
    });

    let title = "its own containers are up";
    let mut ill = Vec::new();
    let own = array(&pod["status"]["initContainerStatuses"])
        .iter()
        .filter(|status| status["name"] != healthscope_core::platform::AGENT_CONTAINER)
        .chain(array(&pod["status"]["containerStatuses"]));
    for status in own {
        if let Some((reason, message)) = trouble(status) {
            ill.push(format!(
                "{}: {reason}: {}",
                text(&status["name"]),
                one_line(message, MAX_MESSAGE_BYTES)
            ));
        }
    }
    checks.push(if !ill.is_empty() {
        Check::warning("containers", title, "not all, which is not the agent's doing")
            .command(format!("kubectl -n {} describe pod {pod_name}", place.name))
            .about(ill)
    } else if is_ready(pod) {
        Check::ok("containers", title, "the pod is ready")
    } else {
        Check::warning("containers", title, "the pod is not ready")
            .command(format!("kubectl -n {} describe pod {pod_name}", place.name))
    });

    let title = "all checks that it asks for are made";
    let notes = notes(pod);
    checks.push(if notes.is_empty() {
        Check::ok("checks-left-out", title, "")
    } else {
        Check::warning("checks-left-out", title, format!("{} are left out", notes.len()))
            .hint("each sentence says what would change it")
            .about(
                notes
                    .iter()
                    .map(|note| format!("{}: {note}", note.reason.as_str()))
                    .collect(),
            )
    });
    section(checks)
}

/// The containers that the supervisor has a runner for.
fn targets(agent: &Value) -> Vec<String> {
    let words: Vec<&str> = array(&agent["command"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "--target");
    pairs.map(|pair| pair[1].to_owned()).collect()
}

/// What a scope says of a runner that is missing in a pod's component.
fn runner_missing(place: &Place, pod: &Value) -> Option<String> {
    let (kind, owner) = owner(pod).unwrap_or_else(|| ("Pod".to_owned(), name(pod).to_owned()));
    let components = place
        .scopes
        .items()
        .iter()
        .flat_map(|scope| array(&scope["status"]["components"]));
    components
        .filter(|component| component["kind"] == kind && component["name"] == owner)
        .find(|component| component["reason"] == Reason::RUNNER_MISSING.as_str())
        .map(|component| one_line(text(&component["message"]), MAX_MESSAGE_BYTES))
}
