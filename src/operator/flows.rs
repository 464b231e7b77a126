//! Live connections: who reached which pod. Once as a table, or line by line as they come and go.
//!
//! The daemon is asked; where none runs, connection tracking and the kernel's own tables are read here, which know Services and no pods
//! (`local`). `log` writes the end of each connection into a file. A daemon that goes away while we follow is waited for: what
//! ends meanwhile is not told, and that is said.
//!
//! Proven by `tests/e2e/flows.rs`.

mod local;
mod log;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::cli::{FlowsOptions, Format};
use super::client::{self, ClientError, Heard, query};
use super::text::{Cell, Look, Table, colours, paint, plain, span};
use super::{Failure, NOT_COUNTED, remark, repeat, say};
use crate::status::flows::{FlowEvent, FlowList, FlowSettings, FlowView, FlowWord};
use log::Log;

/// Events that wait to be shown.
const BUFFERED: usize = 1024;

/// Between two attempts to reach a daemon that has gone.
const AGAIN: Duration = Duration::from_millis(250);

/// How often a log looks whether its file was moved away.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(socket: &Path, options: &FlowsOptions) -> Result<(), Failure> {
    if options.follow || options.log.is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(follow(socket, options));
    }
    repeat(options.watch, |screen| {
        let most = options.most.to_string();
        let list = match client::ask::<FlowList>(socket, &path(options, &[("most", Some(&most))])) {
            Err(error @ ClientError::NoDaemon(_)) => {
                let (list, remark) = local::list(options, error)?;
                screen.remarks.push(remark);
                list
            }
            list => list?,
        };
        if let Some(format) = options.output {
            return say(&mut screen.text, format, &list);
        }
        if list.flows.is_empty() {
            let asked = parameters(options).iter().any(|(_, value)| value.is_some());
            let text = if asked { "no connection is as asked for" } else { "there is no connection to a Service" };
            screen.remarks.push(text.to_owned());
        }
        screen.remarks.extend(unknown(&list.settings).map(str::to_owned));
        Ok(write(&mut screen.text, &list, colours())?)
    })
}

fn path(options: &FlowsOptions, more: &[(&str, Option<&str>)]) -> String {
    query("/v1/flows", &[&parameters(options)[..], more].concat())
}

/// The filters as the API takes them.
fn parameters(options: &FlowsOptions) -> [(&'static str, Option<&str>); 6] {
    [
        ("target", options.target.as_deref()),
        ("client", options.client.as_deref()),
        ("endpoint", options.endpoint.as_deref()),
        ("protocol", options.protocol.as_deref()),
        ("state", options.state.as_deref()),
        ("node", options.node.as_deref()),
    ]
}

/// What the kernel does not tell.
fn unknown(settings: &FlowSettings) -> impl Iterator<Item = &'static str> {
    let ages = "ages are not known: net.netfilter.nf_conntrack_timestamp is 0";
    let all = [(settings.accounting, NOT_COUNTED), (settings.timestamps, ages)];
    all.into_iter().filter(|(told, _)| !told).map(|(_, text)| text)
}

fn write(out: &mut impl Write, list: &FlowList, colours: bool) -> io::Result<()> {
    let mut table =
        Table::new(["PROTO", "CLIENT", "FRONTEND", "SERVICE", "ENDPOINT", "POD", "NODE", "STATE", "IN", "OUT", "AGE"]);
    for flow in &list.flows {
        let bytes =
            |of: fn(&crate::status::Traffic) -> u64| flow.traffic.as_ref().map(of).map(size).unwrap_or_default();
        let state = if flow.userspace { format!("{}, userspace", flow.state) } else { flow.state.clone() };
        table.push([
            (&flow.protocol).into(),
            flow.client.to_string().into(),
            flow.frontend.to_string().into(),
            flow.service_port().unwrap_or_default().into(),
            flow.endpoint.map(|at| at.to_string()).unwrap_or_default().into(),
            flow.pod.as_deref().unwrap_or_default().into(),
            flow.node.as_deref().unwrap_or_default().into(),
            Cell::new(state, if flow.active { Look::Plain } else { Look::Faint }),
            bytes(|traffic| traffic.bytes_in).into(),
            bytes(|traffic| traffic.bytes_out).into(),
            flow.age_seconds.map(|age| span(age as i64)).unwrap_or_default().into(),
        ]);
    }
    table.write(out, colours)?;
    if list.more > 0 {
        writeln!(out, "and {} more (--most shows more)", list.more)?;
    }
    if list.partial {
        writeln!(out, "the table changed while it was read: some may be missing")?;
    }
    Ok(())
}

