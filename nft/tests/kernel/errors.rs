//! A refusal names the operation, the object and the element.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nft::*;
use nix::errno::Errno;

use super::support::*;

/// Adds elements `numbers` of `endpoints`.
fn add(transaction: &mut Transaction, set: &Set, numbers: impl IntoIterator<Item = u32>) {
    let pairs: Vec<_> = numbers.into_iter().map(|n| (key(n), value(n))).collect();
    let elements =
        pairs.iter().map(|(key, value)| Element::value(key.as_bytes(), value.as_bytes()).comment("default/web:http"));
    transaction.add_elements(set, &set.key, elements);
}

#[test]
fn a_duplicate_is_named() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        commit(&mut connection, |transaction| add(transaction, &set, [7]));
        let error = refuse(&mut connection, |transaction| add(transaction, &set, 0..10));
        assert_eq!(
            error.to_string(),
            "add elements to map ip t endpoints, element 10.96.0.7 . tcp . 80 (\"default/web:http\"): File exists (EEXIST)"
        );
        assert_eq!((error.errno(), error.retry()), (Some(Errno::EEXIST), Retry::Never));
    });
}

#[test]
fn a_duplicate_in_a_later_message_is_named() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        let error = refuse(&mut connection, |transaction| add(transaction, &set, (0..5000).chain([4321])));
        let element = error.refusal().and_then(|refusal| refusal.element.clone()).expect("an element");
        assert_eq!((element.index, element.key.as_str()), (5000, "10.96.16.225 . tcp . 80"));
    });
}

#[test]
fn a_missing_element_is_named() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        commit(&mut connection, |transaction| add(transaction, &set, [1, 2]));
        let error = refuse(&mut connection, |transaction| {
            let keys = [key(1), key(3), key(2)];
            transaction.delete_elements(&set, &set.key, keys.iter().map(|key| Element::new(key.as_bytes())));
        });
        assert_eq!(
            error.to_string(),
            "delete elements from set ip t endpoints, element 10.96.0.3 . tcp . 80: No such file or directory (ENOENT)"
        );
    });
}

#[test]
fn a_full_set_is_named() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(Some(4));
        let error = refuse(&mut connection, |transaction| add(transaction, &set, 0..6));
        assert_eq!(
            error.to_string(),
            "add elements to map ip t endpoints, element 10.96.0.4 . tcp . 80 (\"default/web:http\"): the set is full (ENFILE)"
        );
    });
}

#[test]
fn missing_and_existing_objects_are_named() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        let mut message = |build: &dyn Fn(&mut Transaction)| refuse(&mut connection, build).to_string();
        let other = Set { name: "other".into(), ..set.clone() };
        assert_eq!(
            message(&|transaction| add(transaction, &other, [1])),
            "add elements to map ip t other: No such file or directory (ENOENT)"
        );
        assert_eq!(message(&|transaction| transaction.create_table(&table())), "add table ip t: File exists (EEXIST)");
        assert_eq!(
            message(&|transaction| transaction.delete_table(Family::Ip6, "t")),
            "delete table ip6 t: No such file or directory (ENOENT)"
        );
        assert_eq!(
            message(&|transaction| {
                transaction.add_rule(&rule("gone", vec![Expr::counter()]));
                transaction.delete_set(SetRef::new(Family::Ip, "t", "gone"));
            }),
            "add rule in chain ip t gone: No such file or directory (ENOENT); 1 further refusal"
        );
    });
}

#[test]
fn a_busy_object_may_be_tried_again() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        let exprs = vec![
            Expr::ip_daddr(Reg::slot(0)),
            Expr::l4proto(Reg::slot(1)),
            Expr::th_dport(Reg::slot(2)),
            Expr::map("endpoints", Reg::R1, Reg::R1),
        ];
        commit(&mut connection, |transaction| {
            transaction.add_chain(&chain("a"));
            transaction.add_rule(&rule("a", exprs));
        });
        let error = refuse(&mut connection, |transaction| transaction.delete_set(&set));
        assert_eq!((error.errno(), error.retry()), (Some(Errno::EBUSY), Retry::Backoff));
        assert_eq!(error.to_string(), "delete set ip t endpoints: Device or resource busy (EBUSY)");
    });
}

#[test]
fn what_cannot_be_sent_is_not_sent() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        let error = refuse(&mut connection, |transaction| {
            transaction.add_chain(&chain("new"));
            transaction.add_elements(&set, &set.key, [Element::new(&[1, 2, 3])]);
        });
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(!listing().contains("new"));
    });
}

#[test]
fn the_lack_of_permission_is_told() {
    const CHILD: &str = "NFT_TEST_WITHOUT_CAPABILITIES";
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(Connection::open().expect_err("no capability"), Error::Permission);
        return;
    }
    // The test itself again, as nobody: capabilities cannot be given up by one thread in safe code.
    let output = Command::new("/proc/self/exe")
        .args(["--exact", "errors::the_lack_of_permission_is_told"])
        .env(CHILD, "1")
        .current_dir("/")
        .uid(65534)
        .output()
        .expect("root, to become nobody");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("1 passed"), "{out}");
}
