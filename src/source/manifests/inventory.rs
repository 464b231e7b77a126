//! What the files hold together, and what changes when some of them change; pure.
//!
//! Several files may hold the same object. The first file by name *wins*; the others wait, and when the winner goes, the next one
//! takes over: the object then changes or stays, it is never deleted in between. An [`Inventory`] is fed all files that changed at
//! once, so an object that moves from one file to another does not change at all.
//!
//! Invariant, proven by the property below: applying all changes ever returned to an empty map gives the union of the files with
//! the first one winning, and no change says what was already so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::problem::Problem;
use crate::source::{Change, Kind, Object, ObjectKey};

/// Names a file inside the directory. Their order decides who wins.
pub type FileName = Arc<str>;

type Id = (Kind, ObjectKey);

/// All objects of all files.
#[derive(Debug, Default)]
pub struct Inventory {
    files: BTreeMap<FileName, BTreeMap<Id, Held>>,
    /// Who has an object; the first is the winner.
    claims: BTreeMap<Id, BTreeSet<FileName>>,
    /// The duplicates that stand, as (winner, loser): these have been reported.
    reported: BTreeMap<Id, BTreeSet<(FileName, FileName)>>,
}

#[derive(Debug)]
struct Held {
    object: Arc<Object>,
    line: usize,
    /// Where the same file has the object again.
    again: Option<usize>,
}

// === impl Inventory ===

impl Inventory {
    /// Replaces the content of some files (no objects: the file is gone or empty) and says what that changes.
    pub fn update(&mut self, contents: Vec<(FileName, Vec<(Object, usize)>)>) -> (Vec<Change>, Vec<Problem>) {
        let mut before: BTreeMap<Id, Option<Arc<Object>>> = BTreeMap::new();
        for (file, objects) in contents {
            let mut held: BTreeMap<Id, Held> = BTreeMap::new();
            for (object, line) in objects {
                let id = (object.kind(), object.key());
                match held.get_mut(&id) {
                    Some(first) => first.again = first.again.or(Some(line)),
                    None => drop(held.insert(id, Held { object: Arc::new(object), line, again: None })),
                }
            }
            let old = self.files.remove(&file).unwrap_or_default();
            for id in old.keys().chain(held.keys()) {
                if !before.contains_key(id) {
                    // The file at hand is out of the map, and is the only one that can differ from what it said before.
                    let winner = match self.claims.get(id).and_then(BTreeSet::first) {
                        Some(first) if *first == file => old.get(id),
                        Some(first) => self.files.get(first).and_then(|held| held.get(id)),
                        None => None,
                    };
                    before.insert(id.clone(), winner.map(|held| held.object.clone()));
                }
            }
            for id in old.keys().filter(|id| !held.contains_key(*id)) {
                if let Some(files) = self.claims.get_mut(id) {
                    files.remove(&file);
                    if files.is_empty() {
                        self.claims.remove(id);
                    }
                }
            }
            for id in held.keys() {
                self.claims.entry(id.clone()).or_default().insert(file.clone());
            }
            if !held.is_empty() {
                self.files.insert(file, held);
            }
        }
        let problems = before.keys().flat_map(|id| self.duplicates(id)).collect::<Vec<_>>();
        (self.changes(before), problems)
    }

    /// How many objects a file holds.
    pub fn count(&self, file: &str) -> usize {
        self.files.get(file).map_or(0, BTreeMap::len)
    }

    /// The first that has an object, and after it the others.
    fn holders(&self, id: &Id) -> impl Iterator<Item = (&FileName, &Held)> {
        let files = self.claims.get(id).into_iter().flatten();
        files.filter_map(|file| Some((file, self.files.get(file)?.get(id)?)))
    }

