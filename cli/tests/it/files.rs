//! Files: good ones, bad ones, and what happens when they change.

use {
    crate::support::{Answer, TIMEOUT, Up, component, healthscope, processes_with, run, save, scope},
    std::{
        fmt::Write as _,
        fs,
        net::TcpListener,
        os::unix::fs::symlink,
        process::Stdio,
        time::{Duration, Instant},
    },
};

const PROBE: &str = "{readinessProbe: {exec: {command: ['true']}, period: 100ms}}";
const HEAD: &str = "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {name: web}\n";

/// Checks a file and compares everything that is said; `f.yaml` stands for its place.
#[track_caller]
fn check(text: impl AsRef<[u8]>, code: i32, said: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.yaml");
    fs::write(&path, text).unwrap();
    let answer = run(&["check", "--quiet", path.to_str().unwrap()]);
    let err = answer.err.replace(path.to_str().unwrap(), "f.yaml");
    let mut expected: Vec<String> = said.iter().map(ToString::to_string).collect();
    if code != 0 {
        let count = said.len();
        expected.push(format!(
            "error: not valid: {count} problem{}",
            if count == 1 { "" } else { "s" }
        ));
    }
    assert_eq!(err.lines().collect::<Vec<_>>(), expected);
    assert_eq!((answer.code, answer.out.as_str()), (code, ""));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    check(
        format!("{HEAD}spec: {{a: [}}\n"),
        1,
        &["f.yaml:4:11: not valid YAML: mismatched bracket '[' closed by '}'"],
    );
    check(
        format!("{HEAD}spec:\n  readinesProbe: {{}}\n"),
        1,
        &[
            "f.yaml:5:3: spec.readinesProbe: there is no field \"readinesProbe\"; did you mean \"readinessProbe\"?",
        ],
    );
    check(
        format!("{HEAD}spec:\n  readinessProbe:\n    tcpSocket: {{port: 80}}\n    periodSeconds: soon\n"),
        1,
        &["f.yaml:7:20: spec.readinessProbe.periodSeconds: must be a whole number"],
    );
    check(
        component("web", PROBE) + &component("web", PROBE),
        1,
        &["f.yaml:8:12: a Component default/web exists already, at f.yaml:3:12"],
    );
    check(
        scope("shop") + "---\n" + &scope("shop"),
        1,
        &["f.yaml:8:12: a HealthScope default/shop exists already, at f.yaml:3:12"],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
        1,
        &["f.yaml:2:1: kind: \"Pod\" is not a kind that files can declare; write Component or HealthScope"],
    );
    check(
        [HEAD.as_bytes(), b"# \xff\n"].concat(),
        1,
        &["f.yaml:4:3: not UTF-8: byte 0xff at offset 85; save the file as UTF-8"],
    );
    check(
        "",
        1,
        &["f.yaml: the file holds no document; write a HealthScope and its Components into it"],
    );
    check(
        "# nothing yet\n---\n",
        1,
        &["f.yaml: the file holds no document; write a HealthScope and its Components into it"],
    );
}

#[test]
fn cycles_are_written_out() {
    check(
        "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: shop}\nspec:\n  workloadRefs:\n  - {kind: \
         Component, name: web, dependsOn: [cart]}\n  - {kind: Component, name: cart, dependsOn: [db]}\n  - {kind: \
         Component, name: db, dependsOn: [web]}\n",
        1,
        &[
            "f.yaml:6:34: spec.workloadRefs[0].dependsOn: members depend on each other in a cycle: web → cart → db → web",
        ],
    );
}

#[test]
fn durations_and_ports_that_cannot_be_are_refused() {
    for (probe, said) in [
        (
            "period: 0s",
            "f.yaml:4:48: spec.readinessProbe.period: must be at least 50ms, is 0s",
        ),
        (
            "period: -5s",
            "f.yaml:4:48: spec.readinessProbe.period: must not be negative, is -5s",
        ),
        (
            "timeout: 9000h",
            "f.yaml:4:48: spec.readinessProbe.timeout: must be at most 7 days, is 32400000s",
        ),
        (
            "periodSeconds: -1",
            "f.yaml:4:48: spec.readinessProbe.periodSeconds: must not be negative, is -1",
        ),
        (
            "period: 1s, periodSeconds: 1",
            "f.yaml:4:48: spec.readinessProbe.period: excludes periodSeconds: write one of them",
        ),
    ] {
        check(
            format!("{HEAD}spec: {{readinessProbe: {{tcpSocket: {{port: 80}}, {probe}}}}}\n"),
            1,
            &[said],
        );
    }
    check(
        format!("{HEAD}spec: {{readinessProbe: {{tcpSocket: {{port: htp}}}}, ports: {{http: 80}}}}\n"),
        1,
        &[
            "f.yaml:4:37: spec.readinessProbe.tcpSocket.port: no port is called \"htp\": the component's ports are http",
        ],
    );
}