/// `1.2kB`: thousands, as interfaces count.
fn size(bytes: u64) -> String {
    let mut rest = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if rest < if unit == "B" { 999.5 } else { 999.95 } {
            return if unit == "B" { format!("{bytes}B") } else { format!("{rest:.1}{unit}") };
        }
        rest /= 1000.0;
    }
    format!("{rest:.1}TB")
}

// === following ===

async fn follow(socket: &Path, options: &FlowsOptions) -> Result<(), Failure> {
    let mut log = options.log.as_ref().map(|path| Log::open(path)).transpose()?;
    let (events, mut heard) = mpsc::channel(BUFFERED);
    // The first attempt decides who is listened to.
    match client::follow(socket, &path(options, &[("follow", Some("true"))])).await {
        Ok(stream) => drop(tokio::spawn(from_daemon(
            socket.to_owned(),
            path(options, &[("follow", Some("true"))]),
            stream,
            events,
        ))),
        Err(error @ ClientError::NoDaemon(_)) => local::follow(options, error, events)?,
        Err(error) => return Err(error.into()),
    }
    let mut hangup = log.as_ref().map(|_| signal(SignalKind::hangup())).transpose()?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = heard.recv() => match (event, &mut log) {
                (None, _) => return Ok(()),
                (Some(Err(failure)), _) => return Err(failure),
                (Some(Ok(event)), Some(log)) => {
                    notice(&event);
                    log.take(&event)?;
                }
                (Some(Ok(event)), None) => {
                    notice(&event);
                    tell(&mut io::stdout().lock(), &event, options.output, colours())?;
                }
            },
            () = hung_up => if let Some(log) = &mut log { log.reopen() },
            _ = look.tick(), if log.is_some() => if let Some(log) = &mut log { log.look() },
        }
    }
}

/// Hands on what the daemon says, whichever daemon it is.
async fn from_daemon(
    socket: PathBuf,
    path: String,
    mut stream: client::Stream,
    events: mpsc::Sender<Result<FlowEvent, Failure>>,
) {
    loop {
        loop {
            match stream.next::<FlowEvent>().await {
                Ok(Some(Heard::Silence)) => remark("the daemon has said nothing for 15 s: it hangs, or is stopped"),
                Ok(Some(Heard::Again)) => remark("the daemon speaks again"),
                Ok(Some(Heard::Line(event))) => {
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    remark(&error.to_string());
                    break;
                }
            }
        }
        remark("the daemon has gone; what ends until it is back is not told");
        stream = loop {
            match client::follow(&socket, &path).await {
                Ok(stream) => break stream,
                Err(ClientError::NoDaemon(_) | ClientError::Failed { .. }) => tokio::time::sleep(AGAIN).await,
                // It came back and does not know (yet) what we ask for.
                Err(ClientError::Refused(_)) => tokio::time::sleep(AGAIN * 4).await,
                Err(error) => return drop(events.send(Err(error.into())).await),
            }
        };
        remark("the daemon is back");
    }
}

/// What is said beside what is shown.
fn notice(event: &FlowEvent) {
    match (event.event, &event.settings) {
        (FlowWord::Begin, Some(settings)) => {
            if !settings.accounting {
                remark(NOT_COUNTED);
            }
            if !settings.events {
                remark(
                    "net.netfilter.nf_conntrack_events is 0: connection tracking is read once a second, and what is shorter is not seen",
                );
            }
        }
        (FlowWord::Lost, _) => remark("there was more than could be told; short connections are missing"),
        _ => {}
    }
}

