//! `--fix`: pods that our container holds up, one by one, asking before each. What is done is decided by `unstick`.

use {
    super::{
        ask::Asker,
        facts::{Asked, Facts, Place, Right, array, full_name, name, text},
        pods::stuck,
        unstick::{Remedy, remedy},
    },
    crate::{
        failure::{Answer, Failure},
        terminal::{Terminal, visible},
    },
    healthscope_shared::one_line,
    serde_json::{Value, json},
    std::{
        collections::BTreeSet,
        io::{BufRead, IsTerminal},
        time::Duration,
    },
    tokio::time::{Instant, sleep},
};

/// How long a pod may take to go: the usual grace period, and time for the kubelet to say so.
const GOING: Duration = Duration::from_secs(45);
/// How long its controller may take to make another before we say that none is there yet.
const COMING: Duration = Duration::from_secs(5);
/// How often is looked.
const EVERY: Duration = Duration::from_millis(500);
/// Longest text of a kubelet that is repeated.
const MAX_MESSAGE_BYTES: usize = 200;

/// Un-sticks what can be un-stuck; yes when nothing is left stuck.
pub(super) async fn run(
    asker: &Asker,
    facts: &Facts,
    only: Option<&str>,
    yes: bool,
    terminal: Terminal,
) -> Result<Answer, Failure> {
    if !yes && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "--fix asks before each pod, and there is no terminal to ask on; --yes does not ask",
        ));
    }
    let unread = facts.places.iter().find(|place| place.pods.found().is_none());
    if let Some(Place { name, pods, .. }) = unread {
        let why = match pods {
            Asked::Forbidden(right) => format!("you may not {right}; it takes {}", right.rule()),
            Asked::Failed(problem) => problem.clone(),
            Asked::Absent | Asked::Unasked | Asked::Found(_) => "there is no such namespace".to_owned(),
        };
        return Err(Failure::unanswered(format!(
            "the pods of {name} cannot be looked at: {why}"
        )));
    }
    let (mut done, mut left) = (0_usize, 0_usize);
    for place in &facts.places {
        for pod in place.pods.items() {
            if only.is_some_and(|only| name(pod) != only) {
                continue;
            }
            let Some((reason, message)) = stuck(pod) else {
                continue;
            };
            let message = one_line(&visible(message), MAX_MESSAGE_BYTES);
            terminal.print(&format!("{}: {}: {message}\n", full_name(pod), visible(reason)))?;
            let one = One {
                asker,
                place,
                pod,
                yes,
                terminal,
            };
            if one.treat(remedy(facts, place, pod)).await? {
                done += 1;
            } else {
                left += 1;
            }
        }
    }
    let text = match (done, left) {
        (0, 0) => "no pod is stuck because of the agent's container\n".to_owned(),
        _ => format!("{done} un-stuck, {left} left\n"),
    };
    terminal.print(&text)?;
    Ok(Answer::from(left == 0))
}

/// One pod.
struct One<'a> {
    asker: &'a Asker,
    place: &'a Place,
    pod: &'a Value,
    yes: bool,
    terminal: Terminal,
}