#[test]
fn an_alias_bomb_is_refused_at_once() {
    let mut text = format!("{HEAD}a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, inner) in "bcdefghi".chars().zip("abcdefgh".chars()) {
        let _always_fits = writeln!(
            text,
            "{name}: &{name} [{}]",
            vec![format!("*{inner}"); 9].join(",")
        );
    }
    let started = Instant::now();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.yaml");
    fs::write(&path, text).unwrap();
    let answer = run(&["check", path.to_str().unwrap()]);
    assert_eq!(answer.code, 1);
    assert!(
        answer.err.contains("the document grows beyond every limit"),
        "{answer:?}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().to_str().unwrap().to_owned();
    symlink("loop.yaml", directory.path().join("loop.yaml")).unwrap();
    for (path, said) in [
        (
            format!("{empty}/loop.yaml"),
            "cannot be read: Too many levels of symbolic links (os error 40)",
        ),
        (
            format!("{empty}/nothing.yaml"),
            "there is no such file or directory",
        ),
    ] {
        let answer = run(&["check", &path]);
        assert_eq!(answer.code, 1);
        assert_eq!(
            answer.err,
            format!("{path}: {said}\nerror: not valid: 1 problem\n")
        );
    }
    fs::remove_file(directory.path().join("loop.yaml")).unwrap();
    for arguments in [["check", &empty], ["up", &empty]] {
        let answer = run(&arguments);
        assert_eq!(answer.code, 1);
        assert!(
            answer.err.contains(&format!(
                "{empty}: the directory has no file *.json, *.yaml, *.yml\n"
            )),
            "{answer:?}"
        );
    }
}

#[test]
fn standard_input_is_checked_too() {
    let mut child = healthscope()
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child
        .stdin
        .take()
        .unwrap()
        .write_all((component("web", PROBE) + &scope("shop")).as_bytes())
        .unwrap();
    let answer = Answer::of(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert!(
        answer
            .out
            .ends_with("valid: 1 component, 1 probe, 1 scope in 1 file\n"),
        "{answer:?}"
    );
}

#[test]
fn a_file_that_cannot_be_used_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.yaml");
    fs::write(&path, component("web", "{}")).unwrap();
    let answer = run(&["up", path.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!((answer.code, answer.out.as_str()), (1, ""));
    let expected = format!("{}:4:1: spec: has no probe", path.display());
    assert!(answer.err.contains(&expected), "{answer:?}");
}

#[test]
fn edits_apply_and_a_bad_one_changes_nothing_and_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.yaml");
    let name = path.to_str().unwrap();
    save(&path, &(component("web", PROBE) + &scope("shop")));
    let up = Up::start(&[name]);
    up.wait("shop", "healthy");

    save(
        &path,
        &(component("web", PROBE)
            + &component(
                "db",
                "{readinessProbe: {exec: {command: ['false']}, period: 100ms, failureThreshold: 1}}",
            )
            + &scope("shop")),
    );
    up.out.wait_for(&format!(
        "{name} has changed and is in force: web, db with 2 probes, in 1 scope."
    ));
    up.wait("shop", "unhealthy");

    save(
        &path,
        &(component("web", "{readinessProbe: {tcpSocket: {port: 0}}}") + &scope("shop")),
    );
    up.err.wait_for(&format!(
        "{name}:4:37: spec.readinessProbe.tcpSocket.port: must be from 1 to 65535, is 0"
    ));
    let told = up.err.all();
    assert!(
        told[0].contains("cannot be used as it is now; what it was stays in force:"),
        "{told:?}"
    );
    assert_eq!(
        up.ask(&["get", "components", "-o", "name"]).out.lines().count(),
        2,
        "the old state stays"
    );

    // The same mistake in a changed file is not told again; another one is.
    save(
        &path,
        &(component("web", "{readinessProbe: {tcpSocket: {port: 0}}}") + &scope("shop") + "# edited\n"),
    );
    save(
        &path,
        &(component("web", "{readinessProbe: {tcpSocket: {port: 70000}}}") + &scope("shop")),
    );
    up.err.wait_for("is 70000");
    assert_eq!(
        up.err.all().iter().filter(|line| line.ends_with("is 0")).count(),
        1
    );

    save(&path, &(component("web", PROBE) + &scope("shop")));
    up.out.wait_for(&format!(
        "{name} is valid again and in force: web with 1 probe, in 1 scope."
    ));
    up.wait("shop", "healthy");
    up.ask(&["wait", "shop", "--for=healthy"]);
    let components = up.ask(&["get", "components", "-o", "name"]);
    assert_eq!(components.out, "component.healthscope.core.oam.dev/web\n");

    save(&path, &component("web", PROBE));
    assert_eq!(up.ask(&["wait", "shop", "--for=delete", TIMEOUT]).code, 0);
    let gone = up.ask(&["get", "scope", "shop"]);
    assert_eq!(
        (gone.code, gone.err.as_str()),
        (1, "error: scope \"shop\" not found in the namespace default\n")
    );
    let (status, _) = up.interrupt();
    assert!(status.success());
}

#[test]
fn a_member_that_does_not_exist_harms_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.yaml");
    let refs = "apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: both}\nspec: {workloadRefs: [{kind: \
                Component, name: web}, {kind: Component, name: gone}], policy: {minAvailable: 50}}\n";
    save(&path, &(component("web", PROBE) + refs));
    let up = Up::start(&[path.to_str().unwrap()]);
    up.wait("both", "available");
    let why = up.ask(&["why", "both"]);
    assert_eq!(why.code, 0, "{why:?}");
    assert!(
        why.out.contains("gone") && why.out.contains("Healthy web"),
        "{why:?}"
    );
}

#[test]
fn a_port_in_use_is_told_with_who_has_it_and_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = run(&["up", "--listen", &address.to_string()]);
    assert_eq!((answer.code, answer.out.as_str()), (1, ""));
    let id = std::process::id();
    assert!(
        answer.err.starts_with(&format!(
            "error: {address} is in use by another program (process {id}, "
        )),
        "{answer:?}"
    );
    assert!(
        answer.err.contains("choose another address: --listen 127.0.0.1:"),
        "{answer:?}"
    );

    let up = Up::start(&[]);
    let answer = run(&["up", "--listen", &up.address]);
    let expected = format!(
        "error: {} is in use by a HealthScope 0.1.0 (process {}, healthscope)",
        up.address,
        up.id()
    );
    assert!(
        answer.code == 1 && answer.err.starts_with(&expected),
        "{answer:?}"
    );
}

