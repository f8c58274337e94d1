//! An assembler for the text form of SPIR-V, on the grammar tables of `rspirv`.
//!
//! It takes what `spirv-as` takes, as far as compute kernels need it: one instruction a line, `%name` ids, `;`
//! comments, enumerants and masks (`Volatile|Aligned`) by their names in the specification. Ids are numbered in the
//! order in which they appear in the text, as `spirv-as` numbers them, so the words of a module can be compared one
//! by one.
//!
//! Grammar: SPIR-V 1.6, sections 2.2 (terms, instructions) and 3 (binary form).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use rspirv::dr::Operand;
use rspirv::grammar::{INSTRUCTION_TABLE, LogicalOperand, OperandKind, OperandQuantifier, ext_inst_table};
use rspirv::spirv;

/// Version of the modules: what Vulkan 1.3 accepts at most.
const VERSION: u32 = 0x0001_0600;
const MAGIC: u32 = 0x0723_0203;

/// What is wrong with a text, and on which line (from 1).
#[derive(Debug)]
pub struct SyntaxError {
    pub line: usize,
    pub what: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Assembles a module. Returns its words, header included.
///
/// Checks the syntax of every instruction, not the rules of validation: those are `spirv-val`'s.
pub fn assemble(text: &str) -> Result<Vec<u32>, SyntaxError> {
    let mut module = Module::new();
    for (i, line) in text.lines().enumerate() {
        module.line(line).map_err(|what| SyntaxError { line: i + 1, what })?;
    }
    let bound = module.ids.len() as u32 + 1;
    let mut words = vec![MAGIC, VERSION, 0, bound, 0];
    words.append(&mut module.words);
    Ok(words)
}

/// A numeric type, kept to encode the literals of its constants.
#[derive(Clone, Copy)]
enum Number {
    Int { bits: u32, signed: bool },
    Float { bits: u32 },
}

struct Module<'a> {
    opcodes: HashMap<&'static str, spirv::Op>,
    words: Vec<u32>,
    ids: HashMap<&'a str, u32>,
    numbers: HashMap<u32, Number>,
    /// Extended instruction sets by the id of their import.
    sets: HashMap<u32, &'a str>,
}

/// The tokens of one instruction that are not consumed yet, with what the operands before them said.
struct Rest<'a> {
    tokens: std::vec::IntoIter<&'a str>,
    result_type: u32,
    last_id: u32,
}

impl<'a> Rest<'a> {
    fn next(&mut self, kind: &str) -> Result<&'a str, String> {
        self.tokens.next().ok_or_else(|| format!("an operand is missing: {kind}"))
    }

    fn is_empty(&self) -> bool {
        self.tokens.as_slice().is_empty()
    }
}

impl<'a> Module<'a> {
    fn new() -> Self {
        Module {
            opcodes: INSTRUCTION_TABLE.iter().map(|i| (i.opname, i.opcode)).collect(),
            words: Vec::new(),
            ids: HashMap::new(),
            numbers: HashMap::new(),
            sets: HashMap::new(),
        }
    }

    fn line(&mut self, line: &'a str) -> Result<(), String> {
        let mut tokens = split(line)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let result = if tokens.get(1) == Some(&"=") { tokens.drain(..2).next() } else { None };
        if tokens.is_empty() {
            return Err("an instruction must follow '='".to_string());
        }
        let name = tokens.remove(0);
        let short = name.strip_prefix("Op").ok_or_else(|| format!("'{name}' is not an instruction"))?;
        let opcode = self.opcode(short)?;
        let start = self.words.len();
        self.words.push(0);
        // `spirv-as` meets the result id first, so it is numbered before the type that precedes it in the words.
        let result = result.map(|t| self.id(t)).transpose()?;
        let set = tokens.last().copied();
        let mut rest = Rest { tokens: tokens.into_iter(), result_type: 0, last_id: 0 };
        let mut has_result = false;
        for operand in INSTRUCTION_TABLE.get(opcode).operands {
            match operand.kind {
                OperandKind::IdResultType => {
                    let token = rest.next("the result type")?;
                    rest.result_type = self.id(token)?;
                    self.words.push(rest.result_type);
                }
                OperandKind::IdResult => {
                    has_result = true;
                    self.words.push(result.ok_or_else(|| format!("{name} needs a result id"))?);
                }
                _ => self.quantified(operand, &mut rest)?,
            }
        }
        if let Some(extra) = rest.tokens.next() {
            return Err(format!("{name} has no operand '{extra}'"));
        }
        if result.is_some() && !has_result {
            return Err(format!("{name} has no result"));
        }
        self.remember(opcode, start, set);
        let count = (self.words.len() - start) as u32;
        self.words[start] = count << 16 | opcode as u32;
        Ok(())
    }

