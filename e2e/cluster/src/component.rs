//! The parts of a cluster that run as processes.

use std::{fmt, str::FromStr};

/// A part of a cluster: one process with one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Holds the node's network, processes and mounts.
    Sandbox,
    /// The store.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// Runs containers.
    Containerd,
    /// kubelet.
    Kubelet,
    /// kube-proxy.
    KubeProxy,
    /// Names of Services.
    CoreDns,
}

impl Component {
    /// Every component.
    pub const ALL: [Self; 9] = [
        Self::Sandbox,
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Containerd,
        Self::Kubelet,
        Self::KubeProxy,
        Self::CoreDns,
    ];

    /// The file in the run's folder that its output goes to.
    pub(crate) fn log_file(self) -> String {
        format!("{self}.log")
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Sandbox => "sandbox",
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::CoreDns => "coredns",
        })
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|component| component.to_string() == text)
            .ok_or_else(|| {
                let all: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
                format!("there is no component {text:?}; choose one of {}", all.join(", "))
            })
    }
}
