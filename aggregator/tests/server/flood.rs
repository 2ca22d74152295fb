//! One pod's agent that sends ten thousand edges a second: it is slowed down, and nobody else is.

use {
    crate::support::{Agent, SHOP, serve},
    healthscope_shared::{health::Health, session::peer::RECORDS_PER_SECOND},
    std::time::{Duration, Instant},
    tokio::time::{MissedTickBehavior, interval},
};

/// Edges a second that the flooding agent sends.
const FLOOD: u32 = 10_000;
/// Edges in one message of it; an odd number, so that each ends otherwise than the one before.
const AT_ONCE: u32 = 99;
/// Faults of the others while it floods.
const FAULTS: u32 = 20;
/// Time between those.
const PAUSE: Duration = Duration::from_millis(150);
/// What a session may send at once, before it is slowed down: a full ring and a full state, twice over.
const BURST: u32 = 4_096;
/// Longest time in which a fault of somebody else must be seen meanwhile; a busy machine takes tens of times what an idle
/// one does.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

const NOISY: &str = "
---
apiVersion: core.oam.dev/v1beta1
kind: HealthScope
metadata: {name: noisy, namespace: elsewhere}
spec:
  workloadRefs: [{kind: Component, name: noise}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_that_floods_is_slowed_down_and_nobody_else_is() {
    let served = serve(&format!("{SHOP}{NOISY}")).await;
    let mut good = Agent::join(&served, "good").await;
    good.announce(&["web", "db"]).await;
    good.report(&[(1, true, ""), (2, true, "")]).await;
    let quiet = served.until_health("shop", Health::Healthy).await;
    let taken = r#"healthscope_agent_records_total{kind="transition"}"#;
    let before = served.metric(taken).await;

    let mut flooder = Agent::join(&served, "flooder").await;
    flooder.announce_in("elsewhere", &["noise"]).await;
    let begun = Instant::now();
    let flooding = tokio::spawn(async move {
        let mut tick = interval(Duration::from_secs(1) * AT_ONCE / FLOOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut sent = 0;
        // It ends when the session does.
        loop {
            let edges: Vec<_> = (sent..sent + AT_ONCE)
                .map(|edge| (1, edge % 2 == 1, "noise"))
                .collect();
            if !flooder.try_report(&edges).await {
                return sent;
            }
            sent += AT_ONCE;
            tick.tick().await;
        }
    });

    let mut seen = Vec::new();
    for fault in 0..FAULTS {
        tokio::time::sleep(PAUSE).await;
        let passes = fault % 2 == 1;
        let said = Instant::now();
        good.report(&[(1, passes, "a fault of its own")]).await;
        let health = if passes {
            Health::Healthy
        } else {
            Health::Unhealthy
        };
        served.until_health("shop", health).await;
        seen.push(said.elapsed());
    }
    let records = served.metric(taken).await - before;
    let lasted = begun.elapsed();
    let allowed = f64::from(BURST) + f64::from(RECORDS_PER_SECOND) * lasted.as_secs_f64();
    seen.sort_unstable();
    println!(
        "for {lasted:.1?}: {records} records were taken in, {allowed:.0} may be; a fault of another agent was seen after \
         {:?} (median), {:?} (longest)",
        seen[seen.len() / 2],
        seen[seen.len() - 1]
    );
    assert!(records > f64::from(BURST / 4), "only {records}: that is no flood");
    assert!(records <= allowed, "{records} are more than {allowed}");
    assert!(seen.iter().all(|after| *after < SEEN_WITHIN), "{seen:?}");

    // What happened to others is still remembered, and nothing that did not happen.
    let snapshot = served.until_health("shop", Health::Healthy).await;
    let of_shop = snapshot
        .transitions
        .iter()
        .filter(|transition| transition.name.as_str() == "shop");
    let first = quiet
        .transitions
        .iter()
        .filter(|transition| transition.name.as_str() == "shop");
    assert_eq!(of_shop.count(), first.count() + FAULTS as usize);

    // The next session of the same agent is heard at once: what the former one still had on its way is nobody's.
    let mut after = Agent::join_again(&served, "flooder").await;
    after.announce_in("elsewhere", &["noise"]).await;
    after.report(&[(1, false, "the truth")]).await;
    let snapshot = served
        .until(|snapshot| {
            let noisy = snapshot
                .scopes
                .iter()
                .find(|(key, _)| key.name.as_str() == "noisy");
            noisy.is_some_and(|(_, entry)| entry.view.message.contains("the truth"))
        })
        .await;
    let sent = flooding.await.unwrap();
    println!("{sent} edges were sent");
    let noisy = snapshot
        .scopes
        .iter()
        .find(|(key, _)| key.name.as_str() == "noisy");
    assert_eq!(noisy.unwrap().1.view.health, Health::Unhealthy);
}
