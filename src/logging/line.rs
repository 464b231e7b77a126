//! How a line looks.
//!
//! klog's text is `I1123 12:00:00.123456    4711 plane.rs:12] "message" key="value" number=1`: severity, month and day, local time,
//! process, source line. A message without fields is not quoted, as klog has it. JSON is what zap writes for Kubernetes: `ts` in milliseconds, `caller`, `msg`, `v` for everything but
//! errors, then the fields. A field called `error` is `err` in both.

use std::fmt::{Debug, Write};

use jiff::Zoned;
use serde_json::{Number, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::filter;

/// An event with all that a line shows.
pub struct Record {
    time: Zoned,
    pid: u32,
    level: Level,
    verbosity: u32,
    file: String,
    line: u64,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

// === impl Record ===

impl Record {
    /// Takes everything out of an event.
    pub fn of(event: &Event<'_>, time: Zoned, pid: u32) -> Self {
        let metadata = event.metadata();
        let mut record = Record {
            time,
            pid,
            level: *metadata.level(),
            verbosity: filter::verbosity(metadata),
            file: metadata.file().unwrap_or("unknown").to_owned(),
            line: metadata.line().unwrap_or(1).into(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut record);
        if let Some(at) = record.file.rfind('/') {
            record.file.drain(..=at);
        }
        record
    }

    /// klog's text.
    pub fn text(&self) -> String {
        let severity = match self.level {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let time = self.time.strftime("%m%d %H:%M:%S%.6f");
        let mut text = format!("{severity}{time} {:>7} {}:{}] ", self.pid, self.file, self.line);
        if self.fields.is_empty() {
            // One line stays one line, and a terminal is not talked to.
            let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
            text.extend(self.message.chars().map(escape));
        } else {
            let _ = write!(text, "{:?}", self.message);
        }
        for (name, value) in &self.fields {
            let _ = match value {
                Value::String(value) => write!(text, " {name}={value:?}"),
                value => write!(text, " {name}={value}"),
            };
        }
        text.push('\n');
        text
    }

    /// zap's JSON.
    pub fn json(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let micros = self.time.timestamp().as_microsecond();
        let caller = quoted(&format!("{}:{}", self.file, self.line));
        let (ms, us) = (micros / 1000, micros % 1000);
        let mut text = format!("{{\"ts\":{ms}.{us:03},\"caller\":{caller},\"msg\":{}", quoted(&self.message));
        if self.level != Level::ERROR {
            let _ = write!(text, ",\"v\":{}", self.verbosity);
        }
        for (name, value) in &self.fields {
            let _ = write!(text, ",{}:{value}", quoted(name));
        }
        text.push_str("}\n");
        text
    }

    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        let value = value.into();
        match (field.name(), &value) {
            ("message", Value::String(text)) => self.message.clone_from(text),
            // Where an event that came through the crate `log` really comes from.
            ("log.file", Value::String(text)) => self.file.clone_from(text),
            ("log.line", Value::Number(line)) => self.line = line.as_u64().unwrap_or(self.line),
            (name, _) if name.starts_with("log.") => {}
            ("error", _) => self.fields.push(("err", value)),
            (name, _) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use jiff::civil::date;
    use jiff::tz::TimeZone;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry;

    use super::*;

    struct Keep(Arc<Mutex<Vec<Record>>>);

    impl<S: tracing::Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let time = date(2026, 11, 23).at(12, 0, 5, 123_456_789).to_zoned(TimeZone::UTC).expect("a time");
            let mut record = Record::of(event, time, 4711);
            record.line = 12;
            self.0.lock().expect("no panic").push(record);
        }
    }

    #[test]
    fn lines_look_like_klog_and_zap() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(registry().with(Keep(kept.clone())), || {
            tracing::info!(target: "pointsman", services = "a/b:\"c\"", changes = 3, good = true, "programmed\nall");
            tracing::warn!(target: "kube", left = 0.5, "it is {}", "late");
            tracing::error!(target: "pointsman", error = %"no \u{1b}[31mway", retry_in = ?std::time::Duration::from_millis(5), "failed");
            tracing::debug!(target: "pointsman", "the \"reason\"\nwhy");
        });
        let kept = kept.lock().expect("no panic");
        let text: String = kept.iter().map(Record::text).collect();
        insta::assert_snapshot!(text, @r#"
        I1123 12:00:05.123456    4711 line.rs:12] "programmed\nall" services="a/b:\"c\"" changes=3 good=true
        W1123 12:00:05.123456    4711 line.rs:12] "it is late" left=0.5
        E1123 12:00:05.123456    4711 line.rs:12] "failed" err="no \u{1b}[31mway" retry_in="5ms"
        I1123 12:00:05.123456    4711 line.rs:12] the "reason"\nwhy
        "#);
        let json: String = kept.iter().map(Record::json).collect();
        insta::assert_snapshot!(json, @r#"
        {"ts":1795435205123.456,"caller":"line.rs:12","msg":"programmed\nall","v":0,"services":"a/b:\"c\"","changes":3,"good":true}
        {"ts":1795435205123.456,"caller":"line.rs:12","msg":"it is late","v":0,"left":0.5}
        {"ts":1795435205123.456,"caller":"line.rs:12","msg":"failed","err":"no \u001b[31mway","retry_in":"5ms"}
        {"ts":1795435205123.456,"caller":"line.rs:12","msg":"the \"reason\"\nwhy","v":4}
        "#);
        for line in json.lines() {
            serde_json::from_str::<Value>(line).expect("JSON");
        }
    }
}
