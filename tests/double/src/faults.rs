//! How the server is told to misbehave, and which dialect it speaks.

use std::time::Duration;

use crate::{GoneStyle, StreamingLists};

/// The switches of [`crate::ApiDouble`], as they are at this moment.
pub(crate) struct Faults {
    pub(crate) streaming_lists: StreamingLists,
    pub(crate) gone_style: GoneStyle,
    pub(crate) token: Option<String>,
    pub(crate) bookmark_interval: Duration,
    /// This many requests are answered with this status.
    pub(crate) fail: (usize, u16),
    pub(crate) stalled: bool,
    pub(crate) trickle: Option<(usize, Duration)>,
}

// === impl Faults ===

impl Default for Faults {
    fn default() -> Self {
        Self {
            streaming_lists: StreamingLists::default(),
            gone_style: GoneStyle::default(),
            token: None,
            // The watch cache's period (staging/src/k8s.io/apiserver/pkg/storage/cacher).
            bookmark_interval: Duration::from_secs(60),
            fail: (0, 500),
            stalled: false,
            trickle: None,
        }
    }
}

impl Faults {
    /// The status this request fails with, if it is its turn.
    pub(crate) fn next_failure(&mut self) -> Option<u16> {
        let (count, status) = &mut self.fail;
        (*count > 0).then(|| {
            *count -= 1;
            *status
        })
    }
}
