//! Every expression is accepted by the kernel and printed by nft.

use std::time::Duration;

use nft::*;

use super::support::*;

const R1: Reg = Reg::R1;

fn eq_proto(number: u8) -> [Expr; 2] {
    [Expr::l4proto(R1), Expr::eq(R1, Key::new().proto(number))]
}

fn program(family: Family, sets: &[Set], chains: &[Chain], rules: &[(&str, Vec<Expr>)]) -> String {
    let mut connection = Connection::open().expect("root");
    commit(&mut connection, |transaction| {
        transaction.add_table(&Table::new(family, "t"));
        sets.iter().for_each(|set| transaction.add_set(set));
        chains.iter().for_each(|chain| transaction.add_chain(chain));
    });
    // One by one, so that a refusal names its rule.
    for (chain, exprs) in rules {
        commit(&mut connection, |transaction| {
            transaction.add_rule(&Rule::new(family, "t", *chain, exprs.clone()));
        });
    }
    listing()
}

#[test]
fn matches_and_statements() {
    in_namespace(|| {
        let sets = [Set::new(Family::Ip, "t", "addresses", [Field::Ipv4Addr])];
        let mark = |n| Key::new().mark(n);
        let fib = FibFlags { daddr: true, ..FibFlags::default() };
        let ct = |key, direction| Expr::CtLoad { key, direction, dreg: R1 };
        let mut tcp_reset = eq_proto(6).to_vec();
        tcp_reset.push(Expr::Reject(Reject::TcpReset));
        let rules = [
            ("a", vec![Expr::ip_saddr(R1), Expr::lookup("addresses", R1), Expr::counter()]),
            (
                "a",
                vec![
                    Expr::ip_saddr(R1),
                    Expr::Lookup { set: "addresses".into(), sreg: R1, dreg: None, inverted: true },
                    Expr::Verdict(Verdict::Return),
                ],
            ),
            (
                "a",
                vec![
                    Expr::ip_daddr(R1),
                    Expr::eq(R1, Key::new().ipv4([10, 0, 0, 1].into())),
                    Expr::Verdict(Verdict::Accept),
                ],
            ),
            (
                "a",
                vec![
                    Expr::ip_daddr(R1),
                    Expr::Bitwise {
                        sreg: R1,
                        dreg: R1,
                        mask: Key::new().ipv4([255, 255, 0, 0].into()),
                        xor: Key::new().ipv4([0, 0, 0, 0].into()),
                    },
                    Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: Key::new().ipv4([10, 96, 0, 0].into()) },
                    Expr::Verdict(Verdict::Jump("b".into())),
                ],
            ),
            (
                "a",
                [
                    &eq_proto(17)[..],
                    &[
                        Expr::th_dport(R1),
                        Expr::Range {
                            sreg: R1,
                            negated: true,
                            from: Key::new().port(30000),
                            to: Key::new().port(32767),
                        },
                        Expr::Verdict(Verdict::Drop),
                    ],
                ]
                .concat(),
            ),
            (
                "a",
                [
                    &eq_proto(6)[..],
                    &[
                        Expr::th_sport(R1),
                        Expr::Cmp { sreg: R1, op: CmpOp::Lt, data: Key::new().port(1024) },
                        Expr::Verdict(Verdict::Goto("b".into())),
                    ],
                ]
                .concat(),
            ),
            (
                "a",
                vec![
                    Expr::MetaLoad { key: MetaKey::Mark, dreg: R1 },
                    Expr::mask(R1, 0x4000),
                    Expr::eq(R1, mark(0x4000)),
                ],
            ),
            ("a", vec![Expr::Immediate { dreg: R1, data: mark(7) }, Expr::MetaSet { key: MetaKey::Mark, sreg: R1 }]),
            ("a", vec![Expr::MetaLoad { key: MetaKey::IifName, dreg: R1 }, Expr::eq(R1, Key::new().ifname("lo"))]),
            (
                "a",
                vec![ct(CtKey::State, None), Expr::mask(R1, 6), Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: mark(0) }],
            ),
            (
                "a",
                vec![
                    ct(CtKey::Status, None),
                    Expr::mask(R1, 32),
                    Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: mark(0) },
                ],
            ),
            ("a", vec![ct(CtKey::Mark, None), Expr::eq(R1, mark(9))]),
            ("a", vec![ct(CtKey::DstIp, Some(Direction::Original)), Expr::lookup("addresses", R1)]),
            ("a", vec![ct(CtKey::ProtoDst, Some(Direction::Original)), Expr::eq(R1, Key::new().port(80))]),
            ("a", vec![Expr::Symhash { modulus: 7, offset: 0, dreg: R1 }, Expr::CtSet { key: CtKey::Mark, sreg: R1 }]),
            ("a", vec![Expr::Fib { result: FibResult::AddrType, flags: fib, dreg: R1 }, Expr::eq(R1, mark(2))]),
            (
                "a",
                vec![
                    Expr::ip_saddr(R1),
                    Expr::Jhash { sreg: R1, len: 4, modulus: 4, seed: Some(0x5eed), offset: 1, dreg: R1 },
                    Expr::MetaSet { key: MetaKey::Mark, sreg: R1 },
                ],
            ),
            (
                "a",
                vec![
                    Expr::Numgen { kind: NumgenKind::Incremental, modulus: 3, offset: 5, dreg: R1 },
                    Expr::MetaSet { key: MetaKey::Priority, sreg: R1 },
                ],
            ),
            (
                "a",
                vec![
                    Expr::Immediate { dreg: R1, data: Key::new().ipv4([10, 0, 0, 7].into()) },
                    Expr::PayloadSet {
                        base: PayloadBase::Network,
                        offset: 16,
                        len: 4,
                        sreg: R1,
                        checksum: Some(Checksum { kind: ChecksumKind::Inet, offset: 10, pseudo_header: true }),
                    },
                ],
            ),
            (
                "a",
                vec![
                    Expr::Limit { rate: 10, unit: LimitUnit::Minute, burst: 5, over: true },
                    Expr::Verdict(Verdict::Drop),
                ],
            ),
            ("a", vec![Expr::Connlimit { count: 10, over: true }, Expr::Verdict(Verdict::Drop)]),
            ("a", vec![Expr::Log { prefix: Some("seen ".into()), group: Some(3) }]),
            ("a", vec![Expr::Log { prefix: Some("kernel ".into()), group: None }]),
            ("raw", vec![Expr::Notrack]),
            ("input", tcp_reset),
            ("input", vec![Expr::Reject(Reject::Icmp(3))]),
        ];
        let chains = [
            chain("b"),
            chain("a"),
            chain("input").hooked(ChainKind::Filter, Hook::Input, 0),
            chain("raw").hooked(ChainKind::Filter, Hook::Prerouting, -300),
        ];
        insta::assert_snapshot!("statements", program(Family::Ip, &sets, &chains, &rules));
    });
}

