//! The kOS node: the daemon, its local API and the `kai` command.
//!
//! `kai up` is the daemon: [`daemon`] puts the shared runtime, the agents and the local API together. Every other
//! command is a client of that API over a socket in the data folder; what it prints is a pure function of the answer.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agents;
pub mod api;
pub mod audit;
pub mod bench;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod errors;
pub mod forward;
pub mod identity_line;
pub mod local;
pub mod log;
pub mod metrics;
pub mod os;
pub mod pipe;
pub mod text;

pub use cli::main;
