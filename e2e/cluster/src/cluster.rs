//! A running cluster: starting it in order, using it, breaking parts of it, and stopping it.

use {
    crate::{
        api::{self, Api},
        binaries::{Binaries, Program},
        cgroup,
        component::Component,
        configuration::{self, Credential},
        dns,
        folder::{Folder, Ready, Recorded},
        identity::{Authority, Certificate, KeyKind, ServiceAccountKeys, random_token, write},
        image::Image,
        lookup::wait_for,
        network::Network,
        prerequisite,
        process::{Identity, Place, Plan, Process},
        relay::Relay,
        sandbox,
        tell::{seconds, tell},
        version::Version,
    },
    anyhow::{Context, anyhow, bail},
    rustix::process::Signal,
    serde_json::Value,
    std::{
        collections::BTreeMap,
        ffi::{OsStr, OsString},
        fs::{self, File},
        io::Write,
        net::{IpAddr, Ipv4Addr, SocketAddr},
        path::{Path, PathBuf},
        process::{Command, Stdio},
        sync::{
            Arc, Mutex, PoisonError,
            atomic::{AtomicU32, Ordering},
        },
        time::{Duration, Instant},
    },
};

/// How long one step of a start may take. Idle machines need a second or two for the slowest; with others at work on
/// two cores, ten times that was seen.
const STEP: Duration = Duration::from_secs(120);

/// What the API server writes about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Who asked for what, and the answer's code.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which Kubernetes.
    pub version: Version,
    /// A node that runs pods, with Services and DNS; [`Version::NEWEST`] only. Takes root.
    pub node: bool,
    /// Owner references, Jobs, Deployments, the deletion of namespaces and ServiceAccounts take a controller manager.
    /// A node has it always. Without it, pods are accepted although their ServiceAccount does not exist.
    pub controller_manager: bool,
    /// A network of its own, so that it can be cut with firewall rules; a node has it always. Takes root.
    pub own_network: bool,
    /// Write an audit log.
    pub audit: Option<Audit>,
    /// Let etcd write to the disk before it answers: slower, and what figures must be taken with.
    pub fsync: bool,
    /// What ServiceAccount tokens are signed with.
    pub key_kind: KeyKind,
    /// More arguments for the API server, after the others.
    pub api_server_arguments: Vec<String>,
    /// Known by this name to `cargo xtask cluster`.
    pub name: Option<String>,
}

impl Options {
    /// etcd and an API server of the version that this run is about.
    #[must_use]
    pub fn control_plane() -> Self {
        Self {
            version: Version::of_this_run(),
            node: false,
            controller_manager: false,
            own_network: false,
            audit: None,
            fsync: false,
            key_kind: KeyKind::default(),
            api_server_arguments: Vec::new(),
            name: None,
        }
    }

    /// Everything, with one node.
    #[must_use]
    pub fn node() -> Self {
        Self {
            version: Version::NEWEST,
            node: true,
            controller_manager: true,
            own_network: true,
            ..Self::control_plane()
        }
    }

    /// The programs that it takes.
    #[must_use]
    pub fn programs(&self) -> &'static [Program] {
        if self.node || self.own_network {
            &Program::NODE
        } else {
            &Program::CONTROL_PLANE
        }
    }

    /// The packages that it takes.
    #[must_use]
    pub fn packages(&self) -> Vec<prerequisite::Package> {
        let mut packages = prerequisite::CONTROL_PLANE.to_vec();
        if self.node || self.own_network {
            packages.extend(prerequisite::NODE);
        }
        packages
    }
}

/// A cluster that runs until it is dropped, or the process that started it ends.
///
/// It can be shared between threads. A static one is not dropped; its processes end with the program, and the next run
/// takes its folder away.
pub struct Cluster {
    options: Options,
    binaries: Binaries,
    folder: Folder,
    authority: Authority,
    keys: ServiceAccountKeys,
    token: String,
    /// Where the API server listens, in the cluster's network.
    address: SocketAddr,
    processes: Mutex<BTreeMap<Component, Arc<Process>>>,
    sandbox: Option<u32>,
    network: Network,
    relay: Option<Relay>,
    api: Api,
    images: AtomicU32,
    started_in: Duration,
    is_stopped: bool,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("options", &self.options)
            .field("folder", &self.folder.path())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Builds what is not built, starts everything and waits until it is ready.
    ///
    /// An error shows how the log of the part ends that failed; what had been started is stopped.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let mut options = options.clone();
        if options.node {
            options.controller_manager = true;
            options.own_network = true;
            if options.version != Version::NEWEST {
                bail!(
                    "a node is built of Kubernetes {} only; of {} there is the control plane",
                    Version::NEWEST,
                    options.version
                );
            }
        }
        if options.own_network && !rustix::process::getuid().is_root() {
            bail!("a network of its own, and so a node, takes root");
        }
        prerequisite::check(&options.packages())?;
        let binaries = Binaries::ensure(options.programs(), options.version)?;

