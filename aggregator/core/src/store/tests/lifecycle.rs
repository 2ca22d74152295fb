//! Agents come, go, return and lie; instances and components follow.

use super::*;

#[test]
fn a_component_follows_its_probes() {
    let mut world = World::new();
    let mut agent = world.connect("laptop", 1);
    world.announce(&agent, "web/web-1: liveness readiness");
    assert_eq!(world.health("web"), "Unknown Starting");
    world.states(&mut agent, "0- 1-");
    world.report(&mut agent, "0P");
    assert_eq!(world.health("web"), "Unknown Starting");
    world.report(&mut agent, "1P");
    world.report(&mut agent, "1F");
    world.report(&mut agent, "0F");
    world.report(&mut agent, "0P 1P");
    world.expect(&[
        "web Unknown → Healthy (Passing)",
        "web Healthy → Unhealthy (ReadinessFailed): readiness tcp web:1 on web-1: connection refused",
        "web Unhealthy → Healthy (Passing)",
    ]);
    assert_eq!(
        world.probes,
        [
            "1: liveness on web-1 pending → passing",
            "2: readiness on web-1 pending → passing",
            "3: readiness on web-1 passing → failing",
            "4: liveness on web-1 passing → failing",
            "5: liveness on web-1 failing → passing",
            "6: readiness on web-1 failing → passing",
        ]
    );
}

#[test]
fn a_short_trouble_within_one_report_is_told() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.report(&mut agent, "0F 0P");
    world.expect(&[
        "web Healthy → Unhealthy (ReadinessFailed): readiness tcp web:1 on web-1: connection refused",
        "web Unhealthy → Healthy (Passing)",
    ]);
}

#[test]
fn several_instances_degrade_a_component() {
    let mut world = World::new();
    let mut one = world.agent("a", "web/web-1: readiness", "0P");
    let mut two = world.agent("b", "web/web-2: readiness", "0P");
    world.told.clear();
    world.report(&mut one, "0F");
    world.report(&mut two, "0F");
    world.report(&mut two, "0P");
    world.expect(&[
        "web Healthy → Degraded (InstancesUnhealthy): 1 of 2 instances: readiness tcp web:1 on web-1: connection \
         refused",
        "web Degraded → Unhealthy (ReadinessFailed): 2 of 2 instances, such as readiness tcp web:1 on web-1: \
         connection refused",
        "web Unhealthy → Degraded (InstancesUnhealthy): 1 of 2 instances: readiness tcp web:1 on web-1: connection \
         refused",
    ]);
    world.report(&mut one, "0P");
    assert_eq!(world.health("web"), "Healthy Passing");
}

#[test]
fn a_closed_connection_is_held_for_ten_seconds() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.apply(Event::Closed {
        session: agent.session,
    });
    assert_eq!(world.agent_view("laptop").presence, Presence::Held);
    world.wait_ms(9_999);
    world.expect(&[]);
    world.wait_ms(1);
    world.expect(&["web Healthy → Unknown (AgentLost): agent laptop of web-1 is lost"]);
    assert_eq!(world.agent_view("laptop").presence, Presence::Lost);
}

#[test]
fn a_silent_agent_is_lost_after_thirty_seconds_and_back_with_a_word() {
    let mut world = World::new();
    let agent = world.agent("web-1", "web/web-1: readiness", "0P");
    world.told.clear();
    for _ in 0..5 {
        world.wait(29);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    world.expect(&[]);
    world.wait(30);
    world.expect(&["web Healthy → Unknown (AgentLost): agent web-1 is lost"]);
    world.apply(Event::Alive {
        session: agent.session,
    });
    world.expect(&["web Unknown → Healthy (Passing)"]);
    assert_eq!(world.agent_view("web-1").presence, Presence::Connected);
}

#[test]
fn a_stopped_agent_is_said_to_be_stopped() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.apply(Event::Goodbye {
        session: agent.session,
    });
    assert_eq!(
        world.apply(Event::Closed {
            session: agent.session
        }),
        Answer::UnknownSession
    );
    world.wait(9);
    world.expect(&[]);
    world.wait(1);
    world.expect(&["web Healthy → Unknown (AgentStopped): agent laptop of web-1 was stopped"]);
    assert_eq!(world.agent_view("laptop").presence, Presence::Stopped);
}

