//! A probe as users write it: Kubernetes' own JSON fields plus HealthScope's few, and its validation.
//!
//! Defaults and minima are Kubernetes' (`pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation`): a number
//! that is absent or 0 means the default. Every error names its field; all of them are reported at once.

use {
    super::{
        ExecAction, GRANULARITY, GrpcAction, Handler, HttpGetAction, MAX_DURATION, MIN_PERIOD, ProbeKind,
        ProbeSpec, RunnerCheck, Scheme, TcpSocketAction,
    },
    crate::name::{ContainerName, PortName, ProbeName},
    schemars::{JsonSchema, Schema, SchemaGenerator, json_schema},
    serde::{Deserialize, Deserializer, Serialize, de},
    std::{borrow::Cow, collections::BTreeMap, fmt, num::NonZeroU32, time::Duration},
};

/// Longest command: Linux refuses more than 2 MiB, nobody reads more than this.
const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// More headers than any probe needs.
const MAX_HEADERS: usize = 64;

macro_rules! probe_struct {
    ($(#[$doc:meta])* $type:ident { $($extra:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $type {
            $($extra)*
            /// Runs a command; exit code 0 is success.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub exec: Option<ExecFields>,
            /// Sends an HTTP GET; a status from 200 to 399 is success.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub http_get: Option<HttpGetFields>,
            /// Opens a TCP connection; being connected is success.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub tcp_socket: Option<TcpSocketFields>,
            /// Asks gRPC's health service (grpc.health.v1); SERVING is success.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub grpc: Option<GrpcFields>,
            /// Seconds from when the component is taken up to the first run. Default 0.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub initial_delay_seconds: Option<i32>,
            /// Seconds from the start of one run to the start of the next. Default 10, minimum 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub period_seconds: Option<i32>,
            /// Instead of periodSeconds, as a duration: `500ms`, `1m30s`. Minimum 50ms, in steps of 10ms.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub period: Option<String>,
            /// Seconds after which a run is a failure. Default 1, minimum 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub timeout_seconds: Option<i32>,
            /// Instead of timeoutSeconds, as a duration: `200ms`. Minimum 10ms, in steps of 10ms.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub timeout: Option<String>,
            /// Successes in a row that make the probe pass. Default 1; must be 1 for liveness and startup.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub success_threshold: Option<i32>,
            /// Failures in a row that make the probe fail. Default 3.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub failure_threshold: Option<i32>,
            /// Accepted so that a probe can be copied from a pod; HealthScope ends no process, so it has no effect.
            /// Refused on readiness probes, as in Kubernetes.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub termination_grace_period_seconds: Option<i64>,
        }
    };
}

probe_struct! {
    /// A probe in a slot of its own: `readinessProbe`, `livenessProbe` or `startupProbe`. Exactly one of exec,
    /// httpGet, tcpSocket and grpc says what a run does.
    ProbeFields {}
}

probe_struct! {
    /// One of any number of additional probes. Exactly one of exec, httpGet, tcpSocket and grpc says what a run
    /// does.
    NamedProbeFields {
        /// Unique within the component; `readiness`, `liveness` and `startup` are taken when the slot of that name
        /// is used.
        pub name: String,
        /// What its verdict is used for: liveness, readiness or startup. Default readiness.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<ProbeKind>,
    }
}

impl NamedProbeFields {
    /// The same without name and type.
    fn into_fields(self) -> ProbeFields {
        let Self {
            name: _,
            kind: _,
            exec,
            http_get,
            tcp_socket,
            grpc,
            initial_delay_seconds,
            period_seconds,
            period,
            timeout_seconds,
            timeout,
            success_threshold,
            failure_threshold,
            termination_grace_period_seconds,
        } = self;
        ProbeFields {
            exec,
            http_get,
            tcp_socket,
            grpc,
            initial_delay_seconds,
            period_seconds,
            period,
            timeout_seconds,
            timeout,
            success_threshold,
            failure_threshold,
            termination_grace_period_seconds,
        }
    }
}

/// A command check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecFields {
    /// Program and arguments. No shell is involved; write `[sh, -c, "..."]` for one. The command runs with the
    /// agent's environment and working directory, standard input empty.
    pub command: Vec<String>,
    /// In a pod: the container in which the command runs, by the runner that the injector put there. Only together
    /// with check; the injector writes both, and no file that people write has them.
    #[schemars(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// In a pod: which of the container's commands it is, counted from 0. Only together with container.
    #[schemars(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<i32>,
}

