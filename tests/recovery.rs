//! The daemon under attack: processes are killed and stopped, devices lost, memory and disk refused. Sessions go on,
//! numbers of frames rise, nothing is left behind. The long form is
//! `GAMEGEND_KILLS=200 cargo test --test recovery random -- --nocapture`.

mod daemon;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daemon::{PATIENCE, TempDir, available, model_dir, request, signal};
use futures_util::StreamExt;
use gamegend::proto::wire::FrameHeader;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// Kills where nobody asks for more: each role twice.
const KILLS: usize = 6;
/// A worker's sessions, or those of an api whose clients are back, are live again after this.
const ROLE_LIMIT: Duration = Duration::from_secs(2);
/// Those of a parent that its supervisor starts again.
const PARENT_LIMIT: Duration = Duration::from_secs(5);
const SESSIONS: usize = 2;
const STATE_MIB: usize = 24;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Several times the limit where other programs use the machine: told in the output, never hidden.
fn slack() -> u32 {
    std::env::var("GAMEGEND_TEST_SLACK").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

static ALONE: Mutex<()> = Mutex::new(());

/// A daemon that this test supervises: on an address that stays, with a log file.
struct Host {
    dir: TempDir,
    address: String,
    child: Child,
    /// A file system of its own for the state, where root can make one.
    own_disk: bool,
    /// Faults are timed and processes counted: one daemon at a time.
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn start(name: &str, more: &str) -> Host {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = TempDir::new(name);
        // Whoever the roles become passes through.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let address = format!("127.0.0.1:{port}");
        let state = dir.0.join("state");
        fs::create_dir(&state).expect("ours");
        let own_disk = is_root() && cfg!(target_os = "linux") && {
            let size = format!("size={STATE_MIB}m");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&state).status();
            mounted.is_ok_and(|s| s.success())
        };
        if is_root() {
            let nobody = nix::unistd::User::from_name("nobody").ok().flatten().expect("it exists");
            std::os::unix::fs::chown(&state, Some(nobody.uid.as_raw()), None).expect("we are root");
        }
        let text = format!(
            "[http]\nlisten = \"{address}\"\n[control]\nsocket = \"{0}/s\"\n[state]\ndirectory = \"{0}/state\"\n\
             pid_file = \"{0}/pid\"\n[gpu]\ndevice = \"cpu\"\n[model]\npath = \"{1}\"\n[log]\nfile = \"{0}/log.json\"\n\
             [worker]\nuser = \"nobody\"\n{more}",
            dir.0.display(),
            model_dir().display()
        );
        fs::write(dir.0.join("gamegend.toml"), text).expect("ours");
        let child = spawn(&dir.0);
        let host = Host { dir, address, child, own_disk, _alone: alone };
        host.wait_until("it is ready", |h| h.get("/readyz").is_some());
        host
    }

    /// What a supervisor does.
    fn restart(&mut self) {
        let _ = self.child.wait();
        self.child = spawn(&self.dir.0);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log.json")).unwrap_or_default()
    }

    /// A good answer on the Unix socket, where nobody counts requests.
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.path("s")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn generate(&self, body: &Value) -> String {
        let reply = request(&self.address, "POST", "/api/v1/generate", Some(body.to_string().as_bytes()));
        let reply = reply.expect("the daemon answers");
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["id"].as_str().expect("a reply has an id").to_string()
    }

    fn live(&self, seed: u64) -> String {
        self.generate(&json!({ "prompt": "a green meadow", "width": 128, "height": 96, "seed": seed, "steps": 1,
            "interactive": true }))
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut(&Host) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes of the daemon by role.
    fn pids(&self) -> BTreeMap<&'static str, u32> {
        let parent: u32 = fs::read_to_string(self.path("pid")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        let mut found = BTreeMap::from([("parent", parent)]);
        let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().expect("ps is there");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let mut words = line.split_whitespace();
            let (pid, ppid) = (words.next(), words.next());
            if ppid.and_then(|p| p.parse().ok()) == Some(parent)
                && let Some(pid) = pid.and_then(|p| p.parse().ok())
            {
                let role = ["api", "worker"].into_iter().find(|r| line.contains(&format!("--role {r}")));
                found.extend(role.map(|r| (r, pid)));
            }
        }
        found
    }

    fn pid(&self, role: &str) -> u32 {
        let begin = Instant::now();
        loop {
            if let Some(pid) = self.pids().get(role).filter(|p| **p != 0) {
                return *pid;
            }
            assert!(begin.elapsed() < PATIENCE, "no {role}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        signal(self.child.id(), "CONT");
        signal(self.child.id(), "TERM");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(30) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.own_disk {
            let _ = Command::new("umount").arg("-l").arg(self.path("state")).status();
        }
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_gamegend"))
        .args(["-d", "-c"])
        .arg(dir.join("gamegend.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program was built")
}

/// A viewer that comes back whenever its connection ends, and what it saw.
#[derive(Default)]
struct Seen {
    /// Newest frame's number + 1.
    next: AtomicU64,
    backwards: AtomicU64,
    connections: AtomicU64,
    end: AtomicBool,
    /// What it was told that ends a session.
    bye: Mutex<Option<String>>,
}

async fn watch(address: String, id: String, seen: Arc<Seen>) {
    while !seen.end.load(Ordering::Relaxed) {
        let url = format!("ws://{address}/ws/stream?session={id}");
        let Ok((mut ws, _)) = tokio_tungstenite::connect_async(url).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        seen.connections.fetch_add(1, Ordering::Relaxed);
        while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(10), ws.next()).await {
            match message {
                Message::Binary(bytes) => {
                    let tick = FrameHeader::decode(&bytes).expect("a frame has a header").tick;
                    let before = seen.next.fetch_max(tick + 1, Ordering::Relaxed);
                    // The newest frame is shown again to whoever joins.
                    if tick + 1 < before {
                        seen.backwards.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Message::Text(text) if text.contains("\"bye\"") => {
                    *seen.bye.lock().expect("no viewer panics") = Some(text.to_string());
                }
                _ => {}
            }
            if seen.end.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// Sessions with a viewer each.
struct Players {
    runtime: tokio::runtime::Runtime,
    seen: Vec<Arc<Seen>>,
}

impl Players {
    fn join(host: &Host, ids: &[String]) -> Players {
        let builder = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = builder.expect("a runtime starts");
        let seen: Vec<Arc<Seen>> = ids.iter().map(|_| Arc::default()).collect();
        for (id, seen) in ids.iter().zip(&seen) {
            runtime.spawn(watch(host.address.clone(), id.clone(), seen.clone()));
        }
        let players = Players { runtime, seen };
        players.all_go_on(host, &vec![0; ids.len()], PATIENCE);
        players
    }

    fn frames(&self) -> Vec<u64> {
        self.seen.iter().map(|s| s.next.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every session has a frame beyond `before`. Answers how long that took.
    fn all_go_on(&self, host: &Host, before: &[u64], limit: Duration) -> Duration {
        let begin = Instant::now();
        while self.frames().iter().zip(before).any(|(now, before)| now <= before) {
            let said: Vec<_> = self.seen.iter().map(|s| s.bye.lock().expect("no viewer panics").clone()).collect();
            assert!(begin.elapsed() < limit * slack(), "{before:?} -> {:?}, {said:?}\n{}", self.frames(), host.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        begin.elapsed()
    }
}

impl Drop for Players {
    fn drop(&mut self) {
        self.seen.iter().for_each(|s| s.end.store(true, Ordering::Relaxed));
        let empty = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
        std::mem::replace(&mut self.runtime, empty).shutdown_background();
    }
}

/// What a daemon holds; more after the attacks than before is a leak.
#[derive(Debug, Default, PartialEq)]
struct Held {
    descriptors: BTreeMap<&'static str, usize>,
    shared_memory: usize,
    mounts: usize,
    groups: usize,
    processes: usize,
    namespaces: usize,
    files: Vec<String>,
}

impl Held {
    fn of(host: &Host) -> Held {
        let pids = host.pids();
        let count = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        let descriptors = pids.iter().map(|(role, pid)| (*role, count(format!("/proc/{pid}/fd")))).collect();
        let maps = |pid: &u32| read(format!("/proc/{pid}/maps")).matches("memfd:gamegend").count();
        let dir = host.dir.0.display().to_string();
        let mut namespaces = std::collections::BTreeSet::new();
        for pid in pids.values() {
            for ns in fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten() {
                namespaces.extend(fs::read_link(ns.path()).ok());
            }
        }
        let mut files = Vec::new();
        for folder in ["state/sessions", "state/cache", "state/generations"] {
            let entries = fs::read_dir(host.path(folder)).into_iter().flatten().flatten();
            files.extend(entries.map(|e| format!("{folder}/{}", e.file_name().to_string_lossy())));
        }
        files.sort();
        let listed = Command::new("ps").args(["-A", "-o", "args="]).output().expect("ps is there");
        let of_roles = |l: &&str| l.contains("--role") && l.contains(env!("CARGO_BIN_EXE_gamegend"));
        Held {
            descriptors,
            shared_memory: pids.values().map(maps).sum(),
            mounts: read("/proc/self/mountinfo".to_string()).lines().filter(|l| l.contains(&dir)).count(),
            groups: pids.values().filter(|p| group(**p)).count(),
            processes: String::from_utf8_lossy(&listed.stdout).lines().filter(of_roles).count(),
            namespaces: namespaces.len(),
            files,
        }
    }
}

/// True if a worker's control group of a daemon with that number exists.
fn group(pid: u32) -> bool {
    let name = format!("gamegend-worker-{pid}");
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|root| Path::new(root).join(&name).exists())
}

/// A generator of the same numbers each time (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// What is done to a role.
fn faults(host: &Host, role: &str) -> Vec<&'static str> {
    let mut all = vec!["KILL", "STOP"];
    if host.own_disk {
        all.push("disk full, KILL");
    }
    if role == "worker" {
        all.extend(["device_lost", "out_of_memory"]);
        if is_root() && cfg!(target_os = "linux") && available("prlimit", "--version") {
            all.push("ENOMEM");
        }
    }
    all
}

/// Limits the memory of a process as its own user, who may; it fails for one that has ended meanwhile.
fn limit_memory(pid: u32, bytes: &str) {
    let user = nix::unistd::User::from_name("nobody").ok().flatten().expect("it exists");
    let mut command = Command::new("prlimit");
    std::os::unix::process::CommandExt::uid(&mut command, user.uid.as_raw());
    std::os::unix::process::CommandExt::gid(&mut command, user.gid.as_raw());
    let _ = command.arg("--pid").arg(pid.to_string()).arg(format!("--as={bytes}:")).stderr(Stdio::null()).status();
}

fn strike(host: &mut Host, role: &str, fault: &str) {
    let pid = host.pid(role);
    match fault {
        "KILL" => signal(pid, "KILL"),
        "STOP" if role == "parent" => {
            // Nobody is above it; its roles do not need it to go on.
            signal(pid, "STOP");
            std::thread::sleep(Duration::from_millis(300));
        }
        "STOP" => signal(pid, "STOP"),
        "disk full, KILL" => {
            let rest = vec![0u8; STATE_MIB << 20];
            let _ = fs::File::create(host.path("state/filler")).and_then(|mut f| f.write_all(&rest));
            std::thread::sleep(Duration::from_millis(1200));
            signal(pid, "KILL");
        }
        "ENOMEM" => {
            // Not one byte more, and then a session that needs many.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).unwrap_or("0 kB");
            let kib: u64 = size.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0);
            limit_memory(pid, &(kib << 10).to_string());
            let body = json!({ "prompt": "a beach", "width": 160, "height": 96, "frames": 1, "steps": 1 });
            let id = request(&host.address, "POST", "/api/v1/generate", Some(body.to_string().as_bytes()));
            std::thread::sleep(Duration::from_millis(300));
            limit_memory(pid, "unlimited");
            if let Some(Value::String(id)) = id.filter(|r| r.status == 202).map(|r| r.json()["id"].clone()) {
                request(&host.address, "DELETE", &format!("/api/v1/generate?id={id}"), None);
            }
        }
        device => fs::write(host.path("state/cache/fault"), device).expect("we may write the cache"),
    }
    if role == "parent" && fault.contains("KILL") {
        host.restart();
    }
}

fn mend(host: &Host, role: &str, fault: &str) {
    match fault {
        "STOP" if role == "parent" => signal(host.pid("parent"), "CONT"),
        "disk full, KILL" => fs::remove_file(host.path("state/filler")).expect("it was made"),
        _ => {}
    }
}

#[test]
fn random_faults_leave_sessions_live_and_nothing_behind() {
    let kills = std::env::var("GAMEGEND_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut host = Host::start("kills", "");
    let ids: Vec<String> = (0..SESSIONS as u64).map(|seed| host.live(seed)).collect();
    let players = Players::join(&host, &ids);
    std::thread::sleep(Duration::from_millis(1500));
    let before = Held::of(&host);
    println!("held before: {before:?}");
    let mut dice = Dice(20_261_125);
    let mut times: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for i in 0..kills {
        let role = ["worker", "api", "parent"][i % 3];
        let all = faults(&host, role);
        let fault = all[dice.throw(all.len())];
        // A role's snapshot or checkpoint is a second old at the most; strike anywhere in between.
        std::thread::sleep(Duration::from_millis(300 + dice.throw(1200) as u64));
        let begin = Instant::now();
        strike(&mut host, role, fault);
        // Frames that were on their way are not those of a session that is live again.
        std::thread::sleep(Duration::from_millis(50));
        let frames = players.frames();
        let limit = if role == "parent" { PARENT_LIMIT } else { ROLE_LIMIT };
        let preparing = begin.elapsed();
        let took = players.all_go_on(&host, &frames, limit);
        mend(&host, role, fault);
        println!("{:3} {role:6} {fault:15} live after {:4} ms", i + 1, took.as_millis());
        times.entry(format!("{role} {fault}")).or_default().push(took);
        assert!(preparing < PATIENCE);
        let backwards: Vec<u64> = players.seen.iter().map(|s| s.backwards.load(Ordering::Relaxed)).collect();
        assert!(backwards.iter().all(|n| *n == 0), "numbers of frames went backwards: {backwards:?}\n{}", host.log());
    }
    for (what, times) in &mut times {
        times.sort();
        let (n, median, worst) = (times.len(), times[times.len() / 2], times[times.len() - 1]);
        println!("{what:25} {n:3} times: median {:4} ms, worst {:4} ms", median.as_millis(), worst.as_millis());
    }
    host.wait_until("everything is as before", |h| {
        let now = Held::of(h);
        now.processes == before.processes && now.files.len() == before.files.len() && h.get("/readyz").is_some()
    });
    std::thread::sleep(Duration::from_millis(1500));
    let after = Held::of(&host);
    println!("held after: {after:?}");
    for (role, count) in &after.descriptors {
        assert!(*count <= before.descriptors[role] + 2, "{role} leaks descriptors: {before:?} {after:?}");
    }
    let rest = |h: &Held| (h.mounts, h.groups, h.namespaces, h.files.clone());
    assert_eq!(rest(&before), rest(&after));
    assert!(after.shared_memory <= before.shared_memory + 2, "{before:?} {after:?}");
    for id in &ids {
        assert_eq!(host.get(&format!("/api/v1/status?id={id}")).expect("it is known")["state"], "running");
    }
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let host = Host::start("hang", "hang_seconds = 5\n");
    let players = Players::join(&host, &[host.live(1)]);
    std::thread::sleep(Duration::from_millis(1200));
    let (worker, before) = (host.pid("worker"), Held::of(&host));
    for times in 1..=2 {
        fs::write(host.path("state/cache/fault"), "hang").expect("we may write the cache");
        let said = |h: &Host| h.log().matches("worker hangs: one piece of work").count();
        host.wait_until("the watchdog sees it", |h| said(h) == times);
        players.all_go_on(&host, &players.frames(), ROLE_LIMIT * 2);
    }
    assert_ne!(host.pid("worker"), worker);
    // The last worker's snapshot takes the place of the one before it within a second.
    let held = |h: &Held| (h.descriptors["api"], h.shared_memory);
    host.wait_until("the api holds no more than before", |h| held(&Held::of(h)) == held(&before));
}

#[test]
fn a_clip_is_finished_whatever_is_killed() {
    let mut host = Host::start("clip", "");
    let frames = 400;
    let id = host.generate(&json!({ "prompt": "a beach", "width": 128, "height": 96, "frames": frames, "steps": 1 }));
    let count =
        |h: &Host| h.get(&format!("/api/v1/status?id={id}")).map_or(0, |s| s["frame_count"].as_u64().unwrap_or(0));
    for role in ["worker", "api", "parent"] {
        host.wait_until("it has begun", |h| {
            (1..frames).contains(&count(h)) || h.pids().len() == 3 && count(h) >= frames
        });
        strike(&mut host, role, "KILL");
    }
    host.wait_until("it is done", |h| {
        h.get(&format!("/api/v1/status?id={id}")).is_some_and(|s| {
            assert_ne!(s["state"], "failed", "{s}\n{}", h.log());
            s["state"] == "done"
        })
    });
    assert_eq!(count(&host), frames);
    let left: Vec<_> = fs::read_dir(host.path("state/sessions")).expect("ours").flatten().collect();
    assert!(left.is_empty(), "a session that has ended is not written down: {left:?}");
}

#[test]
fn an_upgrade_refuses_no_connection_and_keeps_sessions() {
    let host = Host::start("upgrade", "");
    let players = Players::join(&host, &[host.live(1)]);
    std::thread::sleep(Duration::from_millis(1200));
    let (parent, worker) = (host.pid("parent"), host.pid("worker"));
    let (address, end) = (host.address.clone(), Arc::new(AtomicBool::new(false)));
    let stop = end.clone();
    // Each connection must be accepted by the kernel and answered in the end, also while no api runs.
    let knocking = std::thread::spawn(move || {
        let (mut answered, mut refused) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            match std::net::TcpStream::connect(&address) {
                Ok(_) => answered += 1,
                Err(_) => refused += 1,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        (answered, refused)
    });
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_gamegendctl"));
    let said = ctl.args(["upgrade", "-c"]).arg(host.path("gamegend.toml")).output().expect("it runs");
    assert!(said.status.success(), "{said:?}");
    host.wait_until("another worker runs", |h| h.pids().get("worker").is_some_and(|w| *w != worker));
    let took = players.all_go_on(&host, &players.frames(), PARENT_LIMIT);
    end.store(true, Ordering::Relaxed);
    let (accepted, refused) = knocking.join().expect("it does not panic");
    println!("upgrade: live after {} ms; {accepted} connections taken, {refused} refused", took.as_millis());
    assert!(accepted > 50 && refused == 0, "{accepted} taken, {refused} refused");
    assert_eq!(host.pid("parent"), parent, "the process stays");
    assert!(players.seen.iter().all(|s| s.backwards.load(Ordering::Relaxed) == 0));
    assert!(host.log().contains("hands over") || host.log().contains("takes over"), "{}", host.log());
}

#[test]
fn a_reload_opens_the_log_again_and_classifies_changes() {
    let host = Host::start("reload", "");
    fs::rename(host.path("log.json"), host.path("log.json.0")).expect("ours");
    let text = fs::read_to_string(host.path("gamegend.toml")).expect("ours");
    let other = text.replace(&host.address, "127.0.0.1:1").replace("[log]", "[limits]\nthreads = 512\n[log]");
    fs::write(host.path("gamegend.toml"), other).expect("ours");
    let worker = host.pid("worker");
    signal(host.pid("parent"), "HUP");
    host.wait_until("the new file has lines", |h| h.log().contains("reload: done"));
    assert!(host.log().contains("http.listen changes with the next start"), "{}", host.log());
    host.wait_until("the worker is another one", |h| h.pids().get("worker").is_some_and(|w| *w != worker));
    host.wait_until("it is ready", |h| h.get("/readyz").is_some());
    for line in host.log().lines() {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        assert!(line["time"].is_string() && line["role"].is_string() && line["message"].is_string(), "{line}");
    }
}

/// What the kernel says about the processes of a daemon that root started.
#[test]
#[cfg(target_os = "linux")]
fn roles_of_a_running_daemon_are_confined() {
    if !is_root() {
        return daemon::skip("only root confines to the full");
    }
    let host = Host::start("confined", "");
    for role in ["api", "worker"] {
        let pid = host.pid(role);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let value = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(&format!("{key}:"))).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_string()
        };
        assert_eq!((value("NoNewPrivs").as_str(), value("Seccomp").as_str()), ("1", "2"), "{role}");
        assert_eq!(value("CapEff"), "0000000000000000", "{role}");
        assert_eq!(value("CapPrm"), "0000000000000000", "{role}");
        assert_ne!(value("Uid"), "0", "{role}");
        for ns in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{ns}")).expect("it runs");
            assert_ne!(of(&pid.to_string()), of("self"), "{role} shares {ns}");
        }
        let names = |folder: &str| {
            let entries = fs::read_dir(format!("/proc/{pid}/root/{folder}")).expect("we are root");
            let mut names: Vec<String> =
                entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names("dev"), ["null", "random", "shm", "urandom", "zero"], "{role}");
        let root = names("");
        assert!(!root.iter().any(|n| ["home", "root", "boot", "bin", "sbin", "var"].contains(&n.as_str())), "{root:?}");
        assert!(!Path::new(&format!("/proc/{pid}/root/etc/passwd")).exists(), "{role}");
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default().to_string_lossy().into_owned();
            let inside = target.starts_with('/') && !target.starts_with("/memfd:") && target != "/dev/null";
            let state = host.path("state").display().to_string();
            assert!(!inside || (role == "api" && target.starts_with(&state)), "{role} holds {target}");
        }
    }
}
