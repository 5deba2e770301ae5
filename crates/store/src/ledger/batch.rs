//! A batch: puts and deletes in any tables, applied together or not at all.

use super::writer::CommitError;
use super::{BATCH_BYTES_MAX, KEY_BYTES_MAX};
use crate::table::{Codec, Key, Table, key_bytes};

/// Changes to be made together. Later ones win over earlier ones of the same row.
///
/// A change that cannot be made (a value without encoding, a key too long) is remembered, and the commit refused.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) bytes: usize,
    refused: Option<CommitError>,
}

#[derive(Debug)]
pub(super) struct Change {
    pub table: &'static str,
    pub key: Vec<u8>,
    /// The new value; none deletes the row.
    pub value: Option<Vec<u8>>,
}

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refused.is_none()
    }

    /// Bytes of keys and values so far; at most [`BATCH_BYTES_MAX`] are committed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes a row, in place of the one with that key if there is one.
    pub fn put<K, V, C>(&mut self, table: Table<K, V, C>, key: &K, value: &V) -> &mut Self
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        let mut bytes = Vec::new();
        match C::encode(value, &mut bytes) {
            Ok(()) => self.push(table.name(), key_bytes(key), Some(bytes)),
            Err(source) => self.refuse(CommitError::Encode { table: table.name(), source }),
        }
        self
    }

    /// Removes a row, if there is one.
    pub fn delete<K, V, C>(&mut self, table: Table<K, V, C>, key: &K) -> &mut Self
    where
        K: Key + ?Sized,
        V: ?Sized,
    {
        self.push(table.name(), key_bytes(key), None);
        self
    }

    fn push(&mut self, table: &'static str, key: Vec<u8>, value: Option<Vec<u8>>) {
        if key.len() > KEY_BYTES_MAX {
            return self.refuse(CommitError::KeyTooLong { table, bytes: key.len() });
        }
        self.bytes = self.bytes.saturating_add(key.len()).saturating_add(value.as_ref().map_or(0, Vec::len));
        if self.bytes > BATCH_BYTES_MAX {
            return self.refuse(CommitError::TooLarge { bytes: self.bytes });
        }
        self.changes.push(Change { table, key, value });
    }

    fn refuse(&mut self, error: CommitError) {
        self.refused.get_or_insert(error);
    }

    /// The first change that cannot be made, if there is one.
    pub(super) fn take_refusal(&mut self) -> Option<CommitError> {
        self.refused.take()
    }
}
