//! What the receiver has been told about one kind: the names, nothing more.
//!
//! A listing is told as it arrives and settled when it is complete: only then is it known what is gone. A listing that breaks
//! off is simply begun again; nothing is taken back on half a picture. An object that cannot be decoded counts as present, so
//! what was last known of it stays.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use tokio::sync::mpsc;
use tracing::warn;

use super::decode::Broken;
use super::trouble::Failure;
use super::{Change, Kind, Object, ObjectKey};
use crate::model::map::HashMap;

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
    /// Whom, and the last listing that each was in.
    told: HashMap<Told, u32>,
    /// Those that cannot be decoded, and the last listing that each was in.
    broken: HashMap<Told, u32>,
    /// The number of the listing that is under way, or was the last.
    listing: u32,
    synced: bool,
}

/// `namespace/name`, in one piece.
type Told = Box<str>;

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(kind: Kind, changes: mpsc::Sender<Change>) -> Self {
        let (told, broken) = Default::default();
        Self { kind, changes, told, broken, listing: 0, synced: false }
    }

    /// A listing begins, or begins again.
    pub(super) fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// An object of the listing; `false` when it was in it before.
    pub(super) async fn list<K: Watched>(&mut self, object: K) -> Result<bool, Failure> {
        let key = told(object.meta());
        let was_broken = self.broken.get(&key) == Some(&self.listing);
        let before = self.told.insert(key, self.listing);
        self.apply(object).await?;
        Ok(before != Some(self.listing) && !was_broken)
    }

    /// The listing is complete: whatever was not in it is gone.
    pub(super) async fn settle_listing(&mut self) -> Result<(), Failure> {
        let listing = self.listing;
        self.broken.retain(|_, seen| *seen == listing);
        let absent = self.told.iter().filter(|(key, seen)| **seen != listing && !self.broken.contains_key(*key));
        let mut gone: Vec<_> = absent.map(|(key, _)| key_from(key)).collect();
        gone.sort();
        for key in gone {
            self.delete(key).await?;
        }
        if !self.synced {
            self.synced = true;
            self.send(Change::Synced(self.kind)).await?;
        }
        Ok(())
    }

    /// An object is new or changed.
    pub(super) async fn apply<K: Watched>(&mut self, object: K) -> Result<(), Failure> {
        let key = told(object.meta());
        self.broken.remove(&key);
        self.told.entry(key).or_insert(self.listing);
        self.send(Change::Apply(object.into_object())).await
    }

    /// An object is gone. Nothing is said about one that was never told.
    pub(super) async fn delete(&mut self, key: ObjectKey) -> Result<(), Failure> {
        let told = key.to_string();
        self.broken.remove(&*told);
        if self.told.remove(&*told).is_none() {
            return Ok(());
        }
        self.send(Change::Delete(self.kind, key)).await
    }

    /// An object is there and cannot be decoded: said once, until it is well again or gone.
    pub(super) fn broken(&mut self, broken: Broken) {
        if self.broken.insert(broken.key.to_string().into(), self.listing).is_none() {
            let (kind, object, reason) = (self.kind.name(), broken.key, broken.reason);
            warn!(kind, %object, reason, "API server: an object cannot be decoded and is skipped");
        }
    }

    async fn send(&self, change: Change) -> Result<(), Failure> {
        self.changes.send(change).await.map_err(|_| Failure::Closed)
    }
}

/// Namespace and name of an object.
pub(super) fn key_of(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

fn told(meta: &ObjectMeta) -> Told {
    key_of(meta).to_string().into()
}

/// Neither namespaces nor names hold slashes.
fn key_from(told: &str) -> ObjectKey {
    let (namespace, name) = told.split_once('/').unwrap_or(("", told));
    ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }
}
