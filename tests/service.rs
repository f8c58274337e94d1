//! What an administrator does before the daemon runs: the rc script, make install and uninstall, the package.

mod daemon;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use daemon::{TempDir, available};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("it is part of the tree")
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).expect("ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
}

/// rc.subr as far as the script needs it: configuration, checkyesno, and run_rc_command with the steps of rc.subr(8) in
/// their order. Every program that it would run is written down instead.
const RC_SUBR: &str = r#"
load_rc_config() { . "$STUB/rc.conf"; }
checkyesno() {
	eval value=\$$1
	case $value in [Yy][Ee][Ss]) return 0 ;; *) return 1 ;; esac
}
run_rc_command() {
	eval flags=\$${name}_flags
	case " $extra_commands start stop restart status " in *" $1 "*) ;; *) echo "unknown directive $1"; exit 1 ;; esac
	if [ "$1" = start ]; then
		checkyesno ${rcvar} || { echo "not enabled"; exit 1; }
		for f in $required_files; do [ -r "$f" ] || { echo "required file $f"; exit 1; }; done
		for m in $required_modules; do echo "module $m"; done
	fi
	eval precmd=\${$1_precmd} cmd=\${$1_cmd} postcmd=\${$1_postcmd}
	if [ -n "$precmd" ]; then $precmd || exit 1; fi
	if [ -n "$cmd" ]; then $cmd; exit $?; fi
	case $1 in
	start) $command $flags $command_args || exit 1 ;;
	reload) echo "HUP $pidfile" ;;
	*) echo "$1 $pidfile $command" ;;
	esac
	if [ -n "$postcmd" ]; then $postcmd || exit 1; fi
}
"#;

/// The script with its places moved into a folder, where stand-ins tell what they were called with.
struct Script(TempDir);

impl Script {
    fn new(name: &str) -> Script {
        let dir = TempDir::new(name);
        let place = dir.0.display().to_string();
        fs::write(dir.0.join("rc.subr"), RC_SUBR).expect("ours");
        fs::write(dir.0.join("gamegend.toml"), "").expect("ours");
        let echo = "#!/bin/sh\necho \"$(basename $0) $*\"\n[ ! -e \"$STUB/refuse\" ]\n";
        for name in ["gamegend", "gamegendctl", "daemon"] {
            program(&dir.0.join(name), echo);
        }
        let text = read("rc.d/gamegend")
            .replace("/etc/rc.subr", &format!("{place}/rc.subr"))
            .replace("/usr/local/sbin/gamegend", &format!("{place}/gamegend"))
            .replace("/usr/local/bin/gamegendctl", &format!("{place}/gamegendctl"))
            .replace("/usr/sbin/daemon", &format!("{place}/daemon"))
            .replace("/var/run/gamegend", &format!("{place}/run"));
        program(&dir.0.join("script"), &text);
        Script(dir)
    }

    /// Runs one command with these lines of rc.conf: whether it succeeded and what was called.
    fn run(&self, command: &str, conf: &str) -> (bool, Vec<String>) {
        let config = self.0.0.join("gamegend.toml");
        let conf = format!("gamegend_config={}\n{conf}", config.display());
        fs::write(self.0.0.join("rc.conf"), conf).expect("ours");
        let output = Command::new("sh").arg(self.0.0.join("script")).arg(command).env("STUB", &self.0.0).output();
        let Output { status, stdout, stderr } = output.expect("sh is there");
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
        let place = format!("{}/", self.0.0.display());
        let text = String::from_utf8_lossy(&stdout).replace(&place, "");
        (status.success(), text.lines().map(str::to_string).collect())
    }
}

