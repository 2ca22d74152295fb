//! Which aggregator is meant, from what was typed.
//!
//! Pure: opens no connections. The rule of the security model is kept here: a token never crosses a network readable.

use {healthscope_shared::one_line, reqwest::Url, std::net::IpAddr};

/// Where an aggregator serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Scheme, host, port and perhaps a path, which ends with `/`.
    url: Url,
}

/// Why words name no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServerError {
    /// Neither an address nor a URL.
    #[error("the server {0:?} is not an address; write HOST:PORT, http://HOST:PORT or https://HOST:PORT")]
    NotAnAddress(String),
    /// The token would be readable on the way.
    #[error(
        "the token is not sent to {0} over http://, where others could read it; write https:// (with --ca for an \
         authority of your own)"
    )]
    ReadableToken(String),
}

impl Server {
    /// Reads `HOST:PORT` or a URL. Without a scheme, loopback is plain and everything else is not.
    pub(crate) fn parse(text: &str, has_token: bool) -> Result<Self, ServerError> {
        let unusable = || ServerError::NotAnAddress(one_line(text, 200));
        let text = text.trim();
        let mut url: Url = if text.contains("://") {
            text.parse().map_err(|_| unusable())?
        } else {
            let plain: Url = format!("http://{text}").parse().map_err(|_| unusable())?;
            if is_loopback(&plain) {
                plain
            } else {
                format!("https://{text}").parse().map_err(|_| unusable())?
            }
        };
        let is_usable = matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if !is_usable {
            return Err(unusable());
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let server = Self { url };
        if has_token && !server.is_tls() && !server.is_loopback() {
            return Err(ServerError::ReadableToken(server.address()));
        }
        Ok(server)
    }

    /// Whether TLS is spoken.
    pub(crate) fn is_tls(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Whether the host can only be this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// For people: `http://127.0.0.1:7575`.
    pub(crate) fn address(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// A page of it; the segments are escaped.
    pub(crate) fn page(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .expect("http URLs have paths")
            .pop_if_empty()
            .extend(segments);
        url
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = match Server::parse(text, true) {
            Ok(server) => server.address(),
            Err(error) => error.to_string(),
        };
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }

    #[test]
    fn loopback_is_plain_and_the_rest_is_not() {
        check("127.0.0.1:7575", "http://127.0.0.1:7575");
        check("localhost:1", "http://localhost:1");
        check("[::1]:7575", "http://[::1]:7575");
        check("scope.example.org:7575", "https://scope.example.org:7575");
        check(
            "https://scope.example.org/health",
            "https://scope.example.org/health",
        );
    }

    #[test]
    fn a_token_is_not_sent_readable() {
        check(
            "http://scope.example.org:7575",
            "the token is not sent to http://scope.example.org:7575 over http://",
        );
        assert!(Server::parse("http://scope.example.org:7575", false).is_ok());
    }

    #[test]
    fn what_is_no_address_is_said() {
        for text in [
            "",
            "a b",
            "ftp://x",
            "http://",
            "http://u:p@h",
            "http://h/?q",
            "host:notaport",
        ] {
            check(text, "the server ");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        let server = Server::parse("http://localhost:1/prefix", false).unwrap();
        let page = server.page(&["api", "v1", "a/b?c", ".."]);
        assert_eq!(page.as_str(), "http://localhost:1/prefix/api/v1/a%2Fb%3Fc");
    }
}
