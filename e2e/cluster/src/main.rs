//! `cargo xtask cluster`: a Kubernetes on this machine for a developer, and what its tests need before they run.
//!
//! Everything is in the library; here are only the words.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command does is said to whoever runs it"
)]

use {
    clap::{Parser, Subcommand, ValueEnum},
    healthscope_e2e_cluster::{
        Audit, Binaries, Component, Options, Program, Version, developer, prerequisite,
    },
    std::{
        env,
        process::{Command, ExitCode},
    },
};

#[derive(Parser)]
#[command(
    name = "cargo xtask cluster",
    about = "A real Kubernetes on this machine",
    disable_help_subcommand = true
)]
struct Args {
    /// Which one, when several are up.
    #[arg(long, default_value = developer::NAME)]
    name: String,
    #[command(subcommand)]
    command: Words,
}

#[derive(Subcommand)]
enum Words {
    /// Start one in the background; the first time everything is built, which takes a quarter of an hour.
    Up(Start),
    /// Stop it.
    Down {
        /// Stop all that are up, and take away what killed runs left.
        #[arg(long)]
        all: bool,
    },
    /// Run kubectl as its administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the Helm that charts are tested with; as its administrator when it is up.
    Helm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Print a component's log.
    Logs {
        component: Component,
        /// Go on with what is added.
        #[arg(long, short)]
        follow: bool,
    },
    /// Print the Debian packages that are missing, one in a line.
    Missing {
        /// For a node, not only for a control plane.
        #[arg(long)]
        node: bool,
    },
    /// Build all programs, of all versions.
    Build,
    /// Take away what killed runs left.
    #[command(hide = true)]
    Sweep,
    /// Start one and hold it; what `up` runs in the background.
    #[command(hide = true)]
    Hold(Start),
}

#[derive(clap::Args)]
struct Start {
    /// Minor version of Kubernetes: 1.34 or 1.36.
    #[arg(long, default_value_t)]
    version: Version,
    /// With a node that runs pods; takes root.
    #[arg(long)]
    node: bool,
    /// With a controller manager, which a node has always.
    #[arg(long)]
    controller_manager: bool,
    /// With an audit log, `audit.log` beside the kubeconfig.
    #[arg(long, value_name = "LEVEL")]
    audit: Option<AuditLevel>,
    /// Let etcd write to the disk before it answers.
    #[arg(long)]
    fsync: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum AuditLevel {
    Metadata,
    Request,
    RequestResponse,
}

impl Start {
    fn options(&self, name: &str) -> Options {
        let Self {
            version,
            node,
            controller_manager,
            audit,
            fsync,
        } = self;
        let base = if *node {
            Options::node()
        } else {
            Options::control_plane()
        };
        Options {
            version: *version,
            controller_manager: base.controller_manager || *controller_manager,
            audit: audit.map(|level| match level {
                AuditLevel::Metadata => Audit::Metadata,
                AuditLevel::Request => Audit::Request,
                AuditLevel::RequestResponse => Audit::RequestResponse,
            }),
            fsync: *fsync,
            name: Some(name.to_owned()),
            ..base
        }
    }

    /// The same, as words.
    fn words(&self) -> Vec<String> {
        let Self {
            version,
            node,
            controller_manager,
            audit,
            fsync,
        } = self;
        let mut words = vec![format!("--version={version}")];
        let flags = [
            ("--node", node),
            ("--controller-manager", controller_manager),
            ("--fsync", fsync),
        ];
        words.extend(
            flags
                .iter()
                .filter(|(_, is_set)| **is_set)
                .map(|(flag, _)| (*flag).to_owned()),
        );
        if let Some(level) = audit.as_ref().and_then(ValueEnum::to_possible_value) {
            words.push(format!("--audit={}", level.get_name()));
        }
        words
    }
}

fn main() -> ExitCode {
    perform(Args::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(args: Args) -> anyhow::Result<ExitCode> {
    let Args { name, command } = args;
    match command {
        Words::Up(start) => {
            let mut hold = Command::new(env::current_exe()?);
            hold.args(["--name", &name, "hold"]).args(start.words());
            println!("{}", developer::up(&start.options(&name), &mut hold)?);
        }
        Words::Hold(start) => developer::hold(&start.options(&name))?,
        Words::Down { all: false } => developer::down(&name)?,
        Words::Down { all: true } => {
            for stopped in developer::down_all()? {
                println!("stopped {stopped}");
            }
        }
        Words::Kubectl { arguments } => return run(developer::kubectl(&name)?.args(arguments)),
        Words::Helm { arguments } => return run(developer::helm(&name)?.args(arguments)),
        Words::Logs { component, follow } => return run(&mut developer::log(&name, component, follow)?),
        Words::Missing { node } => {
            let options = if node {
                Options::node()
            } else {
                Options::control_plane()
            };
            for package in prerequisite::missing(&options.packages()) {
                println!("{package}");
            }
        }
        Words::Sweep => healthscope_e2e_cluster::sweep()?,
        Words::Build => {
            prerequisite::check(&Options::node().packages())?;
            for version in Version::ALL {
                Binaries::ensure(&Program::CONTROL_PLANE, version)?;
            }
            Binaries::ensure(&Program::ALL, Version::NEWEST)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command with this terminal, and ends as it ends.
fn run(command: &mut Command) -> anyhow::Result<ExitCode> {
    let status = command.status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_process_is_told_the_same() {
        let words = [
            "x",
            "--name",
            "a",
            "up",
            "--node",
            "--audit=request-response",
            "--fsync",
        ];
        let Words::Up(start) = Args::try_parse_from(words).unwrap().command else {
            panic!("up");
        };
        let again = ["x", "hold"].map(str::to_owned).into_iter().chain(start.words());
        let Words::Hold(held) = Args::try_parse_from(again).unwrap().command else {
            panic!("hold");
        };
        assert_eq!(
            format!("{:?}", start.options("a")),
            format!("{:?}", held.options("a"))
        );
    }

    #[test]
    fn kubectl_gets_its_own_flags() {
        let words = ["x", "kubectl", "get", "pods", "-A", "--name=y"];
        let args = Args::try_parse_from(words).unwrap();
        let Words::Kubectl { arguments } = args.command else {
            panic!("kubectl");
        };
        assert_eq!(arguments, ["get", "pods", "-A", "--name=y"]);
    }
}
