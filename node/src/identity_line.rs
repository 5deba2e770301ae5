//! The identity line: a member's key log as text, `kai:id/…`. Not secret; with the recovery words it is all that a new
//! machine needs to be the member.

use kos_protocol::{cbor, id::sha256, key_log::KeyLog};
use serde_bytes::ByteBuf;

const PREFIX: &str = "kai:id/";
/// Longest line.
const CHARS_MAX: usize = 512 * 1024;
const CHECKSUM_BYTES: usize = 4;

/// The line of a key log.
pub fn write(log: &[ByteBuf]) -> String {
    let mut bytes = cbor::encode(log);
    let sum = sha256(&bytes);
    bytes.extend_from_slice(&sum[..CHECKSUM_BYTES]);
    format!("{PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
}

/// Reads a line back.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse(line: &str) -> Result<KeyLog, String> {
    let text: String = line.chars().filter(|c| !c.is_whitespace()).take(CHARS_MAX).collect();
    let code = text.to_ascii_lowercase();
    let code = code.strip_prefix(PREFIX).ok_or_else(|| format!("an identity line begins with `{PREFIX}`"))?;
    let bytes = data_encoding::BASE32_NOPAD
        .decode(code.to_ascii_uppercase().as_bytes())
        .map_err(|_| "the line is mistyped or incomplete".to_owned())?;
    let (events, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or("the line is incomplete")?;
    if sha256(events)[..CHECKSUM_BYTES] != *sum {
        return Err("the line is mistyped or incomplete: its checksum does not fit".to_owned());
    }
    let list: Vec<ByteBuf> = cbor::decode_message(events, CHARS_MAX).map_err(|error| error.to_string())?;
    KeyLog::parse(&list).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_protocol::key::SecretKey;

    #[test]
    fn a_line_reads_back_and_a_typo_does_not() {
        let key = |n| SecretKey::from_seed(&[n; 32]);
        let log = KeyLog::incept(&key(1), &key(2).public());
        let line = write(&log.to_list());
        assert_eq!(parse(&line), Ok(log.clone()));
        assert_eq!(parse(&line.to_uppercase()), Ok(log));
        assert!(parse(&line[..line.len() - 2]).is_err());
        assert!(parse("kai:join/abc").is_err());
    }
}
