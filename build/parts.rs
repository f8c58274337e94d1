//! Kernels that take the same steps share their text.

/// The text with every line `include NAME` replaced by `part(NAME)`. A part has no parts of its own.
pub fn expand(text: &str, part: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let mut whole = String::with_capacity(text.len());
    for (i, line) in text.lines().enumerate() {
        match line.strip_prefix("include ") {
            Some(name) => whole += &part(name.trim()).map_err(|what| format!("line {}: {what}", i + 1))?,
            None => whole += line,
        }
        whole.push('\n');
    }
    Ok(whole)
}
