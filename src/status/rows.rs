//! Rows of frontends and endpoints in the very shape of `ipvsadm -ln`: people and scripts know it.
//!
//! Widths and headings are those of ipvsadm 1.31. `Masq` is what IPVS calls the way we forward, too: the destination is translated. A frontend that
//! refuses or drops says so behind its scheduler, where IPVS has flags. What objects say (names, schedulers) is made safe to print here.
//!
//! Proven by `tests/e2e/operator.rs`, by a script written for ipvsadm.

use std::io::{self, Write};
use std::net::SocketAddr;

use crate::model::plain;

/// Where the column of addresses ends.
pub const ADDRESS_END: usize = 33;

/// The first row of all.
///
/// # Errors
/// Of the writer; so everywhere here.
pub fn title(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "IP Virtual Server version {} (pointsman)", env!("CARGO_PKG_VERSION"))
}

/// The title and what the columns are.
///
/// # Errors
/// Of the writer.
pub fn heading(out: &mut impl Write) -> io::Result<()> {
    title(out)?;
    writeln!(out, "Prot LocalAddress:Port Scheduler Flags")?;
    writeln!(out, "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn")
}

/// A frontend; `persistent` in seconds.
///
/// # Errors
/// Of the writer.
pub fn frontend(
    out: &mut impl Write,
    protocol: &str,
    at: SocketAddr,
    scheduler: &str,
    persistent: Option<u32>,
    verdict: Option<&str>,
) -> io::Result<()> {
    write!(out, "{:<4} {at} {}", plain(protocol), plain(scheduler))?;
    if let Some(seconds) = persistent {
        write!(out, " persistent {seconds}")?;
    }
    if let Some(verdict) = verdict {
        write!(out, " {}", plain(verdict))?;
    }
    writeln!(out)
}

/// Rows of endpoints. A hundred thousand of them mostly end alike.
#[derive(Debug, Default)]
pub struct EndpointRows {
    /// Weight, active and inactive connections of the last one, and how its row ended.
    numbers: Option<(u16, u64, u64)>,
    end: String,
    row: Vec<u8>,
}

impl EndpointRows {
    /// An endpoint with its weight, active and inactive connections.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&mut self, out: &mut impl Write, at: SocketAddr, numbers: (u16, u64, u64)) -> io::Result<()> {
        if self.numbers != Some(numbers) {
            let (weight, active, inactive) = numbers;
            self.numbers = Some(numbers);
            self.end = format!(" {:<7} {weight:<6} {active:<10} {inactive:<10}\n", "Masq");
        }
        self.row.clear();
        write!(self.row, "  -> {at}")?;
        self.row.resize(self.row.len().max(ADDRESS_END), b' ');
        self.row.extend_from_slice(self.end.as_bytes());
        out.write_all(&self.row)
    }
}
