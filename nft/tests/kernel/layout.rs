//! The ruleset that this crate is built for: one map from frontend to a number, a small verdict map on part of the number, one map
//! of endpoints on the rest.

use nft::*;

use super::support::*;

const PLAN_BITS: u32 = 0xfff;

fn addr(family: Family) -> Field {
    if family == Family::Ip6 { Field::Ipv6Addr } else { Field::Ipv4Addr }
}

/// A key that begins with an address of the family.
fn address(family: Family, n: u16) -> Key {
    match family {
        Family::Ip6 => Key::new().ipv6([0xfd00, 0, 0, 0, 0, 0, 0, n].into()),
        _ => Key::new().ipv4([10, 96, (n >> 8) as u8, n as u8].into()),
    }
}

/// `meta priority & 0xfffff000` in slot 0: which service.
fn service() -> Vec<Expr> {
    vec![Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(0) }, Expr::mask(Reg::slot(0), !PLAN_BITS)]
}

/// Dispatch on the number, as the layout does it.
pub fn dispatch(family: Family) -> Vec<Expr> {
    let slots = addr(family).padded_len() as u32 / 4;
    let load = if family == Family::Ip6 { Expr::ip6_daddr(Reg::R1) } else { Expr::ip_daddr(Reg::R1) };
    vec![
        load,
        Expr::l4proto(Reg::slot(slots)),
        Expr::th_dport(Reg::slot(slots + 1)),
        Expr::map("services", Reg::R1, Reg::R1),
        Expr::MetaSet { key: MetaKey::Priority, sreg: Reg::R1 },
        Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::R1 },
        Expr::mask(Reg::R1, PLAN_BITS),
        Expr::vmap("plans", Reg::R1),
    ]
}

/// `dnat to <service> . <slot> map @endpoints`
fn translate(family: Family, slot: Expr) -> Vec<Expr> {
    let port = Reg::slot(addr(family).padded_len() as u32 / 4);
    let mut exprs = service();
    exprs.extend([slot, Expr::map("endpoints", Reg::R1, Reg::R1), Expr::dnat(family, Reg::R1, Some(port))]);
    exprs
}

fn program(family: Family) -> Transaction {
    let table = "pointsman";
    let frontend = [addr(family), Field::InetProto, Field::InetService];
    let mut services = Set::map(family, table, "services", frontend, SetData::Value(vec![Field::Mark]));
    services.size = Some(65536);
    services.comment = Some("frontend to number".into());
    let plans = Set::map(family, table, "plans", [Field::Mark], SetData::Verdict);
    let data = SetData::Value(vec![addr(family), Field::InetService]);
    let endpoints = Set { size: Some(65536), ..Set::map(family, table, "endpoints", [Field::Mark; 2], data) };

    let mut transaction = Transaction::new();
    transaction.add_table(&Table { comment: Some("digest 1".into()), ..Table::new(family, table) });
    for set in [&services, &plans, &endpoints] {
        transaction.add_set(set);
    }
    for chain in ["random-2", "first", "only"] {
        transaction.add_chain(&Chain::new(family, table, chain));
    }
    let numgen = Expr::Numgen { kind: NumgenKind::Random, modulus: 2, offset: 0, dreg: Reg::slot(1) };
    transaction.add_rule(&Rule::new(family, table, "random-2", translate(family, numgen)));
    // Two ways to say slot 0. nft 1.0.6 lists the constant as `0x0 [invalid type]`, the generator of one number cleanly.
    let one = Expr::Numgen { kind: NumgenKind::Incremental, modulus: 1, offset: 0, dreg: Reg::slot(1) };
    transaction.add_rule(&Rule::new(family, table, "only", translate(family, one)));
    let constant = Expr::Immediate { dreg: Reg::slot(1), data: Key::new().mark(0) };
    transaction.add_rule(&Rule::new(family, table, "first", translate(family, constant)));

    let goto = Verdict::Goto("random-2".into());
    transaction.add_elements(&plans, &plans.key, [Element::verdict(Key::new().mark(2).as_bytes(), &goto)]);
    let mark = Key::new().mark(0x1002);
    let key = address(family, 9).proto(6).port(80);
    let element = Element::value(key.as_bytes(), mark.as_bytes()).comment("default/web:http");
    transaction.add_elements(&services, &services.key, [element]);
    let slots: Vec<_> = (0..2)
        .map(|slot| (Key::new().mark(0x1000).mark(slot), address(family, 256 + slot as u16).port(8080)))
        .collect();
    let elements = slots.iter().map(|(key, value)| Element::value(key.as_bytes(), value.as_bytes()));
    transaction.add_elements(&endpoints, &endpoints.key, elements);

    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        transaction.add_chain(&Chain::new(family, table, name).hooked(ChainKind::Nat, hook, -100));
        let rule = Rule::new(family, table, name, dispatch(family));
        transaction.add_rule(&Rule { comment: Some("frontends".into()), ..rule });
    }
    transaction
}

#[test]
fn it_lists_for_ipv4() {
    in_namespace(|| {
        Connection::open().expect("root").commit(&program(Family::Ip)).expect("accepted");
        insta::assert_snapshot!("layout-ip", listing());
    });
}

#[test]
fn it_lists_for_ipv6() {
    in_namespace(|| {
        Connection::open().expect("root").commit(&program(Family::Ip6)).expect("accepted");
        insta::assert_snapshot!("layout-ip6", listing());
    });
}
