//! Transactions are atomic, sent as one datagram, and can be tied to a generation.

use nft::*;

use super::support::*;

#[test]
fn a_refused_transaction_changes_nothing() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        let before = (connection.generation().expect("generation"), listing());
        let (first, data) = (key(1), value(1));
        refuse(&mut connection, |transaction| {
            transaction.add_chain(&chain("new"));
            transaction.add_elements(&set, &set.key, [Element::value(first.as_bytes(), data.as_bytes())]);
            transaction.delete_chain(Family::Ip, "t", "missing");
        });
        assert_eq!((connection.generation().expect("generation"), listing()), before);
    });
}

#[test]
fn a_large_transaction_is_one_datagram() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(Some(1 << 17));
        let generation = connection.generation().expect("generation");
        let pairs: Vec<_> = (0..100_000).map(|n| (key(n), value(n))).collect();
        let mut transaction = Transaction::new();
        let elements = pairs.iter().map(|(key, value)| Element::value(key.as_bytes(), value.as_bytes()));
        transaction.add_elements(&set, &set.key, elements);
        assert!(transaction.len() > 4_000_000 && transaction.messages() > 60);
        connection.commit(&transaction).expect("accepted");
        assert_eq!(connection.generation().expect("generation"), generation + 1);
        // And away again, committed with the same connection.
        commit(&mut connection, |transaction| transaction.flush_set(&set));
        let mut left = 0;
        connection.elements(&set, |_| left += 1).expect("listed");
        assert_eq!(left, 0);
    });
}

#[test]
fn a_stale_generation_is_refused() {
    in_namespace(|| {
        let (mut connection, _) = with_endpoints(None);
        let generation = connection.generation().expect("generation");
        let mut transaction = Transaction::new();
        transaction.create_chain(&chain("mine"));
        nft(&["add", "table", "ip", "theirs"]);
        let error = connection.commit_at(&transaction, generation).expect_err("somebody was faster");
        assert_eq!(error, Error::Stale { generation });
        assert_eq!(error.retry(), Retry::Now);
        assert!(!listing().contains("mine"));
        let generation = connection.generation().expect("generation");
        connection.commit_at(&transaction, generation).expect("current");
        assert!(listing().contains("mine"));
    });
}

#[test]
fn an_empty_transaction_is_no_generation() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let generation = connection.generation().expect("generation");
        connection.commit(&Transaction::new()).expect("nothing to do");
        drop(Connection::open().expect("root"));
        assert_eq!(connection.generation().expect("generation"), generation);
    });
}

#[test]
fn features_of_this_kernel_are_found_without_a_trace() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let features = connection.probe().expect("probed");
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let release = (numbers.next().expect("major"), numbers.next().expect("minor"));
        assert_eq!(features.owner, release >= (5, 12));
        assert_eq!(features.owner_persist, release >= (6, 9));
        assert_eq!(features.end_ack, release >= (6, 10));
        assert_eq!(connection.tables().expect("tables"), []);
    });
}
