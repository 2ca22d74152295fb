//! The JSON API: shapes, filters, pages, errors, runs.

use {
    crate::support::{Agent, SHOP, healthy_shop, serve, serve_with},
    healthscope_shared::{
        health::{Health, Reason},
        wire::{AgentMessage, Probed, ServerMessage},
    },
    serde_json::Value,
};

const JSON: &str = "content-type: application/json";

#[tokio::test]
async fn answers_are_what_the_description_says() {
    let (served, mut agent) = healthy_shop().await;
    agent.report(&[(2, false, "refused")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let description = served.get_json("/openapi.json").await;
    for (path, target) in [
        ("/api/v1/status", "/api/v1/status"),
        ("/api/v1/scopes", "/api/v1/scopes"),
        ("/api/v1/scopes/{namespace}/{name}", "/api/v1/scopes/default/shop"),
        ("/api/v1/components", "/api/v1/components"),
        (
            "/api/v1/components/{namespace}/{name}",
            "/api/v1/components/default/db",
        ),
        ("/api/v1/probes", "/api/v1/probes"),
        ("/api/v1/agents", "/api/v1/agents"),
        ("/api/v1/transitions", "/api/v1/transitions"),
        ("/scopes", "/scopes"),
    ] {
        let schema =
            &description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        check_schema(&description, schema, &served.get_json(target).await, target);
    }
    let unavailable = served.get("/scopes/shop").await;
    assert_eq!(unavailable.status, 503);
    let schema = &description["paths"]["/scopes/{name}"]["get"]["responses"]["503"]["content"]["application/json"]
        ["schema"];
    check_schema(&description, schema, &unavailable.json(), "/scopes/shop");
    let problem =
        &description["components"]["responses"]["Problem"]["content"]["application/problem+json"]["schema"];
    check_schema(
        &description,
        problem,
        &served.get("/api/v1/nothing").await.json(),
        "a problem",
    );
}

/// Checks a value against a schema of the description.
fn check_schema(description: &Value, schema: &Value, value: &Value, what: &str) {
    assert!(schema.is_object(), "{what} is not described");
    let mut whole = schema.clone();
    whole["components"] = description["components"].clone();
    let validator = jsonschema::draft202012::new(&whole).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}");
}

#[tokio::test]
async fn scopes_are_listed_filtered_and_paged() {
    let text: String = ["a", "b", "c"]
        .map(|name| format!("---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: {name}}}\nspec: {{}}\n"))
        .concat();
    let served =
        serve(&(text + "---" + &SHOP.replace("{name: shop}", "{name: shop, namespace: other}"))).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = served.get_json("/api/v1/scopes").await;
    assert_eq!(
        (names(&all), &all["total"]),
        (vec!["a".into(), "b".into(), "c".into(), "shop".into()], &4.into())
    );
    assert_eq!(
        names(&served.get_json("/api/v1/scopes?namespace=other").await),
        ["shop"]
    );
    assert_eq!(names(&served.get_json("/api/v1/scopes?q=SH").await), ["shop"]);
    assert_eq!(
        names(&served.get_json("/api/v1/scopes?health=Healthy").await),
        ["a", "b", "c"]
    );
    let first = served.get_json("/api/v1/scopes?limit=3").await;
    let next = first["continue"].as_str().unwrap().replace(' ', "%20");
    let second = served
        .get_json(&format!("/api/v1/scopes?limit=3&continue={next}"))
        .await;
    assert_eq!(
        (names(&first), names(&second)),
        (vec!["a".into(), "b".into(), "c".into()], vec!["shop".into()])
    );
    assert!(second.get("continue").is_none());
}

#[tokio::test]
async fn a_component_shows_its_probes() {
    let (served, mut agent) = healthy_shop().await;
    agent.report(&[(2, false, "connection refused")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let db = served.get_json("/api/v1/components/default/db").await;
    assert_eq!(
        (&db["health"], &db["scopes"][0]),
        (&"Unhealthy".into(), &"shop".into())
    );
    let probe = &db["running"][0]["probes"][0];
    assert_eq!(
        (&probe["probe"], &probe["state"], &probe["message"]),
        (
            &"readiness".into(),
            &"failing".into(),
            &"connection refused".into()
        )
    );
    let failing = served.get_json("/api/v1/probes?state=failing").await;
    assert_eq!(
        (&failing["total"], &failing["items"][0]["component"]),
        (&1.into(), &"db".into())
    );
    let of_scope = served
        .get_json("/api/v1/components?scope=shop&health=Unhealthy")
        .await;
    assert_eq!(
        (&of_scope["total"], &of_scope["items"][0]["name"]),
        (&1.into(), &"db".into())
    );
}

#[tokio::test]
async fn every_error_is_a_problem_document() {
    let served = serve(SHOP).await;
    for (method, target, status, detail) in [
        ("GET", "/nothing/here/at/all", 404, "/openapi.json"),
        ("GET", "/api/v1/nothing", 404, "/openapi.json"),
        ("GET", "/Nothing", 404, "/openapi.json"),
        ("GET", "/nothing", 404, "no HealthScope nothing"),
        ("GET", "/scopes/nothing", 404, "no HealthScope nothing"),
        ("GET", "/scopes/default/NOT_A_NAME", 404, "cannot be"),
        (
            "GET",
            "/api/v1/scopes/default/nothing",
            404,
            "no HealthScope nothing",
        ),
        (
            "GET",
            "/api/v1/components/default/nothing",
            404,
            "no Component nothing",
        ),
        (
            "GET",
            "/api/v1/components/default/nothing?kind=Deployment",
            404,
            "no Deployment nothing",
        ),
        ("GET", "/assets/page.css", 404, "reload"),
        ("GET", "/api/v1/scopes?limit=0", 400, "limit"),
        ("GET", "/api/v1/scopes?limit=many", 400, "limit"),
        ("GET", "/api/v1/scopes?healthy=yes", 400, "healthy"),
        ("GET", "/api/v1/scopes?health=Good", 400, "Good"),
        ("GET", "/api/v1/stream?events=all", 400, "snapshot"),
        ("GET", "/api/v1/components?scope=nothing", 404, "nothing"),
        ("DELETE", "/api/v1/agents/nobody", 404, "no agent nobody"),
        ("POST", "/api/v1/scopes", 405, "Allow"),
        ("DELETE", "/metrics", 405, "Allow"),
        (
            "GET",
            "/api/v1/components/default/web/probes/readiness/run",
            405,
            "Allow",
        ),
    ] {
        let answer = served.ask(method, target, &[], "").await;
        let found = answer.problem(status);
        assert!(found.contains(detail), "{method} {target}: {found}");
        if status == 405 {
            assert!(
                answer.header("allow").is_some_and(|allow| !allow.is_empty()),
                "{method} {target}"
            );
        }
    }
    let large = "x".repeat(20_000);
    served.ask("POST", "/logout", &[], &large).await.problem(413);
}

#[tokio::test]
async fn head_is_like_get_without_a_body() {
    let served = serve(SHOP).await;
    let answer = served.ask("HEAD", "/api/v1/scopes/default/shop", &[], "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_ne!(answer.header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_probe_can_be_run_now() {
    let (served, mut agent) = healthy_shop().await;
    let answering = async {
        loop {
            let ServerMessage::Probe(run) = agent.hear().await else {
                continue;
            };
            assert_eq!(run.probe.0, 2);
            agent
                .say(AgentMessage::Probed(Probed {
                    request: run.request,
                    result: Some("failure".into()),
                    reason: Some(Reason::CONNECTION_REFUSED),
                    message: "connection refused".into(),
                    output: "\u{1b}[31mred".into(),
                    latency_us: 1_234,
                    state: None,
                }))
                .await;
            return;
        }
    };
    let target = "/api/v1/components/default/db/probes/readiness/run";
    let (answer, ()) = tokio::join!(served.ask("POST", target, &[JSON], "{}"), answering);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let run = &answer.json()["runs"][0];
    assert_eq!(
        (&run["result"], &run["reason"], &run["latencyUs"]),
        (&"failure".into(), &"ConnectionRefused".into(), &1234.into())
    );
    assert!(
        !run["output"].as_str().unwrap().contains('\u{1b}'),
        "escape sequences are made harmless"
    );
    let description = served.get_json("/openapi.json").await;
    let path = "/api/v1/components/{namespace}/{name}/probes/{probe}/run";
    let schema =
        &description["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"];
    check_schema(&description, schema, &answer.json(), target);
}

#[tokio::test]
async fn a_run_that_cannot_be_is_said_to_be() {
    let (served, mut agent) = healthy_shop().await;
    let run =
        |component: &str, probe: &str| format!("/api/v1/components/default/{component}/probes/{probe}/run");
    let readiness = run("web", "readiness");
    assert!(
        served
            .ask("POST", &readiness, &[], "{}")
            .await
            .problem(415)
            .contains("application/json")
    );
    served
        .ask("POST", &readiness, &["content-type: text/plain"], "{}")
        .await
        .problem(415);
    served
        .ask("POST", &run("nothing", "readiness"), &[JSON], "")
        .await
        .problem(404);
    served
        .ask("POST", &run("web", "nothing"), &[JSON], "")
        .await
        .problem(404);
    let elsewhere = format!("{readiness}?instance=other");
    served.ask("POST", &elsewhere, &[JSON], "").await.problem(404);
    let hasty = format!("{readiness}?timeoutSeconds=0");
    served.ask("POST", &hasty, &[JSON], "").await.problem(400);
    // The agent never answers.
    let impatient = format!("{readiness}?timeoutSeconds=1");
    assert!(
        served
            .ask("POST", &impatient, &[JSON], "")
            .await
            .problem(504)
            .contains("did not answer")
    );
    while !matches!(agent.hear().await, ServerMessage::Probe(_)) {}
    // It goes away meanwhile.
    let asking = served.ask("POST", &readiness, &[JSON], "");
    let leaving = async move {
        let mut agent = agent;
        while !matches!(agent.hear().await, ServerMessage::Probe(_)) {}
        drop(agent);
    };
    let (answer, ()) = tokio::join!(asking, leaving);
    assert!(answer.problem(503).contains("connection ended"));
    served
        .until_metric("healthscope_agents{state=\"absent\"}", 1.0)
        .await;
    assert!(
        served
            .ask("POST", &readiness, &[JSON], "")
            .await
            .problem(503)
            .contains("no agent")
    );
}

#[tokio::test]
async fn too_many_runs_at_once_are_refused() {
    let (served, mut agent) = healthy_shop().await;
    let target = "/api/v1/components/default/web/probes/readiness/run?timeoutSeconds=2";
    let asking = (0..9).map(|_| served.ask("POST", target, &[JSON], ""));
    let (answers, _) = tokio::join!(futures_util::future::join_all(asking), async {
        // Heard, and never answered.
        while tokio::time::timeout(std::time::Duration::from_secs(1), agent.hear())
            .await
            .is_ok()
        {}
    });
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(
        statuses.iter().filter(|&&status| status == 504).count(),
        8,
        "{statuses:?}"
    );
    let refused = answers.iter().find(|answer| answer.status != 504).unwrap();
    assert!([429, 503].contains(&refused.status), "{}", refused.body);
}

#[tokio::test]
async fn an_agent_that_is_gone_can_be_forgotten() {
    let (served, agent) = healthy_shop().await;
    let connected = served.ask("DELETE", "/api/v1/agents/one", &[], "").await;
    assert!(connected.problem(409).contains("is connected"));
    drop(agent);
    served
        .until_metric("healthscope_agents{state=\"absent\"}", 1.0)
        .await;
    assert_eq!(
        served.ask("DELETE", "/api/v1/agents/one", &[], "").await.status,
        204
    );
    served
        .until_metric("healthscope_agents{state=\"absent\"}", 0.0)
        .await;
}

#[tokio::test]
async fn transitions_are_listed_and_resumed() {
    let (served, mut agent) = healthy_shop().await;
    let before = served.get_json("/api/v1/transitions").await;
    let last = before["last"].as_u64().unwrap();
    assert!(
        before["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|item| item["name"] == "shop")
    );
    agent.report(&[(2, false, "refused")]).await;
    served.until_health("shop", Health::Unhealthy).await;
    let after = served
        .get_json(&format!("/api/v1/transitions?after={last}"))
        .await;
    let names: Vec<_> = after["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].clone())
        .collect();
    assert_eq!(names, ["db", "shop"]);
    assert_eq!(after["missed"], false);
    let of_shop = served.get_json("/api/v1/transitions?level=scope&limit=1").await;
    assert_eq!(
        (&of_shop["items"][0]["name"], &of_shop["items"][0]["to"]),
        (&"shop".into(), &"Unhealthy".into())
    );
    // An id of the future is one of another aggregator.
    assert_eq!(
        served
            .get_json("/api/v1/transitions?after=9007199254740991")
            .await["missed"],
        true
    );
}

#[tokio::test]
async fn the_status_tells_what_is_wrong_with_the_configuration() {
    let served = serve(SHOP).await;
    let fine = served.get_json("/api/v1/status").await;
    assert_eq!(
        (
            &fine["configuration"]["revision"],
            fine["configuration"]["problems"].as_array().unwrap().len()
        ),
        (&1.into(), 0)
    );
    let broken = healthscope_aggregator::declared::read(&[healthscope_shared::document::Source::new(
        "shop.yaml",
        "kind: Pod\napiVersion: v1\n",
    )]);
    served.declared.send_modify(|loaded| {
        loaded.problems = Some(std::sync::Arc::new(broken.unwrap_err().into()));
    });
    served
        .until_metric("healthscope_configuration_problems", 1.0)
        .await;
    let status = served.get_json("/api/v1/status").await;
    let problem = status["configuration"]["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("shop.yaml:1:1: kind: \"Pod\""), "{problem}");
    assert_eq!(
        status["totals"]["scopes"]["total"], 1,
        "the former stays in force"
    );
    let page = served.get("/").await.body;
    assert!(page.contains("The configuration cannot be used"), "{page}");
}

#[tokio::test]
async fn a_busy_store_holds_agents_back_and_loses_nothing() {
    let served = serve_with(SHOP, |config| {
        config.limits.session.records_per_second = 1_000_000;
    })
    .await;
    let mut agent = Agent::join(&served, "one").await;
    agent.announce(&["web", "db"]).await;
    for round in 0..2_000_u32 {
        agent.report(&[(1, round % 2 == 1, "x")]).await;
    }
    agent.report(&[(2, true, "")]).await;
    let snapshot = served.until_health("shop", Health::Healthy).await;
    assert_eq!(snapshot.totals.missed_transitions, 0);
    served
        .until_metric("healthscope_agent_records_total{kind=\"transition\"}", 2_001.0)
        .await;
}
