//! `cargo xtask arm64`: what is put into pods, built for arm64 on a machine that is none, and run in an emulator.
//!
//! The emulator is made known to the kernel in a user namespace of its own, so nobody else on this machine meets it. It
//! runs our programs alone: tests, and the commands that our programs start, are this machine's.

mod toolchain;

use {
    crate::{
        prerequisite::{self, Prerequisite},
        run, runner, test,
    },
    anyhow::{Context, bail},
    std::{
        env,
        path::{Path, PathBuf},
        process::Command,
    },
    toolchain::Toolchain,
};

const TARGET: &str = "aarch64-unknown-linux-musl";

const C_COMPILER: &str = "aarch64-linux-gnu-gcc";

/// The largest image for pods.
const MAX_IMAGE_BYTES: u64 = 6_000_000;

/// Says to the process tests which agent they test, instead of the one that cargo has built for them.
pub(crate) const AGENT_VARIABLE: &str = "HEALTHSCOPE_TEST_AGENT";

/// The same of the runner.
pub(crate) const RUNNER_VARIABLE: &str = "HEALTHSCOPE_TEST_RUNNER";

/// Tests that fail in the emulator, and what it does otherwise than a kernel.
const NOT_EMULATED: [(&str, &str); 4] = [
    (
        "exec::environment_directory_and_umask_are_its_own",
        "turns the order of environment variables round",
    ),
    (
        "exec::signals_are_its_own",
        "does not pass on which real-time signals are ignored",
    ),
    (
        "serve::a_command_that_leaves_something_with_its_output_is_not_waited_for",
        "does not know PR_SET_CHILD_SUBREAPER",
    ),
    (
        "serve::a_first_process_that_does_not_reap_is_given_nothing_to_reap",
        "does not know PR_SET_CHILD_SUBREAPER",
    ),
];

/// How the kernel tells a program of arm64, and that the emulator gets it with its first argument as it is.
const RECOGNISED: &str = r":healthscope-arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:";

/// Makes the emulator known in the namespace that it runs in, and becomes the command behind it.
const REGISTER: &str = "set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf %s \"$1\" > /proc/sys/fs/binfmt_misc/register
shift
exec \"$@\"";

pub(crate) fn run() -> anyhow::Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!(
            "this is for machines of x86_64, and this one is {}; one of arm64 needs no emulator",
            env::consts::ARCH
        );
    }
    let folder = run::target_directory()?.join("arm64");

    println!("==> preparing a toolchain for {TARGET}");
    install_prerequisites()?;
    let toolchain = Toolchain::prepare(&folder.join("toolchain"))?;

    println!("==> building agent and runner as the image has them");
    let programs = Programs::build(&toolchain, &folder.join("build"))?;

    println!("==> running them in the emulator");
    for program in [&programs.agent, &programs.runner] {
        let words = [program.as_os_str(), "--version".as_ref()];
        let said = run::output(emulated(&toolchain).args(words)).context(
            "the emulator could not be used (it takes Linux 6.7 or newer, and user namespaces that this user may make)",
        )?;
        print!("    {said}");
    }

    println!("==> testing them");
    run::status(run::cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    test_emulated(&toolchain, &programs)
}

/// For linking, and for ring, which is C in part.
fn install_prerequisites() -> anyhow::Result<()> {
    let program = |program, package| Prerequisite { program, package };
    prerequisite::install(&[
        program("apt-get", "apt"),
        program("dpkg-deb", "dpkg"),
        program("unshare", "util-linux"),
        program("mount", "mount"),
        program(C_COMPILER, "gcc-aarch64-linux-gnu"),
    ])?;
    if !Path::new("/usr/aarch64-linux-gnu/include/stdint.h").is_file() {
        prerequisite::install_packages(&["libc6-dev-arm64-cross"])?;
    }
    Ok(())
}

/// What is in the image.
struct Programs {
    agent: PathBuf,
    runner: PathBuf,
}

impl Programs {
    fn build(toolchain: &Toolchain, folder: &Path) -> anyhow::Result<Self> {
        let (agent, agent_size) = build(toolchain, folder, "healthscope-agent", "dist")?;
        let (runner, runner_size) = build(toolchain, folder, "healthscope-runner", "runner")?;
        runner::check_size(runner_size)?;
        let together = agent_size + runner_size;
        println!("    together {together} bytes");
        if together > MAX_IMAGE_BYTES {
            bail!("the image has {together} bytes and may have {MAX_IMAGE_BYTES}");
        }
        Ok(Self { agent, runner })
    }
}

/// A program, and how large it is.
fn build(
    toolchain: &Toolchain,
    folder: &Path,
    package: &str,
    profile: &str,
) -> anyhow::Result<(PathBuf, u64)> {
    run::status(
        toolchain
            .cargo()
            .args(["build", "--locked", "--target", TARGET])
            .args(["--config", &format!("target.{TARGET}.linker=\"{C_COMPILER}\"")])
            .args(["--profile", profile, "--package", package])
            .env("TARGET_CC", C_COMPILER)
            .env("CARGO_TARGET_DIR", folder),
    )?;
    let program = folder.join(TARGET).join(profile).join(package);
    let size = run::built(&program)?;
    Ok((program, size))
}

/// The process tests of agent and runner, and those of all programs together, where the aggregator is this machine's.
fn test_emulated(toolchain: &Toolchain, programs: &Programs) -> anyhow::Result<()> {
    let mut command = emulated(toolchain);
    command.arg(run::cargo().get_program()).args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--test",
        "process",
        "--",
    ]);
    for (name, why) in NOT_EMULATED {
        println!("    without {name}: the emulator {why}");
        command.args(["--skip", name]);
    }
    for name in test::UNSET {
        command.env_remove(name);
    }
    run::status(
        command
            .env(AGENT_VARIABLE, &programs.agent)
            .env(RUNNER_VARIABLE, &programs.runner),
    )
}

/// Runs the program that is its first argument, where programs of arm64 can be executed.
fn emulated(toolchain: &Toolchain) -> Command {
    let mut command = run::command("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", REGISTER, "sh"])
        // P: the first argument stays. F: found now, whatever the namespace of a later process.
        .arg(format!("{RECOGNISED}{}:PF", toolchain.emulator().display()));
    command
}
