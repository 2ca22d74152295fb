//! The page's own script, style sheet and icons, embedded in the program.
//!
//! Their names carry a hash of their content: browsers may keep them for ever, and a new release is a new name.

use {
    crate::site::problem::Problem,
    axum::{body::Body, extract::Path, response::Response},
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
    },
    ring::digest::{SHA256, digest},
    std::sync::LazyLock,
};

struct Asset {
    name: &'static str,
    extension: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const ASSETS: [Asset; 6] = [
    Asset {
        name: "page",
        extension: "css",
        content_type: "text/css; charset=utf-8",
        content: include_str!("assets/page.css"),
    },
    Asset {
        name: "page",
        extension: "js",
        content_type: "text/javascript; charset=utf-8",
        content: include_str!("assets/page.js"),
    },
    Asset {
        name: "healthy",
        extension: "svg",
        content_type: "image/svg+xml",
        content: include_str!("assets/healthy.svg"),
    },
    Asset {
        name: "degraded",
        extension: "svg",
        content_type: "image/svg+xml",
        content: include_str!("assets/degraded.svg"),
    },
    Asset {
        name: "unknown",
        extension: "svg",
        content_type: "image/svg+xml",
        content: include_str!("assets/unknown.svg"),
    },
    Asset {
        name: "unhealthy",
        extension: "svg",
        content_type: "image/svg+xml",
        content: include_str!("assets/unhealthy.svg"),
    },
];

/// File names with hashes, in the order of [`ASSETS`].
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| ASSETS.iter().map(Asset::file_name).collect());

impl Asset {
    fn file_name(&self) -> String {
        let hash = digest(&SHA256, self.content.as_bytes());
        // 48 bits: two versions of one file never share a name by accident.
        let short: String = hash
            .as_ref()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}-{short}.{}", self.name, self.extension)
    }
}

/// The path of an asset, by its plain name: `page.css`.
pub(super) fn path(plain: &str) -> String {
    let position = ASSETS
        .iter()
        .position(|asset| {
            plain
                .strip_suffix(asset.extension)
                .and_then(|name| name.strip_suffix('.'))
                == Some(asset.name)
        })
        .expect("templates name assets that exist");
    format!("/assets/{}", NAMES[position])
}

pub(super) async fn get(Path(file): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let position = NAMES.iter().position(|name| *name == file);
    let position = position.ok_or_else(|| {
        Problem::not_found("there is no such file; reload the page, it may be of another release")
    })?;
    let asset = &ASSETS[position];
    let etag = HeaderValue::from_str(&format!("\"{file}\"")).expect("file names are plain");
    let is_known = headers.get_all(IF_NONE_MATCH).iter().any(|known| *known == etag);
    let mut response = if is_known {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        Response::new(Body::from(asset.content))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    headers.insert(ETAG, etag);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for asset in &ASSETS {
            let text = asset.content.replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http:", "https:", "@import", "url(//", "eval(", "Function("] {
                assert!(
                    !text.contains(forbidden),
                    "{}.{} has {forbidden}",
                    asset.name,
                    asset.extension
                );
            }
        }
    }

    #[test]
    fn names_change_with_the_content() {
        assert!(
            path("page.css").starts_with("/assets/page-"),
            "{}",
            path("page.css")
        );
        assert_ne!(
            path("healthy.svg").split('-').nth(1),
            path("unhealthy.svg").split('-').nth(1)
        );
    }
}
