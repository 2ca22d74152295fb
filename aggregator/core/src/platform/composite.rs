//! OAM's own workloads, which are as well as the objects made for them: `ContainerizedWorkload` and
//! `PodSpecWorkload`.

use {
    super::{Child, Related, State, field, group},
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        name::{ComponentKey, Kind, Name, Namespace},
    },
    serde_json::Value,
    std::sync::Arc,
};

/// Most children looked at; OAM makes two.
const MAX_CHILDREN: usize = 16;

/// The children that the workload's status names.
#[derive(Clone, Debug, PartialEq)]
pub struct Composite {
    /// At most sixteen; those whose reference is no valid one are left out.
    pub children: Box<[ChildRef]>,
    /// How many the status names in all.
    pub listed: u32,
}

/// A child by name.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildRef {
    /// Its group and version.
    pub api_version: Arc<str>,
    /// Which object.
    pub key: ComponentKey,
}

impl Composite {
    /// Whether objects of this group and kind are composite.
    pub(super) fn is_one(group: &str, kind: &str) -> bool {
        matches!(
            (group, kind),
            ("core.oam.dev", "ContainerizedWorkload") | ("standard.oam.dev", "PodSpecWorkload")
        )
    }

    pub(super) fn decode(namespace: &Namespace, object: &Value) -> Self {
        let listed = field::list(object, &["status", "resources"]);
        let children = listed.iter().take(MAX_CHILDREN).filter_map(|child| {
            let api_version = field::text(child, &["apiVersion"])?;
            let key = ComponentKey {
                namespace: namespace.clone(),
                group: group(api_version).to_owned(),
                kind: Kind::new(field::text(child, &["kind"])?).ok()?,
                name: Name::new(field::text(child, &["name"])?).ok()?,
            };
            Some(ChildRef {
                api_version: api_version.into(),
                key,
            })
        });
        Self {
            children: children.collect(),
            listed: u32::try_from(listed.len()).unwrap_or(u32::MAX),
        }
    }

    /// The worst of its children; a child that is composite itself counts as well while it exists, so that two that
    /// name each other end.
    pub(super) fn verdict(&self, own: &ComponentKey, related: &Related<'_>) -> Verdict {
        let verdicts = self.children.iter().map(|child| {
            let key = &child.key;
            match (related.child)(key) {
                Child::Found(object) if matches!(object.state, State::Composite(_)) => super::healthy(),
                Child::Found(object) => super::verdict(object, related),
                Child::NotFound => Verdict::new(
                    Health::Unhealthy,
                    Reason::NOT_FOUND,
                    format!("{key} does not exist"),
                ),
                Child::Unknown(why) => Verdict::new(
                    Health::Unknown,
                    Reason::KIND_NOT_AVAILABLE,
                    format!("{key} cannot be seen: {why}"),
                ),
            }
        });
        // Of equally bad ones the first.
        let worst = verdicts.reduce(|worst, next| if next.health > worst.health { next } else { worst });
        worst.unwrap_or_else(|| {
            Verdict::new(
                Health::Unknown,
                Reason::STARTING,
                format!("{} names no objects in its status yet", own.kind),
            )
        })
    }
}
