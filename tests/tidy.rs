//! The rules of the tree that a compiler does not know: who may import whom, where `unsafe` may stand, how long a
//! file may grow, and that kernels, configuration keys and commands are documented.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 120;

/// Folders of `src/` from top to bottom with what they may use below them; `config`, `proto`, `sys` are open to all.
const IMPORTS: &[(&str, &[&str])] = &[
    ("bin", &["parent", "api", "worker", "decode", "ctl", "exit"]),
    ("parent", &["exit"]),
    ("api", &["store", "frame", "exit"]),
    ("worker", &["model", "frame", "compute", "exit"]),
    ("decode", &["model", "frame", "exit"]),
    ("ctl", &["model", "compute", "frame", "exit"]),
    ("model", &["compute"]),
    ("store", &[]),
    ("frame", &[]),
    ("compute", &["vk"]),
    ("vk", &[]),
    ("config", &[]),
    ("proto", &[]),
    ("sys", &[]),
];
const OPEN_TO_ALL: &[&str] = &["config", "proto", "sys"];

/// Crates that belong to one folder only.
const CRATE_HOMES: &[(&str, &[&str])] = &[
    ("ash", &["src/vk/"]),
    ("gpu_allocator", &["src/vk/"]),
    ("axum", &["src/api/"]),
    ("hyper", &["src/api/", "src/ctl/"]),
    ("tokio", &["src/api/", "src/ctl/", "src/store/"]),
    ("pulp", &["src/compute/cpu/"]),
    ("safetensors", &["src/model/"]),
    ("daemonize", &["src/sys/", "src/parent/"]),
    ("syslog", &["src/sys/", "src/parent/"]),
];

const UNSAFE_ROOMS: &[&str] = &["src/sys/", "src/vk/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with one of the extensions, as paths relative to the root.
fn files(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let name = path.strip_prefix(root()).expect("it was found below the root");
                found.push((name.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let mut all = files("src", &["rs"]);
    all.extend(files("tests", &["rs"]));
    all.extend(files("benches", &["rs"]));
    all.extend(files("build", &["rs"]));
    all
}

/// Code of a line: without its comment and without the contents of plain string literals.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => out.push(c),
        }
    }
    out
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(i, _)| {
        let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        boundary(text[..i].chars().next_back()) && boundary(text[i + word.len()..].chars().next())
    })
}

fn report(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

#[test]
fn files_and_lines_are_short() {
    let mut findings = Vec::new();
    let mut all = sources();
    all.extend(files("kernels", &["spvasm", "spvpart"]));
    all.extend(files("web", &["js", "css", "html"]));
    all.extend(files("training", &["py", "h", "cu"]));
    assert!(all.len() > 20, "only {} files were found: the search is broken", all.len());
    for (name, text) in &all {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{name}: {lines} lines"));
        }
        if name.ends_with(".rs") {
            let long = text.lines().enumerate().filter(|(_, l)| l.chars().count() > COLUMNS_MAX);
            findings.extend(long.map(|(i, l)| format!("{name}:{}: {} columns", i + 1, l.chars().count())));
        }
    }
    report("a file has at most 600 lines, a line of Rust at most 120 columns", findings);
}

#[test]
fn imports_run_downwards() {
    let mut findings = Vec::new();
    for (name, text) in files("src", &["rs"]) {
        let Some((folder, _)) = name.trim_start_matches("src/").split_once('/') else { continue };
        let Some((_, allowed)) = IMPORTS.iter().find(|(f, _)| *f == folder) else {
            findings.push(format!("{name}: the folder {folder} is not in the table"));
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let line = code(line);
            for (other, _) in IMPORTS.iter().filter(|(o, _)| *o != folder && !OPEN_TO_ALL.contains(o)) {
                let named = [format!("crate::{other}"), format!("gamegend::{other}")];
                if named.iter().any(|n| has_word(&line, n)) && !allowed.contains(other) {
                    findings.push(format!("{name}:{}: {folder} uses {other}", number + 1));
                }
            }
        }
    }
    report("imports run downwards only", findings);
}

#[test]
fn crates_stay_in_their_folders() {
    let mut findings = Vec::new();
    for (name, text) in files("src", &["rs"]) {
        for (number, line) in text.lines().enumerate() {
            let line = code(line);
            for (krate, homes) in CRATE_HOMES {
                let used = line.contains(&format!("{krate}::"))
                    && has_word(&line, krate)
                    && !line.contains(&format!("::{krate}::"));
                if used && !homes.iter().any(|h| name.starts_with(h)) {
                    findings.push(format!("{name}:{}: {krate} belongs to {}", number + 1, homes.join(", ")));
                }
            }
        }
    }
    report("some crates belong to one folder", findings);
}

