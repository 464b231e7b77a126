//! A headless Chromium in a node, spoken to over the DevTools protocol. Needs Debian's package `chromium`, and fails without it.
//!
//! The protocol comes over two pipes (`--remote-debugging-pipe`: descriptors 3 and 4, each message ends with a zero byte), so no port and no
//! WebSocket is needed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pointsman::lab::Namespace;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::beds::PATIENCE;

/// A browser with one page; dropping it ends it.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    output: Receiver<Value>,
    session: Option<String>,
    last: u64,
    /// Errors that the page has reported.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    pub fn start(node: &Namespace) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("sh");
        let options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking \
            --disable-component-update --hide-scrollbars --remote-debugging-pipe --window-size=1280,860 --user-data-dir";
        command
            .arg("-c")
            .arg(format!(
                "exec chromium {options}={} about:blank 3<&0 4>&1 0</dev/null 1>/dev/null",
                profile.path().display()
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = node.spawn(command).expect("a shell");
        let (input, pipe) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (heard, output) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(pipe).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("JSON");
                if heard.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { child, input, output, session: None, last: 0, complaints: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method and waits for its answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let bytes = [message.to_string().as_bytes(), &[0]].concat();
        self.input.write_all(&bytes).expect("chromium, of Debian's package of that name, listens");
        let begin = Instant::now();
        loop {
            let left = (PATIENCE * 2).saturating_sub(begin.elapsed());
            let heard = self.output.recv_timeout(left);
            let heard =
                heard.unwrap_or_else(|_| panic!("chromium should answer {method}; is the package chromium installed?"));
            if heard["id"] == self.last {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
            self.note(&heard);
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters.to_string()),
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.complaints.push(parameters.to_string())
            }
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters.to_string())
            }
            _ => {}
        }
    }

    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
    }

    /// The value of an expression.
    pub fn eval(&mut self, script: &str) -> Value {
        let found = self.call(
            "Runtime.evaluate",
            json!({"expression": script, "returnByValue": true, "awaitPromise": true, "userGesture": true}),
        );
        assert!(found["exceptionDetails"].is_null(), "{script}: {found}");
        found["result"]["value"].clone()
    }

    /// Waits until an expression is true, and says how long that took.
    pub fn wait(&mut self, what: &str, script: &str) -> Duration {
        let begin = Instant::now();
        while self.eval(&format!("!!({script})")) != true {
            if begin.elapsed() > PATIENCE {
                let text = self.eval("document.body.innerText");
                panic!("{what} should come; complaints: {:#?}; the page says: {text}", self.complaints);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        begin.elapsed()
    }

    /// Presses a key, as a keyboard does.
    pub fn press(&mut self, key: &str) {
        let text = if key.len() == 1 { key } else { "" };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "ArrowDown" => 40,
            "ArrowUp" => 38,
            _ => i64::from(key.as_bytes()[0]),
        };
        let text = if key == "Enter" { "\r" } else { text };
        let event = |kind: &str| json!({"type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", event("keyDown"));
        self.call("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code}));
    }

    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Has the page believe that the reader prefers this: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// A picture of the page, as base64 of a PNG.
    pub fn picture(&mut self) -> String {
        self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].as_str().expect("data").to_owned()
    }

    /// What the page complained about so far.
    pub fn complaints(&mut self) -> &[String] {
        while let Ok(event) = self.output.try_recv() {
            self.note(&event);
        }
        &self.complaints
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
