//! Any events in any order: the store's counters and indices stay true (`World::publish` checks them after every
//! event), the same events give the same answers, and the end is the agents' truth.

use {super::*, proptest::prelude::*};

#[derive(Clone, Debug)]
enum Step {
    Connect {
        agent: usize,
        restart: bool,
    },
    Close {
        agent: usize,
    },
    Goodbye {
        agent: usize,
    },
    Announce {
        agent: usize,
        what: usize,
    },
    Report {
        agent: usize,
        probe: usize,
        state: usize,
        lost: u64,
    },
    Complete {
        agent: usize,
    },
    Alive {
        agent: usize,
    },
    Configure {
        what: usize,
    },
    Wait {
        seconds: u64,
    },
    Forget {
        agent: usize,
    },
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const WATCHED: [&str; 5] = [
    "web/1: readiness; db/1: readiness liveness",
    "web/2: readiness startup",
    "db/1: liveness; db/2: readiness; other/1: readiness",
    "",
    "other/1:",
];
const SCOPES: [&[(&str, &str)]; 4] = [
    &[],
    &[(
        "all",
        r#"{"selector": {}, "policy": {"minAvailable": 50, "minHealthySeconds": 5}}"#,
    )],
    &[
        (
            "top",
            r#"{"workloadRefs": [{"kind": "HealthScope", "name": "shop", "required": true}]}"#,
        ),
        (
            "shop",
            r#"{"workloadRefs": [{"kind": "Component", "name": "web", "dependsOn": ["db"]},
                {"kind": "Component", "name": "db"}], "selector": {"matchLabels": {"tier": "x"}}}"#,
        ),
    ],
    &[
        (
            "shop",
            r#"{"selector": {}, "policy": {"unknownPolicy": "Ignore"}, "maintenance": {"until": "2026-01-01T00:03:00Z"}}"#,
        ),
        (
            "round",
            r#"{"workloadRefs": [{"kind": "HealthScope", "name": "trip"}]}"#,
        ),
        (
            "trip",
            r#"{"workloadRefs": [{"kind": "HealthScope", "name": "round"}]}"#,
        ),
    ],
];

fn any_step() -> impl Strategy<Value = Step> {
    let agent = 0..NAMES.len();
    prop_oneof![
        3 => (agent.clone(), any::<bool>()).prop_map(|(agent, restart)| Step::Connect { agent, restart }),
        1 => agent.clone().prop_map(|agent| Step::Close { agent }),
        1 => agent.clone().prop_map(|agent| Step::Goodbye { agent }),
        3 => (agent.clone(), 0..WATCHED.len()).prop_map(|(agent, what)| Step::Announce { agent, what }),
        8 => (agent.clone(), 0..4_usize, 0..4_usize, prop_oneof![9 => Just(0), 1 => 1..4_u64])
            .prop_map(|(agent, probe, state, lost)| Step::Report { agent, probe, state, lost }),
        3 => agent.clone().prop_map(|agent| Step::Complete { agent }),
        2 => agent.clone().prop_map(|agent| Step::Alive { agent }),
        1 => (0..SCOPES.len()).prop_map(|what| Step::Configure { what }),
        3 => prop_oneof![0..15_u64, 0..4_000_u64].prop_map(|seconds| Step::Wait { seconds }),
        1 => agent.prop_map(|agent| Step::Forget { agent }),
    ]
}

/// An agent and its truth: what it watches, and the state of each probe.
struct Player {
    agent: Agent,
    watched: &'static str,
    states: Vec<&'static str>,
}

impl Player {
    fn full_state(&self) -> String {
        self.states
            .iter()
            .enumerate()
            .map(|(id, state)| format!("{id}{state} "))
            .collect()
    }
}

fn watch(player: &mut Player, watched: &'static str) {
    player.watched = watched;
    player.states = announcement(watched, 0)
        .iter()
        .flat_map(|instance| &instance.probes)
        .map(|_| "-")
        .collect();
}

