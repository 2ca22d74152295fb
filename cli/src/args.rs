//! What can be typed. Nothing here does anything; each command's own module turns its arguments into what is meant.

use {
    crate::failure::Failure,
    clap::{
        ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
        parser::ValueSource,
    },
    clap_complete::Shell,
    healthscope_service::build,
    std::{ffi::OsString, path::PathBuf, sync::LazyLock},
};

/// Where the command line looks for an aggregator when nobody says otherwise.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:7575";

/// Where agents in a cluster find the aggregator when nobody says otherwise: the Service of the installation.
const DEFAULT_AGGREGATOR: &str = "wss://healthscope-aggregator.healthscope-system.svc:7575";
/// The agent's image when nobody says otherwise.
const DEFAULT_IMAGE: &str = concat!(
    "ghcr.io/healthscope/healthscope-agent:",
    env!("CARGO_PKG_VERSION")
);

/// Where HealthScope is installed when nobody says otherwise.
const AGGREGATOR_NAMESPACE: &str = "healthscope-system";
/// How the aggregator's pods are labelled there.
const AGGREGATOR_SELECTOR: &str = "app.kubernetes.io/name=healthscope,app.kubernetes.io/component=aggregator";

/// As a kubectl plugin the program is called this, and says so in its help.
const PLUGIN: &str = "kubectl-healthscope";

/// kubectl runs this program to complete what is typed after the plugin's name.
const COMPLETER: &str = "kubectl_complete-healthscope";

static VERSION: LazyLock<String> = LazyLock::new(build::version);

/// Says whether your applications are healthy, and if not, why.
#[derive(Debug, Parser)]
#[command(
    name = "healthscope",
    version = VERSION.as_str(),
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "\
Examples:
  healthscope up                          a small demo shop under watch, page at http://127.0.0.1:7575/
  healthscope up shop.yaml                your own file under watch
  healthscope get scopes                  the verdicts
  healthscope why shop                    down to the failing check and what it printed
  kubectl healthscope why shop            the same in a Kubernetes cluster

Who is asked: called as kubectl healthscope, or with --kubernetes, --context or --kubeconfig, the cluster of the
kubeconfig; otherwise the aggregator that --server or HEALTHSCOPE_SERVER names. A --server that is typed wins for
kubectl healthscope too. In a cluster, verdicts are read from the HealthScope objects; what checks printed comes
from an aggregator's pod by port-forward with your own token, and when that cannot be had, the reason is said.

'healthscope COMMAND --help' has the options of a command and an example.
Exit codes: 0 yes (found, available, valid), 1 no or an error, 2 a command line that cannot be meant."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Global {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
    /// Namespace of the scopes and components [default: default, or that of the kubeconfig's context]
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAMESPACE",
        help_heading = "Global options"
    )]
    pub(crate) namespace: Option<String>,
}

/// Which cluster is asked, and where its aggregator is.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct KubernetesArgs {
    /// Ask a Kubernetes cluster, as `kubectl healthscope` does; --context and --kubeconfig imply it
    #[arg(long, global = true, help_heading = "Kubernetes options")]
    pub(crate) kubernetes: bool,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Kubernetes options")]
    pub(crate) context: Option<String>,
    /// The kubeconfig file [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Kubernetes options")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespace that HealthScope is installed in
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        env = "HEALTHSCOPE_AGGREGATOR_NAMESPACE",
        hide_env_values = true,
        default_value = AGGREGATOR_NAMESPACE,
        help_heading = "Kubernetes options"
    )]
    pub(crate) aggregator_namespace: String,
    /// Labels of the aggregator's pods
    #[arg(
        long,
        global = true,
        value_name = "SELECTOR",
        env = "HEALTHSCOPE_AGGREGATOR_SELECTOR",
        hide_env_values = true,
        default_value = AGGREGATOR_SELECTOR,
        help_heading = "Kubernetes options"
    )]
    pub(crate) aggregator_selector: String,
}

