//! KLP, the Kind Link Protocol, without IO: bytes in, bytes and messages out.
//!
//! One session for each pair of nodes, one stream for each exchange, every service an intent. `SPEC.md` beside this crate
//! says it in full, so that others can implement it; `klp.cddl` states the messages and `vectors/` the exact bytes.
//!
//! Reading order: [`cbor`] (one encoding for one value), [`id`] and [`key`], [`object`] (what is signed), [`key_log`]
//! (who a member is), [`preamble`], [`hello`] and [`session`] (how two nodes come to share keys), [`message`] (what they
//! say), [`outcomes`] (what may run only once), [`carry`] (how a third moves it), [`limits`].
//!
//! Sources: the Noise Protocol Framework, revision 34; COSE (RFC 9052); DAG-CBOR; KERI's pre-rotation; RFC 6479.
//!
//! Not here: sockets, clocks, files, randomness of its own (`clippy.toml` refuses them), who is a member of what, and
//! which requests are allowed.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod carry;
pub mod cbor;
pub mod hello;
pub mod id;
pub mod key;
pub mod key_log;
pub mod limits;
pub mod message;
pub mod noise;
pub mod object;
pub mod outcomes;
pub mod preamble;
pub mod replay;
pub mod session;
pub mod text;
pub mod time;
pub mod trace;
