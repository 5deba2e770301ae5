//! Storage of a node: one data folder, and in it a ledger and an index.
//!
//! # Idea
//! Two halves, told apart by one question: can it be rebuilt?
//!
//! - [`Ledger`] holds what cannot: key events, acts, counters, the audit log. It is redb with one `fdatasync` for
//!   each group of commits; a batch is acknowledged when it is durable and never before.
//! - [`Index`] holds what peers or the ledger can supply again: others' records, addresses, caches. It is sled with
//!   a small cache; a damaged index is set aside and started empty, and deleting it loses nothing.
//!
//! Both speak of rows through the same [`Table`] constants, and both live in a [`Folder`], which is private to its
//! owner and locked for as long as it is open. [`fsck`] examines a folder without changing a byte of it.
//!
//! # Order of opening
//! [`Folder::open`], then [`Ledger::open`], then [`Index::open`]: the ledger holds the schema version and refuses a
//! folder of a newer version before anything is written.
//!
//! # Sources
//! Design section 9. Rebello et al., "Can Applications Recover from fsync Failures?" (ATC 2020): why the ledger
//! drops the page cache and reopens after a failed sync instead of trying again. FoundationDB's tuple layer: the
//! order-preserving keys.
//!
//! # Non-goals
//! No queries beyond key ranges, no transactions that read before they write (one owner decides, then commits), no
//! sharing of a folder between processes, no encryption, no codec of its own, no runtime.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod fault;
mod folder;
mod fsck;
mod index;
mod ledger;
mod table;

pub use fault::Fault;
pub use folder::{FileError, Folder, FolderError};
pub use fsck::{Finding, Report, Severity, TableCheck, fsck};
pub use index::{INDEX_CACHE_BYTES, Index, IndexError, IndexOpenError, IndexRows, Origin, SET_ASIDE_MAX};
pub use ledger::{
    BATCH_BYTES_MAX, Batch, CommitError, Durable, Health, KEY_BYTES_MAX, LEDGER_CACHE_BYTES, Ledger,
    Migrating, Migration, MigrationError, OpenError, QUEUE_BATCHES_MAX, QUEUE_BYTES_MAX, ReadError, Rows,
    Schema, Snapshot,
};
pub use table::{Codec, Key, Malformed, Plain, Table};

/// Space left free on the file system of a data folder, in bytes. A write that would go below it is refused, so
/// that a full disk is met with an error before the write and not in the middle of one.
pub const FREE_RESERVE_BYTES: u64 = 32 * 1024 * 1024;