/// An HTTP check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGetFields {
    /// Path with query. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Port number, or one of the component's port names.
    pub port: PortRef,
    /// Where to connect. Default: the component's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// HTTP (default) or HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<SchemeField>,
    /// Headers to send; names may repeat. `Host` chooses the virtual host; an empty `Accept` sends none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<HttpHeaderFields>,
    /// Whether an HTTPS certificate is verified: `skipVerify` (default, as the kubelet) or `verify`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsField>,
    /// Statuses that are success, instead of 200 to 399: numbers and ranges such as `"200-299"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_status: Vec<StatusRange>,
    /// Text that the first 10 KiB of the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_body: Option<String>,
}

/// A header to send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeaderFields {
    /// Header name.
    pub name: String,
    /// Header value.
    pub value: String,
}

/// A TCP check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocketFields {
    /// Port number, or one of the component's port names.
    pub port: PortRef,
    /// Where to connect. Default: the component's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A gRPC check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcFields {
    /// Port number.
    pub port: i32,
    /// The service to ask about. Default empty: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// How HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SchemeField {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

/// Whether certificates are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TlsField {
    /// Any certificate will do, as for the kubelet.
    SkipVerify,
    /// The certificate must be valid for the host.
    Verify,
}

/// A port by number or by name (Kubernetes' IntOrString).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PortRef {
    /// By number.
    Number(i64),
    /// By one of the component's port names.
    Name(String),
}

impl Default for PortRef {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = PortRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or a port name")
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<PortRef, E> {
                Ok(PortRef::Number(port))
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<PortRef, E> {
                Ok(PortRef::Number(i64::try_from(port).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: de::Error>(self, port: &str) -> Result<PortRef, E> {
                Ok(PortRef::Name(port.into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> Cow<'static, str> {
        "PortRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port number (1 to 65535) or one of the component's port names.",
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}],
        })
    }
}

/// One status or an inclusive range of them: `204`, `"200-299"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct StatusRange(pub u16, pub u16);

impl From<StatusRange> for String {
    fn from(StatusRange(low, high): StatusRange) -> Self {
        if low == high {
            low.to_string()
        } else {
            format!("{low}-{high}")
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = StatusRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an HTTP status from 100 to 599, or a range such as \"200-299\"")
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<StatusRange, E> {
                self.visit_str(&status.to_string())
            }

            fn visit_u64<E: de::Error>(self, status: u64) -> Result<StatusRange, E> {
                self.visit_str(&status.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
                let (low, high) = text.split_once('-').unwrap_or((text, text));
                let parse = |s: &str| s.trim().parse::<u16>().ok().filter(|s| (100..600).contains(s));
                match (parse(low), parse(high)) {
                    (Some(low), Some(high)) if low <= high => Ok(StatusRange(low, high)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for StatusRange {
    fn schema_name() -> Cow<'static, str> {
        "StatusRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An HTTP status, or a range such as \"200-299\".",
            "anyOf": [{"type": "integer", "minimum": 100, "maximum": 599}, {"type": "string"}],
        })
    }
}

/// A field that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Where: `spec.probes[2].period`.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Collects field errors under a path.
#[derive(Debug)]
pub struct Errors<'a> {
    path: String,
    found: &'a mut Vec<FieldError>,
}

impl<'a> Errors<'a> {
    /// Collects into `found`, under `path` (may be empty).
    pub fn new(path: impl Into<String>, found: &'a mut Vec<FieldError>) -> Self {
        Self {
            path: path.into(),
            found,
        }
    }

    /// The same collection, one field further down.
    pub fn at(&mut self, field: impl fmt::Display) -> Errors<'_> {
        Errors {
            path: self.join(field),
            found: self.found,
        }
    }

    /// The same collection, at an element of a list.
    pub fn index(&mut self, field: impl fmt::Display, index: usize) -> Errors<'_> {
        Errors {
            path: self.join(format_args!("{field}[{index}]")),
            found: self.found,
        }
    }

    /// Adds an error at the current path.
    pub fn push(&mut self, message: impl Into<String>) {
        self.found.push(FieldError {
            path: self.path.clone(),
            message: message.into(),
        });
    }

    /// Whether nothing was found so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn join(&self, field: impl fmt::Display) -> String {
        if self.path.is_empty() {
            field.to_string()
        } else {
            format!("{}.{field}", self.path)
        }
    }
}

/// What a probe takes from its component.
#[derive(Clone, Copy, Debug)]
pub struct ProbeContext<'a> {
    /// Where network probes go unless they say otherwise.
    pub host: &'a str,
    /// The component's port names.
    pub ports: &'a BTreeMap<PortName, u16>,
}

