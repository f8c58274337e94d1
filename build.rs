//! Assembles `kernels/*.spvasm` into OUT_DIR and lists the modules in `OUT_DIR/kernels.rs`.

#[path = "build/assembler.rs"]
mod assembler;
#[path = "build/parts.rs"]
mod parts;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

const KERNELS: &str = "kernels";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/assembler.rs");
    println!("cargo::rerun-if-changed=build/parts.rs");
    if let Err(message) = build() {
        println!("cargo::error={message}");
        process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut table = String::from("&[\n");
    for path in sources(&root.join(KERNELS))? {
        let name = path.file_stem().and_then(|s| s.to_str()).ok_or_else(|| format!("{path:?} is not a UTF-8 name"))?;
        let text = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let text = parts::expand(&text, |part| read_part(&root, part))
            .map_err(|what| format!("{KERNELS}/{name}.spvasm: {what}"))?;
        let words = assembler::assemble(&text).map_err(|e| {
            let line = text.lines().nth(e.line - 1).unwrap_or_default();
            format!("{KERNELS}/{name}.spvasm, line {} with its parts: {}: {line:?}", e.line, e.what)
        })?;
        writeln!(table, "    ({name:?}, &{words:?}),").map_err(|e| e.to_string())?;
    }
    table.push_str("]\n");
    write_changed(&out.join("kernels.rs"), &format!("pub static MODULES: &[(&str, &[u32])] = {};\n", table.trim_end()))
}

/// What several kernels include, or a step that would make one too long.
fn read_part(root: &Path, name: &str) -> Result<String, String> {
    let path = root.join(KERNELS).join("parts").join(format!("{name}.spvpart"));
    fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))
}

/// The sources in order of their names, so that equal trees give equal programs.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut all = Vec::new();
    if !folder.is_dir() {
        return Ok(all);
    }
    for entry in fs::read_dir(folder).map_err(|e| format!("list {}: {e}", folder.display()))? {
        let path = entry.map_err(|e| format!("list {}: {e}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "spvasm") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Replaces the file as a whole and only if it differs, so that an interrupted build leaves no half of one.
fn write_changed(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(|e| format!("write {}: {e}", new.display()))?;
    fs::rename(&new, path).map_err(|e| format!("rename {}: {e}", new.display()))
}
