//! Frames between agent and runner: what they look like, and nothing about who sends them when.
//!
//! A frame is its length (`u32`, without itself, at most [`MAX_FRAME_BYTES`]), a kind (`u8`) and fields; numbers are
//! little-endian.
//!
//! | kind | from | fields |
//! |---|---|---|
//! | 1 hello | runner | `version u8`, `commands u16`: how many it knows |
//! | 2 run | agent | `id u32`, `check u8`, `timeout_ms u32` |
//! | 3 cancel | agent | `id u32`: the answer comes nevertheless, and says `cancelled` |
//! | 4 answer | runner | `id u32`, `how u8`, `value i32`, `cut u8`, output: the rest, at most [`MAX_OUTPUT_BYTES`] |
//!
//! `how` is 0 exited (`value`: its code), 1 ended by a signal (its number), 2 timed out, 3 could not be started (the
//! error's number), 4 no such check, 5 too many at once, 6 cancelled, 7 ended in a way that could not be seen.
//! At most [`MAX_AT_ONCE`] questions are open at a time. Everything else, an unknown kind and a byte too many included, is an
//! error after which the connection is of no use: both sides come from one release, and what is said here is no
//! stranger's. A new meaning needs a new [`VERSION`].

use std::{error, fmt};

/// What is spoken here.
pub const VERSION: u8 = 1;
/// Most output of a command that is kept: the kubelet's `10 << 10`.
pub const MAX_OUTPUT_BYTES: usize = 10 * 1024;
/// The longest frame: an answer with all the output that is kept.
pub const MAX_FRAME_BYTES: usize = MAX_OUTPUT_BYTES + 64;
/// Most commands that run at once in one container: one that hangs must not hold up the others, and a container that runs
/// none of its own accord should not be given many by us.
pub const MAX_AT_ONCE: usize = 4;

const LENGTH_BYTES: usize = 4;
const HELLO: u8 = 1;
const RUN: u8 = 2;
const CANCEL: u8 = 3;
const ANSWER: u8 = 4;

/// What a runner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromRunner {
    /// The first frame, and only that.
    Hello {
        /// What it speaks.
        version: u8,
        /// How many commands it knows.
        commands: u16,
    },
    /// The end of a run.
    Answer(Answer),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which.
    pub id: u32,
    /// How.
    pub end: End,
    /// Whether the command printed more than is kept.
    pub cut: bool,
    /// The beginning of what it printed.
    pub output: Vec<u8>,
}

/// How a command ended, or why it did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// Killed, because it took too long.
    TimedOut,
    /// It could not be started, for this reason (an `errno`).
    CannotStart(i32),
    /// The runner does not know so many commands.
    NoSuchCheck,
    /// [`MAX_AT_ONCE`] run already.
    Busy,
    /// Killed, because nobody wanted to know any more.
    Cancelled,
    /// It is gone, and how it ended could not be seen.
    Lost,
}

/// What an agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// Asks for a run.
    Run {
        /// What the answer is to be called; not that of an open question.
        id: u32,
        /// Which command, from 0.
        check: u8,
        /// After so long it is killed.
        timeout_ms: u32,
    },
    /// The answer to this question is not wanted any more.
    Cancel {
        /// Which.
        id: u32,
    },
}

/// What the other side sent cannot be understood; nothing that follows can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A frame longer than any, or empty.
    Length(u32),
    /// A kind that this side does not take.
    Kind(u8),
    /// Fields that are too short, too long or out of range.
    Fields(u8),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "a frame of {length} bytes"),
            Self::Kind(kind) => write!(f, "a frame of kind {kind}"),
            Self::Fields(kind) => write!(f, "a frame of kind {kind} with wrong fields"),
        }
    }
}

impl error::Error for ProtocolError {}

