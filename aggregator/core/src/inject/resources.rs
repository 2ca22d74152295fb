//! What the agent's container asks for, so that the pod stays in its class of service and its namespace's rules hold.
//!
//! A pod's class never changes: a Guaranteed pod gets limits that equal the requests, a Burstable one requests alone (so
//! that autoscalers that divide by requests go on working), and one that asks for nothing stays BestEffort. LimitRanges
//! and ResourceQuotas are met, or are the reason to leave the pod alone.

use {
    super::{Surroundings, quantity::Quantity, shape, skip::SkipReason},
    k8s_openapi::{
        api::core::v1::{LimitRange, LimitRangeItem, ResourceQuota},
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    serde_json::{Map, Value},
    std::{collections::BTreeMap, ops::Add as _},
};

/// The least memory that a limit may leave: on cgroup v2 running out of it ends the whole container, and with it takes
/// the pod out of service.
pub const MIN_MEMORY_LIMIT: Quantity = Quantity::mebi(32);
/// The memory limit where something demands one.
const MEMORY_LIMIT: Quantity = Quantity::mebi(64);
/// The cpu limit where something demands one: enough for a TLS handshake within a few scheduling periods.
const CPU_LIMIT: Quantity = Quantity::milli(100);
/// The least cpu that a limit may leave.
const MIN_CPU_LIMIT: Quantity = Quantity::milli(10);
/// Cpu of the agent in a Guaranteed pod, where the request is the limit too.
const GUARANTEED_CPU: Quantity = Quantity::milli(20);

/// Cpu and memory, each where it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Cores.
    pub cpu: Option<Quantity>,
    /// Bytes.
    pub memory: Option<Quantity>,
}

/// Requests and limits of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// What is kept free for it.
    pub requests: Amounts,
    /// What it cannot go beyond.
    pub limits: Amounts,
}

/// What an agent is given when nobody says otherwise.
impl Default for Resources {
    fn default() -> Self {
        Self {
            requests: Amounts {
                cpu: Some(Quantity::milli(5)),
                memory: Some(Quantity::mebi(16)),
            },
            limits: Amounts::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cpu,
    Memory,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Cpu, Self::Memory];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    fn show(self, quantity: Quantity) -> String {
        match self {
            Self::Cpu => quantity.cpu(),
            Self::Memory => quantity.memory(),
        }
    }
}

impl Amounts {
    const fn get(self, kind: Kind) -> Option<Quantity> {
        match kind {
            Kind::Cpu => self.cpu,
            Kind::Memory => self.memory,
        }
    }

    const fn set(&mut self, kind: Kind, quantity: Quantity) {
        match kind {
            Kind::Cpu => self.cpu = Some(quantity),
            Kind::Memory => self.memory = Some(quantity),
        }
    }

    fn read(value: &Value, path: &str) -> Result<Self, String> {
        let mut amounts = Self::default();
        let Some(object) = value.as_object() else {
            return match value {
                Value::Null => Ok(amounts),
                _ => Err(format!("{path}: must be a mapping")),
            };
        };
        for (name, amount) in object {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == name) else {
                let shown = healthscope_shared::truncate(name, 60);
                return Err(format!("{path}.{shown}: only cpu and memory are known here"));
            };
            let text = match amount {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let Some(quantity) = Quantity::parse(&text) else {
                let shown = healthscope_shared::truncate(&text, 60);
                return Err(format!(
                    "{path}.{name}: {shown} is not a quantity; write for example 10m or 32Mi"
                ));
            };
            amounts.set(kind, quantity);
        }
        Ok(amounts)
    }

    fn write(self) -> Option<Value> {
        let amounts: Map<String, Value> = Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind.as_str().to_owned(), kind.show(self.get(kind)?).into())))
            .collect();
        (!amounts.is_empty()).then_some(Value::Object(amounts))
    }
}

impl Resources {
    /// Nothing said at all.
    const NONE: Self = Self {
        requests: Amounts {
            cpu: None,
            memory: None,
        },
        limits: Amounts {
            cpu: None,
            memory: None,
        },
    };

