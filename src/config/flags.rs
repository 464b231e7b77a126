//! The command line: what was typed.
//!
//! [`Flags`] holds a typed value for every row of the table, given or not. clap cuts the command line and renders the help; how a
//! value is read is Go's business and done here: booleans as `strconv.ParseBool`, lists append, everything else takes the last
//! one. What the values mean together is decided in `resolve`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use super::duration::GoDuration;
use super::numbers;
use super::quantity::Quantity;
use super::table::{self, Flag, Kind};
use crate::model::parse_address;

/// What was typed, checked flag by flag.
#[derive(Clone, Debug)]
pub struct Flags {
    values: BTreeMap<&'static str, Given>,
}

/// One flag's value.
#[derive(Clone, Debug)]
struct Given {
    /// As a field of the configuration file would hold it.
    value: Value,
    typed: bool,
}

/// What became of a command line.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// Flags to act on.
    Flags(Flags),
    /// Help was asked for; this is it.
    Help(String),
}

/// A command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct UsageError {
    /// What is wrong, with flag and value.
    pub reason: String,
}

impl UsageError {
    /// What to print above the reason.
    pub fn usage() -> String {
        format!("{}\n\nFor all flags: kube-proxy --help", command().render_usage())
    }
}

const ABOUT: &str = "Serves Kubernetes Services on this node by nftables maps.

A drop-in replacement for kube-proxy: Services and EndpointSlices come from the API server (or from a directory of manifests), \
are compiled into the nftables table `pointsman` in families ip and ip6, and the kernel carries the connections.";

/// Where positional arguments end up, of which there must be none.
const STRAY: &str = "stray";

fn command() -> Command {
    let mut command = Command::new("kube-proxy")
        .about(ABOUT)
        .override_usage("kube-proxy [flags]")
        .term_width(120)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(Arg::new(STRAY).hide(true).action(ArgAction::Append))
        .arg(Arg::new("help").short('h').long("help").help("Print this").action(ArgAction::SetTrue));
    for section in table::SECTIONS {
        for flag in section.flags {
            command = command.arg(argument(flag).help_heading(section.heading));
        }
    }
    command
}

fn argument(flag: &'static Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append).hide(!flag.deprecated.is_empty());
    let arg = if flag.name == "v" { arg.short('v') } else { arg };
    // The default pause is only what kube-proxy's is called: without the flag there is none.
    let plain = matches!(flag.default, "" | "0" | "0s") || flag.name.ends_with("-min-sync-period");
    let help = if plain { flag.help.to_owned() } else { format!("{} [default: {}]", flag.help, flag.default) };
    let arg = arg.help(help);
    let name = match flag.kind {
        Kind::Bool | Kind::Version => {
            return arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name(if flag.kind == Kind::Bool { "BOOL" } else { "HOW" });
        }
        Kind::Int32 | Kind::Float32 => "NUMBER",
        Kind::Duration => "DURATION",
        Kind::Quantity => "QUANTITY",
        Kind::Text => "TEXT",
        Kind::Path => "PATH",
        Kind::Ip => "IP",
        Kind::IpPort => "IP[:PORT]",
        Kind::List => "LIST",
        Kind::Gates => "NAME=BOOL,...",
        Kind::Levels => "PATTERN=LEVEL,...",
    };
    arg.num_args(1).allow_hyphen_values(true).value_name(name)
}

// === impl Flags ===

impl Flags {
    /// Reads a command line, program name first.
    ///
    /// # Errors
    /// The first flag that is unknown, lacks its value, or whose value cannot be read.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, UsageError> {
        let refuse = |reason: String| Err(UsageError { reason });
        let matches = match command().try_get_matches_from(with_hyphens(arguments)) {
            Ok(matches) => matches,
            Err(error) => return refuse(reason(&error)),
        };
        if let Some(stray) = matches.get_many::<String>(STRAY) {
            let stray: Vec<_> = stray.map(|text| format!("{text:?}")).collect();
            return refuse(format!("unexpected arguments: {}: kube-proxy takes flags only", stray.join(" ")));
        }
        if matches.get_flag("help") {
            return Ok(Parsed::Help(command().render_help().to_string()));
        }
        let mut values = BTreeMap::new();
        for flag in table::flags() {
            let mut given = Given { value: flag.initial(), typed: false };
            for text in matches.get_many::<String>(flag.name).into_iter().flatten() {
                let earlier = given.typed.then_some(given.value);
                let value = flag.kind.read(text, earlier.unwrap_or(Value::Null), flag).map_err(|reason| {
                    UsageError { reason: format!("invalid argument {text:?} for --{}: {reason}", flag.name) }
                })?;
                given = Given { value, typed: true };
            }
            values.insert(flag.name, given);
        }
        Ok(Parsed::Flags(Flags { values }))
    }

    /// Whether the flag is on the command line.
    pub fn typed(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|given| given.typed)
    }

    /// The value as the configuration file would hold it; null for names that are not in the table.
    pub fn value(&self, name: &str) -> &Value {
        self.values.get(name).map_or(&Value::Null, |given| &given.value)
    }

    /// The value of a flag that is a text, unless it is empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).as_str().filter(|text| !text.is_empty())
    }

    /// Whether a boolean flag is on.
    pub fn on(&self, name: &str) -> bool {
        self.value(name).as_bool().unwrap_or(false)
    }

    /// Every flag with its value, by name.
    pub fn listing(&self) -> Vec<(&'static str, String)> {
        let empty = |name: &str| table::flags().any(|flag| flag.name == name && flag.kind == Kind::Levels);
        let text = |name: &str, given: &Given| match &given.value {
            Value::Array(items) if items.is_empty() && empty(name) => String::new(),
            value => display(value),
        };
        self.values.iter().map(|(name, given)| (*name, text(name, given))).collect()
    }

    /// What to say about flags that should not be used any more.
    pub fn deprecations(&self) -> Vec<String> {
        let outdated = table::flags().filter(|flag| !flag.deprecated.is_empty() && self.typed(flag.name));
        outdated.map(|flag| format!("--{} is deprecated: {}", flag.name, flag.deprecated)).collect()
    }
}

