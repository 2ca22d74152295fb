//! The answer to one GET, read piece by piece with bounded memory (RFC 9112). Pure: knows bytes, not sockets.
//!
//! Keeps the body only when a text is expected in it, and never more than its first 10 KiB. Reading stops as soon as the
//! check is decided: at the end of the head when the status is no success or a redirect, else at the end of the body or
//! after its first 10 KiB.

use {
    crate::prober::MAX_READ_BYTES,
    healthscope_shared::{health::Reason, probe::HttpGetAction},
    std::mem::MaybeUninit,
};

/// Largest head, interim answers included. Servers send some hundred bytes; browsers give up at some 100 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most header lines.
const MAX_HEADERS: usize = 100;
/// Longest line before a chunk: sixteen digits and an extension that nobody sends.
const MAX_CHUNK_LINE: usize = 256;

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the answer is not HTTP")]
    NotHttp,
    #[error("the answer's head is not valid HTTP: {0}")]
    Head(httparse::Error),
    #[error("the answer's head is longer than {MAX_HEAD_BYTES} bytes")]
    LongHead,
    #[error("the answer's content-length is not a number")]
    ContentLength,
    #[error("the answer's transfer-encoding is not chunked")]
    TransferEncoding,
    #[error("the answer's body is not validly chunked")]
    Chunk,
    #[error("the connection was closed before the answer")]
    NoAnswer,
    #[error("the connection was closed within the answer")]
    CutOff,
}

impl Malformed {
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::NotHttp
            | Self::Head(_)
            | Self::LongHead
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::Chunk => Reason::BAD_RESPONSE,
            Self::NoAnswer | Self::CutOff => Reason::CONNECTION_CLOSED,
        }
    }
}

/// What the check wants of the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expect<'a> {
    action: &'a HttpGetAction,
}

impl<'a> Expect<'a> {
    pub(super) const fn of(action: &'a HttpGetAction) -> Self {
        Self { action }
    }
}

/// An answer, as far as a check wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) location: Option<Vec<u8>>,
    /// Whether the expected text was in the body; `None` when none is expected.
    pub(super) body_has_text: Option<bool>,
}

impl Response {
    /// Whether it is a redirect in Go's sense: one of five statuses, with a location.
    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 307 | 308) && self.location.is_some()
    }
}

/// Reads one answer.
#[derive(Debug)]
pub(super) struct ResponseReader<'a> {
    expect: Expect<'a>,
    state: State,
    /// While the head is read: its bytes so far, when they came in more than one piece.
    head: Vec<u8>,
    /// Bytes of interim answers that were skipped.
    skipped: usize,
    response: Response,
    /// Bytes of the body so far.
    body_length: usize,
    /// The same, kept when a text is expected in them.
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes to come.
    Sized(u64),
    /// Until the connection is closed.
    Unsized,
    Chunked(Chunk),
    Decided,
}

/// Where in a chunked body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// In the line that says how long the next chunk is: value so far, digits, bytes, and whether its digits are over.
    Size {
        value: u64,
        digits: u8,
        length: usize,
        over: bool,
    },
    /// So many bytes of data to come.
    Data(u64),
    /// In the line end after the data: bytes seen of it.
    AfterData(u8),
}

impl Chunk {
    const START: Self = Self::Size {
        value: 0,
        digits: 0,
        length: 0,
        over: false,
    };
}

impl<'a> ResponseReader<'a> {
    pub(super) const fn new(expect: Expect<'a>) -> Self {
        Self {
            expect,
            state: State::Head,
            head: Vec::new(),
            skipped: 0,
            response: Response {
                status: 0,
                location: None,
                body_has_text: None,
            },
            body_length: 0,
            body: Vec::new(),
        }
    }

    /// Whether the head is complete.
    pub(super) fn has_head(&self) -> bool {
        self.state != State::Head
    }

