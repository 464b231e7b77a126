//! Hash tables that are asked with every change and for every element of a first load.
//!
//! The standard library's hasher withstands keys chosen to collide, and takes a good part of the time of a first load. Keys here are names
//! and addresses from the cluster's own API; foldhash is several times faster, and seeded by chance in each process, so that nobody who may
//! name a Service can work out collisions beforehand.

use foldhash::fast::RandomState;

/// As the standard library's; made by `default()` or by collecting.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// As the standard library's; made by `default()` or by collecting.
pub type HashSet<T> = std::collections::HashSet<T, RandomState>;