    /// Reads `{requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 64Mi}}`.
    ///
    /// # Errors
    /// Says which field cannot be used.
    pub fn read(value: &Value) -> Result<Self, String> {
        let object = value
            .as_object()
            .ok_or("must be a mapping, such as {requests: {cpu: 10m, memory: 32Mi}}")?;
        if let Some(unknown) = object
            .keys()
            .find(|key| !matches!(key.as_str(), "requests" | "limits"))
        {
            let shown = healthscope_shared::truncate(unknown, 60);
            return Err(format!(
                "there is no field {shown:?}; the fields are requests and limits"
            ));
        }
        let resources = Self {
            requests: Amounts::read(&value["requests"], "requests")?,
            limits: Amounts::read(&value["limits"], "limits")?,
        };
        for kind in Kind::ALL {
            if let (Some(request), Some(limit)) = (resources.requests.get(kind), resources.limits.get(kind))
                && request > limit
            {
                return Err(format!("requests.{} is above limits.{0}", kind.as_str()));
            }
        }
        if resources
            .limits
            .memory
            .is_some_and(|limit| limit < MIN_MEMORY_LIMIT)
        {
            return Err(format!(
                "limits.memory must be at least {}: an agent that runs out of memory takes the pod out of service",
                MIN_MEMORY_LIMIT.memory()
            ));
        }
        Ok(resources)
    }

    /// As in a container; `None` when it says nothing.
    pub(super) fn write(self) -> Option<Value> {
        let mut object = Map::new();
        object.extend(self.requests.write().map(|value| ("requests".to_owned(), value)));
        object.extend(self.limits.write().map(|value| ("limits".to_owned(), value)));
        (!object.is_empty()).then_some(Value::Object(object))
    }

    /// What a container's field says, nothing included; `None` when that cannot be said here.
    pub(super) fn said(written: &Value) -> Option<Self> {
        match written {
            Value::Null => Some(Self::NONE),
            other => Self::read(other).ok(),
        }
    }
}

/// How the kubelet treats a pod when its node is short of something (`pkg/apis/core/v1/helper/qos`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// What one of the pod's own containers asks for; a limit without a request means a request of the same.
fn own(container: &Value) -> Resources {
    let amount = |part: &str, kind: Kind| {
        let value = &container["resources"][part][kind.as_str()];
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        Quantity::parse(&text).filter(|quantity| !quantity.is_zero())
    };
    let mut resources = Resources::NONE;
    for kind in Kind::ALL {
        if let Some(limit) = amount("limits", kind) {
            resources.limits.set(kind, limit);
        }
        if let Some(request) = amount("requests", kind).or(resources.limits.get(kind)) {
            resources.requests.set(kind, request);
        }
    }
    resources
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    shape::list(pod, "containers")
        .iter()
        .chain(shape::list(pod, "initContainers"))
}

fn class(pod: &Value) -> Class {
    let mut is_guaranteed = true;
    let mut is_best_effort = true;
    for container in containers(pod) {
        let Resources { requests, limits } = own(container);
        is_best_effort &= requests == Amounts::default();
        is_guaranteed &= Kind::ALL
            .into_iter()
            .all(|kind| limits.get(kind).is_some() && limits.get(kind) == requests.get(kind));
    }
    match (is_best_effort, is_guaranteed) {
        (true, _) => Class::BestEffort,
        (false, true) => Class::Guaranteed,
        (false, false) => Class::Burstable,
    }
}

