//! Objects of any kind as the API server sends them, for watches: the whole JSON, and of the metadata only what a
//! watch needs.

use {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kube::{Resource, api::ApiResource, core::DynamicResourceScope},
    serde::{Deserialize, Deserializer},
    serde_json::Value,
    std::borrow::Cow,
};

/// An object of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// Name, namespace, uid and resourceVersion.
    metadata: ObjectMeta,
    /// The object. In a list it has neither `apiVersion` nor `kind`.
    pub(crate) value: Value,
}

impl Raw {
    /// The object, with the `apiVersion` and `kind` that lists leave out.
    pub(crate) fn into_value(self, resource: &ApiResource) -> Value {
        let mut value = self.value;
        if let Value::Object(fields) = &mut value {
            fields
                .entry("apiVersion")
                .or_insert_with(|| resource.api_version.as_str().into());
            fields
                .entry("kind")
                .or_insert_with(|| resource.kind.as_str().into());
        }
        value
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |field: &str| {
            value
                .get("metadata")
                .and_then(|metadata| metadata.get(field))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
