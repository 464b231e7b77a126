//! When Services have to be looked at again though nothing changed.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::model::ServiceKey;
use crate::model::map::HashMap;

/// At most one time per Service; the earliest is found without looking at the others.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_service: HashMap<ServiceKey, Instant>,
    in_order: BTreeSet<(Instant, ServiceKey)>,
}

// === impl Deadlines ===

impl Deadlines {
    /// A Service is to be looked at then, or never.
    pub(super) fn set(&mut self, service: &ServiceKey, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_service.insert(service.clone(), at),
            None => self.by_service.remove(service),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, service.clone()));
        }
        self.in_order.extend(at.map(|at| (at, service.clone())));
    }

    /// All of them, the earliest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Instant, &ServiceKey)> {
        self.in_order.iter().map(|(at, service)| (*at, service))
    }

    /// The Services whose time has come.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = &ServiceKey> {
        self.iter().take_while(move |(at, _)| *at <= now).map(|(_, service)| service)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_service_once() {
        let (begin, mut deadlines) = (Instant::now(), Deadlines::default());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let key = |name| ServiceKey::new("ns", name);
        for (name, seconds) in
            [("a", Some(3)), ("b", Some(2)), ("c", Some(9)), ("a", Some(1)), ("b", None), ("d", None)]
        {
            deadlines.set(&key(name), seconds.map(at));
        }
        let all: Vec<_> = deadlines.iter().map(|(at, service)| (at, &*service.name)).collect();
        assert_eq!(all, [(at(1), "a"), (at(9), "c")]);
        assert_eq!(deadlines.due(at(1)).count(), 1);
        assert_eq!(deadlines.due(at(0)).count(), 0);
    }
}