#[test]
fn the_script_starts_checks_reloads_and_upgrades() {
    let script = Script::new("rc");
    let enabled = "gamegend_enable=YES\n";
    assert_eq!(script.run("start", ""), (false, vec!["not enabled".to_string()]));
    let (good, called) = script.run("start", "gamegend_enable=yes\ngamegend_flags=-v\n");
    let expected = [
        "module nullfs",
        "module tmpfs",
        "gamegend -n -c gamegend.toml",
        "gamegend -v -c gamegend.toml",
        "gamegendctl ready --wait 60 -c gamegend.toml",
    ];
    assert_eq!((good, called), (true, expected.map(str::to_string).to_vec()));
    assert!(script.0.0.join("run").is_dir(), "the run directory is made at every start");
    let run = |command: &str| script.run(command, enabled);
    assert_eq!(run("reload").1, ["gamegend -n -c gamegend.toml", "HUP run/gamegend.pid"]);
    assert_eq!(run("configtest").1, ["gamegend -n -c gamegend.toml"]);
    assert_eq!(run("upgrade").1, ["gamegend -n -c gamegend.toml", "gamegendctl upgrade -c gamegend.toml"]);
    assert_eq!(run("status").1, ["status run/gamegend.pid gamegend"]);
    assert!(!run("nonsense").0);
    // A wrong configuration stops everything before it begins.
    fs::write(script.0.0.join("refuse"), "").expect("ours");
    for command in ["start", "reload", "upgrade", "configtest"] {
        let (good, called) = run(command);
        assert!(!good && called.last().is_some_and(|l| l.starts_with("gamegend -n")), "{command}: {called:?}");
    }
    fs::remove_file(script.0.0.join("refuse")).expect("ours");
    fs::remove_file(script.0.0.join("gamegend.toml")).expect("ours");
    assert_eq!(run("start"), (false, vec!["required file gamegend.toml".to_string()]));
}

#[test]
fn the_script_lets_daemon_supervise() {
    let script = Script::new("rc-supervise");
    let conf = "gamegend_enable=YES\ngamegend_supervise=YES\ngamegend_flags=-v\n";
    let (good, called) = script.run("start", conf);
    assert!(good, "{called:?}");
    let supervised = "daemon -f -R 1 -P run/supervisor.pid gamegend -f -c gamegend.toml -v";
    assert!(called.iter().any(|l| l.trim().replace("  ", " ") == supervised), "{called:?}");
    // The signal goes to the daemon itself, not to its supervisor.
    let reload = script.run("reload", conf).1;
    assert_eq!(reload, ["gamegend -n -c gamegend.toml", "gamegendctl reload -c gamegend.toml"]);
}

#[test]
fn the_script_has_the_manners_of_the_base_system() {
    let text = read("rc.d/gamegend");
    assert!(text.lines().count() <= 60, "{} lines", text.lines().count());
    for line in
        ["# PROVIDE: gamegend", "# KEYWORD: nojail shutdown", "gamegend_svcj=\"NO\"", "rcvar=\"gamegend_enable\""]
    {
        assert!(text.lines().any(|l| l == line), "{line}");
    }
    for banned in ["start_cmd", "stop_cmd", "kill -9", "kill -KILL", "bash"] {
        assert!(!text.contains(banned), "{banned}");
    }
    let checked = Command::new("sh").arg("-n").arg(root().join("rc.d/gamegend")).status();
    assert!(checked.expect("sh is there").success());
    // Every variable of rc.conf(5) is told at the beginning.
    for variable in ["enable", "config", "flags", "supervise", "login_class"] {
        assert!(text.contains(&format!("# gamegend_{variable}\t")), "{variable}");
    }
}

