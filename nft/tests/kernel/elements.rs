//! Elements of every kind are stored, listed and read back.

use std::time::Duration;

use nft::*;

use super::support::*;

#[test]
fn comments_and_life_times() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let set = Set { has_timeouts: true, ..endpoints(None) };
        let long = "x".repeat(251);
        commit(&mut connection, |transaction| {
            transaction.add_table(&table());
            transaction.add_set(&set);
            let (one, two, data) = (key(1), key(2), value(1));
            let elements = [
                Element::value(one.as_bytes(), data.as_bytes())
                    .comment("default/web:http")
                    .timeout(Duration::from_secs(10800)),
                Element::value(two.as_bytes(), data.as_bytes()).comment(&long),
            ];
            transaction.add_elements(&set, &set.key, elements);
        });
        let seen = connection.element(&set, key(1).as_bytes(), |element| {
            assert_eq!(element.data, ViewData::Value(value(1).as_bytes()));
            (element.comment.map(str::to_owned), element.timeout, element.expires)
        });
        let (comment, timeout, expires) = seen.expect("asked").expect("there");
        assert_eq!(comment.as_deref(), Some("default/web:http"));
        assert_eq!(timeout, Some(Duration::from_secs(10800)));
        assert!(expires.is_some_and(|left| left <= Duration::from_secs(10800)));
        let text = listing();
        assert!(text.contains("10.96.0.1 . tcp . 80 timeout 3h expires"), "{text}");
        assert!(text.contains(&format!("comment \"{long}\"")), "{text}");
        let error = refuse(&mut connection, |transaction| {
            let (key, data, longer) = (key(3), value(3), "x".repeat(252));
            let element = Element::value(key.as_bytes(), data.as_bytes()).comment(&longer);
            transaction.add_elements(&set, &set.key, [element]);
        });
        assert_eq!(
            error.to_string(),
            "map ip t endpoints: a comment of 252 bytes is too long (251; 239 for sets of numbers)"
        );
    });
}

#[test]
fn lone_fields_and_verdicts() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let map = |name: &str, key: Field, data| Set::map(Family::Ip, "t", name, [key], data);
        let ports = map("ports", Field::InetService, SetData::Value(vec![Field::InetService]));
        let marks = map("marks", Field::Mark, SetData::Value(vec![Field::Mark]));
        let verdicts = map("verdicts", Field::InetProto, SetData::Verdict);
        let names = Set::new(Family::Ip, "t", "names", [Field::IfName]);
        let all = [
            Verdict::Accept,
            Verdict::Drop,
            Verdict::Return,
            Verdict::Continue,
            Verdict::Goto("a".into()),
            Verdict::Jump("a".into()),
        ];
        commit(&mut connection, |transaction| {
            transaction.add_table(&table());
            transaction.add_chain(&chain("a"));
            for set in [&ports, &marks, &verdicts, &names] {
                transaction.add_set(set);
            }
            let (from, to) = (Key::new().port(80), Key::new().port(8080));
            transaction.add_elements(&ports, &ports.key, [Element::value(from.as_bytes(), to.as_bytes())]);
            let (from, to) = (Key::new().mark(3), Key::new().mark(0x1003));
            transaction.add_elements(&marks, &marks.key, [Element::value(from.as_bytes(), to.as_bytes())]);
            let protos: Vec<_> = (0..6).map(|n| Key::new().proto(n)).collect();
            let elements = protos.iter().zip(&all).map(|(key, verdict)| Element::verdict(key.as_bytes(), verdict));
            transaction.add_elements(&verdicts, &verdicts.key, elements);
            let name = Key::new().ifname("eth0");
            transaction.add_elements(&names, &names.key, [Element::new(name.as_bytes())]);
        });
        insta::assert_snapshot!("lone", listing());
        for (number, verdict) in all.iter().enumerate() {
            let key = Key::new().proto(number as u8);
            let read = connection
                .element(&verdicts, key.as_bytes(), |element| element.data == ViewData::Verdict(verdict.clone()));
            assert_eq!(read.expect("asked"), Some(true), "{verdict}");
        }
    });
}

#[test]
fn ranges() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let single = Set { interval: true, ..Set::new(Family::Ip, "t", "single", [Field::Ipv4Addr]) };
        let several = Set { interval: true, ..Set::new(Family::Ip, "t", "several", FIELDS) };
        let net = |a, b, end: u8| Key::new().ipv4([a, b, end, end].into());
        let port = |key: Key, port| key.proto(6).port(port);
        commit(&mut connection, |transaction| {
            transaction.add_table(&table());
            transaction.add_set(&single);
            transaction.add_set(&several);
            let pairs = [(net(10, 0, 0), net(10, 0, 255)), (net(255, 255, 0), net(255, 255, 255))];
            let elements = pairs.iter().map(|(from, to)| Element::new(from.as_bytes()).until(to.as_bytes()));
            transaction.add_elements(&single, &single.key, elements);
            let (from, to) = (port(net(10, 0, 0), 80), port(net(10, 0, 255), 90));
            transaction.add_elements(&several, &several.key, [Element::new(from.as_bytes()).until(to.as_bytes())]);
        });
        insta::assert_snapshot!("ranges", listing());
        commit(&mut connection, |transaction| {
            let (from, to) = (net(10, 0, 0), net(10, 0, 255));
            transaction.delete_elements(&single, &single.key, [Element::new(from.as_bytes()).until(to.as_bytes())]);
        });
        assert!(!listing().contains("10.0.0.0/16 }"));
    });
}

#[test]
fn an_element_is_replaced_in_one_transaction() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(Some(16));
        for round in 0..3 {
            let (key, data) = (key(1), value(round));
            commit(&mut connection, |transaction| {
                if round > 0 {
                    transaction.delete_elements(&set, &set.key, [Element::new(key.as_bytes())]);
                }
                transaction.add_elements(&set, &set.key, [Element::value(key.as_bytes(), data.as_bytes())]);
            });
            let read =
                connection.element(&set, key.as_bytes(), |element| element.data == ViewData::Value(data.as_bytes()));
            assert_eq!(read.expect("asked"), Some(true));
        }
    });
}

#[test]
fn the_longest_comments_are_listed() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let comment = Some("y".repeat(251));
        commit(&mut connection, |transaction| {
            transaction.add_table(&Table { comment: comment.clone(), ..table() });
            transaction.add_set(&Set { comment: comment.clone(), ..endpoints(None) });
            transaction.add_chain(&Chain { comment: comment.clone(), ..chain("a") });
            transaction.add_rule(&Rule { comment: comment.clone(), ..rule("a", vec![Expr::counter()]) });
            let (family, table) = (Family::Ip, "t".to_owned());
            transaction.add_stateful(&Stateful::Counter { family, table, name: "c".into(), comment: comment.clone() });
        });
        assert_eq!(listing().matches(comment.as_deref().expect("set")).count(), 5);
    });
}
