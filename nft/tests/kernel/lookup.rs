//! Elements asked for by key: each is shown or missing, and the rest of the set plays no part.

use nft::*;
use nix::errno::Errno;

use super::support::*;

fn number_of(element: &ElementView<'_>) -> u32 {
    u32::from_be_bytes(element.key[..4].try_into().expect("an address")) - 0x0a60_0000
}

fn load(connection: &mut Connection, set: &Set, numbers: impl Iterator<Item = u32>) {
    let pairs: Vec<_> = numbers.map(|n| (key(n), value(n), format!("number {n}"))).collect();
    let elements =
        pairs.iter().map(|(key, value, comment)| Element::value(key.as_bytes(), value.as_bytes()).comment(comment));
    commit(connection, |transaction| transaction.add_elements(set, &set.key, elements));
}

#[test]
fn what_was_asked_for_comes_back() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(Some(1 << 14));
        load(&mut connection, &set, 0..10_000);
        let mut shown = Vec::new();
        let missing = connection.lookup(&set, (0..10_000).rev().step_by(3).map(key), |element| {
            let n = number_of(&element);
            assert_eq!(element.data, ViewData::Value(value(n).as_bytes()));
            assert_eq!(element.comment, Some(&*format!("number {n}")));
            shown.push(n);
        });
        assert_eq!(missing, Ok(0));
        assert_eq!(shown, (0..10_000).rev().step_by(3).collect::<Vec<_>>(), "once each, in the order of the keys");
    });
}

#[test]
fn missing_keys_are_counted_wherever_they_are() {
    in_namespace(|| {
        let (mut connection, set) = with_endpoints(None);
        // Every seventh is missing, the first and the last of all among them.
        load(&mut connection, &set, (0..2003).filter(|n| n % 7 != 0));
        let mut shown = Vec::new();
        let missing = connection.lookup(&set, (0..2003).map(key), |element| shown.push(number_of(&element)));
        assert_eq!(missing, Ok(287));
        assert_eq!(shown, (0..2003).filter(|n| n % 7 != 0).collect::<Vec<_>>());
        assert_eq!(connection.lookup(&set, (0..2).map(|n| key(7 * n)), |_| panic!("none is there")), Ok(2));
        assert_eq!(connection.lookup(&set, [], |_| panic!("none was asked for")), Ok(0));
        // The connection is as good as before.
        let mut counted = 0;
        connection.elements(&set, |_| counted += 1).expect("listed");
        assert_eq!(counted, 1716);
    });
}

#[test]
fn a_missing_set_is_no_missing_element() {
    in_namespace(|| {
        let (mut connection, _) = with_endpoints(None);
        let missing = SetRef::new(Family::Ip, "t", "nowhere");
        let error = connection.lookup(missing, [key(1)], |_| {}).expect_err("no such set");
        assert_eq!(error.to_string(), "read set ip t nowhere: No such file or directory (ENOENT)");
        let missing = SetRef::new(Family::Ip, "nowhere", "endpoints");
        let error = connection.lookup(missing, [key(1)], |_| {}).expect_err("no such table");
        assert!(matches!(error, Error::Query { errno: Errno::ENOENT, .. }));
        // A key of another length is refused, not missing.
        let (mut connection, set) = with_endpoints(None);
        let error = connection.lookup(&set, [Key::new().mark(1)], |_| {}).expect_err("no key of this set");
        assert!(matches!(error, Error::Query { errno: Errno::EINVAL, .. }), "{error:?}");
    });
}

#[test]
fn a_set_tells_how_many_elements_it_has() {
    in_namespace(|| {
        for size in [None, Some(1 << 12)] {
            let (mut connection, set) = with_endpoints(size);
            load(&mut connection, &set, 0..1000);
            commit(&mut connection, |transaction| {
                let keys: Vec<_> = (0..300).map(key).collect();
                transaction.delete_elements(&set, &set.key, keys.iter().map(|key| Element::new(key.as_bytes())));
            });
            load(&mut connection, &set, 2000..2010);
            let told = connection.sets(Family::Ip, "t").expect("listed")[0].count;
            let mut counted = 0;
            connection.elements(&set, |_| counted += 1).expect("listed");
            // Kernels before 6.17 do not tell; one that does tells the truth.
            assert!(told.is_none_or(|told| told == counted), "{told:?} elements, {counted} seen");
            assert_eq!(counted, 710);
            println!("the kernel says {told:?}");
            commit(&mut connection, |transaction| transaction.delete_table(Family::Ip, "t"));
        }
    });
}
