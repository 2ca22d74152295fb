//! What is to be so of an installation. Pure: facts in, checks out.

use {
    super::{
        facts::{
            Asked, Facts, Right, agent_status, array, container, flag, full_name, is_ready, map, name, text,
            time, trouble,
        },
        pods::{decide, rehearsal_pod},
        report::{Check, Section},
    },
    crate::age::age,
    healthscope_core::{
        breaker::{self, Cause, Level, Record, Reduction, Trip},
        owner::{EXPIRY, LEASE},
    },
    healthscope_crd::{key, v1beta1},
    healthscope_shared::one_line,
    jiff::{SignedDuration, Timestamp},
    rustls::pki_types::{CertificateDer, pem::PemObject},
    serde_json::Value,
    std::{collections::BTreeSet, time::Duration},
};

/// The oldest Kubernetes that starts native sidecars without being asked to.
const OLDEST: (u32, u32) = (1, 29);
/// A certificate that ends within this time should be renewed by now, whoever does it.
const SOON: SignedDuration = SignedDuration::from_hours(20 * 24);
/// Longest text of a kubelet or an API server that is repeated.
pub(super) const MAX_MESSAGE_BYTES: usize = 400;
/// A Lease that was renewed so long ago is nobody's, whatever the clocks say.
const STALE: SignedDuration = SignedDuration::from_secs(60);

/// The names of the objects, as the chart has them.
pub(super) const DEFINITION: &str = "healthscopes.core.oam.dev";
pub(super) const DEPLOYMENT: &str = "healthscope-aggregator";
pub(super) const AUTHORITIES: &str = "healthscope-ca";
pub(super) const AUTHORITIES_KEY: &str = "ca.crt";
pub(super) const WEBHOOK: &str = "healthscope-agent-injector";
pub(super) const WEBHOOK_SERVICE: &str = "healthscope-webhook";
pub(super) const CANARY_SET: &str = "healthscope-canary";
pub(super) const CANARY: &str = "healthscope-canary-0";

/// Everything about the installation.
pub(super) fn sections(facts: &Facts) -> Vec<Section> {
    let mut sections = vec![kubernetes(facts), definition(facts), control_plane(facts)];
    let is_missing = facts.deployments.found().is_some() && facts.aggregators().is_empty();
    if !is_missing {
        sections.push(certificates(facts));
        sections.push(webhook(facts));
        sections.push(safety(facts));
    } else if facts.webhook.found().is_some() {
        let left = Check::warning(
            "webhook-left-over",
            "nothing of a former installation is left",
            format!("the MutatingWebhookConfiguration {WEBHOOK} is there, and no aggregator to answer it"),
        );
        let left = left
            .hint("pods are admitted as they are, each a little later than it could be; take it away")
            .command(format!("kubectl delete mutatingwebhookconfiguration {WEBHOOK}"));
        sections.push(Section::new("webhook", "Webhook", vec![left]));
    }
    sections
}

/// The API server.
pub(super) fn kubernetes(facts: &Facts) -> Section {
    let title = "the API server answers";
    let mut checks = Vec::new();
    match &facts.server {
        Asked::Found(server) => {
            let version = text(&server["gitVersion"]);
            checks.push(Check::ok(
                "api-server",
                title,
                format!("{} at {}", version, facts.cluster),
            ));
        }
        other => checks.push(unanswered("api-server", title, other)),
    }
    let title = format!(
        "Kubernetes is {}.{} or newer, which has native sidecars",
        OLDEST.0, OLDEST.1
    );
    checks.push(match facts.kubernetes() {
        Some(version) if version >= OLDEST => Check::ok(
            "kubernetes-version",
            title,
            format!("{}.{}", version.0, version.1),
        ),
        Some(version) => {
            let message = format!("it is {}.{}; pods there get no agents", version.0, version.1);
            Check::failure("kubernetes-version", title, message).hint("upgrade the cluster")
        }
        None => Check::warning(
            "kubernetes-version",
            title,
            "the API server does not say its version",
        ),
    });
    Section::new("kubernetes", "Kubernetes", checks)
}

