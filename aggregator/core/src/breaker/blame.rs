//! Whether a pod was refused because of what was put into it.
//!
//! A refusal names what it dislikes: our container or volume, our image, or amounts. Of amounts it is our fault when
//! there was room for the pod without ours.

use crate::inject::{Amounts, Quantity};

/// What may be to blame in a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blamed {
    /// The agent's image.
    pub image: String,
    /// What an agent requests.
    pub requests: Amounts,
}

/// Names in a pod that are ours alone.
const OURS: [&str; 4] = [
    "healthscope-agent",
    "healthscope-token",
    "volume \"healthscope\"",
    "/healthscope/runner",
];

impl Blamed {
    /// Whether the API server's message blames what was added.
    #[must_use]
    pub fn is_in(&self, message: &str) -> bool {
        let message = without_name(message);
        OURS.iter().any(|name| message.contains(name))
            || (!self.image.is_empty() && message.contains(&self.image))
            || self.is_over_quota(message)
            || self.is_out_of_range(message)
    }

    /// `exceeded quota: NAME, requested: requests.cpu=105m, used: requests.cpu=900m, limited: requests.cpu=1`
    fn is_over_quota(&self, message: &str) -> bool {
        let Some((_, quota)) = message.split_once("exceeded quota: ") else {
            return false;
        };
        let part = |name: &str| {
            let (_, rest) = quota.split_once(&format!("{name}: "))?;
            Some(rest.split(": ").next().unwrap_or(rest))
        };
        let (Some(requested), Some(used), Some(limited)) = (part("requested"), part("used"), part("limited"))
        else {
            return false;
        };
        let exceeded: Vec<bool> = amounts(requested)
            .filter_map(|(resource, requested)| {
                let of = |part| amounts(part).find_map(|(name, amount)| (name == resource).then_some(amount));
                let (used, limited) = (of(used)?, of(limited)?);
                let ours = self.request(resource).unwrap_or_default();
                // Room for it without ours, and none with it.
                Some(used + requested > limited && used + requested <= limited + ours)
            })
            .collect();
        // Where something else is short as well, the pod would be refused without us too.
        !exceeded.is_empty() && exceeded.iter().all(|is_ours| *is_ours)
    }

    /// `minimum cpu usage per Container is 10m, but request is 5m`
    fn is_out_of_range(&self, message: &str) -> bool {
        [("cpu", self.requests.cpu), ("memory", self.requests.memory)]
            .into_iter()
            .filter_map(|(resource, amount)| Some((resource, amount?)))
            .any(|(resource, amount)| {
                let start = format!("minimum {resource} usage per Container is ");
                let Some((_, rest)) = message.split_once(&start) else {
                    return false;
                };
                let said = rest.split_once("but request is ").map(|(_, said)| said);
                said.and_then(first_amount) == Some(amount)
            })
    }

    fn request(&self, resource: &str) -> Option<Quantity> {
        match resource {
            "cpu" | "requests.cpu" => self.requests.cpu,
            "memory" | "requests.memory" => self.requests.memory,
            _ => None,
        }
    }
}

/// Without `pods "NAME" `: a pod may be called anything.
fn without_name(message: &str) -> &str {
    let Some((before, rest)) = message.split_once("pods \"") else {
        return message;
    };
    if !before.is_empty() && !before.ends_with(": ") {
        return message;
    }
    rest.split_once('"').map_or(message, |(_, rest)| rest)
}

/// `cpu=1,memory=1Gi, used`: each name with its amount, as far as they can be read.
fn amounts(text: &str) -> impl Iterator<Item = (&str, Quantity)> {
    text.split(',').filter_map(|pair| {
        let (name, amount) = pair.trim().split_once('=')?;
        Some((name, first_amount(amount)?))
    })
}

fn first_amount(text: &str) -> Option<Quantity> {
    let end = text.find([',', ' ', ';', '.', ']']).unwrap_or(text.len());
    Quantity::parse(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: &str, expected: bool) {
        let blamed = Blamed {
            image: "example.org/agent:1".to_owned(),
            requests: Amounts {
                cpu: Some(Quantity::milli(5)),
                memory: Some(Quantity::mebi(16)),
            },
        };
        assert_eq!(blamed.is_in(message), expected, "{message}");
    }

    #[test]
    fn a_refusal_is_ours_when_it_names_what_was_added() {
        check(
            r#"pods "web-1" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true (container "healthscope-agent" must set it)"#,
            true,
        );
        check(
            r#"pods "web-1" is forbidden: violates PodSecurity "restricted:latest": restricted volume types (volume "healthscope-token" uses …)"#,
            true,
        );
        check(
            r#"admission webhook "images" denied the request: example.org/agent:1 is not signed"#,
            true,
        );
        check(
            r#"pods "web-1" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true (container "web" must set it)"#,
            false,
        );
        check(
            r#"pods "healthscope-agent-demo-1" is forbidden: error looking up service account shop/web: not found"#,
            false,
        );
        check(
            r#"Error creating: pods "healthscope-agent-1" is forbidden: no"#,
            false,
        );
        check("", false);
        check("pods \"", false);
    }

    #[test]
    fn a_quota_is_our_fault_when_there_was_room_without_us() {
        let quota = |rest: &str| format!(r#"pods "web-1" is forbidden: exceeded quota: q, {rest}"#);
        check(
            &quota("requested: requests.cpu=105m, used: requests.cpu=898m, limited: requests.cpu=1"),
            true,
        );
        check(
            &quota("requested: requests.cpu=105m, used: requests.cpu=950m, limited: requests.cpu=1"),
            false,
        );
        check(
            &quota(
                "requested: cpu=105m,memory=80Mi, used: cpu=898m,memory=60Mi, limited: cpu=1,memory=128Mi",
            ),
            true,
        );
        check(
            &quota(
                "requested: cpu=105m,memory=80Mi, used: cpu=898m,memory=100Mi, limited: cpu=1,memory=128Mi",
            ),
            false,
        );
        check(
            &quota("requested: pods=1, used: pods=10, limited: pods=10"),
            false,
        );
        check(&quota("requested: nonsense, used: , limited: "), false);
        check(
            &quota("limited: cpu=1, used: cpu=898m, requested: cpu=105m"),
            true,
        );
    }

    #[test]
    fn a_least_amount_is_our_fault_when_it_is_our_request_that_is_less() {
        let range = |rest: &str| format!(r#"pods "web-1" is forbidden: [{rest}]"#);
        check(
            &range("minimum cpu usage per Container is 10m, but request is 5m"),
            true,
        );
        check(
            &range("minimum cpu usage per Container is 10m, but request is 7m"),
            false,
        );
        check(
            &range("minimum memory usage per Container is 32Mi, but request is 16777216"),
            true,
        );
        check(
            &range("maximum cpu usage per Container is 1, but limit is 5m"),
            false,
        );
    }
}
