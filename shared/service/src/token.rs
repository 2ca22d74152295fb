//! Shared tokens: read from a file, compared in constant time, never printed.

use {
    std::{
        fmt,
        fs::File,
        io::{self, Read},
        path::{Path, PathBuf},
    },
    subtle::ConstantTimeEq,
};

/// The longest token file taken. A ServiceAccount token is 1 to 2 KiB; a header line ends at 8 KiB in many proxies.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// A token. Its `Debug` shows nothing of it and there is no `Display`.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes a token as it is. Tokens from outside come through [`read`], which checks them.
    pub fn new(token: impl Into<Box<str>>) -> Self {
        Self(token.into())
    }

    /// Returns the token itself, for the one place that has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Says whether `candidate` is this token, in a time that tells at most their lengths apart.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

/// Why a token file gave no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be opened or read.
    #[error("cannot read the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is longer than [`MAX_TOKEN_BYTES`].
    #[error("the token file {} is longer than {MAX_TOKEN_BYTES} bytes; is it the right file?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Nothing but white space.
    #[error("the token file {} is empty; write the token into it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It could not be sent in an HTTP header.
    #[error("the token file {} must hold one word of visible ASCII characters", path.display())]
    NotOneWord {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the token in the file at `path`; white space around it is dropped.
pub fn read(path: &Path) -> Result<Secret, TokenError> {
    let path_buf = || path.to_owned();
    let read_error = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::with_capacity(MAX_TOKEN_BYTES + 1);
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_TOKEN_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong { path: path_buf() });
    }
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(TokenError::Empty { path: path_buf() });
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::NotOneWord { path: path_buf() });
    }
    let token = std::str::from_utf8(token).expect("visible ASCII is UTF-8");
    Ok(Secret::new(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let name = file.path().display().to_string();
        match read(file.path()) {
            Ok(secret) => Ok(secret.expose().to_owned()),
            Err(error) => {
                assert!(
                    error.to_string().contains(&name),
                    "{error} does not name the file"
                );
                Err(format!("{error:?}").split_whitespace().next().unwrap().to_owned())
            }
        }
    }

    fn check(bytes: &[u8], expected: Result<&str, &str>) {
        assert_eq!(
            read_bytes(bytes),
            expected.map(str::to_owned).map_err(str::to_owned)
        );
    }

    #[test]
    fn token_is_trimmed_and_checked() {
        check(b"abc", Ok("abc"));
        check(b"  abc\r\n\n", Ok("abc"));
        check(b"", Err("Empty"));
        check(b" \n", Err("Empty"));
        check(b"a b", Err("NotOneWord"));
        check(b"a\0b", Err("NotOneWord"));
        check("schlüssel".as_bytes(), Err("NotOneWord"));
        check(&[b'x'; MAX_TOKEN_BYTES], Ok(&"x".repeat(MAX_TOKEN_BYTES)));
        check(&[b'x'; MAX_TOKEN_BYTES + 1], Err("TooLong"));
    }

    #[test]
    fn missing_file_is_named_with_its_cause() {
        let error = read(Path::new("/nowhere/token")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the token file /nowhere/token");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("No such file"), "{cause}");
    }

    #[test]
    fn endless_file_is_refused() {
        assert!(matches!(
            read(Path::new("/dev/zero")),
            Err(TokenError::TooLong { .. })
        ));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(redacted)");
    }

    #[test]
    fn only_the_same_bytes_match() {
        let secret = Secret::new("hush");
        assert!(secret.matches(b"hush"));
        for other in [&b"hush "[..], b"hus", b"", b"Hush"] {
            assert!(!secret.matches(other));
        }
    }
}
