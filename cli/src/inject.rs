//! `healthscope inject`: manifests in, the same with agents out.
//!
//! Asks nobody but, when no certificates are given, the cluster of the kubeconfig for those of its aggregator.
//! What is decided is decided by [`healthscope_core::inject`], as in the cluster's webhook. A document that is not
//! changed is printed as it was written, from its first field to its last.

mod ordered;

use {
    crate::{
        args::{Global, InjectArgs, KubernetesArgs},
        check::files::{lines, read, say},
        cluster::Cluster,
        failure::{Answer, Failure},
        terminal::{Style, Terminal, visible},
    },
    healthscope_agent::uplink::endpoint::Endpoint,
    healthscope_core::inject::{self, Injection, Options, Resources, Stance, Surroundings},
    healthscope_crd::key,
    healthscope_shared::{
        document::{self, Document, Source},
        one_line,
    },
    ordered::Ordered,
    serde_json::Value,
    similar::TextDiff,
    std::{collections::BTreeMap, path::Path},
};

/// Longest reason why a cluster did not say whom to trust.
const MAX_CAUSE_BYTES: usize = 300;
/// Lists in lists that are looked into; nobody writes even two.
const MAX_LISTS: usize = 8;

/// Injects into files and prints the result.
pub(crate) async fn run(args: &InjectArgs, global: &Global, terminal: Terminal) -> Result<Answer, Failure> {
    let mut options = options(args)?;
    let (ca_pem, hints) = trusted(global).await?;
    options.ca_pem = ca_pem;
    let sources = match read(&args.file) {
        Ok(sources) => sources,
        Err(problems) => {
            say(&problems);
            return Err(Failure::error("not everything could be read"));
        }
    };
    let mut said = hints;
    let mut texts = Vec::new();
    for source in &sources {
        match stream(source, &options, args.diff) {
            Ok(stream) => {
                said.extend(stream.said);
                texts.extend(stream.texts);
            }
            Err(problems) => {
                say(&problems);
                return Err(Failure::error("not everything could be read"));
            }
        }
    }
    say(&said);
    let text = if args.diff {
        texts.iter().map(|diff| paint(diff, terminal)).collect()
    } else {
        texts.join("---\n")
    };
    terminal.print(&text)?;
    Ok(Answer::Yes)
}

fn options(args: &InjectArgs) -> Result<Options, Failure> {
    let InjectArgs {
        file: _,
        diff: _,
        aggregator,
        server_name,
        image,
        post_start,
    } = args;
    let endpoint: Endpoint = aggregator
        .parse()
        .map_err(|error| Failure::usage(format!("--aggregator {aggregator}: {error}")))?;
    if !endpoint.is_tls() {
        return Err(Failure::usage(format!(
            "--aggregator {aggregator}: agents in a cluster show a token, so it must be wss://"
        )));
    }
    if image.trim().is_empty() {
        return Err(Failure::usage("--image is empty"));
    }
    Ok(Options {
        image: image.clone(),
        aggregator: aggregator.clone(),
        server_name: server_name.clone(),
        ca_pem: None,
        audience: inject::AUDIENCE.to_owned(),
        resources: Resources::default(),
        post_start: *post_start,
        kubernetes: None,
        admitted: false,
        stance: Stance::Full,
    })
}

/// The certificates that agents are to trust; without them a hint.
async fn trusted(global: &Global) -> Result<(Option<String>, Vec<String>), Failure> {
    if let Some(path) = &global.server.ca {
        return Ok((Some(certificates(path)?), Vec::new()));
    }
    match published(&global.kubernetes).await {
        Ok(pem) => Ok((Some(pem), Vec::new())),
        Err(cause) => {
            let hint = format!(
                "warning: no --ca, and the cluster says nothing of it ({cause}): the agents will trust the aggregator only if \
                 their image does"
            );
            Ok((None, vec![hint]))
        }
    }
}

/// The certificates that the aggregator of the kubeconfig's cluster publishes; otherwise why there are none.
async fn published(args: &KubernetesArgs) -> Result<String, String> {
    let words = |error: &dyn std::fmt::Display| one_line(&error.to_string(), MAX_CAUSE_BYTES);
    let cluster = Cluster::connect(args).await.map_err(|error| words(&error))?;
    cluster.trusted().await.map_err(|error| words(&error))
}

/// The certificates of a file, which the agent could use.
fn certificates(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let pem = std::fs::read_to_string(path)
        .map_err(|error| Failure::error(format!("--ca {shown}: cannot be read: {error}")))?;
    healthscope_service::tls::install_provider();
    healthscope_service::tls::client_config_from_pem(path, pem.as_bytes())
        .map_err(|error| Failure::error(format!("--ca {error}")))?;
    if pem.contains("PRIVATE KEY") {
        return Err(Failure::error(format!(
            "--ca {shown}: holds a private key, and everything in it would be written into pods; give certificates alone"
        )));
    }
    Ok(pem)
}

