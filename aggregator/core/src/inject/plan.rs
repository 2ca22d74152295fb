//! Which checks the agent of a pod makes, and how the runner comes into each container that has command checks.
//!
//! Looks at application containers (`spec.containers`). Init containers end before there is anything to check, native
//! sidecars of others are their owners' affair, ephemeral containers are a person's.

use {
    super::{
        Note, NoteReason, Options, Stance,
        annotation::{self, ExtraProbe, Selection, Settings},
        command::{self, Verb},
        shape,
        sidecar::DIRECTORY,
        skip::{Holder, SkipReason},
    },
    healthscope_crd::key,
    healthscope_shared::{
        name::{PortName, ProbeName},
        probe::{
            ProbeKind,
            fields::{
                Errors, ExecFields, GrpcFields, HttpGetFields, HttpHeaderFields, NamedProbeFields, PortRef,
                ProbeContext, SchemeField, TcpSocketFields,
            },
        },
    },
    serde_json::{Map, Value, json},
    std::collections::{BTreeMap, BTreeSet},
};

/// Commands that one runner knows: the agent asks for them by a number in a byte.
const MAX_COMMANDS: usize = 256;
/// What a container's command checks may add to its command lines; Linux gives a new process 2 MiB for all of them.
const MAX_COMMAND_BYTES: usize = 256 * 1024;
/// The highest threshold that Kubernetes takes: no number of failures of the carrier ever ends the container.
const NEVER: i32 = i32::MAX;
/// Seconds between two looks of the carrier: a runner that was killed is back within this time.
const CARRIER_PERIOD: i32 = 10;
/// The longest name of a probe.
const MAX_NAME_BYTES: usize = 63;

/// The containers' slots for probes, in the order in which their checks are listed.
const SLOTS: [(&str, ProbeKind); 3] = [
    ("readinessProbe", ProbeKind::Readiness),
    ("livenessProbe", ProbeKind::Liveness),
    ("startupProbe", ProbeKind::Startup),
];

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The agent's checks.
    pub(super) probes: Vec<NamedProbeFields>,
    /// The containers that get a runner.
    pub(super) targets: Vec<Target>,
    /// What was left out, and why.
    pub(super) notes: Vec<Note>,
}

/// A container that gets a runner.
#[derive(Debug)]
pub(super) struct Target {
    /// Its place among the containers.
    index: usize,
    /// Its name.
    pub(super) name: String,
    way: Way,
    /// The runner's commands, by number.
    commands: Vec<Vec<String>>,
}

/// How a runner is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A liveness probe that the container did not have.
    Carrier,
    /// The command of a probe that it has, which is carried out as before.
    InPlace(&'static str),
    /// A hook after the container's start.
    PostStart,
}

/// A check that may become one of the agent's.
struct Candidate {
    fields: NamedProbeFields,
    /// Whether the container's own probe says so, and no annotation.
    is_mirrored: bool,
}

/// Decides for every container.
pub(super) fn plan(pod: &Value, settings: &Settings, options: &Options) -> Result<Plan, SkipReason> {
    let mut plan = Plan::default();
    let mut found: Vec<(String, Candidate)> = Vec::new();
    for (index, container) in shape::list(pod, "containers").iter().enumerate() {
        let mut candidates = candidates(container, settings, &mut plan.notes);
        commands(index, container, &mut candidates, settings, options, &mut plan)?;
        let name = shape::name(container);
        found.extend(
            candidates
                .into_iter()
                .map(|candidate| (name.to_owned(), candidate)),
        );
    }
    plan.probes = named(found)?;
    if plan.probes.is_empty() {
        return Err(SkipReason::NothingToCheck {
            hint: hint(pod, &plan.notes),
        });
    }
    Ok(plan)
}

