//! What a role cannot do, tried from inside: this program enters the same sandbox as a running worker, api or decoder
//! and then tries to break out. Each attempt is first made without the fences, as root, where it must succeed: an
//! attempt that fails for another reason proves nothing.
//!
//! Not libtest's harness: namespaces are left by processes with one thread.

#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use gamegend::config::Config;
use gamegend::sys::sandbox::{self, Role};

/// User of the roles in these tests; it exists everywhere.
const USER: &str = "nobody";
/// Stands in for the node of a graphics device: one that a worker gets only if it is leased to it.
const LEASED: &str = "/dev/full";
/// The worker that has a lease, as a mode of the child.
const WITH_DEVICE: &str = "worker with a device";

/// What the attempts are about, handed to the child as words.
struct Place {
    root: PathBuf,
    /// A process outside.
    victim: i32,
    /// Whether the worker has a device.
    leased: bool,
}

impl Place {
    fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    fn cache(&self) -> PathBuf {
        self.state().join("cache")
    }

    fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.state.directory = self.state();
        config.model.path = self.model();
        config.gpu.device = if self.leased { "vulkan:0" } else { "cpu" }.to_string();
        config.gpu.nodes = vec![LEASED.into()];
        config.worker.user = USER.to_string();
        config
    }
}

/// Makes an attempt; `Ok` if it succeeded.
type Attempt = fn(&Place) -> Result<(), String>;

fn said<T>(result: Result<T, impl std::fmt::Display>) -> Result<(), String> {
    result.map(drop).map_err(|e| e.to_string())
}

fn is(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}

/// A line of this process's status.
fn own(key: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    line.trim_start_matches(':').trim().to_string()
}

/// A file that can be made and written; it is removed again.
fn writes(path: &Path) -> Result<(), String> {
    let written = fs::File::create(path).and_then(|mut f| f.write_all(b"x"));
    let _ = fs::remove_file(path);
    said(written)
}

#[cfg(target_os = "linux")]
mod attempts {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    use nix::unistd::Pid;

    fn opens(family: AddressFamily, kind: SockType) -> Result<(), String> {
        said(socket(family, kind, SockFlag::empty(), None))
    }

    fn device(path: &str) -> Result<(), String> {
        said(fs::File::open(path))
    }

    const NOBODY: &[Role] = &[];
    const API: &[Role] = &[Role::Api];

