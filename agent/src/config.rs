//! What is true: the command line checked as a whole, the files it names read, the defaults filled in.

use {
    crate::{
        app::Pod,
        args::Args,
        local::Local,
        schedule::Limits,
        uplink::{self, Token},
    },
    healthscope_service::{
        tls::{self, TlsError},
        token::{self, TokenError},
    },
    healthscope_shared::{
        config::{self, Component},
        document::{DocumentError, Source},
        name::AgentName,
    },
    rustls::ClientConfig,
    std::{
        env,
        path::{Path, PathBuf},
        sync::Arc,
    },
};

pub mod reader;

/// The kind beside Component that may stand in the files; the aggregator reads it.
const SCOPE_KIND: &str = "HealthScope";

/// Descriptors that this process needs whatever it checks: standard streams, event queue, listeners, the session and the
/// next one, a few who ask its endpoint, a file that is read.
const OWN_DESCRIPTORS: usize = 24;
/// Descriptors that a command needs at most: its output, and its process.
const DESCRIPTORS_PER_COMMAND: usize = 4;

/// Everything but what is watched.
#[derive(Debug)]
pub struct Settings {
    /// Where what is watched is written.
    pub watched: WatchedSource,
    /// What the agent calls itself.
    pub agent: AgentName,
    /// Where it reports to.
    pub uplink: uplink::Config,
    /// Where its own endpoint listens.
    pub local: Local,
    /// What it is given in a pod.
    pub pod: Option<Pod>,
}

/// Where what is watched is written.
#[derive(Debug)]
pub enum WatchedSource {
    /// In a file or a directory of files, which may change.
    Files(PathBuf),
    /// On the command line, for good.
    Given(Source),
}

/// What is wrong with the command line: usage, exit code 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Nothing would be encrypted.
    #[error(
        "{0} is another machine and ws:// is not encrypted: write wss://, or add --allow-plaintext where the network is trusted"
    )]
    Plaintext(String),
    /// A flag that would change nothing.
    #[error("{0} has no effect on ws://: write wss:// in --aggregator")]
    OnlyWithTls(&'static str),
}

/// What is wrong with the files that the command line names: exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Checks what was typed.
///
/// # Errors
/// When its parts contradict each other.
pub fn check(args: &Args) -> Result<(), UsageError> {
    let endpoint = &args.aggregator;
    if endpoint.is_tls() {
        return Ok(());
    }
    if !endpoint.is_loopback() && !args.allow_plaintext {
        return Err(UsageError::Plaintext(endpoint.authority()));
    }
    let only_with_tls = [
        ("--ca", args.ca.is_some()),
        ("--ca-pem", args.ca_pem.is_some()),
        ("--ca-store", args.ca_store.is_some()),
        ("--server-name", args.server_name.is_some()),
    ];
    match only_with_tls.into_iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(UsageError::OnlyWithTls(flag)),
        None => Ok(()),
    }
}

impl Settings {
    /// Reads the files that were named and fills in what was not typed.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(args: Args) -> Result<Self, FileError> {
        let Args {
            config,
            component,
            aggregator,
            ca,
            ca_pem,
            ca_store,
            server_name,
            token_file,
            name,
            socket,
            listen,
            runner_dir,
            pod_ip,
            allow_plaintext,
            log_format: _,
        } = args;
        let watched = match (config, component) {
            (Some(path), _) => WatchedSource::Files(path),
            (None, component) => {
                WatchedSource::Given(Source::new("--component", component.unwrap_or_default()))
            }
        };
        let tls = if aggregator.is_tls() {
            let given = match (&ca, &ca_pem) {
                (Some(path), _) => Authorities::File(path),
                (None, Some(pem)) => Authorities::Pem(pem),
                (None, None) => Authorities::OfMachine,
            };
            Some(trust(given, ca_store.as_deref())?)
        } else {
            None
        };
        let token = match token_file {
            Some(path) => {
                // Read again for each connection; an agent does not start with one that cannot be.
                token::read(&path)?;
                Token::File(path)
            }
            None => Token::None,
        };
        Ok(Self {
            watched,
            agent: name.unwrap_or_else(host_name),
            uplink: uplink::Config {
                endpoint: aggregator,
                tls,
                server_name,
                token,
                ca_store,
                allow_plaintext,
            },
            local: Local {
                unix: Some(socket.unwrap_or_else(default_socket)),
                tcp: listen,
            },
            pod: runner_dir.map(|runner_dir| Pod {
                runner_dir,
                addresses: pod_ip,
            }),
        })
    }
}

/// As many runs at once as the process has descriptors for: the others wait in turn, and what the agent itself needs is
/// left.
#[must_use]
pub fn limits(descriptors: u64) -> Limits {
    let Limits { network, command } = Limits::default();
    let free = usize::try_from(descriptors)
        .unwrap_or(usize::MAX)
        .saturating_sub(OWN_DESCRIPTORS);
    // Half for commands at most.
    let command = command.min(free / 2 / DESCRIPTORS_PER_COMMAND).max(1);
    let network = network
        .min(free.saturating_sub(command * DESCRIPTORS_PER_COMMAND))
        .max(1);
    Limits { network, command }
}