#[test]
fn a_restart_is_no_transition() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness; db/db-1: readiness", "0P 1F");
    world.told.clear();
    world.apply(Event::Goodbye {
        session: agent.session,
    });
    world.wait(5);
    let mut again = world.connect("laptop", 2);
    world.announce(&again, "web/web-1: readiness; db/db-1: readiness");
    world.states(&mut again, "0- 1-");
    assert_eq!(
        (world.health("web").as_str(), world.health("db").as_str()),
        ("Healthy Passing", "Unhealthy ReadinessFailed")
    );
    world.wait(2);
    world.report(&mut again, "0P");
    world.wait(2);
    world.report(&mut again, "1F");
    for _ in 0..5 {
        world.wait(20);
        world.apply(Event::Alive {
            session: again.session,
        });
    }
    world.expect(&[]);
}

#[test]
fn what_a_restarted_agent_does_not_find_again_is_forgotten() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.apply(Event::Closed {
        session: agent.session,
    });
    let mut again = world.connect("laptop", 2);
    world.announce(&again, "web/web-1: readiness");
    world.states(&mut again, "0-");
    world.wait_ms(9_999);
    world.expect(&[]);
    world.wait_ms(1);
    world.expect(&["web Healthy → Unknown (Starting): readiness tcp web:1 on web-1 has no verdict yet"]);
}

#[test]
fn another_target_is_another_probe() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.apply(Event::Closed {
        session: agent.session,
    });
    let again = world.connect("laptop", 2);
    world.announce_with(&again, "web/web-1: readiness", |instance| {
        instance.probes[0].target = "tcp web:2".into();
    });
    world.expect(&["web Healthy → Unknown (Starting): readiness tcp web:2 on web-1 has no verdict yet"]);
}

#[test]
fn nothing_is_lost_for_thirty_seconds_after_the_start() {
    let mut world = World::fresh(StoreConfig::default());
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.wait(1);
    world.apply(Event::Closed {
        session: agent.session,
    });
    world.wait_ms(28_999);
    world.expect(&[]);
    world.wait_ms(1);
    world.expect(&["web Healthy → Unknown (AgentLost): agent laptop of web-1 is lost"]);
}

#[test]
fn a_resumed_session_replays_what_was_missed_and_nothing_twice() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0-");
    world.report(&mut agent, "0P");
    world.apply(Event::Closed {
        session: agent.session,
    });
    world.wait(300);
    assert_eq!(world.health("web"), "Unknown AgentLost");
    world.told.clear();
    world.probes.clear();

    let missed = agent.transitions("0F 0P 0F");
    assert_eq!(world.reconnect(&mut agent), (Some(1), None));
    world.announce(&agent, "web/web-1: readiness");
    // One of them was received before, and the replay comes in two parts.
    let replay = [records("0P", 1), missed[..2].to_vec()].concat();
    world.apply(Event::Reported {
        session: agent.session,
        report: Report {
            seq: Seq(4),
            transitions: replay,
            ..Report::default()
        },
    });
    // Not complete yet: what is true now is not known.
    world.expect(&[]);
    assert_eq!(world.agent_view("laptop").presence, Presence::Lost);
    let answer = world.apply(Event::Reported {
        session: agent.session,
        report: Report {
            seq: Seq(4),
            transitions: missed[1..].to_vec(),
            ..Report::default()
        },
    });
    assert_eq!(
        answer,
        Answer::Applied {
            ack: Seq(4),
            resync: false
        }
    );
    world.expect(&[
        "web Unknown → Unhealthy (ReadinessFailed): readiness tcp web:1 on web-1: connection refused",
    ]);
    assert_eq!(
        world.probes,
        [
            "2: readiness on web-1 passing → failing",
            "3: readiness on web-1 failing → passing",
            "4: readiness on web-1 passing → failing"
        ]
    );
    assert_eq!(world.agent_view("laptop").missed, 0);
}