/// What would give a pod without checks something to check.
fn hint(pod: &Value, notes: &[Note]) -> String {
    let is_actionable = |note: &&Note| note.reason == NoteReason::Unsupported;
    let has_probes = shape::list(pod, "containers")
        .iter()
        .any(|container| SLOTS.iter().any(|(slot, _)| !container[*slot].is_null()));
    match notes.iter().find(is_actionable).or(notes.first()) {
        Some(note) if notes.len() == 1 => note.to_string(),
        Some(note) => format!("{note} (and {} more)", notes.len() - 1),
        None if has_probes => format!(
            "the annotations {} and {} leave out all probes that the containers have",
            key::MIRROR,
            key::EXEC
        ),
        None => format!(
            "no container has a probe; give one a readinessProbe, or add checks with the annotation {}",
            key::PROBES
        ),
    }
}

/// A container's own probes and those that an annotation adds, still with the commands as they are written.
fn candidates(container: &Value, settings: &Settings, notes: &mut Vec<Note>) -> Vec<Candidate> {
    let name = shape::name(container);
    let mut candidates = Vec::new();
    if settings.mirror.has(name) {
        let ports = annotation::ports(container);
        for (slot, kind) in SLOTS {
            let probe = &container[slot];
            if probe.is_null() || (!probe["exec"].is_null() && !settings.exec.has(name)) {
                continue;
            }
            match mirrored(probe, kind, &ports) {
                Ok(fields) => candidates.push(Candidate {
                    fields,
                    is_mirrored: true,
                }),
                Err((reason, message)) => notes.push(Note::new(name, kind.as_str(), reason, message)),
            }
        }
    }
    let extra = settings.probes.iter().filter(|probe| probe.container == name);
    for ExtraProbe { container, fields } in extra {
        if fields.exec.is_some() && !settings.exec.has(container) {
            let message = format!(
                "the annotation {} leaves the commands of this container out",
                key::EXEC
            );
            notes.push(Note::new(name, &fields.name, NoteReason::TurnedOff, message));
            continue;
        }
        candidates.push(Candidate {
            fields: fields.clone(),
            is_mirrored: false,
        });
    }
    candidates
}

/// Gives the command checks among the candidates their numbers, and decides how their runner is started; where it cannot
/// be, takes them out.
fn commands(
    index: usize,
    container: &Value,
    candidates: &mut Vec<Candidate>,
    settings: &Settings,
    options: &Options,
    plan: &mut Plan,
) -> Result<(), SkipReason> {
    let name = shape::name(container);
    if candidates.iter().all(|candidate| candidate.fields.exec.is_none()) {
        return Ok(());
    }
    let way = match &options.stance {
        Stance::WithoutCommands { why } => Err(why.clone()),
        Stance::Full | Stance::Off { .. } => way(container, settings),
    };
    let way = match way {
        Ok(way) => way,
        Err(message) => {
            candidates.retain(|candidate| {
                let is_command = candidate.fields.exec.is_some();
                if is_command {
                    let probe = candidate.shown_name();
                    plan.notes
                        .push(Note::new(name, probe, NoteReason::Unsupported, message.clone()));
                }
                !is_command
            });
            return Ok(());
        }
    };
    check_mounts(container)?;
    let variables = variables(container);
    let mut commands: Vec<Vec<String>> = Vec::new();
    for candidate in &mut *candidates {
        let Some(exec) = &mut candidate.fields.exec else {
            continue;
        };
        exec.container = Some(name.to_owned());
        exec.check = i32::try_from(commands.len()).ok();
        commands.push(match way {
            // The kubelet replaces variables in the commands of probes, and there ours stand too.
            Way::Carrier | Way::InPlace(_) => exec.command.clone(),
            Way::PostStart => exec
                .command
                .iter()
                .map(|word| command::expand(word, &variables))
                .collect(),
        });
    }
    if commands.len() > MAX_COMMANDS {
        return Err(SkipReason::TooLarge {
            what: "the list of a container's command checks",
            bytes: commands.len(),
            limit: MAX_COMMANDS,
        });
    }
    let bytes = commands.iter().flatten().map(String::len).sum();
    if bytes > MAX_COMMAND_BYTES {
        return Err(SkipReason::TooLarge {
            what: "the list of a container's command checks",
            bytes,
            limit: MAX_COMMAND_BYTES,
        });
    }
    plan.targets.push(Target {
        index,
        name: name.to_owned(),
        way,
        commands,
    });
    Ok(())
}