fn definition(facts: &Facts) -> Section {
    let title = format!("HealthScopes are defined ({DEFINITION})");
    let definition = match &facts.definition {
        Asked::Found(definition) => definition,
        Asked::Absent => {
            let missing = Check::failure("definition", title, "there is no such CustomResourceDefinition");
            let missing = missing
                .hint("install HealthScope; its chart brings the definition along")
                .command(install(facts));
            return Section::new("definition", "Definition", vec![missing]);
        }
        other => {
            return Section::new(
                "definition",
                "Definition",
                vec![unanswered("definition", title, other)],
            );
        }
    };
    let is_so = |condition: &str| {
        array(&definition["status"]["conditions"])
            .iter()
            .find(|found| found["type"] == condition)
            .map(|found| (found["status"] == "True", text(&found["message"]).to_owned()))
    };
    let mut checks = vec![match is_so("Established") {
        Some((true, _)) => Check::ok("definition", title, "established"),
        Some((false, message)) => {
            Check::failure("definition", title, format!("it is not established: {message}"))
                .hint("the API server says what is in the way")
                .command(format!("kubectl describe crd {DEFINITION}"))
        }
        None => Check::failure("definition", title, "the API server has not taken it up yet")
            .hint("look again in a moment"),
    }];
    let with = |field: &str| -> Vec<&str> {
        array(&definition["spec"]["versions"])
            .iter()
            .filter(|version| version[field] == true)
            .map(|version| text(&version["name"]))
            .collect()
    };
    let (served, stored) = (with("served"), with("storage"));
    let wanted = v1beta1::API_VERSION
        .rsplit_once('/')
        .map_or("", |(_, version)| version);
    let title = format!("the version {wanted} is served and stored");
    let is_good = served.contains(&wanted) && stored.contains(&wanted);
    checks.push(if is_good {
        let old: Vec<&str> = array(&definition["status"]["storedVersions"])
            .iter()
            .map(text)
            .filter(|version| *version != wanted)
            .collect();
        let message = format!("served: {}", served.join(", "));
        if old.is_empty() {
            Check::ok("definition-versions", title, message)
        } else {
            // Only who once ran a version that stored these has them.
            Check::ok(
                "definition-versions",
                title,
                format!("{message}; some may still be stored as {}", old.join(", ")),
            )
        }
    } else {
        let message = format!("served: {}; stored: {}", listed(&served), listed(&stored));
        Check::failure("definition-versions", title, message)
            .hint("somebody else's definition, or an older one: upgrade HealthScope")
            .command(upgrade(facts))
    });
    Section::new("definition", "Definition", checks)
}

fn control_plane(facts: &Facts) -> Section {
    let mut checks = Vec::new();
    let title = "an aggregator is installed";
    match &facts.deployments {
        Asked::Found(_) => match facts.aggregators().as_slice() {
            [] => checks.push(
                Check::failure(
                    "installed",
                    title,
                    "there is no Deployment with the labels of HealthScope's aggregator",
                )
                .hint("install HealthScope")
                .command(install(facts)),
            ),
            [deployment] => {
                checks.push(Check::ok(
                    "installed",
                    title,
                    format!("Deployment {}", full_name(deployment)),
                ));
                checks.push(replicas(facts, deployment));
                checks.push(pods(facts));
                checks.push(version(facts, deployment));
                checks.push(lease(facts));
                checks.push(rights(facts, deployment));
            }
            several => {
                let names: Vec<String> = several.iter().map(|one| full_name(one)).collect();
                checks.push(
                    Check::failure(
                        "installed",
                        title,
                        "there are several; they would fight for the same pods and statuses",
                    )
                    .hint("uninstall all but one")
                    .about(names),
                );
            }
        },
        other => {
            checks.push(unanswered("installed", title, other));
            checks.push(pods(facts));
            checks.push(lease(facts));
        }
    }
    Section::new("control-plane", "Control plane", checks)
}

fn replicas(facts: &Facts, deployment: &Value) -> Check {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
    let title = "the aggregator's replicas are ready";
    let count = format!("{ready} of {wanted}");
    if ready >= wanted && wanted > 0 {
        return Check::ok("replicas", title, count);
    }
    let home = facts.home();
    if wanted == 0 {
        return Check::failure("replicas", title, "the Deployment is scaled to 0")
            .hint("without one there are no verdicts and no agents in new pods")
            .command(format!(
                "kubectl -n {home} scale deployment {DEPLOYMENT} --replicas=2"
            ));
    }
    let said = array(&deployment["status"]["conditions"])
        .iter()
        .find(|condition| {
            (condition["type"] == "ReplicaFailure" && condition["status"] == "True")
                || (condition["type"] == "Progressing" && condition["status"] == "False")
        });
    let said = said
        .map(|condition| format!(": {}", one_line(text(&condition["message"]), MAX_MESSAGE_BYTES)))
        .unwrap_or_default();
    let message = format!("{count}{said}");
    let check = if ready == 0 {
        Check::failure("replicas", title, message)
            .hint("without one there are no verdicts and no agents in new pods")
    } else {
        Check::warning("replicas", title, message)
            .hint("one is enough to serve; the others are there for when it goes")
    };
    check.command(format!("kubectl -n {home} describe deployment {DEPLOYMENT}"))
}

