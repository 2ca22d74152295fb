//! A network, a tree of processes and mounts of a node's own, all held by one process.
//!
//! When that process dies, the kernel ends every process in it and takes network and mounts away: nothing is left to
//! clean up by hand, and the machine's own `/run`, `/var` and network are neither seen nor changed.

use {
    crate::{
        component::Component,
        process::{Place, Plan},
    },
    anyhow::bail,
    std::{
        ffi::OsString,
        fs,
        net::Ipv4Addr,
        path::{Path, PathBuf},
    },
};

/// The node's address, in its own network.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// Appears in the folder of the run when the sandbox stands.
pub(crate) const STANDS: &str = "sandbox-stands";

/// A bridge with one end of a cable in it, because not every kernel has a dummy device; and a default route, because
/// the API server wants one. `/var` and `/run` are the node's own: most of Kubernetes writes to fixed paths below them.
/// Nothing can be executed from `/var`, as on hardened nodes (though runc gives the volumes of containers flags of their own).
const SCRIPT: &str = r#"set -eu
folder=$1 address=$2 pause=$3
ip link set lo up
ip link add br-node type bridge
ip address add "$address/24" dev br-node
ip link add veth0 type veth peer name veth1
ip link set veth0 master br-node
ip link set veth0 up
ip link set veth1 up
ip link set br-node up
ip route add default via "$address" dev br-node
echo 1 >/proc/sys/net/ipv4/ip_forward
# A reply from one pod to another goes through the bridge, where the Service's address must be put back.
[ -e /proc/sys/net/bridge ] || modprobe br_netfilter
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
mount --bind "$folder/var" /var
mount -o remount,bind,noexec /var
mount -t tmpfs tmpfs /run
: >"$folder/sandbox-stands"
exec "$pause"
"#;

/// What the kubelet wants of the kernel, by file. It would set this for the whole machine.
const TUNABLES: [(&str, &str); 6] = [
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/vm/panic_on_oom", "0"),
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/kernel/keys/root_maxkeys", "1000000"),
    ("/proc/sys/kernel/keys/root_maxbytes", "25000000"),
];

/// Prepares the folder, and says how to start the sandbox.
pub(crate) fn plan(folder: &Path, pause: &Path) -> anyhow::Result<Plan> {
    for hidden in ["/var", "/run"] {
        if folder.starts_with(hidden) {
            bail!(
                "{} lies below {hidden}, which a node has for itself; set TMPDIR to another folder",
                folder.display()
            );
        }
    }
    for name in ["var/lib", "var/log", "var/tmp", "tunables"] {
        fs::create_dir_all(folder.join(name))?;
    }
    std::os::unix::fs::symlink("/run", folder.join("var/run"))?;
    for (index, (_, value)) in TUNABLES.iter().enumerate() {
        fs::write(tunable_file(folder, index), value)?;
    }
    let words = [
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "--",
        "sh",
        "-c",
        SCRIPT,
        "sandbox",
    ];
    let mut arguments: Vec<OsString> = words.map(OsString::from).to_vec();
    arguments.extend([folder.into(), NODE_ADDRESS.to_string().into(), pause.into()]);
    Ok(Plan {
        component: Component::Sandbox,
        place: Place::Machine,
        program: "unshare".into(),
        arguments,
        folder: folder.to_owned(),
    })
}

fn tunable_file(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("tunables/{index}"))
}

/// Shows the kubelet the settings it wants, so that it does not set them for the whole machine.
///
/// While they are shown, no pod with a user name space starts: the kernel refuses it a `/proc` that ours hides parts of.
pub(crate) fn show_tunables(folder: &Path) -> String {
    let lines: Vec<String> = TUNABLES
        .iter()
        .enumerate()
        .map(|(index, (path, _))| format!("mount --bind '{}' {path}", tunable_file(folder, index).display()))
        .collect();
    lines.join(" && ")
}

/// Shows the machine's own settings again.
pub(crate) fn hide_tunables() -> String {
    let lines: Vec<String> = TUNABLES
        .iter()
        .map(|(path, _)| format!("umount {path}"))
        .collect();
    lines.join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_the_node_would_hide_is_refused() {
        let error = plan(Path::new("/var/tmp/x"), Path::new("/pause")).unwrap_err();
        assert!(error.to_string().contains("set TMPDIR"), "{error}");
    }

    #[test]
    fn each_shown_setting_is_hidden_again() {
        let shown = show_tunables(Path::new("/x"));
        for (path, _) in TUNABLES {
            assert!(shown.contains(&format!(" {path}")), "{shown}");
            assert!(hide_tunables().contains(&format!("umount {path}")));
        }
    }
}
