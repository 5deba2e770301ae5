//! One federation as one node sees it.
//!
//! [`Federation`] takes what happened (an item heard, an act signed, a deadline reached) and gives orders to the shell
//! ([`Output`]): persist this, broadcast that, draw a new secret, close sessions because the roster changed. It
//! carries news between governance and directory and has no rule of its own beyond who does which duty when.
//!
//! What spreads is an [`Item`]: an act, a key log, a record, or something a later version knows. Catch-up compares
//! [`Federation::inventory`]s and sends what is [`Federation::missing`].
//!
//! Not here: clocks, randomness, keys. Drafts are signed by the shell.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod federation;
pub mod item;

pub use federation::{
    Federation, Output, PublishError, Refusal, RosterChange, Stamp, Stats, Table, Verdict, WelcomeError,
    check_row,
};
pub use item::{Item, ItemError};