    /// Notes numeric types and imports, which later literals are read by.
    fn remember(&mut self, opcode: spirv::Op, start: usize, last: Option<&'a str>) {
        let w = &self.words[start..];
        match opcode {
            spirv::Op::TypeInt => {
                self.numbers.insert(w[1], Number::Int { bits: w[2], signed: w[3] != 0 });
            }
            spirv::Op::TypeFloat => {
                self.numbers.insert(w[1], Number::Float { bits: w[2] });
            }
            spirv::Op::ExtInstImport => {
                if let Some(name) = last {
                    self.sets.insert(w[1], name.trim_matches('"'));
                }
            }
            _ => {}
        }
    }

    fn opcode(&self, name: &str) -> Result<spirv::Op, String> {
        self.opcodes.get(name).copied().ok_or_else(|| format!("there is no instruction 'Op{name}'"))
    }

    fn id(&mut self, token: &'a str) -> Result<u32, String> {
        if token.len() < 2 || !token.starts_with('%') {
            return Err(format!("'{token}' is not an id"));
        }
        let next = self.ids.len() as u32 + 1;
        Ok(*self.ids.entry(token).or_insert(next))
    }

    fn quantified(&mut self, operand: &LogicalOperand, rest: &mut Rest<'a>) -> Result<(), String> {
        match operand.quantifier {
            OperandQuantifier::One => self.operand(operand.kind, rest),
            OperandQuantifier::ZeroOrOne if rest.is_empty() => Ok(()),
            OperandQuantifier::ZeroOrOne => self.operand(operand.kind, rest),
            OperandQuantifier::ZeroOrMore => {
                while !rest.is_empty() {
                    self.operand(operand.kind, rest)?;
                }
                Ok(())
            }
        }
    }

    fn operand(&mut self, kind: OperandKind, rest: &mut Rest<'a>) -> Result<(), String> {
        use OperandKind as K;
        let token = rest.next(&format!("{kind:?}"))?;
        match kind {
            K::IdRef | K::IdScope | K::IdMemorySemantics => {
                let id = self.id(token)?;
                rest.last_id = id;
                self.words.push(id);
            }
            K::LiteralInteger => self.words.push(integer(token)?),
            K::LiteralString => self.string(token)?,
            K::LiteralContextDependentNumber => {
                let number = self.numbers.get(&rest.result_type).copied();
                let number = number.ok_or("the type of this constant is not declared above")?;
                self.words.extend(literal(token, number)?);
            }
            K::LiteralSpecConstantOpInteger => self.spec_constant_op(token, rest)?,
            K::LiteralExtInstInteger => {
                let set = self.sets.get(&rest.last_id).ok_or("the instruction set is not imported above")?;
                let table = ext_inst_table(set).ok_or_else(|| format!("instruction set '{set}' is not known"))?;
                let found = table.iter().find(|i| i.opname == token);
                let found = found.ok_or_else(|| format!("there is no instruction '{token}' in {set}"))?;
                self.words.push(u32::from(found.opcode));
            }
            K::PairIdRefIdRef => {
                let id = self.id(token)?;
                self.words.push(id);
                self.operand(K::IdRef, rest)?;
            }
            K::PairLiteralIntegerIdRef => {
                self.words.push(integer(token)?);
                self.operand(K::IdRef, rest)?;
            }
            K::PairIdRefLiteralInteger => {
                let id = self.id(token)?;
                self.words.push(id);
                self.operand(K::LiteralInteger, rest)?;
            }
            _ => {
                let (word, parameters) = enumerant(kind, token)?;
                self.words.push(word);
                for parameter in &parameters {
                    self.quantified(parameter, rest)?;
                }
            }
        }
        Ok(())
    }