/// kube-proxy takes underscores for hyphens in the names of flags.
fn with_hyphens(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut value_next = false;
    let mut over = false;
    let translate = |argument: OsString| {
        let Some(text) = argument.to_str() else { return argument };
        over |= text == "--";
        if std::mem::take(&mut value_next) || over || !text.starts_with("--") {
            return argument;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let name = name.replace('_', "-");
        let flag = table::flags().find(|flag| flag.name == &name[2..]);
        value_next = value.is_none() && flag.is_some_and(|flag| !matches!(flag.kind, Kind::Bool | Kind::Version));
        value.map_or_else(|| name.clone(), |value| format!("{name}={value}")).into()
    };
    arguments.into_iter().map(translate).collect()
}

/// clap's error in one line.
fn reason(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let argument = context(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument => match context(ContextKind::SuggestedArg) {
            near if near.is_empty() => format!("unknown flag: {argument}"),
            near => format!("unknown flag: {argument} (there is {near})"),
        },
        ErrorKind::InvalidValue => format!("flag needs a value: {argument}"),
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// As Go prints it.
fn display(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            let level = |item: &Value| format!("{}={}", display(&item["filePattern"]), item["verbosity"]);
            items.iter().map(level).collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => format!("[{}]", items.iter().map(display).collect::<Vec<_>>().join(",")),
        Value::Object(gates) => gates.iter().map(|(name, on)| format!("{name}={on}")).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()),
        value => value.to_string(),
    }
}

// === impl Flag ===

impl Flag {
    /// Its value when it is not given.
    pub(super) fn initial(&self) -> Value {
        let text = match self.kind {
            Kind::Bool | Kind::Version if self.default.is_empty() => "false",
            _ => self.default,
        };
        self.kind.read(text, Value::Null, self).unwrap_or(Value::Null)
    }
}

// === impl Kind ===

impl Kind {
    /// Reads a value; `earlier` is what the same flag said before.
    fn read(self, text: &str, earlier: Value, flag: &Flag) -> Result<Value, String> {
        Ok(match self {
            Kind::Bool => Value::Bool(boolean(text)?),
            Kind::Int32 => {
                let number = numbers::integer(text).and_then(|number| i32::try_from(number).ok());
                json!(number.ok_or("not a whole number of 32 bits")?)
            }
            Kind::Float32 => match text.parse::<f32>() {
                Ok(number) if number.is_finite() => json!(number),
                _ => return Err("not a number".to_owned()),
            },
            Kind::Duration => json!(text.parse::<GoDuration>().map_err(|error| error.to_string())?),
            Kind::Quantity => json!(text.parse::<Quantity>().map_err(|error| error.to_string())?),
            Kind::Text | Kind::Path => text.into(),
            Kind::Version => match text {
                "raw" => text.into(),
                _ if text.starts_with('v') => text.into(),
                _ => Value::Bool(boolean(text).map_err(|_| "not true, false, raw or vX.Y.Z".to_owned())?),
            },
            Kind::Ip | Kind::IpPort if text.is_empty() => flag.default.into(),
            Kind::Ip if parse_address(text).is_none() => return Err("not an IP address".to_owned()),
            Kind::IpPort if parse_address(text).is_none() && socket(text).is_none() => {
                return Err("not an IP address with or without port (1 to 65535)".to_owned());
            }
            Kind::Ip | Kind::IpPort => text.into(),
            Kind::List => {
                let mut items = if let Value::Array(items) = earlier { items } else { Vec::new() };
                let more = numbers::items(text).ok_or("not a list with commas, where quotes enclose whole items")?;
                items.extend(more.into_iter().map(Value::from));
                Value::Array(items)
            }
            Kind::Gates => {
                let mut gates = if let Value::Object(gates) = earlier { gates } else { Map::new() };
                for piece in pieces(text) {
                    let (name, on) = piece.split_once('=').ok_or_else(|| format!("{piece:?} is not name=bool"))?;
                    let on = boolean(on.trim()).map_err(|reason| format!("{piece:?}: {reason}"))?;
                    gates.insert(name.trim().to_owned(), on.into());
                }
                Value::Object(gates)
            }
            Kind::Levels => {
                let mut levels = if let Value::Array(levels) = earlier { levels } else { Vec::new() };
                for piece in pieces(text).filter(|piece| !piece.is_empty()) {
                    let level = piece.split_once('=').filter(|(pattern, _)| !pattern.is_empty());
                    let level = level.and_then(|(pattern, level)| Some((pattern, level.parse::<i32>().ok()?)));
                    let (pattern, level) = level.ok_or_else(|| format!("{piece:?} is not pattern=level"))?;
                    levels.push(json!({ "filePattern": pattern, "verbosity": level.max(0) }));
                }
                Value::Array(levels)
            }
        })
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(move |_| !text.is_empty())
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("not true or false".to_owned()),
    }
}

/// An address with a port that is not 0.
pub(super) fn socket(text: &str) -> Option<std::net::SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let address = match host.strip_prefix('[') {
        Some(host) => parse_address(host.strip_suffix(']')?),
        None if host.contains(':') => None,
        None => parse_address(host),
    };
    Some(std::net::SocketAddr::new(address?, port))
}
