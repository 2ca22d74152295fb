//! Server-sent events: bytes in, events out (WHATWG HTML, "Server-sent events", 9.2.6).
//!
//! Pure: reads nothing itself. `retry` is ignored, reconnecting is the caller's affair.

/// Longest event taken; the aggregator's are views of one scope, and a line of more is none of ours.
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` when nobody says otherwise.
    pub(crate) kind: String,
    /// The lines of data.
    pub(crate) data: String,
    /// The id in force, with which a stream can be resumed.
    pub(crate) id: Option<String>,
}

/// The peer sends an event without end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_EVENT_BYTES} bytes")]
pub(crate) struct TooLong;

/// The state between two pieces of a stream.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    kind: String,
    data: String,
    id: Option<String>,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
}

impl Parser {
    /// Takes in a piece and gives the events that it completes.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in piece {
            let follows_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => {
                    self.line.push(byte);
                    if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                        return Err(TooLong);
                    }
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (&*line, ""),
        };
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // Comments (an empty name) keep the connection open; other fields are to be ignored.
            _ => {}
        }
        None
    }

    fn end_event(&mut self) -> Option<Event> {
        let kind = std::mem::take(&mut self.kind);
        let mut data = std::mem::take(&mut self.data);
        data.pop()?;
        let kind = if kind.is_empty() {
            "message".to_owned()
        } else {
            kind
        };
        Some(Event {
            kind,
            data,
            id: self.id.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[(&str, &str, Option<&str>)]) {
        // Whole, and byte by byte.
        for size in [stream.len().max(1), 1] {
            let mut parser = Parser::default();
            let events: Vec<Event> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| parser.push(piece).unwrap())
                .collect();
            let found: Vec<_> = events
                .iter()
                .map(|event| (event.kind.as_str(), event.data.as_str(), event.id.as_deref()))
                .collect();
            assert_eq!(found, expected, "{stream:?}");
        }
    }

    #[test]
    fn events_end_with_an_empty_line() {
        check("data: a\n\ndata: b\n", &[("message", "a", None)]);
        check("event: scope\r\ndata: {}\r\n\r\n", &[("scope", "{}", None)]);
        check("data: a\rdata:b\r\r", &[("message", "a\nb", None)]);
        check(": keep alive\n\nid: 7\n\ndata\n\n", &[("message", "", Some("7"))]);
        check(
            "id: 1\ndata: x\n\nretry: 5\ndata: y\n\n",
            &[("message", "x", Some("1")), ("message", "y", Some("1"))],
        );
        check("data: é\n\n", &[("message", "é", None)]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; MAX_EVENT_BYTES / 2 + 1];
        assert_eq!(parser.push(&piece), Ok(vec![]));
        assert_eq!(parser.push(&piece), Err(TooLong));
    }
}
