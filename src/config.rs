//! What was typed, and what it means.
//!
//! [`Flags`] is the command line of the `kube-proxy` binary as typed; [`Config`] is what it means, checked and complete. Everything
//! else takes a [`Config`]. Flags that kube-proxy has keep its names and meaning; `--manifests` is an addition of ours.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

use crate::schedule::{Scheduler, UnknownScheduler};

/// Serves Kubernetes Services on this node by nftables maps.
///
/// A drop-in replacement for kube-proxy: Services and EndpointSlices come from the API server (or from a directory of manifests),
/// are compiled into the nftables table `pointsman` in families ip and ip6, and the kernel carries the connections.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "kube-proxy", version, max_term_width = 120)]
pub struct Flags {
    /// Serve the Services and EndpointSlices in this directory (*.yaml, *.yml, *.json) and follow it live, instead of an API server.
    /// Not in upstream's kube-proxy.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Path to a kubeconfig file that says where the API server is and how to log in. Without it, and without --master, the
    /// in-cluster configuration of a pod is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The address of the API server (overrides any value in kubeconfig).
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// The name of the node to act as, instead of the host name.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The scheduler for Services that do not choose one by the annotation `pointsman.dev/scheduler`: random (the default) or rr.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub ipvs_scheduler: String,

    /// Remove the tables `pointsman` and exit.
    #[arg(long)]
    pub cleanup: bool,

    /// Log level: 0 to 10. 2 adds a line per change programmed, 4 the reasons, 6 and more everything.
    #[arg(short, long = "v", value_name = "LEVEL", default_value_t = 0, action = ArgAction::Set)]
    pub verbosity: u8,
}

/// What the daemon shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node we act as: lower case, not empty.
    pub node: String,
    /// Where objects come from.
    pub source: SourceConfig,
    /// The scheduler for Services that choose none.
    pub scheduler: Scheduler,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Api {
        /// Where it is and how to log in; `None` means in-cluster, unless there is a `master`.
        kubeconfig: Option<PathBuf>,
        /// Its address, if it shall not be the kubeconfig's.
        master: Option<String>,
    },
}

/// A flag that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// `--hostname-override` is blank.
    #[error("--hostname-override: {value:?}: empty hostname is invalid")]
    BlankHostname {
        /// What was typed.
        value: String,
    },
    /// The host has no usable name.
    #[error("this host has no usable name ({reason}): give one with --hostname-override")]
    NoHostname {
        /// Why.
        reason: String,
    },
    /// `--ipvs-scheduler` names none that we have.
    #[error("--ipvs-scheduler: {0}")]
    Scheduler(#[from] UnknownScheduler),
    /// Two sources at once.
    #[error("--manifests and {other} exclude each other: objects come from one place")]
    TwoSources {
        /// The other flag.
        other: &'static str,
    },
}

// === impl Config ===

impl Config {
    /// Works out what was meant. All errors are returned, not only the first.
    pub fn resolve(flags: &Flags) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let node = node_name(flags.hostname_override.as_deref()).unwrap_or_else(|error| {
            errors.push(error);
            String::new()
        });
        let scheduler = match flags.ipvs_scheduler.as_str() {
            "" => Scheduler::default(),
            name => name.parse().unwrap_or_else(|error: UnknownScheduler| {
                errors.push(error.into());
                Scheduler::default()
            }),
        };
        let source = match &flags.manifests {
            Some(dir) => {
                let others = [("--kubeconfig", flags.kubeconfig.is_some()), ("--master", flags.master.is_some())];
                errors.extend(
                    others.iter().filter(|(_, given)| *given).map(|(other, _)| ConfigError::TwoSources { other }),
                );
                SourceConfig::Manifests(dir.clone())
            }
            None => SourceConfig::Api { kubeconfig: flags.kubeconfig.clone(), master: flags.master.clone() },
        };
        if errors.is_empty() { Ok(Self { node, source, scheduler }) } else { Err(errors) }
    }
}

/// The override or the host's name, trimmed and in lower case as kube-proxy does.
fn node_name(chosen: Option<&str>) -> Result<String, ConfigError> {
    if let Some(value) = chosen {
        let name = value.trim().to_lowercase();
        return if name.is_empty() { Err(ConfigError::BlankHostname { value: value.to_owned() }) } else { Ok(name) };
    }
    let host = nix::unistd::gethostname().map_err(|errno| ConfigError::NoHostname { reason: errno.to_string() })?;
    let name = host.to_string_lossy().trim().to_lowercase();
    if name.is_empty() { Err(ConfigError::NoHostname { reason: "it is empty".to_owned() }) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str]) -> Result<Config, Vec<String>> {
        let flags = Flags::try_parse_from([&["kube-proxy"], args].concat()).expect("parses");
        Config::resolve(&flags).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn flags_mean_what_they_mean_in_kube_proxy() {
        let config = resolve(&["--manifests", "/m", "--hostname-override", " Node-1 ", "--ipvs-scheduler=rr"]);
        assert_eq!(
            config,
            Ok(Config {
                node: "node-1".into(),
                source: SourceConfig::Manifests("/m".into()),
                scheduler: Scheduler::RoundRobin
            })
        );
        let config = resolve(&["--hostname-override=n", "--master=http://1.2.3.4", "--v=4"]).expect("valid");
        assert_eq!(config.source, SourceConfig::Api { kubeconfig: None, master: Some("http://1.2.3.4".into()) });
        assert_eq!(config.scheduler, Scheduler::Random);
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let errors =
            resolve(&["--hostname-override", "  ", "--ipvs-scheduler=fast", "--manifests=/m", "--kubeconfig=/k"]);
        insta::assert_snapshot!(errors.expect_err("invalid").join("\n"), @r#"
        --hostname-override: "  ": empty hostname is invalid
        --ipvs-scheduler: unknown scheduler "fast": one of random, rr
        --manifests and --kubeconfig exclude each other: objects come from one place
        "#);
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }
}
