//! The real daemon: how it starts, how it refuses to, how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A machine that builds other things meanwhile is slow; a daemon that hangs is slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder of one test with a configuration in it.
struct Place {
    root: PathBuf,
}

impl Place {
    fn new(name: &str) -> Place {
        let root = std::env::temp_dir().join(format!("gamegend-start-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).expect("a temporary directory");
        let place = Place { root };
        // An index makes a folder a model as far as the parent looks.
        fs::create_dir(place.path("model")).expect("ours");
        fs::write(place.path("model/model_index.json"), "{}").expect("ours");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes the configuration; `change` may replace its lines.
    fn config(&self, change: &[(&str, String)]) -> PathBuf {
        let quoted = |name: &str| format!("{:?}", self.path(name).display().to_string());
        let mut text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[control]\nsocket = {}\n[state]\ndirectory = {}\npid_file = {}\n\
             [gpu]\ndevice = \"cpu\"\n[model]\npath = {}\n",
            quoted("socket"),
            quoted("state"),
            quoted("pid"),
            quoted("model")
        );
        for (key, line) in change {
            let old = text.lines().find(|l| l.starts_with(&format!("{key} ="))).map(str::to_string);
            let old = old.expect("only keys that are there are replaced");
            text = text.replace(&old, line);
        }
        let path = self.path("gamegend.toml");
        fs::write(&path, text).expect("ours");
        path
    }

    /// Runs the daemon in the foreground until it ends: its exit code and what it said.
    fn refused(&self, change: &[(&str, String)]) -> (i32, String) {
        let mut daemon = Daemon::start(&self.config(change));
        let status = daemon.wait();
        (status.code().unwrap_or(-1), daemon.said())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// `gamegend -d` with its log.
struct Daemon {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    fn start(config: &Path) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gamegend"));
        command.arg("-d").arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be run");
        let log = child.stderr.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // The test may have ended and with it the receiver.
            BufReader::new(log).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Daemon { child, lines, seen: Vec::new() }
    }

    /// Waits for a line of the log that contains `text`.
    fn line(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("no line with {text:?} in:\n{}", self.seen.join("\n"));
    }

    fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                panic!("it did not end:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything in the log so far.
    fn said(&mut self) -> String {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("our child");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text_of(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// The number at the end of the line in which the parent says that a role runs.
fn pid_in(line: &str) -> i32 {
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("the line ends with a process number")
}

fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

fn gone(pid: i32) {
    let end = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < end, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of a model that can be loaded, if there is one on this machine.
fn model() -> Option<PathBuf> {
    let named = std::env::var_os("GAMEGEND_TEST_MODEL").map(PathBuf::from);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
    let found = named.into_iter().chain([shipped]).find(|p| p.join("model_index.json").is_file());
    if found.is_none() {
        println!("skipped: no model in models/gamegen-x-mini or GAMEGEND_TEST_MODEL");
    }
    found
}

#[test]
fn a_port_in_use_is_named() {
    let place = Place::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let (code, said) = place.refused(&[("listen", format!("listen = \"{address}\""))]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains(&format!("http.listen: {address}")) && said.contains("allowed: a free port"), "{said}");
    assert!(!place.path("socket").exists() && !place.path("pid").exists(), "nothing is left behind");
}

#[test]
fn an_address_of_another_machine_is_refused() {
    let place = Place::new("address");
    let tokens = place.path("tokens");
    fs::write(&tokens, "secret\n").expect("ours");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).expect("ours");
    let own = nix::unistd::geteuid();
    if own.is_root() {
        let nobody = nix::unistd::User::from_name("_gamegen").ok().flatten();
        let nobody = nobody.or_else(|| nix::unistd::User::from_name("nobody").ok().flatten()).expect("it exists");
        std::os::unix::fs::chown(&tokens, Some(nobody.uid.as_raw()), None).expect("we are root");
    }
    let listen = format!("listen = \"192.0.2.1:8420\"\ntoken_file = {}", text_of(&tokens));
    let (code, said) = place.refused(&[("listen", listen)]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("http.listen: 192.0.2.1:8420"), "{said}");
}

#[test]
fn a_token_file_that_others_read_is_refused() {
    let place = Place::new("tokens");
    let tokens = place.path("tokens");
    fs::write(&tokens, "secret\n").expect("ours");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).expect("ours");
    let listen = format!("listen = \"127.0.0.1:0\"\ntoken_file = {}", text_of(&tokens));
    let (code, said) = place.refused(&[("listen", listen)]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("http.token_file") && said.contains("mode 644"), "{said}");
}

#[test]
fn a_socket_of_a_living_daemon_is_refused_and_not_touched() {
    let place = Place::new("socket");
    let listener = UnixListener::bind(place.path("socket")).expect("a free path");
    let (code, said) = place.refused(&[]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("control.socket") && said.contains("in use"), "{said}");
    UnixStream::connect(place.path("socket")).expect("it is still there");
    drop(listener);
}

#[test]
fn a_file_in_the_place_of_the_socket_is_refused() {
    let place = Place::new("file");
    fs::write(place.path("socket"), "precious").expect("ours");
    let (code, said) = place.refused(&[]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(place.path("socket")).expect("it is still there"), "precious");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused() {
    let place = Place::new("state");
    fs::write(place.path("plain"), "").expect("ours");
    let below = place.path("plain").join("state");
    let (code, said) = place.refused(&[("directory", format!("directory = {}", text_of(&below)))]);
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("state.directory") && said.contains("allowed: a directory that"), "{said}");
    // One that exists and belongs to somebody else: root's, since a daemon of root gives up root.
    let closed = place.path("closed");
    fs::create_dir(&closed).expect("ours");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("ours");
    let (code, said) = place.refused(&[("directory", format!("directory = {}", text_of(&closed)))]);
    assert_eq!(code, 73, "{said}");
}

#[test]
fn a_missing_model_is_named() {
    let place = Place::new("model");
    let missing = place.path("nothing");
    let (code, said) = place.refused(&[("path", format!("path = {}", text_of(&missing)))]);
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("model.path") && said.contains("nothing/model_index.json"), "{said}");
}

#[test]
fn a_damaged_model_ends_the_daemon_with_its_code() {
    let place = Place::new("damaged");
    // The index is there, so the parent starts the worker, which finds that it is no model.
    let (code, said) = place.refused(&[]);
    assert!([65, 66, 78].contains(&code), "{code}: {said}");
    assert!(said.contains("worker ended") && said.contains("it stays down"), "{said}");
    assert!(!place.path("socket").exists() && !place.path("pid").exists(), "nothing is left behind");
}

#[test]
fn a_missing_configuration_is_named() {
    let place = Place::new("missing");
    let mut daemon = Daemon::start(&place.path("no.toml"));
    assert_eq!(daemon.wait().code(), Some(66));
    assert!(daemon.said().contains("no.toml"));
}

#[test]
fn a_background_daemon_that_cannot_start_says_so_with_its_code() {
    let place = Place::new("background");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gamegend"));
    let mut child = command.arg("-c").arg(place.config(&[])).stderr(Stdio::piped()).spawn().expect("it runs");
    let status = child.wait().expect("our child");
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
    assert!([65, 66, 78].contains(&status.code().unwrap_or(-1)), "{status}: {said}");
    assert!(said.contains("did not start"), "{said}");
}

#[test]
fn it_starts_serves_restarts_its_worker_refuses_a_second_one_and_drains() {
    let Some(model) = model() else { return };
    let place = Place::new("whole");
    // A socket that a dead daemon left is replaced.
    drop(UnixListener::bind(place.path("socket")).expect("a free path"));
    let config = place.config(&[("path", format!("path = {}", text_of(&model)))]);
    let mut daemon = Daemon::start(&config);
    let api = pid_in(&daemon.line("api is process"));
    let worker = pid_in(&daemon.line("worker 1 is process"));
    daemon.line("api is ready: http://127.0.0.1:");
    daemon.line("worker is ready");
    UnixStream::connect(place.path("socket")).expect("it listens");
    let pid = fs::read_to_string(place.path("pid")).expect("it exists");
    assert_eq!(pid.trim(), daemon.child.id().to_string());
    let protected = daemon.said();
    for role in ["api", "worker"] {
        assert!(protected.contains(&format!("protections of {role}: ")), "{protected}");
    }

    daemon.signal(nix::sys::signal::Signal::SIGUSR1);
    let told = daemon.line("up for ");
    assert!(told.contains(&format!("api up as process {api}; worker up as process {worker}; 0 decoders")), "{told}");

    let mut second = Daemon::start(&config);
    assert_eq!(second.wait().code(), Some(69));
    let said = second.said();
    assert!(said.contains(&format!("another instance runs as process {}", pid.trim())), "{said}");
    assert!(place.path("socket").exists() && place.path("pid").exists(), "the first one's files stay");

    let killed = nix::unistd::Pid::from_raw(worker);
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    assert!(daemon.line("worker ended").contains("signal 9"));
    let next = pid_in(&daemon.line("worker 2 is process"));
    daemon.line("worker is ready");

    // A wrong configuration changes nothing, a right one takes effect.
    fs::write(&config, "[log]\nlevel = \"loud\"\n").expect("ours");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    assert!(daemon.line("reload: ").contains("the old configuration stays"));

    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.said());
    for pid in [api, worker, next] {
        gone(pid);
    }
    assert!(!place.path("socket").exists() && !place.path("pid").exists(), "nothing is left behind");
}

#[test]
fn roles_end_with_their_parent() {
    let Some(model) = model() else { return };
    let place = Place::new("orphan");
    let mut daemon = Daemon::start(&place.config(&[("path", format!("path = {}", text_of(&model)))]));
    let api = pid_in(&daemon.line("api is process"));
    let worker = pid_in(&daemon.line("worker 1 is process"));
    daemon.line("worker is ready");
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    daemon.wait();
    gone(api);
    gone(worker);
}