impl One<'_> {
    /// Carries a remedy out, if the user wants it; whether the pod is stuck no more.
    async fn treat(&self, remedy: Remedy) -> Result<bool, Failure> {
        match remedy {
            Remedy::Leave { why, commands } => {
                self.say(&format!("left as it is: {why}"))?;
                for command in commands {
                    self.say(&format!("  {command}"))?;
                }
                Ok(false)
            }
            Remedy::Evict { owner, because } => {
                self.say(&format!("{owner} makes it anew: {because}"))?;
                if !self.agreed("evict it?")? {
                    self.say("left as it is")?;
                    return Ok(false);
                }
                if self.has_recovered().await? {
                    return Ok(true);
                }
                self.evict(&owner).await
            }
            Remedy::Patch { index, from, to } => {
                self.say(&format!(
                    "no controller would make it again, so it stays; the canary runs with the image {to}, and it has {from}"
                ))?;
                if !self.agreed("give its agent that image?")? {
                    self.say("left as it is")?;
                    return Ok(false);
                }
                if self.has_recovered().await? {
                    return Ok(true);
                }
                self.patch(index, &to).await
            }
        }
    }

    /// Whether the pod got on by itself while somebody thought about it.
    async fn has_recovered(&self) -> Result<bool, Failure> {
        match self.look().await {
            Asked::Found(now) if stuck(&now).is_none() => {
                self.say("it is not stuck any more, and left as it is")?;
                Ok(true)
            }
            Asked::Absent => {
                self.say("it was gone already")?;
                Ok(true)
            }
            Asked::Found(_) | Asked::Forbidden(_) | Asked::Failed(_) | Asked::Unasked => Ok(false),
        }
    }

    async fn evict(&self, owner: &str) -> Result<bool, Failure> {
        let (namespace, pod) = (&self.place.name, name(self.pod));
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
            // Not another one that has come in its place meanwhile.
            "deleteOptions": {"preconditions": {"uid": self.pod["metadata"]["uid"]}},
        });
        let right = Right::new("create", "", "pods/eviction", Some(namespace));
        match self
            .asker
            .post(right, &format!("{}/eviction", self.path()), &body)
            .await
        {
            Asked::Found(_) => {}
            Asked::Absent => {
                self.say("it was gone already")?;
                return Ok(true);
            }
            Asked::Failed(problem) if problem.starts_with("it answers 429") => {
                self.say(&format!(
                    "not evicted: a PodDisruptionBudget does not allow it now; nothing was changed: {}",
                    visible(&problem)
                ))?;
                return Ok(false);
            }
            other => return self.refused("not evicted", &other),
        }
        let before: BTreeSet<&str> = self.place.pods.items().iter().map(name).collect();
        let deadline = Instant::now() + GOING;
        loop {
            let found = self.look().await;
            let is_gone = match &found {
                Asked::Absent => true,
                // A StatefulSet's next pod has the same name.
                Asked::Found(now) => now["metadata"]["uid"] != self.pod["metadata"]["uid"],
                Asked::Forbidden(_) | Asked::Failed(_) | Asked::Unasked => false,
            };
            if is_gone {
                break;
            }
            if Instant::now() >= deadline {
                self.say("evicted; it is still ending")?;
                return Ok(true);
            }
            sleep(EVERY).await;
        }
        let deadline = Instant::now() + COMING;
        loop {
            if let Some(words) = self.replacement(&before).await {
                self.say(&format!("evicted; {words}"))?;
                return Ok(true);
            }
            if Instant::now() >= deadline {
                self.say(&format!(
                    "evicted and gone; {owner} has made no other yet: kubectl -n {namespace} get pods"
                ))?;
                return Ok(true);
            }
            sleep(EVERY).await;
        }
    }

    /// What the pod's controller made instead, in words.
    async fn replacement(&self, before: &BTreeSet<&str>) -> Option<String> {
        let place = self.asker.place(self.place.name.clone(), &Asked::Unasked).await;
        let controller = |pod: &Value| {
            let owners = array(&pod["metadata"]["ownerReferences"]);
            let controller = owners.iter().find(|owner| owner["controller"] == true);
            controller.map(|owner| owner["uid"].clone())
        };
        let wanted = controller(self.pod);
        let is_next = |pod: &&Value| {
            let is_new = !before.contains(name(pod)) || name(pod) == name(self.pod);
            is_new && controller(pod) == wanted && pod["metadata"]["uid"] != self.pod["metadata"]["uid"]
        };
        let next = place.pods.items().iter().find(is_next)?;
        let with = match super::facts::agent(next) {
            None => "without an agent".to_owned(),
            Some(agent) => format!("with the agent's image {}", visible(text(&agent["image"]))),
        };
        Some(format!("the next one is {}, {with}", full_name(next)))
    }

    async fn patch(&self, index: usize, image: &str) -> Result<bool, Failure> {
        let container = format!("/spec/initContainers/{index}");
        let body = json!([
            {"op": "test", "path": format!("{container}/name"), "value": healthscope_core::platform::AGENT_CONTAINER},
            {"op": "test", "path": "/metadata/uid", "value": self.pod["metadata"]["uid"]},
            {"op": "replace", "path": format!("{container}/image"), "value": image},
        ]);
        let right = Right::new("patch", "", "pods", Some(&self.place.name));
        let patched = self.asker.patch(right, &self.path(), &body).await;
        if patched.found().is_none() {
            return self.refused("not changed", &patched);
        }
        let deadline = Instant::now() + COMING;
        loop {
            let found = self.look().await;
            let is_running = found
                .found()
                .is_some_and(|pod| !super::facts::agent_status(pod)["state"]["running"].is_null());
            if is_running {
                self.say(&format!("its agent has the image {image} and runs"))?;
                return Ok(true);
            }
            if Instant::now() >= deadline {
                self.say(&format!(
                    "its agent has the image {image}; the kubelet tries it within its back-off, five minutes at most"
                ))?;
                return Ok(true);
            }
            sleep(EVERY).await;
        }
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.place.name, name(self.pod))
    }

    async fn look(&self) -> Asked {
        let right = Right::new("get", "", "pods", Some(&self.place.name));
        self.asker.get(right, &self.path()).await
    }

    fn refused(&self, what: &str, asked: &Asked) -> Result<bool, Failure> {
        let why = match asked {
            Asked::Forbidden(right) => format!("you may not {right}; it takes {}", right.rule()),
            Asked::Failed(problem) => visible(problem).into_owned(),
            Asked::Absent => "it is gone".to_owned(),
            Asked::Unasked | Asked::Found(_) => String::new(),
        };
        self.say(&format!("{what}: {why}"))?;
        Ok(false)
    }

    fn say(&self, words: &str) -> Result<(), Failure> {
        Ok(self.terminal.print(&format!("  {words}\n"))?)
    }

    /// Asks on the terminal; anything but yes is no.
    #[expect(clippy::print_stderr, reason = "a question is no part of the result")]
    fn agreed(&self, question: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        eprint!("  {question} [y/N] ");
        let mut line = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| Failure::error(format!("no answer can be read: {error}")))?;
        Ok(matches!(line.trim(), "y" | "Y" | "yes"))
    }
}
