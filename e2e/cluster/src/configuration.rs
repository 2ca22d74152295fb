//! What each component is told: arguments and files. Nothing is started here.
//!
//! Values that look arbitrary are ones without which something fails on an ordinary machine; the reason is beside them.

use {
    crate::{
        cluster::Audit,
        identity::{Certificate, ServiceAccountKeys, write},
        prerequisite::CNI_PLUGINS,
        sandbox::NODE_ADDRESS,
    },
    anyhow::Context,
    serde_json::{Value, json},
    std::{
        ffi::OsString,
        fs,
        net::{Ipv4Addr, SocketAddr},
        path::{Path, PathBuf},
    },
};

/// The one node's name.
pub(crate) const NODE_NAME: &str = "node1";

/// The port of the API server in a network of its own.
pub(crate) const API_PORT: u16 = 6443;

/// Addresses of Services, and the first of them, which is the API server's.
const SERVICES: &str = "10.96.0.0/16";
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Addresses of pods: all of them, and those of the one node.
const PODS: &str = "10.244.0.0/16";
const NODE_PODS: &str = "10.244.0.0/24";

const DOMAIN: &str = "cluster.local";

/// The image that holds a pod's name spaces.
pub(crate) const PAUSE_IMAGE: &str = "local/pause:1";

/// Health endpoints inside the node's network.
pub(crate) const KUBELET_HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10248);
pub(crate) const PROXY_HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 10256);
pub(crate) const DNS_READY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 8181);

/// Where pods ask for names.
pub(crate) const DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 53);

/// A name that every cluster knows.
pub(crate) const DNS_NAME: &str = "kubernetes.default.svc.cluster.local";

fn arguments<const N: usize>(words: [String; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// The socket that etcd serves: a file, so that no port can be taken and nobody else can connect.
fn etcd_socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("etcd.sock").display())
}

/// etcd's arguments. Without `fsync` a write is not on the disk when it is answered: right for tests, wrong for figures.
pub(crate) fn etcd(folder: &Path, fsync: bool) -> Vec<OsString> {
    let client = etcd_socket(folder);
    // There are no peers, but etcd listens for them.
    let peer = format!("unix://{}", folder.join("etcd-peer.sock").display());
    let mut all = arguments([
        "--name=node".to_owned(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=node={peer}"),
        "--log-level=warn".to_owned(),
    ]);
    if !fsync {
        all.push("--unsafe-no-fsync".into());
    }
    all
}

/// What the API server is told besides.
pub(crate) struct ApiServer<'a> {
    pub(crate) folder: &'a Path,
    /// Where it listens, as seen from its own network.
    pub(crate) address: SocketAddr,
    pub(crate) is_in_own_network: bool,
    pub(crate) has_controller_manager: bool,
    pub(crate) authority: &'a Path,
    pub(crate) serving: &'a Certificate,
    pub(crate) kubelet_client: &'a Certificate,
    pub(crate) keys: &'a ServiceAccountKeys,
    pub(crate) tokens: &'a Path,
    pub(crate) audit: Option<(Audit, &'a Path)>,
    pub(crate) more: &'a [String],
}

pub(crate) fn api_server(told: &ApiServer<'_>) -> anyhow::Result<Vec<OsString>> {
    let ApiServer {
        folder,
        address,
        is_in_own_network,
        has_controller_manager,
        authority,
        serving,
        kubelet_client,
        keys,
        tokens,
        audit,
        more,
    } = told;
    let mut all = arguments([
        format!("--etcd-servers={}", etcd_socket(folder)),
        format!("--secure-port={}", address.port()),
        format!("--advertise-address={}", address.ip()),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        format!("--client-ca-file={}", authority.display()),
        format!("--token-auth-file={}", tokens.display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--service-account-issuer={}", keys.issuer),
        format!("--service-account-key-file={}", keys.public.display()),
        format!("--service-account-signing-key-file={}", keys.private.display()),
        format!("--api-audiences={}", keys.issuer),
        format!("--service-cluster-ip-range={SERVICES}"),
        // Without a certificate in system:masters, `kubectl logs` and `exec` are forbidden by the kubelet.
        format!(
            "--kubelet-client-certificate={}",
            kubelet_client.certificate.display()
        ),
        format!("--kubelet-client-key={}", kubelet_client.key.display()),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--cert-dir={}", folder.join("pki").display()),
    ]);
    if *is_in_own_network {
        all.push("--bind-address=0.0.0.0".into());
    } else {
        all.push(format!("--bind-address={}", address.ip()).into());
        // The endpoint of the Service `kubernetes` may not be a loopback address, and nobody resolves it here.
        all.push("--endpoint-reconciler-type=none".into());
    }
    if !has_controller_manager {
        // Nobody makes the ServiceAccount `default`, without which this plugin refuses every pod.
        all.push("--disable-admission-plugins=ServiceAccount".into());
    }
    if let Some((level, log)) = audit {
        let policy = folder.join("audit-policy.json");
        write_json(&policy, &audit_policy(*level))?;
        all.push(format!("--audit-policy-file={}", policy.display()).into());
        all.push(format!("--audit-log-path={}", log.display()).into());
    }
    all.extend(more.iter().map(OsString::from));
    Ok(all)
}

fn audit_policy(level: Audit) -> Value {
    let level = match level {
        Audit::Metadata => "Metadata",
        Audit::Request => "Request",
        Audit::RequestResponse => "RequestResponse",
    };
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        // One line for each request, when it is answered; long ones such as watches have one when they begin, too.
        "omitStages": ["RequestReceived"],
        "rules": [{"level": level}],
    })
}