/// Everything below a folder, as paths relative to it.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path();
                found.push(path.strip_prefix(folder).expect("it is below").display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// A copy of the tree's Makefile parts with stand-ins for the two programs, so that nothing is built here.
fn staged(name: &str) -> TempDir {
    let dir = TempDir::new(name);
    let link = |name: &str| std::os::unix::fs::symlink(root().join(name), dir.0.join(name)).expect("ours");
    for part in ["Makefile", "Cargo.toml", "rc.d", "etc", "jails", "man", "models"] {
        link(part);
    }
    fs::create_dir(dir.0.join("tools")).expect("ours");
    fs::copy(root().join("tools/package"), dir.0.join("tools/package")).expect("ours");
    fs::create_dir_all(dir.0.join("target/release")).expect("ours");
    for name in ["gamegend", "gamegendctl"] {
        program(&dir.0.join("target/release").join(name), "#!/bin/sh\n");
    }
    dir
}

fn make(tool: &str, at: &Path, words: &[&str]) -> Output {
    let output = Command::new(tool).current_dir(at).arg("CARGO=true").args(words).output().expect("it is there");
    assert!(output.status.success(), "{tool} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn what_is_installed_is_uninstalled_by_both_makes() {
    for tool in ["make", "bmake"] {
        if !available(tool, "--version") {
            continue;
        }
        let source = staged(&format!("install-{tool}"));
        let stage = TempDir::new(&format!("stage-{tool}"));
        let destdir = format!("DESTDIR={}", stage.0.display());
        make(tool, &source.0, &["install", &destdir]);
        let installed = tree(&stage.0);
        for file in [
            "usr/local/sbin/gamegend",
            "usr/local/bin/gamegendctl",
            "usr/local/etc/rc.d/gamegend",
            "usr/local/etc/gamegend/gamegend.toml",
            "usr/local/etc/gamegend/gamegend.toml.sample",
            "usr/local/etc/newsyslog.conf.d/gamegend.conf.sample",
            "usr/local/share/examples/gamegend/devfs.rules.sample",
            "usr/local/share/gamegend/jails/worker.toml",
            "usr/local/share/gamegend/models/gamegen-x-mini/model_index.json",
            "usr/local/share/man/man5/gamegend.toml.5",
            "usr/local/share/man/man7/gamegend-protocol.7",
            "usr/local/share/man/man8/gamegend.8",
            "usr/local/share/man/man8/gamegendctl.8",
        ] {
            assert!(installed.contains(&file.to_string()), "{tool} does not install {file}: {installed:?}");
        }
        // A configuration that was changed is the administrator's.
        let config = stage.0.join("usr/local/etc/gamegend/gamegend.toml");
        fs::write(&config, "[gpu]\ndevice = \"cpu\"\n").expect("ours");
        make(tool, &source.0, &["install", &destdir]);
        assert!(fs::read_to_string(&config).expect("ours").contains("cpu"), "{tool} overwrites a configuration");
        make(tool, &source.0, &["uninstall", &destdir]);
        assert_eq!(tree(&stage.0), ["usr/local/etc/gamegend/gamegend.toml"], "{tool}");
        fs::remove_file(&config).expect("ours");
        make(tool, &source.0, &["install", &destdir]);
        make(tool, &source.0, &["uninstall", &destdir]);
        assert_eq!(tree(&stage.0), Vec::<String>::new(), "{tool}");
        let other = format!("DESTDIR={}/other", stage.0.display());
        make(tool, &source.0, &["install", &other, "PREFIX=/opt/gamegend"]);
        assert!(stage.0.join("other/opt/gamegend/sbin/gamegend").exists() && !stage.0.join("other/usr").exists());
        let script = fs::read_to_string(stage.0.join("other/opt/gamegend/etc/rc.d/gamegend")).expect("installed");
        assert!(script.contains("/opt/gamegend/sbin/gamegend") && !script.contains("/usr/local"), "{script}");
    }
}

/// Every target of the Makefile, as .PHONY names them.
fn targets() -> Vec<String> {
    let text = read("Makefile");
    let line = text.lines().find_map(|l| l.strip_prefix(".PHONY: ")).expect("the Makefile lists its targets");
    line.split_whitespace().map(str::to_string).collect()
}

/// Nothing is built or tested here: stand-ins write down what each target runs.
#[test]
fn both_makes_run_every_target() {
    let expected: &[(&str, &[&str])] = &[
        ("all", &["cargo build --release --locked"]),
        ("build", &["cargo build --release --locked"]),
        ("run", &["setup run", "cargo build --release --locked", "gamegend -d"]),
        ("test", &["setup test", "test "]),
        ("test-jail", &["cargo test --locked --test jail --test fences -- --nocapture"]),
        ("bench", &["setup run", "bench --model models/gamegen-x-mini --device auto"]),
        (
            "bench-engine",
            &["setup run", "cargo bench --locked --bench engine -- --model models/gamegen-x-mini --device auto"],
        ),
        ("install", &["cargo build --release --locked"]),
        ("uninstall", &[]),
        ("package", &["cargo build --release --locked", "package "]),
        ("clean", &["cargo clean"]),
    ];
    assert_eq!(targets(), expected.iter().map(|(target, _)| *target).collect::<Vec<_>>());
    for tool in ["make", "bmake"] {
        if !available(tool, "--version") {
            continue;
        }
        let source = staged(&format!("targets-{tool}"));
        let said = source.0.join("said");
        let echo = format!("#!/bin/sh\necho \"$(basename $0) $*\" >>{}\n", said.display());
        for program_name in
            ["cargo", "tools/setup", "tools/test", "tools/bench", "tools/package", "target/release/gamegend"]
        {
            program(&source.0.join(program_name), &echo);
        }
        let cargo = format!("CARGO={}", source.0.join("cargo").display());
        let destdir = format!("DESTDIR={}", source.0.join("stage").display());
        for (target, calls) in expected {
            let _ = fs::remove_file(&said);
            make(tool, &source.0, &[target, &cargo, &destdir]);
            let called = fs::read_to_string(&said).unwrap_or_default();
            let called: Vec<&str> = called.lines().map(str::trim_end).collect();
            let calls: Vec<&str> = calls.iter().map(|c| c.trim_end()).collect();
            assert_eq!(called, calls, "{tool} {target}");
        }
    }
}

/// The text of a script of the package's manifest.
fn script<'a>(manifest: &'a str, name: &str) -> &'a str {
    let begin = format!("{name}: <<S\n");
    let text = manifest.split(&begin).nth(1).unwrap_or_else(|| panic!("{name} is in the manifest"));
    text.split("\nS\n").next().expect("it has an end")
}

