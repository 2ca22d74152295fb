//! The form that takes the token and gives a cookie.

use {
    super::{Dashboard, assets, layout, page},
    crate::{
        identity::readers::Unavailable,
        listen::From,
        site::{
            access::{SignIn, SignInLimit},
            cookie::COOKIE_NAME,
            problem::Problem,
            see_other,
        },
    },
    axum::{
        Extension,
        extract::{RawQuery, State},
        response::{IntoResponse, Response},
    },
    bytes::Bytes,
    http::{
        StatusCode,
        header::{HeaderValue, RETRY_AFTER, SET_COOKIE},
    },
    maud::{DOCTYPE, Markup, html},
    std::time::{Instant, SystemTime},
};

pub(super) async fn form(State(dashboard): State<Dashboard>, RawQuery(query): RawQuery) -> Response {
    let next = next_of(query.as_deref().unwrap_or_default().as_bytes());
    if dashboard.access.is_open() {
        return see_other(&next);
    }
    page(StatusCode::OK, dashboard.form(&next, None))
}

pub(super) async fn submit(
    State(dashboard): State<Dashboard>,
    Extension(from): Extension<From>,
    body: Bytes,
) -> Result<Response, Problem> {
    let next = next_of(&body);
    let (address, now) = (from.peer.ip().to_canonical(), Instant::now());
    if !dashboard.sign_ins.allows(address, now) {
        let seconds = HeaderValue::from(SignInLimit::WINDOW.as_secs());
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many wrong tokens from your address; wait a minute",
        )
        .header(RETRY_AFTER, seconds));
    }
    let token = form_urlencoded::parse(&body).find(|(name, _)| name == "token");
    let token = token
        .map(|(_, token)| token.trim().to_owned())
        .unwrap_or_default();
    match dashboard.access.sign_in(&token, SystemTime::now()).await {
        Ok(SignIn::Done(cookie)) => {
            let mut response = see_other(&next);
            set_cookie(&mut response, &cookie.value, cookie.lasts.as_secs(), from.is_tls);
            Ok(response)
        }
        Ok(SignIn::Wrong) => {
            dashboard.sign_ins.failed(address, now);
            dashboard.metrics.sign_ins_failed.inc();
            let error = if dashboard.access.is_of_cluster() {
                "The cluster does not accept this token."
            } else {
                "That is not the token."
            };
            Ok(page(StatusCode::FORBIDDEN, dashboard.form(&next, Some(error))))
        }
        Ok(SignIn::TooManyGroups) => {
            let error = "Your account is in more groups than a cookie can hold. Use the command line, or the token of a \
                         ServiceAccount.";
            Ok(page(StatusCode::FORBIDDEN, dashboard.form(&next, Some(error))))
        }
        Err(Unavailable) => {
            let error = "The cluster's API server cannot be asked now. Try again in a moment.";
            Ok(page(
                StatusCode::SERVICE_UNAVAILABLE,
                dashboard.form(&next, Some(error)),
            ))
        }
    }
}

pub(super) async fn leave(Extension(from): Extension<From>) -> Response {
    let mut response = see_other("/login");
    set_cookie(&mut response, "", 0, from.is_tls);
    response
}

fn set_cookie(response: &mut Response, value: &str, seconds: u64, is_tls: bool) {
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie =
        format!("{COOKIE_NAME}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let cookie = HeaderValue::from_str(&cookie).expect("the value is digits, dots and base64");
    response.headers_mut().insert(SET_COOKIE, cookie);
}

/// Where to go afterwards: a page of ours and nowhere else.
fn next_of(form: &[u8]) -> String {
    form_urlencoded::parse(form)
        .find(|(name, _)| name == "next")
        .map(|(_, next)| next.into_owned())
        .filter(|next| is_ours(next))
        .unwrap_or_else(|| "/".to_owned())
}

fn is_ours(path: &str) -> bool {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    path.starts_with('/') && !path.starts_with("//") && is_plain && path.len() <= 1_024
}

impl Dashboard {
    /// The form, perhaps with what was wrong with the last try.
    fn form(&self, next: &str, error: Option<&str>) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                (layout::head("Sign in", &assets::path("healthy.svg"), false))
                body class="sign-in" {
                    main id="main" class="card plain" {
                        p class="brand" { (layout::mark()) span { "Health" b { "Scope" } } }
                        h1 { "Sign in" }
                        form method="post" action="/login" {
                            label for="token" { "Token" }
                            input type="password" id="token" name="token" autocomplete="current-password" required autofocus
                                aria-describedby=[error.map(|_| "error")] aria-invalid=[error.map(|_| "true")];
                            @if let Some(error) = error { p id="error" class="note alert" role="alert" { (error) } }
                            input type="hidden" name="next" value=(next);
                            button { "Sign in" }
                        }
                        @if self.access.is_of_cluster() {
                            p class="muted" {
                                "Any token that the cluster's API server takes: your own, or that of a ServiceAccount ("
                                code { "kubectl create token ACCOUNT" } "). You see what RBAC lets its owner see."
                            }
                        } @else {
                            p class="muted" { "It is the content of the file that the aggregator was started with (" code { "--token-file" } ")." }
                        }
                    }
                }
            }
        }
    }

    /// A page for something that is not there, or cannot be shown.
    pub(super) fn missing(&self, problem: &Problem) -> Response {
        let title = match problem.status() {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::SERVICE_UNAVAILABLE => "Not now",
            status => status.canonical_reason().unwrap_or("Error"),
        };
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                (layout::head(title, &assets::path("unknown.svg"), false))
                body class="sign-in" {
                    main id="main" class="card plain" {
                        p class="brand" { (layout::mark()) span { "Health" b { "Scope" } } }
                        h1 { (title) }
                        p { (problem.detail()) "." }
                        p { a href="/" { "All scopes" } }
                    }
                }
            }
        };
        page(problem.status(), markup).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_leads_nowhere_else() {
        #[track_caller]
        fn check(next: &str, expected: &str) {
            let form = format!("token=x&next={next}");
            assert_eq!(next_of(form.as_bytes()), expected, "{next}");
        }
        check("/ui/scopes/default/shop%3Fq%3D1", "/ui/scopes/default/shop?q=1");
        check("//evil.example/", "/");
        check("/%5Cevil.example/", "/");
        check("https://evil.example/", "/");
        check("/a%0d%0ab", "/");
        check("", "/");
    }
}
