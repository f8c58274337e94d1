//! The three places where a kernel's interface is written must agree: the table, the header of the source, and the
//! assembled words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::FieldKind;
use super::table::{KERNELS, Kernel, MODULES};

/// What is longer has parts, see `kernels/README.md`.
const SOURCE_LINES_MAX: usize = 600;

/// Capabilities that kernels may need, by number.
const CAPABILITIES: &[(u32, &str)] = &[
    (1, "Shader"),
    (9, "Float16"),
    (11, "Int64"),
    (39, "Int8"),
    (61, "GroupNonUniform"),
    (62, "GroupNonUniformVote"),
    (63, "GroupNonUniformArithmetic"),
    (64, "GroupNonUniformBallot"),
    (65, "GroupNonUniformShuffle"),
    (67, "GroupNonUniformClustered"),
    (4433, "StorageBuffer16BitAccess"),
    (4448, "StorageBuffer8BitAccess"),
    (5345, "VulkanMemoryModel"),
    (5347, "PhysicalStorageBufferAddresses"),
    (6022, "CooperativeMatrixKHR"),
];

/// What a header or a module says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Interface {
    /// Offset and kind of every push constant, by offset.
    push: Vec<(u32, FieldKind)>,
    push_bytes: u32,
    /// 0: a specialization constant says.
    local_size: u32,
    specs: usize,
    capabilities: BTreeSet<String>,
}

/// The comment that a source begins with, one line each, without the semicolons.
fn header(source: &str) -> Vec<&str> {
    source.lines().map_while(|l| l.strip_prefix(';')).map(str::trim).collect()
}

/// The words after `key` in the lines that begin with it.
fn entries<'a>(header: &[&'a str], key: &str) -> Vec<Vec<&'a str>> {
    let words = header.iter().map(|l| l.split_whitespace().collect::<Vec<_>>());
    words.filter(|w| w.first() == Some(&key)).map(|w| w[1..].to_vec()).collect()
}

/// Names of the push constants, then of the specialization constants, and the interface that a header declares.
fn declared(module: &str, source: &str) -> (Vec<String>, Interface) {
    let header = header(source);
    let mut names = Vec::new();
    let mut push = Vec::new();
    for entry in entries(&header, "push") {
        let kind = match entry[2] {
            "address" => FieldKind::Address,
            "u32" => FieldKind::Word,
            "f32" => FieldKind::Real,
            other => panic!("{module}: the header has a push constant of type {other}"),
        };
        names.push(entry[1].to_string());
        push.push((entry[0].parse().expect("an offset is a number"), kind));
    }
    let specs = entries(&header, "spec");
    for (i, entry) in specs.iter().enumerate() {
        assert_eq!(entry[0].parse(), Ok(i), "{module}: specialization constants are in order");
        names.push(entry[1].to_string());
    }
    let number = |key: &str, nth: usize| {
        let line = entries(&header, key).into_iter().next().unwrap_or_else(|| panic!("{module}: no line {key:?}"));
        if line[nth] == "(LOCAL," {
            return 0;
        }
        let digits: String = line[nth].chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or_else(|_| panic!("{module}: {key} has no number"))
    };
    let needs = header.iter().position(|l| l.starts_with("needs")).unwrap_or_else(|| panic!("{module}: no needs"));
    let first = header[needs].split_once(';').map_or("", |(_, list)| list);
    let goes_on = |l: &&&str| CAPABILITIES.iter().any(|(_, name)| l.starts_with(name));
    let more = header[needs + 1..].iter().take_while(goes_on);
    let list = [first].into_iter().chain(more.copied()).flat_map(|l| l.split(','));
    let capabilities = list.map(|c| c.trim().to_string()).filter(|c| !c.is_empty()).collect();
    let (push_bytes, local_size) = (number("bytes", 0), number("local", 0));
    (names, Interface { push, push_bytes, local_size, specs: specs.len(), capabilities })
}

/// The instructions of a module: opcode and operands.
fn instructions(words: &[u32]) -> Vec<(u32, &[u32])> {
    let mut all = Vec::new();
    let mut rest = &words[5..];
    while let Some(&first) = rest.first() {
        let length = (first >> 16) as usize;
        all.push((first & 0xffff, &rest[1..length]));
        rest = &rest[length..];
    }
    all
}

/// Kind of a push constant from the definition of its type.
fn kind_of(definition: (u32, &[u32])) -> FieldKind {
    const TYPE_INT: u32 = 21;
    const TYPE_FLOAT: u32 = 22;
    const TYPE_VECTOR: u32 = 23;
    match definition {
        (TYPE_INT, [_, 32, 0]) => FieldKind::Word,
        (TYPE_FLOAT, [_, 32]) => FieldKind::Real,
        (TYPE_VECTOR, [_, _, 2]) => FieldKind::Address,
        other => panic!("a push constant is {other:?}"),
    }
}