fn pods(facts: &Facts) -> Check {
    let title = "the aggregator's pods run";
    if !matches!(facts.pods, Asked::Found(_)) {
        return unanswered("pods", title, &facts.pods);
    }
    let pods = facts.pods.items();
    if pods.is_empty() {
        return Check::failure("pods", title, "there are none")
            .hint("the Deployment's controller says what is in the way")
            .command(format!("kubectl -n {} describe replicaset", facts.home()));
    }
    let mut problems = Vec::new();
    let mut command = None;
    for pod in pods {
        let unscheduled = array(&pod["status"]["conditions"])
            .iter()
            .find(|condition| condition["type"] == "PodScheduled" && condition["status"] == "False");
        if let Some(condition) = unscheduled {
            problems.push(format!(
                "{}: not scheduled: {}",
                name(pod),
                text(&condition["message"])
            ));
        }
        for status in array(&pod["status"]["containerStatuses"]) {
            let Some((reason, message)) = trouble(status) else {
                continue;
            };
            let ended = &status["lastState"]["terminated"];
            let code = ended["exitCode"]
                .as_i64()
                .map(|code| format!(" (exit code {code})"));
            let message = one_line(message, MAX_MESSAGE_BYTES);
            problems.push(format!(
                "{}: {reason}{}: {message}",
                name(pod),
                code.unwrap_or_default()
            ));
            if reason == "CrashLoopBackOff" {
                command = Some(format!(
                    "kubectl -n {} logs {} --previous",
                    facts.home(),
                    name(pod)
                ));
            }
        }
    }
    let Some(first) = problems.first() else {
        let noun = if pods.len() == 1 { "pod" } else { "pods" };
        return Check::ok("pods", title, format!("{} {noun}", pods.len()));
    };
    Check::failure("pods", title, first.clone())
        .hint("its log, or the kubelet, says more")
        .command(command.unwrap_or_else(|| {
            format!(
                "kubectl -n {} describe pods -l app.kubernetes.io/name=healthscope",
                facts.home()
            )
        }))
        .about(problems)
}

/// The tag of an image that is a version.
fn version_of(image: &str) -> Option<&str> {
    let tag = image.rsplit_once(':').map(|(_, tag)| tag)?;
    let tag = tag.split_once('@').map_or(tag, |(tag, _)| tag);
    let tag = tag.strip_prefix('v').unwrap_or(tag);
    let core = tag.split(['-', '+']).next().unwrap_or_default();
    let is_version = core.split('.').count() == 3 && core.split('.').all(|part| part.parse::<u32>().is_ok());
    is_version.then_some(tag)
}

fn version(facts: &Facts, deployment: &Value) -> Check {
    let title = "the aggregator and this program are of one version";
    let image = text(&container(deployment)["image"]);
    match version_of(image) {
        Some(version) if version == facts.version => Check::ok("version", title, version),
        Some(version) => {
            let message = format!(
                "the aggregator is {version} and this program is {}",
                facts.version
            );
            Check::warning("version", title, message)
                .hint("use the program of the installation's version, or upgrade the installation")
                .command(upgrade(facts))
        }
        None => Check::skipped(
            "version",
            title,
            format!("the image {image} does not say which it is"),
        ),
    }
}

fn lease(facts: &Facts) -> Check {
    let title = "one of the replicas serves (Lease)";
    let lease = match &facts.lease {
        Asked::Found(lease) => &lease["spec"],
        Asked::Absent => {
            return Check::failure(
                "lease",
                title,
                format!("there is no Lease {LEASE}: no replica has ever served"),
            )
            .hint("the aggregator's log says why")
            .command(logs(facts));
        }
        other => return unanswered("lease", title, other),
    };
    let holder = text(&lease["holderIdentity"]);
    if holder.is_empty() {
        return Check::failure(
            "lease",
            title,
            "nobody holds it: the last one let go and no other took over",
        )
        .hint("the aggregator's log says why")
        .command(logs(facts));
    }
    // The pod's name, and what tells its processes apart.
    let holder = holder.rsplit_once('_').map_or(holder, |(pod, _)| pod);
    let Some(renewed) = time(&lease["renewTime"]) else {
        return Check::warning(
            "lease",
            title,
            format!("{holder} holds it, and does not say since when"),
        );
    };
    let silent = facts.now.duration_since(renewed);
    let term = lease["leaseDurationSeconds"].as_i64().map_or(
        SignedDuration::try_from(EXPIRY).unwrap_or(STALE),
        SignedDuration::from_secs,
    );
    // Clocks of nodes differ a little.
    let ago = age(renewed.min(facts.now), facts.now);
    if silent <= term {
        Check::ok("lease", title, format!("{holder}, renewed {ago} ago"))
    } else if silent <= STALE {
        Check::warning(
            "lease",
            title,
            format!("{holder} renewed it {ago} ago, and it holds {}s", term.as_secs()),
        )
        .hint("another replica takes over within seconds; look again")
    } else {
        Check::failure(
            "lease",
            title,
            format!("{holder} renewed it {ago} ago and is gone; no other took over"),
        )
        .hint("verdicts are as old as that; the aggregator's log says why")
        .command(logs(facts))
    }
}

