//! The programs that a cluster is made of: built from source once, then found in the user's cache folder.
//!
//! Each upstream has a Go module of its own in `e2e/cluster/go`, because they pin each other's dependencies: one
//! module for all does not resolve. The folder in the cache is keyed by versions, checksums and flags, so a changed
//! `go.mod` builds anew and nothing stale is ever run. Only the ordinary `go` command is used, with the user's own
//! settings.

use {
    crate::{tell::tell, version::Version},
    anyhow::{Context, bail},
    std::{
        collections::{BTreeMap, VecDeque},
        env, fmt,
        fs::{self, File},
        io::{BufRead, BufReader, Read},
        path::{Path, PathBuf},
        process::{Command, Stdio},
        time::{Duration, Instant},
    },
};

/// Time between two lines about a build that goes on.
const PROGRESS: Duration = Duration::from_secs(15);

/// Lines of a failed build that are shown: enough for a compiler's complaint and what it stems from.
const SHOWN: usize = 30;

/// A program that a cluster, or a test, starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Program {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Containerd,
    ContainerdShim,
    Ctr,
    Runc,
    CoreDns,
    Helm,
    Pause,
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 14] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Kubectl,
        Self::Containerd,
        Self::ContainerdShim,
        Self::Ctr,
        Self::Runc,
        Self::CoreDns,
        Self::Helm,
        Self::Pause,
    ];

    /// What the control plane and the tests that use it alone need.
    pub const CONTROL_PLANE: [Self; 4] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Kubectl,
    ];

    /// What a whole node needs; Helm is no part of it.
    pub const NODE: [Self; 13] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Kubectl,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShim,
        Self::Ctr,
        Self::Runc,
        Self::CoreDns,
        Self::Pause,
    ];

    /// The name of the file, which some of the programs look each other up by.
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Containerd => "containerd",
            Self::ContainerdShim => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::Runc => "runc",
            Self::CoreDns => "coredns",
            Self::Helm => "helm",
            Self::Pause => "pause",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Scheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kubelet => "k8s.io/kubernetes/cmd/kubelet",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Containerd => "github.com/containerd/containerd/v2/cmd/containerd",
            Self::ContainerdShim => "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            Self::Ctr => "github.com/containerd/containerd/v2/cmd/ctr",
            Self::Runc => "github.com/opencontainers/runc",
            Self::CoreDns => "github.com/coredns/coredns",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
            Self::Pause => ".",
        }
    }

    /// The file that `go install` makes of the package: its last word that is no major version.
    fn built_name(self) -> &'static str {
        match self {
            Self::Etcd => "server",
            other => other.name(),
        }
    }

    fn module(self, version: Version) -> Module {
        let plain = |name| Module {
            name,
            tags: "",
            cgo: false,
        };
        match self {
            Self::Etcd => plain("etcd"),
            Self::ApiServer | Self::ControllerManager => plain(version.module()),
            Self::Scheduler | Self::Kubelet | Self::KubeProxy | Self::Kubectl => {
                plain(Version::NEWEST.module())
            }
            Self::Containerd | Self::ContainerdShim | Self::Ctr => Module {
                name: "containerd",
                tags: "no_btrfs no_devmapper no_zfs",
                cgo: false,
            },
            // Without seccomp no pod with `seccompProfile: RuntimeDefault` starts, and libseccomp is C.
            Self::Runc => Module {
                name: "runc",
                tags: "seccomp",
                cgo: true,
            },
            Self::CoreDns => plain("coredns"),
            Self::Helm => plain("helm"),
            Self::Pause => plain("pause"),
        }
    }
}

/// A Go module below `e2e/cluster/go`, and how it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Module {
    name: &'static str,
    tags: &'static str,
    cgo: bool,
}

impl Module {
    fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(self.name)
    }

    /// The files that say what is built, by name.
    fn files(self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let source = self.source();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(name, content);
        }
        Ok(files)
    }
}

/// Flags of the linker: no debug information, and Kubernetes' own version, which `/version` and Helm's capabilities
/// would otherwise get wrong.
fn link_flags(go_mod: &str) -> anyhow::Result<String> {
    let mut flags = "-s -w".to_owned();
    let kubernetes = go_mod.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("require ");
        line.strip_prefix("k8s.io/kubernetes v")
    });
    if let Some(version) = kubernetes {
        let (major, minor) = version
            .split_once('.')
            .and_then(|(major, rest)| Some((major, rest.split_once('.')?.0)))
            .with_context(|| format!("{version} is no version of three numbers"))?;
        let package = "k8s.io/component-base/version";
        flags.push_str(&format!(
            " -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        ));
    }
    Ok(flags)
}

/// Where to find the programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    paths: BTreeMap<Program, PathBuf>,
}

