//! A check that no file holds: a URL or a command from the command line, as the probe that the agent's probers run.
//!
//! The words become the same fields that a file has, and are validated as those are. Nothing here runs anything.

use {
    crate::{args::ProbeArgs, failure::Failure},
    healthscope_shared::{
        name::ProbeName,
        one_line,
        probe::{
            ProbeKind, ProbeSpec,
            fields::{
                Errors, ExecFields, GrpcFields, HttpGetFields, HttpHeaderFields, PortRef, ProbeContext,
                ProbeFields, SchemeField, StatusRange, TcpSocketFields, TlsField,
            },
        },
    },
    std::{collections::BTreeMap, ffi::OsString},
};

/// Whether the target of `probe` is a URL and not the name of a component.
pub(crate) fn is_url(target: &str) -> bool {
    target.contains("://")
}

/// What the arguments of `probe` ask for.
///
/// # Errors
/// When the words mean no check; the text says what would.
pub(crate) fn spec(args: &ProbeArgs) -> Result<ProbeSpec, Failure> {
    let ProbeArgs {
        target,
        command,
        timeout,
        expect_status,
        expect_body,
        header,
        verify,
        output: _,
    } = args;
    let (mut fields, host) = match target {
        Some(url) => url_fields(url)?,
        None => (command_fields(command)?, None),
    };
    match &mut fields.http_get {
        Some(http) => {
            http.expected_status = expect_status
                .iter()
                .map(|text| status(text))
                .collect::<Result<_, _>>()?;
            http.expected_body.clone_from(expect_body);
            http.http_headers = header
                .iter()
                .map(|text| parse_header(text))
                .collect::<Result<_, _>>()?;
            if *verify && http.scheme == Some(SchemeField::Https) {
                http.tls = Some(TlsField::Verify);
            }
        }
        None if has_http_options(args) => {
            return Err(Failure::usage(
                "--expect-status, --expect-body, --header and --verify are for http:// and https:// URLs",
            ));
        }
        None => {}
    }
    fields.timeout.clone_from(timeout);

    let name = ProbeName::new("adhoc").expect("a literal label");
    let ports = BTreeMap::new();
    let context = ProbeContext {
        host: host.as_deref().unwrap_or("127.0.0.1"),
        ports: &ports,
    };
    let mut found = Vec::new();
    let spec = fields.validate(
        name,
        ProbeKind::Readiness,
        context,
        &mut Errors::new("", &mut found),
    );
    spec.ok_or_else(|| {
        let lines: Vec<String> = found
            .iter()
            .map(|error| match error.path.as_str() {
                "timeout" => format!("--timeout {}", error.message),
                path => format!("{path}: {}", error.message),
            })
            .collect();
        Failure::usage(lines.join("\n       "))
    })
}

/// Whether an option is given that has a meaning for HTTP alone.
pub(crate) fn has_http_options(args: &ProbeArgs) -> bool {
    !args.expect_status.is_empty() || args.expect_body.is_some() || !args.header.is_empty() || args.verify
}

/// The check of a URL, and the host that it names.
fn url_fields(text: &str) -> Result<(ProbeFields, Option<String>), Failure> {
    let unusable = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "{:?} cannot be checked: {why}; write http://HOST/PATH, https://HOST/PATH, tcp://HOST:PORT or \
             grpc://HOST:PORT/SERVICE",
            one_line(text, 200)
        ))
    };
    let url: reqwest::Url = text.parse().map_err(|error| unusable(&error))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::usage(
            "a user name in a URL is not used; write --header 'Authorization: Basic BASE64' instead",
        ));
    }
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| unusable(&"it names no host"))?;
    let port = url
        .port_or_known_default()
        .ok_or_else(|| unusable(&"it names no port"))?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut fields = ProbeFields::default();
    match url.scheme() {
        scheme @ ("http" | "https") => {
            let scheme = if scheme == "https" {
                SchemeField::Https
            } else {
                SchemeField::Http
            };
            fields.http_get = Some(HttpGetFields {
                path: Some(path),
                port: PortRef::Number(port.into()),
                scheme: Some(scheme),
                ..HttpGetFields::default()
            });
        }
        "tcp" if matches!(path.as_str(), "" | "/") => {
            fields.tcp_socket = Some(TcpSocketFields {
                port: PortRef::Number(port.into()),
                host: None,
            });
        }
        "tcp" => return Err(unusable(&"a TCP check has no path")),
        "grpc" => {
            let service = path.trim_start_matches('/').to_owned();
            fields.grpc = Some(GrpcFields {
                port: port.into(),
                service: Some(service).filter(|name| !name.is_empty()),
            });
        }
        other => return Err(unusable(&format_args!("{other}:// is not spoken"))),
    }
    Ok((fields, Some(host.to_owned())))
}