/// What the agent's container is to ask for in this pod.
///
/// `asked` is what an annotation says, `default` what holds without one.
pub(super) fn fit(
    pod: &Value,
    asked: Option<Resources>,
    default: Resources,
    around: &Surroundings<'_>,
) -> Result<Resources, SkipReason> {
    let has_pod_level = ["requests", "limits"].iter().any(|part| {
        pod["spec"]["resources"][*part]
            .as_object()
            .is_some_and(|part| !part.is_empty())
    });
    if has_pod_level {
        // The pod has a budget as a whole, and containers may not ask for more than it: the agent lives within.
        return Ok(asked.unwrap_or(Resources::NONE));
    }
    let class = class(pod);
    let wanted = asked.unwrap_or(default);
    let mut resources = match class {
        Class::Guaranteed => guaranteed(wanted),
        Class::Burstable => wanted,
        Class::BestEffort => asked.unwrap_or(Resources::NONE),
    };
    let quotas: Vec<_> = around
        .quotas
        .iter()
        .filter(|quota| is_about(quota, pod, class))
        .collect();
    for quota in &quotas {
        demand(quota, &mut resources, wanted)?;
    }
    for range in around.limit_ranges {
        for item in range.spec.iter().flat_map(|spec| &spec.limits) {
            match item.type_.as_str() {
                "Container" => container_range(range, item, &mut resources, wanted)?,
                _other_kind_of_object => {}
            }
        }
    }
    if class == Class::Guaranteed {
        resources = equal(resources);
    }
    check_container(around.limit_ranges, resources)?;
    let total = total(pod, resources);
    check_pod(around.limit_ranges, total)?;
    for quota in quotas {
        check_quota(quota, total)?;
    }
    Ok(resources)
}

fn guaranteed(wanted: Resources) -> Resources {
    let mut resources = Resources::NONE;
    for (kind, least) in [(Kind::Cpu, GUARANTEED_CPU), (Kind::Memory, MIN_MEMORY_LIMIT)] {
        let said = wanted.limits.get(kind).or(wanted.requests.get(kind));
        resources.limits.set(kind, said.unwrap_or(least).max(least));
    }
    equal(resources)
}

/// Requests and limits alike: the larger of both.
fn equal(mut resources: Resources) -> Resources {
    for kind in Kind::ALL {
        let larger = resources.limits.get(kind).max(resources.requests.get(kind));
        if let Some(larger) = larger {
            resources.limits.set(kind, larger);
            resources.requests.set(kind, larger);
        }
    }
    resources
}

fn require_request(resources: &mut Resources, kind: Kind, wanted: Resources) {
    if resources.requests.get(kind).is_none() {
        let default = Resources::default();
        let request = resources
            .limits
            .get(kind)
            .or(wanted.requests.get(kind))
            .or(default.requests.get(kind));
        resources.requests.set(kind, request.unwrap_or_default());
    }
}

fn require_limit(resources: &mut Resources, kind: Kind) {
    if resources.limits.get(kind).is_none() {
        let limit = match kind {
            Kind::Cpu => CPU_LIMIT,
            Kind::Memory => MEMORY_LIMIT,
        };
        let request = resources.requests.get(kind).unwrap_or_default();
        resources.limits.set(kind, limit.max(request));
    }
}

/// An amount of a LimitRange or a ResourceQuota; one that cannot be read does not count, and the API server keeps none.
fn amount(amounts: Option<&BTreeMap<String, ApiQuantity>>, key: &str) -> Option<Quantity> {
    Quantity::parse(&amounts?.get(key)?.0)
}

fn called(name: Option<&String>) -> String {
    name.cloned().unwrap_or_default()
}

/// What a LimitRange demands of a container, taken on as far as it can be.
fn container_range(
    range: &LimitRange,
    item: &LimitRangeItem,
    resources: &mut Resources,
    wanted: Resources,
) -> Result<(), SkipReason> {
    for kind in Kind::ALL {
        let key = kind.as_str();
        let least = amount(item.min.as_ref(), key);
        let most = amount(item.max.as_ref(), key);
        let has_default = amount(item.default.as_ref(), key).is_some();
        let has_default_request = amount(item.default_request.as_ref(), key).is_some();
        let ratio = amount(item.max_limit_request_ratio.as_ref(), key);
        // What is not said would be filled in with the namespace's default, which may be too little, or far too much.
        if most.is_some() || has_default || ratio.is_some() {
            require_limit(resources, kind);
        }
        if most.is_some() || has_default || has_default_request || least.is_some() || ratio.is_some() {
            require_request(resources, kind, wanted);
        }
        if let (Some(most), Some(limit)) = (most, resources.limits.get(kind))
            && limit > most
        {
            let needed = match kind {
                Kind::Cpu => MIN_CPU_LIMIT,
                Kind::Memory => MIN_MEMORY_LIMIT,
            };
            if most < needed {
                return Err(SkipReason::LimitRange {
                    name: called(range.metadata.name.as_ref()),
                    problem: format!(
                        "it allows a container at most {} of {key}, and the agent needs {}",
                        kind.show(most),
                        kind.show(needed)
                    ),
                });
            }
            resources.limits.set(kind, most);
        }
        if let Some(least) = least {
            for amounts in [&mut resources.requests, &mut resources.limits] {
                if amounts.get(kind).is_some_and(|amount| amount < least) {
                    amounts.set(kind, least);
                }
            }
        }
        if let (Some(limit), Some(ratio)) = (resources.limits.get(kind), ratio)
            && let Some(request) = limit.divided_by(ratio)
            && resources.requests.get(kind).is_some_and(|said| said < request)
        {
            resources.requests.set(kind, request.min(limit));
        }
        if let (Some(limit), Some(request)) = (resources.limits.get(kind), resources.requests.get(kind))
            && request > limit
        {
            resources.requests.set(kind, limit);
        }
    }
    Ok(())
}

