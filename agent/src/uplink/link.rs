//! A WebSocket as the uplink sees it: one message being written, frames coming in, both at once.
//!
//! Knows nothing of the protocol above. Never queues more than the one message.

use {
    super::connect::WebSocket,
    futures_util::{SinkExt, StreamExt},
    healthscope_shared::{one_line, session::Transmit, wire},
    std::{
        task::{Context, Poll},
        time::Duration,
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::{self, Instant},
    },
    tokio_tungstenite::tungstenite::{
        self, Bytes, Message, Utf8Bytes,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// How long the peer's end of a connection that we closed is waited for: closing a socket with unread data resets the
/// connection, and the reset may overtake our last words.
pub(super) const CLOSE_GRACE: Duration = Duration::from_millis(400);

/// A connection to an aggregator.
#[derive(Debug)]
pub(super) struct Link {
    socket: WebSocket,
    writing_since: Option<Instant>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Happening {
    /// The message given to [`Link::write`] has left this process.
    Written,
    /// A frame arrived.
    Received(Incoming),
    /// It is over.
    Closed(Closed),
}

/// A frame that arrived.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(Utf8Bytes),
    Binary,
    TooBig,
    Ping,
    Pong,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Closed {
    /// The peer said so.
    ByPeer { code: u16, reason: String },
    /// The peer is gone without a word.
    Lost(tungstenite::Error),
    /// What it sent is not WebSocket; it has to be told with this code.
    Broken { code: u16, error: tungstenite::Error },
}

impl Link {
    pub(super) const fn new(socket: WebSocket) -> Self {
        Self {
            socket,
            writing_since: None,
        }
    }

    /// Since when a message has been waiting to be written.
    pub(super) const fn writing_since(&self) -> Option<Instant> {
        self.writing_since
    }

    /// Starts to write; only when nothing is being written. An error shows as the end of the connection.
    pub(super) fn write(&mut self, transmit: Transmit) -> Result<(), Closed> {
        debug_assert!(self.writing_since.is_none(), "one message at a time");
        let message = match transmit {
            Transmit::Text(text) => Message::Text(text.into()),
            Transmit::Ping => Message::Ping(Bytes::new()),
            Transmit::Close { code, reason } => Message::Close(Some(CloseFrame {
                code: CloseCode::from(code),
                reason: reason.into(),
            })),
        };
        self.writing_since = Some(Instant::now());
        self.socket.start_send_unpin(message).map_err(Closed::Lost)
    }

    /// Writes on and reads on; the next thing that happened. Cancel-safe: what has not been returned is still there.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Happening> {
        if self.writing_since.is_some() {
            match self.socket.poll_flush_unpin(context) {
                Poll::Ready(Ok(())) => {
                    self.writing_since = None;
                    return Poll::Ready(Happening::Written);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Happening::Closed(Closed::Lost(error))),
                Poll::Pending => {}
            }
        }
        self.socket.poll_next_unpin(context).map(|frame| match frame {
            Some(Ok(message)) => match message {
                Message::Text(text) => Happening::Received(Incoming::Text(text)),
                Message::Binary(_) => Happening::Received(Incoming::Binary),
                Message::Ping(_) => Happening::Received(Incoming::Ping),
                Message::Pong(_) | Message::Frame(_) => Happening::Received(Incoming::Pong),
                Message::Close(frame) => Happening::Closed(by_peer(frame)),
            },
            Some(Err(error)) => match error {
                tungstenite::Error::Capacity(_) => Happening::Received(Incoming::TooBig),
                tungstenite::Error::Utf8(_) => Happening::Closed(Closed::Broken {
                    code: u16::from(CloseCode::Invalid),
                    error,
                }),
                tungstenite::Error::Protocol(
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                ) => Happening::Closed(Closed::Lost(error)),
                tungstenite::Error::Protocol(_) => Happening::Closed(Closed::Broken {
                    code: wire::close::PROTOCOL,
                    error,
                }),
                error => Happening::Closed(Closed::Lost(error)),
            },
            None => Happening::Closed(Closed::Lost(tungstenite::Error::ConnectionClosed)),
        })
    }

    /// Says the last word, after what is being written, and waits a moment for the peer to hear it.
    pub(super) async fn close(mut self, code: u16, reason: String) {
        let ending = async {
            self.socket.flush().await?;
            self.writing_since = None;
            if self.write(Transmit::Close { code, reason }).is_ok() {
                self.socket.flush().await?;
            }
            self.socket.get_mut().shutdown().await?;
            // What the peer still says does not matter, and may not even be WebSocket.
            let mut unread = [0; 512];
            while self.socket.get_mut().read(&mut unread).await? > 0 {}
            Ok::<_, tungstenite::Error>(())
        };
        let _either_way = time::timeout(CLOSE_GRACE, ending).await;
    }

    /// Lets the answer to the peer's own close go out.
    pub(super) async fn finish(mut self) {
        let ending = async { while let Some(Ok(_)) = self.socket.next().await {} };
        let _either_way = time::timeout(CLOSE_GRACE, ending).await;
    }
}

fn by_peer(frame: Option<CloseFrame>) -> Closed {
    match frame {
        Some(CloseFrame { code, reason }) => Closed::ByPeer {
            code: code.into(),
            reason: one_line(&reason, 125),
        },
        // RFC 6455, 7.1.5: no code was given.
        None => Closed::ByPeer {
            code: 1005,
            reason: String::new(),
        },
    }
}
