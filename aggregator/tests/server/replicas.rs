//! Agents meet a replica that stands by, and one that stops being the owner.

use {
    crate::support::{Agent, SHOP, Served, healthy_shop, serve},
    healthscope_aggregator::kubernetes::role::Role,
    healthscope_core::owner::Address,
    healthscope_shared::{
        health::Health,
        wire::{Redirect, ServerMessage, close},
    },
};

fn standby_for(owner: &Served) -> Role {
    let address = owner.address.to_string();
    Role::Standby {
        owner: Address::written(&address, "aggregator"),
    }
}

fn redirect_to(owner: &Served, spread_ms: u64) -> ServerMessage {
    ServerMessage::Redirect(Redirect {
        address: owner.address.to_string(),
        server_name: Some("aggregator".to_owned()),
        spread_ms,
    })
}

#[tokio::test]
async fn a_standby_sends_agents_to_the_owner_and_holds_nothing_of_them() {
    let (owner, standby) = (serve(SHOP).await, serve(SHOP).await);
    standby.role.send_replace(standby_for(&owner));
    let mut agent = Agent::connect(&standby).await;
    agent.say_hello("one").await;
    assert_eq!(agent.hear().await, redirect_to(&owner, 0));
    agent.socket.close(None).await.unwrap();
    standby
        .until_metric(
            r#"healthscope_agent_sessions_ended_total{reason="redirected"}"#,
            1.0,
        )
        .await;
    assert_eq!(
        standby.metric("healthscope_agent_sessions_opened_total").await,
        0.0
    );
    assert_eq!(
        standby.get_json("/api/v1/agents").await["items"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_standby_that_knows_no_owner_asks_agents_to_come_back() {
    let standby = serve(SHOP).await;
    standby.role.send_replace(Role::Standby { owner: None });
    let mut agent = Agent::connect(&standby).await;
    agent.say_hello("one").await;
    let ServerMessage::Drain(drain) = agent.hear().await else {
        panic!("no drain");
    };
    assert!((1..=5_000).contains(&drain.spread_ms), "{drain:?}");
    // One that does not obey is let go.
    assert_eq!(agent.until_closed().await.0, close::GOING_AWAY);
    standby.role.send_replace(Role::Owner);
    Agent::join(&standby, "one").await;
}

#[tokio::test]
async fn who_stops_being_the_owner_sends_everybody_away_and_acknowledges_nothing_more() {
    let next = serve(SHOP).await;
    let (owner, mut agent) = healthy_shop().await;
    agent.until_acknowledged().await;
    owner.role.send_replace(standby_for(&next));
    assert!(matches!(agent.hear().await, ServerMessage::Redirect(redirect) if redirect.spread_ms > 0));
    // On its way when the redirect came: taken in, but not acknowledged.
    agent.report(&[(2, false, "connection refused")]).await;
    assert_eq!(agent.until_closed().await.0, close::GOING_AWAY);

    // So the agent tells it again where it was sent.
    let mut again = Agent::join(&next, "one").await;
    again.announce(&["web", "db"]).await;
    again
        .report(&[(1, true, ""), (2, true, ""), (2, false, "connection refused")])
        .await;
    next.until_health("shop", Health::Unhealthy).await;
    again.until_acknowledged().await;
}

#[tokio::test]
async fn a_new_owner_elsewhere_is_where_agents_go_from_then_on() {
    let (one, other, standby) = (serve(SHOP).await, serve(SHOP).await, serve(SHOP).await);
    for owner in [&one, &other] {
        standby.role.send_replace(standby_for(owner));
        // Sent there by the news itself, or when it says hello.
        let mut agent = Agent::connect(&standby).await;
        agent.say_hello("one").await;
        assert_eq!(agent.hear().await, redirect_to(owner, 0));
    }
}
