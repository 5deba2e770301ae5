//! One federation as one node sees it: the cores behind one input, one output and one deadline.
//!
//! [`Federation`] takes what happened ([`Input`]: an item heard, an act signed, a deadline reached) and gives orders to
//! the shell ([`Output`]): persist this, broadcast that, draw a new secret, close sessions because the roster changed. It
//! carries news between governance and directory and has no rule of its own beyond who does which duty when. The node
//! and the simulations use it alike.
//!
//! What spreads is an [`Item`]: an act, a key log, a record, or something a later version knows. Catch-up reconciles
//! [`Federation::set`]s and fetches [`Federation::items`] by name.
//!
//! Not here: clocks, randomness, keys. Drafts are signed by the shell.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod federation;
pub mod input;
pub mod item;
pub mod output;

pub use federation::Federation;
pub use input::{Check, Checked, Input, Published, Screened, Stored};
pub use item::{Item, ItemError};
pub use output::{
    Output, PublishError, Refusal, RosterChange, Stamp, Stats, Table, Verdict, WelcomeError, check_row,
};
