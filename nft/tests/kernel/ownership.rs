//! Owned tables are changed by nobody else, survive their owner and are adopted, where the kernel has that (6.9).

use nft::*;

use super::support::*;

/// Whether this kernel's tables can outlive their owner. Where they cannot, asking for it is refused, and that is all to be shown.
fn can_persist(connection: &mut Connection) -> bool {
    let can = connection.probe().expect("probe").owner_persist;
    if !can {
        let error = refuse(connection, |transaction| transaction.add_table(&owned()));
        assert_eq!(error.errno(), Some(nix::errno::Errno::EOPNOTSUPP));
    }
    can
}

fn owned() -> Table {
    Table { flags: TableFlags { owner: true, persist: true }, ..table() }
}

#[test]
fn another_connection_is_refused() {
    in_namespace(|| {
        let mut owner = Connection::open().expect("root");
        if !can_persist(&mut owner) {
            return;
        }
        commit(&mut owner, |transaction| transaction.add_table(&owned()));
        let info = owner.table(Family::Ip, "t").expect("table").expect("there");
        assert_eq!((info.owner, info.flags), (Some(owner.port()), owned().flags));

        let mut other = Connection::open().expect("root");
        let error = refuse(&mut other, |transaction| transaction.add_chain(&chain("a")));
        assert_eq!(error, Error::Owned { family: Family::Ip, table: "t".into(), port: owner.port() });
        assert_eq!(error.retry(), Retry::Never);
        refuse(&mut other, |transaction| transaction.delete_table(Family::Ip, "t"));
        nft(&["flush", "ruleset"]);
        commit(&mut owner, |transaction| transaction.add_chain(&chain("a")));
        assert!(listing().contains("chain a"));
    });
}

#[test]
fn an_orphan_is_adopted() {
    in_namespace(|| {
        let mut first = Connection::open().expect("root");
        if !can_persist(&mut first) {
            return;
        }
        commit(&mut first, |transaction| {
            transaction.add_table(&owned());
            transaction.add_chain(&chain("a"));
        });
        drop(first);
        let mut second = Connection::open().expect("root");
        let orphan = second.table(Family::Ip, "t").expect("table").expect("still there");
        assert_eq!((orphan.owner, orphan.flags.persist), (None, true));
        commit(&mut second, |transaction| transaction.add_table(&owned()));
        let adopted = second.table(Family::Ip, "t").expect("table").expect("there");
        assert_eq!((adopted.owner, adopted.use_count), (Some(second.port()), 1));
        // The owner may state its table again.
        commit(&mut second, |transaction| transaction.add_table(&owned()));
    });
}

#[test]
fn without_persist_it_goes_with_its_owner() {
    in_namespace(|| {
        let mut first = Connection::open().expect("root");
        let table = Table { flags: TableFlags { owner: true, persist: false }, ..table() };
        commit(&mut first, |transaction| transaction.add_table(&table));
        drop(first);
        assert_eq!(Connection::open().expect("root").tables().expect("tables"), []);
    });
}
