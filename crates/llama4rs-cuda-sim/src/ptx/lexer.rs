//! PTX text as tokens that know their line.

use super::PtxError;

/// One token. Opcodes with their modifiers, registers, labels and numbers are
/// words: `ld.global.L1::no_allocate.v4.u32` is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A name, directive, opcode or number.
    Word(&'a str),
    /// The inside of a quoted string, escapes untouched.
    Text(&'a str),
    /// One character of punctuation.
    Mark(u8),
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// The tokens of `source` and the line of each, counted from 1.
pub fn tokens(source: &str) -> Result<Vec<(Token<'_>, u32)>, PtxError> {
    let bytes = source.as_bytes();
    let (mut out, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            c if c.is_ascii_whitespace() => at += 1,
            _ if rest.starts_with(b"//") => {
                at += rest.iter().position(|&c| c == b'\n').unwrap_or(rest.len());
            }
            _ if rest.starts_with(b"/*") => {
                let end = source[at..]
                    .find("*/")
                    .ok_or_else(|| PtxError::new(line, "a comment is never closed".to_string()))?;
                line += source[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = rest[1..]
                    .iter()
                    .position(|&c| c == b'"')
                    .ok_or_else(|| PtxError::new(line, "a string is never closed".to_string()))?;
                out.push((Token::Text(&source[at + 1..at + 1 + end]), line));
                at += end + 2;
            }
            c if in_word(c) => {
                let length = word_length(rest);
                out.push((Token::Word(&source[at..at + length]), line));
                at += length;
            }
            c if c.is_ascii_punctuation() => {
                out.push((Token::Mark(c), line));
                at += 1;
            }
            c => return Err(PtxError::new(line, format!("unexpected byte {c:#04x}"))),
        }
    }
    Ok(out)
}

/// A word goes on over `::` (cache modifiers), but not over a label's colon.
fn word_length(rest: &[u8]) -> usize {
    let mut n = 0;
    loop {
        if n < rest.len() && in_word(rest[n]) {
            n += 1;
        } else if rest[n..].starts_with(b"::") && rest.get(n + 2).is_some_and(|&c| in_word(c)) {
            n += 2;
        } else {
            return n;
        }
    }
}