/// What the aggregator must be able to do, as far as its arguments say.
pub(super) fn needed(deployment: &Value) -> Vec<Right> {
    let home = text(&deployment["metadata"]["namespace"]);
    let mut needed = Vec::new();
    for verb in ["list", "watch"] {
        needed.push(Right::new(verb, v1beta1::GROUP, "healthscopes", None));
        needed.push(Right::new(verb, "", "pods", None));
        for resource in ["replicasets", "deployments", "statefulsets", "daemonsets"] {
            needed.push(Right::new(verb, "apps", resource, None));
        }
        for resource in ["jobs", "cronjobs"] {
            needed.push(Right::new(verb, "batch", resource, None));
        }
    }
    needed.push(Right::new("update", v1beta1::GROUP, "healthscopes/status", None));
    needed.push(Right::new("create", "events.k8s.io", "events", None));
    needed.push(Right::new(
        "create",
        "authentication.k8s.io",
        "tokenreviews",
        None,
    ));
    needed.push(Right::new(
        "create",
        "authorization.k8s.io",
        "subjectaccessreviews",
        None,
    ));
    needed.push(Right::new("create", "coordination.k8s.io", "leases", Some(home)));
    for verb in ["get", "update"] {
        needed.push(Right::new(verb, "coordination.k8s.io", "leases", Some(home)).named(LEASE));
    }
    if flag(deployment, "--tls-secret") == Some("healthscope-tls") {
        for verb in ["get", "watch", "update"] {
            needed.push(Right::new(verb, "", "secrets", Some(home)).named("healthscope-tls"));
        }
        for verb in ["get", "patch"] {
            needed.push(Right::new(verb, "", "configmaps", Some(home)).named(AUTHORITIES));
        }
    }
    if flag(deployment, "--webhook-listen").is_some() {
        for resource in ["namespaces", "limitranges", "resourcequotas"] {
            for verb in ["list", "watch"] {
                needed.push(Right::new(verb, "", resource, None));
            }
        }
    }
    if flag(deployment, "--webhook-configuration") == Some(WEBHOOK) {
        let group = "admissionregistration.k8s.io";
        for verb in ["get", "patch"] {
            needed.push(Right::new(verb, group, "mutatingwebhookconfigurations", None).named(WEBHOOK));
        }
    }
    needed
}

fn rights(facts: &Facts, deployment: &Value) -> Check {
    let title = "the aggregator may do what it has to";
    let account = text(&deployment["spec"]["template"]["spec"]["serviceAccountName"]);
    if let Some((_, other)) = facts.rights.iter().find(|(_, answer)| answer.found().is_none()) {
        return unanswered("rights", title, other);
    }
    let is_allowed = |review: &Asked| {
        review
            .found()
            .is_some_and(|review| review["status"]["allowed"] == true)
    };
    let missing: Vec<&Right> = facts
        .rights
        .iter()
        .filter(|(_, review)| !is_allowed(review))
        .map(|(right, _)| right)
        .collect();
    match missing.first() {
        None if facts.rights.is_empty() => Check::skipped("rights", title, "nobody was asked"),
        None => Check::ok(
            "rights",
            title,
            format!("all {} rights of {account}", facts.rights.len()),
        ),
        Some(first) => {
            let message = format!("its ServiceAccount {account} may not {first}");
            Check::failure("rights", title, message)
                .hint("somebody changed its roles; an upgrade puts them right")
                .command(upgrade(facts))
                .about(
                    missing
                        .iter()
                        .map(|right| format!("{right}: {}", right.rule()))
                        .collect(),
                )
        }
    }
}

/// Whether pods are meant to get agents at all: `None` when that cannot be known.
fn is_injecting(facts: &Facts) -> Option<bool> {
    match facts.deployment() {
        Some(deployment) => Some(flag(deployment, "--webhook-listen").is_some()),
        None => facts.webhook.found().map(|_| true),
    }
}

/// A certificate of a bundle.
struct Certificate {
    der: Vec<u8>,
    from: Timestamp,
    until: Timestamp,
}

fn certificates_in(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let der = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        let (_, read) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| format!("it has something that is no certificate: {error}"))?;
        let moment = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        found.push(Certificate {
            from: moment(read.validity().not_before.timestamp()),
            until: moment(read.validity().not_after.timestamp()),
            der: der.to_vec(),
        });
    }
    Ok(found)
}

