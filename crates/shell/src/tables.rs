//! What lies in a data folder, table by table. The schema version is that of all of them.

use kos_store::{Migration, Schema, Table};

/// Ledger. Our own key events, by number.
pub const KEY_EVENTS: Table<u64, [u8]> = Table::new("key_events");
/// Ledger. Single values: `name`, `port`, `default_federation`, `agents`, `settings` (as last noted in the audit log).
pub const SETTINGS: Table<str, [u8]> = Table::new("settings");
/// Ledger. Numbers that never go back: [`HANDSHAKES`], [`RECORDS`].
pub const COUNTERS: Table<str, u64> = Table::new("counters");
/// In [`COUNTERS`]: up to where counters of handshakes are reserved.
pub(crate) const HANDSHAKES: &str = "handshakes";
/// In [`COUNTERS`]: the greatest number any record of this node had.
pub(crate) const RECORDS: &str = "records";
/// Ledger. The genesis of each federation we are in.
pub const FEDERATIONS: Table<[u8; 32], [u8]> = Table::new("federations");
/// Ledger. What a federation wants kept and peers may not have: acts, key logs, the discovery secret.
pub const LEDGER_ITEMS: Table<([u8; 32], Vec<u8>), [u8]> = Table::new("items");
/// Ledger. The signed invitations we gave; their codes are not kept.
pub const INVITES: Table<([u8; 32], [u8; 32]), [u8]> = Table::new("invites");
/// Ledger. The seed of each agent's own key, by the hash of its id.
pub const AGENT_KEYS: Table<[u8; 32], [u8; 32]> = Table::new("agent_keys");
/// Ledger. The greatest handshake counter of each peer.
pub const PEER_COUNTERS: Table<([u8; 32], [u8; 32]), u64> = Table::new("peer_counters");
/// Ledger. The outcome of requests with an idempotency key: by caller, then hash of intent and key.
pub const OUTCOMES: Table<([u8; 32], [u8; 32]), [u8]> = Table::new("outcomes");
/// Ledger. The audit log, by number.
pub const AUDIT: Table<u64, [u8]> = Table::new("audit");

/// Ledger. Where the nodes that lead to all others are: relays, and the steward that admitted us, by key; addresses as
/// a list of text. A node that lost its index would find nobody to fill it again without them.
pub const WAYS: Table<[u8; 32], [u8]> = Table::new("ways");

/// Index. What a federation wants kept and peers can give again: records.
pub const INDEX_ITEMS: Table<([u8; 32], Vec<u8>), [u8]> = Table::new("items");
/// Index. The address book, as JSON.
pub const ADDRESS_BOOK: Table<str, [u8]> = Table::new("address_book");

/// The version of the index's tables.
pub const INDEX_VERSION: u32 = 2;

/// What leads from each version of the ledger to the next.
const MIGRATIONS: &[Migration] = &[Migration {
    // There is nothing to change. The number keeps out programs that would run again what is recorded there.
    what: "requests with an idempotency key leave their outcome",
    run: |_| Ok(()),
}];

/// The ledger's schema.
pub fn schema() -> Schema {
    Schema { migrations: MIGRATIONS }
}
