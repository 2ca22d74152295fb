//! What annotations say about injection: which containers are meant, additional checks, resources.
//!
//! A value that cannot be meant is a reason to leave the pod alone and say so, never a reason to refuse it. A namespace's
//! annotations are defaults for its pods; additional checks come from the pod alone, because who may annotate a namespace
//! need not be one who may run commands in it.

use {
    super::{
        Surroundings,
        resources::Resources,
        shape,
        skip::{Holder, SkipReason},
    },
    healthscope_crd::key,
    healthscope_shared::{
        name::PortName,
        probe::fields::{Errors, NamedProbeFields, PortRef, ProbeContext},
        truncate,
    },
    serde_json::Value,
    std::{
        collections::{BTreeMap, BTreeSet},
        net::IpAddr,
    },
};

/// Longest annotation that is read; Kubernetes allows 256 KiB for all of an object's together.
const MAX_ANNOTATION_BYTES: usize = 64 * 1024;
/// Most additional checks of a pod: each costs the pod something in every period.
const MAX_PROBES: usize = 100;
/// Most parser events of an annotation in YAML, about two for each value.
const MAX_EVENTS: usize = 50_000;
/// Most names of containers that a message lists.
const MAX_NAMES: usize = 8;
/// Most problems of one annotation that are told.
const MAX_PROBLEMS: usize = 3;

/// What the annotations of a pod and its namespace add up to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// The containers whose own probes are repeated.
    pub(super) mirror: Selection,
    /// The containers whose commands are run.
    pub(super) exec: Selection,
    /// The containers in which a postStart hook may start the runner.
    pub(super) post_start: Selection,
    /// The containers whose readiness command may start the runner.
    pub(super) carry_readiness: Selection,
    /// Checks beside those that containers declare, in the order written.
    pub(super) probes: Vec<ExtraProbe>,
    /// What the agent's container asks for.
    pub(super) resources: Option<Resources>,
}

/// A check that an annotation adds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ExtraProbe {
    /// The container that it is about.
    pub(super) container: String,
    /// The check, valid, with ports as numbers.
    pub(super) fields: NamedProbeFields,
}

/// Which containers are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of them.
    All,
    /// None of them.
    None,
    /// These.
    Only(BTreeSet<String>),
    /// All but these.
    AllBut(BTreeSet<String>),
}

impl From<bool> for Selection {
    fn from(all: bool) -> Self {
        if all { Self::All } else { Self::None }
    }
}

impl Selection {
    /// Whether a container is meant.
    pub(super) fn has(&self, container: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(names) => names.contains(container),
            Self::AllBut(names) => !names.contains(container),
        }
    }

    /// Reads `true`, `false`, `web,db` or `-istio-proxy`.
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" => return Ok(Self::All),
            "false" => return Ok(Self::None),
            _ => {}
        }
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let without: BTreeSet<String> = words
            .iter()
            .filter_map(|word| word.strip_prefix('-'))
            .map(ToOwned::to_owned)
            .collect();
        if words.iter().any(|word| matches!(*word, "" | "-")) {
            return Err(format!(
                "is {:?}; write true, false, names of containers (web,db) or those to leave out (-web)",
                truncate(text, 80)
            ));
        }
        if without.is_empty() {
            Ok(Self::Only(words.into_iter().map(ToOwned::to_owned).collect()))
        } else if words.iter().all(|word| word.starts_with('-')) {
            Ok(Self::AllBut(without))
        } else {
            Err("names containers and leaves others out; write either (web,db) or (-web)".to_owned())
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::All | Self::None => None,
            Self::Only(names) | Self::AllBut(names) => Some(names),
        }
        .into_iter()
        .flatten()
        .map(String::as_str)
    }
}

impl Settings {
    /// Reads the annotations; `post_start` is what holds where none says anything.
    pub(super) fn read(pod: &Value, around: &Surroundings<'_>, post_start: bool) -> Result<Self, SkipReason> {
        let selection = |key, default: bool| selection(pod, around, key, default.into());
        Ok(Self {
            mirror: selection(key::MIRROR, true)?,
            exec: selection(key::EXEC, true)?,
            post_start: selection(key::POST_START, post_start)?,
            carry_readiness: selection(key::CARRY_READINESS, false)?,
            probes: probes(pod)?,
            resources: resources(pod, around)?,
        })
    }
}