    fn spec_constant_op(&mut self, token: &'a str, rest: &mut Rest<'a>) -> Result<(), String> {
        let opcode = self.opcode(token)?;
        self.words.push(opcode as u32);
        for operand in INSTRUCTION_TABLE.get(opcode).operands {
            if !matches!(operand.kind, OperandKind::IdResult | OperandKind::IdResultType) {
                self.quantified(operand, rest)?;
            }
        }
        Ok(())
    }

    /// UTF-8 bytes with a terminating zero, four to a word, the first in the lowest byte.
    fn string(&mut self, token: &str) -> Result<(), String> {
        let text = token.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
        let text = text.ok_or_else(|| format!("'{token}' is not a string in double quotes"))?;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
        self.words.extend(bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])));
        Ok(())
    }
}

/// Cuts a line into tokens and drops its comment. Strings keep their quotes; escapes are refused, no kernel needs them.
fn split(line: &str) -> Result<Vec<&str>, String> {
    let mut tokens = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with(';') {
        let end = if let Some(body) = rest.strip_prefix('"') {
            let close = body.find('"').ok_or("a string is not closed")?;
            if body[..close].contains('\\') {
                return Err("escapes in strings are not supported".to_string());
            }
            close + 2
        } else {
            rest.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(rest.len())
        };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    Ok(tokens)
}

fn wide(token: &str) -> Result<i128, String> {
    let (negative, digits) = token.strip_prefix('-').map_or((false, token), |d| (true, d));
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse::<u64>(),
    };
    let value = i128::from(value.map_err(|_| format!("'{token}' is not an integer"))?);
    Ok(if negative { -value } else { value })
}

fn integer(token: &str) -> Result<u32, String> {
    let value = wide(token)?;
    u32::try_from(value)
        .or_else(|_| i32::try_from(value).map(|v| v as u32))
        .map_err(|_| format!("{token} needs 64 bits"))
}

/// The words of a numeric literal, low word first; narrow integers are sign-extended if their type is signed.
fn literal(token: &str, number: Number) -> Result<Vec<u32>, String> {
    match number {
        Number::Int { bits, signed } => {
            let value = wide(token)?;
            let hex = token.starts_with("0x") || token.starts_with("0X");
            let unsigned_fits = (0..1i128 << bits).contains(&value) && (!signed || hex || value < 1 << (bits - 1));
            let signed_fits = signed && (-(1i128 << (bits - 1))..0).contains(&value);
            if !unsigned_fits && !signed_fits {
                let sign = if signed { "signed" } else { "unsigned" };
                return Err(format!("{token} does not fit a {sign} integer of {bits} bits"));
            }
            let extended = match (signed, bits < 64) {
                (true, true) => (value << (128 - bits)) >> (128 - bits),
                _ => value,
            };
            let low = extended as u32;
            Ok(if bits > 32 { vec![low, (extended >> 32) as u32] } else { vec![low] })
        }
        Number::Float { bits: 16 } => Ok(vec![half_bits(float::<f32>(token)?, token)?]),
        Number::Float { bits: 32 } => Ok(vec![float::<f32>(token)?.to_bits()]),
        Number::Float { bits: 64 } => {
            let value = float::<f64>(token)?.to_bits();
            Ok(vec![value as u32, (value >> 32) as u32])
        }
        Number::Float { bits } => Err(format!("literals of {bits}-bit floats are not supported")),
    }
}