fn certificates(facts: &Facts) -> Section {
    let is_own = facts
        .deployment()
        .map(|deployment| flag(deployment, "--tls-secret").is_some());
    let title = format!("the authorities to trust are published (ConfigMap {AUTHORITIES})");
    let mut checks = Vec::new();
    let bundle = match &facts.authorities {
        Asked::Found(map) => text(&map["data"][AUTHORITIES_KEY]).trim().to_owned(),
        Asked::Absent if is_own == Some(false) => {
            let message = "it is not made by the chart with this tls.mode";
            checks.push(Check::warning("authorities", title, message).hint(format!(
                "kubectl healthscope trusts the aggregator by it: make it, with the key {AUTHORITIES_KEY}"
            )));
            return Section::new("certificates", "Certificates", checks);
        }
        Asked::Absent => {
            checks.push(
                Check::failure("authorities", title, "it is not there")
                    .hint("the chart makes it, and the aggregator fills it")
                    .command(upgrade(facts)),
            );
            return Section::new("certificates", "Certificates", checks);
        }
        other => {
            checks.push(unanswered("authorities", title, other));
            return Section::new("certificates", "Certificates", checks);
        }
    };
    if bundle.is_empty() {
        checks.push(
            Check::failure(
                "authorities",
                title,
                "it is empty: the aggregator has not filled it",
            )
            .hint(
                "it does so within moments after one of its replicas serves; its log says what is in the way",
            )
            .command(logs(facts)),
        );
        return Section::new("certificates", "Certificates", checks);
    }
    let authorities = match certificates_in(bundle.as_bytes()) {
        Ok(authorities) if authorities.is_empty() => Err("it has no certificate".to_owned()),
        other => other,
    };
    let authorities = match authorities {
        Ok(authorities) => authorities,
        Err(problem) => {
            checks.push(
                Check::failure("authorities", title, problem)
                    .hint("somebody wrote into it; the aggregator puts it right within a minute")
                    .command(logs(facts)),
            );
            return Section::new("certificates", "Certificates", checks);
        }
    };
    let noun = if authorities.len() == 1 {
        "certificate"
    } else {
        "certificates"
    };
    checks.push(Check::ok(
        "authorities",
        title,
        format!("{} {noun}", authorities.len()),
    ));

    let title = "an authority is valid";
    let last = authorities
        .iter()
        .filter(|one| one.from <= facts.now)
        .map(|one| one.until)
        .max();
    checks.push(match last {
        Some(until) if until > facts.now + SOON => Check::ok(
            "authorities-valid",
            title,
            format!("until {until}, {} from now", age(facts.now, until)),
        ),
        Some(until) if until > facts.now => Check::warning(
            "authorities-valid",
            title,
            format!("only until {until}, {} from now", age(facts.now, until)),
        )
        .hint("whoever made it should have renewed it by now; without it no agent trusts the aggregator")
        .command(logs(facts)),
        Some(until) => Check::failure(
            "authorities-valid",
            title,
            format!("the last one ended at {until}"),
        )
        .hint("no agent trusts the aggregator and no pod gets one; renew it, as docs/webhook.md says")
        .command(logs(facts)),
        None => Check::failure("authorities-valid", title, "none has begun; is the clock right?"),
    });

    if let Some(webhook) = facts.webhook.found() {
        checks.push(trusted(facts, webhook, &authorities, is_own.unwrap_or(true)));
    }
    Section::new("certificates", "Certificates", checks)
}

/// Whether the API server trusts the same authorities.
fn trusted(facts: &Facts, webhook: &Value, authorities: &[Certificate], is_own: bool) -> Check {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let title = "the API server trusts the same for the webhook (caBundle)";
    let published: BTreeSet<&[u8]> = authorities.iter().map(|one| one.der.as_slice()).collect();
    for entry in array(&webhook["webhooks"]) {
        let bundle = text(&entry["clientConfig"]["caBundle"]);
        let trusted = STANDARD
            .decode(bundle)
            .map_err(|error| error.to_string())
            .and_then(|pem| certificates_in(&pem));
        let problem = match &trusted {
            Ok(found) if found.is_empty() => "has none".to_owned(),
            Ok(found) => {
                let found: BTreeSet<&[u8]> = found.iter().map(|one| one.der.as_slice()).collect();
                if found == published {
                    continue;
                }
                "has others".to_owned()
            }
            Err(problem) => format!("cannot be read: {problem}"),
        };
        let hint = if is_own {
            "pods get no agents meanwhile; the aggregator puts it right within a minute, or its log says why not"
        } else {
            "pods get no agents meanwhile; whoever makes the certificates has to put it there"
        };
        return Check::failure(
            "webhook-trust",
            title,
            format!("the entry {} {problem}", text(&entry["name"])),
        )
        .hint(hint)
        .command(logs(facts));
    }
    Check::ok("webhook-trust", title, "")
}

