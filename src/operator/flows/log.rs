//! The log of connections: one line of JSON per end, under OpenTelemetry's names, so that it can be joined with traces.
//!
//! `client.*`, `server.*`, `network.*` and `k8s.*` are those of the semantic conventions: `server` is the frontend, that is what the client
//! connected to, `network.peer` is who answered. What they have no names for begins with `pointsman.`.
//!
//! The file is opened again on SIGHUP and when it is not there any more under its name (it is looked for once a second), so a log may be
//! rotated in either way. What cannot be written is said once, counted, and tried again with the next line: a full disk ends nothing. If it took
//! a part of a line, the next one begins on a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::super::remark;
use crate::status::flows::{FlowEvent, FlowView, FlowWord};

/// Where lines go.
#[derive(Debug)]
pub(super) struct Log {
    to: To,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

#[derive(Debug)]
enum To {
    Standard,
    File {
        path: PathBuf,
        file: File,
        /// It ends with a part of a line.
        torn: bool,
    },
}

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    #[serde(rename = "network.transport")]
    transport: String,
    #[serde(rename = "network.type")]
    kind: &'static str,
    #[serde(rename = "client.address")]
    client_address: String,
    #[serde(rename = "client.port")]
    client_port: u16,
    #[serde(rename = "server.address")]
    server_address: String,
    #[serde(rename = "server.port")]
    server_port: u16,
    #[serde(rename = "network.peer.address", skip_serializing_if = "Option::is_none")]
    peer_address: Option<String>,
    #[serde(rename = "network.peer.port", skip_serializing_if = "Option::is_none")]
    peer_port: Option<u16>,
    #[serde(rename = "k8s.namespace.name", skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(rename = "k8s.service.name", skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(rename = "k8s.pod.name", skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(rename = "k8s.node.name", skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(rename = "pointsman.service.port", skip_serializing_if = "Option::is_none")]
    port: Option<&'a str>,
    #[serde(rename = "pointsman.datapath")]
    datapath: &'static str,
    #[serde(rename = "pointsman.state")]
    state: &'a str,
    /// When it began.
    #[serde(rename = "pointsman.began", skip_serializing_if = "Option::is_none")]
    began: Option<Timestamp>,
    /// In seconds.
    #[serde(rename = "pointsman.duration", skip_serializing_if = "Option::is_none")]
    duration: Option<f64>,
    #[serde(rename = "pointsman.bytes.from_client", skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(rename = "pointsman.bytes.to_client", skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(rename = "pointsman.packets.from_client", skip_serializing_if = "Option::is_none")]
    packets_in: Option<u64>,
    #[serde(rename = "pointsman.packets.to_client", skip_serializing_if = "Option::is_none")]
    packets_out: Option<u64>,
}

// === impl Log ===

impl Log {
    /// Opens, or makes, a file; `-` is standard output.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let to = match path.as_os_str() == "-" {
            true => To::Standard,
            false => To::file(path.to_owned())?,
        };
        Ok(Self { to, lost: 0 })
    }

    /// Writes the line of a connection that has ended.
    ///
    /// # Errors
    /// When nobody reads standard output any more.
    pub(super) fn take(&mut self, event: &FlowEvent) -> io::Result<()> {
        let Some(flow) = event.flow.as_ref().filter(|_| event.event == FlowWord::End) else { return Ok(()) };
        let mut text = serde_json::to_vec(&Line::of(event.at, flow))?;
        text.push(b'\n');
        let written = match &mut self.to {
            To::Standard => {
                let mut out = io::stdout().lock();
                return out.write_all(&text).and_then(|()| out.flush());
            }
            // One call per line, so that a line is never torn between two files.
            To::File { file, torn, .. } => write_line(file, torn, &text),
        };
        match written {
            Ok(()) => {
                if self.lost > 0 {
                    remark(&format!("the log is written again; {} lines are missing", self.lost));
                }
                self.lost = 0;
            }
            Err(error) => {
                if self.lost == 0 {
                    remark(&format!("the log cannot be written: {error}"));
                }
                self.lost += 1;
            }
        }
        Ok(())
    }

    /// Opens the file of its name anew; stays with the old one if that cannot be.
    pub(super) fn reopen(&mut self) {
        if let To::File { path, .. } = &self.to {
            match To::file(path.clone()) {
                Ok(new) => self.to = new,
                Err(error) => remark(&format!("the log cannot be opened again: {error}")),
            }
        }
    }

    /// Notices that the file was moved away or deleted.
    pub(super) fn look(&mut self) {
        let To::File { path, file, .. } = &self.to else { return };
        let place = |metadata: io::Result<std::fs::Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
        if place(std::fs::metadata(path)) != place(file.metadata()) {
            self.reopen();
        }
    }
}

// === impl To ===

impl To {
    fn file(path: PathBuf) -> io::Result<Self> {
        // Who talks to whom is not for everybody.
        let opened = OpenOptions::new().create(true).append(true).mode(0o640).open(&path);
        let file = opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let torn = file.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) && !ends_with_a_line(&path);
        Ok(To::File { path, file, torn })
    }
}

/// Whether the last thing in a file is the end of a line; so it is said to be where that cannot be read.
fn ends_with_a_line(path: &Path) -> bool {
    let last = || {
        let (mut file, mut last) = (File::open(path)?, [0]);
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        io::Result::Ok(last[0])
    };
    last().map_or(true, |last| last == b'\n')
}

