//! Who overrides whom.
//!
//! With `--config`, the file is everything that has a field in it: the flags that stand for such fields are not looked at. Without,
//! they are laid over the defaults. Either way the flags for logging and `--hostname-override` are laid over the outcome. Defaults
//! of a file apply to what it says as zero, too; a zero that a flag says is a zero.

use std::path::Path;

use serde_json::Value;

use super::check::ConfigError;
use super::decode::decode;
use super::document::{self, Document};
use super::flags::Flags;
use super::watch::FileWatch;
use super::{Note, table};

/// What flags and file say together.
#[derive(Debug)]
pub struct Merged {
    /// Defaults filled in.
    pub document: Document,
    /// The file, if there is one.
    pub watch: Option<FileWatch>,
    /// What came up.
    pub notes: Vec<Note>,
}

/// Reads the file, if there is one, and merges.
pub fn merge(flags: &Flags) -> Result<Merged, ConfigError> {
    let mut merged = match flags.text("config") {
        Some(path) => of_file(Path::new(path))?,
        None => of_flags(flags)?,
    };
    overlay(&mut merged.document, logging(flags))?;
    let document = &mut merged.document;
    for module in flags.value("vmodule").as_array().into_iter().flatten().filter(|_| flags.typed("vmodule")) {
        let module = serde_json::from_value(module.clone());
        document.logging.vmodule.push(module.expect("the reader of flags makes nothing else"));
    }
    // An empty text is no override, as with an environment variable that is not set. A blank one is a mistake.
    if let Some(name) = flags.text("hostname-override") {
        let trimmed = name.trim().to_lowercase();
        document.hostname_override = if trimmed.is_empty() { name.to_owned() } else { trimmed };
    }
    document.fill_mode();
    Ok(merged)
}

fn of_file(path: &Path) -> Result<Merged, ConfigError> {
    let name = || format!("{:?}", path.display().to_string());
    let cannot = |error: std::io::Error| ConfigError::new("--config", name(), error.to_string());
    let watch = FileWatch::new(path).map_err(cannot)?;
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    let decoded = decode(&text).map_err(|error| match error.field.as_str() {
        "" => ConfigError::new("--config", name(), error.reason),
        field => ConfigError::new("--config", name(), format!("{field}: {}", error.reason)),
    })?;
    let mut notes = Vec::new();
    if !decoded.offences.is_empty() {
        let text = format!("{}: read leniently: {}", path.display(), decoded.offences.join(", "));
        notes.push(Note::Warning(text));
    }
    let mut document = decoded.document;
    document.fill_defaults();
    Ok(Merged { document, watch: Some(watch), notes })
}

fn of_flags(flags: &Flags) -> Result<Merged, ConfigError> {
    let mut document = Document::defaults();
    let fields = table::flags().filter(|flag| !flag.field.is_empty() && flag.deprecated.is_empty());
    let typed = fields.filter(|flag| flags.typed(flag.name)).map(|flag| (flag.field, flags.value(flag.name).clone()));
    overlay(&mut document, typed)?;
    let port = |address: &str, name: &str| match flags.value(name).as_i64() {
        Some(0) => String::new(),
        port => document::with_port(address, port.unwrap_or_default()),
    };
    document.healthz_bind_address = port(&document.healthz_bind_address, "healthz-port");
    document.metrics_bind_address = port(&document.metrics_bind_address, "metrics-port");
    if document.mode == "nftables" {
        document.nftables.sync_period = document.iptables.sync_period;
        document.nftables.min_sync_period = document.iptables.min_sync_period;
        document.nftables.masquerade_all = document.iptables.masquerade_all;
    }
    let notes = flags.deprecations().into_iter().map(Note::Warning).collect();
    Ok(Merged { document, watch: None, notes })
}

fn logging(flags: &Flags) -> impl Iterator<Item = (&'static str, Value)> {
    let typed = table::LOGGING_FIELDS.into_iter().filter(|(flag, _)| flags.typed(flag));
    typed.map(|(flag, field)| (field, flags.value(flag).clone()))
}

/// Sets fields by their paths.
fn overlay(document: &mut Document, fields: impl Iterator<Item = (&'static str, Value)>) -> Result<(), ConfigError> {
    let mut tree = serde_json::to_value(&*document).expect("its fields are texts, numbers and maps of them");
    for (path, value) in fields {
        let place = path.split('.').fold(&mut tree, |place, name| &mut place[name]);
        *place = value;
    }
    *document = serde_path_to_error::deserialize(tree).map_err(|error| {
        let field = error.path().to_string();
        let flag = table::flag_of(&field).map_or(field, |flag| format!("--{flag}"));
        ConfigError::new(flag, "", error.inner().to_string())
    })?;
    Ok(())
}
