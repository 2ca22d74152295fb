//! Which host names a browser may use: the answer to DNS rebinding.
//!
//! A page of a stranger can make its own name resolve to our address and then read us as if it were ours; the browser
//! still says the stranger's name in `Host`. A name must therefore be known; an address in `Host` is always fine, since it
//! cannot be made to mean another.

use {
    http::{Request, header::HOST, uri::Authority},
    std::{collections::BTreeSet, net::IpAddr},
};

/// The names that are known.
#[derive(Debug)]
pub(crate) struct AllowedHosts(BTreeSet<String>);

impl AllowedHosts {
    /// These names, and `localhost`.
    pub(crate) fn new(names: &[String]) -> Self {
        let names = names
            .iter()
            .map(|name| plain(name))
            .filter(|name| !name.is_empty());
        Self(names.chain(["localhost".to_owned()]).collect())
    }

    /// Whether a request under this name (without its port) may be answered.
    pub(crate) fn allows(&self, host: &str) -> bool {
        let host = plain(host);
        let address = host.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok() || host.ends_with(".localhost") || self.0.contains(&host)
    }
}

fn plain(host: &str) -> String {
    host.trim().trim_end_matches('.').to_ascii_lowercase()
}

/// The authority that a request is for: of its target, or of its `Host` line.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<Authority> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.clone());
    }
    let mut values = request.headers().get_all(HOST).iter();
    let host = values.next()?;
    if values.next().is_some() {
        return None;
    }
    Authority::try_from(host.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_allowed() {
        let hosts = AllowedHosts::new(&["Health.Example.org".into(), " ".into()]);
        for good in [
            "localhost",
            "LOCALHOST.",
            "shop.localhost",
            "127.0.0.1",
            "192.0.2.1",
            "[::1]",
            "health.example.org",
        ] {
            assert!(hosts.allows(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "xhealth.example.org",
        ] {
            assert!(!hosts.allows(bad), "{bad}");
        }
    }

    #[test]
    fn the_authority_is_the_one_meant() {
        #[track_caller]
        fn check(target: &str, hosts: &[&str], expected: Option<&str>) {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let request = request.body(()).unwrap();
            assert_eq!(authority(&request).as_ref().map(Authority::as_str), expected);
        }
        check("/", &["localhost:7575"], Some("localhost:7575"));
        check("/", &["[::1]:7575"], Some("[::1]:7575"));
        check("/", &[], None);
        check("/", &["a", "b"], None);
        check("/", &["a b"], None);
        check("http://evil.example/", &["localhost"], Some("evil.example"));
    }
}
