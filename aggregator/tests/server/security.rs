//! What strangers get, and what their pages cannot do.

use crate::support::{SHOP, Served, serve, serve_with, share_token};

async fn guarded() -> Served {
    serve_with(SHOP, |config| share_token(config, "hush hush")).await
}

const FORM: &str = "content-type: application/x-www-form-urlencoded";

#[tokio::test]
async fn host_names_that_are_not_known_are_refused() {
    let served = serve_with(SHOP, |config| {
        config.allowed_hosts = vec!["health.example.org".into()];
    })
    .await;
    for good in [
        "localhost",
        "localhost:7575",
        "127.0.0.1:1",
        "[::1]:7575",
        "health.example.org:443",
        "Health.Example.org",
    ] {
        let answer = served
            .ask("GET", "/api/v1/status", &[&format!("host: {good}")], "")
            .await;
        assert_eq!(answer.status, 200, "{good}");
    }
    for bad in ["evil.example", "evil.example:7575", "127.0.0.1.evil.example"] {
        for target in ["/", "/api/v1/status", "/metrics", "/shop", "/scopes"] {
            let answer = served.ask("GET", target, &[&format!("host: {bad}")], "").await;
            assert!(answer.problem(421).contains("--allowed-host"), "{bad} {target}");
        }
    }
    served
        .ask("GET", "/", &["host: a", "host: b"], "")
        .await
        .problem(400);
}

#[tokio::test]
async fn everything_but_health_and_the_form_needs_the_token() {
    let served = guarded().await;
    for target in [
        "/",
        "/api/v1/scopes",
        "/api/v1/stream",
        "/scopes",
        "/shop",
        "/metrics",
        "/ui/agents",
        "/nothing",
    ] {
        let answer = served.get(target).await;
        assert!(answer.problem(401).contains("token"), "{target}");
        assert!(answer.header("www-authenticate").is_some());
        let wrong = served
            .ask("GET", target, &["authorization: Bearer nope"], "")
            .await;
        wrong.problem(401);
    }
    for target in ["/livez", "/readyz", "/healthz", "/openapi.json", "/login"] {
        assert_eq!(served.get(target).await.status, 200, "{target}");
    }
    let right = ["authorization: Bearer hush hush", "host: any.example"];
    assert_eq!(
        served.ask("GET", "/api/v1/scopes", &right, "").await.status,
        200,
        "a token beats a name"
    );
}

#[tokio::test]
async fn the_form_gives_a_cookie_for_the_token() {
    let served = guarded().await;
    let to_form = served
        .ask("GET", "/ui/scopes/default/shop?q=1", &["accept: text/html"], "")
        .await;
    assert_eq!(to_form.status, 303);
    let location = to_form.header("location").unwrap().to_owned();
    assert_eq!(location, "/login?next=%2Fui%2Fscopes%2Fdefault%2Fshop%3Fq%3D1");
    let form = served.get(&location).await;
    assert!(
        form.body
            .contains("name=\"next\" value=\"/ui/scopes/default/shop?q=1\""),
        "{}",
        form.body
    );

    let signed_in = served
        .ask("POST", "/login", &[FORM], "token=hush+hush&next=%2Fui%2Fagents")
        .await;
    assert_eq!(
        (signed_in.status, signed_in.header("location")),
        (303, Some("/ui/agents"))
    );
    let cookie = signed_in.header("set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("hush"), "{cookie}");
    let value = cookie.split(';').next().unwrap();
    let line = format!("cookie: {value}");
    assert_eq!(served.ask("GET", "/", &[&line], "").await.status, 200);
    let forged = format!("cookie: {}", value.replace(|c: char| c.is_ascii_digit(), "1"));
    served.ask("GET", "/", &[&forged], "").await.problem(401);
    let out = served.ask("POST", "/logout", &[&line], "").await;
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
}

#[tokio::test]
async fn guessing_tokens_is_slow() {
    let served = guarded().await;
    for _ in 0..10 {
        let wrong = served.ask("POST", "/login", &[FORM], "token=guess").await;
        assert_eq!(wrong.status, 403);
        assert!(wrong.body.contains("That is not the token"), "{}", wrong.body);
    }
    let enough = served.ask("POST", "/login", &[FORM], "token=hush+hush").await;
    assert!(enough.problem(429).contains("wait"));
    assert!(enough.header("retry-after").is_some());
    let metric = served
        .ask("GET", "/metrics", &["authorization: Bearer hush hush"], "")
        .await
        .body;
    assert!(
        metric.contains("healthscope_sign_ins_failed_total 10"),
        "{metric}"
    );
}

#[tokio::test]
async fn pages_of_other_origins_change_nothing() {
    let served = serve(SHOP).await;
    let run = "/api/v1/components/default/web/probes/readiness/run";
    let json = "content-type: application/json";
    for stranger in [
        "origin: http://evil.example",
        "origin: null",
        "sec-fetch-site: cross-site",
        "sec-fetch-site: same-site",
    ] {
        served
            .ask("POST", run, &[json, stranger], "{}")
            .await
            .problem(403);
        served
            .ask("DELETE", "/api/v1/agents/one", &[stranger], "")
            .await
            .problem(403);
        served
            .ask("POST", "/login", &[FORM, stranger], "token=x")
            .await
            .problem(403);
    }
    let own = format!("origin: http://{}", served.address);
    // Past the guard, there is nothing to run.
    served
        .ask("POST", run, &[json, &own, "sec-fetch-site: same-origin"], "{}")
        .await
        .problem(503);
}

#[tokio::test]
async fn answers_carry_the_headers_that_protect_readers() {
    let served = serve(SHOP).await;
    for target in ["/", "/api/v1/scopes", "/nothing", "/metrics", "/ui/agents"] {
        let answer = served.get(target).await;
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{target}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{target}: {policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{target}");
        }
    }
    let policy = served
        .get("/")
        .await
        .header("content-security-policy")
        .unwrap()
        .to_owned();
    for part in [
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
}

#[tokio::test]
async fn a_request_without_a_host_line_is_refused() {
    let served = serve(SHOP).await;
    served.ask("GET", "/", &["host:"], "").await.problem(400);
}