#[test]
fn the_package_lists_every_file_and_makes_its_user() {
    for tool in ["make", "bmake"].into_iter().filter(|tool| available(tool, "--version")) {
        let source = staged(&format!("package-{tool}"));
        make(tool, &source.0, &["package"]);
        let out = source.0.join("target/package");
        let list = fs::read_to_string(out.join("plist")).expect("it was written");
        let files: Vec<String> =
            list.lines().filter(|l| !l.starts_with('@')).map(|l| format!("usr/local/{l}")).collect();
        let mut listed = files.clone();
        listed.sort();
        assert_eq!(listed, tree(&out.join("stage")), "{tool}");
        // pkg-create(8) without a ports tree knows its own keywords only, and wants listed folders in the stage.
        let keywords: Vec<&str> = list.lines().filter(|l| l.starts_with('@')).collect();
        assert_eq!(keywords, ["@dir(_gamegen,_gamegen,750) /var/db/gamegend"], "{tool}");
        assert!(out.join("stage/var/db/gamegend").is_dir(), "{tool}");
        let manifest = fs::read_to_string(out.join("+MANIFEST")).expect("it was written");
        let version = format!("version: \"{}\"", env!("CARGO_PKG_VERSION"));
        for part in ["name: gamegend", version.as_str(), "users: [_gamegen]", "prefix: /usr/local"] {
            assert!(manifest.contains(part), "{part} is not in {manifest}");
        }
        scripts_of_the_package_do_what_they_must(&source.0, &out.join("stage"), &manifest);
    }
    let port = read("ports/multimedia/gamegend/Makefile");
    assert!(port.contains(&format!("DISTVERSION=\t{}", env!("CARGO_PKG_VERSION"))), "the port has the version");
    assert!(port.contains("USES=\t\tcargo") && port.contains("USERS=\t\t_gamegen"), "{port}");
}