/// Which aggregator is asked, and how.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ServerArgs {
    /// Address of the aggregator: HOST:PORT or a URL. HOST:PORT means http on loopback and https elsewhere
    #[arg(
        short,
        long,
        global = true,
        value_name = "ADDRESS",
        env = "HEALTHSCOPE_SERVER",
        hide_env_values = true,
        default_value = DEFAULT_SERVER,
        help_heading = "Global options"
    )]
    pub(crate) server: String,
    /// File with the token that the aggregator wants
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HEALTHSCOPE_TOKEN_FILE",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file with the certificate authority of the aggregator, instead of those of this machine
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HEALTHSCOPE_CA",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) ca: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch what a file describes, or a small demo shop, on this machine
    Up(UpArgs),
    /// List scopes, components, probes or agents
    Get(GetArgs),
    /// Say why a scope is not healthy, down to the failing check
    Why(WhyArgs),
    /// Print what changes, as it happens
    Watch(WatchArgs),
    /// Wait until scopes are healthy, or whatever is asked for
    Wait(WaitArgs),
    /// Run a probe of a component now, or any check from here
    Probe(ProbeArgs),
    /// Validate files; without one, look at the installation in a cluster
    Check(CheckArgs),
    /// Put agents beside the containers in manifests, as the cluster's webhook does
    Inject(InjectArgs),
    /// Describe the fields of the files, and the words of verdicts
    Explain(ExplainArgs),
    /// Print the versions of this program and of the aggregator
    Version(VersionArgs),
    /// Print a script that completes commands in a shell
    Completion(CompletionArgs),
    /// Print documentation that is made from the program itself
    #[command(hide = true)]
    Docs(DocsArgs),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Without a file: a demo shop (web needs cart, cart needs db) on loopback, with the command that breaks it.
Edits to the file apply at once; one that is wrong changes nothing and is told with its place.

Examples:
  healthscope up
  healthscope up examples/quickstart.yaml
  healthscope up shop/ --listen 127.0.0.1:8080")]
pub(crate) struct UpArgs {
    /// File of Components and HealthScopes, or a directory of them (*.yaml, *.yml, *.json)
    #[arg(value_name = "FILE|DIR")]
    pub(crate) path: Option<PathBuf>,
    /// Where the page and the API are served; a loopback address
    #[arg(short, long, value_name = "ADDRESS", default_value = DEFAULT_SERVER)]
    pub(crate) listen: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
TYPE is scopes (scope, health), components (component, comp), probes (probe) or agents (agent); several with commas.
Names of probes are COMPONENT or COMPONENT/PROBE. SINCE is how long the present state has lasted.

Examples:
  healthscope get scopes
  healthscope get health shop payments -o wide
  healthscope get probes web -w
  healthscope get scope/shop -o json")]
pub(crate) struct GetArgs {
    /// What to list: a type, types with commas, or TYPE/NAME
    #[arg(value_name = "TYPE[,TYPE]|TYPE/NAME")]
    pub(crate) what: String,
    /// Only these
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) everywhere: AllNamespaces,
    /// How to print: more columns, whole objects, or names
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<GetOutput>,
    /// Keep printing what changes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Leave the headers out
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// Only scopes with these labels; in a cluster
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
}

/// `-A`.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub(crate) struct AllNamespaces {
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GetOutput {
    /// A table with more columns
    Wide,
    /// JSON, as kubectl gives it
    Json,
    /// The same as YAML
    Yaml,
    /// One TYPE/NAME to a line
    Name,
}

/// How a command that answers with one object prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectOutput {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Exit code 0 when the scope is available (Healthy or Degraded), otherwise 1.

Examples:
  healthscope why shop
  healthscope why shop -n staging -o json")]
