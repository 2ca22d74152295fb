use {super::*, proptest::prelude::*, serde_json::json};

fn database() -> Value {
    json!({
        "apiVersion": "db.example.org/v1", "kind": "Database",
        "metadata": {"name": "db", "labels": {"tier": "a"}, "generation": 3, "managedFields": [{"x": 1}]},
        "spec": {"replicas": 3, "names": ["a", "b"]},
        "status": {
            "phase": "Available", "ready": 3, "load": 0.5, "big": 18_446_744_073_709_551_615_u64,
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "Synced", "status": "False", "message": "no quota"},
            ],
        },
    })
}

fn evaluate(expression: &str, object: &Value) -> Result<bool, String> {
    HealthyWhen::compile(expression)?.evaluate(object)
}

#[test]
fn rules_say_yes_or_no() {
    #[track_caller]
    fn check(expression: &str, expected: bool) {
        assert_eq!(evaluate(expression, &database()), Ok(expected), "{expression}");
    }
    check("true", true);
    check("object.status.phase == 'Available'", true);
    check("object.status.phase in ['Available', 'Standby']", true);
    check("object.status.ready >= object.spec.replicas", true);
    check("object.status.ready + 1 == 4 && object.status.load < 1.0", true);
    check("object.status.big > 1u", true);
    check(
        "has(object.status.missing) && object.status.missing.deep == 1",
        false,
    );
    check("!has(object.status.missing) || object.status.missing > 2", true);
    check("object.metadata.labels['tier'] == 'a'", true);
    check("'tier' in object.metadata.labels", true);
    check("size(object.status.conditions) == 2", true);
    check(
        "object.status.phase.startsWith('Avail') && object.status.phase.size() > 3",
        true,
    );
    check(
        "object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')",
        true,
    );
    check("object.status.conditions.all(c, c.status == 'True')", false);
    check("object.status.conditions.exists_one(c, c.status == 'True')", true);
    check(
        "size(object.status.conditions.filter(c, c.status != 'True')) == 1",
        true,
    );
    check(
        "object.status.conditions.all(c, object.spec.names.exists(n, n != c.type))",
        true,
    );
    check("object.spec.names.all(n, n in ['a', 'b'])", true);
    // What no rule is about is not there.
    check("has(object.metadata.managedFields)", false);
    check("object.spec.replicas > 2 ? object.status.ready > 2 : false", true);
}

#[test]
fn what_cannot_be_evaluated_says_what_to_do() {
    #[track_caller]
    fn check(expression: &str, object: &Value, expected: &str) {
        let error = evaluate(expression, object).expect_err(expression);
        assert!(error.contains(expected), "{expression}: {error}");
    }
    let fresh = json!({"kind": "Database", "spec": {"names": []}});
    check(
        "object.status.phase == 'Available'",
        &fresh,
        "object.status: no such key; guard it with has(object.status) && ...",
    );
    let started = json!({"status": {}});
    check(
        "object.status.phase == 'Available'",
        &started,
        "object.status.phase: no such key; guard it with has(object.status.phase) && ...",
    );
    check(
        "object.spec.names.exists(n, n.x == 1) || object['y'] == 1",
        &fresh,
        "no such key: y; guard it with has(...)",
    );
    check("object.spec.names[3] == 'a'", &database(), "a list is shorter");
    check(
        "object.status.phase",
        &database(),
        "it gives a string; it must be true or false",
    );
    check("object.status", &database(), "it gives a map;");
    check("object.status.phase > 3", &database(), "no matching overload");
    check("object.status.phase.phase == 3", &database(), "");
    check("object.status.ready / 0 == 1", &database(), "divides by zero");
    check(
        "9223372036854775807 + object.status.ready > 0",
        &database(),
        "too large",
    );
    check("object.spec.all(x, x.y)", &json!({"spec": "text"}), "");
    let deep = (0..100).fold(json!(1), |deep, _| json!({"a": deep}));
    check("true", &deep, "nested more than 64 deep");
    let large = json!({"text": "x".repeat(300 * 1024)});
    check("true", &large, "larger than 256 KiB");
    let long = json!({"list": vec![1; 2000]});
    check(
        "object.list.all(a, object.list.exists(b, a == b))",
        &long,
        "up to 2000 entries in a list) is too large for this rule's loops",
    );
    assert_eq!(evaluate("object.list.all(a, a == 1)", &long), Ok(true));
    // Every round would look through the whole text.
    let text = json!({"list": vec![1; 100], "text": "x".repeat(200 * 1024), "key": ["text"]});
    for rule in [
        "object.list.all(a, !object.text.contains('y'))",
        "object.list.all(a, object.text == object['text'])",
        "object.list.all(a, [object.text, a] == [object.text, a])",
        "object.list.all(a, (a == 1 ? object.text : 'z').contains('y'))",
        "object.list.all(a, size(object[object.key[0]]) > a)",
        "object.list.all(a, object.text in [object.text])",
    ] {
        check(rule, &text, "is too large for this rule's loops");
    }
    assert_eq!(
        evaluate("object.list.all(a, object.text != string(a))", &text),
        Ok(true)
    );
    assert_eq!(evaluate("!object.text.contains('y')", &text), Ok(true));
}

