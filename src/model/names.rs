//! Names, each kept once.
//!
//! Thousands of endpoints run on the same node, in the same zone, behind the same Service. Objects come off the wire with a string of
//! their own for each; here they share one.

use std::sync::Arc;

use crate::model::map::HashSet;

/// Names are not looked through before there are so many.
const FEW: usize = 1024;

/// The names in use.
#[derive(Debug)]
pub struct Names {
    known: HashSet<Arc<str>>,
    /// How many there may be until those that nobody uses any more are dropped.
    limit: usize,
}

// === impl Names ===

impl Default for Names {
    fn default() -> Self {
        Self { known: HashSet::default(), limit: FEW }
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
}
