//! The bare words, the objects, and the routes that win over scopes of the same name.

use {
    crate::support::{SHOP, healthy_shop, serve},
    healthscope_shared::health::Health,
};

const PLAIN: &str = "accept: text/plain";

#[tokio::test]
async fn a_scope_answers_with_its_word_and_status() {
    let (served, mut agent) = healthy_shop().await;
    for target in ["/scopes/shop", "/scopes/default/shop"] {
        let answer = served.ask("GET", target, &[PLAIN], "").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "Healthy"),
            "{target}"
        );
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }
    agent.report(&[(1, false, "no")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let answer = served.ask("GET", "/scopes/shop", &[PLAIN], "").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "Unhealthy"));
    served
        .ask("GET", "/scopes/other", &[PLAIN], "")
        .await
        .problem(404);
    served
        .ask("GET", "/scopes/other/shop", &[PLAIN], "")
        .await
        .problem(404);
    let list = served.ask("GET", "/scopes", &[PLAIN], "").await;
    assert_eq!(
        (list.status, list.body.as_str()),
        (200, "default/shop Unhealthy\n")
    );
}

#[tokio::test]
async fn a_scope_is_the_object_that_kubectl_gives() {
    let (served, _agent) = healthy_shop().await;
    let object = served.get_json("/scopes/shop").await;
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&"core.oam.dev/v1beta1".into(), &"HealthScope".into())
    );
    assert_eq!(object["metadata"]["name"], "shop");
    assert_eq!(object["spec"]["workloadRefs"][0]["name"], "web");
    assert_eq!(
        (&object["status"]["health"], &object["status"]["available"]),
        (&"Healthy".into(), &"2/2".into())
    );
    let list = served.get_json("/scopes").await;
    assert_eq!(
        (&list["kind"], &list["items"][0]),
        (&"HealthScopeList".into(), &object)
    );
}

#[tokio::test]
async fn rudrs_endpoint_says_one_of_two_words() {
    let (served, mut agent) = healthy_shop().await;
    let answer = served.get("/shop").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "healthy"));
    agent.report(&[(1, false, "no")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let answer = served.get("/shop").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "unhealthy"));
    served.get("/other").await.problem(404);
}

#[tokio::test]
async fn fixed_routes_win_over_scopes_of_their_name() {
    let text: String = ["metrics", "livez", "login", "scopes", "ui", "api"]
        .map(|name| SHOP.replace("name: shop", &format!("name: {name}")))
        .join("\n---\n");
    let served = serve(&text).await;
    assert!(served.get("/metrics").await.body.contains("# HELP"));
    assert_eq!(served.get("/livez").await.body, "ok\n");
    assert_eq!(served.get_json("/scopes").await["kind"], "HealthScopeList");
    assert_eq!(served.get("/login").await.status, 303, "nobody needs to sign in");
    // These are no routes by themselves.
    assert_eq!(
        (served.get("/ui").await.body, served.get("/api").await.body),
        ("unhealthy".into(), "unhealthy".into())
    );
    assert_eq!(
        served.ask("GET", "/scopes/metrics", &[PLAIN], "").await.status,
        503
    );
}

#[tokio::test]
async fn the_health_endpoints_answer_anybody() {
    let served = serve(SHOP).await;
    for target in ["/livez", "/readyz", "/healthz"] {
        let answer = served.ask("GET", target, &["host: anything.example"], "").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{target}");
    }
}