fn tell(out: &mut impl Write, event: &FlowEvent, format: Option<Format>, colours: bool) -> Result<(), Failure> {
    match format {
        Some(Format::Json) => {
            let line = serde_json::to_string(event).map_err(|error| Failure::Say(error.to_string()))?;
            writeln!(out, "{line}")?;
        }
        Some(Format::Yaml) => {
            writeln!(out, "---")?;
            say(out, Format::Yaml, event)?;
        }
        None => {
            if let Some(flow) = &event.flow {
                writeln!(out, "{}", line(event, flow, colours))?;
            }
        }
    }
    Ok(out.flush()?)
}

fn line(event: &FlowEvent, flow: &FlowView, colours: bool) -> String {
    let (word, look) = match event.event {
        FlowWord::New => ("new", Look::Good),
        FlowWord::Update => ("update", Look::Plain),
        FlowWord::End => ("end", Look::Faint),
        FlowWord::Present | FlowWord::Begin | FlowWord::Lost => ("there", Look::Faint),
    };
    let time = event.at.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    let service = flow.service_port().map(|name| format!(" {name}")).unwrap_or_default();
    let endpoint = flow.endpoint.map_or_else(|| "nobody yet".to_owned(), |at| at.to_string());
    let pod = flow.pod.as_deref().map(|pod| format!(" {pod}")).unwrap_or_default();
    let node = flow.node.as_deref().map(|node| format!(" on {node}")).unwrap_or_default();
    let userspace = if flow.userspace { ", userspace" } else { "" };
    let traffic =
        flow.traffic.map(|traffic| format!("  in {}, out {}", size(traffic.bytes_in), size(traffic.bytes_out)));
    let age = flow.age_seconds.map(|age| format!("  {age:.3}s")).filter(|_| event.event == FlowWord::End);
    let text = format!(
        "{} {} -> {}{service} -> {endpoint}{pod}{node}  {}{userspace}{}{}",
        flow.protocol,
        flow.client,
        flow.frontend,
        flow.state,
        traffic.unwrap_or_default(),
        age.unwrap_or_default(),
    );
    format!("{time} {} {}", paint(&format!("{word:<6}"), look, colours), plain(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_tables_are_safe_to_look_at() {
        let flow: FlowView = serde_json::from_value(serde_json::json!({
            "protocol": "TCP", "client": "10.9.0.1:4000", "frontend": "10.96.0.1:80", "endpoint": "10.1.0.1:8080",
            "namespace": "shop", "service": "web", "port": "http", "pod": "web\u{1b}[31m-1", "node": "n1\r\n",
            "state": "time wait", "active": false, "packetsIn": 3, "packetsOut": 2, "bytesIn": 999, "bytesOut": 123_456,
            "ageSeconds": 1.5,
        }))
        .expect("a view");
        let event = FlowEvent::of(FlowWord::End, jiff::Timestamp::UNIX_EPOCH, flow.clone());
        let line = line(&event, &flow, false);
        let want = "end    TCP 10.9.0.1:4000 -> 10.96.0.1:80 shop/web:http -> 10.1.0.1:8080 web\\u{1b}[31m-1 on n1\\r\\n  time wait  in 999B, out 123.5kB  1.500s";
        assert!(line.ends_with(want), "{line}");
        let settings = FlowSettings { accounting: true, timestamps: true, events: true };
        let list = FlowList { version: "v1".into(), settings, read: 1, partial: false, more: 7, flows: vec![flow] };
        let mut out = Vec::new();
        write(&mut out, &list, false).expect("memory");
        let out = String::from_utf8(out).expect("text");
        assert!(!out.contains(['\u{1b}', '\r']) && out.lines().count() == 3 && out.contains("123.5kB"), "{out}");
    }

    #[test]
    fn sizes_have_one_unit() {
        assert_eq!(
            [0, 999, 1000, 999_949, 999_951, 5_000_000_000].map(size),
            ["0B", "999B", "1.0kB", "999.9kB", "1.0MB", "5.0GB"]
        );
    }
}
