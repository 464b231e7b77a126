//! What mode ipvs leaves besides iptables chains: virtual servers, the interface that holds their addresses, and ipsets.
//!
//! Virtual servers do not say who made them. kube-proxy's clean-up takes them all, and so do we when asked to clean up; without
//! being asked only if the interface `kube-ipvs0` shows that kube-proxy was here, because others use IPVS too.
//!
//! ipsets are known by kube-proxy's whole names and not by the prefix: kube-router's are called `KUBE-SRC-...` and `KUBE-DST-...`.

mod flush;

use std::fs;
use std::io;

use nix::libc;
use tracing::info;

use super::CleanupError;
use super::program::{ProgramError, run};
use crate::lab::Rtnl;

/// Holds the addresses of virtual servers.
const INTERFACE: &str = "kube-ipvs0";

/// The calling thread's network namespace's virtual servers; there if the kernel has IPVS.
const SERVERS: &str = "/proc/thread-self/net/ip_vs";

/// ipsets of IPv4, without `KUBE-`; those of IPv6 have `KUBE-6-`.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// Bytes of an ipset's name (`IPSET_MAXNAMELEN` less the NUL); kube-proxy cuts longer ones.
const NAME_LENGTH: usize = 31;

/// Removes virtual servers and the interface. Servers without that interface go only if `all` shall.
pub(super) fn remove_servers(all: bool, errors: &mut Vec<CleanupError>) {
    let (mut rtnl, present) = match Rtnl::open().and_then(|mut rtnl| has_interface(&mut rtnl).map(|has| (rtnl, has))) {
        Ok(found) => found,
        Err(error) => return errors.push(error.into()),
    };
    if (all || present)
        && let Err(error) = clear_servers()
    {
        errors.push(error);
    }
    if present {
        match rtnl.delete_link(INTERFACE) {
            Ok(()) => info!(interface = INTERFACE, "removed kube-proxy's interface"),
            Err(error) => errors.push(error.into()),
        }
    }
}

fn has_interface(rtnl: &mut Rtnl) -> Result<bool, crate::lab::LabError> {
    match rtnl.index(INTERFACE) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn clear_servers() -> Result<(), CleanupError> {
    let servers = match fs::read_to_string(SERVERS) {
        Ok(text) => count_servers(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(CleanupError::Servers(error)),
    };
    if servers > 0 {
        flush::flush().map_err(CleanupError::Servers)?;
        info!(servers, "removed IPVS virtual servers");
    }
    Ok(())
}

/// Counts virtual servers in what `/proc/net/ip_vs` says; lines of their real servers begin with `->`.
fn count_servers(text: &str) -> usize {
    let server = |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|protocol| line.starts_with(protocol));
    text.lines().filter(server).count()
}

/// Removes the ipsets; to be called when no iptables rule refers to them any more.
pub(super) fn remove_sets(errors: &mut Vec<CleanupError>) {
    let names = match run("ipset", &["list", "-n"], "") {
        Ok(names) => names.unwrap_or_default(),
        Err(error) if lacks_sets(&error) => return,
        Err(error) => return errors.push(error.into()),
    };
    let known = set_names();
    for name in names.lines().filter(|name| known.iter().any(|known| known == name)) {
        match run("ipset", &["destroy", name], "") {
            Ok(_) => info!(name, "removed kube-proxy's ipset"),
            Err(error) => errors.push(error.into()),
        }
    }
}

/// Whether the program says that it is the kernel that has no ipsets.
fn lacks_sets(error: &ProgramError) -> bool {
    matches!(error, ProgramError::Failed { said, .. } if said.contains("Cannot open session to kernel"))
}

fn set_names() -> Vec<String> {
    let name = |prefix: &str, rest: &str| format!("{prefix}{rest}").chars().take(NAME_LENGTH).collect();
    SETS.iter().flat_map(|rest| [name("KUBE-", rest), name("KUBE-6-", rest)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sets_are_cut_as_kube_proxy_cuts_them() {
        let names = set_names();
        assert!(names.contains(&"KUBE-CLUSTER-IP".to_owned()) && names.contains(&"KUBE-6-CLUSTER-IP".to_owned()));
        assert!(names.contains(&"KUBE-6-LOAD-BALANCER-SOURCE-CID".to_owned()), "{names:?}");
        assert!(names.contains(&"KUBE-6-NODE-PORT-LOCAL-SCTP-HAS".to_owned()), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= NAME_LENGTH));
    }

    #[test]
    fn virtual_servers_are_counted() {
        // As net/netfilter/ipvs/ip_vs_ctl.c prints it.
        let text = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A83201:192B      Masq    1      0          0
UDP  0A60000A:0035 rr
";
        assert_eq!(count_servers(text), 2);
        assert_eq!(count_servers(""), 0);
    }
}