#[test]
fn a_short_cut_is_no_transition() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    for _ in 0..1000 {
        world.apply(Event::Closed {
            session: agent.session,
        });
        world.wait_ms(500);
        assert_eq!(world.reconnect(&mut agent), (Some(0), None));
        assert_eq!(world.agent_view("laptop").presence, Presence::Connected);
        world.announce(&agent, "web/web-1: readiness");
    }
    world.expect(&[]);
    assert_eq!(world.agent_view("laptop").sessions, 1001);
}

#[test]
fn a_gap_is_counted_and_covered_by_a_state() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0-");
    world.report(&mut agent, "0P");
    world.told.clear();
    world.probes.clear();
    // Three transitions are lost on the way.
    agent.seq += 3;
    assert_eq!(
        world.report(&mut agent, "0P"),
        Answer::Applied {
            ack: Seq(5),
            resync: true
        }
    );
    assert_eq!(world.probes, ["5: readiness on web-1 ? → passing"]);
    assert_eq!(world.agent_view("laptop").missed, 3);
    // Until the state is complete the session cannot be resumed.
    world.apply(Event::Closed {
        session: agent.session,
    });
    assert_eq!(world.reconnect(&mut agent), (None, None));
    world.announce(&agent, "web/web-1: readiness");
    agent.seq += 2;
    world.states(&mut agent, "0F");
    assert_eq!(world.agent_view("laptop").missed, 5);
    assert_eq!(world.store.totals().missed_transitions, 5);
    world.expect(&[
        "web Healthy → Unhealthy (ReadinessFailed): readiness tcp web:1 on web-1: connection refused",
    ]);
    world.apply(Event::Closed {
        session: agent.session,
    });
    assert_eq!(world.reconnect(&mut agent), (Some(7), None));
}

#[test]
fn a_restarted_aggregator_counts_from_what_its_former_self_acknowledged() {
    let mut world = World::fresh(StoreConfig::default());
    let mut agent = Agent {
        name: "laptop",
        epoch: 7,
        session: SessionId(0),
        seq: 990,
        acked: 990,
    };
    let unacknowledged = agent.transitions("0F 0P");
    assert_eq!(world.reconnect(&mut agent), (None, None));
    world.announce(&agent, "web/web-1: readiness");
    world.apply(Event::Reported {
        session: agent.session,
        report: Report {
            seq: Seq(992),
            transitions: unacknowledged,
            ..Report::default()
        },
    });
    world.states(&mut agent, "0P");
    assert_eq!(
        world.probes,
        [
            "991: readiness on web-1 pending → failing",
            "992: readiness on web-1 failing → passing"
        ]
    );
    let view = world.agent_view("laptop");
    assert_eq!(
        (view.missed, view.seq, view.presence),
        (0, 992, Presence::Connected)
    );
}

#[test]
fn the_newer_session_wins() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    let old = agent.session;
    world.told.clear();
    assert_eq!(world.reconnect(&mut agent), (Some(0), Some(old)));
    for event in [
        Event::Alive { session: old },
        Event::Goodbye { session: old },
        Event::Closed { session: old },
        Event::Announced {
            session: old,
            instances: Vec::new(),
        },
        Event::Reported {
            session: old,
            report: Report {
                seq: Seq(1),
                transitions: records("0F", 1),
                ..Report::default()
            },
        },
    ] {
        assert_eq!(world.apply(event), Answer::UnknownSession);
    }
    world.wait(20);
    world.expect(&[]);
}

#[test]
fn an_agent_whose_state_never_completes_is_lost() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    world.apply(Event::Closed {
        session: agent.session,
    });
    let again = world.connect("laptop", 2);
    world.announce(&again, "web/web-1: readiness");
    for _ in 0..4 {
        world.wait(9);
        world.apply(Event::Alive {
            session: again.session,
        });
    }
    world.expect(&["web Healthy → Unknown (Starting): readiness tcp web:1 on web-1 has no verdict yet"]);
    assert_eq!(world.health("web"), "Unknown AgentLost");
}