        let begun = Instant::now();
        let folder = Folder::create(options.name.as_deref())?;
        // From here on `Cluster::drop` stops and takes away what there is.
        let mut cluster = Self::prepare(options, binaries, folder)?;
        if cluster.options.own_network {
            cluster.start_sandbox()?;
        }
        cluster.start_control_plane()?;
        if cluster.options.node {
            cluster.start_node()?;
        }
        cluster.started_in = begun.elapsed();
        cluster.publish()?;
        let what = if cluster.options.node {
            "node"
        } else {
            "control plane"
        };
        tell(&format!(
            "Kubernetes {} {what} started in {}",
            cluster.options.version,
            seconds(cluster.started_in)
        ));
        Ok(cluster)
    }

    fn prepare(options: Options, binaries: Binaries, folder: Folder) -> anyhow::Result<Self> {
        let prepared = || -> anyhow::Result<_> {
            let authority = Authority::create(folder.path().join("pki"))?;
            let keys =
                ServiceAccountKeys::create(&folder.path().join("pki"), "service-accounts", options.key_kind)?;
            let token = random_token()?;
            let address = if options.own_network {
                SocketAddr::from((sandbox::NODE_ADDRESS, configuration::API_PORT))
            } else {
                SocketAddr::from((Ipv4Addr::LOCALHOST, folder.port()))
            };
            let api = Api::new(Network::Loopback, address, &authority.certificate, token.clone())?;
            Ok((authority, keys, token, address, api))
        };
        let (authority, keys, token, address, api) = match prepared() {
            Ok(prepared) => prepared,
            Err(error) => {
                // The first error says more than one about the folder would.
                let _ = folder.remove();
                return Err(error);
            }
        };
        Ok(Self {
            options,
            binaries,
            folder,
            authority,
            keys,
            token,
            address,
            processes: Mutex::default(),
            sandbox: None,
            network: Network::Loopback,
            relay: None,
            api,
            images: AtomicU32::new(0),
            started_in: Duration::ZERO,
            is_stopped: false,
        })
    }

    fn start_sandbox(&mut self) -> anyhow::Result<()> {
        let plan = sandbox::plan(self.folder.path(), self.binaries.path(Program::Pause))?;
        let process = self.start_process(plan)?;
        let stands = self.folder.path().join(sandbox::STANDS);
        self.wait_for("the sandbox", STEP, || Ok(stands.exists().then_some(())))?;
        let id = process.id().context("the sandbox is gone")?;
        let file = format!("/proc/{id}/ns/net");
        let name_space = File::open(&file).with_context(|| format!("cannot open {file}"))?;
        self.sandbox = Some(id);
        self.network = Network::Own(Arc::new(name_space));
        self.relay = Some(Relay::open(self.network.clone(), self.address)?);
        self.api = Api::new(
            self.network.clone(),
            self.address,
            &self.authority.certificate,
            self.token.clone(),
        )?;
        Ok(())
    }

    fn start_control_plane(&self) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let program = |program| self.binaries.path(program).into();
        // Both at once: the API server waits for etcd by itself.
        self.start_component(
            Component::Etcd,
            self.outer(),
            program(Program::Etcd),
            configuration::etcd(folder, self.options.fsync),
        )?;
        let tokens = folder.join("pki/tokens.csv");
        write(
            &tokens,
            &format!("{},admin,admin,\"system:masters\"\n", self.token),
        )?;
        let addresses = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(sandbox::NODE_ADDRESS),
            IpAddr::V4(configuration::API_SERVICE),
        ];
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let audit_log = folder.join("audit.log");
        let told = configuration::ApiServer {
            folder,
            address: self.address,
            is_in_own_network: self.options.own_network,
            has_controller_manager: self.options.controller_manager,
            authority: &self.authority.file,
            serving: &self.authority.server("kube-apiserver", &names, &addresses)?,
            kubelet_client: &self.authority.client(
                "kubelet-client",
                "kube-apiserver",
                Some("system:masters"),
            )?,
            keys: &self.keys,
            tokens: &tokens,
            audit: self.options.audit.map(|level| (level, audit_log.as_path())),
            more: &self.options.api_server_arguments,
        };
        self.start_component(
            Component::ApiServer,
            self.outer(),
            program(Program::ApiServer),
            configuration::api_server(&told)?,
        )?;
        let admin = Credential::Token(&self.token);
        write(
            &self.kubeconfig(),
            &configuration::kubeconfig(&self.server(), &self.authority.file, &admin),
        )?;
        write(
            &self.kubeconfig_inside(),
            &configuration::kubeconfig(&self.server_inside(), &self.authority.file, &admin),
        )?;
        self.wait_for_api_server()?;
        if self.options.controller_manager {
            let kubeconfig =
                self.component_kubeconfig("controller-manager", "system:kube-controller-manager", None)?;
            self.start_component(
                Component::ControllerManager,
                self.outer(),
                program(Program::ControllerManager),
                configuration::controller_manager(&kubeconfig, &self.authority.file, &self.keys),
            )?;
            // The last thing that a fresh namespace gets; from here on pods can be created.
            self.wait_for_object("/api/v1/namespaces/default/serviceaccounts/default")?;
        }
        Ok(())
    }

    fn start_node(&self) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let program = |program| self.binaries.path(program).into();
        let inner = self.inner()?;
        let cgroup = self.folder.name();
        self.folder
            .change(|record| record.cgroup = Some(cgroup.clone()))?;
        cgroup::create(&cgroup)?;
        self.start_component(
            Component::Containerd,
            inner,
            program(Program::Containerd),
            configuration::containerd(folder, self.binaries.path(Program::Runc))?,
        )?;
        let scheduler = self.component_kubeconfig("scheduler", "system:kube-scheduler", None)?;
        self.start_component(
            Component::Scheduler,
            self.outer(),
            program(Program::Scheduler),
            configuration::scheduler(&scheduler),
        )?;
        let proxy = self.component_kubeconfig("kube-proxy", "system:kube-proxy", None)?;
        self.start_component(
            Component::KubeProxy,
            self.outer(),
            program(Program::KubeProxy),
            configuration::kube_proxy(folder, &proxy)?,
        )?;
        let dns = self.component_kubeconfig("coredns", "coredns", Some("system:masters"))?;
        self.start_component(
            Component::CoreDns,
            self.outer(),
            program(Program::CoreDns),
            configuration::coredns(folder, &dns)?,
        )?;

        self.wait_for_containerd()?;
        let pause = Image::new(configuration::PAUSE_IMAGE)
            .file("/pause", self.binaries.path(Program::Pause), 0o755)
            .user("65535:65535")
            .entrypoint(["/pause"]);
        self.import(&pause)?;
        self.start_kubelet(inner)?;
        self.wait_for("kube-proxy", STEP, || {
            self.healthy(configuration::PROXY_HEALTH, "/healthz")
        })?;
        self.wait_for("CoreDNS", STEP, || {
            self.healthy(configuration::DNS_READY, "/ready")?;
            dns::look_up(&self.network, configuration::DNS, configuration::DNS_NAME)?;
            Ok(Some(()))
        })
    }

    fn start_kubelet(&self, inner: Place) -> anyhow::Result<()> {
        let name = configuration::NODE_NAME;
        let folder = self.folder.path();
        let user = format!("system:node:{name}");
        let kubeconfig = self.component_kubeconfig("kubelet", &user, Some("system:nodes"))?;
        let arguments =
            configuration::kubelet(folder, &kubeconfig, &self.authority.file, &self.folder.name())?;
        self.shell(inner, &sandbox::show_tunables(folder))?;
        self.start_component(
            Component::Kubelet,
            inner,
            self.binaries.path(Program::Kubelet).into(),
            arguments,
        )?;
        let ready = self.wait_for("the node to be ready", STEP, || {
            let body = self.api.get(&format!("/api/v1/nodes/{name}"))?.ok()?;
            not_ready_reason(&body)?.map_or(Ok(Some(())), |reason| Err(anyhow!(reason)))
        });
        self.shell(inner, &sandbox::hide_tunables())?;
        ready
    }

    /// Tells the developer's commands how to use this cluster.
    fn publish(&self) -> anyhow::Result<()> {
        let ready = Ready {
            version: self.options.version.to_string(),
            node: self.options.node,
            kubectl: self.binaries.path(Program::Kubectl).to_owned(),
            sandbox: self.sandbox,
            seconds: self.started_in.as_secs_f64(),
        };
        self.folder.change(|record| record.ready = Some(ready))
    }

    /// Where components run that start no processes of their own.
    fn outer(&self) -> Place {
        self.sandbox.map_or(Place::Machine, Place::Network)
    }

    /// Where containers, and what starts them, run.
    fn inner(&self) -> anyhow::Result<Place> {
        self.sandbox.map(Place::Node).context("this cluster has no node")
    }

    fn start_component(
        &self,
        component: Component,
        place: Place,
        program: OsString,
        arguments: Vec<OsString>,
    ) -> anyhow::Result<()> {
        self.start_process(Plan {
            component,
            place,
            program,
            arguments,
            folder: self.folder.path().to_owned(),
        })?;
        Ok(())
    }

    fn start_process(&self, plan: Plan) -> anyhow::Result<Arc<Process>> {
        let process = Arc::new(Process::start(plan)?);
        self.record(&process)?;
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(process.component(), Arc::clone(&process));
        Ok(process)
    }

    fn record(&self, process: &Process) -> anyhow::Result<()> {
        // One that has ended already needs no record; waiting for it says why it ended.
        let Some(identity) = process.id().and_then(Identity::of) else {
            return Ok(());
        };
        self.folder.change(|record| {
            record.processes.push(Recorded {
                component: process.component().to_string(),
                process: identity,
            });
        })
    }

    fn process(&self, component: Component) -> anyhow::Result<Arc<Process>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&component)
            .cloned()
            .with_context(|| format!("this cluster has no {component}"))
    }

    fn component_kubeconfig(&self, file: &str, user: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
        let certificate = self.authority.client(file, user, group)?;
        self.write_kubeconfig(file, &self.server_inside(), &certificate)
    }

    fn write_kubeconfig(
        &self,
        file: &str,
        server: &str,
        certificate: &Certificate,
    ) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("pki/{file}.kubeconfig"));
        let credential = Credential::Certificate(certificate);
        let text = configuration::kubeconfig(server, &self.authority.file, &credential);
        write(&path, &text)?;
        Ok(path)
    }

    fn healthy(&self, address: SocketAddr, path: &str) -> anyhow::Result<Option<()>> {
        api::get_plain(&self.network, address, path)?.ok()?;
        Ok(Some(()))
    }

    fn wait_for_api_server(&self) -> anyhow::Result<()> {
        self.wait_for("the API server", STEP, || {
            self.api.get("/readyz")?.ok()?;
            Ok(Some(()))
        })
    }

    fn wait_for_containerd(&self) -> anyhow::Result<()> {
        let mut version = self.ctr();
        version.args(["version"]);
        self.wait_for("containerd", STEP, || run(&mut version, None).map(|_| Some(())))
    }

    fn wait_for_object(&self, path: &str) -> anyhow::Result<()> {
        self.wait_for(path, STEP, || {
            self.api.get(path)?.ok()?;
            Ok(Some(()))
        })
    }

    /// A shell in the node, for what has no call of its own.
    fn shell(&self, place: Place, script: &str) -> anyhow::Result<()> {
        run(place.command("sh").args(["-euc", script]), None)?;
        Ok(())
    }

    fn ctr(&self) -> Command {
        let mut command = self.outer().command(self.binaries.path(Program::Ctr));
        command
            .args(["--namespace", "k8s.io", "--address"])
            .arg(configuration::containerd_socket(self.folder.path()));
        command
    }

    /// Looks until there is something, at most `limit` long; see [`wait_for`]. Gives up at once when a component ended
    /// by itself, with the end of its log.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let waited = wait_for(what, limit, || match self.ended() {
            Some(ended) => Ok(Some(Err(ended))),
            None => look().map(|found| found.map(Ok)),
        });
        match waited {
            Ok(found) => found.with_context(|| format!("while waiting for {what}")),
            Err(error) => bail!("{error:#}\n{}", self.tails()),
        }
    }

    /// The first component that ended by itself, with the end of its log.
    fn ended(&self) -> Option<anyhow::Error> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.values().find_map(|process| {
            let status = process.ended()?;
            Some(anyhow!(
                "{} ended by itself: {status}\n{}",
                process.component(),
                process.tail()
            ))
        })
    }

    /// How the log of each component ends.
    #[must_use]
    pub fn tails(&self) -> String {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let tails: Vec<String> = processes.values().map(|process| process.tail()).collect();
        tails.join("\n")
    }

    /// How long the start took, without building.
    #[must_use]
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// What was started.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The folder of the run; it goes with the cluster.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The administrator's kubeconfig, for programs on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The administrator's kubeconfig, for programs inside the cluster's network, such as those of
    /// [`Cluster::command`].
    #[must_use]
    pub fn kubeconfig_inside(&self) -> PathBuf {
        self.folder.path().join("kubeconfig-inside")
    }

    /// A kubeconfig for this user, perhaps in a group, for programs on this machine. It may do what RBAC says: nothing
    /// at first.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
        let safe: String = user
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let file = format!("user-{safe}");
        let certificate = self.authority.client(&file, user, group)?;
        self.write_kubeconfig(&file, &self.server(), &certificate)
    }

    /// The API server's address, for programs on this machine.
    #[must_use]
    pub fn server(&self) -> String {
        let address = self.relay.as_ref().map_or(self.address, Relay::address);
        format!("https://{address}")
    }

    /// The API server's address inside the cluster's network.
    #[must_use]
    pub fn server_inside(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of the cluster's authority, in PEM.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority.file
    }

    /// The administrator's token.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        &self.token
    }

    /// What the cluster signs ServiceAccount tokens with.
    #[must_use]
    pub fn service_account_keys(&self) -> &ServiceAccountKeys {
        &self.keys
    }

    /// The audit log: one JSON object in a line for each request. `None` without [`Options::audit`].
    #[must_use]
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.options.audit.map(|_| self.folder.path().join("audit.log"))
    }

    /// A component's log.
    #[must_use]
    pub fn log(&self, component: Component) -> PathBuf {
        self.folder.path().join(component.log_file())
    }

    /// Asks the API server as the administrator; the answer's JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let body = self.api.get(path)?.ok().with_context(|| path.to_owned())?;
        serde_json::from_slice(&body).with_context(|| format!("the answer for {path} is no JSON"))
    }

    /// kubectl as the administrator, on this machine.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(self.binaries.path(Program::Kubectl));
        command
            .env("KUBECONFIG", self.kubeconfig())
            // Nothing of it, such as its cache, goes into the developer's home.
            .env("HOME", self.folder.path())
            .env_remove("XDG_CACHE_HOME");
        command
    }

    /// Runs kubectl as the administrator; what it prints, or an error with what it complains about.
    pub fn kubectl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<String> {
        run(self.kubectl_command().args(arguments), None)
    }

    /// Applies objects, in YAML or JSON, as the administrator.
    pub fn apply(&self, objects: &str) -> anyhow::Result<String> {
        run(self.kubectl_command().args(["apply", "-f", "-"]), Some(objects))
    }

    /// A command inside the cluster's network; its files and processes are the machine's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.outer().command(program.as_ref())
    }

    /// A port on this machine's loopback that leads to an address inside the cluster's network, such as a Service's.
    pub fn relay(&self, target: SocketAddr) -> anyhow::Result<Relay> {
        Relay::open(self.network.clone(), target)
    }

    /// Makes an image known to the node.
    pub fn import(&self, image: &Image) -> anyhow::Result<()> {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let archive = self.folder.path().join(format!("image-{number}.tar"));
        image.write(&archive)?;
        let imported = run(self.ctr().args(["images", "import"]).arg(&archive), None)
            .with_context(|| format!("cannot import {}", image.name()));
        fs::remove_file(&archive).with_context(|| format!("cannot delete {}", archive.display()))?;
        imported.map(|_| ())
    }

    /// Kills a component, as if it had crashed. [`Cluster::start_again`] starts it again.
    pub fn kill(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.kill();
        Ok(())
    }

    /// Starts a component again after [`Cluster::kill`], with the same arguments. Does not wait until it is ready, but
    /// for the API server, containerd and the kubelet.
    pub fn start_again(&self, component: Component) -> anyhow::Result<()> {
        let process = self.process(component)?;
        let start = || {
            process.start_again()?;
            self.record(&process)
        };
        match component {
            Component::Sandbox => bail!("the sandbox does not come back; start another cluster"),
            Component::Kubelet => {
                let inner = self.inner()?;
                self.shell(inner, &sandbox::show_tunables(self.folder.path()))?;
                let started = start().and_then(|()| {
                    self.wait_for("the kubelet", STEP, || {
                        self.healthy(configuration::KUBELET_HEALTH, "/healthz")
                    })
                });
                self.shell(inner, &sandbox::hide_tunables())?;
                started
            }
            Component::ApiServer => {
                start()?;
                self.wait_for_api_server()
            }
            // A kubelet that does not find it ends.
            Component::Containerd => {
                start()?;
                self.wait_for_containerd()
            }
            Component::Etcd
            | Component::ControllerManager
            | Component::Scheduler
            | Component::KubeProxy
            | Component::CoreDns => start(),
        }
    }

    /// Stops a component in its tracks, until [`Cluster::resume`].
    pub fn pause(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.signal(Signal::STOP)
    }

    /// Lets a paused component go on.
    pub fn resume(&self, component: Component) -> anyhow::Result<()> {
        self.process(component)?.signal(Signal::CONT)
    }

    /// Stops everything and takes the folder away.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.stop_all()
    }

    fn stop_all(&mut self) -> anyhow::Result<()> {
        if self.is_stopped {
            return Ok(());
        }
        self.is_stopped = true;
        self.relay = None;
        // The kubelet first, so that it starts nothing again; with the sandbox go containerd, every container, the
        // mounts and, once the others have left it, the network; etcd last, so that nobody writes errors about it.
        let order = [
            Component::Kubelet,
            Component::Containerd,
            Component::Sandbox,
            Component::CoreDns,
            Component::KubeProxy,
            Component::Scheduler,
            Component::ControllerManager,
            Component::ApiServer,
            Component::Etcd,
        ];
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        for process in order.iter().filter_map(|component| processes.get(component)) {
            process.kill();
        }
        self.folder.remove()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop_all() {
            // The next run tries again; nobody is there to hear it when this fails.
            let _ = writeln!(std::io::stderr(), "    cannot stop a cluster cleanly: {error:#}");
        }
    }
}

