//! Who is a member of a federation, and why everybody can know it.
//!
//! A federation begins with a [`genesis`]; its id is the hash of those bytes. From there on stewards write signed
//! [`act`]s (admit, suspend, expel …), each naming the acts its author knew. The [`acts`] form a graph, and the
//! [`roster`] is a pure function of the *set* of acts: whoever holds the same acts holds the same roster, in whatever
//! order they arrived, without asking anybody.
//!
//! Sources: the idea of judging an act by its causal past and of letting a removal win over what the removed one did
//! at the same time follows `local-first-web/auth` ("strong removal", seniority breaks ties) and Kleppmann et al.,
//! "Making CRDTs Byzantine fault tolerant" (2022); first-seen for forked key logs follows KERI.
//!
//! Not here: votes, proposals, Raft (the constitution in the genesis already says how they will run), and anything
//! that does IO. Time is told, randomness is handed in.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod act;
pub mod acts;
pub mod code;
pub mod genesis;
pub mod invite;
pub mod join;
pub mod roster;
pub mod secret;