fn webhook(facts: &Facts) -> Section {
    let title = format!("the webhook is registered ({WEBHOOK})");
    let section = |checks| Section::new("webhook", "Webhook", checks);
    let webhook = match (&facts.webhook, is_injecting(facts)) {
        (Asked::Found(webhook), _) => webhook,
        (_, Some(false)) => {
            return section(vec![Check::skipped(
                "webhook",
                title,
                "the injector is turned off",
            )]);
        }
        (Asked::Absent, _) => {
            return section(vec![
                Check::failure(
                    "webhook",
                    title,
                    "there is no such MutatingWebhookConfiguration: no pod gets an agent",
                )
                .hint("somebody deleted it; an upgrade makes it again")
                .command(upgrade(facts)),
            ]);
        }
        (other, _) => return section(vec![unanswered("webhook", title, other)]),
    };
    let mut checks = vec![Check::ok(
        "webhook",
        title,
        format!("{} entries", array(&webhook["webhooks"]).len()),
    )];

    let title = "a webhook that does not answer holds up nobody (failurePolicy Ignore)";
    let strict: Vec<String> = array(&webhook["webhooks"])
        .iter()
        .filter(|entry| entry["failurePolicy"] != "Ignore")
        .map(|entry| text(&entry["name"]).to_owned())
        .collect();
    checks.push(if strict.is_empty() {
        Check::ok("failure-policy", title, "")
    } else {
        Check::failure(
            "failure-policy",
            title,
            "somebody set another: when the webhook is away, pods are refused",
        )
        .hint("set it back; an upgrade does so")
        .command(upgrade(facts))
        .about(strict)
    });

    let empty = array(&webhook["webhooks"])
        .iter()
        .find(|entry| text(&entry["clientConfig"]["caBundle"]).is_empty());
    let title = "the API server knows whom to trust for it (caBundle)";
    checks.push(match empty {
        None => Check::ok("ca-bundle", title, ""),
        Some(entry) => Check::failure("ca-bundle", title, format!("the entry {} has none: no pod gets an agent", text(&entry["name"])))
            .hint("the aggregator fills it within moments after one of its replicas serves; its log says what is in the way")
            .command(logs(facts)),
    });

    let title = format!("somebody answers it (Service {WEBHOOK_SERVICE})");
    checks.push(match (&facts.service, &facts.endpoints) {
        (Asked::Absent, _) => Check::failure("webhook-endpoints", title, "there is no such Service")
            .hint("somebody deleted it; an upgrade makes it again")
            .command(upgrade(facts)),
        (_, Asked::Found(_)) => {
            let ready = facts
                .endpoints
                .items()
                .iter()
                .flat_map(|slice| array(&slice["endpoints"]))
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .count();
            if ready > 0 {
                let noun = if ready == 1 { "endpoint" } else { "endpoints" };
                Check::ok("webhook-endpoints", title, format!("{ready} ready {noun}"))
            } else {
                Check::failure(
                    "webhook-endpoints",
                    title,
                    "it has no ready endpoint: no pod gets an agent",
                )
                .hint("the aggregator's pods must be ready")
                .command(format!(
                    "kubectl -n {} get pods -l app.kubernetes.io/name=healthscope",
                    facts.home()
                ))
            }
        }
        (_, other) => unanswered("webhook-endpoints", title, other),
    });
    checks.push(rehearsal(facts));
    section(checks)
}

fn rehearsal(facts: &Facts) -> Check {
    let label = key::INJECT;
    let Some(rehearsal) = &facts.rehearsal else {
        let message = format!("no namespace has the label {label}=enabled");
        return Check::skipped(
            "rehearsal",
            "a pod that is made now gets an agent (dry run)",
            message,
        );
    };
    let namespace = &rehearsal.namespace;
    let title = format!("a pod that is made now in {namespace} gets an agent (dry run)");
    match &rehearsal.pod {
        Asked::Found(pod) if super::facts::agent(pod).is_some() => Check::ok("rehearsal", title, ""),
        Asked::Found(_) => match trip_for(&facts.record(), namespace, None) {
            Some(trip) if trip.reduction == Reduction::Off => Check::warning(
                "rehearsal",
                title,
                "it does not, because injection was stopped there: see below",
            ),
            Some(_) | None => {
                let place = facts.places.iter().find(|place| place.name == *namespace);
                let reason = place.and_then(|place| decide(facts, place, &rehearsal_pod(namespace)).err());
                if let Some(reason) = reason {
                    let message = format!("it does not: {}: {reason}", reason.code());
                    return Check::failure("rehearsal", title, message)
                        .hint("what each reason means is in docs/injection.md")
                        .command(format!("kubectl get namespace {namespace} -o yaml"));
                }
                let message = "it does not: the webhook did not answer, or not in time, or left it as it is";
                Check::failure("rehearsal", title, message)
                    .hint("the aggregator's log says whether it was asked; what the API server says stands in its own log")
                    .command(logs(facts))
            }
        },
        Asked::Failed(problem) => Check::warning(
            "rehearsal",
            title,
            format!("the API server takes no such pod there: {problem}"),
        )
        .hint("a quota or a policy of the namespace refuses this small pod; others may be taken"),
        other => unanswered("rehearsal", title, other),
    }
}

/// What is left out for an owner's pods, the strictest; without an owner, for a whole namespace.
pub(super) fn trip_for<'a>(
    record: &'a Record,
    namespace: &str,
    owner: Option<&(String, String)>,
) -> Option<&'a Trip> {
    let is_there = |trip: &&Trip| {
        let is_owner = |trip: &Trip| match (&trip.owner, owner) {
            (Some(wanted), Some((kind, name))) => {
                let is_same = wanted.kind == *kind && wanted.name == *name;
                // A CronJob's Jobs are called like it.
                let is_job_of = wanted.kind == "CronJob"
                    && kind == "Job"
                    && name
                        .strip_prefix(&wanted.name)
                        .is_some_and(|rest| rest.starts_with('-'));
                is_same || is_job_of
            }
            _ => false,
        };
        match trip.level {
            Level::Cluster => true,
            Level::Namespace => trip.namespace.as_deref() == Some(namespace),
            Level::Owner => trip.namespace.as_deref() == Some(namespace) && is_owner(trip),
        }
    };
    record
        .trips
        .iter()
        .filter(is_there)
        .max_by_key(|trip| trip.reduction)
}