impl FromRunner {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, commands } => frame(out, HELLO, |out| {
                out.push(*version);
                out.extend_from_slice(&commands.to_le_bytes());
            }),
            Self::Answer(Answer { id, end, cut, output }) => frame(out, ANSWER, |out| {
                let (how, value) = end.to_wire();
                out.extend_from_slice(&id.to_le_bytes());
                out.push(how);
                out.extend_from_slice(&value.to_le_bytes());
                out.push(u8::from(*cut));
                out.extend_from_slice(&output[..output.len().min(MAX_OUTPUT_BYTES)]);
            }),
        }
    }

    /// Reads what [`Frames`] found.
    ///
    /// # Errors
    /// When it is nothing that a runner says.
    pub fn decode(frame: &[u8]) -> Result<Self, ProtocolError> {
        let (kind, mut fields) = Fields::new(frame)?;
        let message = match kind {
            HELLO => Self::Hello {
                version: fields.u8()?,
                commands: u16::from_le_bytes(fields.array()?),
            },
            ANSWER => Self::Answer(Answer {
                id: u32::from_le_bytes(fields.array()?),
                end: {
                    let how = fields.u8()?;
                    let value = i32::from_le_bytes(fields.array()?);
                    End::from_wire(how, value).ok_or(ProtocolError::Fields(kind))?
                },
                cut: match fields.u8()? {
                    0 => false,
                    1 => true,
                    2.. => return Err(ProtocolError::Fields(kind)),
                },
                output: fields.rest(MAX_OUTPUT_BYTES)?.to_vec(),
            }),
            other => return Err(ProtocolError::Kind(other)),
        };
        fields.end()?;
        Ok(message)
    }
}

impl FromAgent {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Run {
                id,
                check,
                timeout_ms,
            } => frame(out, RUN, |out| {
                out.extend_from_slice(&id.to_le_bytes());
                out.push(*check);
                out.extend_from_slice(&timeout_ms.to_le_bytes());
            }),
            Self::Cancel { id } => frame(out, CANCEL, |out| out.extend_from_slice(&id.to_le_bytes())),
        }
    }

    /// Reads what [`Frames`] found.
    ///
    /// # Errors
    /// When it is nothing that an agent says.
    pub fn decode(frame: &[u8]) -> Result<Self, ProtocolError> {
        let (kind, mut fields) = Fields::new(frame)?;
        let message = match kind {
            RUN => Self::Run {
                id: u32::from_le_bytes(fields.array()?),
                check: fields.u8()?,
                timeout_ms: u32::from_le_bytes(fields.array()?),
            },
            CANCEL => Self::Cancel {
                id: u32::from_le_bytes(fields.array()?),
            },
            other => return Err(ProtocolError::Kind(other)),
        };
        fields.end()?;
        Ok(message)
    }
}

impl End {
    const fn to_wire(self) -> (u8, i32) {
        match self {
            Self::Exited(code) => (0, code),
            Self::Signaled(signal) => (1, signal),
            Self::TimedOut => (2, 0),
            Self::CannotStart(errno) => (3, errno),
            Self::NoSuchCheck => (4, 0),
            Self::Busy => (5, 0),
            Self::Cancelled => (6, 0),
            Self::Lost => (7, 0),
        }
    }

    const fn from_wire(how: u8, value: i32) -> Option<Self> {
        Some(match how {
            0 => Self::Exited(value),
            1 => Self::Signaled(value),
            2 => Self::TimedOut,
            3 => Self::CannotStart(value),
            4 => Self::NoSuchCheck,
            5 => Self::Busy,
            6 => Self::Cancelled,
            7 => Self::Lost,
            8.. => return None,
        })
    }
}

/// Cuts what was received into frames.
#[derive(Debug, Default)]
pub struct Frames {
    received: Vec<u8>,
    /// So much of it was handed out already.
    taken: usize,
}

