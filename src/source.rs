//! Where Kubernetes objects come from.
//!
//! A source turns the outside world into one typed stream of [`Change`]s, sent over a bounded channel to the task that owns the
//! model. There are two: [`api`] watches an API server, [`manifests`] watches a directory of files. They share the object types
//! in [`object`], so nothing behind the channel can tell which one is at work.
//!
//! Invariants:
//! - Per object the changes arrive in order; an object that vanished while nobody was looking (a watch that had to start over, a
//!   file that was removed) is reported as [`Change::Delete`].
//! - [`Change::Synced`] is sent once per kind, after the first complete listing of that kind. Nothing is programmed before
//!   Services and EndpointSlices are synced: half a picture would remove what a predecessor programmed.
//! - A source never gives up and never makes the model forget: while the outside is unreachable or unreadable, the last state
//!   stays. Each trouble is said once when it begins and once when it ends.
//!
//! Proven by `tests/e2e/`.

pub mod api;
pub mod manifests;
mod metadata;
pub mod object;

use object::{EndpointSlice, Node, Service, ServiceCIDR};

/// The kinds of objects a source watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node, our own only.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCIDR,
}

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// A whole object, boxed because the variants differ in size by far.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// A Node.
    Node(Box<Node>),
    /// A ServiceCIDR.
    ServiceCIDR(Box<ServiceCIDR>),
}

/// What a source says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new or differs from what was last said about it.
    Apply(Object),
    /// The object is gone.
    Delete(Kind, ObjectKey),
    /// The first complete listing of this kind has been delivered.
    Synced(Kind),
}

// === impl Kind ===

impl Kind {
    /// The kind as Kubernetes spells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCIDR => "ServiceCIDR",
        }
    }
}

// === impl Change ===

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Apply(object) => write!(f, "{} {}", object.kind().name(), object.key()),
            Change::Delete(kind, key) => write!(f, "{} {key} is gone", kind.name()),
            Change::Synced(kind) => write!(f, "every {} is known", kind.name()),
        }
    }
}

// === impl ObjectKey ===

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

// === impl Object ===

impl Object {
    /// Which kind this is.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Node(_) => Kind::Node,
            Object::ServiceCIDR(_) => Kind::ServiceCIDR,
        }
    }

    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        let meta = match self {
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
            Object::ServiceCIDR(object) => &object.metadata,
        };
        ObjectKey { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}
