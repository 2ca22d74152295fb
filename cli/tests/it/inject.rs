//! `healthscope inject` as a process: standard input, exit codes, what goes where.

use {
    crate::support::{Answer, healthscope, run},
    std::{io::Write, process::Stdio},
};

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: web, image: web, readinessProbe: {tcpSocket: {port: 80}}}]
";

#[track_caller]
fn inject(input: &str, arguments: &[&str]) -> Answer {
    let mut child = healthscope()
        .args(["inject", "-f", "-"])
        .args(arguments)
        .env("KUBECONFIG", "/nowhere/kubeconfig")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Answer::of(child.wait_with_output().unwrap())
}

#[test]
fn standard_input_is_injected() {
    let ca = tempfile::tempdir().unwrap();
    let file = ca.path().join("ca.crt");
    let certificate = rcgen::generate_simple_self_signed(["aggregator".to_owned()]).unwrap();
    std::fs::write(&file, certificate.cert.pem()).unwrap();
    let answer = inject(POD, &["--ca", file.to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.err, "standard input:1:1: Pod/web: injected, 1 check\n");
    let pod: serde_json::Value = serde_saphyr::from_str(&answer.out).unwrap();
    let agent = &pod["spec"]["initContainers"][0];
    assert_eq!(agent["name"], "healthscope-agent");
    let ca = agent["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|variable| variable["name"] == "HEALTHSCOPE_CA_PEM")
        .unwrap();
    assert_eq!(ca["value"], certificate.cert.pem());
}

#[test]
fn what_is_left_as_it_is_passes_through_and_is_said() {
    let pod = POD.replace(
        "{name: web}\nspec",
        "{name: web, labels: {healthscope.core.oam.dev/inject: disabled}}\nspec",
    );
    let answer = inject(&pod, &[]);
    assert_eq!(
        (answer.code, answer.out.as_str()),
        (0, pod.as_str()),
        "{answer:?}"
    );
    assert!(
        answer.err.contains("Pod/web: left as it is: Disabled:"),
        "{answer:?}"
    );
    assert!(answer.err.contains("warning: no --ca"), "{answer:?}");
}

#[test]
fn a_difference_is_printed_instead() {
    let answer = inject(POD, &["--diff"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(
        answer.out.starts_with("--- standard input as it is\n"),
        "{answer:?}"
    );
    assert!(answer.out.contains("\n+  initContainers:"), "{answer:?}");
}

#[test]
fn what_cannot_be_read_is_an_error_and_prints_nothing() {
    for (answer, code, expected) in [
        (inject("kind: Pod\nspec: [", &[]), 1, "standard input:2:"),
        (
            run(&["inject", "-f", "/no/such/file.yaml"]),
            1,
            "/no/such/file.yaml",
        ),
        (run(&["inject"]), 2, "--file"),
        (
            inject(POD, &["--aggregator", "ws://somewhere:1"]),
            2,
            "must be wss://",
        ),
        (inject(POD, &["--ca", "/no/such/ca.crt"]), 1, "/no/such/ca.crt"),
    ] {
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(
            answer.err.contains(expected) && answer.out.is_empty(),
            "{answer:?}"
        );
    }
}