/// The breaker and the canary.
fn safety(facts: &Facts) -> Section {
    let mut checks = Vec::new();
    let title = "nothing is left out of injection (breaker)";
    match &facts.breaker {
        Asked::Found(map) => {
            let text = text(&map["data"][breaker::KEY]);
            let record = if text.is_empty() {
                Ok(Record::default())
            } else {
                serde_json::from_str(text)
            };
            match record {
                Ok(record) if record.trips.is_empty() => checks.push(Check::ok("breaker", title, "")),
                Ok(record) => checks.extend(record.trips.iter().map(|trip| tripped(facts, trip))),
                Err(error) => checks.push(
                    Check::warning("breaker", title, format!("its record cannot be read: {error}"))
                        .hint("somebody wrote into it, or it is of another version")
                        .command(format!(
                            "kubectl -n {} get configmap {} -o yaml",
                            facts.home(),
                            breaker::CONFIG_MAP
                        )),
                ),
            }
        }
        Asked::Absent if is_injecting(facts) == Some(false) => {
            checks.push(Check::skipped("breaker", title, "the injector is turned off"));
        }
        Asked::Absent => checks.push(Check::skipped(
            "breaker",
            title,
            format!("there is no ConfigMap {}", breaker::CONFIG_MAP),
        )),
        other => checks.push(unanswered("breaker", title, other)),
    }
    checks.push(canary(facts));
    Section::new("safety", "Safety of injection", checks)
}

/// One open place of the breaker.
fn tripped(facts: &Facts, trip: &Trip) -> Check {
    let Trip {
        level,
        namespace,
        owner,
        reduction,
        cause,
        message,
        image,
        since,
        pods,
        ..
    } = trip;
    let namespace = namespace.as_deref().unwrap_or_default();
    let place = match (level, owner) {
        (Level::Cluster, _) => "in the whole cluster".to_owned(),
        (Level::Namespace, _) | (Level::Owner, None) => format!("in the namespace {namespace}"),
        (Level::Owner, Some(owner)) => format!("for {} {namespace}/{}", owner.kind, owner.name),
    };
    let less = match reduction {
        Reduction::WithoutCommands => "new pods get an agent without command checks",
        Reduction::Off => "new pods get no agent",
    };
    let (seen, hint) = match cause {
        Cause::ImagePull => (
            "the agent's image cannot be pulled",
            "make the image pullable from every node (name, registry, pull secrets); injection resumes on proof",
        ),
        Cause::AgentNotStarting => (
            "the agent's container does not start or does not stay",
            "the kubelet says why; when a policy of the cluster forbids the container, allow it, or leave the workload out",
        ),
        Cause::CarrierMissing => (
            "the runner for command checks never came up",
            "the container's own probe is as it was; leave the container out by the annotation exec, or look at its Events",
        ),
        Cause::FailedCreate => (
            "pods were refused because of what was added to them",
            "a quota, a LimitRange or a policy leaves no room for the agent: make room, or ask for less by the annotation \
             resources",
        ),
    };
    let what = format!(
        "{less} since {since} ({}): {seen}: {} (image {image})",
        age(*since, facts.now),
        one_line(message, MAX_MESSAGE_BYTES),
    );
    let mut check = Check::failure("breaker", format!("injection is whole {place}"), what)
        .hint(hint)
        .about(
            pods.iter()
                .map(|pod| {
                    if namespace.is_empty() || pod.contains('/') {
                        pod.clone()
                    } else {
                        format!("{namespace}/{pod}")
                    }
                })
                .collect(),
        );
    if let (Some(pod), false) = (pods.first(), namespace.is_empty()) {
        let pod = pod.rsplit('/').next().unwrap_or(pod);
        check = check.command(format!("kubectl -n {namespace} describe pod {pod}"));
    }
    let is_local = matches!(cause, Cause::CarrierMissing | Cause::FailedCreate);
    if is_local && !namespace.is_empty() {
        // Any other value than before.
        check = check.command(format!(
            "kubectl annotate namespace {namespace} {key}=\"$(date)\" --overwrite",
            key = key::RETRY_INJECTION
        ));
    }
    let everywhere = if namespace.is_empty() {
        String::new()
    } else {
        format!(" -n {namespace}")
    };
    check.command(format!(
        "{} check{everywhere} --fix    # pods that are stuck",
        facts.program
    ))
}

fn canary(facts: &Facts) -> Check {
    let title = format!("the canary runs the agent ({CANARY})");
    match (&facts.canary_set, &facts.canary) {
        (Asked::Absent, Asked::Absent | Asked::Unasked) => {
            Check::skipped("canary", title, "the installation has none")
        }
        (_, Asked::Found(pod)) if is_ready(pod) => {
            Check::ok("canary", title, facts.proven_image().unwrap_or_default())
        }
        (_, Asked::Found(pod)) => {
            let statuses = array(&pod["status"]["containerStatuses"]);
            let reason = std::iter::once(agent_status(pod))
                .chain(statuses)
                .find_map(trouble)
                .map(|(reason, message)| format!(": {reason}: {}", one_line(message, MAX_MESSAGE_BYTES)));
            Check::failure(
                "canary",
                title,
                format!("it is not ready{}", reason.unwrap_or_default()),
            )
            .hint("what keeps it from running keeps injected pods from running, too")
            .command(format!("kubectl -n {} describe pod {CANARY}", facts.home()))
        }
        (_, Asked::Absent) => Check::failure("canary", title, "its StatefulSet has no pod")
            .hint("its controller says what is in the way")
            .command(format!(
                "kubectl -n {} describe statefulset {CANARY_SET}",
                facts.home()
            )),
        (_, other) => unanswered("canary", title, other),
    }
}