pub(crate) struct WhyArgs {
    /// The scope
    #[arg(value_name = "SCOPE")]
    pub(crate) scope: String,
    /// Print the scope as an object instead
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<ObjectOutput>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Prints one line per change of a scope or component, from now on, until it is stopped. When the connection is lost
it comes back by itself and prints what it missed.

Examples:
  healthscope watch
  healthscope watch --probes -A
  healthscope watch -o json | jq -r .name")]
pub(crate) struct WatchArgs {
    /// Only the changes of this scope and of its components
    #[arg(value_name = "SCOPE")]
    pub(crate) scope: Option<String>,
    #[command(flatten)]
    pub(crate) everywhere: AllNamespaces,
    /// Changes of probes too
    #[arg(long)]
    pub(crate) probes: bool,
    /// Print one JSON object to a line
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<LinesOutput>,
}

/// How a command that never ends prints what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinesOutput {
    /// One JSON object to a line
    Json,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
WHAT is healthy, degraded, unhealthy, unknown, available (healthy or degraded) or delete, or a condition as kubectl
writes it: condition=Healthy, condition=Available=false. An aggregator that is not there yet is waited for too.

Examples:
  healthscope wait shop --for=healthy --timeout 60s
  healthscope wait shop payments --for=condition=Available
  healthscope wait shop --for=unhealthy --timeout 5m")]
pub(crate) struct WaitArgs {
    /// The scopes; all of them must get there
    #[arg(value_name = "SCOPE", required = true)]
    pub(crate) scopes: Vec<String>,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT")]
    pub(crate) goal: String,
    /// How long: 500ms, 60s, 5m; 0 looks once
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) timeout: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
A name runs the component's own probes through its agent, wherever that is. A URL or a command is checked from here
and needs no aggregator; the options below are for those. Exit code 0 when every run succeeded, otherwise 1.

Examples:
  healthscope probe web
  healthscope probe web/readiness
  healthscope probe https://localhost:8443/healthz --expect-status 200,204 --header 'Authorization: Bearer x'
  healthscope probe tcp://localhost:5432 --timeout 200ms
  healthscope probe grpc://localhost:50051/my.Service
  healthscope probe -- pg_isready -q")]
pub(crate) struct ProbeArgs {
    /// COMPONENT, COMPONENT/PROBE, or a URL: http://, https://, tcp://HOST:PORT, grpc://HOST:PORT/SERVICE
    #[arg(
        value_name = "COMPONENT[/PROBE]|URL",
        required_unless_present = "command",
        conflicts_with = "command"
    )]
    pub(crate) target: Option<String>,
    /// A command to run instead, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    /// Longest time a run may take [default: 1s, or the probe's own]
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// Statuses that are success, instead of 200-399
    #[arg(long, value_name = "STATUS|RANGE", value_delimiter = ',')]
    pub(crate) expect_status: Vec<String>,
    /// Text that the first 10 KiB of the body must contain
    #[arg(long, value_name = "TEXT")]
    pub(crate) expect_body: Option<String>,
    /// Header to send, NAME: VALUE; may be repeated
    #[arg(long, value_name = "HEADER")]
    pub(crate) header: Vec<String>,
    /// Verify the certificate of an https:// URL, against the authorities of this machine and --ca
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the result as an object
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<ObjectOutput>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
With files: uses the code of the agent and the aggregator, so what is valid here is valid there. Everything that is wrong
goes to standard error as FILE:LINE:COLUMN: message. Exit code 0 when all is valid (warnings are), otherwise 1.

Without: looks at HealthScope in the cluster of the kubeconfig, with your own rights, and at the pods of all namespaces
that are injected, or of --namespace. Each check is ok, a warning or a failure, with what to do. What you may not read is
a warning that names the right. One pod is made as a dry run; nothing is changed without --fix. Exit code 0 when nothing
fails (warnings do not count), 1 when something does, 2 when nobody could be asked.

Examples:
  healthscope check shop.yaml
  healthscope check components/ scopes.yaml -o yaml
  generate | healthscope check -
  kubectl healthscope check --pre
  kubectl healthscope check --wait 2m
  kubectl healthscope check -n shop --pod web-5d8f7c-x2k4q
  kubectl healthscope check -n shop --fix")]
