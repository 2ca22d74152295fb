//! The agent's container and volumes, as they stand in a pod. Every line of it is explained in `docs/injection.md`.
//!
//! Nothing here can hold the application back: no probe, no hook, no port, no reference to a Secret or ConfigMap that
//! might be missing.

use {
    super::{Options, resources::Resources},
    healthscope_shared::{
        config::{COMPONENT_API_VERSION, COMPONENT_KIND},
        probe::fields::NamedProbeFields,
    },
    serde_json::{Value, json},
};

/// The agent's container; what a platform's view of a pod looks for too.
pub(super) const AGENT: &str = crate::platform::AGENT_CONTAINER;
/// Memory that holds the runner and the sockets.
pub(super) const RUNNER_VOLUME: &str = "healthscope";
/// The token by which the agent proves whose it is.
pub(super) const TOKEN_VOLUME: &str = "healthscope-token";
/// Where the volume is mounted, in the agent's container whole, in a target's its own part.
pub(super) const DIRECTORY: &str = "/healthscope";
/// How the agent's command begins, by which it is known again.
pub(super) const SUPERVISE: [&str; 2] = ["/healthscope-runner", "supervise"];

/// Where the token is mounted.
const TOKEN_DIRECTORY: &str = "/var/run/secrets/healthscope";
/// Where the API server would mount the pod's own token; what is mounted there already stays.
const API_TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The user that the agent runs as, in the image and here; different from the application's, whatever that is.
const USER: u32 = 2102;
/// Room for the runner, the sockets, and a bundle of certificates.
const VOLUME_SIZE: &str = "16Mi";
/// How long a token is good for; the kubelet brings a new one long before.
const TOKEN_SECONDS: u32 = 3600;

/// The agent's container.
pub(super) fn container(options: &Options, component: &str, targets: &[&str], resources: Resources) -> Value {
    let mut command: Vec<&str> = SUPERVISE.to_vec();
    command.extend(["--dir", DIRECTORY]);
    for target in targets {
        command.extend(["--target", target]);
    }
    command.extend(["--", "/healthscope-agent"]);

    let mut variables = vec![
        json!({"name": "HEALTHSCOPE_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        json!({"name": "HEALTHSCOPE_COMPONENT", "value": component}),
    ];
    let socket = format!("{DIRECTORY}/.agent/agent.sock");
    let store = format!("{DIRECTORY}/.agent/ca.pem");
    let token = format!("{TOKEN_DIRECTORY}/token");
    let plain = [
        ("HEALTHSCOPE_AGGREGATOR", Some(options.aggregator.as_str())),
        ("HEALTHSCOPE_SERVER_NAME", options.server_name.as_deref()),
        ("HEALTHSCOPE_CA_PEM", options.ca_pem.as_deref()),
        ("HEALTHSCOPE_CA_STORE", Some(store.as_str())),
        ("HEALTHSCOPE_TOKEN_FILE", Some(token.as_str())),
        ("HEALTHSCOPE_AGENT_SOCKET", Some(socket.as_str())),
        ("HEALTHSCOPE_RUNNER_DIR", Some(DIRECTORY)),
    ];
    variables.extend(
        plain
            .into_iter()
            .filter_map(|(name, value)| Some(json!({"name": name, "value": literal(value?)}))),
    );

    let mut container = json!({
        "name": AGENT,
        "image": options.image,
        // Never pulled again for a tag that the node has: a registry that is down must not hold up a restart.
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "command": command,
        "env": variables,
        "volumeMounts": [
            {"name": RUNNER_VOLUME, "mountPath": DIRECTORY},
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true},
            {"name": TOKEN_VOLUME, "mountPath": API_TOKEN_DIRECTORY, "readOnly": true},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(resources) = resources.write() {
        container["resources"] = resources;
    }
    container
}

/// The agent's volumes.
pub(super) fn volumes(options: &Options) -> [Value; 2] {
    [
        json!({"name": RUNNER_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": VOLUME_SIZE}}),
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": {
            "audience": options.audience,
            "expirationSeconds": TOKEN_SECONDS,
            "path": "token",
        }}]}}),
    ]
}

/// A target container's part of the volume.
pub(super) fn mount(target: &str) -> Value {
    json!({"name": RUNNER_VOLUME, "mountPath": DIRECTORY, "subPath": target, "readOnly": true})
}

/// The agent's configuration on one line, with the pod's address to be filled in by the kubelet.
pub(super) fn component(name: &str, probes: &[NamedProbeFields]) -> String {
    let text = |value: &str| Value::from(value).to_string();
    let probes = serde_json::to_string(probes).expect("probes have text keys and whole numbers");
    // Written in the order in which people write it. All but the address is taken literally.
    format!(
        r#"{{"apiVersion":{},"kind":{},"metadata":{{"name":{}}},"spec":{{"host":"$(HEALTHSCOPE_POD_IP)","probes":{}}}}}"#,
        text(COMPONENT_API_VERSION),
        text(COMPONENT_KIND),
        literal(&text(name)),
        literal(&probes),
    )
}

/// A text that the kubelet hands on as it is: it replaces `$(NAME)` in a variable's value, and `$$` by `$`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        crate::inject::command::expand,
        healthscope_shared::{config::ComponentObject, probe::fields::ExecFields},
        std::collections::BTreeMap,
    };

    #[test]
    fn the_kubelet_makes_of_it_what_was_meant() {
        for word in [
            "$(HOME)",
            "$$",
            "$",
            "$(HEALTHSCOPE_POD_IP)",
            "\"$(A)\"\n",
            "a$$(b)",
            "kill -0 $$",
        ] {
            let probe = NamedProbeFields {
                name: "c".to_owned(),
                exec: Some(ExecFields {
                    command: vec!["sh".to_owned(), word.to_owned()],
                    ..ExecFields::default()
                }),
                ..NamedProbeFields::default()
            };
            let written = component("web", &[probe]);
            assert!(!written.contains('\n'), "{written}");
            let variables = BTreeMap::from([
                ("HEALTHSCOPE_POD_IP", "fd00::1"),
                ("HOME", "/wrong"),
                ("A", "wrong"),
            ]);
            let read: ComponentObject = serde_json::from_str(&expand(&written, &variables)).unwrap();
            assert_eq!(read.spec.host.as_deref(), Some("fd00::1"));
            let command = &read.spec.probes[0].exec.as_ref().unwrap().command;
            assert_eq!(command[1], word);
            read.validate().unwrap();
        }
    }
}