/// Why a node is not ready; `None` when it is.
fn not_ready_reason(node: &[u8]) -> anyhow::Result<Option<String>> {
    let node: Value = serde_json::from_slice(node).context("the node is no JSON")?;
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    Ok(match ready {
        Some(condition) if condition["status"] == "True" => None,
        Some(condition) => Some(condition["message"].as_str().unwrap_or("no message").to_owned()),
        None => Some("it has not said so".to_owned()),
    })
}

/// Runs a command to its end; what it printed, or an error with what it complained about.
fn run(command: &mut Command, input: Option<&str>) -> anyhow::Result<String> {
    let name = || {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    };
    let name = name();
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A command that ended without reading says why itself.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
        }
        child.wait_with_output()
    })
    .with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_or_says_why_not() {
        let check = |node: &str, expected: Option<&str>| {
            assert_eq!(not_ready_reason(node.as_bytes()).unwrap().as_deref(), expected);
        };
        let with = |status: &str| {
            format!(r#"{{"status":{{"conditions":[{{"type":"Ready","status":"{status}","message":"m"}}]}}}}"#)
        };
        check(&with("True"), None);
        check(&with("False"), Some("m"));
        check(&with("Unknown"), Some("m"));
        check("{}", Some("it has not said so"));
    }

    #[test]
    fn an_older_node_is_refused() {
        let options = Options {
            version: Version::V1_34,
            ..Options::node()
        };
        let error = Cluster::start(&options).unwrap_err().to_string();
        assert!(error.contains("control plane"), "{error}");
    }

    #[test]
    fn a_failed_command_says_what_it_complained_about() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), None).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3\nwhy\n"), "{error}");
        assert_eq!(run(&mut Command::new("cat"), Some("in")).unwrap(), "in");
    }
}
