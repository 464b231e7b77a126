//! Who takes part, and what each must be able to do.
//!
//! A [`Contender`] is a way to serve Services; started on a [`Stage`], it is [`Running`] until it is dropped. Its [`Kind`] says what it
//! is: a *real binary* is the very program that people run; a *baseline* is written by us and reproduces, by the documents and the real
//! tools (`nft`, `iptables-restore`, `ipvsadm`), the shape of what kube-proxy puts into the kernel, but not its control plane; the *floor*
//! is the network without a proxy; a *yardstick* is one rule by hand.
//!
//! Whatever a contender cannot do here it says: [`Contender::unavailable`] for this machine, [`Contender::declines`] for one measurement.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::daemon::{self, Daemon};
use super::fixed::{Direct, DnatRule};
use super::iptables::{Iptables, Variant};
use super::ipvs::Ipvs;
use super::model::{Measurement, Service};
use super::nftables::Nftables;
use super::proxies::{Haproxy, Nginx};
use super::stage::Stage;

/// What a contender is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Floor,
    Yardstick,
    Ours,
    Baseline,
    Binary,
}

/// What a control plane has used and holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time so far, in seconds.
    pub cpu: f64,
    /// Resident memory in bytes; of programs that have ended, the most.
    pub memory: u64,
}

/// See the module.
pub trait Contender: Sync {
    /// In records and tables.
    fn name(&self) -> &str;
    fn kind(&self) -> Kind;
    /// One line for the report.
    fn title(&self) -> String;
    /// What its programs say of themselves.
    fn version(&self) -> String;
    /// Why it cannot take part on this machine.
    fn unavailable(&self) -> Option<String>;
    /// Why it has nothing to show here, though it takes part.
    fn declines(&self, measurement: Measurement, services: u32) -> Option<String>;
    /// Schedulers whose balance is of interest, its default first.
    fn schedulers(&self) -> &'static [&'static str] {
        &[]
    }
    /// Schedulers that keep a client's endpoint.
    fn steady(&self) -> &'static [&'static str] {
        &[]
    }
    /// Which Services its connections are spread over: all, or fewer.
    fn targets(&self, services: u32) -> u32 {
        services
    }
    /// Where a client connects to for a Service: its address, unless there is no Service.
    fn address(&self, service: &Service) -> std::net::SocketAddr {
        service.to()
    }
    /// Programs all this from nothing. What can be prepared is prepared before [`Running::began`].
    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>>;
}

/// A contender at work; gone when dropped, together with its stage.
pub trait Running {
    /// When its program was started.
    fn began(&self) -> Instant;
    /// Fails once it cannot serve any more.
    fn alive(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// Hands over what a Service now is; returns when that is done, which may be before it has effect.
    fn change(&mut self, service: &Service) -> anyhow::Result<()>;
    /// As its program's next start would.
    fn restart(&mut self) -> anyhow::Result<()>;
    fn usage(&self) -> anyhow::Result<Usage>;
}

/// Everybody, in the order of tables; `kube_proxy` is a real one, if there is one.
pub fn all(kube_proxy: Option<&PathBuf>) -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![
        Box::new(Direct),
        Box::new(DnatRule),
        Box::new(Daemon::ours("pointsman", "nftables")),
        Box::new(Nftables),
        Box::new(Iptables(Variant::Nft)),
        Box::new(Iptables(Variant::Legacy)),
        Box::new(Ipvs),
        Box::new(Daemon::ours("pointsman-userspace", "userspace")),
        Box::new(Haproxy),
        Box::new(Nginx),
    ];
    for mode in daemon::MODES.into_iter().filter(|_| kube_proxy.is_some()) {
        all.push(Box::new(Daemon::real(kube_proxy.expect("filtered").clone(), mode)));
    }
    all
}

// === impl Kind ===

impl Kind {
    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Yardstick => "yardstick",
            Self::Ours => "real binary, ours",
            Self::Baseline => "baseline",
            Self::Binary => "real binary",
        }
    }
}
