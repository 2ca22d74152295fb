//! Servers made for one test each. They live in threads of their own, so that nothing they do can hold up a probe, and
//! end when their [`Target`] is dropped.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// A listening server.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    stopping: Arc<AtomicBool>,
    /// The requests seen so far: request line and headers.
    seen: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Target {
    /// Hands every connection to `serve`, in a thread.
    pub(crate) fn raw(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::raw_on(Ipv4Addr::LOCALHOST.into(), serve)
    }

    /// The same on another address.
    pub(crate) fn raw_on(ip: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener =
            TcpListener::bind((ip, 0)).unwrap_or_else(|error| panic!("these tests need {ip}: {error}"));
        let address = listener.local_addr().expect("bound");
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self {
            address,
            stopping,
            seen: Arc::default(),
        }
    }

    /// Reads a request and hands the connection with its path to `serve`.
    pub(crate) fn http(serve: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        Self::http_on(Ipv4Addr::LOCALHOST.into(), serve)
    }

    /// The same on another address.
    pub(crate) fn http_on(ip: IpAddr, serve: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        let seen: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let log = Arc::clone(&seen);
        let mut target = Self::raw_on(ip, move |mut stream| {
            let Some(request) = read_request(&mut stream) else {
                return;
            };
            let path = request[0].split(' ').nth(1).unwrap_or_default().to_owned();
            log.lock()
                .expect("no test panics while it holds this")
                .push(request);
            serve(&mut stream, &path);
            close(&mut stream);
        });
        target.seen = seen;
        target
    }

    /// Always answers the same bytes.
    pub(crate) fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::http(move |stream, _| {
            let _ = stream.write_all(&answer);
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn seen(&self) -> Vec<Vec<String>> {
        self.seen
            .lock()
            .expect("no test panics while it holds this")
            .clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.ok()?;
        if line.is_empty() {
            return Some(lines);
        }
        lines.push(line);
    }
    None
}

/// Closes well: says that nothing more comes, and waits until the other side is gone.
fn close(stream: &mut TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    hold(stream);
}

/// Keeps the connection until the other side is gone.
pub(crate) fn hold(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

/// A complete answer with a body.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Some Phrase\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// An address that takes no connection and refuses none: its queue is full.
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _listener: rustix::fd::OwnedFd,
    _queued: Vec<rustix::fd::OwnedFd>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        use rustix::net::{
            AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, listen, socket_with,
        };
        let open = || {
            socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
                None,
            )
            .expect("a socket")
        };
        let listener = open();
        bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("bind");
        listen(&listener, 0).expect("listen");
        let address = SocketAddr::try_from(getsockname(&listener).expect("bound")).expect("an IP address");
        // A queue of nothing takes one; what comes after it is not answered.
        let queued = (0..4)
            .map(|_| {
                let socket = open();
                let _ = connect(&socket, &address);
                socket
            })
            .collect();
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

/// A port on which nothing listens.
pub(crate) fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    listener.local_addr().expect("bound").port()
}