fn play(world: &mut World, players: &mut [Player], step: &Step) {
    match *step {
        Step::Connect { agent, restart } => {
            let player = &mut players[agent];
            if restart {
                player.agent.epoch += 1;
                player.agent.seq = 0;
                player.agent.acked = 0;
                player.states.fill("-");
            }
            world.reconnect(&mut player.agent);
        }
        Step::Close { agent } => {
            world.apply(Event::Closed {
                session: players[agent].agent.session,
            });
        }
        Step::Goodbye { agent } => {
            world.apply(Event::Goodbye {
                session: players[agent].agent.session,
            });
        }
        Step::Announce { agent, what } => {
            // What is watched changes with a restart; within an epoch ids mean the same for ever.
            play(world, players, &Step::Connect { agent, restart: true });
            watch(&mut players[agent], WATCHED[what]);
            world.announce(&players[agent].agent, WATCHED[what]);
        }
        Step::Report {
            agent,
            probe,
            state,
            lost,
        } => {
            let player = &mut players[agent];
            if probe < player.states.len() {
                player.states[probe] = ["P", "F", "P", "F"][state];
            }
            player.agent.seq += lost;
            let text = format!(
                "{probe}{}{}",
                ["P", "F", "P", "F"][state],
                if state > 1 { "*" } else { "" }
            );
            world.report(&mut player.agent, &text);
        }
        Step::Complete { agent } => {
            let player = &mut players[agent];
            let text = player.full_state();
            world.states(&mut player.agent, &text);
        }
        Step::Alive { agent } => {
            world.apply(Event::Alive {
                session: players[agent].agent.session,
            });
        }
        Step::Configure { what } => world.configure(SCOPES[what], &[("db", &[("tier", "x")])]),
        Step::Wait { seconds } => world.wait(seconds),
        Step::Forget { agent } => {
            world.apply(Event::Forget {
                agent: AgentName::new(NAMES[agent]).unwrap(),
            });
        }
    }
}

fn run(steps: &[Step]) -> (World, Vec<Player>) {
    let mut world = World::fresh(StoreConfig::default());
    let mut players: Vec<Player> = NAMES
        .iter()
        .map(|name| Player {
            agent: Agent {
                name,
                epoch: 1,
                session: SessionId(0),
                seq: 0,
                acked: 0,
            },
            watched: "",
            states: Vec::new(),
        })
        .collect();
    for step in steps {
        play(&mut world, &mut players, step);
    }
    (world, players)
}

/// Everything a reader can see, as text.
fn seen(world: &World) -> String {
    let snapshot = world.store.snapshot();
    let scopes: Vec<_> = snapshot
        .scopes
        .values()
        .map(|entry| (&entry.view, &entry.status))
        .collect();
    format!(
        "{:#?} {:#?} {:#?} {:#?} {:#?} {:#?}",
        scopes,
        snapshot.transitions,
        snapshot.totals,
        world.store.components(None),
        world.store.agents(),
        world.store.next_deadline().map(|deadline| deadline - world.start),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_end_is_the_agents_truth(steps in proptest::collection::vec(any_step(), 1..80)) {
        let (mut world, mut players) = run(&steps);
        // Everybody comes back and says all.
        for player in &mut players {
            world.reconnect(&mut player.agent);
            let watched = player.watched;
            world.announce(&player.agent, watched);
            let text = player.full_state();
            world.states(&mut player.agent, &text);
        }
        // What is held after a restart is held for ten seconds.
        world.wait(10);
        for player in &players {
            let view = world.agent_view(player.agent.name);
            prop_assert_eq!(view.presence, Presence::Connected);
            prop_assert_eq!(view.seq, player.agent.seq);
        }
        for player in &players {
            for instance in announcement(player.watched, 0) {
                let component = world.store.component(&instance.component).expect("announced");
                let found = component
                    .running
                    .iter()
                    .find(|running| running.name == instance.instance && running.agent.as_str() == player.agent.name)
                    .expect("announced");
                let states = instance.probes.iter().map(|probe| {
                    (probe.kind, match player.states[probe.id.0 as usize] {
                        "P" => ProbeState::Passing,
                        "F" => ProbeState::Failing,
                        _ => ProbeState::Pending,
                    })
                });
                prop_assert_eq!(found.health, crate::rollup::instance(states).health());
            }
        }
    }

    #[test]
    fn the_same_events_give_the_same_answers(steps in proptest::collection::vec(any_step(), 1..60)) {
        let (one, _) = run(&steps);
        let (other, _) = run(&steps);
        prop_assert_eq!(seen(&one), seen(&other));
    }
}
