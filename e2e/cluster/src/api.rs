//! Looks at health endpoints and at the API server: `GET`, and nothing more.
//!
//! Tests use a real client. This one only tells when the cluster is ready, without a process for each look.

use {
    crate::network::Network,
    anyhow::{Context, bail},
    rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned},
    rustls_pki_types::{CertificateDer, ServerName},
    std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
        sync::Arc,
        time::Duration,
    },
};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// The longest answer that is read: a list of everything in a test's cluster is far below.
const MAX_ANSWER: u64 = 64 << 20;

/// An answer's status code and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body, when the status is 200.
    pub(crate) fn ok(self) -> anyhow::Result<Vec<u8>> {
        let Self { status, body } = self;
        if status != 200 {
            bail!("answer {status}: {}", String::from_utf8_lossy(&body).trim_end());
        }
        Ok(body)
    }
}

/// Asks without encryption.
pub(crate) fn get_plain(network: &Network, address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let mut stream = connect(network, address)?;
    exchange(&mut stream, path, "")
}

/// The API server as its administrator sees it.
#[derive(Clone)]
pub(crate) struct Api {
    network: Network,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    token: String,
}

impl Api {
    pub(crate) fn new(
        network: Network,
        address: SocketAddr,
        authority: &CertificateDer<'static>,
        token: String,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.clone())
            .context("the cluster's own authority is not accepted")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("no version of TLS is left")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            network,
            address,
            tls: Arc::new(tls),
            token,
        })
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Answer> {
        let stream = connect(&self.network, self.address)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let session = ClientConnection::new(Arc::clone(&self.tls), name).context("cannot begin TLS")?;
        let mut stream = StreamOwned::new(session, stream);
        exchange(
            &mut stream,
            path,
            &format!("Authorization: Bearer {}\r\n", self.token),
        )
    }
}

fn connect(network: &Network, address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = network.connect(address)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Speaks HTTP/1.0, whose answers end with the connection: no chunks, nothing kept open.
fn exchange(stream: &mut (impl Read + Write), path: &str, headers: &str) -> anyhow::Result<Answer> {
    let request = format!("GET {path} HTTP/1.0\r\nAccept: application/json, */*;q=0.5\r\n{headers}\r\n");
    stream
        .write_all(request.as_bytes())
        .with_context(|| format!("cannot ask for {path}"))?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER)
        .read_to_end(&mut answer)
        .with_context(|| format!("no answer for {path}"))?;
    parse(&answer).with_context(|| format!("the answer for {path} is no HTTP"))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        body: answer[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_taken_apart() {
        let answer = parse(b"HTTP/1.0 200 OK\r\nDate: today\r\n\r\nok\r\n\r\nso").unwrap();
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (200, b"ok\r\n\r\nso".as_slice())
        );
        assert!(parse(b"SSH-2.0\r\n\r\n").is_none());
    }

    #[test]
    fn another_status_is_an_error_with_the_body() {
        let answer = parse(b"HTTP/1.1 403 Forbidden\r\n\r\nno\n").unwrap();
        assert_eq!(answer.ok().unwrap_err().to_string(), "answer 403: no");
    }
}
