//! Claims to storage: `PersistentVolumeClaim`.

use {
    super::{field, healthy},
    healthscope_shared::health::{Health, Reason, Verdict},
    serde_json::Value,
};

/// Conditions that say that a bound claim did not get what it asked for since.
const FAILED_CHANGES: [&str; 3] = ["ControllerResizeError", "NodeResizeError", "ModifyVolumeError"];

/// A claim is well when it is bound.
pub(super) fn verdict(object: &Value) -> Verdict {
    match field::text(object, &["status", "phase"]) {
        Some("Bound") => FAILED_CHANGES
            .iter()
            .find_map(|kind| Some((kind, field::condition_that_is(object, kind, "True")?)))
            .map_or_else(healthy, |(kind, condition)| {
                let message = field::text(condition, &["message"]).unwrap_or_default();
                Verdict::new(
                    Health::Degraded,
                    Reason::from_static(kind),
                    format!("PersistentVolumeClaim {kind}: {message}"),
                )
            }),
        Some("Lost") => Verdict::new(
            Health::Unhealthy,
            Reason::CLAIM_LOST,
            "PersistentVolumeClaim is Lost: the volume it was bound to is gone",
        ),
        _ => {
            let class = field::text(object, &["spec", "storageClassName"])
                .filter(|class| !class.is_empty())
                .map(|class| format!(" of storage class {class}"))
                .unwrap_or_default();
            Verdict::new(
                Health::Unknown,
                Reason::PENDING,
                format!("PersistentVolumeClaim is Pending: no volume{class} is bound to it yet"),
            )
        }
    }
}
