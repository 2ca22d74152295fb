//! A WebSocket connection with small buffers.
//!
//! Knows frames and bytes, not messages of ours.

use {
    crate::stream::Stream,
    futures_util::{FutureExt, SinkExt, StreamExt},
    healthscope_shared::wire::MAX_MESSAGE_BYTES,
    std::{
        io,
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    },
    tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        time,
    },
    tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{
            Error, Message,
            error::{CapacityError, ProtocolError},
            protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
        },
    },
};

/// The read buffer: an edge or a summary of ten probes fits. The library's own default is 128 KiB.
const READ_BUFFER: usize = 512;

/// Messages above this have made the read buffer grow.
const GROWN: usize = READ_BUFFER;

/// How long a peer may take to answer our close frame before the connection is dropped.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// Frames read while waiting for the answer to our close frame.
const CLOSE_FRAMES: usize = 64;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// What arrived.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message; one that closes the connection is followed by [`Self::Over`].
    Message(Message),
    /// A message over the limit; nothing can be read any more, but a close frame can be written.
    TooBig,
    /// Something that is no WebSocket frame, or text that is not UTF-8; likewise.
    Malformed(String),
    /// The connection is over.
    Over,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Socket {
    inner: WebSocketStream<Counted>,
    /// Bytes that the messages returned so far took on the wire, if none of them came in pieces.
    consumed: u64,
    has_grown: bool,
}

impl Socket {
    /// Takes over after the handshake, with what was read beyond it.
    pub(super) fn new(stream: Stream, read: &[u8]) -> Self {
        let stream = Counted {
            stream,
            read: read.len() as u64,
        };
        let wrapped = if read.is_empty() {
            WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).now_or_never()
        } else {
            WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Server, Some(config()))
                .now_or_never()
        };
        Self {
            inner: wrapped.expect("wrapping a stream waits for nothing"),
            consumed: 0,
            has_grown: read.len() > GROWN,
        }
    }

    /// The next thing that arrives. Cancel-safe.
    pub(super) async fn next(&mut self) -> Incoming {
        match self.inner.next().await {
            Some(Ok(message)) => {
                let length = message.len();
                self.consumed += frame_length(length);
                self.has_grown |= length > GROWN;
                Incoming::Message(message)
            }
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => Incoming::TooBig,
            // The peer is gone, in the middle of something or not.
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => Incoming::Over,
            Some(Err(error @ (Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_)))) => {
                Incoming::Malformed(error.to_string())
            }
            Some(Err(_)) | None => Incoming::Over,
        }
    }

    /// Writes a message; returns when the system has taken it.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.inner.send(message).await
    }

    /// Whether the read buffer has grown and holds nothing, so that [`Self::shrunk`] can give it back.
    pub(super) fn has_grown(&self) -> bool {
        self.has_grown && self.inner.get_ref().read == self.consumed
    }

    /// Gives a grown read buffer back. To be called when [`Self::has_grown`] and everything is written.
    pub(super) fn shrunk(self) -> Self {
        debug_assert!(self.has_grown(), "bytes in the buffer would be lost");
        Self::new(self.inner.into_inner().stream, &[])
    }

    /// Says why the connection ends, and waits a little for the peer to take note: a connection that is dropped with
    /// unread bytes is reset, and the peer would never see the reason.
    pub(super) async fn close(mut self, code: u16, reason: String) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        };
        let goodbye = async {
            if self.inner.send(Message::Close(Some(frame))).await.is_err() {
                return;
            }
            for _ in 0..CLOSE_FRAMES {
                match self.inner.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                }
            }
        };
        let _too_slow = time::timeout(CLOSE_DEADLINE, goodbye).await;
    }
}

/// Bytes on the wire of a whole frame from a client: two of header, four of mask, and the length (RFC 6455, 5.2).
const fn frame_length(payload: usize) -> u64 {
    let length = match payload {
        0..126 => 0,
        126..0x1_0000 => 2,
        _ => 8,
    };
    payload as u64 + 6 + length
}

/// A stream that counts what is read.
#[derive(Debug)]
struct Counted {
    stream: Stream,
    read: u64,
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let poll = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.read += (buffer.filled().len() - before) as u64;
        poll
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
