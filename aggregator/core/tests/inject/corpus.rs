//! The pods that are kept, and how they are given to the injector.

use {
    healthscope_core::inject::{AUDIENCE, Injection, Options, Resources, Stance, Surroundings, inject},
    k8s_openapi::api::core::v1::{LimitRange, ResourceQuota},
    serde_json::{Map, Value, json},
    std::{collections::BTreeMap, fs, path::PathBuf},
};

const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUexample\n-----END CERTIFICATE-----\n";

pub(crate) fn options() -> Options {
    Options {
        image: "ghcr.io/healthscope/healthscope-agent:0.1.0".to_owned(),
        aggregator: "wss://healthscope-aggregator.healthscope-system.svc:7575".to_owned(),
        server_name: None,
        ca_pem: Some(CA.to_owned()),
        audience: AUDIENCE.to_owned(),
        resources: Resources::default(),
        post_start: false,
        kubernetes: Some((1, 36)),
        admitted: false,
        stance: Stance::Full,
    }
}

/// A pod and what holds around it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) pod: Value,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    limit_ranges: Vec<LimitRange>,
    quotas: Vec<ResourceQuota>,
}

/// Found from both crates that read it, which lie equally deep.
fn folder() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("aggregator/core/tests/inject/corpus")
}

impl Case {
    /// A pod in a namespace that is enabled.
    pub(crate) fn of(pod: Value) -> Self {
        let enabled = ("healthscope.core.oam.dev/inject".to_owned(), "enabled".to_owned());
        Self {
            name: String::new(),
            pod,
            labels: BTreeMap::from([enabled]),
            annotations: BTreeMap::new(),
            limit_ranges: Vec::new(),
            quotas: Vec::new(),
        }
    }

    pub(crate) fn all() -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|file| file.strip_suffix(".yaml").map(ToOwned::to_owned))
            .filter(|name| !name.ends_with(".out"))
            .collect();
        names.sort();
        names.into_iter().map(Self::read).collect()
    }

    fn read(name: String) -> Self {
        let text = fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let mut case = Self::of(Value::Null);
        case.name = name;
        for document in documents {
            match document["kind"].as_str().unwrap() {
                "Pod" => case.pod = document,
                "Namespace" => {
                    let map = |field: &str| -> BTreeMap<String, String> {
                        serde_json::from_value(document["metadata"][field].clone()).unwrap_or_default()
                    };
                    case.labels = map("labels");
                    case.annotations = map("annotations");
                }
                "LimitRange" => case.limit_ranges.push(serde_json::from_value(document).unwrap()),
                "ResourceQuota" => case.quotas.push(serde_json::from_value(document).unwrap()),
                other => panic!("{}: {other}", case.name),
            }
        }
        case
    }

    /// The LimitRanges and ResourceQuotas around it, as objects.
    pub(crate) fn limits(&self) -> Vec<Value> {
        let ranges = self.limit_ranges.iter().map(|range| json!(range));
        let quotas = self.quotas.iter().map(|quota| json!(quota));
        ranges.chain(quotas).collect()
    }

    /// The file that is kept beside it.
    pub(crate) fn beside(&self, end: &str) -> PathBuf {
        folder().join(format!("{}.{end}", self.name))
    }

    pub(crate) fn inject(&self) -> Injection {
        self.inject_pod(&self.pod)
    }

    pub(crate) fn inject_pod(&self, pod: &Value) -> Injection {
        self.inject_with(pod, &options())
    }

    pub(crate) fn inject_with(&self, pod: &Value, options: &Options) -> Injection {
        let around = Surroundings {
            labels: &self.labels,
            annotations: &self.annotations,
            limit_ranges: &self.limit_ranges,
            quotas: &self.quotas,
        };
        inject(pod, &around, options)
    }
}

/// Without lists and objects that are empty or null where they may as well be absent.
pub(crate) fn without_empty(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    let clean = |object: &mut Value, fields: &[&str]| {
        let Some(object) = object.as_object_mut() else {
            return;
        };
        for field in fields {
            if object.get(*field).is_some_and(is_nothing) {
                object.remove(*field);
            }
        }
    };
    clean(&mut pod["spec"], &["initContainers", "volumes"]);
    for field in ["containers", "initContainers"] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            clean(container, &["volumeMounts", "lifecycle", "livenessProbe"]);
        }
    }
    if let Some(metadata) = pod.get_mut("metadata") {
        clean(metadata, &["annotations"]);
    }
    clean(&mut pod, &["metadata"]);
    pod
}

/// The default container is the one thing that stays: for whoever looks at the pod it may have been there before.
pub(crate) fn take_over_default_container(given: &mut Value, found: &Value) {
    const KEY: &str = "kubectl.kubernetes.io/default-container";
    if let Some(value) = found["metadata"]["annotations"].get(KEY) {
        let mut pod = given.as_object_mut().unwrap();
        for field in ["metadata", "annotations"] {
            let inner = pod.entry(field).or_insert_with(|| Value::Object(Map::new()));
            pod = inner.as_object_mut().unwrap();
        }
        pod.entry(KEY).or_insert_with(|| value.clone());
    }
}