/// A question without an answer: a warning that names what is missing.
pub(super) fn unanswered(id: &'static str, title: impl Into<String>, asked: &Asked) -> Check {
    match asked {
        Asked::Forbidden(right) => {
            Check::warning(id, title, format!("you may not {right}, so this is not known"))
                .hint(format!("it takes {}", right.rule()))
        }
        Asked::Failed(problem) => Check::warning(
            id,
            title,
            format!("the API server gives no answer to that: {problem}"),
        ),
        Asked::Absent => Check::warning(id, title, "there is no such object"),
        Asked::Unasked | Asked::Found(_) => Check::skipped(id, title, "not asked"),
    }
}

/// What is looked at before HealthScope is installed.
pub(super) fn before(facts: &Facts) -> Vec<Section> {
    let mut sections = vec![kubernetes(facts)];
    let mut checks: Vec<Check> = Vec::new();
    let title = "you may make what the installation has";
    if let Some((_, other)) = facts.rights.iter().find(|(_, answer)| answer.found().is_none()) {
        checks.push(unanswered("rights-to-install", title, other));
    } else {
        let missing: Vec<&Right> = facts
            .rights
            .iter()
            .filter(|(_, review)| {
                review
                    .found()
                    .is_none_or(|review| review["status"]["allowed"] != true)
            })
            .map(|(right, _)| right)
            .collect();
        checks.push(match missing.first() {
            None => Check::ok(
                "rights-to-install",
                title,
                format!("{} kinds", facts.rights.len()),
            ),
            Some(first) => Check::failure("rights-to-install", title, format!("you may not {first}"))
                .hint("have somebody install it who may")
                .about(missing.iter().map(|right| right.to_string()).collect()),
        });
    }
    let title = "no other HealthScope is installed";
    checks.push(match &facts.deployments {
        Asked::Found(_) => match facts.aggregators().first() {
            None => Check::ok("not-installed", title, ""),
            Some(found) => Check::warning(
                "not-installed",
                title,
                format!("there is the Deployment {}", full_name(found)),
            )
            .hint("there is one HealthScope in a cluster: upgrade that one")
            .command(upgrade(facts)),
        },
        other => unanswered("not-installed", title, other),
    });
    let title = "the definition of HealthScopes is nobody else's";
    checks.push(match &facts.definition {
        Asked::Absent => Check::ok("definition-free", title, "there is none"),
        Asked::Found(definition) => {
            let annotations = map(&definition["metadata"]["annotations"]);
            match annotations.get("meta.helm.sh/release-name") {
                Some(release) => Check::ok(
                    "definition-free",
                    title,
                    format!("it is of the release {release}"),
                ),
                None => Check::warning(
                    "definition-free",
                    title,
                    format!("{DEFINITION} is there, and Helm did not make it"),
                )
                .hint("Helm takes it over when asked to")
                .command(format!("{} --take-ownership", install(facts))),
            }
        }
        other => unanswered("definition-free", title, other),
    });
    sections.push(Section::new("before", "Before the installation", checks));
    sections
}

/// What a user must be able to do to install, in a namespace.
pub(super) fn needed_to_install(namespace: &str) -> Vec<Right> {
    let everywhere = [
        ("", "namespaces"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ];
    let there = [
        ("", "serviceaccounts"),
        ("", "services"),
        ("", "secrets"),
        ("", "configmaps"),
        ("apps", "deployments"),
        ("apps", "statefulsets"),
        ("policy", "poddisruptionbudgets"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
    ];
    let everywhere = everywhere.map(|(group, resource)| Right::new("create", group, resource, None));
    let there = there.map(|(group, resource)| Right::new("create", group, resource, Some(namespace)));
    everywhere.into_iter().chain(there).collect()
}

fn install(facts: &Facts) -> String {
    format!(
        "helm install healthscope charts/healthscope --namespace {} --create-namespace",
        facts.home()
    )
}

fn upgrade(facts: &Facts) -> String {
    format!(
        "helm upgrade healthscope charts/healthscope --namespace {} --reuse-values",
        facts.home()
    )
}

fn logs(facts: &Facts) -> String {
    format!(
        "kubectl -n {} logs -l app.kubernetes.io/name=healthscope,app.kubernetes.io/component=aggregator --tail=50",
        facts.home()
    )
}

fn listed(words: &[&str]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

/// How long one answer may take.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);