/// Whom the command line says to trust.
#[derive(Clone, Copy, Debug)]
enum Authorities<'a> {
    File(&'a Path),
    Pem(&'a str),
    OfMachine,
}

/// The certificates kept from an earlier session win: the aggregator sent them to replace those of the command line.
fn trust(given: Authorities<'_>, store: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    if let Some(store) = store.filter(|store| store.exists()) {
        match tls::client_config(Some(store)) {
            Ok(config) => return Ok(config),
            Err(error) => tracing::warn!(
                path = %store.display(),
                %error,
                "the certificates that were kept cannot be used; trusting those of the command line"
            ),
        }
    }
    match given {
        Authorities::File(path) => tls::client_config(Some(path)),
        Authorities::Pem(pem) => tls::client_config_from_pem(Path::new("--ca-pem"), pem.as_bytes()),
        Authorities::OfMachine => tls::client_config(None),
    }
}

fn host_name() -> AgentName {
    AgentName::from_host(&rustix::system::uname().nodename().to_string_lossy())
}

fn default_socket() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => Path::new(&directory).join("healthscope-agent.sock"),
        None => {
            let user = rustix::process::getuid().as_raw();
            env::temp_dir().join(format!("healthscope-agent-{user}.sock"))
        }
    }
}

/// The Components in the files. HealthScopes may stand beside them: one directory serves both programs.
///
/// # Errors
/// Everything that cannot be used.
pub fn components(sources: &[Source]) -> Result<Arc<Vec<Component>>, Vec<DocumentError>> {
    let documents = config::read(sources)?;
    let errors: Vec<DocumentError> = documents
        .others
        .iter()
        .filter(|document| document.type_meta.kind != SCOPE_KIND)
        .map(|document| DocumentError {
            place: document.locate("kind"),
            message: format!(
                "kind: {:?} is not known here; write {} (or {SCOPE_KIND}, which the aggregator reads)",
                healthscope_shared::truncate(&document.type_meta.kind, 80),
                config::COMPONENT_KIND,
            ),
        })
        .collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Arc::new(
        documents
            .components
            .into_iter()
            .map(|(component, _)| component)
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use {super::*, clap::Parser};

    fn check_usage(arguments: &[&str], expected: Result<(), &str>) {
        let typed = ["healthscope-agent", "--config", "x"]
            .iter()
            .chain(arguments)
            .copied();
        let result = match Args::try_parse_from(typed) {
            Ok(args) => check(&args).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match (&result, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) if error.contains(part) => {}
            _ => panic!("{arguments:?}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn plaintext_needs_loopback_or_a_flag() {
        check_usage(&["--aggregator", "ws://localhost:7575"], Ok(()));
        check_usage(&["--aggregator", "ws://[::1]:7575"], Ok(()));
        check_usage(&["--aggregator", "wss://scope.example.org"], Ok(()));
        check_usage(
            &["--aggregator", "ws://scope.example.org"],
            Err("scope.example.org:80 is another machine"),
        );
        check_usage(
            &["--aggregator", "ws://scope.example.org", "--allow-plaintext"],
            Ok(()),
        );
    }

    #[test]
    fn flags_without_effect_are_named() {
        check_usage(
            &["--aggregator", "ws://localhost", "--ca", "ca.pem"],
            Err("--ca has no effect on ws://"),
        );
        check_usage(
            &["--aggregator", "https://scope"],
            Err("the scheme \"https\" is not spoken"),
        );
        check_usage(
            &["--aggregator", "wss://scope", "--name", "No Name"],
            Err("not a valid agent name"),
        );
    }

    #[test]
    fn runs_at_once_leave_descriptors_for_the_agent() {
        for (descriptors, network, command) in [
            (4096, 256, 16),
            (256, 168, 16),
            (64, 20, 5),
            (32, 4, 1),
            (10, 1, 1),
        ] {
            let limits = limits(descriptors);
            assert_eq!(
                (limits.network, limits.command),
                (network, command),
                "{descriptors}"
            );
        }
    }

    #[test]
    fn scopes_may_stand_beside_components_and_nothing_else() {
        let read = |text: &str| components(&[Source::new("x.yaml", text)]);
        let component = "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\n\
                         spec: {readinessProbe: {tcpSocket: {port: 80}}}\n";
        let scope =
            "---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: shop}\nspec: {}\n";
        assert_eq!(read(&format!("{component}{scope}")).unwrap().len(), 1);
        let errors = read(&format!("{component}---\napiVersion: v1\nkind: Pod\n")).unwrap_err();
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "x.yaml:7:1: kind: \"Pod\" is not known here; write Component (or HealthScope, which the aggregator reads)"
            ]
        );
    }

    #[test]
    fn a_broken_store_does_not_win() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store.pem");
        let ca = directory.path().join("ca.pem");
        let certificate = rcgen::generate_simple_self_signed(vec!["scope".to_owned()]).unwrap();
        std::fs::write(&ca, certificate.cert.pem()).unwrap();
        std::fs::write(&store, "half a file").unwrap();
        assert!(trust(Authorities::File(&ca), Some(&store)).is_ok());
        let pem = certificate.cert.pem();
        assert!(trust(Authorities::Pem(&pem), Some(&store)).is_ok());
        std::fs::write(&store, pem).unwrap();
        let nowhere = Authorities::File(Path::new("/nowhere"));
        assert!(trust(nowhere, Some(&store)).is_ok());
        assert!(trust(nowhere, None).is_err());
        let error = trust(Authorities::Pem("half a file"), None).unwrap_err();
        assert!(error.to_string().contains("--ca-pem"), "{error}");
    }
}