#[test]
fn what_is_no_longer_announced_is_gone_on_purpose() {
    let mut world = World::new();
    let agent = world.agent(
        "laptop",
        "web/web-1: readiness; web/web-2: readiness; db/db-1: readiness",
        "0P 1F 2P",
    );
    world.told.clear();
    let instances = announcement("web/web-1: readiness", 0);
    world.apply(Event::Announced {
        session: agent.session,
        instances,
    });
    world.expect(&[
        "web Degraded → Healthy (Passing)",
        "db Healthy → gone (Removed): nobody watches it any more",
    ]);
    assert!(world.store.component(&key("db")).is_none());
    assert_eq!(world.store.totals().probes, 1);
}

#[test]
fn a_probe_that_stays_keeps_its_state_when_the_file_changes() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness liveness", "0P 1P");
    world.told.clear();
    // The ids of probes that stay do not change; a new probe has not said anything yet.
    let mut instances = announcement("web/web-1: readiness liveness readiness=disk", 0);
    instances[0].probes.swap(0, 2);
    world.apply(Event::Announced {
        session: agent.session,
        instances,
    });
    world.expect(&["web Healthy → Unknown (Starting): readiness tcp web:1 on web-1 has no verdict yet"]);
    world.report(&mut agent, "2P");
    world.report(&mut agent, "1F");
    world.expect(&[
        "web Unknown → Healthy (Passing)",
        "web Healthy → Unhealthy (LivenessFailed): liveness tcp web:1 on web-1: connection refused",
    ]);
}

#[test]
fn lost_components_that_nobody_expects_are_forgotten_after_an_hour() {
    let mut world = World::new();
    world.configure(
        &[(
            "shop",
            r#"{"workloadRefs": [{"kind": "Component", "name": "web"}]}"#,
        )],
        &[("db", &[])],
    );
    let agents = [
        world.agent("a", "web/web-1: readiness", "0P"),
        world.agent("b", "db/db-1: readiness", "0P"),
        world.agent("c", "other/other-1: readiness", "0P"),
    ];
    for agent in &agents {
        world.apply(Event::Closed {
            session: agent.session,
        });
    }
    world.wait(10);
    world.told.clear();
    world.wait(3_589);
    world.expect(&[]);
    world.wait(60);
    world.expect(&[
        "other Unknown → gone (Forgotten): its agents have been lost for too long and no scope or file expects it",
    ]);
    world.wait(24 * 3_600);
    assert_eq!(
        (world.health("web").as_str(), world.health("db").as_str()),
        ("Unknown AgentLost", "Unknown AgentLost")
    );
    assert_eq!(world.store.agents().len(), 2);
}

#[test]
fn an_agent_can_be_forgotten_on_demand_but_not_while_it_is_there() {
    let mut world = World::new();
    let agent = world.agent("a", "web/web-1: readiness", "0P");
    let forget = || Event::Forget {
        agent: AgentName::new("a").unwrap(),
    };
    world.apply(forget());
    assert_eq!(world.health("web"), "Healthy Passing");
    world.apply(Event::Goodbye {
        session: agent.session,
    });
    world.told.clear();
    world.apply(forget());
    world.expect(&["web Healthy → gone (Removed): nobody watches it any more"]);
    assert_eq!(
        (world.store.agents(), world.store.totals().instances),
        (Vec::new(), 0)
    );
}

#[test]
fn an_agent_that_announced_nothing_leaves_nothing() {
    let mut world = World::new();
    let agent = world.connect("a", 1);
    world.apply(Event::Closed {
        session: agent.session,
    });
    world.wait(10);
    assert_eq!(world.store.agents(), Vec::new());
}

