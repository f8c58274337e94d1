//! The assembler of `build.rs`: its words, its messages, and `spirv-as` as the judge of both.

#[path = "../build/assembler.rs"]
mod assembler;
#[path = "../build/parts.rs"]
mod parts;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assembler::assemble;
use parts::expand;

/// A kernel with a bit of everything: spec constants, literals of several types, masks with parameters, phi, switch.
const SAMPLE: &str = include_str!("data/sample.spvasm");

fn error(text: &str) -> String {
    assemble(text).expect_err("the text is wrong").to_string()
}

/// Words of the instructions, header skipped.
fn words(text: &str) -> Vec<u32> {
    assemble(text).expect("the text is right").split_off(5)
}

#[test]
fn header_counts_the_ids() {
    let module = assemble("OpCapability Shader ; comment\n\n%a = OpTypeVoid\n%f = OpTypeFunction %a\n").expect("right");
    assert_eq!(module[..5], [0x0723_0203, 0x0001_0600, 0, 3, 0]);
    assert_eq!(module[5..], [2 << 16 | 17, 1, 2 << 16 | 19, 1, 3 << 16 | 33, 2, 1]);
}

#[test]
fn literals_take_the_width_and_sign_of_their_type() {
    let head = "%i = OpTypeInt 16 1\n%u = OpTypeInt 64 0\n%h = OpTypeFloat 16\n";
    let skip = 4 + 4 + 3;
    let constant = |line: &str| words(&format!("{head}{line}")).split_off(skip + 3);
    assert_eq!(constant("%c = OpConstant %i -2"), [0xffff_fffe]);
    assert_eq!(constant("%c = OpConstant %u 0x100000002"), [2, 1]);
    assert_eq!(constant("%c = OpConstant %h -1.5"), [0xbe00]);
    assert_eq!(constant("%c = OpConstant %h 65504"), [0x7bff]);
    assert!(error(&format!("{head}%c = OpConstant %h 0.1")).contains("not exact"));
    assert!(error(&format!("{head}%c = OpConstant %i 40000")).contains("does not fit"));
    assert!(error(&format!("{head}%c = OpConstant %u -1")).contains("does not fit"));
}

#[test]
fn messages_name_the_line_and_the_word() {
    let cases = [
        ("OpCapability Shader\nOpNothing", "line 2: there is no instruction 'OpNothing'"),
        ("OpCapability Shade", "line 1: 'Shade' is not a Capability"),
        ("OpCapability", "line 1: an operand is missing: Capability"),
        ("OpCapability Shader Float16", "line 1: OpCapability has no operand 'Float16'"),
        ("%x = OpCapability Shader", "line 1: OpCapability has no result"),
        ("OpTypeVoid", "line 1: OpTypeVoid needs a result id"),
        ("%x =", "line 1: an instruction must follow '='"),
        ("OpName %x \"y", "line 1: a string is not closed"),
        ("%c = OpConstant %u 1", "line 1: the type of this constant is not declared above"),
        ("%f = OpTypeFloat 32\n%c = OpConstant %f nan", "line 2: 'nan' is not a finite decimal number"),
        ("%t = OpTypeInt x 0", "line 1: 'x' is not an integer"),
        ("OpReturn %x", "line 1: OpReturn has no operand '%x'"),
        ("OpMemoryModel Logical", "line 1: an operand is missing: MemoryModel"),
    ];
    for (text, message) in cases {
        assert_eq!(error(text), message, "{text}");
    }
}

#[test]
fn parts_stand_where_they_are_included() {
    let part = |name: &str| if name == "b" { Ok("%y = z\n".to_string()) } else { Err(format!("no part {name}")) };
    assert_eq!(expand("%x\ninclude b\n; include c\n", part).expect("b is there"), "%x\n%y = z\n\n; include c\n");
    assert_eq!(expand("%x\ninclude c\n", part).expect_err("c is not"), "line 2: no part c");
}

/// The sample and all kernels with their names.
fn texts() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut texts = vec![("sample".to_string(), SAMPLE.to_string())];
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.expect("the folder can be listed").path();
        if path.extension().is_some_and(|e| e == "spvasm") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("the kernel can be read");
            let part = |name: &str| {
                fs::read_to_string(folder.join("parts").join(format!("{name}.spvpart"))).map_err(|e| e.to_string())
            };
            texts.push((name, expand(&text, part).expect("its parts are there")));
        }
    }
    texts
}

/// Where `tools/python` puts SPIRV-Tools that know cooperative matrices: those of Debian 12 do not.
fn newer_tools() -> Option<PathBuf> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/lib");
    let folder = |python: fs::DirEntry| python.path().join("site-packages/cmeel.prefix/bin");
    fs::read_dir(library).ok()?.flatten().map(folder).find(|f| f.join("spirv-val").exists())
}

/// A program of SPIRV-Tools: from the folder in `GAMEGEND_SPIRV_TOOLS`, else the newer ones, else the system's.
fn tool(name: &str) -> Command {
    match std::env::var_os("GAMEGEND_SPIRV_TOOLS").map(PathBuf::from).or_else(newer_tools) {
        Some(folder) => Command::new(folder.join(name)),
        None => Command::new(name),
    }
}

/// Assembles with `spirv-as`; `None` if it is not installed or (an old one) does not know an instruction.
fn spirv_as(text: &str) -> Option<Vec<u32>> {
    let args = ["--target-env", "spv1.6", "-o", "-", "-"];
    let mut child =
        tool("spirv-as").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    // Taken, so that the end of the text reaches the assembler; it reads everything before it writes.
    child.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    if !output.status.success() {
        println!("skipped one module: spirv-as: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output.stdout.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

/// Words but for the generator in the header, which names the assembler.
fn comparable(mut module: Vec<u32>) -> Vec<u32> {
    module[2] = 0;
    module
}

#[test]
fn words_are_those_of_spirv_as() {
    if tool("spirv-as").arg("--version").output().is_err() {
        println!("skipped: spirv-as is not installed");
        return;
    }
    let texts = texts();
    let ours = comparable(assemble(SAMPLE).expect("the sample is right"));
    assert_eq!(Some(ours), spirv_as(SAMPLE).map(comparable), "the sample uses nothing that is new");
    for (name, text) in texts {
        let ours = assemble(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(theirs) = spirv_as(&text) {
            assert_eq!(comparable(ours), comparable(theirs), "{name}");
        }
    }
}

#[test]
fn modules_pass_spirv_val() {
    if tool("spirv-val").arg("--version").output().is_err() {
        println!("skipped: spirv-val is not installed");
        return;
    }
    for (name, text) in texts() {
        let words = assemble(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let path = std::env::temp_dir().join(format!("gamegend-{}-{name}.spv", std::process::id()));
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        fs::write(&path, bytes).expect("the temporary folder can be written");
        let output = tool("spirv-val").args(["--target-env", "vulkan1.3"]).arg(&path).output();
        let _ = fs::remove_file(&path);
        let output = output.expect("spirv-val was there before");
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("Invalid capability operand") {
            println!("skipped: {name}: spirv-val is older than its capabilities: {}", said.trim());
            continue;
        }
        assert!(output.status.success(), "{name}: {said}");
    }
}