#[test]
fn ctrl_c_leaves_no_child_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.yaml");
    // An argument that no other process has.
    let token = format!("86{}.25", std::process::id());
    let stubborn = format!(
        "{{readinessProbe: {{exec: {{command: [sh, -c, 'trap \"\" TERM INT; sleep {token} & wait; sleep {token}']}}, timeoutSeconds: 1000}}}}"
    );
    save(
        &path,
        &(component("stubborn", &stubborn) + &component("web", PROBE) + &scope("shop")),
    );
    let up = Up::start(&[path.to_str().unwrap()]);
    let deadline = Instant::now() + crate::support::DEADLINE;
    while processes_with(&token).is_empty() {
        assert!(Instant::now() < deadline, "the command was never started");
        std::thread::yield_now();
    }
    let (status, time) = up.interrupt();
    assert!(status.success(), "{status}");
    assert!(time < Duration::from_secs(2), "{time:?}");
    let deadline = Instant::now() + crate::support::DEADLINE;
    while !processes_with(&token).is_empty() {
        assert!(
            Instant::now() < deadline,
            "left behind: {:?}",
            processes_with(&token)
        );
        std::thread::yield_now();
    }
}

fn many_components(count: usize) -> String {
    let mut text = scope("shop") + "---\n";
    for number in 0..count {
        // One run each, of a port that refuses at once.
        let spec = "{readinessProbe: {tcpSocket: {port: 1}, period: 1h, failureThreshold: 1}}";
        text += &component(&format!("c{number}"), spec);
    }
    text
}

#[test]
fn the_time_to_check_a_file_grows_with_its_size_and_no_faster() {
    let directory = tempfile::tempdir().unwrap();
    let mut times = [200, 2_000].map(|count| {
        let path = directory.path().join(format!("{count}.yaml"));
        fs::write(&path, many_components(count)).unwrap();
        let started = Instant::now();
        let answer = run(&["check", "-q", path.to_str().unwrap()]);
        assert_eq!((answer.code, answer.err.as_str()), (0, ""));
        started.elapsed()
    });
    // Ten times the components; quadratic would be a hundred times, and the machine has other things to do.
    times[0] *= 40;
    assert!(times[1] < times[0], "{times:?}");
}

#[test]
fn ten_thousand_components_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.yaml");
    save(&path, &many_components(10_000));
    let up = Up::start(&[path.to_str().unwrap()]);
    up.wait("shop", "unhealthy");
    let scope = up.ask(&["get", "scope", "shop", "-o", "json"]).json();
    assert_eq!(scope["status"]["summary"]["total"], 10_000);
    assert_eq!(
        up.ask(&["get", "components", "-o", "name"]).out.lines().count(),
        10_000
    );
    let (status, time) = up.interrupt();
    assert!(
        status.success() && time < Duration::from_secs(2),
        "{status} {time:?}"
    );
}