#[test]
fn limits_refuse_and_harm_nobody_else() {
    let limits = Limits {
        agents: 2,
        instances_per_agent: 2,
        probes_per_agent: 3,
        probes: 5,
    };
    let mut world = World::fresh(StoreConfig {
        limits,
        ..StoreConfig::default()
    });
    let one = world.agent("a", "web/web-1: readiness; web/web-2: readiness", "0P 1P");
    let two = world.connect("b", 1);
    let opened = Opened {
        session: SessionId(99),
        agent: AgentName::new("c").unwrap(),
        epoch: Epoch(1),
        seq: Seq(0),
        acked: Seq(0),
        version: String::new(),
        peer: String::new(),
        pod: None,
    };
    let refused = |refusal| Answer::Refused(refusal);
    assert_eq!(
        world.apply(Event::Opened(opened)),
        refused(Refusal::TooManyAgents { limit: 2 })
    );
    for (text, refusal) in [
        (
            "a/1: readiness; a/2: readiness; a/3: readiness",
            Refusal::TooManyInstances { found: 3, limit: 2 },
        ),
        (
            "a/1: readiness liveness readiness=x readiness=y",
            Refusal::TooManyProbes { found: 4, limit: 3 },
        ),
        (
            "a/1: readiness; a/1: liveness",
            Refusal::DuplicateInstance {
                component: key("a"),
                instance: InstanceName::new("1").unwrap(),
            },
        ),
    ] {
        assert_eq!(world.announce(&two, text), refused(refusal));
    }
    let twice = |instance: &mut AnnouncedInstance| instance.probes[1].id = ProbeId(0);
    let answer = world.announce_with(&two, "a/1: readiness liveness", twice);
    assert_eq!(answer, refused(Refusal::DuplicateProbe(0)));
    assert_eq!(
        world.announce(&two, "a/1: readiness liveness startup"),
        Answer::Done
    );
    assert_eq!(
        world.announce(&one, "web/web-1: readiness; web/web-2: readiness"),
        Answer::Done
    );
    assert_eq!(
        world.announce(&one, "web/web-1: readiness liveness; web/web-2: readiness"),
        refused(Refusal::TooManyProbesInAll { limit: 5 })
    );
    assert_eq!(world.health("web"), "Healthy Passing");
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing_but_times() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    world.told.clear();
    for skew in [-1_000_000, 1_000_000_000, 0] {
        world.skew = skew;
        world.wait(20);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    world.expect(&[]);
    world.report(&mut agent, "0F");
    let view = world.store.component(&key("web")).unwrap();
    assert_eq!(view.component.since, world.now().wall);
}

#[test]
fn an_absurd_age_does_no_harm() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    let mut transitions = records("0F", 1);
    transitions[0].age_ms = u64::MAX;
    transitions[0].latency_us = u64::MAX;
    transitions[0].streak = i32::MIN;
    world.apply(Event::Reported {
        session: agent.session,
        report: Report {
            seq: Seq(1),
            transitions,
            ..Report::default()
        },
    });
    assert_eq!(world.health("web"), "Unhealthy ReadinessFailed");
}

#[test]
fn records_of_unknown_probes_are_skipped() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    assert_eq!(
        world.report(&mut agent, "7F"),
        Answer::Applied {
            ack: Seq(1),
            resync: false
        }
    );
    assert_eq!(world.health("web"), "Healthy Passing");
}

#[test]
fn probes_with_any_ids_in_any_order_are_found() {
    let mut world = World::new();
    let mut agent = world.connect("laptop", 1);
    let ids = [900, 5, 70];
    let mut next = ids.into_iter();
    world.announce_with(
        &agent,
        "web/web-1: readiness; db/db-1: readiness; cart/cart-1: readiness",
        |instance| {
            instance.probes[0].id = ProbeId(next.next().unwrap());
        },
    );
    world.states(&mut agent, "900P 5F 70P");
    assert_eq!(world.health("web"), "Healthy Passing");
    assert_eq!(world.health("db"), "Unhealthy ReadinessFailed");
    assert_eq!(world.health("cart"), "Healthy Passing");
}

#[test]
fn summaries_add_up_and_change_no_health() {
    let mut world = World::new();
    let agent = world.agent("laptop", "web/web-1: readiness", "0P");
    let summary = Summary {
        probe: ProbeId(0),
        streak: 10,
        runs: 10,
        failures: 1,
        errors: 2,
        min_us: 5,
        avg_us: 6,
        max_us: u64::MAX,
        p99_us: 8,
    };
    let before = world.store.snapshot();
    for _ in 0..2 {
        let report = Report {
            summaries: vec![summary],
            ..Report::default()
        };
        world.apply(Event::Reported {
            session: agent.session,
            report,
        });
    }
    assert!(
        Arc::ptr_eq(&before, &world.store.snapshot()),
        "counters are asked for, not published"
    );
    let view = world.store.component(&key("web")).unwrap();
    let runs = view.running[0].probes[0].runs.unwrap();
    assert_eq!(
        (runs.total, runs.failures, runs.errors, runs.max_us),
        (20, 2, 4, u32::MAX)
    );
    assert_eq!(view.running[0].probes[0].streak, 10);
}