/// An annotation of the pod, or else of its namespace.
fn annotation<'a>(
    pod: &'a Value,
    around: &Surroundings<'a>,
    key: &'static str,
) -> Result<Option<(Holder, &'a str)>, SkipReason> {
    let found = match shape::metadata(pod, "annotations", key) {
        Some(text) => Some((Holder::Pod, text)),
        None => around
            .annotations
            .get(key)
            .map(|text| (Holder::Namespace, text.as_str())),
    };
    match found {
        Some((holder, text)) if text.len() > MAX_ANNOTATION_BYTES => Err(SkipReason::InvalidAnnotation {
            holder,
            key,
            problem: format!("is longer than {MAX_ANNOTATION_BYTES} bytes"),
        }),
        found => Ok(found),
    }
}

fn selection(
    pod: &Value,
    around: &Surroundings<'_>,
    key: &'static str,
    default: Selection,
) -> Result<Selection, SkipReason> {
    let Some((holder, text)) = annotation(pod, around, key)? else {
        return Ok(default);
    };
    let invalid = |problem| SkipReason::InvalidAnnotation { holder, key, problem };
    let selection = Selection::parse(text).map_err(invalid)?;
    let known = shape::container_names(pod);
    // A namespace speaks to all of its pods, and they have different containers.
    let unknown = match holder {
        Holder::Pod => selection.names().find(|name| !known.contains(name)),
        Holder::Namespace => None,
    };
    match unknown {
        Some(unknown) => Err(invalid(no_container(unknown, &known))),
        None => Ok(selection),
    }
}

fn no_container(name: &str, known: &[&str]) -> String {
    format!(
        "no container is called {:?}; there {} {}",
        truncate(name, 80),
        if known.len() == 1 { "is" } else { "are" },
        some(known),
    )
}

/// The first few of many names.
fn some(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().copied().take(MAX_NAMES).collect();
    let more = if names.len() > MAX_NAMES {
        " and others"
    } else {
        ""
    };
    format!("{}{more}", shown.join(", "))
}

fn resources(pod: &Value, around: &Surroundings<'_>) -> Result<Option<Resources>, SkipReason> {
    let key = key::RESOURCES;
    let Some((holder, text)) = annotation(pod, around, key)? else {
        return Ok(None);
    };
    let invalid = |problem| SkipReason::InvalidAnnotation { holder, key, problem };
    let value: Value = yaml(text).map_err(invalid)?;
    Resources::read(&value).map(Some).map_err(invalid)
}