impl Binaries {
    /// Finds the programs in the cache, and builds the missing ones first.
    ///
    /// A build says on standard error how far it is. Two runs that need the same build do it once: the second waits.
    pub fn ensure(programs: &[Program], version: Version) -> anyhow::Result<Self> {
        let cache = cache_folder()?;
        let mut wanted: BTreeMap<Module, Vec<Program>> = BTreeMap::new();
        for program in programs {
            wanted.entry(program.module(version)).or_default().push(*program);
        }
        let mut paths = BTreeMap::new();
        for (module, programs) in wanted {
            let build = Build::new(module, &cache)?;
            build.ensure(&programs)?;
            for program in programs {
                paths.insert(program, build.folder.join(program.name()));
            }
        }
        Ok(Self { paths })
    }

    /// The program's file.
    ///
    /// # Panics
    ///
    /// When the program was not among those asked for.
    #[must_use]
    pub fn path(&self, program: Program) -> &Path {
        self.paths
            .get(&program)
            .unwrap_or_else(|| panic!("{program} was not asked for from Binaries::ensure"))
    }
}

/// `$XDG_CACHE_HOME/healthscope/bin`, by default below `~/.cache`.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => {
            let home = env::var_os("HOME")
                .context("neither XDG_CACHE_HOME nor HOME is set, so there is no cache folder")?;
            Path::new(&home).join(".cache")
        }
    };
    Ok(cache.join("healthscope/bin"))
}

/// One module's build with one set of flags.
struct Build {
    module: Module,
    link_flags: String,
    /// Where the finished programs are.
    folder: PathBuf,
}

impl Build {
    fn new(module: Module, cache: &Path) -> anyhow::Result<Self> {
        let files = module.files()?;
        let go_mod = files
            .get("go.mod")
            .with_context(|| format!("{} has no go.mod", module.source().display()))?;
        let link_flags = link_flags(&String::from_utf8_lossy(go_mod))?;
        let key = key(module, &link_flags, &files);
        Ok(Self {
            module,
            link_flags,
            folder: cache.join(format!("{}-{key}", module.name)),
        })
    }

    fn missing(&self, programs: &[Program]) -> Vec<Program> {
        let is_missing = |program: &Program| !is_program(&self.folder.join(program.name()));
        programs.iter().copied().filter(is_missing).collect()
    }

    fn ensure(&self, programs: &[Program]) -> anyhow::Result<()> {
        if self.missing(programs).is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        let lock_file = self.folder.join(".lock");
        let lock =
            File::create(&lock_file).with_context(|| format!("cannot make {}", lock_file.display()))?;
        if lock.try_lock().is_err() {
            tell(&format!(
                "{} is being built by somebody else; waiting for it",
                self.module.name
            ));
            lock.lock()
                .with_context(|| format!("cannot lock {}", lock_file.display()))?;
        }
        let missing = self.missing(programs);
        if missing.is_empty() {
            return Ok(());
        }
        self.build(&missing)
        // The lock goes with its file, here or when this process ends.
    }

