//! The Kubernetes versions that tests run against.

use std::{fmt, str::FromStr};

/// Says against which version tests run that need no other.
const VARIABLE: &str = "HEALTHSCOPE_E2E_KUBERNETES";

/// A minor version of Kubernetes; the patch release is in its `go.mod` below `e2e/cluster/go`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The oldest one that we promise to work with; its control plane only.
    V1_34,
    /// The newest one.
    #[default]
    V1_36,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 2] = [Self::V1_34, Self::V1_36];

    /// The only version of which a node is built, and whose kubectl is used for all of them.
    pub const NEWEST: Self = Self::V1_36;

    /// The one that `HEALTHSCOPE_E2E_KUBERNETES` asks for, so that the same tests run against each; the newest when it does not.
    ///
    /// # Panics
    /// When it asks for one that there is not.
    #[must_use]
    pub fn of_this_run() -> Self {
        match std::env::var(VARIABLE) {
            Ok(text) => text.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}")),
            Err(_) => Self::NEWEST,
        }
    }

    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::V1_34 => "kubernetes-1.34",
            Self::V1_36 => "kubernetes-1.36",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::V1_34 => "1.34",
            Self::V1_36 => "1.36",
        })
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|version| version.to_string() == text)
            .ok_or_else(|| {
                let all: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
                format!(
                    "no Kubernetes {text:?} is built here; choose one of {}",
                    all.join(", ")
                )
            })
    }
}
