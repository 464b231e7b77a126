//! `drain`, `weight` and `undrain`: what a person says about an endpoint on this node, by hand and for a while.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::cli::Format;
use super::client::{self, Method, query};
use super::text::{Cell, Look, Table, ago, colours};
use super::{Failure, remark, say};
use crate::status::{OverrideList, OverrideView, lasting};

/// Exit status where something was said and has no effect.
const WITHOUT_EFFECT: u8 = 2;

/// Who gets no new connections.
#[derive(Clone, Debug, Args)]
pub struct DrainOptions {
    /// ADDRESS, ADDRESS:PORT, POD or NAMESPACE/POD
    pub endpoint: String,

    /// Only behind this Service: NAME or NAMESPACE/NAME; without it, behind all that have the endpoint now
    pub service: Option<String>,

    /// For how long: 30s, 10m, 1h30m; a second to a day
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub lasts: String,

    /// End the connections that it has
    #[arg(long)]
    pub cut: bool,

    /// Write this instead of words
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// Who gets more, or less.
#[derive(Clone, Debug, Args)]
pub struct WeightOptions {
    /// ADDRESS, ADDRESS:PORT, POD or NAMESPACE/POD
    pub endpoint: String,

    /// What it weighs relative to the others, 0 to 65535; 0 is a drain
    pub weight: u16,

    /// Only behind this Service: NAME or NAMESPACE/NAME; without it, behind all that have the endpoint now
    pub service: Option<String>,

    /// For how long: 30s, 10m, 1h30m; a second to a day
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub lasts: String,

    /// Write this instead of words
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// What is taken back.
#[derive(Clone, Debug, Args)]
pub struct UndrainOptions {
    /// ADDRESS, ADDRESS:PORT, POD or NAMESPACE/POD
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub endpoint: Option<String>,

    /// Only behind this Service: NAME or NAMESPACE/NAME
    pub service: Option<String>,

    /// Everything that was said by hand on this node
    #[arg(long)]
    pub all: bool,

    /// Write this instead of words
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

pub(super) fn drain(socket: &Path, options: &DrainOptions) -> Result<ExitCode, Failure> {
    let DrainOptions { endpoint, service, lasts, cut, output } = options;
    place(socket, endpoint, service.as_deref(), 0, lasts, *cut, *output)
}

pub(super) fn weight(socket: &Path, options: &WeightOptions) -> Result<ExitCode, Failure> {
    let WeightOptions { endpoint, weight, service, lasts, output } = options;
    place(socket, endpoint, service.as_deref(), *weight, lasts, false, *output)
}

fn place(
    socket: &Path,
    endpoint: &str,
    service: Option<&str>,
    weight: u16,
    lasts: &str,
    cut: bool,
    output: Option<Format>,
) -> Result<ExitCode, Failure> {
    let weight = weight.to_string();
    let parameters = [
        ("endpoint", Some(endpoint)),
        ("service", service),
        ("weight", Some(&*weight)),
        ("for", Some(lasts)),
        ("cut", cut.then_some("true")),
    ];
    let list: OverrideList = client::send(socket, Method::POST, &query("/v1/overrides", &parameters))?;
    answer(&list, output)?;
    let without = list.overrides.iter().any(|one| one.without_effect);
    Ok(if without { ExitCode::from(WITHOUT_EFFECT) } else { ExitCode::SUCCESS })
}

pub(super) fn undrain(socket: &Path, options: &UndrainOptions) -> Result<ExitCode, Failure> {
    let parameters = [
        ("endpoint", options.endpoint.as_deref()),
        ("service", options.service.as_deref()),
        ("all", options.all.then_some("true")),
    ];
    let list: OverrideList = client::send(socket, Method::DELETE, &query("/v1/overrides", &parameters))?;
    if list.overrides.is_empty() && options.output.is_none() {
        writeln!(io::stdout(), "nothing that was said by hand stands on this node any more")?;
        warn(&list);
    } else {
        answer(&list, options.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What stands, in the form that was asked for.
fn answer(list: &OverrideList, output: Option<Format>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match output {
        Some(format) => say(&mut out, format, list)?,
        None => table(&list.overrides, Timestamp::now()).write(&mut out, colours())?,
    }
    warn(list);
    Ok(())
}

fn warn(list: &OverrideList) {
    for warning in &list.warnings {
        remark(warning);
    }
    for one in &list.overrides {
        for warning in &one.warnings {
            remark(&format!("{}/{}: {warning}", one.namespace, one.name));
        }
    }
}

/// What was said by hand, a row each.
pub(super) fn table(overrides: &[OverrideView], now: Timestamp) -> Table {
    let mut table = Table::new(["SERVICE", "ENDPOINT", "WEIGHT", "BY HAND", "SINCE", "LEFT", "MEANS", "NOTE"]);
    for one in overrides {
        let look = if one.without_effect { Look::Bad } else { Look::Plain };
        let means = one.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        table.push([
            format!("{}/{}", one.namespace, one.name).into(),
            one.subject().into(),
            one.weight.to_string().into(),
            if one.weight == 0 { "drained" } else { "weighted" }.into(),
            ago(one.since, now).into(),
            ago(now, one.until).into(),
            means.into(),
            Cell::new(one.warnings.join("; "), look),
        ]);
    }
    table
}

/// Says at once what the daemon would say.
fn duration(text: &str) -> Result<String, String> {
    lasting(text).map(|_| text.to_owned()).map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_each_and_hostile_names_are_text() {
        let view = serde_json::json!({
            "namespace": "shop", "name": "web\u{1b}[2J", "pod": "web-1\n", "address": "10.1.0.7", "port": 80, "weight": 0,
            "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00Z", "endpoints": ["10.1.0.7:80"],
            "withoutEffect": true, "warnings": ["a\u{7}"],
        });
        let one: OverrideView = serde_json::from_value(view).expect("a view");
        let mut out = Vec::new();
        let now = "2026-01-01T00:10:00Z".parse().expect("a time");
        table(&[one], now).write(&mut out, false).expect("memory");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"), @r"
        SERVICE            ENDPOINT               WEIGHT  BY HAND  SINCE  LEFT  MEANS        NOTE
        shop/web\u{1b}[2J  10.1.0.7:80 (web-1\n)  0       drained  10m    50m   10.1.0.7:80  a\u{7}
        ");
    }
}
