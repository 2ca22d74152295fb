//! Scopes: who belongs to them, what they add up to, and when they are rebuilt.

use super::*;

const SHOP: &str = r#"{"workloadRefs": [
    {"kind": "Component", "name": "web", "dependsOn": ["db"]},
    {"kind": "Component", "name": "cart", "dependsOn": ["db"]},
    {"kind": "Component", "name": "db"}]}"#;

#[test]
fn the_root_cause_is_named_in_words() {
    let mut world = World::new();
    world.configure(&[("shop", SHOP)], &[]);
    let mut agent = world.agent(
        "laptop",
        "web/laptop: readiness; cart/laptop: readiness; db/laptop: readiness",
        "0P 1P 2P",
    );
    assert_eq!(world.scope("shop").health, Health::Healthy);
    world.told.clear();
    world.report(&mut agent, "2F");
    world.report(&mut agent, "0F");
    world.expect(&[
        "db Healthy → Unhealthy (ReadinessFailed): readiness tcp db:1 on laptop: connection refused",
        "scope shop Healthy → Unhealthy (PolicyNotMet): 2 of 3 available, 3 needed: db: readiness tcp db:1 on laptop: \
         connection refused",
        "web Healthy → Unhealthy (ReadinessFailed): readiness tcp web:1 on laptop: connection refused",
    ]);
    let shop = world.scope("shop");
    assert_eq!(
        shop.root_cause.as_deref(),
        Some("db: readiness tcp db:1 on laptop: connection refused")
    );
    assert_eq!((shop.available.as_str(), shop.alarming), ("1/3", true));
    let rows: Vec<String> = shop
        .components
        .iter()
        .map(|member| {
            let cause = member.caused_by.as_deref().unwrap_or("-");
            format!("{} {} {cause}", member.component.name, member.component.health)
        })
        .collect();
    assert_eq!(rows, ["db Unhealthy -", "web Unhealthy db", "cart Healthy -"]);
    assert_eq!(
        shop.components[0].component.failing[0].probe.message,
        "connection refused"
    );
    assert_eq!(&*shop.components[1].depends_on[0], "db");
    world.told.clear();
    world.report(&mut agent, "2P");
    world.report(&mut agent, "0P");
    assert_eq!(world.scope("shop").health, Health::Healthy);
    assert_eq!(world.scope("shop").root_cause, None);
}

#[test]
fn what_is_absent_is_starting_and_then_missing() {
    let mut world = World::fresh(StoreConfig::default());
    world.configure(
        &[(
            "shop",
            r#"{"workloadRefs": [{"kind": "Component", "name": "web"},
                {"kind": "Component", "name": "db"},
                {"kind": "HealthScope", "name": "payments"},
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart"}]}"#,
        )],
        &[("db", &[])],
    );
    let rows = |world: &World| -> Vec<String> {
        let members = world.scope("shop").components;
        members
            .iter()
            .map(|member| {
                let component = &member.component;
                format!(
                    "{}/{} {} {}",
                    component.kind, component.name, component.health, component.reason
                )
            })
            .collect()
    };
    assert_eq!(
        rows(&world),
        [
            "HealthScope/payments Unhealthy NotFound",
            "Component/db Unknown Starting",
            "Component/web Unknown Starting",
            "Deployment/cart Unknown KindNotAvailable",
        ]
    );
    world.wait(30);
    assert_eq!(
        rows(&world),
        [
            "Component/web Unhealthy NotFound",
            "HealthScope/payments Unhealthy NotFound",
            "Component/db Unknown NoAgent",
            "Deployment/cart Unknown KindNotAvailable",
        ]
    );
    world.expect(&[
        "web Unknown → Unhealthy (NotFound): no file declares a Component called web and no agent reports about it",
    ]);
    let mut agent = world.agent("a", "web/1: readiness; db/1: readiness", "0P 1P");
    world.report(&mut agent, "");
    assert_eq!(world.scope("shop").available, "2/4");
    // The agent does not watch it any more, but the scope still names it.
    world.announce(&agent, "");
    assert_eq!(world.health("web"), "Unhealthy NotFound");
    assert_eq!(world.health("db"), "Unknown NoAgent");
}