pub(crate) struct CheckArgs {
    /// Files or directories of them, read together; - is standard input; without any, the cluster is looked at
    #[arg(value_name = "FILE|DIR", conflicts_with_all = ["wait", "pod", "pre", "fix"])]
    pub(crate) paths: Vec<PathBuf>,
    /// Print what was understood, or found, as objects
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<ObjectOutput>,
    /// Print nothing but problems
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Look again until nothing fails, this long at most: 30s, 5m
    #[arg(long, value_name = "DURATION", conflicts_with = "fix")]
    pub(crate) wait: Option<String>,
    /// Look at this pod of the namespace in depth
    #[arg(long, value_name = "NAME", conflicts_with = "pre")]
    pub(crate) pod: Option<String>,
    /// Before an installation: whether the cluster takes it and you may make it
    #[arg(long, conflicts_with = "fix")]
    pub(crate) pre: bool,
    /// Un-stick pods that the agent's container holds up, one by one, asking before each
    #[arg(long, conflicts_with_all = ["output", "quiet"])]
    pub(crate) fix: bool,
    /// Do not ask
    #[arg(short, long, requires = "fix")]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Reads Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs, PodTemplates and
Lists of them; everything else passes through as it is, in its place. Comments in what is changed are lost. Standard
error says of each workload what became of it, and why one is left as it is. Asks nobody: limits and quotas of the
cluster are not known here. Exit code 0 when everything could be read, also when nothing was changed.

Examples:
  healthscope inject -f deploy.yaml --ca ca.crt | kubectl apply -f -
  healthscope inject -f deploy.yaml --diff
  kustomize build | healthscope inject -f - > injected.yaml")]
pub(crate) struct InjectArgs {
    /// File or directory of manifests; may be repeated; - is standard input
    #[arg(short, long, value_name = "FILE|DIR", required = true)]
    pub(crate) file: Vec<PathBuf>,
    /// Print what would change instead
    #[arg(long)]
    pub(crate) diff: bool,
    /// Where agents report to. They trust the certificates of --ca, which is written into the pods
    #[arg(
        long,
        value_name = "URL",
        env = "HEALTHSCOPE_AGGREGATOR",
        hide_env_values = true,
        default_value = DEFAULT_AGGREGATOR
    )]
    pub(crate) aggregator: String,
    /// The name in the aggregator's certificate, when it is not the host of its URL
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// The agent's image
    #[arg(long, value_name = "IMAGE", default_value = DEFAULT_IMAGE)]
    pub(crate) image: String,
    /// Let a postStart hook start the runner where nothing else can, for command checks
    #[arg(long)]
    pub(crate) post_start: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  healthscope explain healthscope
  healthscope explain healthscope.spec.policy
  healthscope explain component.spec.readinessProbe.httpGet
  healthscope explain component --recursive
  healthscope explain AgentLost
  healthscope explain reasons")]
pub(crate) struct ExplainArgs {
    /// healthscope or component, then fields with dots; or a health or reason; or reasons, which lists these
    #[arg(value_name = "KIND[.FIELD...]|WORD", required = true)]
    pub(crate) path: String,
    /// All fields below, with their types
    #[arg(long)]
    pub(crate) recursive: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  healthscope version
  healthscope version --client
  healthscope version -o json")]
pub(crate) struct VersionArgs {
    /// Do not ask the aggregator
    #[arg(long)]
    pub(crate) client: bool,
    /// Print an object
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<ObjectOutput>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  healthscope completion bash > /etc/bash_completion.d/healthscope
  source <(healthscope completion zsh)")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DocsArgs {
    /// Which page
    #[arg(value_name = "PAGE")]
    pub(crate) page: Page,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Page {
    /// docs/file-reference.md
    FileReference,
    /// docs/cli.md
    Cli,
    /// charts/healthscope/files/crds/healthscopes.core.oam.dev.yaml
    Crd,
    /// docs/chart.md
    Chart,
}

impl Args {
    /// Reads the command line; prints help or a usage error and ends the process when that is what it asks for.
    ///
    /// Says also who is to be asked.
    pub(crate) fn read() -> (Self, Result<Backend, Failure>) {
        let mut words = std::env::args_os();
        let program = words.next().unwrap_or_else(|| "healthscope".into());
        let matches = Self::invoked_as(&program).get_matches();
        let backend = Backend::choose(&program, &matches);
        (
            Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()),
            backend,
        )
    }