fn command_fields(command: &[OsString]) -> Result<ProbeFields, Failure> {
    let words: Result<Vec<String>, Failure> = command
        .iter()
        .map(|word| {
            word.clone().into_string().map_err(|word| {
                Failure::usage(format!(
                    "the argument {word:?} is not UTF-8; a file could not hold it"
                ))
            })
        })
        .collect();
    Ok(ProbeFields {
        exec: Some(ExecFields {
            command: words?,
            ..ExecFields::default()
        }),
        ..ProbeFields::default()
    })
}

fn status(text: &str) -> Result<StatusRange, Failure> {
    serde_json::from_value(text.into()).map_err(|_| {
        let shown = one_line(text, 40);
        Failure::usage(format!(
            "--expect-status {shown:?} is not a status from 100 to 599 or a range such as 200-299"
        ))
    })
}

fn parse_header(text: &str) -> Result<HttpHeaderFields, Failure> {
    let Some((name, value)) = text.split_once(':') else {
        let shown = one_line(text, 40);
        return Err(Failure::usage(format!(
            "--header {shown:?} has no colon; write 'NAME: VALUE'"
        )));
    };
    Ok(HttpHeaderFields {
        name: name.trim().to_owned(),
        value: value.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::args::{Args, Command},
        clap::Parser,
    };

    #[track_caller]
    fn check(words: &[&str], expected: &str) {
        let args = Args::try_parse_from(["healthscope", "probe"].iter().chain(words)).unwrap();
        let Command::Probe(args) = args.command else {
            panic!("not a probe")
        };
        let found = match spec(&args) {
            Ok(spec) => format!("{} in {:?}", spec.handler, spec.timeout),
            Err(Failure::Usage(message)) => message,
            Err(other) => format!("{other:?}"),
        };
        assert!(
            found.contains(expected),
            "{words:?}: {found:?} should contain {expected:?}"
        );
    }

    #[test]
    fn urls_and_commands_become_probes() {
        check(
            &["http://localhost:8080/a?b=c"],
            "http localhost:8080/a?b=c in 1s",
        );
        check(&["https://example.org"], "https example.org:443/ in 1s");
        check(
            &["tcp://[::1]:5432", "--timeout", "200ms"],
            "tcp [::1]:5432 in 200ms",
        );
        check(
            &["grpc://localhost:50051/my.Service"],
            "grpc localhost:50051/my.Service in 1s",
        );
        check(&["grpc://localhost:50051"], "grpc localhost:50051 in 1s");
        check(&["--", "pg_isready", "-q"], "exec pg_isready -q in 1s");
    }

    #[test]
    fn options_reach_the_request() {
        let words = [
            "healthscope",
            "probe",
            "https://h/",
            "--verify",
            "--expect-status",
            "200,301-302",
        ];
        let args =
            Args::try_parse_from(words.iter().chain(&["--header", "X-A: b", "--header", "X-C:d"])).unwrap();
        let Command::Probe(args) = args.command else {
            panic!("not a probe")
        };
        let healthscope_shared::probe::Handler::HttpGet(http) = spec(&args).unwrap().handler else {
            panic!("not HTTP")
        };
        assert!(http.verify_tls);
        assert_eq!(http.expected_status, [(200, 200), (301, 302)]);
        assert_eq!(http.headers.len(), 2);
    }

    #[test]
    fn words_that_mean_no_check_are_refused() {
        check(&["ftp://host/x"], "ftp:// is not spoken; write http://");
        check(&["tcp://host"], "it names no port");
        check(&["tcp://host:1/path"], "a TCP check has no path");
        check(&["http://user:secret@host/"], "--header 'Authorization");
        check(&["http://a b/"], "cannot be checked");
        check(
            &["http://h/", "--expect-status", "abc"],
            "--expect-status \"abc\" is not a status",
        );
        check(&["http://h/", "--header", "nocolon"], "has no colon");
        check(
            &["http://h/", "--header", "a b: c"],
            "is not a valid HTTP header name",
        );
        check(&["tcp://h:1", "--expect-body", "x"], "are for http://");
        check(
            &["tcp://h:1", "--timeout", "soon"],
            "--timeout \"soon\" is not a duration",
        );
        check(&["--", ""], "must name a program");
    }
}