impl ProbeFields {
    /// Validates the probe of a slot; `None` when something was added to `errors`.
    pub fn validate(
        self,
        name: ProbeName,
        kind: ProbeKind,
        context: ProbeContext<'_>,
        errors: &mut Errors<'_>,
    ) -> Option<ProbeSpec> {
        let found_before = errors.found.len();
        let Self {
            exec,
            http_get,
            tcp_socket,
            grpc,
            initial_delay_seconds,
            period_seconds,
            period,
            timeout_seconds,
            timeout,
            success_threshold,
            failure_threshold,
            termination_grace_period_seconds,
        } = self;

        let mut handlers = Vec::new();
        if let Some(exec) = exec {
            handlers.extend(exec.validate(&mut errors.at("exec")).map(Handler::Exec));
        }
        if let Some(http) = http_get {
            handlers.extend(
                http.validate(context, &mut errors.at("httpGet"))
                    .map(Handler::HttpGet),
            );
        }
        if let Some(tcp) = tcp_socket {
            handlers.extend(
                tcp.validate(context, &mut errors.at("tcpSocket"))
                    .map(Handler::TcpSocket),
            );
        }
        if let Some(grpc) = grpc {
            handlers.extend(grpc.validate(context, &mut errors.at("grpc")).map(Handler::Grpc));
        }
        if errors.found.len() == found_before && handlers.len() != 1 {
            let said = if handlers.is_empty() {
                "none"
            } else {
                "more than one"
            };
            errors.push(format!(
                "needs exactly one of exec, httpGet, tcpSocket and grpc, has {said}"
            ));
        }

        let initial_delay = whole_seconds(initial_delay_seconds, 0, &mut errors.at("initialDelaySeconds"));
        let period = duration(
            period_seconds,
            "period",
            period.as_deref(),
            10,
            MIN_PERIOD,
            errors,
        );
        let timeout = duration(
            timeout_seconds,
            "timeout",
            timeout.as_deref(),
            1,
            GRANULARITY,
            errors,
        );
        let success_threshold = threshold(success_threshold, 1, &mut errors.at("successThreshold"));
        let failure_threshold = threshold(failure_threshold, 3, &mut errors.at("failureThreshold"));
        match kind {
            ProbeKind::Liveness | ProbeKind::Startup => {
                if success_threshold.is_some_and(|threshold| threshold.get() != 1) {
                    errors
                        .at("successThreshold")
                        .push(format!("must be 1 for a {kind} probe"));
                }
                if termination_grace_period_seconds.is_some_and(|seconds| seconds < 1) {
                    errors
                        .at("terminationGracePeriodSeconds")
                        .push("must be at least 1");
                }
            }
            ProbeKind::Readiness => {
                if termination_grace_period_seconds.is_some() {
                    errors
                        .at("terminationGracePeriodSeconds")
                        .push("must not be set for a readiness probe");
                }
            }
        }
        if errors.found.len() > found_before {
            return None;
        }
        Some(ProbeSpec {
            name,
            kind,
            handler: handlers.pop()?,
            initial_delay: initial_delay?,
            period: period?,
            timeout: timeout?,
            success_threshold: success_threshold?,
            failure_threshold: failure_threshold?,
        })
    }
}

