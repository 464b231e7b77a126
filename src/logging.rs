//! Log lines as kube-proxy writes them: klog's text, or JSON.
//!
//! klog knows severities and, for everything that is no warning, a verbosity: `-v=4` shows all lines of verbosity 0 to 4, and
//! `--vmodule=plane=6` shows more of one source file. An event's verbosity follows from its level and its target:
//!
//! | verbosity | shows |
//! |---|---|
//! | 0 | warnings and errors of everybody; what the daemon is about to do |
//! | 1 | every flag with its value |
//! | 2 | a line per change programmed (target [`PROGRAMMED`]) |
//! | 4 | the reasons, lists and watches (`debug!`); what libraries say |
//! | 6 | everything of ours, such as each object that comes in (`trace!`); what the API client does |
//! | 8 | everything |
//!
//! The environment variable `RUST_LOG`, if set, replaces verbosities by tracing's own directives. Lines go to standard error, one
//! write each, so nothing is lost in a buffer when the process dies.
//!
//! `filter` decides what is shown, `line` how it looks; both are pure and proven by their own tests.

mod filter;
mod line;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, registry};

pub use filter::{FLAGS, PROGRAMMED, Pattern};

/// How much is said, where and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// How a line looks.
    pub format: Format,
    /// Lines above this verbosity are not written.
    pub verbosity: u32,
    /// Verbosities of single source files or modules. The first pattern that fits counts, if it allows more than `verbosity`.
    pub modules: Vec<(Pattern, u32)>,
    /// Whether everything but errors goes to standard output.
    pub split_stream: bool,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// klog's.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// Changes the verbosity of a running log.
#[derive(Clone, Debug)]
pub struct Verbosity(Arc<AtomicU32>);

/// Writes what the filter lets through.
struct Lines {
    config: LoggingConfig,
    verbosity: Arc<AtomicU32>,
    /// `RUST_LOG` decides, not we.
    unfiltered: bool,
    pid: u32,
}

/// Starts logging. Once per process; later calls change nothing.
pub fn start(config: &LoggingConfig) -> Verbosity {
    let verbosity = Arc::new(AtomicU32::new(config.verbosity));
    let directives = EnvFilter::try_from_default_env().ok();
    let lines = Lines {
        config: config.clone(),
        verbosity: verbosity.clone(),
        unfiltered: directives.is_some(),
        pid: std::process::id(),
    };
    // Somebody else's subscriber, as in a test, is good too.
    let _ = registry().with(directives).with(lines).try_init();
    Verbosity(verbosity)
}

// === impl LoggingConfig ===

impl Default for LoggingConfig {
    fn default() -> Self {
        LoggingConfig { format: Format::Text, verbosity: 0, modules: Vec::new(), split_stream: false }
    }
}

// === impl Verbosity ===

impl Verbosity {
    /// The verbosity now.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes it, effective at once.
    pub fn set(&self, verbosity: u32) {
        self.0.store(verbosity, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
}

// === impl Lines ===

impl Lines {
    fn shows(&self, metadata: &Metadata<'_>) -> bool {
        let verbosity = self.verbosity.load(Ordering::Relaxed);
        self.unfiltered || filter::shows(metadata, verbosity, &self.config.modules)
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.shows(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.shows(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        if self.unfiltered || !self.config.modules.is_empty() {
            return None;
        }
        Some(match self.verbosity.load(Ordering::Relaxed) {
            0..=3 => LevelFilter::INFO,
            4..=5 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let record = line::Record::of(event, jiff::Zoned::now(), self.pid);
        let text = match self.config.format {
            Format::Text => record.text(),
            Format::Json => record.json(),
        };
        let severe = *event.metadata().level() == Level::ERROR;
        // There is nowhere to complain that there is nowhere to complain.
        let _ = if self.config.split_stream && !severe {
            std::io::stdout().lock().write_all(text.as_bytes())
        } else {
            std::io::stderr().lock().write_all(text.as_bytes())
        };
    }
}
