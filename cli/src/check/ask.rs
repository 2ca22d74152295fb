//! Asks the API server for everything that is looked at, by plain GET and LIST with the user's own credentials.
//!
//! Judges nothing. What may not be read is an answer like any other; only an API server that gives none at all is an
//! error, and it is said at once. Nothing here is retried.

use {
    super::{
        facts::{Asked, Facts, Place, Rehearsal, Right, array, name, text},
        installation::{self, ANSWER_TIME},
        pods::rehearsal_pod,
    },
    crate::{
        args,
        cause::{self, MAX_DETAIL_BYTES},
        cluster::{Cluster, error::ClusterError},
    },
    futures_util::{StreamExt, stream},
    healthscope_core::{breaker, owner::LEASE},
    healthscope_crd::{key, v1beta1},
    healthscope_shared::one_line,
    http::{Method, Request, header},
    http_body_util::{BodyExt, Limited},
    jiff::Timestamp,
    kube::{api::ListParams, client::Body},
    serde_json::{Value, json},
};

/// Longest answer that is read: 500 of the largest pods that there are fit many times over in practice.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Objects asked for at once, as kubectl does.
const PAGE: u32 = 500;
/// Pages of one list: 50,000 objects, more than a namespace has.
const MAX_PAGES: usize = 100;
/// Questions that are under way at once: an API server gives each user a few of its seats.
const AT_ONCE: usize = 6;

/// What is looked at.
#[derive(Clone, Debug)]
pub(super) struct Interest {
    /// Before an installation, instead of it.
    pub(super) before: bool,
    /// One namespace alone, instead of all with the label.
    pub(super) namespace: Option<String>,
    /// Where the installation is expected.
    pub(super) expected: String,
    /// The labels of the aggregator's pods.
    pub(super) selector: String,
    /// Whether a pod is made for the sake of looking at it.
    pub(super) rehearse: bool,
}

/// An answer as it came.
struct Reply {
    code: u16,
    body: Value,
    date: Option<Timestamp>,
}

/// The API server.
#[derive(Clone)]
pub(super) struct Asker {
    cluster: Cluster,
}

impl Asker {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Reply, ClusterError> {
        let address = self.cluster.address();
        let unreachable = |cause: String| ClusterError::Unreachable {
            address: address.clone(),
            cause,
        };
        let asking = async {
            let answer = self.cluster.client().send(request.map(Body::from)).await;
            let answer = answer.map_err(|error| ClusterError::of(&error, &address))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let bytes = body
                .map_err(|error| unreachable(one_line(&error.to_string(), MAX_DETAIL_BYTES)))?
                .to_bytes();
            let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
            Ok(Reply {
                code: head.status.as_u16(),
                body: serde_json::from_slice(&bytes).unwrap_or_else(
                    |_| json!({"message": one_line(&String::from_utf8_lossy(&bytes), MAX_DETAIL_BYTES)}),
                ),
                date: date
                    .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
                    .map(|date| date.timestamp()),
            })
        };
        match tokio::time::timeout(ANSWER_TIME, Box::pin(asking)).await {
            Ok(reply) => reply,
            Err(_) => Err(unreachable(format!(
                "no answer within {} seconds",
                ANSWER_TIME.as_secs()
            ))),
        }
    }

    /// Asks a question that may have no answer.
    async fn ask(&self, right: Right, request: Result<Request<Vec<u8>>, String>) -> Asked {
        let reply = match request {
            Ok(request) => self.send(request).await,
            Err(problem) => return Asked::Failed(problem),
        };
        match reply {
            Ok(reply) => judge(right, reply),
            Err(error) => Asked::Failed(error.to_string()),
        }
    }

    /// One object.
    pub(super) async fn get(&self, right: Right, path: &str) -> Asked {
        self.ask(right, request(Method::GET, path, None)).await
    }

    /// Sends something.
    pub(super) async fn post(&self, right: Right, path: &str, body: &Value) -> Asked {
        self.ask(right, request(Method::POST, path, Some(body))).await
    }

    /// Changes a part of an object, by a JSON patch.
    pub(super) async fn patch(&self, right: Right, path: &str, body: &Value) -> Asked {
        let request = request(Method::PATCH, path, Some(body)).map(|mut request| {
            let kind = header::HeaderValue::from_static("application/json-patch+json");
            request.headers_mut().insert(header::CONTENT_TYPE, kind);
            request
        });
        self.ask(right, request).await
    }