impl NamedProbeFields {
    /// Validates an additional probe; `None` when something was added to `errors`.
    pub fn validate(self, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<ProbeSpec> {
        let name = match ProbeName::new(&self.name) {
            Ok(name) => Some(name),
            Err(_) if self.name.is_empty() => {
                errors.at("name").push("is required");
                None
            }
            Err(error) => {
                errors.at("name").push(error.to_string());
                None
            }
        };
        let kind = self.kind.unwrap_or(ProbeKind::Readiness);
        // Validated under a stand-in, so that all errors are found at once.
        let stand_in = ProbeName::new("unnamed").expect("a literal label");
        let named = name.is_some();
        let spec = self
            .into_fields()
            .validate(name.unwrap_or(stand_in), kind, context, errors);
        spec.filter(|_| named)
    }
}

impl ExecFields {
    fn validate(self, errors: &mut Errors<'_>) -> Option<ExecAction> {
        let Self {
            command,
            container,
            check,
        } = self;
        let runner = validate_runner(container.as_deref(), check, errors)?;
        let mut errors = errors.at("command");
        if command.first().is_none_or(String::is_empty) {
            errors.push("must name a program");
            return None;
        }
        if command.iter().any(|argument| argument.contains('\0')) {
            errors.push("must not contain a NUL character");
            return None;
        }
        if command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
            errors.push(format!(
                "must not be longer than {MAX_COMMAND_BYTES} bytes in all"
            ));
            return None;
        }
        Some(ExecAction { command, runner })
    }
}

/// Whom the agent asks to run a command: nobody, or a container's runner. `None` when something was added to `errors`.
fn validate_runner(
    container: Option<&str>,
    check: Option<i32>,
    errors: &mut Errors<'_>,
) -> Option<Option<RunnerCheck>> {
    let (container, check) = match (container, check) {
        (None, None) => return Some(None),
        (Some(container), Some(check)) => (container, check),
        (Some(_), None) => {
            let message = "needs check beside it: the number of the command in that container";
            errors.at("container").push(message);
            return None;
        }
        (None, Some(_)) => {
            let message = "needs container beside it: the name of the container that knows the command";
            errors.at("check").push(message);
            return None;
        }
    };
    let container = ContainerName::new(container)
        .map_err(|error| errors.at("container").push(error.to_string()))
        .ok();
    let number = u8::try_from(check)
        .map_err(|_| {
            let message = format!("must be from 0 to {}, is {check}", u8::MAX);
            errors.at("check").push(message);
        })
        .ok();
    Some(Some(RunnerCheck {
        container: container?,
        check: number?,
    }))
}