/// Whether what came out of all LimitRanges together satisfies each of them.
fn check_container(ranges: &[LimitRange], resources: Resources) -> Result<(), SkipReason> {
    for range in ranges {
        let items = range.spec.iter().flat_map(|spec| &spec.limits);
        for item in items.filter(|item| item.type_ == "Container") {
            for kind in Kind::ALL {
                let key = kind.as_str();
                let said = [resources.requests.get(kind), resources.limits.get(kind)];
                let refuse = |problem: String| {
                    Err(SkipReason::LimitRange {
                        name: called(range.metadata.name.as_ref()),
                        problem,
                    })
                };
                if let Some(most) = amount(item.max.as_ref(), key)
                    && said.iter().flatten().any(|amount| *amount > most)
                {
                    return refuse(format!(
                        "it allows a container at most {} of {key}",
                        kind.show(most)
                    ));
                }
                if let Some(least) = amount(item.min.as_ref(), key)
                    && said.iter().flatten().any(|amount| *amount < least)
                {
                    return refuse(format!(
                        "it asks for at least {} of {key} in a container",
                        kind.show(least)
                    ));
                }
                if let (Some(ratio), [Some(request), Some(limit)]) =
                    (amount(item.max_limit_request_ratio.as_ref(), key), said)
                    && limit.divided_by(ratio).is_some_and(|needed| request < needed)
                {
                    return refuse(format!("its ratio of limit to request cannot be kept for {key}"));
                }
            }
        }
    }
    Ok(())
}

/// What the whole pod asks for, with the agent, as the scheduler and quotas count it: the containers and native sidecars
/// together, or the largest of the init containers with the sidecars beside it.
fn total(pod: &Value, agent: Resources) -> Resources {
    let mut running = agent;
    let mut starting = Resources::NONE;
    for container in shape::list(pod, "initContainers") {
        let own = own(container);
        if container["restartPolicy"] == "Always" {
            running = merge(running, own, Quantity::add);
        } else {
            starting = merge(starting, merge(running, own, Quantity::add), Quantity::max);
        }
    }
    for container in shape::list(pod, "containers") {
        running = merge(running, own(container), Quantity::add);
    }
    merge(running, starting, Quantity::max)
}

fn merge(a: Resources, b: Resources, with: fn(Quantity, Quantity) -> Quantity) -> Resources {
    let amounts = |a: Amounts, b: Amounts| {
        let one = |a: Option<Quantity>, b: Option<Quantity>| match (a, b) {
            (Some(a), Some(b)) => Some(with(a, b)),
            (a, b) => a.or(b),
        };
        Amounts {
            cpu: one(a.cpu, b.cpu),
            memory: one(a.memory, b.memory),
        }
    };
    Resources {
        requests: amounts(a.requests, b.requests),
        limits: amounts(a.limits, b.limits),
    }
}

