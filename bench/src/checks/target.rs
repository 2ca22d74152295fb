//! What is checked: a server in a process of its own, as cheap as it can be, that answers HTTP on one port and takes
//! connections on another.

use {
    super::Kind,
    crate::process::Process,
    anyhow::{Context, Result},
    std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        time::{Duration, Instant},
    },
};

/// What an ordinary health endpoint answers.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 3\r\n\
    connection: close\r\n\r\nok\n";

/// The server, as its user sees it.
pub(crate) struct Target {
    _process: Process,
    http: SocketAddr,
    tcp: SocketAddr,
}

impl Target {
    pub(crate) fn start() -> Result<Self> {
        let (http, tcp) = (free_address()?, free_address()?);
        let process = Process::myself(&["check-target", &http.to_string(), &tcp.to_string()])?;
        let give_up = Instant::now() + Duration::from_secs(10);
        for address in [http, tcp] {
            while TcpStream::connect(address).is_err() {
                anyhow::ensure!(Instant::now() < give_up, "the target server does not come up");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(Self {
            _process: process,
            http,
            tcp,
        })
    }

    pub(crate) const fn address(&self, kind: Kind) -> SocketAddr {
        match kind {
            Kind::Http => self.http,
            Kind::Tcp => self.tcp,
        }
    }
}

pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Serves until it is killed.
pub(crate) fn serve(http: SocketAddr, tcp: SocketAddr) -> Result<()> {
    let tcp = TcpListener::bind(tcp).context("bind")?;
    std::thread::spawn(move || for _connection in tcp.incoming() {});
    for stream in TcpListener::bind(http).context("bind")?.incoming() {
        // A client that is gone is none of our business.
        let _ = stream.and_then(answer);
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = [0; 4096];
    let mut length = 0;
    while !request[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[length..])? {
            0 => return Ok(()),
            count => length += count,
        }
    }
    stream.write_all(ANSWER)
}
