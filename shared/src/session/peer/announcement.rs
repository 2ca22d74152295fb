//! Puts the parts of one announcement together and checks the whole.

use {
    super::{Limits, ids::IdSet},
    crate::{
        one_line,
        session::outbox::{is_dependency, is_label},
        wire::{Announce, AnnouncedInstance, MAX_LABELS, MAX_TARGET_BYTES},
    },
    std::{collections::BTreeSet, time::Instant},
};

/// The parts of one revision that have arrived.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) revision: u32,
    /// When the latest part came.
    pub(super) since: Instant,
    next_part: u32,
    instances: Vec<AnnouncedInstance>,
    probes: usize,
}

impl Assembly {
    pub(super) const fn new(revision: u32, since: Instant) -> Self {
        Self {
            revision,
            since,
            next_part: 0,
            instances: Vec::new(),
            probes: 0,
        }
    }

    /// Adds the next part; an error says what is wrong with it.
    pub(super) fn add(&mut self, announce: Announce, limits: &Limits, now: Instant) -> Result<(), String> {
        let Announce {
            revision,
            part,
            last,
            instances,
        } = announce;
        if revision != self.revision || part != self.next_part {
            return Err(format!(
                "announcement {revision} part {part} instead of {} part {}",
                self.revision, self.next_part
            ));
        }
        if instances.is_empty() && !last {
            return Err(format!("part {part} of an announcement is empty"));
        }
        self.next_part += 1;
        self.since = now;
        for (index, mut instance) in instances.into_iter().enumerate() {
            check(&mut instance)?;
            self.probes += instance.probes.len();
            if self.probes > limits.probes {
                return Err(format!("more than {} probes", limits.probes));
            }
            match self.instances.last_mut() {
                Some(former) if index == 0 && part > 0 && is_same(former, &instance) => {
                    former.probes.append(&mut instance.probes);
                }
                Some(_) | None => self.instances.push(instance),
            }
            if self.instances.len() > limits.instances {
                return Err(format!("more than {} instances", limits.instances));
            }
        }
        Ok(())
    }

    /// Checks the whole.
    pub(super) fn finish(self) -> Result<(IdSet, Vec<AnnouncedInstance>), String> {
        let mut keys = BTreeSet::new();
        for instance in &self.instances {
            let AnnouncedInstance {
                namespace,
                component,
                instance: name,
                probes,
                labels: _,
                depends_on: _,
            } = instance;
            if !keys.insert((namespace, component, name)) {
                return Err(format!("instance {namespace}/{component}/{name} twice"));
            }
            let mut names = BTreeSet::new();
            if let Some(twice) = probes.iter().find(|probe| !names.insert(&probe.name)) {
                return Err(format!("probe {} of {component} twice", twice.name));
            }
        }
        let ids = self
            .instances
            .iter()
            .flat_map(|instance| instance.probes.iter().map(|probe| probe.id.0))
            .collect();
        let ids = IdSet::new(ids).map_err(|id| format!("probe id {id} twice"))?;
        Ok((ids, self.instances))
    }
}

fn is_same(left: &AnnouncedInstance, right: &AnnouncedInstance) -> bool {
    left.instance == right.instance && left.component == right.component && left.namespace == right.namespace
}

fn check(instance: &mut AnnouncedInstance) -> Result<(), String> {
    if instance.labels.len() > MAX_LABELS {
        return Err(format!("more than {MAX_LABELS} labels on {}", instance.component));
    }
    if instance.depends_on.len() > MAX_LABELS {
        return Err(format!(
            "more than {MAX_LABELS} dependencies of {}",
            instance.component
        ));
    }
    if !instance.labels.iter().all(|(key, value)| is_label(key, value)) {
        return Err(format!(
            "a label of {} is not plain or too long",
            instance.component
        ));
    }
    if !instance.depends_on.iter().all(|text| is_dependency(text)) {
        return Err(format!(
            "a dependency of {} is not plain or too long",
            instance.component
        ));
    }
    for probe in &mut instance.probes {
        probe.target = one_line(&probe.target, MAX_TARGET_BYTES);
        probe.success_threshold = probe.success_threshold.max(1);
        probe.failure_threshold = probe.failure_threshold.max(1);
    }
    Ok(())
}
