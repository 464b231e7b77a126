//! How large tables have to be for everything known, before it is decided.

use super::Engine;
use crate::compile::Forecast;
use crate::model::Family;
use crate::policy::{Context, prospects};

impl Engine {
    /// How many elements the tables of IPv4 and IPv6 will have when everything known is compiled. For tables about to be made: elements can
    /// go into them while the rest is still being compiled.
    pub fn forecast(&self) -> [Forecast; 2] {
        let mut forecasts = <[Forecast; 2]>::default();
        for service in self.store.services() {
            let ports = prospects(service, self.store.slices(&service.key), super::context!(self));
            for family in Family::ALL {
                let ports = ports.iter().filter(|port| port.family == family);
                forecasts[family as usize].add(ports, self.settings.tables);
            }
        }
        forecasts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compile::{Masquerade, Stage, TableDelta};
    use crate::engine::tests::{any_change, node, rich_service, rich_slice, small_engine};

    /// What there is.
    fn counted(table: &TableDelta) -> Forecast {
        let hops = |stage| table.hops.added().filter(|(hop, _)| hop.stage == stage).count();
        let by_source = |all: Vec<&Masquerade>| {
            let from_host_only = all.iter().filter(|one| one.from_host_only).count();
            [all.len() - from_host_only, from_host_only]
        };
        let decided = table.services.added().map(|(_, target)| target.decision.plan);
        let decided = decided.chain(table.node_ports.added().map(|(_, target)| target.decision.plan));
        let decided = decided.chain(table.hops.added().map(|(_, target)| target.decision.plan));
        Forecast {
            plans: decided.filter(|plan| plan.is_shared()).collect(),
            services: table.services.len(),
            node_ports: table.node_ports.len(),
            admitted: hops(Stage::Admitted),
            local_policy: hops(Stage::Inside).max(hops(Stage::Outside)),
            instead: hops(Stage::Instead),
            endpoints: table.endpoints.len(),
            dedicated: table.dedicated.len(),
            members: table.members.len(),
            member_slots: table.member_slots.len(),
            cluster_ips: table.cluster_ips.len(),
            hairpins: table.hairpins.len(),
            masqueraded: by_source(table.masqueraded.added().map(|(_, one)| one).collect()),
            masqueraded_node_ports: by_source(table.masqueraded_node_ports.added().map(|(_, one)| one).collect()),
        }
    }

    fn numbers(of: &Forecast) -> [usize; 15] {
        let Forecast { plans: _, masqueraded: [a, b], masqueraded_node_ports: [c, d], .. } = *of;
        let Forecast { services, node_ports, admitted, local_policy, instead, endpoints, dedicated, .. } = *of;
        let Forecast { members, member_slots, cluster_ips, hairpins, .. } = *of;
        [
            services,
            node_ports,
            admitted,
            local_policy,
            instead,
            endpoints,
            dedicated,
            members,
            member_slots,
            cluster_ips,
            hairpins,
            a,
            b,
            c,
            d,
        ]
    }

    #[test]
    fn where_everybody_is_ready_it_is_exact() {
        // random, rr and a node port, session affinity, a Local policy for internal traffic.
        for flavour in [0, 0b1_0000, 0b1, 0b10, 0b10_0000] {
            let mut engine = small_engine();
            engine.take(node(1, "east"));
            engine.take(rich_service("web", &["10.0.0.1".into(), "fd00::1".into()], flavour, &[1, 2]));
            engine.take(rich_slice("a", "web", false, &(1..8).collect(), 0));
            engine.take(rich_slice("b", "web", true, &(1..3).collect(), 0));
            let forecasts = engine.forecast();
            engine.compile();
            let everything = engine.everything();
            for (family, forecast) in Family::ALL.into_iter().zip(&forecasts) {
                assert!(forecast.services > 0, "{flavour:b}");
                assert_eq!(*forecast, counted(everything.table(family)), "{flavour:b}, {family}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever there is, there is no more of it than forecast.
        #[test]
        fn nothing_comes_to_more(history in proptest::collection::vec(any_change(), 1..40)) {
            let mut engine = small_engine();
            history.into_iter().for_each(|change| engine.take(change));
            let forecasts = engine.forecast();
            engine.compile();
            let everything = engine.everything();
            for (family, forecast) in Family::ALL.into_iter().zip(&forecasts) {
                let there = counted(everything.table(family));
                let exceeded = numbers(&there).into_iter().zip(numbers(forecast)).any(|(there, forecast)| there > forecast);
                prop_assert!(!exceeded, "{}: {:?} of {:?}", family, there, forecast);
            }
        }
    }
}
