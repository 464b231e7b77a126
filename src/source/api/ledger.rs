//! What the receiver has been told about one kind: the names, nothing more.
//!
//! A listing is told as it arrives and settled when it is complete: only then is it known what is gone. A listing that breaks
//! off is simply begun again; nothing is taken back on half a picture. An object that cannot be decoded counts as present, so
//! what was last known of it stays.

use std::collections::HashSet;

use kube::Resource;
use tokio::sync::mpsc;
use tracing::warn;

use super::decode::Broken;
use super::trouble::Failure;
use super::{Change, Kind, Object, ObjectKey};

/// A kind of object we watch.
pub(super) trait Watched:
    Resource<DynamicType = ()> + serde::de::DeserializeOwned + Send + Sync + 'static
{
    /// Which kind this is.
    const KIND: Kind;

    /// As the receiver wants it.
    fn into_object(self) -> Object;
}

/// Tells the receiver, and remembers whom it was told about.
pub(super) struct Ledger {
    kind: Kind,
    changes: mpsc::Sender<Change>,
    told: HashSet<ObjectKey>,
    /// Present in the listing that is under way.
    present: HashSet<ObjectKey>,
    broken: HashSet<ObjectKey>,
    synced: bool,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(kind: Kind, changes: mpsc::Sender<Change>) -> Self {
        let (told, present, broken) = Default::default();
        Self { kind, changes, told, present, broken, synced: false }
    }

    /// A listing begins, or begins again.
    pub(super) fn begin_listing(&mut self) {
        self.present.clear();
    }

    /// An object of the listing; `false` when it was in it before.
    pub(super) async fn list<K: Watched>(&mut self, object: K) -> Result<bool, Failure> {
        let fresh = self.present.insert(key_of(object.meta()));
        self.apply(object).await?;
        Ok(fresh)
    }

    /// The listing is complete: whatever was not in it is gone.
    pub(super) async fn settle_listing(&mut self) -> Result<(), Failure> {
        let present = std::mem::take(&mut self.present);
        let mut gone: Vec<_> = self.told.difference(&present).cloned().collect();
        gone.sort();
        for key in gone {
            self.delete(key).await?;
        }
        self.broken.retain(|key| present.contains(key));
        if !self.synced {
            self.synced = true;
            self.send(Change::Synced(self.kind)).await?;
        }
        Ok(())
    }

    /// An object is new or changed.
    pub(super) async fn apply<K: Watched>(&mut self, mut object: K) -> Result<(), Failure> {
        // Half of an object's size, and of no interest to anyone here.
        object.meta_mut().managed_fields = None;
        let key = key_of(object.meta());
        self.broken.remove(&key);
        self.told.insert(key);
        self.send(Change::Apply(object.into_object())).await
    }

    /// An object is gone. Nothing is said about one that was never told.
    pub(super) async fn delete(&mut self, key: ObjectKey) -> Result<(), Failure> {
        self.broken.remove(&key);
        if !self.told.remove(&key) {
            return Ok(());
        }
        self.send(Change::Delete(self.kind, key)).await
    }

    /// An object is there and cannot be decoded: said once, until it is well again or gone.
    pub(super) fn broken(&mut self, broken: Broken) {
        self.present.insert(broken.key.clone());
        if self.broken.insert(broken.key.clone()) {
            let (kind, object, reason) = (self.kind.name(), broken.key, broken.reason);
            warn!(kind, %object, reason, "API server: an object cannot be decoded and is skipped");
        }
    }

    async fn send(&self, change: Change) -> Result<(), Failure> {
        self.changes.send(change).await.map_err(|_| Failure::Closed)
    }
}

/// Namespace and name of an object.
pub(super) fn key_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}
