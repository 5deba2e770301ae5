//! What spreads through a federation.

mod pack;

pub(crate) use pack::name_of_key_log;
pub use pack::{Packed, Piece, pack, unpack};

use kos_protocol::{
    cbor::{self, DecodeError},
    key_log::KeyLog,
    limits::ITEM_BYTES_MAX,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The kind of items that are acts.
pub const ACT: &str = "act";
/// The kind of items that are key logs.
pub const KEY_LOG: &str = "key-log";
/// How the kinds of all directory records end.
pub const RECORD_SUFFIX: &str = "-record";
/// Longest name of a kind.
pub const KIND_BYTES_MAX: usize = 32;

/// A piece of shared state, not judged yet. On the wire a map `{body, kind}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// [`ACT`], [`KEY_LOG`], a kind of record (`node-record`), or a word of a later version.
    pub kind: String,
    /// An envelope; for a key log the list of its envelopes, encoded.
    pub body: ByteBuf,
}

/// Why bytes are no item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// Not an item at all, or too long.
    #[error("not an item: {0}")]
    Decode(#[from] DecodeError),
    /// A kind that is no word.
    #[error("the kind of an item is 1 to {KIND_BYTES_MAX} lower case letters and `-`")]
    Kind,
}

impl Item {
    /// An item of any kind.
    pub fn new(kind: &str, body: &[u8]) -> Self {
        Self { kind: kind.to_owned(), body: ByteBuf::from(body) }
    }

    /// An item that carries a key log.
    pub fn key_log(log: &KeyLog) -> Self {
        Self::new(KEY_LOG, &cbor::encode(&log.to_list()))
    }

    /// The key log it carries, verified; none where it carries something else.
    pub fn as_key_log(&self) -> Option<KeyLog> {
        let list: Vec<ByteBuf> = cbor::decode_canonical(&self.body, ITEM_BYTES_MAX).ok()?;
        (self.kind == KEY_LOG).then(|| KeyLog::parse(&list).ok()).flatten()
    }

    /// The bytes that travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads an item of at most `ITEM_BYTES_MAX`.
    ///
    /// # Errors
    /// [`ItemError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ItemError> {
        let item: Self = cbor::decode_canonical(bytes, ITEM_BYTES_MAX)?;
        let is_word = item.kind.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
        if (1..=KIND_BYTES_MAX).contains(&item.kind.len()) && is_word {
            Ok(item)
        } else {
            Err(ItemError::Kind)
        }
    }

    /// Whether it is a record, of a known kind or not.
    pub fn is_record(&self) -> bool {
        is_record(&self.kind)
    }
}

/// Whether items of this kind are records, of a known kind or not.
pub fn is_record(kind: &str) -> bool {
    kind.ends_with(RECORD_SUFFIX)
}