#[test]
fn translation() {
    in_namespace(|| {
        let full = NatFlags { fully_random: true, ..NatFlags::default() };
        let port = |n| Expr::Immediate { dreg: Reg::slot(8), data: Key::new().port(n) };
        let address = |n, slot| Expr::Immediate { dreg: Reg::slot(slot), data: Key::new().ipv4([10, 0, 0, n].into()) };
        let nat = |kind, addr_max, port, port_max, flags| Expr::Nat {
            kind,
            family: Family::Ip,
            addr: Some(R1),
            addr_max,
            port,
            port_max,
            flags,
        };
        let upper = Expr::Immediate { dreg: Reg::slot(9), data: Key::new().port(2000) };
        let slot = |n| Some(Reg::slot(n));
        let none = NatFlags::default();
        let random = NatFlags { random: true, persistent: true, fully_random: false };
        let tcp = eq_proto(6);
        let rules = [
            ("pre", vec![address(1, 0), nat(NatKind::Dnat, None, None, None, none)]),
            ("pre", [&tcp[..], &[address(1, 0), port(8080), nat(NatKind::Dnat, None, slot(8), None, none)]].concat()),
            ("pre", [&tcp[..], &[port(8080), Expr::Redirect { port: slot(8), flags: none }]].concat()),
            (
                "post",
                [
                    &tcp[..],
                    &[address(1, 0), address(9, 1), port(1000), upper],
                    &[nat(NatKind::Snat, slot(1), slot(8), slot(9), random)],
                ]
                .concat(),
            ),
            ("post", vec![Expr::Masquerade { flags: full }]),
            ("post", vec![Expr::Masquerade { flags: none }]),
            (
                "mangle",
                [&tcp[..], &[port(8080), Expr::Tproxy { family: Family::Ip, addr: None, port: slot(8) }]].concat(),
            ),
        ];
        let chains = [
            chain("pre").hooked(ChainKind::Nat, Hook::Prerouting, -100),
            chain("post").hooked(ChainKind::Nat, Hook::Postrouting, 100),
            chain("mangle").hooked(ChainKind::Filter, Hook::Prerouting, -150),
        ];
        insta::assert_snapshot!("translation", program(Family::Ip, &[], &chains, &rules));
    });
}