fn check_pod(ranges: &[LimitRange], total: Resources) -> Result<(), SkipReason> {
    for range in ranges {
        let items = range.spec.iter().flat_map(|spec| &spec.limits);
        for item in items.filter(|item| item.type_ == "Pod") {
            for kind in Kind::ALL {
                let Some(most) = amount(item.max.as_ref(), kind.as_str()) else {
                    continue;
                };
                let said = [total.requests.get(kind), total.limits.get(kind)];
                if let Some(over) = said.into_iter().flatten().find(|amount| *amount > most) {
                    return Err(SkipReason::LimitRange {
                        name: called(range.metadata.name.as_ref()),
                        problem: format!(
                            "it allows a pod at most {} of {}, and with the agent this one would have {}",
                            kind.show(most),
                            kind.as_str(),
                            kind.show(over)
                        ),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Whether a quota counts this pod. Scopes that are not known here count it: better no agent than no pod.
fn is_about(quota: &ResourceQuota, pod: &Value, class: Class) -> bool {
    let has_deadline = pod["spec"]["activeDeadlineSeconds"].is_number();
    let spec = quota.spec.as_ref();
    let plain = spec.and_then(|spec| spec.scopes.as_ref()).into_iter().flatten();
    let selected = spec
        .and_then(|spec| spec.scope_selector.as_ref())
        .and_then(|selector| selector.match_expressions.as_ref())
        .into_iter()
        .flatten()
        .filter(|expression| expression.operator == "Exists")
        .map(|expression| &expression.scope_name);
    plain.chain(selected).all(|scope| match scope.as_str() {
        "BestEffort" => class == Class::BestEffort,
        "NotBestEffort" => class != Class::BestEffort,
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        _other => true,
    })
}

/// What a quota counts of cpu and memory: its key, which of both, whether limits are meant.
const COUNTED: [(&str, Kind, bool); 6] = [
    ("cpu", Kind::Cpu, false),
    ("requests.cpu", Kind::Cpu, false),
    ("limits.cpu", Kind::Cpu, true),
    ("memory", Kind::Memory, false),
    ("requests.memory", Kind::Memory, false),
    ("limits.memory", Kind::Memory, true),
];
/// What each container must say where a quota counts it, and the agent's does not.
const NOT_SAID: [&str; 3] = [
    "ephemeral-storage",
    "requests.ephemeral-storage",
    "limits.ephemeral-storage",
];

fn hard(quota: &ResourceQuota) -> Option<&BTreeMap<String, ApiQuantity>> {
    quota.spec.as_ref()?.hard.as_ref()
}

/// What a quota counts must be said by every container.
fn demand(quota: &ResourceQuota, resources: &mut Resources, wanted: Resources) -> Result<(), SkipReason> {
    let Some(hard) = hard(quota) else {
        return Ok(());
    };
    for (key, kind, is_limit) in COUNTED {
        if !hard.contains_key(key) {
            continue;
        }
        if is_limit {
            require_limit(resources, kind);
        } else {
            require_request(resources, kind, wanted);
        }
    }
    match NOT_SAID.iter().find(|key| hard.contains_key(**key)) {
        Some(key) => Err(SkipReason::QuotaExceeded {
            name: called(quota.metadata.name.as_ref()),
            problem: format!(
                "it counts {key}, which every container must then state, and the agent's does not"
            ),
        }),
        None => Ok(()),
    }
}

fn check_quota(quota: &ResourceQuota, total: Resources) -> Result<(), SkipReason> {
    let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
    for (key, kind, is_limit) in COUNTED {
        let Some(most) = amount(hard(quota), key) else {
            continue;
        };
        let used = amount(used, key).unwrap_or_default();
        let amounts = if is_limit { total.limits } else { total.requests };
        let needed = amounts.get(kind).unwrap_or_default();
        if used + needed > most {
            return Err(SkipReason::QuotaExceeded {
                name: called(quota.metadata.name.as_ref()),
                problem: format!(
                    "{key} is at {} of {}, and with the agent this pod needs {}",
                    kind.show(used),
                    kind.show(most),
                    kind.show(needed)
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// Fits an agent into a pod with one container that asks for `own`; `limits` are of LimitRanges, `hard` of a quota.
    #[track_caller]
    fn check(own: &str, limits: &str, hard: &str, expected: &str) {
        let pod = json(&format!("spec: {{containers: [{{name: a, resources: {own}}}]}}"));
        check_pod_with(&pod, limits, hard, expected);
    }

    #[track_caller]
    fn check_pod_with(pod: &Value, limits: &str, hard: &str, expected: &str) {
        let range = json(&format!(
            "{{metadata: {{name: range}}, spec: {{limits: {limits}}}}}"
        ));
        let quota = json(&format!(
            "{{metadata: {{name: quota}}, spec: {hard}, status: {{used: {{requests.memory: 1Gi}}}}}}"
        ));
        let nothing = BTreeMap::new();
        let around = Surroundings {
            labels: &nothing,
            annotations: &nothing,
            limit_ranges: &[serde_json::from_value(range).unwrap()],
            quotas: &[serde_json::from_value(quota).unwrap()],
        };
        let found = match fit(pod, None, Resources::default(), &around) {
            Ok(resources) => resources
                .write()
                .map_or_else(|| "nothing".to_owned(), |value| value.to_string()),
            Err(reason) => reason.to_string(),
        };
        let expected = match json(expected) {
            Value::String(part) => part,
            other => other.to_string(),
        };
        assert!(
            found == expected || found.contains(&expected) && !expected.starts_with('{'),
            "{found}"
        );
    }

    #[test]
    fn the_class_of_service_is_kept() {
        let check = |own, expected| check(own, "[]", "{}", expected);
        check("{}", "nothing");
        check("{requests: {cpu: 0}}", "nothing");
        check("{requests: {cpu: 1m}}", "{requests: {cpu: 5m, memory: 16Mi}}");
        check("{limits: {memory: 1Gi}}", "{requests: {cpu: 5m, memory: 16Mi}}");
        check(
            "{limits: {cpu: 1, memory: 1Gi}}",
            "{limits: {cpu: 20m, memory: 32Mi}, requests: {cpu: 20m, memory: 32Mi}}",
        );
        check(
            "{limits: {cpu: 1, memory: 1024Mi}, requests: {cpu: 1000m, memory: 1Gi}}",
            "{limits: {cpu: 20m, memory: 32Mi}, requests: {cpu: 20m, memory: 32Mi}}",
        );
        check(
            "{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}",
            "{requests: {cpu: 5m, memory: 16Mi}}",
        );
    }

    #[test]
    fn a_container_without_limits_makes_the_pod_burstable() {
        let pod = json(
            "spec: {containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}], initContainers: [{name: b}]}",
        );
        check_pod_with(&pod, "[]", "{}", "{requests: {cpu: 5m, memory: 16Mi}}");
    }

    #[test]
    fn limit_ranges_are_met_or_are_the_reason() {
        let burstable = "{requests: {cpu: 1, memory: 1Gi}}";
        let check = |own, limits, expected| check(own, limits, "{}", expected);
        check(
            burstable,
            "[{type: Container, max: {memory: 48Mi}}]",
            "{limits: {memory: 48Mi}, requests: {cpu: 5m, memory: 16Mi}}",
        );
        check(
            burstable,
            "[{type: Container, min: {memory: 128Mi}, max: {memory: 1Gi}}]",
            "{limits: {memory: 128Mi}, requests: {cpu: 5m, memory: 128Mi}}",
        );
        check(
            burstable,
            "[{type: Container, max: {cpu: 50m}}]",
            "{limits: {cpu: 50m}, requests: {cpu: 5m, memory: 16Mi}}",
        );
        check(
            burstable,
            "[{type: Container, max: {cpu: 5m}}]",
            "at most 5m of cpu, and the agent needs 10m",
        );
        check(
            burstable,
            "[{type: Container, max: {memory: 31Mi}}]",
            "at most 31Mi of memory, and the agent needs 32Mi",
        );
        // Two ranges that exclude each other.
        check(
            burstable,
            "[{type: Container, max: {memory: 40Mi}}, {type: Container, min: {memory: 50Mi}}]",
            "LimitRange range leaves no room",
        );
        check(
            "{limits: {cpu: 1, memory: 1Gi}}",
            "[{type: Container, min: {cpu: 100m}, maxLimitRequestRatio: {cpu: 1}}]",
            "{limits: {cpu: 100m, memory: 32Mi}, requests: {cpu: 100m, memory: 32Mi}}",
        );
        check(burstable, "[{type: Pod, max: {memory: 1Gi}}]", "1040Mi");
        check(
            burstable,
            "[{type: PersistentVolumeClaim, max: {storage: 1}}]",
            "{requests: {cpu: 5m, memory: 16Mi}}",
        );
        check(
            burstable,
            "[{type: Container, max: {memory: nonsense}}]",
            "{requests: {cpu: 5m, memory: 16Mi}}",
        );
    }

    #[test]
    fn quotas_are_met_or_are_the_reason() {
        let burstable = "{requests: {cpu: 1, memory: 1Gi}}";
        let plain = "{requests: {cpu: 5m, memory: 16Mi}}";
        let check = |own, hard, expected| check(own, "[]", hard, expected);
        check(burstable, "{hard: {requests.memory: 3Gi}}", plain);
        check(
            burstable,
            "{hard: {requests.memory: 2Gi}}",
            "requests.memory is at 1Gi of 2Gi",
        );
        check(
            burstable,
            "{hard: {memory: 1Gi}}",
            "memory is at 0 of 1Gi, and with the agent this pod needs 1040Mi",
        );
        check(
            burstable,
            "{hard: {limits.cpu: 1}}",
            "{limits: {cpu: 100m}, requests: {cpu: 5m, memory: 16Mi}}",
        );
        check(burstable, "{hard: {pods: 0}}", plain);
        check(
            burstable,
            "{hard: {requests.memory: 1}, scopes: [BestEffort]}",
            plain,
        );
        check(
            burstable,
            "{hard: {requests.memory: 1}, scopes: [NotBestEffort]}",
            "leaves no room",
        );
        check(
            burstable,
            "{hard: {requests.memory: 1}, scopes: [Terminating]}",
            plain,
        );
        check(
            burstable,
            "{hard: {requests.memory: 1}, scopes: [NotTerminating]}",
            "leaves no room",
        );
        check(
            burstable,
            "{hard: {requests.ephemeral-storage: 1Gi}}",
            "it counts requests.ephemeral-storage",
        );
        // What the server would refuse anyway does not become ours to explain.
        check("{}", "{hard: {requests.cpu: 10}}", "{requests: {cpu: 5m}}");
    }

    #[test]
    fn init_containers_count_beside_the_agent() {
        let pod = json(
            "spec: {containers: [{name: a, resources: {requests: {memory: 100Mi}}}], \
             initContainers: [{name: i, resources: {requests: {memory: 300Mi}}}, \
             {name: s, restartPolicy: Always, resources: {requests: {memory: 50Mi}}}]}",
        );
        let total = total(&pod, Resources::default());
        assert_eq!(total.requests.memory, Some(Quantity::mebi(316)));
    }

    #[test]
    fn annotations_are_read() {
        for (yaml, expected) in [
            ("{requests: {cpu: 10m}}", "{\"requests\":{\"cpu\":\"10m\"}}"),
            (
                "{requests: {cpu: 1, memory: 1024Mi}}",
                "{\"requests\":{\"cpu\":\"1\",\"memory\":\"1Gi\"}}",
            ),
            ("{limits: {memory: 31Mi}}", "at least 32Mi"),
            ("{requests: {cpu: much}}", "requests.cpu: much is not a quantity"),
            ("{requests: {gpu: 1}}", "requests.gpu: only cpu and memory"),
            ("{request: {cpu: 1}}", "no field \"request\""),
            (
                "{requests: {cpu: 2}, limits: {cpu: 1}}",
                "requests.cpu is above limits.cpu",
            ),
            ("[]", "must be a mapping"),
            ("{requests: 3}", "requests: must be a mapping"),
        ] {
            let found = match Resources::read(&json(yaml)) {
                Ok(resources) => resources.write().unwrap().to_string(),
                Err(problem) => problem,
            };
            assert!(found.contains(expected), "{yaml}: {found}");
        }
    }
}