#[test]
fn members_are_found_by_labels() {
    let mut world = World::new();
    world.configure(
        &[
            ("by-label", r#"{"selector": {"matchLabels": {"app": "shop"}}}"#),
            (
                "by-rule",
                r#"{"selector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}}"#,
            ),
            ("everything", r#"{"selector": {}}"#),
            ("named", "{}"),
        ],
        &[("declared", &[("app", "shop")])],
    );
    let members = |world: &World, scope: &str| -> Vec<String> {
        let mut names: Vec<String> = world
            .scope(scope)
            .components
            .iter()
            .map(|member| member.component.name.to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(members(&world, "by-label"), ["declared"]);
    let agent = world.connect("a", 1);
    let label = |world: &mut World, labels: &[(&str, &str)]| {
        world.announce_with(&agent, "web/1: readiness", |instance| {
            instance.labels = labels
                .iter()
                .map(|&(key, value)| (key.into(), value.into()))
                .collect();
        });
    };
    label(&mut world, &[]);
    assert_eq!(members(&world, "everything"), ["declared", "web"]);
    assert_eq!(members(&world, "by-label"), ["declared"]);
    label(&mut world, &[("app", "shop"), ("tier", "front")]);
    assert_eq!(members(&world, "by-label"), ["declared", "web"]);
    assert_eq!(members(&world, "by-rule"), ["web"]);
    label(
        &mut world,
        &[("healthscope.core.oam.dev/name", "named"), ("tier", "front")],
    );
    assert_eq!(members(&world, "by-label"), ["declared"]);
    assert_eq!(members(&world, "by-rule"), ["web"]);
    assert_eq!(members(&world, "named"), ["web"]);
    label(&mut world, &[("healthscope.core.oam.dev/named", "true")]);
    assert_eq!(members(&world, "named"), ["web"]);
    assert_eq!(members(&world, "by-rule"), [""; 0]);
    let scopes = world.store.component(&key("web")).unwrap().scopes;
    assert_eq!(
        scopes.iter().map(Name::as_str).collect::<Vec<_>>(),
        ["everything", "named"]
    );
    world.announce(&agent, "");
    assert_eq!(members(&world, "named"), [""; 0]);
    assert_eq!(world.scope("named").reason, Reason::NO_COMPONENTS);
}

#[test]
fn scopes_of_other_namespaces_select_nothing_here() {
    let mut world = World::new();
    let mut scope = scope_object("all", r#"{"selector": {}}"#);
    scope.metadata.namespace = Some("prod".into());
    world.apply(Event::Configured(Configuration {
        scopes: vec![Arc::new(scope)],
        unreadable: Vec::new(),
        components: Vec::new(),
    }));
    world.agent("a", "web/1: readiness", "0P");
    assert!(
        world
            .store
            .snapshot()
            .scopes
            .values()
            .all(|entry| entry.view.components.is_empty())
    );
}

#[test]
fn members_by_label_say_what_they_depend_on() {
    let mut world = World::new();
    world.configure(&[("all", r#"{"selector": {}}"#)], &[]);
    let mut agent = world.connect("a", 1);
    world.announce_with(
        &agent,
        "web/1: readiness; db/1: readiness; cart/1: readiness",
        |instance| {
            instance.depends_on = match instance.component.name.as_str() {
                "web" => vec!["Component/db".into()],
                "cart" => vec!["nothing".into(), "a b".into()],
                _ => Vec::new(),
            };
        },
    );
    world.states(&mut agent, "0F 1F 2P");
    let all = world.scope("all");
    assert_eq!(all.root_causes, ["db"]);
    assert_eq!(
        all.notes,
        [
            "Component/cart says that it depends on \"a b\", which is neither name nor Kind/name",
            "cart depends on nothing, which is not a member",
        ]
    );
    let ready = healthscope_crd::condition::find(&all.conditions, "Ready").unwrap();
    assert_eq!(
        (
            ready.status.as_str(),
            ready.message.contains("which is not a member")
        ),
        ("True", true)
    );

    world.announce_with(
        &agent,
        "web/1: readiness; db/1: readiness; cart/1: readiness",
        |instance| {
            instance.depends_on = match instance.component.name.as_str() {
                "web" => vec!["db".into()],
                "db" => vec!["cart".into()],
                _ => vec!["web".into()],
            };
        },
    );
    let all = world.scope("all");
    assert_eq!(
        all.stalled,
        ["members depend on each other in a cycle: cart → web → db → cart"]
    );
    assert_eq!(
        healthscope_crd::condition::find(&all.conditions, "Stalled")
            .unwrap()
            .status,
        "True"
    );
    assert_eq!(
        healthscope_crd::condition::find(&all.conditions, "Ready")
            .unwrap()
            .status,
        "False"
    );
}

#[test]
fn an_ambiguous_dependency_stalls_with_the_choices() {
    let mut world = World::new();
    world.configure(
        &[
            (
                "all",
                r#"{"selector": {}, "workloadRefs": [{"kind": "HealthScope", "name": "db"},
                {"kind": "Component", "name": "web", "dependsOn": ["db"]}]}"#,
            ),
            ("db", "{}"),
        ],
        &[],
    );
    assert!(world.scope("all").stalled.is_empty());
    world.agent("a", "web/1: readiness; db/1: readiness", "0P 1P");
    let all = world.scope("all");
    assert_eq!(
        all.stalled,
        ["web depends on db, which could be any of Component/db, HealthScope/db; write one of these"]
    );
    assert_eq!(all.health, Health::Healthy);
}

#[test]
fn scopes_nest_and_are_rolled_up_in_one_publication() {
    let mut world = World::new();
    world.configure(
        &[
            (
                "a-top",
                r#"{"workloadRefs": [{"kind": "HealthScope", "name": "b-middle"}]}"#,
            ),
            (
                "b-middle",
                r#"{"workloadRefs": [{"kind": "HealthScope", "name": "c-bottom"}]}"#,
            ),
            ("c-bottom", r#"{"selector": {}}"#),
        ],
        &[],
    );
    let mut agent = world.agent("laptop", "db/laptop: readiness", "0P");
    assert_eq!(world.scope("a-top").health, Health::Healthy);
    world.told.clear();
    world.report(&mut agent, "0F");
    world.expect(&[
        "db Healthy → Unhealthy (ReadinessFailed): readiness tcp db:1 on laptop: connection refused",
        "scope c-bottom Healthy → Unhealthy (PolicyNotMet): 0 of 1 available, 1 needed: db: readiness tcp db:1 on \
         laptop: connection refused",
        "scope b-middle Healthy → Unhealthy (PolicyNotMet): 0 of 1 available, 1 needed: c-bottom: db: readiness tcp \
         db:1 on laptop: connection refused",
        "scope a-top Healthy → Unhealthy (PolicyNotMet): 0 of 1 available, 1 needed: b-middle: c-bottom: db: readiness \
         tcp db:1 on laptop: connection refused",
    ]);
    world.configure(
        &[(
            "a-top",
            r#"{"workloadRefs": [{"kind": "HealthScope", "name": "b-middle"}]}"#,
        )],
        &[],
    );
    assert_eq!(
        world.scope("a-top").root_cause.as_deref(),
        Some("b-middle: there is no HealthScope called b-middle")
    );
}

#[test]
fn scopes_in_a_cycle_are_unknown_and_say_it() {
    let mut world = World::new();
    let nest = |name: &str| format!(r#"{{"workloadRefs": [{{"kind": "HealthScope", "name": "{name}"}}]}}"#);
    world.configure(
        &[
            ("a", &nest("b")),
            ("b", &nest("c")),
            ("c", &nest("a")),
            ("outside", &nest("a")),
            ("fine", "{}"),
        ],
        &[],
    );
    for name in ["a", "b", "c"] {
        let view = world.scope(name);
        assert_eq!((view.health, &view.reason), (Health::Unknown, &Reason::CYCLE));
        assert_eq!(
            view.message,
            "scopes contain each other in a cycle: a → b → c → a"
        );
        assert_eq!(
            view.stalled,
            ["scopes contain each other in a cycle: a → b → c → a"]
        );
    }
    assert_eq!(world.scope("outside").health, Health::Unknown);
    assert!(world.scope("outside").stalled.is_empty());
    assert_eq!(world.scope("fine").health, Health::Healthy);
    world.configure(
        &[
            ("a", &nest("b")),
            ("b", &nest("c")),
            ("c", "{}"),
            ("outside", &nest("a")),
        ],
        &[],
    );
    assert_eq!(world.scope("outside").health, Health::Healthy);
}

#[test]
fn only_what_is_concerned_is_rebuilt() {
    let mut world = World::new();
    world.configure(
        &[
            (
                "one",
                r#"{"workloadRefs": [{"kind": "Component", "name": "web"}]}"#,
            ),
            (
                "other",
                r#"{"workloadRefs": [{"kind": "Component", "name": "db"}]}"#,
            ),
        ],
        &[],
    );
    let mut agent = world.agent("a", "web/1: readiness; db/1: readiness", "0P 1P");
    let before = world.store.snapshot();
    world.rebuilt.clear();
    world.report(&mut agent, "0F");
    assert_eq!(world.rebuilt, ["one"]);
    let after = world.store.snapshot();
    for (key, entry) in before.scopes.iter() {
        assert_eq!(
            Arc::ptr_eq(entry, &after.scopes[key]),
            key.name.as_str() == "other"
        );
    }
    // Passing again and again says nothing new.
    world.report(&mut agent, "1P");
    world.apply(Event::Alive {
        session: agent.session,
    });
    assert_eq!(world.rebuilt, ["one"]);
    // A file that says the same says nothing new.
    world.configure(
        &[
            (
                "one",
                r#"{"workloadRefs": [{"kind": "Component", "name": "web"}]}"#,
            ),
            (
                "other",
                r#"{"workloadRefs": [{"kind": "Component", "name": "db"}]}"#,
            ),
        ],
        &[],
    );
    assert_eq!(world.store.snapshot().scopes.len(), 2);
    assert_eq!(world.rebuilt, ["one"]);
}

#[test]
fn a_scope_that_is_gone_is_said_to_be_gone() {
    let mut world = World::new();
    world.configure(&[("one", "{}"), ("two", "{}")], &[]);
    world.store.apply(
        world.now(),
        Event::Configured(Configuration {
            scopes: vec![Arc::new(scope_object("two", "{}"))],
            unreadable: Vec::new(),
            components: Vec::new(),
        }),
    );
    let changes = world.store.publish(world.now());
    assert_eq!(
        changes
            .removed
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["default/one"]
    );
    assert_eq!(changes.snapshot.scopes.len(), 1);
    assert!(world.store.publish(world.now()).is_empty());
}

#[test]
fn an_invalid_edit_keeps_the_last_good_spec() {
    let mut world = World::new();
    let good = r#"{"workloadRefs": [{"kind": "Component", "name": "web"}]}"#;
    let bad = r#"{"workloadRefs": [], "policy": {"minAvailable": 300}}"#;
    world.configure(&[("shop", good), ("new", bad)], &[]);
    let mut agent = world.agent("a", "web/1: readiness", "0P");
    world.configure(&[("shop", bad), ("new", bad)], &[]);
    world.report(&mut agent, "0F");
    let shop = world.scope("shop");
    assert_eq!((shop.health, shop.components.len()), (Health::Unhealthy, 1));
    assert_eq!(
        shop.stalled,
        ["spec.policy.minAvailable: 300 is not a percentage: 0 to 100"]
    );
    let new = world.scope("new");
    assert_eq!(
        (new.health, new.reason.as_str()),
        (Health::Unknown, "InvalidSpec")
    );
    world.configure(&[("shop", good), ("new", good)], &[]);
    assert!(world.scope("shop").stalled.is_empty());
    assert_eq!(world.scope("new").health, Health::Unhealthy);
}

#[test]
fn recovery_is_shown_when_it_has_lasted() {
    let mut world = World::new();
    world.configure(
        &[("all", r#"{"selector": {}, "policy": {"minHealthySeconds": 30}}"#)],
        &[],
    );
    let mut agent = world.agent("laptop", "db/laptop: readiness", "0P");
    world.told.clear();
    world.report(&mut agent, "0F");
    world.wait(1);
    world.report(&mut agent, "0P");
    let all = world.scope("all");
    assert_eq!(
        (all.health, all.reason.as_str()),
        (Health::Unhealthy, "PolicyNotMet")
    );
    assert_eq!(
        all.root_cause.as_deref(),
        Some("db: readiness tcp db:1 on laptop: connection refused")
    );
    let recovering = all.recovering.unwrap();
    assert_eq!(recovering.health, Health::Healthy);
    assert_eq!((recovering.at.as_second() - world.now().wall.as_second()), 30);
    world.wait(15);
    world.apply(Event::Alive {
        session: agent.session,
    });
    world.wait(14);
    assert_eq!(world.scope("all").health, Health::Unhealthy);
    world.told.clear();
    world.wait(1);
    world.expect(&["scope all Unhealthy → Healthy (AllHealthy)"]);
    assert_eq!(world.scope("all").recovering, None);
}

#[test]
fn maintenance_silences_until_it_ends_by_itself() {
    let mut world = World::new();
    world.configure(
        &[(
            "all",
            r#"{"selector": {}, "maintenance": {"until": "2026-01-01T00:10:00Z", "reason": "db upgrade"}}"#,
        )],
        &[],
    );
    let mut agent = world.agent("laptop", "db/laptop: readiness", "0P");
    world.report(&mut agent, "0F");
    let all = world.scope("all");
    assert_eq!((all.health, all.alarming), (Health::Unhealthy, false));
    let maintenance = all.maintenance.unwrap();
    assert_eq!(
        (maintenance.active, maintenance.reason.as_str()),
        (true, "db upgrade")
    );
    let last = world.store.snapshot().transitions.last().cloned().unwrap();
    assert!(matches!(
        last.change,
        Change::Scope {
            maintenance: true,
            ..
        }
    ));
    for _ in 0..24 {
        world.wait(20);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    assert!(world.scope("all").maintenance.unwrap().active);
    for _ in 0..2 {
        world.wait(10);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    let all = world.scope("all");
    assert_eq!((all.maintenance.unwrap().active, all.alarming), (false, true));
    // The wall clock is set back.
    world.skew = -3_600;
    for _ in 0..4 {
        world.wait(20);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    assert!(world.scope("all").maintenance.unwrap().active);
}

#[test]
fn flapping_is_a_flag_beside_the_health() {
    let mut world = World::new();
    world.configure(&[("all", r#"{"selector": {}}"#)], &[]);
    let mut agent = world.agent("laptop", "db/laptop: readiness", "0P");
    for state in ["0F", "0P", "0F*", "0P*", "0F*", "0P*"] {
        world.report(&mut agent, state);
        world.wait(1);
    }
    let all = world.scope("all");
    assert_eq!((all.health, all.flapping), (Health::Healthy, true));
    assert!(all.components[0].component.flapping);
    world.report(&mut agent, "0P");
    assert!(!world.scope("all").components[0].component.flapping);
    for _ in 0..15 {
        world.wait(10);
        world.apply(Event::Alive {
            session: agent.session,
        });
    }
    assert!(!world.scope("all").flapping);
}

#[test]
fn transitions_are_numbered_and_kept_for_those_who_missed_them() {
    let mut world = World::new();
    world.configure(&[("all", r#"{"selector": {}}"#)], &[]);
    let mut agent = world.agent("laptop", "db/laptop: readiness", "0P");
    let seen = world.store.snapshot().last_transition;
    for _ in 0..crate::KEPT_TRANSITIONS {
        world.report(&mut agent, "0F");
        world.report(&mut agent, "0P");
    }
    let snapshot = world.store.snapshot();
    assert_eq!(snapshot.transitions.len(), crate::KEPT_TRANSITIONS);
    let missed = world.store.transitions_after(seen);
    assert_eq!(missed.len(), 2 * crate::KEPT_TRANSITIONS);
    assert!(missed.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(missed.last().unwrap().id, snapshot.last_transition);
    assert!(world.store.transitions_after(snapshot.last_transition).is_empty());
    let json = serde_json::to_value(&**missed.last().unwrap()).unwrap();
    assert_eq!(
        (&json["level"], &json["from"], &json["to"]),
        (&"scope".into(), &"Unhealthy".into(), &"Healthy".into())
    );
    assert_eq!(
        serde_json::from_value::<TransitionView>(json).unwrap(),
        **missed.last().unwrap()
    );
}

#[test]
fn the_object_is_what_kubernetes_would_have() {
    let mut world = World::new();
    world.configure(&[("shop", SHOP)], &[]);
    let mut agent = world.agent(
        "laptop",
        "web/laptop: readiness; cart/laptop: readiness; db/laptop: readiness",
        "0P 1P 2P",
    );
    world.report(&mut agent, "2F");
    let snapshot = world.store.snapshot();
    let entry = snapshot.scopes.values().next().unwrap();
    let object = serde_json::to_value(entry.to_object()).unwrap();
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&"core.oam.dev/v1beta1".into(), &"HealthScope".into())
    );
    let status = &object["status"];
    assert_eq!(status["health"], "Unhealthy");
    assert_eq!(status["available"], "2/3");
    assert_eq!(
        status["rootCause"],
        "db: readiness tcp db:1 on laptop: connection refused"
    );
    assert_eq!(status["summary"]["unhealthy"], 1);
    assert_eq!(status["components"][0]["name"], "db");
    assert_eq!(
        status["components"][0]["apiVersion"],
        "healthscope.core.oam.dev/v1beta1"
    );
    assert_eq!(status["conditions"][2]["type"], "Available");
    assert_eq!(status["conditions"][2]["status"], "False");
    let view = serde_json::to_value(&entry.view).unwrap();
    assert_eq!(serde_json::from_value::<ScopeView>(view).unwrap(), entry.view);
}