#[test]
fn sets_that_rules_fill_and_stateful_objects() {
    in_namespace(|| {
        let affinity = Set {
            has_timeouts: true,
            dynamic: true,
            size: Some(1024),
            ..Set::map(
                Family::Ip,
                "t",
                "affinity",
                [Field::Ipv4Addr, Field::Ipv4Addr, Field::InetProto, Field::InetService],
                SetData::Value(vec![Field::Mark]),
            )
        };
        let clients =
            Set { dynamic: true, size: Some(1024), ..Set::new(Family::Ip, "t", "clients", [Field::Ipv4Addr]) };
        let counters = Set::map(Family::Ip, "t", "counters", [Field::Ipv4Addr], SetData::Object(StatefulKind::Counter));
        let mut connection = Connection::open().expect("root");
        let (family, table_name) = (Family::Ip, "t".to_owned());
        let counter = |name: &str| Stateful::Counter {
            family,
            table: table_name.clone(),
            name: name.into(),
            comment: Some("counts".into()),
        };
        let quota = Stateful::Quota { family, table: table_name.clone(), name: "q".into(), bytes: 1 << 20, over: true };
        let limit = Stateful::Limit {
            family,
            table: table_name.clone(),
            name: "l".into(),
            rate: 5,
            unit: LimitUnit::Second,
            burst: 5,
            over: false,
        };
        let web = Key::new().ipv4([10, 0, 0, 1].into());
        commit(&mut connection, |transaction| {
            transaction.add_table(&table());
            for object in [&counter("c"), &counter("gone"), &quota, &limit] {
                transaction.add_stateful(object);
            }
            transaction.add_set(&affinity);
            transaction.add_set(&clients);
            transaction.add_set(&counters);
            let element = Element { data: ElementData::Object("c"), ..Element::new(web.as_bytes()) };
            transaction.add_elements(&counters, &counters.key, [element]);
            transaction.add_chain(&chain("a"));
            transaction.delete_stateful(Family::Ip, "t", StatefulKind::Counter, "gone");
        });
        let keys = [
            Expr::ip_saddr(Reg::slot(0)),
            Expr::ip_daddr(Reg::slot(1)),
            Expr::l4proto(Reg::slot(2)),
            Expr::th_dport(Reg::slot(3)),
        ];
        let remember = |op, timeout| Expr::Dynset {
            op,
            set: "affinity".into(),
            key: R1,
            data: Some(Reg::slot(4)),
            timeout,
            stateful: None,
        };
        let pick = Expr::Numgen { kind: NumgenKind::Random, modulus: 3, offset: 0, dreg: Reg::slot(4) };
        let timeout = Some(Duration::from_secs(10800));
        let connlimit = Expr::Dynset {
            op: DynsetOp::Add,
            set: "clients".into(),
            key: R1,
            data: None,
            timeout: None,
            stateful: Some(Box::new(Expr::Connlimit { count: 20, over: true })),
        };
        let rules = [
            [&keys[..], &[pick.clone(), remember(DynsetOp::Update, timeout)]].concat(),
            [&keys[..], &[Expr::map("affinity", R1, R1), Expr::MetaSet { key: MetaKey::Priority, sreg: R1 }]].concat(),
            vec![Expr::ip_saddr(R1), connlimit, Expr::Verdict(Verdict::Drop)],
            vec![Expr::Objref { kind: StatefulKind::Counter, name: "c".into() }],
            vec![Expr::Objref { kind: StatefulKind::Quota, name: "q".into() }, Expr::Verdict(Verdict::Drop)],
            vec![Expr::Objref { kind: StatefulKind::Limit, name: "l".into() }, Expr::Verdict(Verdict::Accept)],
            vec![Expr::ip_daddr(R1), Expr::ObjrefMap { set: "counters".into(), sreg: R1 }],
        ];
        for exprs in rules {
            commit(&mut connection, |transaction| transaction.add_rule(&rule("a", exprs)));
        }
        insta::assert_snapshot!("stateful", nft(&["list", "ruleset"]));
        // nft 1.0.6 has no JSON for a dynset with data: it leaves the statement out, says so, and goes on.
        let (json, complaint) = nft_with_complaint(&["-j", "list", "ruleset"]);
        assert!(json.starts_with("{\"nftables\""), "{json}");
        assert_eq!(complaint, "warning: stmt ops map have no json callback\n");
    });
}

#[test]
fn rejections_of_the_other_families() {
    in_namespace(|| {
        let base = |family| Chain::new(family, "t", "in").hooked(ChainKind::Filter, Hook::Input, 0);
        program(Family::Ip6, &[], &[base(Family::Ip6)], &[("in", vec![Expr::Reject(Reject::Icmpv6(4))])]);
        let listing =
            program(Family::Inet, &[], &[base(Family::Inet)], &[("in", vec![Expr::Reject(Reject::Icmpx(1))])]);
        insta::assert_snapshot!("rejections", listing);
    });
}

#[test]
fn rules_are_inserted_replaced_deleted_and_flushed() {
    in_namespace(|| {
        let mut connection = Connection::open().expect("root");
        let verdict = |verdict| rule("a", vec![Expr::Verdict(verdict)]);
        commit(&mut connection, |transaction| {
            transaction.add_table(&table());
            transaction.add_chain(&chain("a"));
            transaction.add_rule(&verdict(Verdict::Accept));
            transaction.insert_rule(&verdict(Verdict::Drop));
        });
        let rules = connection.rules(Family::Ip, "t").expect("rules");
        commit(&mut connection, |transaction| {
            transaction.replace_rule(rules[0].handle, &verdict(Verdict::Return));
            transaction.delete_rule(Family::Ip, "t", "a", rules[1].handle);
        });
        insta::assert_snapshot!(listing(), @r"
        table ip t {
        	chain a {
        		return
        	}
        }
        ");
        commit(&mut connection, |transaction| transaction.flush_chain(Family::Ip, "t", "a"));
        assert_eq!(connection.rules(Family::Ip, "t").expect("rules"), []);
        commit(&mut connection, |transaction| transaction.delete_chain(Family::Ip, "t", "a"));
        assert_eq!(connection.chains(Family::Ip, "t").expect("chains"), []);
    });
}