/// The interface that the words of a module have.
fn assembled(module: &str, words: &[u32]) -> Interface {
    const EXECUTION_MODE: u32 = 16;
    const CAPABILITY: u32 = 17;
    const LOCAL_SIZE: u32 = 17;
    const EXECUTION_MODE_ID: u32 = 331;
    const LOCAL_SIZE_ID: u32 = 38;
    const DECORATE: u32 = 71;
    const SPEC_ID: u32 = 1;
    const TYPE_STRUCT: u32 = 30;
    const TYPE_POINTER: u32 = 32;
    const PUSH_CONSTANT: u32 = 9;
    const MEMBER_DECORATE: u32 = 72;
    const OFFSET: u32 = 35;
    let all = instructions(words);
    let types: BTreeMap<u32, (u32, &[u32])> =
        all.iter().filter(|(op, _)| (19..=39).contains(op)).map(|&(op, args)| (args[0], (op, args))).collect();
    let capabilities = all.iter().filter(|(op, _)| *op == CAPABILITY).map(|(_, args)| {
        let known = CAPABILITIES.iter().find(|(number, _)| *number == args[0]);
        known.unwrap_or_else(|| panic!("{module}: capability {} is not expected", args[0])).1.to_string()
    });
    let block = types.values().find_map(|(op, args)| match (*op, *args) {
        (TYPE_POINTER, [_, PUSH_CONSTANT, to]) => types.get(to).filter(|(op, _)| *op == TYPE_STRUCT),
        _ => None,
    });
    let (_, block) = block.unwrap_or_else(|| panic!("{module}: no push constants"));
    let offset = |member: usize| {
        all.iter().find_map(|(op, args)| match (*op, *args) {
            (MEMBER_DECORATE, [id, m, OFFSET, at]) if *id == block[0] && *m as usize == member => Some(*at),
            _ => None,
        })
    };
    let members = block[1..].iter().enumerate();
    let push: Vec<_> =
        members.map(|(i, id)| (offset(i).expect("members of a block have offsets"), kind_of(types[id]))).collect();
    let local = all.iter().find_map(|(op, args)| match (*op, *args) {
        (EXECUTION_MODE, [_, LOCAL_SIZE, x, 1, 1]) => Some(*x),
        (EXECUTION_MODE_ID, [_, LOCAL_SIZE_ID, ..]) => Some(0),
        _ => None,
    });
    let specs = all.iter().filter(|(op, args)| *op == DECORATE && args[1] == SPEC_ID).count();
    Interface {
        push_bytes: push.iter().map(|(at, kind)| at + kind.bytes() as u32).max().unwrap_or(0),
        push,
        local_size: local.unwrap_or_else(|| panic!("{module}: no local size in one dimension")),
        specs,
        capabilities: capabilities.collect(),
    }
}

/// The interface that the table gives a kernel, with the capabilities of `other`.
fn tabled(kernel: &Kernel, other: &Interface) -> Interface {
    let mut at = 0;
    let mut push = Vec::new();
    for field in kernel.fields {
        push.push((at, field.kind));
        at += field.kind.bytes() as u32;
    }
    let capabilities = other.capabilities.clone();
    let (local_size, specs) = (kernel.local_size, kernel.specs.len());
    Interface { push, push_bytes: kernel.push_bytes, local_size, specs, capabilities }
}

fn source(module: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(format!("{module}.spvasm"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_kernel_has_a_module_in_each_precision_and_no_module_is_left() {
    let mut wanted: Vec<String> = KERNELS.iter().flat_map(|k| k.precisions().iter().map(|&p| k.module(p))).collect();
    wanted.sort();
    let present: Vec<&str> = MODULES.iter().map(|(name, _)| *name).collect();
    assert_eq!(wanted, present);
}

#[test]
fn table_header_and_words_agree() {
    for kernel in KERNELS {
        for &precision in kernel.precisions() {
            let module = kernel.module(precision);
            let (names, declared) = declared(&module, &source(&module));
            let assembled = assembled(&module, kernel.words(precision));
            let fields = kernel.fields.iter().map(|f| f.name);
            let tabled_names: Vec<&str> = fields.chain(kernel.specs.iter().copied()).collect();
            assert_eq!(names, tabled_names, "{module}: header and table name other constants");
            assert_eq!(declared, assembled, "{module}: header and words");
            assert_eq!(tabled(kernel, &assembled), assembled, "{module}: table and words");
        }
    }
}

#[test]
fn kernels_use_no_descriptors() {
    const DECORATE: u32 = 71;
    const BINDING: u32 = 33;
    const DESCRIPTOR_SET: u32 = 34;
    for (name, words) in MODULES {
        let bound = instructions(words)
            .into_iter()
            .any(|(op, args)| op == DECORATE && (args[1] == BINDING || args[1] == DESCRIPTOR_SET));
        assert!(!bound, "{name} has a descriptor");
    }
}

#[test]
fn sources_say_what_they_are_and_stay_short() {
    for (name, _) in MODULES {
        let text = source(name);
        assert!(text.starts_with(&format!("; {name}: ")), "{name}: the first line does not name the kernel");
        assert!(text.lines().count() <= SOURCE_LINES_MAX, "{name} has more than {SOURCE_LINES_MAX} lines");
    }
}
