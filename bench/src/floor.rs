//! The floor: a server that takes the same connections and reads the same frames as the aggregator, and does
//! nothing with them. What the aggregator costs more than this is its own doing.

use {
    anyhow::Result,
    clap::Args,
    std::net::SocketAddr,
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::LocalSet,
    },
};

/// Where to listen.
#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    address: SocketAddr,
}

/// Serves until it is killed.
pub(crate) fn serve(args: &FloorArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(args.address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(connection(stream));
        }
    })
}

/// Answers the upgrade without looking at it, then walks over frames without looking into them. The buffer lives
/// only while there is something to read.
async fn connection(mut stream: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: healthscope.v1\r\n\r\n";
    let mut head = vec![0; 1024];
    let Ok(1..) = stream.read(&mut head).await else {
        return;
    };
    drop(head);
    if stream.write_all(ANSWER).await.is_err() {
        return;
    }
    while stream.readable().await.is_ok() {
        let mut bytes = [0; 16 * 1024];
        match stream.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                std::hint::black_box(&bytes[..count]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
