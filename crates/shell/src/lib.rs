//! What both binaries share: identity, storage, federations and the mesh put together.
//!
//! [`Runtime`] is the IO shell around the engine's [`kos_engine::Federation`]: it moves bytes between cores, mesh and
//! store, and answers the `kos.*` intents that keep a federation together. What an application does with its members
//! (agents, calls, a command line) comes through [`App`]. It decides nothing: who is a member, which record wins and
//! who has to draw a secret are answers of the cores.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod identity;
pub mod intents;
pub mod metrics;
pub mod tables;

mod alive;
mod app;
mod bulk;
mod carry_out;
mod deflate;
mod find;
mod join;
mod keep;
mod key_files;
mod measure;
mod nat;
mod once;
mod options;
mod publish;
mod query;
mod restore;
mod runtime;
mod serve;
mod services;
mod state;
mod sync;
mod views;
mod wire;

pub use app::{Answering, App, AuditEvent, Change, NoApp};
pub use carry_out::{ActFailed, check_item};
pub use identity::IdentityError;
pub use join::{
    InviteFailed, InviteOptions, InviteSummary, Issued, JoinFailed, JoinPreview, Joined, LeaveFailed,
    MemberFailed, RelayFailed,
};
pub use key_files::{Secrets, SecretsError};
pub use kos_mesh::Documentation;
pub use measure::{Extra, Knowledge};
pub use options::{NodeRole, Options};
pub use publish::{AgentOffer, PublishFailed, Receipts};
pub use query::{AuthorStats, DirectoryStats, Found, Hit, RecordError, Shown};
pub use runtime::{Runtime, StartError, restore_member as restore};
pub use services::{Failed, NoRoute, PassedOver, ServiceRoute, Wanted};
pub use views::{
    AgentInfo, FederationInfo, LinkInfo, Me, MemberInfo, PathTried, PingFailed, PingReport, RelayInfo,
    ResolveError, Status, Target,
};