/// What one source becomes.
#[derive(Debug, Default)]
struct Stream {
    /// Its documents, or their differences.
    texts: Vec<String>,
    /// What became of its workloads, one line each.
    said: Vec<String>,
}

fn stream(source: &Source, options: &Options, is_diff: bool) -> Result<Stream, Vec<String>> {
    let mut stream = Stream::default();
    for document in document::split(source).map_err(lines)? {
        let own = own_text(&document);
        if !may_hold_pods(&document.type_meta.kind) {
            if !is_diff {
                stream.texts.push(own);
            }
            continue;
        }
        let before = Ordered::read(document.text())
            .map_err(|problem| vec![format!("{}: {problem}", document.start())])?;
        let mut after = before.to_json();
        let place = document.start().to_string();
        let is_changed = object(&mut after, &place, options, &mut stream.said, 0);
        let text = if is_changed {
            before.with(&after).write()
        } else {
            own
        };
        if !is_diff {
            stream.texts.push(text);
        } else if is_changed {
            let name = &document.start().source;
            let diff = TextDiff::from_lines(before.write().as_str(), text.as_str())
                .unified_diff()
                .header(&format!("{name} as it is"), &format!("{name} with agents"))
                .to_string();
            stream.texts.push(diff);
        }
    }
    Ok(stream)
}

/// A document as it was written. Only a line end is added where there is none: more of them, and blanks before one, may be
/// a part of its last text.
fn own_text(document: &Document) -> String {
    let text = document.text().trim_start_matches('\n');
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}")
}

fn may_hold_pods(kind: &str) -> bool {
    kind.ends_with("List") || template(kind).is_some()
}

/// Where the template of a kind's pods is.
fn template(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        "PodTemplate" => Some("/template"),
        _ => None,
    }
}

/// The API groups of these kinds: others have Deployments of their own.
fn is_kubernetes_own(api_version: &str) -> bool {
    matches!(
        api_version.split_once('/').map_or("", |(group, _)| group),
        "" | "apps" | "batch"
    )
}

/// Injects into an object, or into the objects of a list; says whether anything changed.
fn object(object_: &mut Value, place: &str, options: &Options, said: &mut Vec<String>, depth: usize) -> bool {
    let text = |field: &str| object_[field].as_str().unwrap_or_default().to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if !is_kubernetes_own(&api_version) {
        return false;
    }
    if kind.ends_with("List") && depth < MAX_LISTS {
        let items = object_.get_mut("items").and_then(Value::as_array_mut);
        let mut is_changed = false;
        for item in items.into_iter().flatten() {
            is_changed |= object(item, place, options, said, depth + 1);
        }
        return is_changed;
    }
    let Some(pointer) = template(&kind) else {
        return false;
    };
    let metadata = &object_["metadata"];
    let name = metadata["name"]
        .as_str()
        .or(metadata["generateName"].as_str())
        .unwrap_or("(no name)");
    let what = format!("{place}: {kind}/{name}");
    let Some(pod) = object_.pointer_mut(pointer) else {
        said.push(format!(
            "{what}: left as it is: NotAPod: it has no template for pods"
        ));
        return false;
    };
    // Whoever runs this asks for agents; a pod's own label still says no.
    let labels = BTreeMap::from([(key::INJECT.to_owned(), "enabled".to_owned())]);
    let around = Surroundings {
        labels: &labels,
        annotations: &BTreeMap::new(),
        limit_ranges: &[],
        quotas: &[],
    };
    match inject::inject(pod, &around, options) {
        Injection::Skipped(reason) => {
            said.push(format!("{what}: left as it is: {}: {reason}", reason.code()));
            false
        }
        Injection::Injected(injected) => {
            let noun = if injected.checks == 1 { "check" } else { "checks" };
            said.push(format!("{what}: injected, {} {noun}", injected.checks));
            for note in &injected.notes {
                said.push(format!("{what}: without {}: {note}", note.reason.as_str()));
            }
            let is_changed = *pod != injected.pod;
            *pod = injected.pod;
            is_changed
        }
    }
}