#[test]
fn what_is_not_bounded_is_refused() {
    #[track_caller]
    fn check(expression: &str, expected: &str) {
        let error = HealthyWhen::compile(expression).expect_err(expression);
        assert!(error.contains(expected), "{expression}: {error}");
        assert!(!error.contains('\n'));
    }
    check("", "not CEL");
    check("object.status.phase =", "not CEL");
    check("object. status . == 1", "not CEL");
    check(&format!("'{}' == ''", "x".repeat(1024)), "at most 1024");
    check(&"(".repeat(1000), "nested more than 20");
    check(
        &format!("{}1{}", "[".repeat(40), "]".repeat(40)),
        "nested more than 20",
    );
    check(&format!("object{} == 1", ".a".repeat(400)), "nested more than 20");
    check(&format!("1{} == 1", "+1".repeat(400)), "");
    check(&format!("true{}", "?true:true".repeat(80)), "");
    check(&format!("true{}", " || true".repeat(120)), "more than 200 parts");
    check("status.phase == 'x'", "names status; the only name is object");
    check("object.a.map(x, x + x) == []", "map, which is not supported");
    check("object.a.map(x, x > 1, [x]) == []", "map, which is not supported");
    check("object.a.matches('(a+)+$')", "matches, which is not supported");
    check("now() > object.a", "now, which is not supported");
    check(
        "timestamp(object.a) > timestamp(object.b)",
        "timestamp, which is not supported",
    );
    check("Type{a: 1} == object", "");
    check(
        "object.a.all(a, object.a.all(b, object.a.all(c, c == a)))",
        "loops nested more than 2 deep",
    );
    check("object.a.exists(x, x + 'b' == 'ab')", "adds within a loop");
    check(
        &format!("object.a{} == 1", " + object.a".repeat(12)),
        "adds more than 8 times",
    );
}

#[test]
fn an_unmet_rule_is_told_in_the_objects_own_words() {
    #[track_caller]
    fn check(rule: &str, object: &Value, health: Health, reason: &Reason, message: &str) {
        let rule = HealthyWhen::compile(rule).expect("a rule");
        let found = rule.verdict("Database", object);
        assert_eq!(
            (found.health, &found.reason, found.message.as_str()),
            (health, reason, message)
        );
    }
    let rule = "object.status.phase == 'Available'";
    check(rule, &database(), Health::Healthy, &Reason::PASSING, "");
    check(
        rule,
        &json!({"status": {"phase": "Failed"}}),
        Health::Unhealthy,
        &Reason::RULE_NOT_MET,
        "Database phase is Failed",
    );
    let stopped = json!({"conditions": [{"type": "Ready", "status": "False", "message": "disk is full"}]});
    check(
        "object.status.conditions.all(c, c.status == 'True')",
        &json!({"status": stopped}),
        Health::Unhealthy,
        &Reason::RULE_NOT_MET,
        "Database is not ready: disk is full",
    );
    check(
        "object.spec.on",
        &json!({"spec": {"on": false}}),
        Health::Unhealthy,
        &Reason::RULE_NOT_MET,
        "Database does not meet healthyWhen: object.spec.on",
    );
    check(
        rule,
        &json!({}),
        Health::Unknown,
        &Reason::RULE_FAILED,
        "healthyWhen cannot be evaluated: object.status: no such key; guard it with has(object.status) && ...",
    );
}

