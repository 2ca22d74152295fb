//! The pages as text; a browser looks at them elsewhere.

use {
    crate::support::{Agent, SHOP, healthy_shop, record, serve},
    healthscope_shared::{
        health::Health,
        wire::{AgentMessage, Report, Seq},
    },
};

#[tokio::test]
async fn the_first_page_says_what_is_wrong_and_why() {
    let (served, mut agent) = healthy_shop().await;
    let fine = served.get("/").await;
    assert!(fine.header("content-type").unwrap().starts_with("text/html"));
    assert!(fine.body.contains("<h1>shop is healthy</h1>"), "{}", fine.body);
    agent
        .report(&[(2, false, "connection refused"), (1, false, "503")])
        .await;
    served.until_health("shop", Health::Unhealthy).await;
    let page = served.get("/").await.body;
    assert!(page.contains("<h1>shop is unhealthy</h1>"), "{page}");
    let cause = page.find("Root cause").unwrap();
    let table = page.find("<table").unwrap();
    assert!(cause < table, "the cause comes first");
    let (db, web) = (
        page.rfind("/Component/db\">").unwrap(),
        page.rfind("/Component/web\">").unwrap(),
    );
    assert!(db < web, "the root before what depends on it");
    assert!(page.contains("because of <b>db</b>"), "{page}");
    assert!(page.contains("healthscope why shop"), "{page}");
}

#[tokio::test]
async fn what_checks_print_is_text() {
    let (served, mut agent) = healthy_shop().await;
    let mut evil = record(3, 2, false, "<img src=x onerror=alert(1)>");
    evil.output = "<script>alert(2)</script>\n\u{1b}[2J\u{202e}".into();
    let report = Report {
        seq: Seq(3),
        transitions: vec![evil],
        complete: true,
        ..Report::default()
    };
    agent.say(AgentMessage::Report(report)).await;
    served.until_health("shop", Health::Unhealthy).await;
    for target in [
        "/",
        "/ui/scopes/default/shop",
        "/ui/components",
        "/ui/components/default/Component/db",
    ] {
        let page = served.get(target).await.body;
        assert!(page.contains("&lt;img src=x"), "{target}: {page}");
        assert!(page.contains("&lt;script&gt;alert(2)"), "{target}: {page}");
        for forbidden in ["<img", "<script>", "\u{1b}", "\u{202e}"] {
            assert!(!page.contains(forbidden), "{target} has {forbidden:?}");
        }
    }
}

#[tokio::test]
async fn pages_have_nothing_inline_and_nothing_from_elsewhere() {
    let (served, _agent) = healthy_shop().await;
    for target in [
        "/",
        "/?problems=1",
        "/?q=web",
        "/ui/scopes/default/shop",
        "/ui/components",
        "/ui/components/default/Component/web",
        "/ui/agents",
    ] {
        let answer = served.get(target).await;
        assert_eq!(answer.status, 200, "{target}");
        let page = answer.body;
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script type=\"module\" src=\"/assets/").count(),
            "{target}"
        );
        for forbidden in [
            "style=",
            "onclick",
            "onload",
            "javascript:",
            "http://",
            "https://",
            "src=\"//",
        ] {
            assert!(!page.contains(forbidden), "{target} has {forbidden}");
        }
        assert!(
            page.contains("<noscript><meta http-equiv=\"refresh\""),
            "{target} is stale without its script"
        );
        assert!(
            page.contains("class=\"skip\"") && page.contains("lang=\"en\""),
            "{target}"
        );
        assert_eq!(
            page.matches("aria-live").count(),
            1,
            "{target} speaks with one voice"
        );
        for name in page
            .split("/assets/")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
        {
            let asset = served.get(&format!("/assets/{name}")).await;
            assert_eq!(asset.status, 200, "{name}");
            assert!(asset.header("cache-control").unwrap().contains("immutable"));
            let etag = format!("if-none-match: {}", asset.header("etag").unwrap());
            let again = served.ask("GET", &format!("/assets/{name}"), &[&etag], "").await;
            assert_eq!((again.status, again.body.as_str()), (304, ""));
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_on_a_page() {
    let served = serve(SHOP).await;
    for target in [
        "/ui/scopes/default/nothing",
        "/ui/components/default/Component/nothing",
    ] {
        let answer = served.get(target).await;
        assert_eq!(answer.status, 404, "{target}");
        assert!(answer.body.contains("<h1>Not found</h1>"), "{}", answer.body);
    }
}

#[tokio::test]
async fn ten_thousand_components_make_no_large_page() {
    let served = serve(
        "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: big}\nspec:\n  selector: {matchLabels: {part-of: test}}\n",
    )
    .await;
    for agent_number in 0..50 {
        let mut agent = Agent::join(&served, &format!("agent-{agent_number}")).await;
        let names: Vec<String> = (0..200)
            .map(|number| format!("c-{agent_number}-{number}"))
            .collect();
        agent
            .announce(&names.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        let broken = agent_number == 7;
        let changes: Vec<_> = (1..=200).map(|id| (id, !(broken && id == 9), "broken")).collect();
        agent.report(&changes).await;
        agent.until_acknowledged().await;
        std::mem::forget(agent);
    }
    let snapshot = served
        .until(|snapshot| snapshot.totals.components.healthy == 9_999)
        .await;
    assert_eq!(snapshot.totals.components.unhealthy, 1);
    for target in [
        "/",
        "/ui/scopes/default/big",
        "/ui/components",
        "/ui/components?page=77",
        "/ui/scopes/default/big?problems=1",
    ] {
        let page = served.get(target).await.body;
        assert!(page.len() < 150_000, "{target} has {} bytes", page.len());
        if !target.contains("page=") {
            assert!(page.contains("c-7-8"), "{target} shows the problem first");
        }
    }
    assert!(served.get("/").await.body.contains("9990 more components"));
    let found = served.get("/ui/components?q=c-49-199").await.body;
    assert_eq!(found.matches("<tr class=\"healthy\"").count(), 1);
    let api = served.get_json("/api/v1/components?limit=10").await;
    assert_eq!(
        (api["total"].clone(), api["items"].as_array().unwrap().len()),
        (10_000.into(), 10)
    );
}

#[tokio::test]
async fn a_page_without_scopes_says_what_to_do() {
    let served = serve("apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\nspec: {readinessProbe: {tcpSocket: {port: 80}}}\n").await;
    let page = served.get("/").await.body;
    assert!(
        page.contains("Nothing is watched yet") && page.contains("kind: HealthScope"),
        "{page}"
    );
}