    /// Takes in bytes (at least one); `true` when the check is decided and nothing more need be read.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        if self.state == State::Head {
            if self.head.is_empty() {
                // The usual case: the head is in one piece and is not copied.
                let used = self.take_head(bytes, 0)?;
                match used {
                    Some(used) => self.take_body(&bytes[used..])?,
                    None => self.head.extend_from_slice(bytes),
                }
            } else {
                let looked_at = self.head.len();
                let mut head = std::mem::take(&mut self.head);
                head.extend_from_slice(bytes);
                match self.take_head(&head, looked_at)? {
                    Some(used) => self.take_body(&head[used..])?,
                    None => self.head = head,
                }
            }
        } else {
            self.take_body(bytes)?;
        }
        Ok(self.state == State::Decided)
    }

    /// The connection was closed.
    pub(super) fn end(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Head if self.head.is_empty() => Err(Malformed::NoAnswer),
            State::Head | State::Sized(_) | State::Chunked(_) => Err(Malformed::CutOff),
            State::Unsized => {
                self.decide();
                Ok(())
            }
            State::Decided => Ok(()),
        }
    }

    pub(super) fn into_response(self) -> Response {
        debug_assert_eq!(self.state, State::Decided);
        self.response
    }

    /// Reads the head when all of it is there: how many bytes were used. Interim answers are skipped; when the final one
    /// is not complete after them, all bytes were used and the state is still [`State::Head`]. `None`: nothing was used.
    /// The first `looked_at` bytes are known not to hold the head's end.
    fn take_head(&mut self, bytes: &[u8], looked_at: usize) -> Result<Option<usize>, Malformed> {
        let mut start = 0;
        let mut looked_at = looked_at;
        loop {
            let rest = &bytes[start..];
            let prefix = b"HTTP/1.";
            let known = rest.len().min(prefix.len());
            if rest[..known] != prefix[..known] {
                return Err(Malformed::NotHttp);
            }
            let Some(end) = end_of_head(rest, looked_at) else {
                if self.skipped + rest.len() > MAX_HEAD_BYTES {
                    return Err(Malformed::LongHead);
                }
                if start > 0 {
                    self.head = rest.to_vec();
                    return Ok(Some(bytes.len()));
                }
                return Ok(None);
            };
            if self.skipped + end > MAX_HEAD_BYTES {
                return Err(Malformed::LongHead);
            }
            let is_final = self.parse_head(&rest[..end])?;
            start += end;
            if is_final {
                return Ok(Some(start));
            }
            self.skipped += end;
            looked_at = 0;
            if start == bytes.len() {
                return Ok(Some(start));
            }
        }
    }

    /// `true` when it is the final answer's.
    fn parse_head(&mut self, head: &[u8]) -> Result<bool, Malformed> {
        let mut headers = [MaybeUninit::uninit(); MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let mut config = httparse::ParserConfig::default();
        config
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_multiple_spaces_in_response_status_delimiters(true);
        let result = config.parse_response_with_uninit_headers(&mut parsed, head, &mut headers);
        match result.map_err(Malformed::Head)? {
            httparse::Status::Complete(_) => {}
            httparse::Status::Partial => return Err(Malformed::Head(httparse::Error::NewLine)),
        }
        let status = parsed.code.expect("complete");
        if (100..200).contains(&status) && status != 101 {
            return Ok(false);
        }
        self.response.status = status;
        let mut length = None;
        let mut chunked = false;
        for header in parsed.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let value = content_length(header.value)?;
                if length.is_some_and(|length| length != value) {
                    return Err(Malformed::ContentLength);
                }
                length = Some(value);
            } else if is("transfer-encoding") {
                if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::TransferEncoding);
                }
                chunked = true;
            } else if is("location") && self.response.location.is_none() {
                self.response.location = Some(header.value.to_vec());
            }
        }
        let action = self.expect.action;
        self.state = match length {
            _ if !action.is_success(status) || self.response.is_redirect() => State::Decided,
            _ if status == 204 || status == 304 => State::Sized(0),
            _ if chunked => State::Chunked(Chunk::START),
            Some(length) => State::Sized(length),
            None => State::Unsized,
        };
        if self.state == State::Sized(0) {
            self.decide();
        }
        Ok(true)
    }

    fn take_body(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match self.state {
                // After interim answers only.
                State::Head | State::Decided => return Ok(()),
                State::Unsized => {
                    self.keep(bytes);
                    return Ok(());
                }
                State::Sized(left) => {
                    let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - now as u64;
                    self.state = State::Sized(left);
                    self.keep(&bytes[..now]);
                    if left == 0 {
                        self.decide();
                    }
                    bytes = &bytes[now..];
                }
                State::Chunked(chunk) => bytes = self.take_chunk(chunk, bytes)?,
            }
        }
        Ok(())
    }

    /// One step through a chunked body; the bytes that are left.
    fn take_chunk<'b>(&mut self, chunk: Chunk, bytes: &'b [u8]) -> Result<&'b [u8], Malformed> {
        match chunk {
            Chunk::Size {
                value,
                digits,
                length,
                over,
            } => {
                let byte = bytes[0];
                let next = match (byte, over) {
                    (b'\n', _) if digits == 0 => return Err(Malformed::Chunk),
                    // The last chunk: trailers do not matter.
                    (b'\n', _) if value == 0 => {
                        self.decide();
                        return Ok(&bytes[1..]);
                    }
                    (b'\n', _) => Chunk::Data(value),
                    _ if length >= MAX_CHUNK_LINE => return Err(Malformed::Chunk),
                    (b'\r' | b';' | b' ' | b'\t', false) | (_, true) => Chunk::Size {
                        value,
                        digits,
                        length: length + 1,
                        over: true,
                    },
                    (digit, false) => {
                        let digit = char::from(digit).to_digit(16).ok_or(Malformed::Chunk)?;
                        if digits >= 16 {
                            return Err(Malformed::Chunk);
                        }
                        Chunk::Size {
                            value: (value << 4) | u64::from(digit),
                            digits: digits + 1,
                            length: length + 1,
                            over: false,
                        }
                    }
                };
                self.state = State::Chunked(next);
                Ok(&bytes[1..])
            }
            Chunk::Data(left) => {
                let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - now as u64;
                self.state = State::Chunked(if left == 0 {
                    Chunk::AfterData(0)
                } else {
                    Chunk::Data(left)
                });
                self.keep(&bytes[..now]);
                Ok(&bytes[now..])
            }
            Chunk::AfterData(seen) => {
                let next = match (bytes[0], seen) {
                    (b'\r', 0) => Chunk::AfterData(1),
                    (b'\n', 0 | 1) => Chunk::START,
                    _ => return Err(Malformed::Chunk),
                };
                self.state = State::Chunked(next);
                Ok(&bytes[1..])
            }
        }
    }

    /// Takes in bytes of the body; what is over the limit decides the check.
    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_READ_BYTES - self.body_length;
        let now = bytes.len().min(room);
        self.body_length += now;
        if self.expect.action.expected_body.is_some() {
            self.body.extend_from_slice(&bytes[..now]);
        }
        if self.body_length == MAX_READ_BYTES {
            self.decide();
        }
    }

    fn decide(&mut self) {
        self.state = State::Decided;
        if let Some(text) = &self.expect.action.expected_body {
            let text = text.as_bytes();
            let found = text.is_empty() || self.body.windows(text.len()).any(|window| window == text);
            self.response.body_has_text = Some(found);
        }
    }
}

/// Where the head ends (after its empty line), looking only where it can have ended since `looked_at`.
fn end_of_head(bytes: &[u8], looked_at: usize) -> Option<usize> {
    let from = looked_at.saturating_sub(2);
    let mut at = from;
    while let Some(newline) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        at += newline + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::ContentLength);
    }
    let text = std::str::from_utf8(value).map_err(|_| Malformed::ContentLength)?;
    text.parse().map_err(|_| Malformed::ContentLength)
}

#[cfg(test)]
mod tests;
