//! What the breaker asks: which pods suffer from their agent, and how the canary is.

use {
    super::Store,
    crate::{
        breaker::{Blamed, CANARY_POD, Canary, Cause, Harm, Observed, OwnerNow, OwnerRef, Record},
        cluster::Suffering,
        platform::{Beside, Child, Object, State},
    },
    healthscope_shared::{
        health::Reason,
        name::{ComponentKey, Name, Namespace},
        probe::outcome::ProbeState,
    },
    jiff::{SignedDuration, Timestamp},
    std::collections::BTreeSet,
};

/// What to look for.
#[derive(Clone, Debug)]
pub struct HarmQuestion {
    /// What is open.
    pub record: Record,
    /// The namespace that HealthScope is installed in.
    pub home: Namespace,
    /// What pods get.
    pub blamed: Blamed,
    /// What Events say of controllers whose pods were refused.
    pub refusals: Vec<FailedCreate>,
    /// The moment, by the wall clock.
    pub now: Timestamp,
}

/// An Event of a controller whose pod was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCreate {
    /// Where.
    pub namespace: String,
    /// The controller's kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was refused last.
    pub at: Timestamp,
    /// What the controller said.
    pub message: String,
}

impl Store {
    /// Everything but the namespaces' annotations.
    #[must_use]
    pub fn harm(&self, question: &HarmQuestion) -> Observed {
        let HarmQuestion {
            record,
            home,
            blamed,
            refusals,
            now,
        } = question;
        let mut observed = Observed {
            home: home.to_string(),
            image: blamed.image.clone(),
            ..Observed::default()
        };
        let Some(cluster) = &self.cluster else {
            return observed;
        };
        let is_canary = |object: &Object| {
            object.key.namespace == *home && object.key.name.as_str() == CANARY_POD && object.pod().is_some()
        };
        for Suffering { object, owner } in cluster.suffering() {
            if !is_canary(object)
                && let Some((cause, made, message)) = suffering(object, blamed)
            {
                observed.harms.push(harm(object, &owner, cause, made, message));
            }
        }
        for refusal in refusals {
            let FailedCreate {
                namespace,
                kind,
                name,
                uid,
                at,
                message,
            } = refusal;
            if let Child::Found(object) = cluster.owner(namespace, kind, name)
                && *object.uid == **uid
                && blamed.is_in(message)
            {
                let owner = cluster.outermost(object);
                let refused = harm(object, &owner, Cause::FailedCreate, *at, message);
                observed.harms.push(refused);
            }
        }
        for (agent, pod) in &self.pods {
            let Some(message) = self.missing_runner(*agent) else {
                continue;
            };
            let Some((object, owner)) = cluster.live_pod(&pod.namespace, &pod.name, &pod.uid) else {
                continue;
            };
            let Some(beside) = object.pod().and_then(|pod| pod.agent.as_deref()) else {
                continue;
            };
            if is_late(beside, *now) && !is_canary(object) {
                let made = beside.created;
                observed
                    .harms
                    .push(harm(object, &owner, Cause::CarrierMissing, made, &message));
            }
        }
        if let Ok(name) = CANARY_POD.parse::<Name>() {
            observed.canary = cluster
                .pod(home, &name)
                .and_then(|object| self.canary(object, blamed, *now));
        }
        self.look_up_owners(record, &mut observed);
        observed
    }

    /// What an agent says of a container in which no runner has come up.
    fn missing_runner(&self, agent: u32) -> Option<String> {
        let probes = self.fleet.get(agent).probes.iter();
        probes
            .filter(|probe| probe.state == ProbeState::Pending)
            .filter_map(|probe| probe.detail.as_deref())
            .find(|detail| detail.reason == Reason::UNSUPPORTED)
            .map(|detail| detail.message.to_string())
    }

    fn canary(&self, object: &Object, blamed: &Blamed, now: Timestamp) -> Option<Canary> {
        let pod = object.pod()?;
        let beside = pod.agent.as_deref()?;
        if object.deleting.is_some() {
            return None;
        }
        let agent = self.agents_of_pods.get(&object.uid).copied();
        let checks = agent.map(|agent| &self.fleet.get(agent).probes);
        let is_checked = checks.is_some_and(|probes| {
            !probes.is_empty() && probes.iter().all(|probe| probe.state == ProbeState::Passing)
        });
        let without_runner = agent
            .filter(|_| is_late(beside, now))
            .and_then(|agent| self.missing_runner(agent));
        let hindered = beside
            .hindrance
            .as_ref()
            .map(|hindrance| hindrance.message.to_string());
        Some(Canary {
            uid: object.uid.to_string(),
            is_well: *beside.image == *blamed.image && pod.ready && is_checked,
            suffers: hindered.or(without_runner),
        })
    }

    fn look_up_owners(&self, record: &Record, observed: &mut Observed) {
        let Some(cluster) = &self.cluster else { return };
        let tripped = record
            .trips
            .iter()
            .filter_map(|trip| trip.namespace.clone().zip(trip.owner.clone()));
        let suffering = observed
            .harms
            .iter()
            .map(|harm| (harm.namespace.clone(), harm.owner.clone()));
        let all: BTreeSet<(String, OwnerRef)> = tripped.chain(suffering).collect();
        for (namespace, owner) in all {
            match cluster.owner(&namespace, &owner.kind, &owner.name) {
                Child::Found(object) => {
                    let template = match &object.state {
                        State::Workload(workload) => Some(workload.template),
                        State::CronJob(cron) => Some(cron.template),
                        State::Pod(_) | State::Job(_) | State::Composite(_) | State::Judged(_) => None,
                    };
                    let now = OwnerNow {
                        api_version: object.api_version.to_string(),
                        uid: object.uid.to_string(),
                        template: template.map(|digest| format!("{digest:016x}")),
                    };
                    observed.owners.insert((namespace, owner), now);
                }
                Child::NotFound => {
                    observed.gone.insert((namespace, owner));
                }
                Child::Unknown(_) => {}
            }
        }
    }
}

fn harm(object: &Object, owner: &ComponentKey, cause: Cause, made: Timestamp, message: &str) -> Harm {
    Harm {
        namespace: object.key.namespace.to_string(),
        owner: OwnerRef {
            kind: owner.kind.to_string(),
            name: owner.name.to_string(),
        },
        cause,
        name: object.key.name.to_string(),
        uid: object.uid.to_string(),
        made,
        message: message.to_owned(),
    }
}

/// What an object suffers, if it is because of us.
fn suffering<'a>(object: &'a Object, blamed: &Blamed) -> Option<(Cause, Timestamp, &'a str)> {
    match &object.state {
        State::Pod(pod) => {
            let beside = pod.agent.as_deref()?;
            let hindrance = beside.hindrance.as_deref()?;
            let cause = if hindrance.is_image {
                Cause::ImagePull
            } else {
                Cause::AgentNotStarting
            };
            Some((cause, beside.created, &hindrance.message))
        }
        State::Workload(workload) => {
            let refused = workload.refused.as_deref()?;
            let is_ours = blamed.is_in(&refused.message);
            is_ours.then_some((Cause::FailedCreate, refused.since, &*refused.message))
        }
        State::Job(_) | State::CronJob(_) | State::Composite(_) | State::Judged(_) => None,
    }
}

/// Whether every runner of a pod should be up by now.
fn is_late(beside: &Beside, now: Timestamp) -> bool {
    let due = SignedDuration::from_secs(i64::from(beside.carrier_due));
    beside
        .ready_since
        .is_some_and(|ready| now.duration_since(ready) > due)
}