#[test]
fn a_component_shows_its_instances_and_probes() {
    let mut world = World::new();
    let mut agent = world.agent(
        "laptop",
        "web/web-2: readiness; web/web-1: liveness readiness",
        "0P 1P 2P",
    );
    world.wait(1);
    let mut transitions = agent.transitions("2F");
    transitions[0].output = "line one\nline two".into();
    world.apply(Event::Reported {
        session: agent.session,
        report: Report {
            seq: Seq(1),
            transitions,
            ..Report::default()
        },
    });
    let view = world.store.component(&key("web")).unwrap();
    assert_eq!(view.component.instances.total, 2);
    let names: Vec<String> = view
        .running
        .iter()
        .map(|instance| format!("{} {} {}", instance.name, instance.health, instance.message))
        .collect();
    assert_eq!(
        names,
        [
            "web-1 Unhealthy readiness tcp web:1 on web-1: connection refused",
            "web-2 Healthy "
        ]
    );
    let failing = &view.component.failing[0];
    assert_eq!(
        (failing.instance.as_str(), failing.agent.as_str()),
        ("web-1", "laptop")
    );
    assert_eq!(failing.probe.output, "line one\nline two");
    assert_eq!(
        (failing.probe.handler.as_str(), failing.probe.since),
        ("tcpSocket", Some(world.now().wall))
    );
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["running"][0]["probes"][1]["type"], "readiness");
    assert_eq!(json["kind"], "Component");
    assert_eq!(
        serde_json::from_value::<crate::view::ComponentView>(json).unwrap(),
        view
    );
}

#[test]
fn a_streak_below_the_threshold_is_shown() {
    let mut world = World::new();
    let mut agent = world.agent("laptop", "web/web-1: readiness", "0P");
    let mut states = records("0P", 0);
    states[0].streak = -2;
    states[0].message = "connection refused".into();
    let report = Report {
        states,
        ..Report::default()
    };
    world.apply(Event::Reported {
        session: agent.session,
        report,
    });
    let probe = |world: &World| world.store.component(&key("web")).unwrap().running[0].probes[0].clone();
    assert_eq!(
        (probe(&world).attempt.as_deref(), probe(&world).message.as_str()),
        (Some("2/3"), "connection refused")
    );
    assert_eq!(world.health("web"), "Healthy Passing");
    world.report(&mut agent, "0F");
    assert_eq!(probe(&world).attempt, None);
}

#[test]
fn probes_are_found_to_be_run() {
    let mut world = World::new();
    let agent = world.agent(
        "laptop",
        "web/web-2: readiness; web/web-1: liveness readiness",
        "0P 1P 2P",
    );
    let find = |world: &World, component: &str, probe: Option<&str>| {
        let probe = probe.map(|probe| ProbeName::new(probe).unwrap());
        world
            .store
            .probe_targets(&key(component), probe.as_ref())
            .map(|found| {
                found
                    .iter()
                    .map(|target| (target.id.0, target.instance.to_string()))
                    .collect::<Vec<_>>()
            })
    };
    assert_eq!(
        find(&world, "web", Some("readiness")),
        Ok(vec![(2, "web-1".into()), (0, "web-2".into())])
    );
    assert_eq!(find(&world, "web", None).map(|found| found.len()), Ok(3));
    assert_eq!(find(&world, "web", Some("disk")), Err(NoTarget::NoProbe));
    assert_eq!(find(&world, "db", None), Err(NoTarget::NoComponent));
    world.apply(Event::Closed {
        session: agent.session,
    });
    assert_eq!(find(&world, "web", None), Err(NoTarget::NoAgent));
    assert_eq!(find(&world, "web", Some("disk")), Err(NoTarget::NoProbe));
}
