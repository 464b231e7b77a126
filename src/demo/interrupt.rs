//! Ctrl-C and friends as a flag that the demo looks at.
//!
//! The demo is a sequence of short waits; between them it looks whether somebody wants it to end, and if so returns like from any
//! other error, so that every guard clears up. SIGINT, SIGTERM and SIGHUP (the terminal is gone) all mean the same.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody asked for the end.
#[derive(Debug)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    news: mpsc::Receiver<()>,
}

/// The error with which an interrupted demo unwinds.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Interrupt {
    /// Starts to listen; from now on the signals do not end the process by themselves.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn listen() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let (sender, news) = mpsc::channel();
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<io::Result<Vec<_>>>()?;
        drop(entered);
        let flag = asked.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                let [interrupt, terminate, hangup] = signals.as_mut_slice() else { return };
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hangup.recv() => {} }
            });
            flag.store(true, Ordering::Relaxed);
            let _ = sender.send(());
        })?;
        Ok(Self { asked, news })
    }

    /// Fails if somebody asked for the end.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.asked.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Waits for the end to be asked for, at most this long; true if it was.
    pub fn wait(&self, at_most: std::time::Duration) -> bool {
        self.check().is_err() || self.news.recv_timeout(at_most).is_ok()
    }
}