/// A server's threads have 2 MiB; a debug build needs more of it than a release.
#[test]
fn the_worst_rules_fit_on_a_small_stack() {
    let worst = [
        "(".repeat(1000),
        "[".repeat(1000),
        "{1:".repeat(300),
        "!".repeat(1000),
        "-".repeat(1000),
        format!("{}1{}", "[".repeat(20), "]".repeat(20)),
        format!("{}true{}", "(".repeat(20), ")".repeat(20)),
        format!("object{}", ".a".repeat(19)),
        format!("{}true", "!(".repeat(10)) + &")".repeat(10),
        "a?".repeat(500),
        "a.b(".repeat(250),
        "true?true:".repeat(100) + "true",
        "object.a.all(x,".repeat(60),
        "1+".repeat(500) + "1",
        "'\\".repeat(500),
    ];
    let deep = (0..60).fold(json!(1), |deep, _| json!({"a": deep}));
    let run = move || {
        for expression in &worst {
            // Either outcome is fine; ending is what counts.
            if let Ok(rule) = HealthyWhen::compile(expression) {
                let _ = rule.evaluate(&deep);
            }
        }
    };
    std::thread::Builder::new()
        .stack_size(1024 * 1024)
        .spawn(run)
        .expect("a thread")
        .join()
        .expect("no panic");
}

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Expressions that mostly parse.
fn arbitrary_expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "object(\\.[a-c]){0,3}",
        "object\\[('a'|1|-1|1u)\\]",
        "-?[0-9]{1,20}u?",
        "[0-9]{1,3}\\.[0-9]",
        "'[a-c]{0,3}'",
        Just("x".to_owned()),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("b'\\xff'".to_owned()),
    ];
    leaf.prop_recursive(5, 30, 3, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            (
                pair,
                prop::sample::select(vec![
                    "+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "in",
                ])
            )
                .prop_map(|((a, b), operator)| format!("({a} {operator} {b})")),
            (
                inner.clone(),
                prop::sample::select(vec!["-", "!", "size", "int", "uint", "double", "string", "type"])
            )
                .prop_map(|(a, function)| format!("{function}({a})")),
            (
                inner.clone(),
                inner.clone(),
                prop::sample::select(vec!["all", "exists", "exists_one", "filter", "map"])
            )
                .prop_map(|(a, b, made)| format!("{a}.{made}(x, {b})")),
            (
                inner.clone(),
                inner.clone(),
                prop::sample::select(vec!["contains", "startsWith", "endsWith"])
            )
                .prop_map(|(a, b, function)| format!("{a}.{function}({b})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            inner.clone().prop_map(|a| format!("[{a}, {a}]")),
            inner.clone().prop_map(|a| format!("{{'k': {a}}}")),
            inner.prop_map(|a| format!("has({a}.a)")),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_compiles_or_says_why(text in "\\PC{0,80}") {
        if let Err(error) = HealthyWhen::compile(&text) {
            prop_assert!(!error.is_empty());
        }
    }

    #[test]
    fn any_mix_of_tokens_compiles_or_says_why(
        tokens in prop::collection::vec(
            prop::sample::select(vec![
                "object", ".", "a", "(", ")", "[", "]", "{", "}", ",", "?", ":", "&&", "||", "!", "-", "+", "1", "'x'",
                "has", "all", "map", "exists", "in", "x", "==", "\"", "'", "\\", "r'", "b'", "1e", "0x", "u", "//", "\n",
                "@", "`", "\u{0}", "é",
            ]),
            0..30,
        )
    ) {
        let _ = HealthyWhen::compile(&tokens.concat());
    }

    #[test]
    fn evaluation_never_panics(expression in arbitrary_expression(), object in arbitrary_json()) {
        if let Ok(rule) = HealthyWhen::compile(&expression) {
            let verdict = rule.verdict("Thing", &object);
            prop_assert!(verdict.message.len() <= Verdict::MAX_MESSAGE_BYTES);
        }
    }
}