    /// A whole list, page by page.
    pub(super) async fn list(&self, right: Right, path: &str, parameters: ListParams) -> Asked {
        let mut parameters = parameters.limit(PAGE);
        let mut whole: Option<Value> = None;
        for _ in 0..MAX_PAGES {
            let request = kube::core::Request::new(path).list(&parameters);
            let page = self
                .ask(right.clone(), request.map_err(|error| error.to_string()))
                .await;
            let Asked::Found(mut page) = page else {
                return page;
            };
            let next = text(&page["metadata"]["continue"]).to_owned();
            // Who wrote which field is half of a pod, and of interest in namespaces alone.
            if right.resource != "namespaces" {
                for item in page["items"].as_array_mut().into_iter().flatten() {
                    if let Some(metadata) = item["metadata"].as_object_mut() {
                        metadata.remove("managedFields");
                    }
                }
            }
            match &mut whole {
                None => whole = Some(page),
                Some(whole) => {
                    let more = page["items"]
                        .as_array_mut()
                        .map(std::mem::take)
                        .unwrap_or_default();
                    if let Some(items) = whole["items"].as_array_mut() {
                        items.extend(more);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            parameters.continue_token = Some(next);
        }
        whole.map_or(Asked::Unasked, Asked::Found)
    }

    /// Asks for everything that is of interest.
    pub(super) async fn facts(&self, interest: &Interest) -> Result<Facts, ClusterError> {
        // The first question shows whether there is anybody to ask.
        let version = request(Method::GET, "/version", None).map_err(ClusterError::Strange)?;
        let server = self.send(version).await?;
        if server.code == 401 {
            return Err(ClusterError::Unauthorized {
                address: self.cluster.address(),
                detail: one_line(text(&server.body["message"]), MAX_DETAIL_BYTES),
            });
        }
        let now = server.date.unwrap_or_else(Timestamp::now);
        let server = judge(Right::new("get", "", "version", None), server);
        let (definition, deployments, webhook, labelled) = tokio::join!(
            self.definition(),
            self.deployments(&interest.expected),
            self.webhook(),
            self.labelled(interest)
        );
        let mut facts = Facts {
            now,
            cluster: self.cluster.address(),
            version: env!("CARGO_PKG_VERSION"),
            program: args::program(),
            expected: interest.expected.clone(),
            server,
            definition,
            deployments,
            pods: Asked::Unasked,
            lease: Asked::Unasked,
            authorities: Asked::Unasked,
            webhook,
            service: Asked::Unasked,
            endpoints: Asked::Unasked,
            breaker: Asked::Unasked,
            canary_set: Asked::Unasked,
            canary: Asked::Unasked,
            rights: Vec::new(),
            rehearsal: None,
            labelled,
            places: Vec::new(),
        };
        if interest.before {
            facts.rights = self.own_rights(&interest.expected).await;
            return Ok(facts);
        }
        Box::pin(self.look_at_home(&mut facts, &interest.selector)).await;
        if let Some(deployment) = facts.deployment() {
            let account = text(&deployment["spec"]["template"]["spec"]["serviceAccountName"]).to_owned();
            let needed = installation::needed(deployment);
            facts.rights = self.rights_of(&account, facts.home(), needed).await;
        }
        let names = places(&facts, interest);
        facts.places = stream::iter(names)
            .map(|name| self.place(name, &facts.labelled))
            .buffered(AT_ONCE)
            .collect()
            .await;
        if interest.rehearse {
            facts.rehearsal = self.rehearse(&facts).await;
        }
        Ok(facts)
    }

    async fn definition(&self) -> Asked {
        let right = Right::new("get", "apiextensions.k8s.io", "customresourcedefinitions", None);
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        self.get(right, &format!("{path}/{}", installation::DEFINITION))
            .await
    }

    async fn webhook(&self) -> Asked {
        let group = "admissionregistration.k8s.io";
        let right = Right::new("get", group, "mutatingwebhookconfigurations", None);
        let path = format!(
            "/apis/{group}/v1/mutatingwebhookconfigurations/{}",
            installation::WEBHOOK
        );
        self.get(right, &path).await
    }

    /// The Deployments of HealthScope wherever they are; who may not look everywhere looks where it is expected.
    async fn deployments(&self, expected: &str) -> Asked {
        let ours = ListParams::default().labels("app.kubernetes.io/name=healthscope");
        let everywhere = Right::new("list", "apps", "deployments", None);
        let all = self
            .list(everywhere, "/apis/apps/v1/deployments", ours.clone())
            .await;
        if !matches!(all, Asked::Forbidden(_)) {
            return all;
        }
        let there = Right::new("list", "apps", "deployments", Some(expected));
        let path = format!("/apis/apps/v1/namespaces/{expected}/deployments");
        match self.list(there, &path, ours).await {
            // None there is no proof that there is none.
            Asked::Found(list) if array(&list["items"]).is_empty() => all,
            Asked::Forbidden(_) => all,
            other => other,
        }
    }

    /// The namespaces with the label; with one namespace alone, nobody is asked for the others.
    async fn labelled(&self, interest: &Interest) -> Asked {
        if interest.namespace.is_some() || interest.before {
            return Asked::Unasked;
        }
        let labels = format!("{}=enabled", key::INJECT);
        let right = Right::new("list", "", "namespaces", None);
        self.list(right, "/api/v1/namespaces", ListParams::default().labels(&labels))
            .await
    }

    /// What is in the installation's own namespace.
    async fn look_at_home(&self, facts: &mut Facts, selector: &str) {
        let home = facts.home().to_owned();
        let home = home.as_str();
        let right = |verb, group, resource| Right::new(verb, group, resource, Some(home));
        let core = format!("/api/v1/namespaces/{home}");
        let map = |name: &str| format!("{core}/configmaps/{name}");
        let paths = (
            format!("{core}/pods"),
            format!("/apis/coordination.k8s.io/v1/namespaces/{home}/leases/{LEASE}"),
            map(installation::AUTHORITIES),
            format!("{core}/services/{}", installation::WEBHOOK_SERVICE),
            format!("/apis/discovery.k8s.io/v1/namespaces/{home}/endpointslices"),
            map(breaker::CONFIG_MAP),
            format!(
                "/apis/apps/v1/namespaces/{home}/statefulsets/{}",
                installation::CANARY_SET
            ),
            format!("{core}/pods/{}", installation::CANARY),
        );
        let slices = format!("kubernetes.io/service-name={}", installation::WEBHOOK_SERVICE);
        let found = tokio::join!(
            self.list(
                right("list", "", "pods"),
                &paths.0,
                ListParams::default().labels(selector)
            ),
            self.get(
                right("get", "coordination.k8s.io", "leases").named(LEASE),
                &paths.1
            ),
            self.get(
                right("get", "", "configmaps").named(installation::AUTHORITIES),
                &paths.2
            ),
            self.get(
                right("get", "", "services").named(installation::WEBHOOK_SERVICE),
                &paths.3
            ),
            self.list(
                right("list", "discovery.k8s.io", "endpointslices"),
                &paths.4,
                ListParams::default().labels(&slices)
            ),
            self.get(
                right("get", "", "configmaps").named(breaker::CONFIG_MAP),
                &paths.5
            ),
            self.get(
                right("get", "apps", "statefulsets").named(installation::CANARY_SET),
                &paths.6
            ),
            self.get(right("get", "", "pods").named(installation::CANARY), &paths.7),
        );
        (
            facts.pods,
            facts.lease,
            facts.authorities,
            facts.service,
            facts.endpoints,
            facts.breaker,
            facts.canary_set,
            facts.canary,
        ) = found;
    }

    /// Whether the aggregator's account has these rights.
    async fn rights_of(&self, account: &str, home: &str, needed: Vec<Right>) -> Vec<(Right, Asked)> {
        let who = json!({
            "user": format!("system:serviceaccount:{home}:{account}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{home}"), "system:authenticated"],
        });
        self.reviews("subjectaccessreviews", "SubjectAccessReview", &who, needed)
            .await
    }

    /// Whether the user may make what an installation has.
    async fn own_rights(&self, namespace: &str) -> Vec<(Right, Asked)> {
        let needed = installation::needed_to_install(namespace);
        self.reviews(
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            &json!({}),
            needed,
        )
        .await
    }

    async fn reviews(
        &self,
        resource: &'static str,
        kind: &str,
        who: &Value,
        needed: Vec<Right>,
    ) -> Vec<(Right, Asked)> {
        let path = format!("/apis/authorization.k8s.io/v1/{resource}");
        let review = |right: Right| {
            let path = path.as_str();
            async move {
                let (plain, sub) = right.resource.split_once('/').unwrap_or((right.resource, ""));
                let mut spec = who.clone();
                spec["resourceAttributes"] = json!({
                    "verb": right.verb, "group": right.group, "resource": plain, "subresource": sub,
                    "name": right.name.unwrap_or_default(),
                    "namespace": right.namespace.as_deref().unwrap_or_default(),
                });
                let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
                let asking = Right::new("create", "authorization.k8s.io", resource, None);
                let answer = self.post(asking, path, &body).await;
                (right, answer)
            }
        };
        let mut needed = needed.into_iter();
        // Who may not ask this may not ask the others either.
        let Some(first) = needed.next() else {
            return Vec::new();
        };
        let first = review(first).await;
        if first.1.found().is_none() {
            return vec![first];
        }
        let mut all = vec![first];
        let others: Vec<_> = stream::iter(needed).map(review).buffered(AT_ONCE).collect().await;
        all.extend(others);
        all
    }

    /// A namespace and what is in it.
    pub(super) async fn place(&self, place: String, labelled: &Asked) -> Place {
        let known = labelled.items().iter().find(|namespace| name(namespace) == place);
        let right = |verb, group, resource| Right::new(verb, group, resource, Some(&place));
        let itself = async {
            match known {
                Some(known) => Asked::Found(known.clone()),
                None => {
                    self.get(
                        Right::new("get", "", "namespaces", None),
                        &format!("/api/v1/namespaces/{place}"),
                    )
                    .await
                }
            }
        };
        let (pods_path, events_path) = (
            format!("/api/v1/namespaces/{place}/pods"),
            format!("/api/v1/namespaces/{place}/events"),
        );
        let scopes_path = format!("/apis/{}/namespaces/{place}/healthscopes", v1beta1::API_VERSION);
        let skipped = ListParams::default().fields("reason=InjectionSkipped");
        let (namespace, pods, skips, scopes) = tokio::join!(
            itself,
            self.list(right("list", "", "pods"), &pods_path, ListParams::default()),
            self.list(right("list", "", "events"), &events_path, skipped),
            self.list(
                right("list", v1beta1::GROUP, "healthscopes"),
                &scopes_path,
                ListParams::default()
            ),
        );
        Place {
            name: place,
            namespace,
            pods,
            skips,
            scopes,
        }
    }

    /// The Events about a pod.
    pub(super) async fn events(&self, namespace: &str, pod: &str) -> Asked {
        let about =
            ListParams::default().fields(&format!("involvedObject.kind=Pod,involvedObject.name={pod}"));
        let path = format!("/api/v1/namespaces/{namespace}/events");
        self.list(Right::new("list", "", "events", Some(namespace)), &path, about)
            .await
    }

    /// Has the API server make a pod and throw it away, in the first namespace that is to be injected.
    async fn rehearse(&self, facts: &Facts) -> Option<Rehearsal> {
        facts.webhook.found()?;
        let is_injected = |place: &&Place| {
            let label = place
                .namespace
                .found()
                .map(|namespace| &namespace["metadata"]["labels"][key::INJECT]);
            label.is_some_and(|label| label == "enabled")
                && place.name != facts.home()
                && place.name != "kube-system"
        };
        let namespace = facts.places.iter().find(is_injected)?.name.clone();
        let right = Right::new("create", "", "pods", Some(&namespace));
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let pod = self.post(right, &path, &rehearsal_pod(&namespace)).await;
        Some(Rehearsal { namespace, pod })
    }
}

/// Which namespaces are looked into: the one that was named; otherwise those with the label, and those where the breaker
/// is open, since pods may be stuck there when the label is gone.
fn places(facts: &Facts, interest: &Interest) -> Vec<String> {
    if let Some(namespace) = &interest.namespace {
        return vec![namespace.clone()];
    }
    let mut names: Vec<String> = facts
        .labelled
        .items()
        .iter()
        .map(|namespace| name(namespace).to_owned())
        .collect();
    names.extend(facts.record().trips.into_iter().filter_map(|trip| trip.namespace));
    names.sort();
    names.dedup();
    names
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Result<Request<Vec<u8>>, String> {
    let mut request = Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    request.body(body).map_err(|error| cause::words(&error))
}

/// What an answer means.
fn judge(right: Right, reply: Reply) -> Asked {
    let Reply { code, body, date: _ } = reply;
    let said = one_line(text(&body["message"]), MAX_DETAIL_BYTES);
    match code {
        200..=299 => Asked::Found(body),
        404 => Asked::Absent,
        // Quotas and policies refuse with the same code as missing rights do, and other words.
        403 if said.contains(" cannot ") => Asked::Forbidden(right),
        403 => Asked::Failed(said),
        code => Asked::Failed(format!("it answers {code}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_told_from_a_policy_that_refuses() {
        let right = || Right::new("create", "", "pods", Some("shop"));
        #[track_caller]
        fn check(right: Right, code: u16, message: &str, expected: &Asked) {
            let reply = Reply {
                code,
                body: json!({"message": message}),
                date: None,
            };
            assert_eq!(judge(right, reply), *expected);
        }
        let rbac = r#"pods is forbidden: User "u" cannot create resource "pods" in API group "" in the namespace "shop""#;
        check(right(), 403, rbac, &Asked::Forbidden(right()));
        let quota = r#"pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1"#;
        check(right(), 403, quota, &Asked::Failed(quota.to_owned()));
        check(right(), 404, "not found", &Asked::Absent);
        check(
            right(),
            500,
            "a\nb",
            &Asked::Failed("it answers 500: a b".to_owned()),
        );
    }
}