/// A kubeconfig for whoever has the token or the certificate.
pub(crate) fn kubeconfig(server: &str, authority: &Path, user: &Credential<'_>) -> String {
    let credential = match user {
        Credential::Token(token) => format!("token: {token}"),
        Credential::Certificate(certificate) => format!(
            "client-certificate: {}\n    client-key: {}",
            certificate.certificate.display(),
            certificate.key.display()
        ),
    };
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: healthscope-e2e
  cluster:
    server: {server}
    certificate-authority: {}
users:
- name: user
  user:
    {credential}
contexts:
- name: healthscope-e2e
  context:
    cluster: healthscope-e2e
    user: user
current-context: healthscope-e2e
",
        authority.display()
    )
}

pub(crate) enum Credential<'a> {
    Token(&'a str),
    Certificate(&'a Certificate),
}

/// The arguments of a controller manager. It serves nothing, so that no port is taken.
pub(crate) fn controller_manager(
    kubeconfig: &Path,
    authority: &Path,
    keys: &ServiceAccountKeys,
) -> Vec<OsString> {
    arguments([
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        format!("--root-ca-file={}", authority.display()),
        format!("--service-account-private-key-file={}", keys.private.display()),
        "--use-service-account-credentials=true".to_owned(),
    ])
}

pub(crate) fn scheduler(kubeconfig: &Path) -> Vec<OsString> {
    arguments([
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ])
}

/// containerd's socket.
pub(crate) fn containerd_socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

pub(crate) fn containerd(folder: &Path, runc: &Path) -> anyhow::Result<Vec<OsString>> {
    let cni = folder.join("cni");
    fs::create_dir_all(&cni).with_context(|| format!("cannot make {}", cni.display()))?;
    write_json(&cni.join("10-bridge.conflist"), &cni_network())?;
    let file = folder.join("containerd.toml");
    let text = format!(
        r#"version = 3
root = "{root}"
state = "/run/containerd"

[grpc]
address = "{socket}"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
# Without the right to lower it (CAP_SYS_RESOURCE), runc would fail to start anything.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{cni}"

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
        root = folder.join("containerd").display(),
        socket = containerd_socket(folder).display(),
        cni = cni.display(),
        runc = runc.display(),
    );
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(arguments(["--config".to_owned(), file.display().to_string()]))
}

fn cni_network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "br-pods",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": NODE_PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

pub(crate) fn kubelet(
    folder: &Path,
    kubeconfig: &Path,
    authority: &Path,
    cgroup: &str,
) -> anyhow::Result<Vec<OsString>> {
    let file = folder.join("kubelet.json");
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{}", containerd_socket(folder).display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        // With false, a pod with limits ends the kubelet of 1.36 in a panic.
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "failCgroupV1": false,
        "resolvConf": "/dev/null",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": DOMAIN,
        "healthzBindAddress": KUBELET_HEALTH.ip(),
        "healthzPort": KUBELET_HEALTH.port(),
        // A developer's disk may be nearly full; that is no reason to evict a test's pods.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "32Mi",
            "nodefs.available": "0.1%",
            "nodefs.inodesFree": "0.1%",
            "imagefs.available": "0.1%",
            "imagefs.inodesFree": "0.1%",
        },
    });
    write_json(&file, &configuration)?;
    Ok(arguments([
        format!("--config={}", file.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={NODE_NAME}"),
        format!("--node-ip={NODE_ADDRESS}"),
        format!("--cert-dir={}", folder.join("pki").display()),
    ]))
}

pub(crate) fn kube_proxy(folder: &Path, kubeconfig: &Path) -> anyhow::Result<Vec<OsString>> {
    let file = folder.join("kube-proxy.json");
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": PODS,
        "hostnameOverride": NODE_NAME,
        "healthzBindAddress": PROXY_HEALTH,
        // Zero leaves the kernel's settings as they are; changing them takes the machine's own network.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    write_json(&file, &configuration)?;
    Ok(arguments([format!("--config={}", file.display())]))
}

pub(crate) fn coredns(folder: &Path, kubeconfig: &Path) -> anyhow::Result<Vec<OsString>> {
    let file = folder.join("Corefile");
    let text = format!(
        "{DOMAIN} {{
    bind {NODE_ADDRESS}
    errors
    ready {DNS_READY}
    kubernetes {DOMAIN} {{
        kubeconfig {}
        # Tests create a Service and ask for it at once: nobody may be told for long that it is not there.
        ttl 1
    }}
}}
",
        kubeconfig.display()
    );
    write(&file, &text)?;
    Ok(arguments([
        format!("-conf={}", file.display()),
        "-dns.port=53".to_owned(),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_writes_to_the_disk_when_asked() {
        let lazy: OsString = "--unsafe-no-fsync".into();
        assert!(etcd(Path::new("/x"), false).contains(&lazy));
        assert!(!etcd(Path::new("/x"), true).contains(&lazy));
    }

    #[test]
    fn a_kubeconfig_names_either_credential() {
        let certificate = Certificate {
            certificate: "/c".into(),
            key: "/k".into(),
        };
        let by_token = kubeconfig("https://x", Path::new("/ca"), &Credential::Token("t"));
        assert!(by_token.contains("    token: t\n"), "{by_token}");
        let by_certificate = kubeconfig(
            "https://x",
            Path::new("/ca"),
            &Credential::Certificate(&certificate),
        );
        assert!(
            by_certificate.contains("    client-certificate: /c\n    client-key: /k\n"),
            "{by_certificate}"
        );
    }
}