    /// Name, the attempt, and who may do it.
    pub const ALL: &[(&str, Attempt, &[Role])] = &[
        ("read a file of the host", |_| said(fs::read("/etc/passwd")), NOBODY),
        ("read a file beside the state", |p| said(fs::read(p.root.join("secret"))), NOBODY),
        ("read the state beside the cache", |p| said(fs::read(p.state().join("generation"))), API),
        ("list the host's root", |_| is(Path::new("/etc/passwd").exists(), "it is not there"), NOBODY),
        ("read the model", |p| said(fs::read(p.model().join("weights"))), &[Role::Worker]),
        ("write the cache", |p| writes(&p.cache().join("probe")), &[Role::Worker, Role::Api]),
        ("write the model", |p| writes(&p.model().join("weights")), NOBODY),
        ("write the root", |_| writes(Path::new("/probe")), NOBODY),
        ("write a system folder", |_| writes(Path::new("/usr/.gamegend-probe")), NOBODY),
        ("write shared memory of the host", |_| said(fs::read("/dev/shm/gamegend-fence")), NOBODY),
        ("reach the host through another process", |p| said(fs::read_dir(format!("/proc/{}/root/", p.victim))), NOBODY),
        (
            "change a kernel setting",
            |_| said(fs::OpenOptions::new().write(true).open("/proc/sys/kernel/hostname")),
            NOBODY,
        ),
        ("read the kernel's log", |_| device("/dev/kmsg"), NOBODY),
        ("open the terminals' device", |_| device("/dev/ptmx"), NOBODY),
        ("look at the terminal's device", |_| said(fs::metadata("/dev/tty0")), NOBODY),
        (
            "make a device node",
            |p| {
                let node = p.cache().join("node");
                let made = mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 11));
                let _ = fs::remove_file(node);
                said(made)
            },
            NOBODY,
        ),
        ("open an IPv4 socket", |_| opens(AddressFamily::Inet, SockType::Stream), NOBODY),
        ("open an IPv6 socket", |_| opens(AddressFamily::Inet6, SockType::Datagram), NOBODY),
        ("open a Unix socket", |_| opens(AddressFamily::Unix, SockType::Stream), NOBODY),
        ("open a netlink socket", |_| opens(AddressFamily::Netlink, SockType::Raw), NOBODY),
        ("open a packet socket", |_| opens(AddressFamily::Packet, SockType::Raw), NOBODY),
        (
            "open a pair of sockets",
            |_| said(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())),
            API,
        ),
        ("listen on the network", |_| said(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))), NOBODY),
        ("see other processes", |p| said(fs::read(format!("/proc/{}/comm", p.victim))), NOBODY),
        ("signal another process", |p| said(nix::sys::signal::kill(Pid::from_raw(p.victim), None)), NOBODY),
        (
            "trace another process",
            |p| {
                let victim = Pid::from_raw(p.victim);
                nix::sys::ptrace::seize(victim, nix::sys::ptrace::Options::empty()).map_err(|e| e.to_string())?;
                Ok(())
            },
            NOBODY,
        ),
        ("read another process's memory", |p| said(fs::File::open(format!("/proc/{}/mem", p.victim))), NOBODY),
        ("start a program", |_| said(Command::new("/usr/bin/true").status()), NOBODY),
        (
            "mount",
            |p| {
                let none: Option<&str> = None;
                mount(Some("tmpfs"), &p.cache(), Some("tmpfs"), MsFlags::empty(), none).map_err(|e| e.to_string())?;
                said(nix::mount::umount(&p.cache()))
            },
            NOBODY,
        ),
        ("change the root", |_| said(nix::unistd::chroot("/")), NOBODY),
        ("make a mount namespace", |_| said(unshare(CloneFlags::CLONE_NEWNS)), NOBODY),
        (
            "join the namespace of another process",
            |p| {
                let ns = fs::File::open(format!("/proc/{}/ns/net", p.victim)).map_err(|e| e.to_string())?;
                said(nix::sched::setns(ns, CloneFlags::CLONE_NEWNET))
            },
            NOBODY,
        ),
        (
            "rename the host",
            |_| {
                let name = nix::unistd::gethostname().map_err(|e| e.to_string())?;
                said(nix::unistd::sethostname(name))
            },
            NOBODY,
        ),
        ("become root", |_| said(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))), NOBODY),
        ("change groups", |_| said(nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(0)])), NOBODY),
        ("gain privileges by a set-user-id program", |_| is(own("NoNewPrivs") == "0", "no new privileges"), NOBODY),
        ("use a capability", |_| is(own("CapEff") != "0000000000000000", "it has none"), NOBODY),
        ("make a system call that is not in the list", |_| is(own("Seccomp") != "2", "a filter is in force"), NOBODY),
        // The last one, since whoever succeeds is root in the new one only.
        ("make a user namespace", |_| said(unshare(CloneFlags::CLONE_NEWUSER)), NOBODY),
    ];
}

#[cfg(not(target_os = "linux"))]
mod attempts {
    use super::*;
    pub const ALL: &[(&str, Attempt, &[Role])] = &[];
}

/// What a role must still be able to do.
fn works(role: Role, place: &Place) -> Result<(), String> {
    match role {
        Role::Worker => {
            said(fs::read(place.model().join("model_index.json")))?;
            writes(&place.cache().join("pipelines"))?;
            said(fs::read("/usr/lib/os-release").or_else(|_| fs::read("/proc/cpuinfo")))?;
            let device = fs::File::open(LEASED);
            is(device.is_ok() == place.leased, "the leased device, and no other, opens")?;
        }
        Role::Api => writes(&place.state().join("clip"))?,
        // It reads what it is handed, and shares what it makes of it.
        Role::Decoder => {}
    }
    said(fs::OpenOptions::new().write(true).open("/dev/null"))?;
    said(gamegend::sys::shm::SharedMemory::create("fence", 4096))?;
    said(std::thread::spawn(|| 7).join().map_err(|_| "the thread panicked"))
}

/// The child: enters the sandbox if it is told to, makes every attempt, and prints how each went.
fn child(words: &[String]) -> ExitCode {
    let [mode, root, victim] = words else { return ExitCode::FAILURE };
    let leased = mode == WITH_DEVICE;
    let place = Place { root: root.into(), victim: victim.parse().unwrap_or(0), leased };
    let role = match mode.as_str() {
        "worker" | WITH_DEVICE => Some(Role::Worker),
        "api" => Some(Role::Api),
        "decoder" => Some(Role::Decoder),
        _ => None,
    };
    if let Some(role) = role {
        let entered = sandbox::enter(role, &mut place.config()).and_then(|mut protections| {
            protections.narrow(&[], &[])?;
            println!("in force: {protections}");
            Ok(())
        });
        if let Err(e) = entered {
            println!("cannot enter: {e}: {:?}", std::error::Error::source(&e));
            return ExitCode::FAILURE;
        }
        if let Err(e) = works(role, &place) {
            println!("cannot work: {e}");
            return ExitCode::FAILURE;
        }
    }
    for (name, attempt, _) in attempts::ALL {
        match attempt(&place) {
            Ok(()) => println!("can: {name}"),
            Err(e) => println!("cannot: {name}: {e}"),
        }
    }
    ExitCode::SUCCESS
}

