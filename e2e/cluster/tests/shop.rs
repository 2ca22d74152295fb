//! The whole product on a real node: the sequence of commands that the documents show, agents in pods, the reasons that
//! a node gives, rules for other kinds, scopes in scopes.
//!
//! One node and one aggregator for all tests of this file; each has its own namespace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "support/aggregator.rs"]
mod support;

use {
    crate::support::{
        Aggregator, Setup, Tls, apply, component, condition, install, kubectl, namespace, status,
    },
    healthscope_e2e_cluster::{Cluster, Image, Options, timed},
    std::sync::{Arc, LazyLock},
};

/// Not dropped: its processes end with this program, and its folder goes with the next run.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = Cluster::start(&Options::node()).unwrap();
    timed("import of busybox", || cluster.import(&Image::busybox())).unwrap();
    install(&cluster);
    cluster
});

/// In the cluster's network and with TLS, so that agents in pods reach it.
static AGGREGATOR: LazyLock<Aggregator<'static>> = LazyLock::new(|| {
    let setup = Setup {
        is_inside: true,
        tls: Some(Arc::clone(&TLS)),
        ..Setup::default()
    };
    let aggregator = Aggregator::launch(&CLUSTER, setup);
    timed("start of the aggregator", || aggregator.wait_ready());
    aggregator
});

static TLS: LazyLock<Arc<Tls>> = LazyLock::new(|| Arc::new(Tls::create()));

#[test]
fn an_empty_scope_is_healthy() {
    timed("an empty scope", || {
        namespace(&CLUSTER, "empty");
        apply(
            &CLUSTER,
            "empty",
            "{apiVersion: core.oam.dev/v1beta1, kind: HealthScope, metadata: {name: nothing}, spec: {}}",
        );
        AGGREGATOR.until_health("empty", "nothing", "Healthy");
    });
}
