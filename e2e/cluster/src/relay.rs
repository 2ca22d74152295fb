//! A door into a cluster's network: connections to a port on this machine's loopback come out inside.
//!
//! For tests, whose clients live outside. It copies bytes and looks at none.

use {
    crate::network::Network,
    anyhow::Context,
    std::{
        collections::BTreeMap,
        io,
        net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
        sync::{
            Arc, Mutex, MutexGuard, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        thread::{self, JoinHandle},
    },
};

/// Connections at once; two threads each. One more is closed at once: a test with that many goes inside itself.
const MAX_CONNECTIONS: usize = 512;

/// A port on loopback that leads to an address inside a cluster's network, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    target: SocketAddr,
    is_closing: AtomicBool,
    /// Both ends of each connection.
    connections: Mutex<BTreeMap<u64, (TcpStream, TcpStream)>>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, (TcpStream, TcpStream)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    pub(crate) fn open(network: Network, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            network,
            target,
            is_closing: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let acceptor = thread::Builder::new()
            .name(format!("relay-{}", target.port()))
            .spawn({
                let shared = Arc::clone(&shared);
                move || accept(&listener, &shared)
            })
            .context("cannot start a thread")?;
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            // It copies nothing itself, so it does not panic; and there is nobody to tell.
            let _ = acceptor.join();
        }
        for (near, far) in self.shared.connections().values() {
            close(near);
            close(far);
        }
    }
}

fn close(stream: &TcpStream) {
    // It may be closed already.
    let _ = stream.shutdown(Shutdown::Both);
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    for near in listener.incoming() {
        if shared.is_closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok(near) = near else { continue };
        if shared.connections().len() >= MAX_CONNECTIONS {
            close(&near);
            continue;
        }
        number += 1;
        let shared = Arc::clone(shared);
        // A connection that cannot be served is closed, as that of a server without room.
        let _ = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || serve(number, &near, &shared));
    }
}

fn serve(number: u64, near: &TcpStream, shared: &Arc<Shared>) {
    // A connection that is refused inside is closed outside.
    let Ok(far) = shared.network.connect(shared.target) else {
        close(near);
        return;
    };
    let (Ok(near_end), Ok(far_end)) = (near.try_clone(), far.try_clone()) else {
        close(near);
        return;
    };
    shared.connections().insert(number, (near_end, far_end));
    if shared.is_closing.load(Ordering::SeqCst) {
        close(near);
    }
    // Small messages go as they come.
    let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
    thread::scope(|scope| {
        scope.spawn(|| copy(near, &far));
        copy(&far, near);
    });
    shared.connections().remove(&number);
}

/// Copies until the end, and passes the end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    let passed_on = to.shutdown(Shutdown::Write);
    if copied.is_err() || passed_on.is_err() {
        // A reset on one side is one on the other.
        close(from);
        close(to);
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        std::io::{Read, Write},
    };

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn bytes_and_the_end_pass_in_both_directions() {
        let (server, target) = listener();
        let relay = Relay::open(Network::Loopback, target).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut inside, _) = server.accept().unwrap();
        let mut question = String::new();
        inside.read_to_string(&mut question).unwrap();
        inside.write_all(b"answer").unwrap();
        drop(inside);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[test]
    fn what_is_refused_inside_is_closed_outside() {
        let (server, target) = listener();
        drop(server);
        let relay = Relay::open(Network::Loopback, target).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }

    #[test]
    fn dropping_it_closes_what_is_open() {
        let (server, target) = listener();
        let relay = Relay::open(Network::Loopback, target).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"x").unwrap();
        let (mut inside, _) = server.accept().unwrap();
        inside.read_exact(&mut [0]).unwrap();
        drop(relay);
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(inside.read(&mut [0]).unwrap_or(0), 0);
    }
}