    fn build(&self, programs: &[Program]) -> anyhow::Result<()> {
        let name = self.module.name;
        let names: Vec<&str> = programs.iter().map(|program| program.name()).collect();
        tell(&format!(
            "building {} of {name}, once; it is kept in {}",
            names.join(", "),
            self.folder.display()
        ));
        let begun = Instant::now();
        let unfinished = tempfile::Builder::new()
            .prefix(".build-")
            .tempdir_in(&self.folder)
            .with_context(|| format!("cannot make a folder in {}", self.folder.display()))?;
        // As one would type it in the module's folder; `-v` tells each package, which shows progress.
        let mut go = Command::new("go");
        go.current_dir(self.module.source()).args([
            "install",
            "-v",
            "-trimpath",
            "-ldflags",
            &self.link_flags,
        ]);
        if !self.module.tags.is_empty() {
            go.args(["-tags", self.module.tags]);
        }
        go.args(programs.iter().map(|program| program.package()))
            .env("GOBIN", unfinished.path())
            .env("GOWORK", "off")
            .env("CGO_ENABLED", if self.module.cgo { "1" } else { "0" });
        follow(name, &mut go)?;
        for program in programs {
            let built = unfinished.path().join(program.built_name());
            let kept = self.folder.join(program.name());
            fs::rename(&built, &kept)
                .with_context(|| format!("go install of {name} made no {}", built.display()))?;
        }
        tell(&format!("built {name} in {:.0} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// Whether the file is a program as Go makes them: neither a script that stands in for one nor what a full disk left.
fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// Runs a build and tells how far it is.
fn follow(name: &str, go: &mut Command) -> anyhow::Result<()> {
    let mut child = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run go; install Go 1.26 or newer, from https://go.dev/dl")?;
    let stderr = child.stderr.take().expect("standard error is piped");
    let mut downloaded = 0_u32;
    let mut compiled = 0_u32;
    let mut last_lines = VecDeque::with_capacity(SHOWN);
    let begun = Instant::now();
    let mut said = begun;
    for line in BufReader::new(stderr).lines() {
        let line = line.context("cannot read what go says")?;
        if line.starts_with("go: downloading ") {
            downloaded += 1;
        } else {
            compiled += 1;
        }
        if last_lines.len() == SHOWN {
            last_lines.pop_front();
        }
        last_lines.push_back(line);
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            tell(&format!(
                "{name}: {downloaded} modules fetched, {compiled} packages compiled, {:.0} s",
                begun.elapsed().as_secs_f64()
            ));
        }
    }
    let status = child.wait().context("cannot wait for go")?;
    if !status.success() {
        let lines: Vec<String> = last_lines.into();
        bail!(
            "cannot build {name}: go install ended with {status}\n{}",
            lines.join("\n")
        );
    }
    Ok(())
}

/// Names what a build comes from: versions, checksums, own sources, flags and the machine it is for.
fn key(module: Module, link_flags: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut add = |part: &[u8]| {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    };
    for (name, content) in files {
        add(name.as_bytes());
        add(content);
    }
    add(module.tags.as_bytes());
    add(link_flags.as_bytes());
    add(if module.cgo { b"cgo" } else { b"" });
    add(env::consts::ARCH.as_bytes());
    let digest = context.finish();
    digest.as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_names_the_packages_that_are_built_from_it() {
        for version in Version::ALL {
            for program in Program::ALL {
                let module = program.module(version);
                let files = module.files().unwrap();
                let go_mod = String::from_utf8_lossy(&files["go.mod"]).into_owned();
                if program != Program::Pause {
                    assert!(go_mod.contains(program.package()), "{module:?} lacks {program}");
                    assert!(files.contains_key("go.sum"), "{module:?} has no checksums");
                }
            }
        }
    }

    #[test]
    fn the_node_is_the_control_plane_and_more() {
        for program in Program::CONTROL_PLANE {
            assert!(Program::NODE.contains(&program), "{program}");
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        assert_eq!(
            link_flags("require go.etcd.io/etcd/server/v3 v3.7.3").unwrap(),
            "-s -w"
        );
        let package = "k8s.io/component-base/version";
        assert_eq!(
            link_flags("module x\n\nrequire k8s.io/kubernetes v1.36.3\n").unwrap(),
            format!("-s -w -X {package}.gitVersion=v1.36.3 -X {package}.gitMajor=1 -X {package}.gitMinor=36")
        );
    }

    #[test]
    fn what_is_no_program_is_built_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coredns");
        assert!(!is_program(&path));
        fs::write(&path, "#!/bin/sh\nexec httpd\n").unwrap();
        assert!(!is_program(&path));
        fs::write(&path, "").unwrap();
        assert!(!is_program(&path));
        assert!(is_program(&env::current_exe().unwrap()));
    }

    #[test]
    fn another_flag_or_version_has_another_key() {
        let module = Program::Runc.module(Version::NEWEST);
        let files = BTreeMap::from([("go.mod".to_owned(), b"a".to_vec())]);
        let first = key(module, "-s", &files);
        assert_eq!(first, key(module, "-s", &files));
        assert_ne!(first, key(module, "-s -w", &files));
        assert_ne!(first, key(Module { tags: "", ..module }, "-s", &files));
        let newer = BTreeMap::from([("go.mod".to_owned(), b"b".to_vec())]);
        assert_ne!(first, key(module, "-s", &newer));
    }
}