/// A decimal number that is finite in its type; `inf` and `nan` are not literals in SPIR-V text.
fn float<T: FromStr + Copy + Into<f64>>(token: &str) -> Result<T, String> {
    let shape = token.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    let value = token.parse::<T>().ok().filter(|v| shape && (*v).into().is_finite());
    value.ok_or_else(|| format!("'{token}' is not a finite decimal number"))
}

/// Bits of a normal binary16 number or zero. Refuses what would need rounding, where assemblers differ.
fn half_bits(value: f32, token: &str) -> Result<u32, String> {
    let bits = value.to_bits();
    let (sign, exponent, fraction) = (bits >> 31, (bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    if value == 0.0 {
        return Ok(sign << 15);
    }
    if !(-14..=15).contains(&exponent) || fraction & 0x1fff != 0 {
        return Err(format!("{token} is not exact in a 16-bit float: take an f32 constant and OpFConvert"));
    }
    Ok(sign << 15 | ((exponent + 15) as u32) << 10 | fraction >> 13)
}

/// `MakePointerVisible` as rspirv names the bit: `MAKE_POINTER_VISIBLE`.
fn constant_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let after_word = i > 0 && (chars[i - 1].is_lowercase() || chars[i - 1].is_ascii_digit());
        let before_word = chars.get(i + 1).is_some_and(|n| n.is_lowercase());
        if i > 0 && c.is_uppercase() && (after_word || before_word) {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// The word of an enumerant or mask, and the operands that its presence adds to the instruction.
fn enumerant(kind: OperandKind, token: &str) -> Result<(u32, Vec<LogicalOperand>), String> {
    let unknown = || format!("'{token}' is not a {kind:?}");
    macro_rules! value {
        ($name:ident) => {{
            let value = spirv::$name::from_str(token).map_err(|()| unknown())?;
            Ok((value as u32, Operand::$name(value).additional_operands()))
        }};
    }
    macro_rules! mask {
        ($name:ident) => {{
            let mut all = spirv::$name::empty();
            for part in token.split('|').filter(|&p| p != "None") {
                all |= spirv::$name::from_name(&constant_case(part)).ok_or_else(unknown)?;
            }
            // Parameters follow in the order of the bits, lowest first.
            let parameters = all.iter().flat_map(|bit| Operand::$name(bit).additional_operands()).collect();
            Ok((all.bits(), parameters))
        }};
    }
    match kind {
        OperandKind::Capability => value!(Capability),
        OperandKind::AddressingModel => value!(AddressingModel),
        OperandKind::MemoryModel => value!(MemoryModel),
        OperandKind::ExecutionModel => value!(ExecutionModel),
        OperandKind::ExecutionMode => value!(ExecutionMode),
        OperandKind::StorageClass => value!(StorageClass),
        OperandKind::Decoration => value!(Decoration),
        OperandKind::BuiltIn => value!(BuiltIn),
        OperandKind::Scope => value!(Scope),
        OperandKind::GroupOperation => value!(GroupOperation),
        OperandKind::SourceLanguage => value!(SourceLanguage),
        OperandKind::FPRoundingMode => value!(FPRoundingMode),
        OperandKind::FPEncoding => value!(FPEncoding),
        OperandKind::PackedVectorFormat => value!(PackedVectorFormat),
        OperandKind::FPFastMathMode => mask!(FPFastMathMode),
        OperandKind::MemoryAccess => mask!(MemoryAccess),
        OperandKind::LoopControl => mask!(LoopControl),
        OperandKind::SelectionControl => mask!(SelectionControl),
        OperandKind::FunctionControl => mask!(FunctionControl),
        OperandKind::CooperativeMatrixOperands => mask!(CooperativeMatrixOperands),
        OperandKind::TensorAddressingOperands => mask!(TensorAddressingOperands),
        _ => Err(format!("operands of kind {kind:?} are not supported")),
    }
}
