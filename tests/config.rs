//! The configuration as an operator meets it: the sample, the manual, and `gamegend -n`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gamegend::config::{self, Config, KEYS};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("it is part of the tree")
}

/// `gamegend -n` on a file with this text.
fn check(name: &str, text: &str) -> (Output, PathBuf) {
    let path = std::env::temp_dir().join(format!("gamegend-check-{}-{name}.toml", std::process::id()));
    fs::write(&path, text).expect("a temporary file");
    let output = Command::new(env!("CARGO_BIN_EXE_gamegend")).arg("-n").arg("-c").arg(&path).output();
    fs::remove_file(&path).expect("ours");
    (output.expect("the program can be run"), path)
}

/// The message and the exit code for a file that is wrong.
fn refusal(name: &str, text: &str) -> (String, i32) {
    let (output, _) = check(name, text);
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap_or(-1))
}

#[test]
fn the_sample_shows_every_key_with_its_default() {
    let sample = read("etc/gamegend.toml.sample");
    // Keys are commented as `#key = value`, prose as `# text`.
    let uncommented: Vec<&str> = sample
        .lines()
        .map(|l| l.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()).unwrap_or(l))
        .collect();
    let mut config: Config = toml::from_str(&uncommented.join("\n")).expect("the sample is valid");
    assert!(config.http.token_file.take().is_some(), "token_file has no default, but an example");
    assert_eq!(config, Config::default());
    let table: toml::Table = uncommented.join("\n").parse().expect("the sample is valid");
    for (key, _) in KEYS {
        let (section, name) = key.split_once('.').expect("a key is in a section");
        assert!(table.get(section).and_then(|s| s.get(name)).is_some(), "{key} is not in the sample");
    }
}

#[test]
fn the_manual_describes_every_key_and_option() {
    let page = read("man/gamegend.toml.5");
    for (key, _) in KEYS {
        assert!(page.lines().any(|l| l == format!(".It Va {key}")), "{key} is not in gamegend.toml(5)");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_gamegend")).arg("-h").output().expect("the program can be run");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let page = read("man/gamegend.8");
    for option in ["c", "d", "f", "n", "v"] {
        assert!(help.contains(&format!("-{option}")), "-{option} is not in the help: {help}");
        assert!(page.contains(&format!(".It Fl {option}")), "-{option} is not in gamegend(8)");
    }
    assert!(!help.contains("--role"), "{help}");
}

#[test]
fn the_manual_pages_are_well_formed() {
    for page in ["man/gamegend.8", "man/gamegend.toml.5"] {
        let linted = match Command::new("mandoc").args(["-T", "lint", "-W", "style"]).arg(root().join(page)).output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(e) => {
                println!("skipped: mandoc: {e}");
                return;
            }
        };
        // Manuals of FreeBSD are not installed on every machine that this is built on.
        let findings: Vec<&str> = linted.lines().filter(|l| !l.contains("referenced manual not found")).collect();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}

#[test]
fn a_right_file_is_ok() {
    let (output, path) = check("right", "[http]\nlisten = \"[::1]:9000\"\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}: ok\n", path.display()));
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let (text, code) = refusal("unknown", "[gpu]\ndevice = \"cpu\"\ntread = 3\n");
    assert_eq!(code, 78);
    assert!(text.contains(":3: ") && text.contains("tread") && text.contains("threads"), "{text}");
}

#[test]
fn bad_toml_is_named_with_its_line() {
    let (text, code) = refusal("syntax", "[http]\nlisten = \n");
    assert_eq!(code, 78);
    assert!(text.contains("syntax.toml:2: "), "{text}");
}

#[test]
fn a_wrong_address_says_what_is_allowed() {
    let (text, code) = refusal("address", "[http]\nlisten = \"localhost\"\n");
    assert_eq!(code, 78);
    assert!(text.contains("http.listen") && text.contains("127.0.0.1:8420"), "{text}");
}

#[test]
fn every_wrong_value_is_told_at_once() {
    let (text, code) = refusal("values", "[log]\nlevel = \"loud\"\n[worker]\nsessions_max = 0\n");
    assert_eq!(code, 78);
    assert!(text.contains("log.level") && text.contains("worker.sessions_max") && text.contains("1 to 128"), "{text}");
}

#[test]
fn a_public_address_needs_tokens() {
    let (text, code) = refusal("public", "[http]\nlisten = \"0.0.0.0:8420\"\n");
    assert_eq!(code, 78);
    assert!(text.contains("http.listen") && text.contains("http.token_file"), "{text}");
    let (output, _) = check("tokens", "[http]\nlisten = \"0.0.0.0:8420\"\ntoken_file = \"/etc/gamegend/tokens\"\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_missing_file_is_no_input() {
    let missing = "/nonexistent/gamegend.toml";
    let output = Command::new(env!("CARGO_BIN_EXE_gamegend")).args(["-n", "-c", missing]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&output.stderr).contains(missing));
}

#[test]
fn a_wrong_command_line_is_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_gamegend")).arg("--nonsense").output().expect("it runs");
    assert_eq!(output.status.code(), Some(64));
    let output = Command::new(env!("CARGO_BIN_EXE_gamegend")).args(["--role", "api", "--link", "9"]).output();
    let output = output.expect("it runs");
    assert_eq!(output.status.code(), Some(64), "a role is started by the parent only");
}

#[test]
fn a_reload_keeps_what_waits_for_the_next_start() {
    let path = std::env::temp_dir().join(format!("gamegend-reload-{}.toml", std::process::id()));
    fs::write(&path, "[http]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"debug\"\n").expect("a temporary file");
    let (merged, changes) = config::reload(&config::load(None).expect("defaults"), Some(&path)).expect("it is right");
    fs::remove_file(&path).expect("ours");
    assert_eq!(changes.next_start, ["http.listen"]);
    assert!(changes.reload_log && !changes.restart_api && !changes.restart_worker);
    assert_eq!(merged.http.listen, Config::default().http.listen);
    assert_eq!(merged.log.level, "debug");
}
