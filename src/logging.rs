//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `verbosity` is kube-proxy's `-v`: 0 and 1 say warnings and what the daemon is about to do, 2 one line per change
/// programmed, 4 the reasons, 6 and more everything. The environment variable `RUST_LOG` overrides it.
pub fn start(verbosity: u8) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(verbosity >= 4)
        .init();
}

fn directives(verbosity: u8) -> &'static str {
    match verbosity {
        0 | 1 => "warn,pointsman=info,pointsman::programmed=warn",
        2 | 3 => "warn,pointsman=info",
        4 | 5 => "info,pointsman=debug",
        6 | 7 => "info,pointsman=trace,kube=debug",
        _ => "trace",
    }
}
