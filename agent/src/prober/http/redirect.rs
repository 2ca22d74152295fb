//! Where a request goes, and where a `Location` leads from there (RFC 3986, 5.2). Pure.

use healthscope_shared::probe::{Authority, HttpGetAction, Scheme};

/// Longest `Location` that is followed.
const MAX_LOCATION_BYTES: usize = 4 * 1024;

/// One request's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// With query, starting with `/`; no fragment.
    pub(super) path: String,
}

/// Where a redirect leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// To the same host, and whether the location named no host.
    Same(Target, bool),
    /// To another host.
    Elsewhere(String),
}

/// Why a location cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadLocation {
    #[error("redirect to a location of more than {MAX_LOCATION_BYTES} bytes")]
    TooLong,
    #[error("redirect to a location that is no URL")]
    NotUrl,
    #[error("redirect to a scheme other than http and https")]
    OtherScheme,
}

impl Target {
    pub(super) fn of(action: &HttpGetAction) -> Self {
        let path = action.path.split('#').next().unwrap_or("/");
        Self {
            scheme: action.scheme,
            host: action.host.clone(),
            port: action.port,
            path: path.to_owned(),
        }
    }

    /// `host:port`, as in the Host header; the port is always written, as Go does for what the kubelet asks.
    pub(super) fn authority(&self) -> String {
        Authority(&self.host, self.port).to_string()
    }

    pub(super) fn redirected(&self, location: &[u8]) -> Result<Destination, BadLocation> {
        if location.len() > MAX_LOCATION_BYTES {
            return Err(BadLocation::TooLong);
        }
        let location = printable(location).ok_or(BadLocation::NotUrl)?;
        let location = location.split('#').next().unwrap_or_default();
        let (scheme, rest) = match split_scheme(location) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(Scheme::Http), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(Scheme::Https), rest),
            Some(_) => return Err(BadLocation::OtherScheme),
            None => (None, location),
        };
        let Some(rest) = rest.strip_prefix("//") else {
            if scheme.is_some() {
                // `http:path` is no URL that anybody means.
                return Err(BadLocation::NotUrl);
            }
            let path = self.resolve(rest);
            return Ok(Destination::Same(Self { path, ..self.clone() }, true));
        };
        let scheme = scheme.unwrap_or(self.scheme);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = split_authority(authority).ok_or(BadLocation::NotUrl)?;
        if !host.eq_ignore_ascii_case(&self.host) {
            return Ok(Destination::Elsewhere(host.to_owned()));
        }
        let default_port = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        let path = match path.chars().next() {
            None => "/".to_owned(),
            Some('?') => format!("/{path}"),
            Some(_) => without_dots(path),
        };
        let target = Self {
            scheme,
            host: self.host.clone(),
            port: port.unwrap_or(default_port),
            path,
        };
        Ok(Destination::Same(target, false))
    }

    /// A path reference against our own path.
    fn resolve(&self, reference: &str) -> String {
        let path = self.path.split('?').next().unwrap_or("/");
        if reference.is_empty() {
            return self.path.clone();
        }
        if reference.starts_with('?') {
            return format!("{path}{reference}");
        }
        if reference.starts_with('/') {
            return without_dots(reference);
        }
        let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        without_dots(&format!("{directory}{reference}"))
    }
}

/// The location as text that can stand in a request line: bytes that cannot are escaped, control characters refused.
fn printable(location: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(location.len());
    for &byte in location {
        match byte {
            0x21..=0x7e => text.push(byte.into()),
            b' ' | 0x80.. => text.push_str(&format!("%{byte:02X}")),
            _ => return None,
        }
    }
    Some(text)
}

fn split_scheme(location: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = location.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    is_scheme.then_some((scheme, rest))
}

/// Host without brackets, and the port when one is written.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let authority = authority.rsplit('@').next()?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    if host.is_empty() {
        return None;
    }
    match port {
        "" => Some((host, None)),
        port => Some((host, Some(port.parse().ok().filter(|&port| port != 0)?))),
    }
}

/// RFC 3986, 5.2.4, on the path part of a path with query.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." if is_last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Target {
        Target {
            scheme: Scheme::Http,
            host: "web.example".into(),
            port: 8080,
            path: "/a/b?x=1".into(),
        }
    }

    #[track_caller]
    fn same(location: &str, expected: &str) {
        let destination = base().redirected(location.as_bytes());
        let Ok(Destination::Same(target, _)) = destination else {
            panic!("{location}: {destination:?}");
        };
        let found = format!(
            "{}://{}{}",
            target.scheme.as_str(),
            target.authority(),
            target.path
        );
        assert_eq!(found, expected, "{location}");
    }

    #[test]
    fn locations_resolve_as_in_rfc_3986() {
        same("/c", "http://web.example:8080/c");
        same("c", "http://web.example:8080/a/c");
        same("./c", "http://web.example:8080/a/c");
        same("../c", "http://web.example:8080/c");
        same("../../../c?y", "http://web.example:8080/c?y");
        same(".", "http://web.example:8080/a/");
        same("..", "http://web.example:8080/");
        same("?y=2", "http://web.example:8080/a/b?y=2");
        same("", "http://web.example:8080/a/b?x=1");
        same("/c#part", "http://web.example:8080/c");
        same("/a b/ü", "http://web.example:8080/a%20b/%C3%BC");
        same("//web.example/c", "http://web.example:80/c");
        same("http://web.example", "http://web.example:80/");
        same("http://web.example?q", "http://web.example:80/?q");
        same("HTTPS://WEB.EXAMPLE/c", "https://web.example:443/c");
        same("http://me:secret@web.example:9/c", "http://web.example:9/c");
    }

    #[test]
    fn another_host_is_elsewhere_and_another_port_is_not() {
        let to = |location: &str| base().redirected(location.as_bytes());
        assert_eq!(
            to("http://other.example/"),
            Ok(Destination::Elsewhere("other.example".into()))
        );
        assert_eq!(
            to("//web.example.evil/"),
            Ok(Destination::Elsewhere("web.example.evil".into()))
        );
        assert!(matches!(
            to("http://web.example:1/"),
            Ok(Destination::Same(_, false))
        ));
        assert!(matches!(to("/"), Ok(Destination::Same(_, true))));
    }

    #[test]
    fn ipv6_hosts_are_compared_without_brackets() {
        let base = Target {
            host: "::1".into(),
            ..base()
        };
        let Ok(Destination::Same(target, _)) = base.redirected(b"http://[::1]:99/x") else {
            panic!("not the same host");
        };
        assert_eq!(target.authority(), "[::1]:99");
    }

    #[test]
    fn locations_that_cannot_be_followed_are_refused() {
        let refused = |location: &[u8]| base().redirected(location).expect_err("refused");
        assert_eq!(refused(b"ftp://web.example/"), BadLocation::OtherScheme);
        assert_eq!(refused(b"javascript:alert(1)"), BadLocation::OtherScheme);
        assert_eq!(refused(b"/a\x01b"), BadLocation::NotUrl);
        assert_eq!(refused(b"http:///path"), BadLocation::NotUrl);
        assert_eq!(refused(b"http://web.example:99999/"), BadLocation::NotUrl);
        assert_eq!(refused(&[b'a'; 5000]), BadLocation::TooLong);
    }
}
