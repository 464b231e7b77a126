//! Names, each kept once.
//!
//! Thousands of endpoints run on the same node, in the same zone, behind the same Service. Objects come off the wire with a string of
//! their own for each; here they share one.

use std::sync::Arc;

use super::slice::Location;
use crate::model::map::HashSet;

/// Names are not looked through before there are so many.
const FEW: usize = 1024;

/// The names in use.
#[derive(Debug)]
pub struct Names {
    known: HashSet<Arc<str>>,
    /// How many there may be until those that nobody uses any more are dropped.
    limit: usize,
    /// Where endpoints run.
    locations: HashSet<Arc<Location>>,
    /// The same for these.
    location_limit: usize,
}

// === impl Names ===

impl Default for Names {
    fn default() -> Self {
        Self { known: HashSet::default(), limit: FEW, locations: HashSet::default(), location_limit: FEW }
    }
}

impl Names {
    /// The shared form of this text.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.limit = (2 * self.known.len()).max(FEW);
        }
        let name: Arc<str> = text.into();
        self.known.insert(name.clone());
        name
    }

    /// The shared form of this place; `None` where nothing is known.
    pub fn location(&mut self, node: Option<&str>, zone: Option<&str>) -> Option<Arc<Location>> {
        if node.is_none() && zone.is_none() {
            return None;
        }
        let mut name = |name: Option<&str>| name.map(|name| self.get(name));
        let location = Location { node: name(node), zone: name(zone) };
        if let Some(known) = self.locations.get(&location) {
            return Some(known.clone());
        }
        if self.locations.len() >= self.location_limit {
            self.locations.retain(|known| Arc::strong_count(known) > 1);
            self.location_limit = (2 * self.locations.len()).max(FEW);
        }
        let location = Arc::new(location);
        self.locations.insert(location.clone());
        Some(location)
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
        assert!(names.known.len() <= FEW, "{} names", names.known.len());
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
        assert!(names.locations.len() <= FEW && names.known.len() <= 2 * FEW, "{} places", names.locations.len());
        assert!(Arc::ptr_eq(&kept[0], &names.location(Some("n1"), Some("a")).expect("a place")));
    }
}
