//! Services, by their own status alone: whether anything stands behind one is told by the workloads there.

use {
    super::{field, healthy},
    healthscope_shared::health::{Health, Reason, Verdict},
    serde_json::Value,
};

/// A Service is well once it exists; one of type `LoadBalancer` when it has got its address.
pub(super) fn verdict(object: &Value) -> Verdict {
    let is_balanced = field::text(object, &["spec", "type"]) == Some("LoadBalancer");
    if is_balanced && field::list(object, &["status", "loadBalancer", "ingress"]).is_empty() {
        return Verdict::new(
            Health::Unknown,
            Reason::PENDING,
            "Service waits for the address of its load balancer",
        );
    }
    healthy()
}