/// Ends with its value.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prepare(root: &Path, owner: u32) {
    let _ = fs::remove_dir_all(root);
    for folder in ["state/cache", "model"] {
        fs::create_dir_all(root.join(folder)).expect("a temporary directory");
    }
    for file in ["secret", "state/generation", "model/model_index.json", "model/weights"] {
        fs::write(root.join(file), "{}").expect("ours");
    }
    for path in ["state", "state/cache", "state/generation"] {
        std::os::unix::fs::chown(root.join(path), Some(owner), None).expect("we are root");
    }
    fs::write("/dev/shm/gamegend-fence", "x").expect("shared memory");
}

/// Runs the child. `as_user`: as an ordinary user rather than root. `apart`: as the parent starts a role.
fn run(mode: &str, place: &Place, as_user: Option<u32>, apart: bool) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("--child").arg(mode).arg(&place.root).arg(place.victim.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    if let Some(user) = as_user {
        command.uid(user).gid(user);
    }
    let spawned = if apart { sandbox::apart(|| command.spawn()) } else { command.spawn() };
    let output = spawned.and_then(Child::wait_with_output).expect("a child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{mode}: {}\n{text}", output.status);
    text
}

/// Attempts that an ordinary user without namespaces of processes can make, and that show nothing of others.
const WITHOUT_PID_NAMESPACE: [&str; 1] = ["see other processes"];

fn judge(what: &str, text: &str, allowed: impl Fn(&str) -> bool) -> usize {
    let mut broken = Vec::new();
    for (name, _, _) in attempts::ALL {
        let can = text.lines().any(|l| l == format!("can: {name}"));
        let cannot = text.lines().any(|l| l.starts_with(&format!("cannot: {name}: ")));
        assert!(can != cannot, "{what}: {name}: no result in\n{text}");
        if can && !allowed(name) {
            broken.push(*name);
        }
    }
    println!("{what}: {} attempts, {} got through", attempts::ALL.len(), broken.len());
    println!("    {}", text.lines().find(|l| l.starts_with("in force")).unwrap_or_default());
    broken.iter().for_each(|name| println!("    GOT THROUGH: {name}"));
    broken.len()
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|w| w == "--child") {
        return child(&words[1..]);
    }
    if !nix::unistd::geteuid().is_root() || !cfg!(target_os = "linux") {
        let wanted = cfg!(target_os = "linux") && std::env::var_os("GAMEGEND_TEST_REQUIRE").is_some();
        assert!(!wanted, "only root on Linux can try the fences");
        println!("skipped: only root on Linux can try the fences from inside");
        return ExitCode::SUCCESS;
    }
    let nobody = nix::unistd::User::from_name(USER).ok().flatten().expect("it exists").uid.as_raw();
    let root = std::env::temp_dir().join(format!("gamegend-fences-{}", std::process::id()));
    prepare(&root, nobody);
    let victim = Victim(Command::new("sleep").arg("600").spawn().expect("a process"));
    let place = Place { root: root.clone(), victim: victim.0.id() as i32, leased: false };

    let open = run("open", &place, None, false);
    let vain: Vec<&str> = open.lines().filter(|l| l.starts_with("cannot: ")).collect();
    println!("without fences: {} of {} attempts succeed", attempts::ALL.len() - vain.len(), attempts::ALL.len());
    vain.iter().for_each(|l| println!("    proves nothing here: {l}"));

    let mut broken = 0;
    let modes = [("worker", Role::Worker), (WITH_DEVICE, Role::Worker), ("api", Role::Api), ("decoder", Role::Decoder)];
    for (mode, role) in modes {
        let may = |name: &str| attempts::ALL.iter().any(|(n, _, who)| *n == name && who.contains(&role));
        broken += judge(&format!("{mode} of root"), &run(mode, &place, None, true), may);
        let of_user = |name: &str| may(name) || WITHOUT_PID_NAMESPACE.contains(&name);
        broken += judge(&format!("{mode} of a user"), &run(mode, &place, Some(nobody), false), of_user);
    }
    let _ = fs::remove_dir_all(&root);
    let _ = fs::remove_file("/dev/shm/gamegend-fence");
    if broken > 0 || !vain.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
