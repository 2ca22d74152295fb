//! Where the aggregator is: a WebSocket URL, and what a redirect makes of it.
//!
//! Pure: resolves no names and opens no connections.

use {
    healthscope_shared::{probe::Authority, wire},
    http::Uri,
    std::{fmt, net::IpAddr, str::FromStr},
};

/// Longest host name (RFC 1035, 2.3.4).
const MAX_HOST_BYTES: usize = 253;

/// An aggregator's address, as connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    is_tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    path: String,
}

/// Why a URL is no aggregator's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL at all, or one without a host.
    #[error("{0:?} is not a URL; write wss://HOST:PORT")]
    NotAUrl(String),
    /// Another protocol.
    #[error("the scheme {0:?} is not spoken; write wss://HOST:PORT, or ws://HOST:PORT on loopback")]
    Scheme(String),
    /// Credentials belong in the token file.
    #[error("the URL holds a user name; write the token into a file and name it with --token-file")]
    UserInfo,
    /// A part that would not be used.
    #[error("the URL holds a query; leave it out")]
    Query,
    /// A redirect to something that is not `host:port`.
    #[error("{0:?} is not host:port")]
    NotAnAddress(String),
}

impl Endpoint {
    /// Whether TLS is spoken.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Name or address, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Path of the upgrade request.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port`, as in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        Authority(&self.host, self.port).to_string()
    }

    /// Whether the host can only be this machine: `localhost` or a loopback address. Where connections really go is
    /// checked again when the name has been resolved.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The same service elsewhere: `address` is `host:port`, everything else stays as it is.
    ///
    /// # Errors
    /// When `address` is not `host:port`.
    pub fn at(&self, address: &str) -> Result<Self, EndpointError> {
        let not_an_address = || EndpointError::NotAnAddress(healthscope_shared::one_line(address, 80));
        let (host, port) = address.rsplit_once(':').ok_or_else(not_an_address)?;
        let port: u16 = port.parse().map_err(|_| not_an_address())?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let host = if is_bracketed {
            &host[1..host.len() - 1]
        } else {
            host
        };
        let is_usable = if is_bracketed {
            host.parse::<IpAddr>().is_ok()
        } else {
            is_host(host)
        };
        if !is_usable || port == 0 {
            return Err(not_an_address());
        }
        Ok(Self {
            is_tls: self.is_tls,
            host: host.to_owned(),
            port,
            path: self.path.clone(),
        })
    }
}

/// A name or an IPv4 address; anything else would not survive in a URL.
fn is_host(host: &str) -> bool {
    (1..=MAX_HOST_BYTES).contains(&host.len())
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let not_a_url = || EndpointError::NotAUrl(healthscope_shared::one_line(text, 80));
        let uri: Uri = text.parse().map_err(|_| not_a_url())?;
        let is_tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            Some(other) => return Err(EndpointError::Scheme(other.to_owned())),
            None => return Err(not_a_url()),
        };
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(EndpointError::UserInfo);
        }
        if uri.query().is_some() {
            return Err(EndpointError::Query);
        }
        let host = uri.host().unwrap_or_default();
        let host = host
            .strip_prefix('[')
            .map_or(host, |host| host.trim_end_matches(']'));
        if !is_host(host) && host.parse::<IpAddr>().is_err() {
            return Err(not_a_url());
        }
        // A URL whose port is not a number from 1 to 65535 has a port that cannot be read.
        let has_port = uri
            .authority()
            .is_some_and(|authority| !authority.as_str().ends_with(authority.host()));
        let port = match uri.port_u16() {
            Some(port) if port > 0 => port,
            None if !has_port => {
                if is_tls {
                    443
                } else {
                    80
                }
            }
            Some(_) | None => return Err(not_a_url()),
        };
        let prefix = uri.path().trim_end_matches('/');
        let path = if prefix.ends_with(wire::PATH) {
            prefix.to_owned()
        } else {
            format!("{prefix}{}", wire::PATH)
        };
        Ok(Self {
            is_tls,
            host: host.to_owned(),
            port,
            path,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", Authority(&self.host, self.port), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: &str) {
        let shown = match url.parse::<Endpoint>() {
            Ok(endpoint) => endpoint.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(shown.starts_with(expected), "{url:?}: {shown}");
    }

    #[test]
    fn a_url_names_scheme_host_port_and_prefix() {
        check(
            "wss://scope.example.org:7575",
            "wss://scope.example.org:7575/v1/agent",
        );
        check("wss://scope.example.org/", "wss://scope.example.org:443/v1/agent");
        check("ws://[::1]:7575", "ws://[::1]:7575/v1/agent");
        check("ws://127.0.0.1/health/", "ws://127.0.0.1:80/health/v1/agent");
        check("ws://localhost:1/v1/agent", "ws://localhost:1/v1/agent");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        check(
            "scope.example.org:7575",
            "\"scope.example.org:7575\" is not a URL",
        );
        check(
            "https://scope.example.org",
            "the scheme \"https\" is not spoken; write wss://",
        );
        check("wss://user:secret@example.org", "the URL holds a user name");
        check("wss://example.org/?token=x", "the URL holds a query");
        check("wss://", "\"wss://\" is not a URL");
        check("wss://:7575", "\"wss://:7575\" is not a URL");
        check(
            "wss://example.org:70000",
            "\"wss://example.org:70000\" is not a URL",
        );
        check("wss://example.org:0", "\"wss://example.org:0\" is not a URL");
        check("", "\"\" is not a URL");
    }

    #[test]
    fn an_error_does_not_repeat_a_secret() {
        let error = "wss://user:hush@example.org".parse::<Endpoint>().unwrap_err();
        assert!(!error.to_string().contains("hush"));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("ws://localhost:1", true),
            ("ws://127.8.9.1:1", true),
            ("ws://[::1]:1", true),
            ("ws://localhost.example.org:1", false),
            ("ws://10.0.0.1:1", false),
        ] {
            assert_eq!(url.parse::<Endpoint>().unwrap().is_loopback(), expected, "{url}");
        }
    }

    #[test]
    fn a_redirect_changes_host_and_port_alone() {
        let endpoint: Endpoint = "wss://one.example.org:7575/health".parse().unwrap();
        for (address, expected) in [
            (
                "two.example.org:99",
                Some("wss://two.example.org:99/health/v1/agent"),
            ),
            ("[fd00::7]:99", Some("wss://[fd00::7]:99/health/v1/agent")),
            ("fd00::7:99", None),
            ("two.example.org", None),
            (":99", None),
            ("two:0", None),
            ("a b:99", None),
            ("evil/@two:99", None),
            ("[two]:99", None),
        ] {
            let shown = endpoint.at(address).ok().map(|endpoint| endpoint.to_string());
            assert_eq!(shown.as_deref(), expected, "{address:?}");
        }
    }
}
