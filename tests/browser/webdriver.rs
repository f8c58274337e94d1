//! As much of the WebDriver protocol (W3C) as the test needs, over HTTP to a chromedriver of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Client;

/// What WebDriver calls the key of an element reference.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().find_map(|name| folders.iter().map(|f| f.join(name)).find(|p| p.is_file()))
}

fn chromium() -> Option<PathBuf> {
    find_program(&["chromium", "chromium-browser", "chrome", "google-chrome"])
}

/// Why there can be no browser here, if so.
pub fn missing() -> Option<String> {
    if chromium().is_none() {
        return Some("chromium is not installed".to_string());
    }
    find_program(&["chromedriver"]).is_none().then(|| "chromedriver is not installed".to_string())
}

/// How often chromedriver is started at most: now and then it ends without having told a port.
const STARTS: usize = 5;

/// A chromedriver and its port; `None` if it ended before it had one.
fn driver() -> Option<(Child, u16)> {
    let program = find_program(&["chromedriver"]).expect("checked by `missing`");
    let mut driver = Command::new(program)
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver starts");
    let out = BufReader::new(driver.stdout.take().expect("piped"));
    let line = out.lines().map_while(Result::ok).find(|l| l.contains("started successfully on port"));
    let port = line.and_then(|l| l.trim_end_matches('.').rsplit(' ').next()?.parse::<u16>().ok());
    if port.is_none() {
        // It has closed its output: it is on its way out or gone.
        let _ = driver.kill();
        let _ = driver.wait();
    }
    Some((driver, port?))
}

/// A headless browser with one window; both processes end when it is dropped.
pub struct Browser {
    driver: Child,
    client: Client,
    session: String,
}

/// An element of the page.
pub struct Element(String);

impl Browser {
    /// Starts chromedriver on a free port and a browser with a new profile below `folder`.
    pub fn start(folder: &Path) -> Browser {
        let (driver, port) = (0..STARTS).find_map(|_| driver()).expect("chromedriver tells its port");
        let client = Client::Network(SocketAddr::from(([127, 0, 0, 1], port)));
        let binary = chromium().expect("checked by `missing`");
        let profile = format!("--user-data-dir={}", folder.join("profile").display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            &profile,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": binary, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 30000},
        }}});
        let mut browser = Browser { driver, client, session: String::new() };
        let answer = browser.send("POST", "/session", &wanted);
        browser.session = answer["sessionId"].as_str().expect("a session").to_string();
        browser
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let bytes = if method == "GET" || method == "DELETE" { Vec::new() } else { body.to_string().into_bytes() };
        let headers = [("Content-Type", "application/json")];
        let reply = self.client.send(method, path, &headers, &bytes);
        let answer: Value = reply.json();
        let value = answer["value"].clone();
        assert_eq!(reply.status, 200, "{method} {path}: {}: {}", value["error"], value["message"]);
        value
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.send("POST", &format!("/session/{}/{path}", self.session), body)
    }

    pub fn go(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    pub fn size(&self, width: u32, height: u32) {
        // The window is outside, the metrics are what the page gets, phones included.
        self.command("window/rect", &json!({"width": width, "height": height}));
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        let override_metrics = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics});
        self.command("goog/cdp/execute", &override_metrics);
    }

    pub fn find(&self, selector: &str) -> Element {
        let found = self.command("element", &json!({"using": "css selector", "value": selector}));
        Element(found[ELEMENT].as_str().expect("an element").to_string())
    }

    pub fn click(&self, element: &Element) {
        self.command(&format!("element/{}/click", element.0), &json!({}));
    }

    pub fn type_into(&self, element: &Element, text: &str) {
        self.command(&format!("element/{}/value", element.0), &json!({ "text": text }));
    }

    /// Types special keys or text at whatever has the focus: `\u{e004}` is Tab, `\u{e007}` Return.
    pub fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|c| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": c.to_string()})))
            .collect();
        self.command("actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// Waits until the page was laid out and painted twice.
    pub fn settle(&self) {
        let twice = "const done = arguments[arguments.length - 1];
                     requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(true), 150)))";
        self.async_script(twice);
    }

    pub fn script(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// A script that calls its last argument with its result.
    pub fn async_script(&self, script: &str) -> Value {
        self.command("execute/async", &json!({"script": script, "args": []}))
    }

    /// Holds keys down while `meanwhile` runs.
    pub fn hold_keys(&self, keys: &[&str], meanwhile: impl FnOnce()) {
        let actions = |kind: &str| -> Vec<Value> { keys.iter().map(|k| json!({"type": kind, "value": k})).collect() };
        let act = |actions: Vec<Value>| {
            self.command("actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
        };
        act(actions("keyDown"));
        meanwhile();
        act(actions("keyUp"));
    }

    /// Presses the pointer on an element while `meanwhile` runs.
    pub fn hold_pointer(&self, element: &Element, meanwhile: impl FnOnce()) {
        let act = |actions: Value| {
            let mouse =
                json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
            self.command("actions", &json!({ "actions": [mouse] }));
        };
        let origin = json!({ ELEMENT: element.0 });
        act(json!([
            {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin},
            {"type": "pointerDown", "button": 0},
        ]));
        meanwhile();
        act(json!([{"type": "pointerUp", "button": 0}]));
    }

    pub fn screenshot(&self, path: &Path) {
        let picture = self.send("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        std::fs::write(path, base64(picture.as_str().expect("a picture"))).expect("the folder is writable");
    }

    /// What the browser's console has complained about so far.
    pub fn errors(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({"type": "browser"}));
        let severe = |e: &&Value| e["level"] == "SEVERE";
        log.as_array().into_iter().flatten().filter(severe).map(|e| e["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Also while a test fails, when nothing may panic: so without the client. The driver ends the browser and
        // answers.
        if let Client::Network(address) = self.client
            && let Ok(mut stream) = TcpStream::connect(address)
        {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let end = format!("DELETE /session/{} HTTP/1.1\r\nHost: {address}\r\n\r\n", self.session);
            let _ = stream.write_all(end.as_bytes()).and_then(|()| stream.read(&mut [0; 1]));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Decodes RFC 4648 base64 without line breaks.
fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let symbols: Vec<u8> = text.bytes().filter(|c| *c != b'=').collect();
    let group = |symbols: &[u8]| {
        let bits = symbols.iter().fold(0, |bits, c| bits << 6 | value(*c)) << (6 * (4 - symbols.len()));
        bits.to_be_bytes()[1..symbols.len()].to_vec()
    };
    symbols.chunks(4).flat_map(group).collect()
}