/// A difference in colours, where there are any.
fn paint(diff: &str, terminal: Terminal) -> String {
    diff.lines()
        .map(|line| {
            let style = match line.as_bytes().first() {
                Some(b'+') => Style::Good,
                Some(b'-') => Style::Bad,
                Some(b'@') => Style::Faint,
                _ => Style::Plain,
            };
            format!("{}\n", terminal.paint(style, visible(line)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use {super::*, crate::golden};

    const MANIFESTS: &str = "\
# The shop.
apiVersion: v1
kind: ConfigMap   # stays as it is, comment and all
metadata: {name: shop, namespace: shop}
data: {mode: 0644}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
        - name: web
          image: registry.example.org/web:1.4.2   # this comment is lost
          args: [\"--port\", \"8080\", --verbose]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: http}}
          livenessProbe:
            exec: {command: [cat, /tmp/ok]}
          volumeMounts:
            - {name: settings, mountPath: /etc/shop}
      volumes:
        - name: settings
          configMap: {name: shop, defaultMode: 0440}
---
# Nothing to see here.
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec:
  schedule: '@daily'
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: report, image: report:1}]
---
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Service, metadata: {name: db}, spec: {ports: [{port: 5432}]}}
  - apiVersion: v1
    kind: Pod
    metadata: {name: db}
    spec:
      containers: [{name: db, image: postgres:18, livenessProbe: {tcpSocket: {port: 5432}}, readinessProbe: {exec: {command: [pg_isready]}}}]
---
apiVersion: serving.knative.dev/v1
kind: Deployment
metadata: {name: of-somebody-else}
spec: {template: {spec: {containers: [{name: a, readinessProbe: {tcpSocket: {port: 1}}}]}}}
";

    fn settings() -> Options {
        let args = InjectArgs {
            file: Vec::new(),
            diff: false,
            aggregator: "wss://healthscope-aggregator.healthscope-system.svc:7575".to_owned(),
            server_name: Some("healthscope-aggregator.healthscope-system.svc".to_owned()),
            image: "ghcr.io/healthscope/healthscope-agent:1.2.3".to_owned(),
            post_start: false,
        };
        let mut options = options(&args).unwrap();
        options.ca_pem = Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned());
        options
    }

    fn injected(text: &str, is_diff: bool) -> Stream {
        stream(&Source::new("shop.yaml", text), &settings(), is_diff).unwrap()
    }

    #[test]
    fn manifests_are_injected_in_their_order() {
        let Stream { texts, said } = injected(MANIFESTS, false);
        golden::check("inject-shop.yaml", &texts.join("---\n"));
        golden::check("inject-shop.txt", &format!("{}\n", said.join("\n")));
        // What is not changed is as it was written.
        assert!(texts[0].contains("# stays as it is") && texts[0].contains("0644"));
        assert!(texts[4].contains("of-somebody-else}\nspec: {template"));
    }

    #[test]
    fn a_difference_shows_only_what_is_ours() {
        let Stream { texts, said: _ } = injected(MANIFESTS, true);
        let diff = texts.concat();
        golden::check("inject-shop.diff", &diff);
        let removed: Vec<&str> = diff
            .lines()
            .filter(|line| line.starts_with('-') && !line.starts_with("---"))
            .collect();
        // The one command that is carried, whose words now stand behind the runner's.
        assert!(removed.len() <= 1, "{removed:?}");
    }

    #[test]
    fn injecting_what_was_injected_changes_nothing() {
        let once = injected(MANIFESTS, false).texts.join("---\n");
        let twice = injected(&once, false).texts.join("---\n");
        assert_eq!(once, twice);
        assert_eq!(injected(&once, true).texts, Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        let problem = |text: &str| {
            stream(&Source::new("f.yaml", text), &settings(), false)
                .unwrap_err()
                .join("\n")
        };
        assert!(problem("kind: Pod\nspec: [").starts_with("f.yaml:2:"));
        assert!(problem("a: b\n").contains("apiVersion"));
    }

    #[test]
    fn objects_without_a_template_are_left_alone() {
        for text in [
            "apiVersion: apps/v1\nkind: Deployment\nspec: 3\n",
            "apiVersion: v1\nkind: Pod\n",
            "apiVersion: v1\nkind: List\nitems: 3\n",
            "apiVersion: v1\nkind: List\nitems: [3, {kind: Pod}]\n",
        ] {
            let Stream { texts, said } = injected(text, false);
            assert_eq!(texts, [text]);
            assert!(said.iter().all(|line| line.contains("NotAPod")), "{said:?}");
        }
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused() {
        let refused = |aggregator: &str, image: &str| {
            let args = InjectArgs {
                file: Vec::new(),
                diff: false,
                aggregator: aggregator.to_owned(),
                server_name: None,
                image: image.to_owned(),
                post_start: false,
            };
            match options(&args) {
                Err(Failure::Usage(message)) => message,
                other => panic!("{other:?}"),
            }
        };
        assert!(refused("ws://host:1", "i").contains("must be wss://"));
        assert!(refused("host", "i").contains("--aggregator host"));
        assert!(refused("wss://host:1", " ").contains("--image is empty"));
    }
}
