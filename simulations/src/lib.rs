//! Deterministic networks in virtual time.
//!
//! Everything drawn comes from a seed, so a run can be had again; a checker that finds a rule of SPEC broken names the
//! seed and the command that replays it. [`reach`] puts thousands of directories behind a model of gossip and gives
//! figures; [`world`] runs whole engines under faults and checks rules at every step.
//!
//! Not here: libp2p, QUIC and real clocks. What the model leaves out is compared with real swarms in
//! `tests/calibration.rs`.

pub mod check;
pub mod figure;
pub mod gossip;
pub mod latency;
pub mod people;
pub mod queue;
pub mod random;
pub mod reach;
pub mod scenario;
pub mod world;