impl HttpGetFields {
    fn validate(self, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<HttpGetAction> {
        let Self {
            path,
            port,
            host,
            scheme,
            http_headers,
            tls,
            expected_status,
            expected_body,
        } = self;
        let port = port.resolve(context, &mut errors.at("port"));
        let host = validate_host(host.as_deref(), context, &mut errors.at("host"));
        let path = validate_path(path, &mut errors.at("path"));
        let scheme = match scheme {
            None | Some(SchemeField::Http) => Scheme::Http,
            Some(SchemeField::Https) => Scheme::Https,
        };
        let verify_tls = match tls {
            None | Some(TlsField::SkipVerify) => false,
            Some(TlsField::Verify) => true,
        };
        if tls.is_some() && scheme == Scheme::Http {
            errors.at("tls").push("has a meaning only with scheme: HTTPS");
            return None;
        }
        if http_headers.len() > MAX_HEADERS {
            errors
                .at("httpHeaders")
                .push(format!("must not be more than {MAX_HEADERS}"));
            return None;
        }
        let headers: Vec<_> = http_headers
            .into_iter()
            .enumerate()
            .filter_map(|(index, header)| header.validate(&mut errors.index("httpHeaders", index)))
            .collect();
        let expected_status = expected_status
            .into_iter()
            .map(|StatusRange(low, high)| (low, high))
            .collect();
        Some(HttpGetAction {
            host: host?,
            port: port?,
            path: path?,
            scheme,
            headers,
            verify_tls,
            expected_status,
            expected_body,
        })
    }
}

impl HttpHeaderFields {
    fn validate(self, errors: &mut Errors<'_>) -> Option<(http::HeaderName, http::HeaderValue)> {
        let Self { name, value } = self;
        let header_name = http::HeaderName::try_from(&name);
        let header_value = http::HeaderValue::try_from(&value);
        if header_name.is_err() {
            errors.at("name").push(format!(
                "{:?} is not a valid HTTP header name",
                crate::truncate(&name, 80)
            ));
        }
        if header_value.is_err() {
            errors.at("value").push("is not a valid HTTP header value");
        }
        Some((header_name.ok()?, header_value.ok()?))
    }
}

impl TcpSocketFields {
    fn validate(self, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<TcpSocketAction> {
        let Self { port, host } = self;
        let port = port.resolve(context, &mut errors.at("port"));
        let host = validate_host(host.as_deref(), context, &mut errors.at("host"));
        Some(TcpSocketAction {
            host: host?,
            port: port?,
        })
    }
}

impl GrpcFields {
    fn validate(self, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<GrpcAction> {
        let Self { port, service } = self;
        let port = PortRef::Number(port.into()).resolve(context, &mut errors.at("port"));
        let host = validate_host(None, context, &mut errors.at("host"));
        let service = service.unwrap_or_default();
        if service.len() > 1024 || service.chars().any(char::is_control) {
            errors
                .at("service")
                .push("must be a printable service name of at most 1024 bytes");
            return None;
        }
        Some(GrpcAction {
            host: host?,
            port: port?,
            service,
        })
    }
}

impl PortRef {
    fn resolve(self, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<u16> {
        match self {
            Self::Number(number) => match u16::try_from(number) {
                Ok(port) if port > 0 => Some(port),
                Ok(_) | Err(_) => {
                    errors.push(format!("must be from 1 to 65535, is {number}"));
                    None
                }
            },
            Self::Name(name) => {
                let port = PortName::new(&name)
                    .ok()
                    .and_then(|name| context.ports.get(&name).copied());
                if port.is_none() {
                    let known: Vec<_> = context.ports.keys().map(PortName::as_str).collect();
                    let known = if known.is_empty() {
                        "the component names no ports (spec.ports)".to_owned()
                    } else {
                        format!("the component's ports are {}", known.join(", "))
                    };
                    errors.push(format!(
                        "no port is called {:?}: {known}",
                        crate::truncate(&name, 80)
                    ));
                }
                port
            }
        }
    }
}

fn validate_host(host: Option<&str>, context: ProbeContext<'_>, errors: &mut Errors<'_>) -> Option<String> {
    let host = host.filter(|host| !host.is_empty()).unwrap_or(context.host);
    match normal_host(host) {
        Some(host) => Some(host),
        None => {
            errors.push(format!(
                "{:?} is not a host name or an address",
                crate::truncate(host, 80)
            ));
            None
        }
    }
}

/// A host name or address without brackets, or `None` when it cannot be one.
#[must_use]
pub fn normal_host(host: &str) -> Option<String> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_address = bare.parse::<std::net::IpAddr>().is_ok();
    let is_name = !bare.is_empty()
        && bare.len() <= 253
        && bare
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    (is_address || is_name).then(|| bare.to_owned())
}

fn validate_path(path: Option<String>, errors: &mut Errors<'_>) -> Option<String> {
    let path = match path {
        None => "/".to_owned(),
        Some(path) if path.is_empty() => "/".to_owned(),
        Some(path) if path.starts_with('/') => path,
        Some(path) => format!("/{path}"),
    };
    match path.parse::<http::uri::PathAndQuery>() {
        Ok(_) => Some(path),
        Err(error) => {
            errors.push(format!("is not a valid path: {error}"));
            None
        }
    }
}

fn whole_seconds(seconds: Option<i32>, default: u64, errors: &mut Errors<'_>) -> Option<Duration> {
    let seconds = match u64::try_from(seconds.unwrap_or(0)) {
        Ok(0) => default,
        Ok(seconds) => seconds,
        Err(_) => {
            errors.push(format!("must not be negative, is {}", seconds.unwrap_or(0)));
            return None;
        }
    };
    check_maximum(Duration::from_secs(seconds), errors)
}

/// A duration that may be given in whole seconds or as text, never both.
fn duration(
    seconds: Option<i32>,
    name: &str,
    text: Option<&str>,
    default_seconds: u64,
    minimum: Duration,
    errors: &mut Errors<'_>,
) -> Option<Duration> {
    let Some(text) = text else {
        return whole_seconds(
            seconds,
            default_seconds,
            &mut errors.at(format_args!("{name}Seconds")),
        );
    };
    let mut errors = errors.at(name);
    if seconds.is_some() {
        errors.push(format!("excludes {name}Seconds: write one of them"));
        return None;
    }
    parse_duration(text, minimum, &mut errors)
}

/// Parses `500ms`, `1m30s`... between `minimum` and a week, in steps of 10 ms.
pub fn parse_duration(text: &str, minimum: Duration, errors: &mut Errors<'_>) -> Option<Duration> {
    let parsed = text.parse::<jiff::SignedDuration>();
    let Ok(parsed) = parsed else {
        let shown = crate::truncate(text, 40);
        errors.push(format!(
            "{shown:?} is not a duration; write for example 500ms, 30s or 1m30s"
        ));
        return None;
    };
    let Ok(parsed) = Duration::try_from(parsed) else {
        errors.push(format!("must not be negative, is {text}"));
        return None;
    };
    if parsed < minimum {
        errors.push(format!("must be at least {}ms, is {text}", minimum.as_millis()));
        return None;
    }
    if parsed.as_nanos() % GRANULARITY.as_nanos() != 0 {
        errors.push(format!(
            "must be a multiple of {}ms, is {text}",
            GRANULARITY.as_millis()
        ));
        return None;
    }
    check_maximum(parsed, errors)
}

fn check_maximum(duration: Duration, errors: &mut Errors<'_>) -> Option<Duration> {
    if duration > MAX_DURATION {
        errors.push(format!("must be at most 7 days, is {}s", duration.as_secs()));
        return None;
    }
    Some(duration)
}

fn threshold(value: Option<i32>, default: u32, errors: &mut Errors<'_>) -> Option<NonZeroU32> {
    let value = value.unwrap_or(0);
    match u32::try_from(value) {
        Ok(value) => NonZeroU32::new(if value == 0 { default } else { value }),
        Err(_) => {
            errors.push(format!("must be at least 1, is {value}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(yaml: &str, kind: ProbeKind) -> Result<ProbeSpec, Vec<String>> {
        let fields: ProbeFields = serde_saphyr::from_str(yaml).expect("parses");
        let ports = BTreeMap::from([(PortName::new("http").unwrap(), 8080)]);
        let context = ProbeContext {
            host: "127.0.0.1",
            ports: &ports,
        };
        let mut found = Vec::new();
        let name = ProbeName::new("p").unwrap();
        let spec = fields.validate(name, kind, context, &mut Errors::new("", &mut found));
        assert_eq!(spec.is_some(), found.is_empty());
        spec.ok_or_else(|| found.iter().map(ToString::to_string).collect())
    }

    fn refused(yaml: &str, kind: ProbeKind, expected: &str) {
        let errors = validate(yaml, kind).expect_err("is refused").join("\n");
        assert!(
            errors.contains(expected),
            "{yaml}: {errors:?} should contain {expected:?}"
        );
    }

    #[test]
    fn defaults_are_kubernetes_defaults() {
        let spec = validate("httpGet: {port: 80}", ProbeKind::Readiness).unwrap();
        assert_eq!(spec.initial_delay, Duration::ZERO);
        assert_eq!(spec.period, Duration::from_secs(10));
        assert_eq!(spec.timeout, Duration::from_secs(1));
        assert_eq!(
            (spec.success_threshold.get(), spec.failure_threshold.get()),
            (1, 3)
        );
        assert_eq!(spec.handler.to_string(), "http 127.0.0.1:80/");
    }

    #[test]
    fn zero_numbers_mean_the_default_as_in_kubernetes() {
        let zeros = "{tcpSocket: {port: 1}, periodSeconds: 0, timeoutSeconds: 0, failureThreshold: 0}";
        let plain = validate("{tcpSocket: {port: 1}}", ProbeKind::Liveness).unwrap();
        assert_eq!(validate(zeros, ProbeKind::Liveness).unwrap(), plain);
    }

    #[test]
    fn durations_may_be_sub_second() {
        let spec = validate(
            "{exec: {command: [a]}, period: 50ms, timeout: 10ms}",
            ProbeKind::Readiness,
        )
        .unwrap();
        assert_eq!((spec.period.as_millis(), spec.timeout.as_millis()), (50, 10));
    }

    #[test]
    fn port_names_are_resolved() {
        let spec = validate("httpGet: {port: http, path: 'a?b=c'}", ProbeKind::Readiness).unwrap();
        assert_eq!(spec.handler.to_string(), "http 127.0.0.1:8080/a?b=c");
    }

    #[test]
    fn commands_in_containers_name_them() {
        let check = |yaml, expected: &str| {
            let spec = validate(yaml, ProbeKind::Readiness).unwrap();
            assert_eq!(spec.handler.to_string(), expected);
        };
        check("exec: {command: [cat, /tmp/ok]}", "exec cat /tmp/ok");
        check(
            "exec: {command: [cat, /tmp/ok], container: web, check: 255}",
            "exec cat /tmp/ok in container web",
        );
    }

    #[test]
    fn ipv6_hosts_lose_their_brackets_and_are_shown_with_them() {
        let spec = validate("tcpSocket: {port: 5, host: '[::1]'}", ProbeKind::Readiness).unwrap();
        assert_eq!(spec.handler.to_string(), "tcp [::1]:5");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_field_and_the_rule() {
        use ProbeKind::{Liveness, Readiness};
        let r = |yaml, expected| refused(yaml, Readiness, expected);
        r("{}", "exactly one of exec, httpGet, tcpSocket and grpc, has none");
        r(
            "{exec: {command: [a]}, tcpSocket: {port: 1}}",
            "has more than one",
        );
        r("{exec: {command: []}}", "exec.command: must name a program");
        r(
            "{exec: {command: [a], container: web}}",
            "exec.container: needs check beside it",
        );
        r(
            "{exec: {command: [a], check: 0}}",
            "exec.check: needs container beside it",
        );
        r(
            "{exec: {command: [a], container: web, check: 256}}",
            "exec.check: must be from 0 to 255, is 256",
        );
        r(
            "{exec: {command: [a], container: web, check: -1}}",
            "exec.check: must be from 0 to 255, is -1",
        );
        r(
            "{exec: {command: [a], container: ../web, check: 0}}",
            "exec.container: \"../web\" is not a valid container name",
        );
        r(
            "{httpGet: {port: 0}}",
            "httpGet.port: must be from 1 to 65535, is 0",
        );
        r("{httpGet: {port: 70000}}", "is 70000");
        r(
            "{httpGet: {port: web}}",
            "no port is called \"web\": the component's ports are http",
        );
        r(
            "{tcpSocket: {port: 1}, period: 0s}",
            "period: must be at least 50ms, is 0s",
        );
        r(
            "{tcpSocket: {port: 1}, period: -5s}",
            "period: must not be negative",
        );
        r("{tcpSocket: {port: 1}, period: 55ms}", "multiple of 10ms");
        r("{tcpSocket: {port: 1}, period: 9000h}", "at most 7 days");
        r(
            "{tcpSocket: {port: 1}, period: soon}",
            "\"soon\" is not a duration",
        );
        r(
            "{tcpSocket: {port: 1}, period: 1s, periodSeconds: 1}",
            "period: excludes periodSeconds",
        );
        r(
            "{tcpSocket: {port: 1}, timeoutSeconds: -1}",
            "timeoutSeconds: must not be negative, is -1",
        );
        r(
            "{tcpSocket: {port: 1}, failureThreshold: -1}",
            "failureThreshold: must be at least 1",
        );
        r(
            "{tcpSocket: {port: 1, host: 'a b'}}",
            "tcpSocket.host: \"a b\" is not a host name",
        );
        r(
            "{httpGet: {port: 1, httpHeaders: [{name: 'a b', value: c}]}}",
            "httpGet.httpHeaders[0].name",
        );
        r(
            "{httpGet: {port: 1, path: '/a b'}}",
            "httpGet.path: is not a valid path",
        );
        r("{httpGet: {port: 1, tls: verify}}", "only with scheme: HTTPS");
        r(
            "{tcpSocket: {port: 1}, terminationGracePeriodSeconds: 1}",
            "must not be set for a readiness probe",
        );
        refused(
            "{tcpSocket: {port: 1}, successThreshold: 2}",
            Liveness,
            "must be 1 for a liveness probe",
        );
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let errors = validate(
            "{httpGet: {port: 0}, period: x, timeout: y}",
            ProbeKind::Readiness,
        )
        .expect_err("refused");
        assert_eq!(errors.len(), 3, "{errors:?}");
    }

    #[test]
    fn expected_statuses_replace_the_default_range() {
        let yaml = "httpGet: {port: 1, expectedStatus: [401, '200-204']}";
        let Handler::HttpGet(http) = validate(yaml, ProbeKind::Readiness).unwrap().handler else {
            panic!("not an HTTP probe");
        };
        let success: Vec<_> = [200, 204, 205, 301, 401]
            .into_iter()
            .filter(|&s| http.is_success(s))
            .collect();
        assert_eq!(success, [200, 204, 401]);
    }
}
