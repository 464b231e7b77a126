//! Has the kernel lead connections to listeners of ours, and remembers which it leads where.
//!
//! The kernel may refuse, for instance when a table of our name is somebody else's. Nobody is led here then, and the kernel carries
//! what it can. That is said once, tried again with [`Backoff`], and said once more when it works. Proven by `tests/e2e/forward.rs`.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{debug, error, info};

use super::backoff::Backoff;
use crate::forward::RouteId;
use crate::kernel::redirects::{Redirect, Redirects};

/// What leads to listeners, once something does. Dropping it has the kernel lead nobody here.
#[derive(Debug, Default)]
pub(super) struct Leading {
    redirects: Option<Redirects>,
    led: BTreeMap<RouteId, Redirect>,
    /// The last attempt was refused.
    refused: Option<Backoff>,
    /// Its pause is not over.
    waiting: bool,
}

// === impl Leading ===

impl Leading {
    /// When there is something to be tried again.
    pub fn deadline(&self) -> Option<Instant> {
        self.refused.filter(|_| self.waiting).map(|refused| refused.at)
    }

    /// Whether the kernel may be asked again; until then nothing is changed.
    pub fn may_ask(&mut self, now: Instant) -> bool {
        self.waiting &= self.refused.is_some_and(|refused| !refused.is_due(now));
        !self.waiting
    }

    /// Has the kernel lead these routes' connections there, or to nobody of ours. False if it refused: then it leads nobody to us, of
    /// any route.
    pub fn change(&mut self, wanted: BTreeMap<RouteId, Option<Redirect>>) -> bool {
        let (mut ended, mut begun) = (Vec::new(), Vec::new());
        for (route, after) in &wanted {
            let before = self.led.get(route).copied();
            if before != *after {
                ended.extend(before);
                begun.extend(*after);
            }
        }
        if ended.is_empty() && begun.is_empty() {
            return true;
        }
        let redirects = match &mut self.redirects {
            Some(redirects) => Ok(redirects),
            none => Redirects::open().map(|opened| none.insert(opened)),
        };
        match redirects.and_then(|redirects| redirects.change(&ended, &begun)) {
            Ok(()) => {
                if self.refused.take().is_some() {
                    info!("connections are led to the forwarder again");
                }
                for (route, redirect) in wanted {
                    match redirect {
                        Some(redirect) => self.led.insert(route, redirect),
                        None => self.led.remove(&route),
                    };
                }
                true
            }
            Err(error) => {
                let again = Backoff::after(self.refused, Instant::now());
                match self.refused {
                    None => {
                        error!(%error, retry_in = ?again.pause, "connections cannot be led to the forwarder; the kernel carries them where it can until this works")
                    }
                    Some(_) => {
                        debug!(%error, retry_in = ?again.pause, "connections still cannot be led to the forwarder")
                    }
                }
                // What the table still had goes with it: it would not be known any more.
                *self = Self { refused: Some(again), waiting: true, ..Self::default() };
                false
            }
        }
    }
}
