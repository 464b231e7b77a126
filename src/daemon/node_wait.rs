//! Waiting for our Node before anything is programmed (spec section 3).
//!
//! Which addresses serve NodePorts and which pods are local depends on the Node, which a node's kubelet may make a moment after our
//! start. So the first load waits for a Node with an address, up to [`ADDRESSES`]; then it goes on without, because a node whose
//! Services work but for its Node is better than one without. Mode NodeCIDR cannot go on without `podCIDRs`: after [`POD_NETWORKS`] more the
//! daemon ends, to be started again. What a predecessor programmed serves meanwhile.
//!
//! A directory of manifests needs no Node, so nobody waits for one there.
//!
//! Pure: the clock is the caller's. Proven by the tests below and by `tests/e2e/node.rs`.

use std::time::{Duration, Instant};

use crate::model::Node;

/// For an address of the Node.
pub(super) const ADDRESSES: Duration = Duration::from_secs(30);
/// For `spec.podCIDRs`, in mode NodeCIDR, after that.
pub(super) const POD_NETWORKS: Duration = Duration::from_secs(5 * 60);

/// What is waited for, and since when.
#[derive(Debug)]
pub(super) struct NodeWait {
    state: State,
    /// Whether `podCIDRs` are needed, too.
    pod_networks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has asked yet.
    New,
    Addresses {
        until: Instant,
    },
    PodNetworks {
        until: Instant,
    },
    Over,
}

/// What follows from it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is waited for (any more).
    Go,
    /// The same question is to be asked with each change, and at this time. `News` is what to say, once.
    Wait(Instant, Option<News>),
    /// There will be no address: said once, with the next question being `Go` or about pod networks.
    GiveUpAddresses,
    /// There are no pod networks, and nothing works without.
    Hopeless,
}

/// What has just begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Waiting for a Node with an address.
    Addresses,
    /// Waiting for the Node's `podCIDRs`.
    PodNetworks,
}

// === impl NodeWait ===

impl NodeWait {
    /// For an API server. `pod_networks`: mode NodeCIDR.
    pub(super) fn new(pod_networks: bool) -> Self {
        Self { state: State::New, pod_networks }
    }

    /// Where nobody waits.
    pub(super) fn none() -> Self {
        Self { state: State::Over, pod_networks: false }
    }

    /// When to ask again if no change comes first.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.state {
            State::Addresses { until } | State::PodNetworks { until } => Some(until),
            State::New | State::Over => None,
        }
    }

    /// Asks, with the Node as it is known now. To be asked for the first time when all Nodes of our name have been listed.
    pub(super) fn ask(&mut self, node: Option<&Node>, now: Instant) -> Step {
        let has_address = node.is_some_and(|node| !node.addresses.is_empty());
        let has_networks = node.is_some_and(|node| !node.pod_networks.is_empty());
        match self.state {
            State::Over => Step::Go,
            State::New if !has_address => {
                let until = now + ADDRESSES;
                self.state = State::Addresses { until };
                Step::Wait(until, Some(News::Addresses))
            }
            State::Addresses { until } if !has_address && now < until => Step::Wait(until, None),
            State::Addresses { .. } if !has_address => {
                self.after_addresses(now);
                Step::GiveUpAddresses
            }
            State::New | State::Addresses { .. } => {
                self.after_addresses(now);
                match self.until() {
                    Some(until) if !has_networks => Step::Wait(until, Some(News::PodNetworks)),
                    _ => self.over(),
                }
            }
            State::PodNetworks { .. } if has_networks => self.over(),
            State::PodNetworks { until } if now < until => Step::Wait(until, None),
            State::PodNetworks { .. } => Step::Hopeless,
        }
    }

    fn after_addresses(&mut self, now: Instant) {
        self.state = if self.pod_networks { State::PodNetworks { until: now + POD_NETWORKS } } else { State::Over };
    }

    fn over(&mut self) -> Step {
        self.state = State::Over;
        Step::Go
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addresses: &[&str], networks: &[&str]) -> Node {
        Node {
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            pod_networks: networks.iter().map(|text| text.parse().expect("a network")).collect(),
            ..Node::default()
        }
    }

    /// Spec section 3; upstream: TestNewNodeManager.
    #[test]
    fn a_node_with_an_address_is_waited_for_and_then_not() {
        let start = Instant::now();
        let full = node(&["10.0.0.1"], &[]);
        assert_eq!(NodeWait::none().ask(None, start), Step::Go, "manifests");
        assert_eq!(NodeWait::new(false).ask(Some(&full), start), Step::Go, "the usual start");
        let mut wait = NodeWait::new(false);
        let until = start + ADDRESSES;
        assert_eq!(wait.until(), None);
        assert_eq!(wait.ask(None, start), Step::Wait(until, Some(News::Addresses)));
        assert_eq!(wait.ask(Some(&node(&[], &[])), start + ADDRESSES / 2), Step::Wait(until, None), "no address yet");
        assert_eq!(wait.until(), Some(until));
        assert_eq!(wait.ask(Some(&full), start + ADDRESSES / 2), Step::Go);
        assert_eq!(wait.ask(None, until), Step::Go, "once it is over it is over");

        let mut wait = NodeWait::new(false);
        wait.ask(None, start);
        assert_eq!(wait.ask(None, until), Step::GiveUpAddresses);
        assert_eq!(wait.ask(None, until), Step::Go);
    }

    #[test]
    fn mode_node_cidr_waits_for_pod_networks_and_ends_without() {
        let start = Instant::now();
        let until = start + POD_NETWORKS;
        let (bare, full) = (node(&["10.0.0.1"], &[]), node(&["10.0.0.1"], &["10.244.1.0/24"]));
        assert_eq!(NodeWait::new(true).ask(Some(&full), start), Step::Go);
        let mut wait = NodeWait::new(true);
        assert_eq!(wait.ask(Some(&bare), start), Step::Wait(until, Some(News::PodNetworks)));
        assert_eq!(wait.ask(Some(&bare), until - Duration::from_secs(1)), Step::Wait(until, None));
        assert_eq!(wait.ask(Some(&bare), until), Step::Hopeless);
        assert_eq!(wait.ask(Some(&full), until), Step::Go, "in the last moment");

        let mut wait = NodeWait::new(true);
        wait.ask(None, start);
        assert_eq!(wait.ask(None, start + ADDRESSES), Step::GiveUpAddresses);
        let until = start + ADDRESSES + POD_NETWORKS;
        assert_eq!(wait.ask(None, start + ADDRESSES), Step::Wait(until, None), "the longer wait begins then");
        assert_eq!(wait.ask(None, until), Step::Hopeless);
    }
}
