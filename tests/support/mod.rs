//! What the kernel tier and the end-to-end tier share.
//!
//! [`objects`] makes Kubernetes objects as JSON, the form that both tiers can use: one decodes it into the model's types, the other
//! writes it into manifests or hands it to the API server double. [`traffic`] connects, counts and keeps connections open.
//! [`oracle`] asks `nft` what is in the kernel: it is a witness that shares no code with us. [`beds`] makes labs.
//!
//! Nothing here asserts what a Service should do; that is said in the tests. Helpers panic with what they expected when they
//! cannot do their own work.

use std::time::{Duration, Instant};

pub mod beds;
pub mod flush;
pub mod objects;
pub mod oracle;
pub mod traffic;

/// Waits until the condition holds, and fails when it has not after a while.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < beds::PATIENCE * 2, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