impl Frames {
    /// Adds what was received. Frames are to be taken out before more is added, so that no more is held than one frame and
    /// one read.
    pub fn add(&mut self, bytes: &[u8]) {
        self.received.drain(..self.taken);
        self.taken = 0;
        self.received.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// When what was received cannot be one.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, ProtocolError> {
        let rest = &self.received[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let said = u32::from_le_bytes(*length);
        let length = usize::try_from(said).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_FRAME_BYTES {
            return Err(ProtocolError::Length(said));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.taken + LENGTH_BYTES;
        self.taken = start + length;
        Ok(Some(&self.received[start..self.taken]))
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(kind);
    fields(out);
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).expect("frames are bounded");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// The fields of one frame, read from the front.
struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(frame: &'a [u8]) -> Result<(u8, Self), ProtocolError> {
        let (&kind, rest) = frame.split_first().ok_or(ProtocolError::Length(0))?;
        Ok((kind, Self { kind, rest }))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (array, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(ProtocolError::Fields(self.kind))?;
        self.rest = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn rest(&mut self, most: usize) -> Result<&'a [u8], ProtocolError> {
        if self.rest.len() > most {
            return Err(ProtocolError::Fields(self.kind));
        }
        Ok(std::mem::take(&mut self.rest))
    }

    fn end(&self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::Fields(self.kind))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use super::*;

    fn one(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        let mut frames = Frames::default();
        // Byte by byte: a frame is whole at its last byte and not before.
        for &byte in &bytes[..bytes.len() - 1] {
            frames.add(&[byte]);
            assert_eq!(frames.next_frame(), Ok(None));
        }
        frames.add(&bytes[bytes.len() - 1..]);
        frames.next_frame().unwrap().unwrap().to_vec()
    }

    #[test]
    fn what_is_said_is_understood() {
        let ends = [
            End::Exited(-1),
            End::Signaled(9),
            End::TimedOut,
            End::CannotStart(2),
            End::NoSuchCheck,
            End::Busy,
            End::Cancelled,
            End::Lost,
        ];
        for end in ends {
            let answer = FromRunner::Answer(Answer {
                id: u32::MAX,
                end,
                cut: true,
                output: vec![b'x'; MAX_OUTPUT_BYTES],
            });
            assert_eq!(
                FromRunner::decode(&one(|out| answer.encode(out))),
                Ok(answer.clone())
            );
        }
        let hello = FromRunner::Hello {
            version: VERSION,
            commands: 256,
        };
        assert_eq!(FromRunner::decode(&one(|out| hello.encode(out))), Ok(hello));
        let run = FromAgent::Run {
            id: 7,
            check: 255,
            timeout_ms: u32::MAX,
        };
        for message in [run, FromAgent::Cancel { id: 7 }] {
            assert_eq!(FromAgent::decode(&one(|out| message.encode(out))), Ok(message));
        }
    }

    #[test]
    fn output_that_is_too_long_is_cut() {
        let answer = FromRunner::Answer(Answer {
            id: 0,
            end: End::Exited(0),
            cut: true,
            output: vec![b'x'; MAX_OUTPUT_BYTES + 1],
        });
        let FromRunner::Answer(read) = FromRunner::decode(&one(|out| answer.encode(out))).unwrap() else {
            panic!("not an answer");
        };
        assert_eq!(read.output.len(), MAX_OUTPUT_BYTES);
    }

    #[test]
    fn several_frames_in_one_read_are_told_apart() {
        let mut bytes = Vec::new();
        for id in 0..3 {
            FromAgent::Cancel { id }.encode(&mut bytes);
        }
        let mut frames = Frames::default();
        frames.add(&bytes);
        for id in 0..3 {
            let frame = frames.next_frame().unwrap().unwrap();
            assert_eq!(FromAgent::decode(frame), Ok(FromAgent::Cancel { id }));
        }
        assert_eq!(frames.next_frame(), Ok(None));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_held() {
        for length in [0, u32::MAX, u32::try_from(MAX_FRAME_BYTES).unwrap() + 1] {
            let mut frames = Frames::default();
            frames.add(&length.to_le_bytes());
            assert_eq!(frames.next_frame(), Err(ProtocolError::Length(length)));
        }
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        let wrong: [&[u8]; 9] = [
            &[],
            &[0],
            &[9, 1, 2],
            &[HELLO],
            &[HELLO, 1, 0],
            &[HELLO, 1, 0, 0, 0],
            &[ANSWER, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0],
            &[ANSWER, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            &[RUN, 0, 0, 0, 0, 1, 0, 0, 0],
        ];
        for frame in wrong {
            assert!(FromRunner::decode(frame).is_err(), "{frame:?}");
        }
        assert!(FromAgent::decode(&[RUN, 0, 0, 0, 0, 1, 0, 0, 0]).is_err());
        assert!(FromAgent::decode(&[CANCEL, 0, 0, 0, 0, 1]).is_err());
        // Neither side takes what only it says.
        assert_eq!(
            FromAgent::decode(&[HELLO, 1, 0, 0]),
            Err(ProtocolError::Kind(HELLO))
        );
        assert_eq!(
            FromRunner::decode(&[CANCEL, 0, 0, 0, 0]),
            Err(ProtocolError::Kind(CANCEL))
        );
        let mut seed = 1_u32;
        for _ in 0..20_000 {
            let mut bytes = [0_u8; 24];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (seed >> 24) as u8;
            }
            bytes[0] %= 6;
            let _ = FromRunner::decode(&bytes);
            let _ = FromAgent::decode(&bytes);
        }
    }
}