    /// Deleted Services go first, so that what they held (an address, a node port) is free when another one claims it. New endpoints
    /// come before the Services that need them, and old ones leave last: at no point is a Service without endpoints that has some
    /// before and after.
    fn changes(&self, before: BTreeMap<Id, Option<Arc<Object>>>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, old) in before {
            let new = self.holders(&id).next().map(|(_, held)| &held.object);
            match (old, new) {
                (Some(_), None) => changes.push(Change::Delete(id.0, id.1)),
                (old, Some(new)) if old.as_ref() != Some(new) => changes.push(Change::Apply((**new).clone())),
                _ => {}
            }
        }
        changes.sort_by_key(|change| match change {
            Change::Delete(Kind::Service, _) => 0,
            Change::Apply(Object::Node(_) | Object::ServiceCIDR(_)) => 1,
            Change::Apply(Object::EndpointSlice(_)) => 2,
            Change::Apply(Object::Service(_)) => 3,
            Change::Delete(..) | Change::Synced(_) => 4,
        });
        changes
    }

    /// The duplicates of an object that have not been reported yet.
    fn duplicates(&mut self, id: &Id) -> Vec<Problem> {
        let mut standing = Vec::new();
        let mut holders = self.holders(id).peekable();
        let Some((winner, winning)) = holders.peek().map(|(file, held)| ((*file).clone(), held.line)) else {
            drop(holders);
            self.reported.remove(id);
            return Vec::new();
        };
        for (file, held) in holders {
            if *file != winner {
                standing.push((file.clone(), held.line));
            } else if let Some(line) = held.again {
                standing.push((file.clone(), line));
            }
        }
        let pairs: BTreeSet<_> = standing.iter().map(|(file, _)| (winner.clone(), file.clone())).collect();
        let known = if pairs.is_empty() {
            self.reported.remove(id).unwrap_or_default()
        } else {
            self.reported.insert(id.clone(), pairs).unwrap_or_default()
        };
        standing.retain(|(file, _)| !known.contains(&(winner.clone(), file.clone())));
        let report = |(file, line): (FileName, usize)| Problem::Duplicate {
            kind: id.0,
            key: id.1.clone(),
            file: file.to_string(),
            line,
            winner: winner.to_string(),
            winner_line: winning,
        };
        standing.into_iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::object::{EndpointSlice, Node, Service};

    /// An object of one of three kinds; `content` tells versions apart.
    fn object(kind: u8, name: u8, content: u8) -> Object {
        let mut meta = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(format!("o{name}")),
            namespace: (kind != 2).then(|| "default".to_owned()),
            ..Default::default()
        };
        meta.generation = Some(content.into());
        match kind {
            0 => Object::Service(Box::new(Service { metadata: meta, ..Default::default() })),
            1 => Object::EndpointSlice(Box::new(EndpointSlice { metadata: meta, ..Default::default() })),
            _ => Object::Node(Box::new(Node { metadata: meta, ..Default::default() })),
        }
    }

    fn file(name: &str, objects: &[(u8, u8, u8)]) -> (FileName, Vec<(Object, usize)>) {
        let place = |(line, (kind, name, content)): (usize, &(u8, u8, u8))| (object(*kind, *name, *content), line + 1);
        (name.into(), objects.iter().enumerate().map(place).collect())
    }

    fn said(changes: &[Change]) -> Vec<String> {
        let say = |change: &Change| match change {
            Change::Apply(object) => format!("+{} {}", object.kind().name(), object.key()),
            Change::Delete(kind, key) => format!("-{} {key}", kind.name()),
            Change::Synced(kind) => format!("={}", kind.name()),
        };
        changes.iter().map(say).collect()
    }

    #[test]
    fn a_burst_is_ordered() {
        let mut inventory = Inventory::default();
        inventory.update(vec![file("a", &[(0, 1, 0), (1, 1, 0)])]);
        let (changes, _) = inventory.update(vec![file("a", &[(2, 3, 0), (0, 2, 0), (1, 2, 0)])]);
        assert_eq!(
            said(&changes),
            [
                "-Service default/o1",
                "+Node o3",
                "+EndpointSlice default/o2",
                "+Service default/o2",
                "-EndpointSlice default/o1"
            ]
        );
    }

    #[test]
    fn the_first_file_wins_and_the_next_takes_over() {
        let mut inventory = Inventory::default();
        let (changes, problems) = inventory.update(vec![file("b", &[(0, 1, 2)]), file("a", &[(0, 9, 0), (0, 1, 1)])]);
        assert_eq!(changes, [Change::Apply(object(0, 1, 1)), Change::Apply(object(0, 9, 0))]);
        assert_eq!(
            problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["b:1: Service default/o1 ignored: a:2 has it already"]
        );
        // Reported once, and the loser's edits change nothing.
        assert_eq!(inventory.update(vec![file("b", &[(0, 1, 3)])]), (vec![], vec![]));
        // The winner goes: no Delete.
        assert_eq!(inventory.update(vec![file("a", &[(0, 9, 0)])]), (vec![Change::Apply(object(0, 1, 3))], vec![]));
        // It comes back: that is said again.
        let (changes, problems) = inventory.update(vec![file("a", &[(0, 9, 0), (0, 1, 1)])]);
        assert_eq!((changes, problems.len()), (vec![Change::Apply(object(0, 1, 1))], 1));
    }

    #[test]
    fn a_renamed_file_changes_nothing() {
        let mut inventory = Inventory::default();
        inventory.update(vec![file("a", &[(0, 1, 1)])]);
        assert_eq!(inventory.update(vec![file("b", &[(0, 1, 1)]), file("a", &[])]), (vec![], vec![]));
        assert_eq!((inventory.count("a"), inventory.count("b")), (0, 1));
    }

    #[test]
    fn twice_in_one_file_is_a_duplicate_too() {
        let mut inventory = Inventory::default();
        let (changes, problems) = inventory.update(vec![file("a", &[(0, 1, 1), (0, 1, 2), (0, 1, 3)])]);
        assert_eq!(changes, [Change::Apply(object(0, 1, 1))]);
        assert_eq!(
            problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a:2: Service default/o1 ignored: a:1 has it already"]
        );
    }

    /// (kind, name, content) of each object of a file.
    type Content = Vec<(u8, u8, u8)>;

    proptest! {
        #[test]
        fn changes_add_up_to_the_union(
            steps in prop::collection::vec(
                prop::collection::btree_map(0u8..4, prop::collection::vec((0u8..3, 0u8..3, 0u8..3), 0..4), 1..4),
                1..30,
            )
        ) {
            let mut inventory = Inventory::default();
            let mut files: BTreeMap<u8, Content> = BTreeMap::new();
            let mut image: BTreeMap<Id, Object> = BTreeMap::new();
            let mut standing: BTreeSet<(Id, String, String)> = BTreeSet::new();
            for step in steps {
                let contents = step.iter().rev().map(|(name, content)| file(&name.to_string(), content)).collect();
                files.extend(step);
                let (changes, problems) = inventory.update(contents);
                for change in changes {
                    match change {
                        Change::Apply(object) => {
                            let old = image.insert((object.kind(), object.key()), object.clone());
                            prop_assert_ne!(old, Some(object), "said what was so");
                        }
                        Change::Delete(kind, key) => prop_assert!(image.remove(&(kind, key)).is_some(), "deleted nothing"),
                        Change::Synced(_) => prop_assert!(false, "an inventory knows nothing of that"),
                    }
                }
                let mut union: BTreeMap<Id, (u8, Object)> = BTreeMap::new();
                let mut losers: BTreeSet<(Id, String, String)> = BTreeSet::new();
                for (name, content) in &files {
                    for (kind, object_name, version) in content {
                        let object = object(*kind, *object_name, *version);
                        let id = (object.kind(), object.key());
                        match union.get(&id) {
                            Some((winner, _)) => drop(losers.insert((id, winner.to_string(), name.to_string()))),
                            None => drop(union.insert(id, (*name, object))),
                        }
                    }
                }
                prop_assert_eq!(&image, &union.into_iter().map(|(id, (_, object))| (id, object)).collect());
                let told: BTreeSet<_> = problems.iter().map(|problem| match problem {
                    Problem::Duplicate { kind, key, file, winner, .. } => ((*kind, key.clone()), winner.clone(), file.clone()),
                    other => panic!("{other}"),
                }).collect();
                let new: BTreeSet<_> = losers.difference(&standing).cloned().collect();
                prop_assert_eq!(told.len(), problems.len());
                prop_assert_eq!(told, new);
                standing = losers;
            }
        }
    }
}
