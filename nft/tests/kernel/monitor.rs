//! Changes are heard, whoever makes them.

use std::time::Duration;

use nft::*;

use super::support::*;

/// All events up to and including a generation.
fn until_generation(monitor: &mut Monitor) -> (Vec<Change>, (u32, String)) {
    let mut changes = Vec::new();
    loop {
        match monitor.next_timeout(Duration::from_secs(10)).expect("events").expect("in time") {
            Event::Changed(change) => changes.push(change),
            Event::NewGeneration { id, process, .. } => return (changes, (id, process)),
            Event::Overrun => panic!("too few events for that"),
        }
    }
}

#[test]
fn our_changes_and_those_of_others() {
    in_namespace(|| {
        let mut monitor = Monitor::open().expect("root");
        let (mut connection, set) = with_endpoints(None);
        let brief = |change: &Change| (change.action, change.kind, change.table.clone(), change.name.clone());
        let (changes, (id, _)) = until_generation(&mut monitor);
        assert_eq!(
            changes.iter().map(brief).collect::<Vec<_>>(),
            [
                (Action::Added, ObjectKind::Table, "t".into(), String::new()),
                (Action::Added, ObjectKind::Set, "t".into(), "endpoints".into()),
            ]
        );
        assert!(changes.iter().all(|change| change.port == connection.port() && change.family == Family::Ip));
        assert_eq!(connection.generation().expect("generation"), id);

        commit(&mut connection, |transaction| {
            let pairs = [(key(1), value(1)), (key(2), value(2))];
            let elements = pairs.iter().map(|(key, value)| Element::value(key.as_bytes(), value.as_bytes()));
            transaction.add_elements(&set, &set.key, elements);
            transaction.add_chain(&chain("a"));
            transaction.add_rule(&rule("a", vec![Expr::counter()]));
        });
        let (changes, _) = until_generation(&mut monitor);
        let keys: Vec<_> = changes.iter().flat_map(|change| change.keys.clone().unwrap_or_default()).collect();
        assert_eq!(keys, [key(1), key(2)]);
        assert!(
            changes
                .iter()
                .any(|change| change.kind == ObjectKind::Rule && change.name == "a" && change.handle.is_some())
        );

        nft(&["delete", "table", "ip", "t"]);
        let (changes, (_, process)) = until_generation(&mut monitor);
        assert_eq!(process, "nft");
        assert!(changes.iter().all(|change| change.action == Action::Deleted && change.port != connection.port()));
        assert!(changes.iter().any(|change| change.kind == ObjectKind::Table && change.table == "t"));
        assert_eq!(monitor.next_timeout(Duration::from_millis(20)).expect("events"), None);
    });
}

#[test]
fn an_overflow_is_told() {
    in_namespace(|| {
        let mut monitor = Monitor::open().expect("root");
        nix::sys::socket::setsockopt(&monitor, nix::sys::socket::sockopt::RcvBufForce, &4096).expect("root");
        let (mut connection, set) = with_endpoints(None);
        let pairs: Vec<_> = (0..2000).map(|n| (key(n), value(n))).collect();
        commit(&mut connection, |transaction| {
            let elements = pairs.iter().map(|(key, value)| Element::value(key.as_bytes(), value.as_bytes()));
            transaction.add_elements(&set, &set.key, elements);
        });
        let mut overrun = false;
        while let Some(event) = monitor.try_next().expect("events") {
            overrun |= event == Event::Overrun;
        }
        assert!(overrun);
        commit(&mut connection, |transaction| transaction.delete_table(Family::Ip, "t"));
    });
}