impl Candidate {
    /// What it is called before its name is made unique in the pod.
    fn shown_name(&self) -> &str {
        if self.is_mirrored {
            self.fields.kind.unwrap_or(ProbeKind::Readiness).as_str()
        } else {
            &self.fields.name
        }
    }
}

/// How a runner can be started in a container without a risk for it, or what would allow it.
fn way(container: &Value, settings: &Settings) -> Result<Way, String> {
    let name = shape::name(container);
    let is_command = |slot: &str| shape::words(&container[slot]["exec"]["command"]).is_some();
    if container["livenessProbe"].is_null() {
        return Ok(Way::Carrier);
    }
    if is_command("livenessProbe") {
        return Ok(Way::InPlace("livenessProbe"));
    }
    let hook = &container["lifecycle"]["postStart"];
    let hook_is_ours_to_use = hook.is_null() || shape::words(&hook["exec"]["command"]).is_some();
    if settings.post_start.has(name) && hook_is_ours_to_use {
        return Ok(Way::PostStart);
    }
    if settings.carry_readiness.has(name) && is_command("readinessProbe") {
        return Ok(Way::InPlace("readinessProbe"));
    }
    let add = |key: &str, selection: &Selection| match selection {
        Selection::Only(names) if !names.is_empty() => {
            let names: Vec<&str> = names.iter().map(String::as_str).chain([name]).collect();
            format!("{key}={}", names.join(","))
        }
        _ => format!("{key}={name}"),
    };
    let kind = "its liveness probe is no command, so nothing starts the runner that would run this one";
    Err(if hook_is_ours_to_use {
        format!(
            "{kind}; the annotation {} allows a postStart hook for that",
            add(key::POST_START, &settings.post_start)
        )
    } else if is_command("readinessProbe") {
        format!(
            "{kind}, and its postStart hook is no command either; the annotation {} lets its readiness probe start it",
            add(key::CARRY_READINESS, &settings.carry_readiness)
        )
    } else {
        format!("{kind}, and its postStart hook is no command either; make one of them a command")
    })
}