    /// The command line as it presents itself when it is called `program`.
    pub(crate) fn invoked_as(program: &OsString) -> clap::Command {
        let command = Self::command();
        match name_of(program) {
            Name::Program => command,
            Name::Plugin => command.name(PLUGIN).bin_name("kubectl healthscope"),
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// An aggregator at an address.
    Server,
    /// The API server of a Kubernetes cluster.
    Cluster,
}

impl Backend {
    /// Decides by what was typed, then by how the program is called. `HEALTHSCOPE_SERVER` does not count as typed: it
    /// must not turn `kubectl healthscope` away from the cluster.
    fn choose(program: &OsString, matches: &ArgMatches) -> Result<Self, Failure> {
        let is_typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        let cluster = ["context", "kubeconfig", "kubernetes"]
            .into_iter()
            .find(|id| is_typed(id));
        match (is_typed("server"), cluster, name_of(program)) {
            (true, Some(option), _) => Err(Failure::usage(format!(
                "--server names an aggregator and --{option} asks a cluster; leave one of them out"
            ))),
            (true, None, _) | (false, None, Name::Program) => Ok(Self::Server),
            (false, Some(_), _) | (false, None, Name::Plugin) => Ok(Self::Cluster),
        }
    }
}

/// How the user calls this program, for hints in messages.
pub(crate) fn program() -> &'static str {
    match name_of(&std::env::args_os().next().unwrap_or_default()) {
        Name::Program => "healthscope",
        Name::Plugin => "kubectl healthscope",
    }
}

/// What to type to run this program again from the same place.
pub(crate) fn invocation() -> String {
    let typed = std::env::args_os().next().unwrap_or_default();
    match name_of(&typed) {
        Name::Program if typed.to_string_lossy().contains('/') => typed.to_string_lossy().into_owned(),
        Name::Program | Name::Plugin => program().to_owned(),
    }
}

enum Name {
    Program,
    Plugin,
}

/// The words to complete, when kubectl calls this program for that.
pub(crate) fn words_to_complete() -> Option<Vec<OsString>> {
    let mut words = std::env::args_os();
    let program = words.next()?;
    let file = std::path::Path::new(&program).file_stem()?;
    (file == COMPLETER).then(|| words.collect())
}

fn name_of(program: &OsString) -> Name {
    let file = std::path::Path::new(program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    // kubectl turns dashes of a command into underscores of a file name and back.
    if file.replace('_', "-").starts_with(PLUGIN) {
        Name::Plugin
    } else {
        Name::Program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_has_no_contradictions() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        let command = Args::command();
        for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = subcommand.get_name();
            let help = subcommand.clone().render_long_help().to_string();
            assert!(
                help.contains("Examples:") && help.contains(&format!("healthscope {name}")),
                "{help}"
            );
        }
    }

    #[test]
    fn what_is_typed_decides_who_is_asked_and_then_the_name_of_the_program() {
        #[track_caller]
        fn check(line: &str, expected: Result<Backend, &str>) {
            let words: Vec<&str> = line.split(' ').collect();
            let program = words[0].into();
            let matches = Args::invoked_as(&program).get_matches_from(words);
            match (Backend::choose(&program, &matches), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{line}"),
                (Err(Failure::Usage(found)), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{line}: {found:?}"),
            }
        }
        check("healthscope get scopes", Ok(Backend::Server));
        check("healthscope get scopes -n prod", Ok(Backend::Server));
        check("healthscope get scopes -s host:1", Ok(Backend::Server));
        check("healthscope get scopes --kubernetes", Ok(Backend::Cluster));
        check("healthscope --context prod why shop", Ok(Backend::Cluster));
        check("healthscope why shop --kubeconfig file", Ok(Backend::Cluster));
        check("kubectl-healthscope get scopes", Ok(Backend::Cluster));
        check("kubectl-healthscope get scopes -s host:1", Ok(Backend::Server));
        check(
            "kubectl-healthscope get scopes -s host:1 --context prod",
            Err("--server names an aggregator and --context asks a cluster"),
        );
    }

    #[test]
    fn the_plugin_calls_itself_as_kubectl_does() {
        for (program, expected) in [
            ("/usr/bin/healthscope", "Usage: healthscope "),
            ("/usr/bin/kubectl-healthscope", "Usage: kubectl healthscope "),
            ("kubectl_healthscope", "Usage: kubectl healthscope "),
        ] {
            let help = Args::invoked_as(&program.into()).render_help().to_string();
            assert!(help.contains(expected), "{program}: {help}");
        }
    }
}
