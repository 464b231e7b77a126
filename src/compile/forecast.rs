//! How many elements tables will have, by what decisions will come to ([`Prospect`]).
//!
//! A map's size is declared when the map is made, before most of what will be in it is decided. Declared are twice as many as forecast, so what
//! counts is that a forecast is not far too large; one that is too small costs the time of making the tables anew.
//!
//! Proven by the property test of `engine/forecast.rs`.

use std::collections::BTreeSet;

use super::layout::Plan;
use super::pool::plan;
use crate::policy::{Hopefuls, Path, Prospect};
use crate::schedule::{Hand, Scheduler, TableSizes};

/// How many elements a table will have, by the maps and sets that grow with the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// How slots are picked, as far as Services share that.
    pub plans: BTreeSet<Plan>,
    /// In map `services`.
    pub services: usize,
    /// In map `node-ports`.
    pub node_ports: usize,
    /// In map `admitted`.
    pub admitted: usize,
    /// In each of the maps `inside` and `outside`.
    pub local_policy: usize,
    /// In map `instead`.
    pub instead: usize,
    /// In map `endpoints`.
    pub endpoints: usize,
    /// In map `dedicated`.
    pub dedicated: usize,
    /// In map `members`.
    pub members: usize,
    /// In map `member-slots`.
    pub member_slots: usize,
    /// In set `cluster-ips`.
    pub cluster_ips: usize,
    /// In set `hairpins`.
    pub hairpins: usize,
    /// In sets `masqueraded` and `masqueraded-from-host`.
    pub masqueraded: [usize; 2],
    /// In sets `masqueraded-node-ports` and `masqueraded-node-ports-from-host`.
    pub masqueraded_node_ports: [usize; 2],
}

// === impl Forecast ===

impl Forecast {
    /// Counts the ports of a Service in that are of one family, where hash tables are of these sizes.
    pub fn add<'a>(&mut self, ports: impl Iterator<Item = &'a Prospect>, tables: TableSizes) {
        let (mut addresses, mut here) = (0, 0);
        for port in ports {
            self.add_port(port, tables);
            // All ports have the same addresses, and the same pods mostly.
            (addresses, here) = (addresses.max(port.internal), here.max(port.here));
        }
        self.cluster_ips += addresses;
        self.hairpins += here;
    }

    fn add_port(&mut self, port: &Prospect, tables: TableSizes) {
        self.services += port.internal + port.external;
        self.masqueraded[usize::from(port.keeps_source)] += port.external;
        let node_ports = usize::from(port.node_port);
        self.node_ports += node_ports;
        self.masqueraded_node_ports[usize::from(port.keeps_source)] += node_ports;
        self.admitted += usize::from(port.has_ranges);
        self.local_policy += usize::from(port.keeps_source);
        for hopefuls in [&port.cluster, &port.local].into_iter().filter(|hopefuls| hopefuls.count() > 0) {
            self.add_pool(port, hopefuls, tables);
        }
    }

    fn add_pool(&mut self, port: &Prospect, hopefuls: &Hopefuls, tables: TableSizes) {
        let mut scheduler = port.scheduler;
        if let Path::Userspace(reason) = port.path {
            self.instead += 1;
            if !reason.has_kernel_path() {
                // The pool is there for its number.
                self.endpoints += 1;
                return;
            }
            // That is whom the kernel asks when the forwarder is not there.
            scheduler = Scheduler::Random;
        }
        let (pick, slots) = match hopefuls {
            Hopefuls::Equals(count) => scheduler.first_deal_to_equals(*count, tables),
            Hopefuls::Weighted(candidates) => {
                let hand = Hand { candidates, previous: &[], seed: 0, changes: 0, tables };
                let deal = scheduler.deal(hand);
                (deal.pick, deal.slots.len())
            }
        };
        match plan(pick, slots, port.affinity) {
            Some(plan) if plan.is_shared() => drop(self.plans.insert(plan)),
            _ => self.dedicated += 1,
        }
        if port.affinity {
            self.member_slots += slots;
            self.members += hopefuls.count();
        } else {
            self.endpoints += slots;
        }
    }
}
