//! Agents, without IO: what there is ([`manifest`], [`registry`]), how it is kept running ([`supervisor`]), and what an
//! HTTP call may look like on either side of a bridge ([`http`], [`origin`]).
//!
//! Nothing here opens a socket, reads a clock or resolves a name: the node does, tells what it found, and does what it
//! is told. A bridge is a hole in a firewall by design, so every rule about what passes through it is a pure
//! function of bytes, with a test for each clause; the node adds no rule of its own.
//!
//! Non-goals: TLS towards origins (an origin is on this machine or on the LAN beside it), rewriting of bodies,
//! cookies that know their port (browsers share them between ports of one host, here as everywhere).
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod http;
pub mod manifest;
pub mod origin;
pub mod registry;
pub mod supervisor;