fn probes(pod: &Value) -> Result<Vec<ExtraProbe>, SkipReason> {
    let key = key::PROBES;
    let holder = Holder::Pod;
    let Some(text) = shape::metadata(pod, "annotations", key) else {
        return Ok(Vec::new());
    };
    let invalid = |problem| SkipReason::InvalidAnnotation { holder, key, problem };
    if text.len() > MAX_ANNOTATION_BYTES {
        return Err(invalid(format!("is longer than {MAX_ANNOTATION_BYTES} bytes")));
    }
    let Value::Array(list) = yaml(text).map_err(invalid)? else {
        return Err(invalid(
            "must be a list, such as [{name: ready, httpGet: {port: 8080}}]".to_owned(),
        ));
    };
    if list.len() > MAX_PROBES {
        return Err(invalid(format!("must not have more than {MAX_PROBES} checks")));
    }
    let mut problems = Vec::new();
    let mut probes = Vec::new();
    for (index, value) in list.into_iter().enumerate() {
        match probe(value, pod) {
            Ok(probe) => probes.push(probe),
            Err(found) => problems.extend(found.into_iter().map(|problem| format!("[{index}]{problem}"))),
        }
    }
    if problems.is_empty() {
        return Ok(probes);
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(invalid(problems.join("; ")))
}

/// One additional check, or all that is wrong with it, each beginning with the path from the list's element on.
fn probe(mut value: Value, pod: &Value) -> Result<ExtraProbe, Vec<String>> {
    let one = |problem: String| vec![format!(": {problem}")];
    let known = shape::container_names(pod);
    let named = value
        .as_object_mut()
        .and_then(|object| object.remove("container"));
    let container = match (named, known.as_slice()) {
        (Some(Value::String(name)), known) if known.contains(&name.as_str()) => name,
        (Some(Value::String(name)), known) => {
            return Err(vec![format!(".container: {}", no_container(&name, known))]);
        }
        (Some(_), _) => return Err(vec![".container: must be the name of a container".to_owned()]),
        (None, [only]) => (*only).to_owned(),
        (None, _) => {
            return Err(vec![format!(
                ".container: is needed, because there are several: {}",
                some(&known)
            )]);
        }
    };
    let mut fields: NamedProbeFields = serde_json::from_value(value)
        .map_err(|error| one(healthscope_shared::one_line(&error.to_string(), 200)))?;
    let ports = ports(
        shape::list(pod, "containers")
            .iter()
            .find(|other| shape::name(other) == container)
            .unwrap_or(&Value::Null),
    );
    let mut found = Vec::new();
    let mut errors = Errors::new("", &mut found);
    if let Some(exec) = &fields.exec
        && (exec.container.is_some() || exec.check.is_some())
    {
        errors
            .at("exec")
            .push("container and check are written by the injector; say container beside name");
    }
    for (field, host) in [
        (
            "httpGet.host",
            fields.http_get.as_ref().and_then(|http| http.host.as_deref()),
        ),
        (
            "tcpSocket.host",
            fields.tcp_socket.as_ref().and_then(|tcp| tcp.host.as_deref()),
        ),
    ] {
        if host.is_some_and(|host| !is_in_pod(host)) {
            errors
                .at(field)
                .push("the agent asks its own pod only; leave host out, or write localhost");
        }
    }
    // Validated as the agent will do, so that nothing is injected that it would refuse.
    let context = ProbeContext {
        host: "127.0.0.1",
        ports: &ports,
    };
    let _the_agent_s_form = fields.clone().validate(context, &mut errors);
    if !found.is_empty() {
        return Err(found.iter().map(|error| format!(".{error}")).collect());
    }
    let resolve = |port: &mut PortRef| {
        if let PortRef::Name(name) = port
            && let Some(&number) = PortName::new(name.as_str())
                .ok()
                .and_then(|name| ports.get(&name))
        {
            *port = PortRef::Number(number.into());
        }
    };
    if let Some(http) = &mut fields.http_get {
        resolve(&mut http.port);
    }
    if let Some(tcp) = &mut fields.tcp_socket {
        resolve(&mut tcp.port);
    }
    Ok(ExtraProbe { container, fields })
}

/// The ports that a container names.
pub(super) fn ports(container: &Value) -> BTreeMap<PortName, u16> {
    let mut ports = BTreeMap::new();
    for port in shape::items(&container["ports"]) {
        let name = PortName::new(shape::name(port));
        let number = port["containerPort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        if let (Ok(name), Some(number)) = (name, number.filter(|port| *port > 0)) {
            ports.entry(name).or_insert(number);
        }
    }
    ports
}

/// Whether a host is certainly the pod itself.
fn is_in_pod(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.is_empty()
        || bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: MAX_EVENTS, max_depth: 32 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_EVENTS },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet().to_string();
        format!(
            "is neither YAML nor JSON: {}",
            healthscope_shared::one_line(&error, 200)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_read() {
        #[track_caller]
        fn check(text: &str, expected: Result<(bool, bool), &str>) {
            match (Selection::parse(text), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!((found.has("web"), found.has("db")), expected, "{text:?}");
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text:?}: {found}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
        check("true", Ok((true, true)));
        check(" false ", Ok((false, false)));
        check("web", Ok((true, false)));
        check("web, db", Ok((true, true)));
        check("-web", Ok((false, true)));
        check("-web,-db", Ok((false, false)));
        check("web,-db", Err("write either"));
        check("", Err("write true, false"));
        check("web,,db", Err("write true, false"));
        check("-", Err("write true, false"));
    }

    #[test]
    fn hosts_of_the_pod_are_told_from_others() {
        for (host, expected) in [
            ("", true),
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("::1", true),
            ("10.0.0.1", false),
            ("db.shop.svc", false),
            ("127.0.0.1.example.org", false),
        ] {
            assert_eq!(is_in_pod(host), expected, "{host}");
        }
    }
}
