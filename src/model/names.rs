//! Names, each kept once.
//!
//! Thousands of endpoints run on the same node, in the same zone, behind the same Service. Objects come off the wire with a string of
//! their own for each; here they share one.

use std::hash::Hash;
use std::sync::Arc;

use super::slice::Location;
use crate::model::map::HashSet;

/// Names are not looked through before there are so many.
const FEW: usize = 1024;

/// The names in use.
#[derive(Debug, Default)]
pub struct Names {
    texts: Kept<str>,
    /// Where endpoints run.
    locations: Kept<Location>,
}

/// Values, each once and no longer than somebody else has it.
#[derive(Debug)]
struct Kept<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there may be until those that nobody uses any more are dropped.
    limit: usize,
}

// === impl Names ===

impl Names {
    /// The shared form of this text.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        self.texts.get(text, || text.into())
    }

    /// The shared form of this place; `None` where nothing is known.
    pub fn location(&mut self, node: Option<&str>, zone: Option<&str>) -> Option<Arc<Location>> {
        if node.is_none() && zone.is_none() {
            return None;
        }
        let mut name = |name: Option<&str>| name.map(|name| self.get(name));
        let location = Location { node: name(node), zone: name(zone) };
        Some(self.locations.get(&location, || Arc::new(location.clone())))
    }
}

// === impl Kept ===

impl<T: ?Sized> Default for Kept<T> {
    fn default() -> Self {
        Self { known: HashSet::default(), limit: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Kept<T> {
    fn get(&mut self, wanted: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(wanted) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.limit = (2 * self.known.len()).max(FEW);
        }
        let made = make();
        self.known.insert(made.clone());
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once_and_no_longer_than_it_is_used() {
        let mut names = Names::default();
        let kept = names.get("kept");
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
        for number in 0..100_000 {
            names.get(&number.to_string());
        }
        assert!(names.texts.known.len() <= FEW, "{} names", names.texts.known.len());
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }

    #[test]
    fn a_place_is_kept_once_whatever_is_known_of_it() {
        let mut names = Names::default();
        assert_eq!(names.location(None, None), None);
        let all = [
            (Some("n1"), Some("a")),
            (Some("n1"), Some("b")),
            (Some("n1"), None),
            (None, Some("a")),
            (Some(""), Some("a")),
        ];
        let kept = all.map(|(node, zone)| names.location(node, zone).expect("a place"));
        for (number, (node, zone)) in all.into_iter().enumerate() {
            let again = names.location(node, zone).expect("a place");
            assert_eq!((again.node.as_deref(), again.zone.as_deref()), (node, zone));
            for (other, place) in kept.iter().enumerate() {
                assert_eq!(Arc::ptr_eq(place, &again), other == number);
            }
        }
        for number in 0..100_000 {
            // Many nodes, many zones of one, and many of none.
            let name = format!("name-{number}");
            let (node, zone) =
                [(Some(&*name), Some("a")), (Some("n1"), Some(&*name)), (None, Some(&*name))][number % 3];
            names.location(node, zone);
        }
        assert!(
            names.locations.known.len() <= FEW && names.texts.known.len() <= 2 * FEW,
            "{} places",
            names.locations.known.len()
        );
        assert!(Arc::ptr_eq(&kept[0], &names.location(Some("n1"), Some("a")).expect("a place")));
    }
}