/// As pkg(8) runs them, with a stand-in for pw(8) that knows nobody.
fn scripts_of_the_package_do_what_they_must(source: &Path, root: &Path, manifest: &str) {
    program(&source.join("pw"), "#!/bin/sh\necho \"pw $*\" >&3\ncase $* in *show*) exit 67 ;; esac\n");
    let run = |name: &str| {
        let text = format!("exec 3>&1\nPATH={}:$PATH\n{}", source.display(), script(manifest, name));
        let output = Command::new("sh").arg("-c").arg(text).env("PKG_ROOTDIR", root).output().expect("sh is there");
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let users = run("pre-install");
    assert!(users.contains("groupadd _gamegen\n") && users.contains("useradd _gamegen -g _gamegen"), "{users}");
    let config = root.join("usr/local/etc/gamegend/gamegend.toml");
    assert!(!config.exists(), "the configuration is no file of the package");
    run("post-install");
    assert_eq!(
        fs::read(&config).expect("it was made"),
        fs::read(root.join("usr/local/etc/gamegend/gamegend.toml.sample")).expect("it is")
    );
    run("pre-deinstall");
    assert!(!config.exists(), "one that nobody changed goes");
    fs::write(&config, "[log]\n").expect("ours");
    run("post-install");
    run("pre-deinstall");
    assert_eq!(fs::read_to_string(&config).expect("it stays"), "[log]\n");
    run("post-deinstall");
}

#[test]
fn every_file_and_signal_of_the_service_is_in_the_manual() {
    let page = read("man/gamegend.8");
    for words in [
        "SIGHUP",
        "SIGTERM",
        "SIGUSR1",
        "SIGINFO",
        "SIGUSR2",
        "/usr/local/etc/gamegend/gamegend.toml",
        "/usr/local/etc/rc.d/gamegend",
        "/usr/local/etc/newsyslog.conf.d/gamegend.conf.sample",
        "/usr/local/share/examples/gamegend",
        "/var/db/gamegend",
        "/var/run/gamegend/gamegend.pid",
        "/var/run/gamegend/gamegend.sock",
        "gamegend_enable",
        "gamegend_config",
        "gamegend_flags",
        "gamegend_supervise",
        "gamegend_login_class",
    ] {
        assert!(page.contains(words), "{words} is not in gamegend(8)");
    }
    let status = page.split(".Sh EXIT STATUS").nth(1).and_then(|t| t.split(".Sh ").next()).expect("the section");
    for code in 64..=78 {
        if let Some(exit) = gamegend::exit::Exit::from_code(code) {
            assert!(status.contains(&format!(".It {code}\n")), "{code} ({exit:?}) is not in gamegend(8)");
        }
    }
}

/// The commands that the manual shows do what it says, as far as they need no daemon.
#[test]
fn examples_of_the_manual_work_as_typed() {
    let ctl = |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_gamegendctl")).args(words).output().expect("it runs");
    let dir = TempDir::new("examples");
    let config: PathBuf = dir.0.join("gamegend.toml");
    fs::copy(root().join("etc/gamegend.toml.sample"), &config).expect("ours");
    let config = config.display().to_string();
    let said = ctl(&["configtest", "-c", &config]);
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).ends_with(": ok\n"), "{said:?}");
    // Example 6 of gamegend(8), on the configuration that make install puts there.
    let edit = "s/^#devfs_ruleset = 0/devfs_ruleset = 8420/";
    assert!(read("man/gamegend.8").contains(edit));
    let edited = Command::new("sed").arg(edit).arg(&config).output().expect("sed is there").stdout;
    assert!(String::from_utf8_lossy(&edited).contains("\ndevfs_ruleset = 8420\n"));
    fs::write(&config, edited).expect("ours");
    let said = ctl(&["configtest", "-c", &config]);
    assert!(said.status.success(), "{said:?}");
    // The examples of gamegend.toml(5), with a file of tokens that is here.
    let (page, tokens) = (read("man/gamegend.toml.5"), dir.0.join("tokens"));
    fs::write(&tokens, "secret\n").expect("ours");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).expect("ours");
    let examples = page.split(".Sh EXAMPLES").nth(1).expect("there are some").split(".Bd -literal").skip(1);
    let examples: Vec<&str> = examples.filter_map(|e| e.split_once('\n')?.1.split(".Ed").next()).collect();
    assert_eq!(examples.len(), 3);
    for text in examples {
        fs::write(&config, text.replace("/usr/local/etc/gamegend/tokens", &tokens.display().to_string()))
            .expect("ours");
        let said = ctl(&["configtest", "-c", &config]);
        assert!(said.status.success(), "{text}: {said:?}");
    }
    let models = dir.0.join("models");
    fs::create_dir(&models).expect("ours");
    let shipped = root().join("models/gamegen-x-mini");
    for version in ["one", "two"] {
        let copied = Command::new("cp").arg("-r").arg(&shipped).arg(models.join(version)).status();
        assert!(copied.expect("cp is there").success());
    }
    let models = models.display().to_string();
    let model = |words: &[&str]| ctl(&[&["model"], words, &["--dir", &models]].concat());
    for (words, said) in [
        (&["activate", "one"][..], "one is in use"),
        (&["activate", "two"], "two is in use"),
        (&["list"], "* two"),
        (&["rollback"], "one is in use again"),
    ] {
        let output = model(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(said), "{words:?}: {output:?}");
    }
    assert_eq!(model(&["activate", "three"]).status.code(), Some(66));
    let nobody = ctl(&["-s", "/nonexistent/s", "ready", "--wait", "0"]);
    assert_eq!(nobody.status.code(), Some(75), "{nobody:?}");
}
