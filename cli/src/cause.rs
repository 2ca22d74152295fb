//! What went wrong at the bottom of an error of a client, in words.

use {
    healthscope_shared::one_line,
    std::{error::Error, io},
};

/// Longest part of an error's text that is shown.
pub(crate) const MAX_DETAIL_BYTES: usize = 500;

/// The certificate error that an error comes from.
pub(crate) fn certificate<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::CertificateError> {
    causes(error).find_map(|cause| match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(error)) => Some(error),
        Some(_) | None => None,
    })
}

/// What the system said, at the end of the chain of causes.
pub(crate) fn words(error: &(dyn Error + 'static)) -> String {
    let is_refused = |cause: &(dyn Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if causes(error).any(is_refused) {
        return "connection refused".to_owned();
    }
    let last = causes(error).last().map(ToString::to_string);
    one_line(&last.unwrap_or_default(), MAX_DETAIL_BYTES)
}

/// An error and those below it, the deepest last.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), cause_of)
}

fn cause_of<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let error = *error;
    // An error of IO hides the one that it was made of, and names the cause of that as its own.
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
