//! A real daemon for tests: starts the built program in a directory of its own, talks to it, and ends it.
//! Each test program uses the part that it needs.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Generous, because the test machine may be busy: what a test waits for normally takes a small part of it.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn model_dir() -> PathBuf {
    std::env::var_os("GAMEGEN_TEST_MODEL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini"), PathBuf::from)
}

/// A directory that is removed with everything in it.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        let unique = format!("gamegend-{name}-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running daemon in the foreground with its own configuration, state and socket.
pub struct Daemon {
    child: Child,
    pub dir: TempDir,
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// Starts a daemon on `device` and waits until it is ready.
    pub fn start(name: &str, device: &str) -> Daemon {
        Daemon::start_on(name, device, &model_dir())
    }

    /// The same on the model of that folder.
    pub fn start_on(name: &str, device: &str, model: &Path) -> Daemon {
        let dir = TempDir::new(name);
        let config = dir.0.join("gamegend.toml");
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[control]\nsocket = \"{0}/gamegend.sock\"\n\
             [state]\ndirectory = \"{0}/state\"\n\
             pid_file = \"{0}/gamegend.pid\"\n[gpu]\ndevice = \"{device}\"\n[model]\npath = \"{1}\"\n",
            dir.0.display(),
            model.display()
        );
        fs::write(&config, text).expect("the directory is new");
        let mut child = Command::new(env!("CARGO_BIN_EXE_gamegend"))
            .args(["-d", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let log = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("it is piped"), &log);
        collect(child.stderr.take().expect("it is piped"), &log);
        let mut daemon = Daemon { child, dir, address: String::new(), log };
        daemon.address = daemon.wait_for_address();
        daemon.wait_until("the worker is ready", |d| d.get("/readyz").is_some_and(|r| r.status == 200));
        daemon
    }

    fn wait_for_address(&mut self) -> String {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            for line in self.log.lock().expect("no reader panics").iter() {
                if let Some(rest) = line.split("http://").nth(1) {
                    return rest.split(['/', ' ']).next().unwrap_or(rest).to_string();
                }
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon told no address:\n{}", self.log());
    }

    /// Polls until `ready`; panics with the log if that never comes.
    pub fn wait_until(&self, what: &str, mut ready: impl FnMut(&Daemon) -> bool) {
        let begin = Instant::now();
        while !ready(self) {
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no reader panics").join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.0.join("gamegend.sock")
    }

    pub fn get(&self, path: &str) -> Option<Response> {
        request(&self.address, "GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        request(&self.address, "POST", path, Some(body.to_string().as_bytes())).expect("the daemon answers")
    }

    pub fn delete(&self, path: &str) -> Response {
        request(&self.address, "DELETE", path, None).expect("the daemon answers")
    }

    pub fn status(&self, id: &str) -> Value {
        // Tests ask more often than clients may: a refusal for that is waited out, so that it is never taken for an
        // answer.
        loop {
            let reply = self.get(&format!("/api/v1/status?id={id}")).expect("the daemon answers");
            if reply.status != 429 {
                return reply.json();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Starts a generation or session and returns its id.
    pub fn generate(&self, body: &Value) -> String {
        let reply = self.post("/api/v1/generate", body);
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["id"].as_str().expect("a reply has an id").to_string()
    }

    pub fn wait_done(&self, id: &str) -> Value {
        self.wait_until("the generation is done", |d| {
            let state = d.status(id)["state"].as_str().unwrap_or_default().to_string();
            assert!(!["failed", "cancelled"].contains(&state.as_str()), "{}\n{}", d.status(id), d.log());
            state == "done"
        });
        self.status(id)
    }

    /// Runs gamegendctl against this daemon.
    pub fn ctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gamegendctl"))
            .arg("-s")
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("the program was built")
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn stop(mut self) -> (Option<i32>, String) {
        signal(self.child.id(), "TERM");
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Ok(Some(status)) = self.child.try_wait() {
                return (status.code(), self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon does not end:\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
            for _ in 0..250 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal by its name through kill(1).
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

fn collect(stream: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            log.lock().expect("no reader panics").push(line);
        }
    });
}

/// An HTTP answer.
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// One HTTP/1.1 request on a connection of its own. `None` if there is no answer.
pub fn request(address: &str, method: &str, path: &str, body: Option<&[u8]>) -> Option<Response> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let length = body.map_or(0, <[u8]>::len);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    // A refused body may be answered before it is read to its end.
    let _ = stream.write_all(body.unwrap_or_default());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = bytes[split + 4..].to_vec();
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(&body) } else { body };
    Some(Response { status, head, body })
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&bytes[..end]).trim(), 16).unwrap_or(0);
        if size == 0 || end + 2 + size > bytes.len() {
            break;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[(end + 4 + size).min(bytes.len())..];
    }
    out
}

/// True if a program is there; otherwise tells that the test is skipped, or fails if tests must not be.
pub fn available(program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        skip(&format!("{program} is not installed"));
    }
    there
}

/// Says that a test cannot run here. Fails instead where GAMEGEND_TEST_REQUIRE is set.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("GAMEGEND_TEST_REQUIRE").is_none(), "{reason}, and nothing may be skipped");
    println!("skipped: {reason}");
}