/// Nothing may be mounted where the runner's directory is, nor below it: that is mounted read-only.
fn check_mounts(container: &Value) -> Result<(), SkipReason> {
    let clash = shape::items(&container["volumeMounts"])
        .iter()
        .filter_map(|mount| mount["mountPath"].as_str())
        .find(|path| {
            let path = path.trim_end_matches('/');
            path == DIRECTORY
                || path
                    .strip_prefix(DIRECTORY)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
    match clash {
        Some(path) => Err(SkipReason::MountPathClash {
            container: shape::name(container).to_owned(),
            path: path.to_owned(),
        }),
        None => Ok(()),
    }
}

/// The container's variables whose values stand in the pod.
fn variables(container: &Value) -> BTreeMap<&str, &str> {
    shape::items(&container["env"])
        .iter()
        .filter(|variable| variable["valueFrom"].is_null())
        .map(|variable| {
            (
                shape::name(variable),
                variable["value"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// A container's own probe as one of the agent's: the same target, the same rules.
fn mirrored(
    probe: &Value,
    kind: ProbeKind,
    ports: &BTreeMap<PortName, u16>,
) -> Result<NamedProbeFields, (NoteReason, String)> {
    let unusable = |message: String| (NoteReason::NotUsable, message);
    // Defaults are left out, so that it makes no difference whether the API server has filled them in yet.
    let number = |field: &str, default: i32| match &probe[field] {
        Value::Null => Ok(None),
        value => value
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
            .map(|number| Some(number).filter(|number| ![0, default].contains(number)))
            .ok_or_else(|| unusable(format!("{field} is not a number that fits"))),
    };
    let mut fields = NamedProbeFields {
        name: kind.as_str().to_owned(),
        kind: Some(kind),
        initial_delay_seconds: number("initialDelaySeconds", 0)?,
        period_seconds: number("periodSeconds", 10)?,
        timeout_seconds: number("timeoutSeconds", 1)?,
        success_threshold: number("successThreshold", 1)?,
        failure_threshold: number("failureThreshold", 3)?,
        ..NamedProbeFields::default()
    };
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(ToOwned::to_owned)
    };
    let own_host = |host: &Value| match text(host) {
        None => Ok(()),
        Some(host) => Err((
            NoteReason::OtherHost,
            format!(
                "asks {:?}, and the agent asks its own pod only",
                healthscope_shared::truncate(&host, 80)
            ),
        )),
    };
    if let Some(exec) = probe["exec"].as_object() {
        let command = exec.get("command").and_then(shape::words);
        fields.exec = Some(ExecFields {
            command: command.ok_or_else(|| unusable("its command is no list of texts".to_owned()))?,
            ..ExecFields::default()
        });
    } else if let Some(http) = probe["httpGet"].as_object() {
        let field = |name: &str| http.get(name).unwrap_or(&Value::Null);
        own_host(field("host"))?;
        let scheme = match field("scheme").as_str() {
            None | Some("" | "HTTP") => None,
            Some("HTTPS") => Some(SchemeField::Https),
            Some(other) => {
                let other = healthscope_shared::truncate(other, 40);
                return Err(unusable(format!("the scheme {other:?} is not known here")));
            }
        };
        let header = |header: &Value| HttpHeaderFields {
            name: shape::name(header).to_owned(),
            value: header["value"].as_str().unwrap_or_default().to_owned(),
        };
        fields.http_get = Some(HttpGetFields {
            path: text(field("path")).filter(|path| path != "/"),
            port: port(field("port"), ports)?,
            scheme,
            http_headers: shape::items(field("httpHeaders")).iter().map(header).collect(),
            ..HttpGetFields::default()
        });
    } else if let Some(tcp) = probe["tcpSocket"].as_object() {
        own_host(tcp.get("host").unwrap_or(&Value::Null))?;
        fields.tcp_socket = Some(TcpSocketFields {
            port: port(tcp.get("port").unwrap_or(&Value::Null), ports)?,
            host: None,
        });
    } else if let Some(grpc) = probe["grpc"].as_object() {
        let port = grpc
            .get("port")
            .and_then(Value::as_i64)
            .and_then(|port| i32::try_from(port).ok());
        fields.grpc = Some(GrpcFields {
            port: port.ok_or_else(|| unusable("its port is no number".to_owned()))?,
            service: grpc.get("service").and_then(text),
        });
    } else {
        return Err(unusable("it is of a kind that is not known here".to_owned()));
    }
    let mut found = Vec::new();
    let context = ProbeContext {
        host: "127.0.0.1",
        ports: &BTreeMap::new(),
    };
    let _the_agent_s_form = fields.clone().validate(context, &mut Errors::new("", &mut found));
    match found.first() {
        None => Ok(fields),
        Some(error) => Err(unusable(error.to_string())),
    }
}

/// A port as a number: a name is looked up among the container's own, as the kubelet does.
fn port(port: &Value, names: &BTreeMap<PortName, u16>) -> Result<PortRef, (NoteReason, String)> {
    let number = match port {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => PortName::new(text)
            .ok()
            .and_then(|name| names.get(&name).copied())
            .map(i64::from)
            .or_else(|| text.parse().ok()),
        _ => None,
    };
    number.map(PortRef::Number).ok_or_else(|| {
        let shown = port
            .as_str()
            .map_or_else(|| port.to_string(), |name| format!("{name:?}"));
        let message = format!(
            "the container has no port called {}",
            healthscope_shared::truncate(&shown, 80)
        );
        (NoteReason::PortNotFound, message)
    })
}

/// Gives each check a name that is unique in the pod: `readiness` where one container alone has probes of its own,
/// `web-readiness` where several have.
fn named(found: Vec<(String, Candidate)>) -> Result<Vec<NamedProbeFields>, SkipReason> {
    let with_probes: BTreeSet<&str> = found
        .iter()
        .filter(|(_, candidate)| candidate.is_mirrored)
        .map(|(container, _)| container.as_str())
        .collect();
    let is_alone = with_probes.len() == 1;
    let mut names = BTreeSet::new();
    let mut probes = Vec::new();
    // The names that people chose stand, so they are taken first.
    for (_, candidate) in found.iter().filter(|(_, candidate)| !candidate.is_mirrored) {
        let name = &candidate.fields.name;
        if !names.insert(name.clone()) {
            return Err(SkipReason::InvalidAnnotation {
                holder: Holder::Pod,
                key: key::PROBES,
                problem: format!("two checks are called {name:?}"),
            });
        }
    }
    for (container, candidate) in found {
        let mut fields = candidate.fields;
        if candidate.is_mirrored {
            let wanted = match is_alone {
                true => fields.name.clone(),
                false => qualified(&container, &fields.name),
            };
            fields.name = free(&wanted, &names);
            names.insert(fields.name.clone());
        }
        debug_assert!(ProbeName::new(&fields.name).is_ok(), "{}", fields.name);
        probes.push(fields);
    }
    Ok(probes)
}

/// `web-readiness`, within the length of a name.
fn qualified(container: &str, kind: &str) -> String {
    let room = MAX_NAME_BYTES - kind.len() - 1;
    let container = container.get(..room).unwrap_or(container).trim_end_matches('-');
    format!("{container}-{kind}")
}

/// `wanted`, or the first of `wanted-2`, `wanted-3` and so on that nobody has.
fn free(wanted: &str, taken: &BTreeSet<String>) -> String {
    if !taken.contains(wanted) {
        return wanted.to_owned();
    }
    (2..)
        .map(|number: u64| {
            let end = format!("-{number}");
            let start = wanted.get(..MAX_NAME_BYTES - end.len()).unwrap_or(wanted);
            format!("{}{end}", start.trim_end_matches('-'))
        })
        .find(|name| !taken.contains(name))
        .expect("fewer names are taken than there are numbers")
}

impl Target {
    /// Puts the runner into the container: its directory, and what starts it.
    pub(super) fn apply(&self, containers: &mut [Value], mount: Value) {
        let Self {
            index,
            name: _,
            way,
            commands,
        } = self;
        let Some(container) = containers.get_mut(*index).and_then(Value::as_object_mut) else {
            return;
        };
        shape::list_mut(container, "volumeMounts").push(mount);
        match way {
            Way::Carrier => {
                let line = command::write(Verb::Carry, commands, None);
                let probe = json!({
                    "exec": {"command": line},
                    "periodSeconds": CARRIER_PERIOD,
                    "timeoutSeconds": 1,
                    "failureThreshold": NEVER,
                });
                container.insert("livenessProbe".to_owned(), probe);
            }
            Way::InPlace(slot) => {
                let own = shape::words(&container[*slot]["exec"]["command"]).unwrap_or_default();
                let line = command::write(Verb::Carry, commands, Some(&own));
                container[*slot]["exec"]["command"] = json!(line);
            }
            Way::PostStart => {
                let lifecycle = shape::object_mut(container, "lifecycle");
                let own =
                    shape::words(&lifecycle.get("postStart").unwrap_or(&Value::Null)["exec"]["command"]);
                let line = command::write(Verb::Start, commands, own.as_deref());
                let hook = shape::object_mut(lifecycle, "postStart");
                let exec: &mut Map<String, Value> = shape::object_mut(hook, "exec");
                exec.insert("command".to_owned(), json!(line));
            }
        }
    }
}