#[test]
fn unsafe_stays_in_its_rooms_and_says_why() {
    let mut findings = Vec::new();
    let mut blocks = 0;
    for (name, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let bare = code(line);
            if !has_word(&bare, "unsafe") || bare.contains("unsafe_code") {
                continue;
            }
            if !UNSAFE_ROOMS.iter().any(|r| name.starts_with(r)) {
                findings.push(format!("{name}:{}: unsafe outside its rooms", i + 1));
                continue;
            }
            blocks += 1;
            let above = lines[i.saturating_sub(8)..=i].iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            if !above {
                findings.push(format!("{name}:{}: unsafe without SAFETY", i + 1));
            }
        }
        for phrase in ["always safe", "safe because it's a library function", "valid parameters"] {
            if text.lines().any(|l| l.contains("SAFETY") && l.contains(phrase)) {
                findings.push(format!("{name}: a SAFETY comment says {phrase:?}, which says nothing"));
            }
        }
    }
    assert!(blocks > 10, "only {blocks} unsafe blocks were found: the search is broken");
    report("unsafe stands in src/sys and src/vk only, with its reason", findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let banned = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("#[ig", "nore")];
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut findings = Vec::new();
    for (name, text) in sources() {
        for (i, line) in text.lines().enumerate() {
            for b in banned.iter().chain(&marks) {
                if line.contains(b) {
                    findings.push(format!("{name}:{}: {b}", i + 1));
                }
            }
        }
    }
    report("no unfinished code", findings);
}

#[test]
fn every_kernel_has_its_contract() {
    let kernels = files("kernels", &["spvasm"]);
    assert!(kernels.len() >= 30, "only {} kernels were found", kernels.len());
    let mut findings = Vec::new();
    for (name, text) in kernels {
        let header: Vec<&str> = text.lines().take_while(|l| l.starts_with(';')).collect();
        for part in ["push", "local", "grid", "needs", "ref", "why"] {
            if !header.iter().any(|l| l.trim_start_matches(';').trim_start().starts_with(part)) {
                findings.push(format!("{name}: the header has no line {part:?}"));
            }
        }
        let stem = name.trim_start_matches("kernels/").trim_end_matches(".spvasm");
        if !stem.ends_with("_f32") && !stem.ends_with("_f16") {
            findings.push(format!("{name}: the name does not end with its type"));
        }
    }
    report("every kernel begins with its contract", findings);
}

#[test]
fn every_configuration_key_is_documented() {
    let text = fs::read_to_string(root().join("src/config/mod.rs")).expect("the configuration is there");
    let sample = fs::read_to_string(root().join("etc/gamegend.toml.sample")).expect("the sample is there");
    let manual = fs::read_to_string(root().join("man/gamegend.toml.5")).expect("the manual page is there");
    let keys: Vec<&str> = text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("pub "))
        .filter_map(|l| l.split_once(": "))
        .map(|(key, _)| key)
        .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(keys.len() >= 15, "only {} keys were found: the search is broken", keys.len());
    let missing = |t: &str, k: &&&str| !has_word(t, k);
    let undocumented: Vec<String> =
        keys.iter().filter(|k| missing(&sample, k) || missing(&manual, k)).map(|k| k.to_string()).collect();
    report("every key is in the sample and in gamegend.toml(5)", undocumented);
}

#[test]
fn every_command_is_documented() {
    let manual = fs::read_to_string(root().join("man/gamegendctl.8")).expect("the manual page is there");
    let commands = [
        "status",
        "generate",
        "play",
        "sessions",
        "stop",
        "save",
        "replay",
        "gpu",
        "configtest",
        "reload",
        "upgrade",
        "ready",
        "model list",
        "model activate",
        "model rollback",
    ];
    let undocumented =
        commands.iter().filter(|c| !manual.contains(&format!(".It Cm {c}"))).map(|c| c.to_string()).collect();
    report("every command is in gamegendctl(8)", undocumented);
}

#[test]
fn nothing_names_the_place_it_was_written_at() {
    let mut findings = Vec::new();
    let mut all = sources();
    for (folder, extensions) in [
        ("training", ["py", "sh", "md"]),
        ("man", ["5", "7", "8"]),
        ("tools", ["", "", ""]),
        ("kernels", ["spvasm", "spvpart", "md"]),
    ] {
        all.extend(files(folder, &extensions));
    }
    let markers = [concat!("/wo", "rk/"), concat!("../sha", "red"), concat!("art", "ifactory")];
    for (name, text) in all {
        for m in &markers {
            if text.contains(m) {
                findings.push(format!("{name}: {m}"));
            }
        }
    }
    report("no path of a development machine", findings);
}
