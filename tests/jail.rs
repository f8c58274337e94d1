//! The jail of a worker and the capability mode of the api on FreeBSD, as root: `make test-jail`. What the jail is made
//! of is tested as a value everywhere (`sys::sandbox::plan`); here the kernel is asked.
//!
//! Not libtest's harness: a process that attaches to a jail does not come back.

use std::process::ExitCode;

#[cfg(not(target_os = "freebsd"))]
fn main() -> ExitCode {
    let wanted = std::env::var("GAMEGEND_TEST_REQUIRE").is_ok_and(|w| w.split(',').any(|w| w == "jail"));
    assert!(!wanted, "jails are tested as root on FreeBSD only");
    println!("skipped: jails are tested as root on FreeBSD only");
    ExitCode::SUCCESS
}

#[cfg(target_os = "freebsd")]
fn main() -> ExitCode {
    suite::main()
}

#[cfg(target_os = "freebsd")]
mod suite {
    use std::fs;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::fs::chown;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, ExitCode, Stdio};

    use gamegend::config::Config;
    use gamegend::sys::dir::Dir;
    use gamegend::sys::sandbox::plan;
    use gamegend::sys::sandbox::{self, JAIL_VARIABLE, Jail, Role};
    use gamegend::sys::user;

    const USER: &str = "nobody";

    struct Place(PathBuf);

    impl Place {
        fn new() -> Place {
            let root = PathBuf::from(format!("/var/run/gamegend-jail-test-{}", std::process::id()));
            for folder in ["state/cache", "model", "run"] {
                fs::create_dir_all(root.join(folder)).expect("we are root");
            }
            for file in ["secret", "model/model_index.json", "state/generation"] {
                fs::write(root.join(file), "{}").expect("ours");
            }
            let who = user::find(USER).expect("it exists");
            for path in ["state", "state/cache", "state/generation"] {
                chown(root.join(path), Some(who.uid.as_raw()), None).expect("we are root");
            }
            Place(root)
        }

        fn config(&self) -> Config {
            let mut config = Config::default();
            config.state.directory = self.0.join("state");
            config.state.pid_file = self.0.join("run/jailtest.pid");
            config.model.path = self.0.join("model");
            config.gpu.device = "cpu".to_string();
            config.worker.user = USER.to_string();
            config
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn output(program: &str, words: &[&str]) -> String {
        let output = Command::new(program).args(words).output().expect("it is part of the base system");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn jails() -> String {
        output("/usr/sbin/jls", &["-n", "name"])
    }

    fn mounts() -> usize {
        output("/sbin/mount", &["-p"]).lines().count()
    }

    fn make(config: &Config) -> Jail {
        Jail::create(config, &user::find(USER).expect("it exists")).unwrap_or_else(|e| {
            panic!("{e}: {:?}", std::error::Error::source(&e));
        })
    }

    /// It is there while it is wanted, and then nothing of it is.
    fn a_jail_comes_and_goes(config: &Config) {
        let (before, name) = (mounts(), plan::name(config));
        let jail = make(config);
        assert_eq!(jail.name(), name);
        assert!(jails().contains(&format!("name={name}")), "{}", jails());
        assert!(mounts() > before + 3);
        let parameters = ["-j", &name, "-n", "children.max", "enforce_statfs", "securelevel", "ip4", "ip6"];
        let shown = output("/usr/sbin/jls", &parameters);
        for part in ["children.max=0", "enforce_statfs=2", "securelevel=3", "ip4=disable", "ip6=disable"] {
            assert!(shown.contains(part), "{shown}");
        }
        let dev: Vec<String> = fs::read_dir(plan::root(config).join("dev"))
            .expect("devfs is mounted")
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        assert!(
            dev.iter().any(|n| n == "null") && plan::forbidden_nodes(&dev, &plan::Leased::Nothing).is_empty(),
            "{dev:?}"
        );
        drop(jail);
        assert!(!jails().contains(&name), "{}", jails());
        assert_eq!(mounts(), before);
        assert!(!plan::root(config).exists());
    }

    /// What a killed daemon left does not keep the next one from starting.
    fn leftovers_are_taken_away(config: &Config) {
        let before = mounts();
        std::mem::forget(make(config));
        let second = make(config);
        drop(second);
        assert_eq!(mounts(), before);
        assert!(!jails().contains(&plan::name(config)));
    }

    /// A member of the jail ends with it.
    fn a_worker_ends_with_its_jail(config: &Config) {
        let jail = make(config);
        let mut member = child("wait", config, Some(&jail));
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(member.try_wait().expect("our child").is_none(), "it waits inside");
        drop(jail);
        assert!(!member.wait().expect("our child").success());
    }

    fn child(mode: &str, config: &Config, jail: Option<&Jail>) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--child").arg(mode).arg(config.state.directory.parent().expect("it has one"));
        command.arg(std::process::id().to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(jail) = jail {
            command.env(JAIL_VARIABLE, jail.name());
        }
        command.spawn().expect("a child")
    }

    fn attempts(mode: &str, config: &Config, jail: Option<&Jail>) {
        let output = child(mode, config, jail).wait_with_output().expect("our child");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{text}");
        assert!(output.status.success(), "{mode}: {}", output.status);
        assert!(!text.lines().any(|l| l.starts_with("can: ")), "{mode}: something got through");
        assert!(text.contains("cannot: "), "{mode}: nothing was tried");
    }

    fn report<T>(name: &str, result: std::io::Result<T>) {
        match result {
            Ok(_) => println!("can: {name}"),
            Err(e) => println!("cannot: {name}: {e}"),
        }
    }

    fn inside(mode: &str, root: &Path, outer: i32) -> ExitCode {
        let mut config = Place(root.to_path_buf()).config();
        let state = Dir::open(&config.state.directory).expect("it exists");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let role = match mode {
            "api" => Role::Api,
            "decoder" => Role::Decoder,
            _ => Role::Worker,
        };
        let mut protections = sandbox::enter(role, &mut config).expect("the sandbox");
        let links: &[std::os::fd::BorrowedFd<'_>] = &[];
        if role == Role::Api {
            state.limit().expect("rights of a folder");
        }
        protections.narrow(&[listener.as_fd()], links).expect("the rest of the sandbox");
        println!("in force: {protections}");
        if mode == "wait" {
            std::thread::sleep(std::time::Duration::from_secs(60));
            return ExitCode::SUCCESS;
        }
        if role == Role::Decoder {
            gamegend::sys::shm::SharedMemory::create("test", 4096).expect("memory");
        } else if role == Role::Api {
            let folder = state.folder("generations").expect("the state can be used");
            std::io::Write::write_all(&mut folder.create("x").expect("a file"), b"x").expect("room");
            assert_eq!(folder.read("x", 9).expect("ours"), b"x");
            assert_eq!(folder.names().expect("ours"), ["x"]);
            folder.remove("x").expect("ours");
            folder.sync().expect("ours");
            gamegend::sys::shm::SharedMemory::create("test", 4096).expect("memory");
        } else {
            fs::read(config.model.path.join("model_index.json")).expect("the model shows");
            fs::write(config.state.directory.join("cache/x"), "x").expect("the cache can be written");
            report("write the model", fs::write(config.model.path.join("x"), "x"));
            report("write the root", fs::write("/x", "x"));
        }
        report("read a file of the host", fs::read("/etc/passwd"));
        report("read a file beside the state", fs::read(root.join("secret")));
        report("open memory", fs::File::open("/dev/mem"));
        report(
            "open a disk",
            fs::read_dir("/dev").and_then(|all| {
                let disk = all.flatten().find(|e| e.file_name().to_string_lossy().starts_with(['a', 'v', 'd']));
                disk.map(|d| fs::File::open(d.path())).unwrap_or(Err(std::io::ErrorKind::NotFound.into()))
            }),
        );
        report("listen on the network", TcpListener::bind("127.0.0.1:0"));
        report("connect", std::net::TcpStream::connect("127.0.0.1:22"));
        report(
            "signal another process",
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(outer), None).map_err(Into::into),
        );
        report(
            "trace another process",
            nix::sys::ptrace::attach(nix::unistd::Pid::from_raw(outer)).map_err(Into::into),
        );
        report("start a program", Command::new("/bin/echo").status());
        report("mount", nix::mount::unmount("/", nix::mount::MntFlags::empty()).map_err(Into::into));
        report("become root", nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).map_err(Into::into));
        // The place is the outer process's to remove.
        std::process::exit(0)
    }

    pub fn main() -> ExitCode {
        let words: Vec<String> = std::env::args().skip(1).collect();
        if let [first, mode, root, outer] = &words[..]
            && first == "--child"
        {
            return inside(mode, Path::new(root), outer.parse().unwrap_or(1));
        }
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("GAMEGEND_TEST_REQUIRE").is_none(), "only root can make jails");
            println!("skipped: only root can make jails");
            return ExitCode::SUCCESS;
        }
        let place = Place::new();
        let config = place.config();
        for (name, test) in [
            ("a jail comes and goes", a_jail_comes_and_goes as fn(&Config)),
            ("leftovers are taken away", leftovers_are_taken_away),
            ("a worker ends with its jail", a_worker_ends_with_its_jail),
        ] {
            test(&config);
            println!("ok: {name}");
        }
        let jail = make(&config);
        attempts("worker", &config, Some(&jail));
        println!("ok: nothing gets out of the worker's jail");
        drop(jail);
        attempts("decoder", &config, None);
        println!("ok: nothing gets out of the decoder's capability mode");
        attempts("api", &config, None);
        println!("ok: nothing gets out of the api's capability mode");
        ExitCode::SUCCESS
    }
}