/// Writes a line, on one of its own. `torn`: what is there ends with a part of a line.
fn write_line(out: &mut impl Write, torn: &mut bool, line: &[u8]) -> io::Result<()> {
    let text = if *torn { [b"\n", line].concat() } else { line.to_vec() };
    let mut rest = &text[..];
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                *torn = rest[written - 1] != b'\n';
                rest = &rest[written..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// === impl Line ===

impl<'a> Line<'a> {
    fn of(at: Timestamp, flow: &'a FlowView) -> Self {
        let traffic = flow.traffic.as_ref();
        Self {
            timestamp: at,
            transport: flow.protocol.to_lowercase(),
            kind: if flow.frontend.is_ipv4() { "ipv4" } else { "ipv6" },
            client_address: flow.client.ip().to_string(),
            client_port: flow.client.port(),
            server_address: flow.frontend.ip().to_string(),
            server_port: flow.frontend.port(),
            peer_address: flow.endpoint.map(|at| at.ip().to_string()),
            peer_port: flow.endpoint.map(|at| at.port()),
            namespace: flow.namespace.as_deref(),
            service: flow.service.as_deref(),
            pod: flow.pod.as_deref(),
            node: flow.node.as_deref(),
            port: flow.port.as_deref(),
            datapath: if flow.userspace { "userspace" } else { "kernel" },
            state: &flow.state,
            began: flow.began,
            duration: flow.age_seconds,
            bytes_in: traffic.map(|traffic| traffic.bytes_in),
            bytes_out: traffic.map(|traffic| traffic.bytes_out),
            packets_in: traffic.map(|traffic| traffic.packets_in),
            packets_out: traffic.map(|traffic| traffic.packets_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> FlowEvent {
        let flow = serde_json::from_value(serde_json::json!({
            "protocol": "TCP", "client": "[fd00::9]:4000", "frontend": "[fd00::1]:80", "endpoint": "[fd00:1::1]:8080",
            "namespace": "shop", "service": "web", "pod": "web-1\n{\"x\":1}", "state": "closed", "active": false,
            "packetsIn": 3, "packetsOut": 2, "bytesIn": 999, "bytesOut": 1234, "ageSeconds": 1.5,
        }));
        FlowEvent::of(FlowWord::End, Timestamp::UNIX_EPOCH, flow.expect("a view"))
    }

    #[test]
    fn a_line_has_the_names_of_the_conventions() {
        let FlowEvent { at, flow, .. } = end();
        let flow = flow.expect("a flow");
        let text = serde_json::to_string(&Line::of(at, &flow)).expect("JSON");
        insta::assert_snapshot!(text, @r#"{"timestamp":"1970-01-01T00:00:00Z","network.transport":"tcp","network.type":"ipv6","client.address":"fd00::9","client.port":4000,"server.address":"fd00::1","server.port":80,"network.peer.address":"fd00:1::1","network.peer.port":8080,"k8s.namespace.name":"shop","k8s.service.name":"web","k8s.pod.name":"web-1\n{\"x\":1}","pointsman.datapath":"kernel","pointsman.state":"closed","pointsman.duration":1.5,"pointsman.bytes.from_client":999,"pointsman.bytes.to_client":1234,"pointsman.packets.from_client":3,"pointsman.packets.to_client":2}"#);
    }

    /// A disk with room for so many bytes.
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room).min(3);
            if taken == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.text.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_tears_no_line_but_its_own() {
        let line = b"{\"a\":1}\n";
        // However much of it there is room for, and of the one that ends the torn one.
        for room in 0..=line.len() {
            for more in 0..=line.len() + 1 {
                let (mut disk, mut torn) = (Disk { text: Vec::new(), room: line.len() + room }, false);
                write_line(&mut disk, &mut torn, line).expect("there is room");
                let second = write_line(&mut disk, &mut torn, line);
                assert_eq!(second.is_ok(), room == line.len());
                disk.room = more;
                drop(write_line(&mut disk, &mut torn, line));
                disk.room = usize::MAX;
                write_line(&mut disk, &mut torn, line).expect("there is room again");
                let text = String::from_utf8(disk.text).expect("text");
                let whole = text.lines().filter(|one| one.as_bytes() == line.trim_ascii_end()).count();
                assert!(whole >= 2 && text.ends_with("{\"a\":1}\n"), "{room} {more}: {text:?}");
                let part = |one: &str| "{\"a\":1}".starts_with(one) && !one.is_empty();
                assert!(text.lines().all(part), "{room} {more}: {text:?}");
            }
        }
    }

    #[test]
    fn a_log_that_was_torn_before_goes_on_with_a_new_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flows.log");
        std::fs::write(&path, "{\"torn").expect("written");
        let mut log = Log::open(&path).expect("a file");
        log.take(&end()).expect("written");
        log.reopen();
        log.take(&end()).expect("written");
        let text = std::fs::read_to_string(&path).expect("text");
        let whole = text.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
        assert_eq!((text.lines().count(), whole), (3, 2), "{text}");
    }

    #[test]
    fn a_log_follows_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flows.log");
        let lines = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let mut log = Log::open(&path).expect("a file");
        log.take(&end()).expect("written");
        log.take(&FlowEvent::plain(FlowWord::Lost)).expect("nothing to write");
        let moved = directory.path().join("flows.log.1");
        std::fs::rename(&path, &moved).expect("moved");
        log.take(&end()).expect("written");
        assert_eq!(lines(&moved), 2, "not yet noticed");
        log.look();
        log.take(&end()).expect("written");
        std::fs::rename(&path, directory.path().join("flows.log.2")).expect("moved");
        log.reopen();
        log.take(&end()).expect("written");
        assert_eq!((lines(&moved), lines(&path)), (2, 1));
        // Where no file can be made, the old one goes on.
        drop(log);
        let nowhere = directory.path().join("nowhere/flows.log");
        assert!(Log::open(&nowhere).expect_err("no directory").to_string().contains("nowhere/flows.log"));
    }
}
