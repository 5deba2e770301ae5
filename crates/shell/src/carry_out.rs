//! Carrying out what a federation orders.

use crate::{
    app::{AuditEvent, Change},
    identity::random,
    intents::TOPIC,
    keep::Row,
    runtime::{Runtime, is_rebuildable},
    state::lock,
    tables::INDEX_ITEMS,
    wire::peer_of,
};
use kos_directory::Kind;
use kos_engine::{Input, Output, RosterChange, Table};
use kos_governance::{
    act::{Action, Role},
    secret::day_of,
};
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
    object::{Scope, Signed},
};
use kos_store::CommitError;
use std::{collections::BTreeSet, iter};

const TABLES: [Table; 6] =
    [Table::Genesis, Table::Acts, Table::KeyLogs, Table::Secret, Table::Records, Table::Unknown];

/// Rows of one table lie together, in the order in which they are restored.
pub(crate) fn row_key(table: Table, key: &[u8]) -> Vec<u8> {
    let number = TABLES.iter().position(|other| *other == table).unwrap_or_default() as u8;
    [&[number], key].concat()
}

/// The table a row belongs to.
pub(crate) fn table_of(key: &[u8]) -> Option<Table> {
    TABLES.get(usize::from(*key.first()?)).copied()
}

/// What a row of [`crate::tables::LEDGER_ITEMS`] must be.
///
/// # Errors
/// What is wrong with it.
pub fn check_item(federation: [u8; 32], key: &[u8], bytes: &[u8]) -> Result<(), String> {
    let table = table_of(key).ok_or("a row of no table")?;
    kos_engine::check_row(FederationId::from_bytes(federation), table, bytes)
}

impl Runtime {
    /// Carries out what the federation has ordered, and waits until what it wanted kept is durable.
    pub(crate) async fn settle(&self, id: &FederationId) -> Result<(), CommitError> {
        self.carry_out(id);
        self.0.keeper.settle().await
    }

    /// Carries out what the federation has ordered. What it wants kept is on its way into the ledger when this
    /// returns; [`Runtime::settle`] is for those who must wait for it.
    pub(crate) fn carry_out(&self, id: &FederationId) {
        // One task at a time, or two could hand on the orders of one federation in another order than its own.
        let _turn = lock(&self.0.carrying);
        loop {
            let outputs = self
                .0
                .state
                .with(id, |federation| iter::from_fn(|| federation.poll_output()).collect::<Vec<_>>());
            let outputs = outputs.unwrap_or_default();
            if outputs.is_empty() {
                break;
            }
            self.carry_out_all(id, outputs);
        }
        // Something may be wanted sooner now.
        self.0.deadline.notify_one();
    }

    fn carry_out_all(&self, id: &FederationId, outputs: impl IntoIterator<Item = Output>) {
        // Of what peers can give again, many rows come at once. Nothing else waits for them.
        let mut rebuildable = Vec::new();
        let mut directory_changed = false;
        for output in outputs {
            match output {
                Output::Persist { table, key, bytes } if is_rebuildable(table) => {
                    rebuildable.push(((*id.as_bytes(), row_key(table, &key)), Some(bytes)));
                }
                Output::Forget { table, key } if is_rebuildable(table) => {
                    rebuildable.push(((*id.as_bytes(), row_key(table, &key)), None));
                }
                Output::Persist { table, key, bytes } => self.keep(id, table, &key, Some(bytes)),
                Output::Forget { table, key } => self.keep(id, table, &key, None),
                Output::Broadcast(bytes) => self.broadcast(id, bytes),
                Output::RosterChanged(change) => self.roster_changed(id, &change),
                Output::DirectoryChanged(slots) => {
                    for slot in slots.iter().filter(|slot| slot.kind == Kind::Node) {
                        self.addresses_changed(id, &slot.author);
                    }
                    directory_changed = true;
                }
                Output::SecretChanged => {
                    let (runtime, id) = (self.clone(), *id);
                    tokio::spawn(async move {
                        runtime.subscribe(&id).await;
                        runtime.name_ourselves().await;
                        runtime.push_to_all(&id, Vec::new()).await;
                    });
                }
                Output::DrawSecret => self.draw_secret(id),
                Output::RecordRotation(action) => {
                    if let Err(error) = self.act(id, &action) {
                        tracing::warn!(%error, "a key rotation was not recorded");
                    }
                }
                Output::Heartbeat(to) => self.send_heartbeat(id, &to),
                Output::Release(to) => self.release_watcher(id, &to),
                Output::Probe(member) => self.probe(id, member),
                Output::Suspect { subject, subject_seq, since_ms } => {
                    self.publish_suspicion(id, subject, subject_seq, since_ms);
                }
                Output::Refute => {
                    lock(&self.0.published).remove(id);
                    self.0.republish.notify_one();
                }
                Output::HealthChanged(_) => {
                    self.0.changes.send_modify(|count| *count += 1);
                    self.0.app.changed(Change::Members);
                }
                Output::SeenMyself(slot) => {
                    tracing::error!(?slot, "another machine publishes with the keys of this node");
                    self.0.app.changed(Change::Twin);
                }
            }
        }
        if !rebuildable.is_empty()
            && let Err(error) = self.0.state.index.apply(INDEX_ITEMS, &rebuildable)
        {
            tracing::debug!(%error, "records were not kept");
        }
        if directory_changed {
            self.0.changes.send_modify(|count| *count += 1);
            self.0.app.changed(Change::Directory);
        }
    }

    fn keep(&self, id: &FederationId, table: Table, key: &[u8], bytes: Option<Vec<u8>>) {
        let row = match table {
            Table::Genesis => Row::Genesis(*id),
            _ => Row::Item(*id, row_key(table, key)),
        };
        self.0.keeper.put([(row, bytes)]);
    }

    pub(crate) fn broadcast(&self, id: &FederationId, bytes: Vec<u8>) {
        let (runtime, id) = (self.clone(), *id);
        tokio::spawn(async move {
            let Some(topic) = runtime.topics_now(&id).into_iter().next() else { return };
            if let Err(error) = runtime.0.mesh.publish(topic, bytes).await {
                // Whoever links with us later catches up.
                tracing::trace!(%error, "not gossiped");
            }
        });
    }

    /// The topic of today, then those of the day that is just over or about to begin.
    fn topics_now(&self, id: &FederationId) -> Vec<String> {
        const HOUR_MS: u64 = 60 * 60 * 1000;
        let wall_ms = self.0.state.now().wall_ms;
        let derive = |federation: &mut kos_engine::Federation| {
            let secret = federation.secret()?;
            let days = [wall_ms, wall_ms.saturating_sub(HOUR_MS), wall_ms + HOUR_MS].map(day_of);
            let mut topics: Vec<String> = days.iter().map(|day| secret.derive(TOPIC, *day)).collect();
            topics.dedup();
            Some(topics)
        };
        self.0.state.with(id, derive).flatten().unwrap_or_default()
    }

    /// Listens to the topics of now, and to no others.
    pub(crate) async fn subscribe(&self, id: &FederationId) {
        let wanted: BTreeSet<String> = self.topics_now(id).into_iter().collect();
        let old: Vec<String> = {
            let mut topics = lock(&self.0.topics);
            let old = topics.iter().filter(|(topic, of)| *of == id && !wanted.contains(*topic));
            let old: Vec<String> = old.map(|(topic, _)| topic.clone()).collect();
            topics.retain(|topic, _| !old.contains(topic));
            topics.extend(wanted.iter().map(|topic| (topic.clone(), *id)));
            old
        };
        for topic in old {
            self.0.mesh.unsubscribe(topic).await;
        }
        for topic in wanted {
            self.0.mesh.subscribe(topic).await;
        }
    }

    fn roster_changed(&self, id: &FederationId, change: &RosterChange) {
        let own = self.0.state.identity().member();
        let gone: Vec<MemberId> = change.removed.iter().chain(&change.suspended).copied().collect();
        for member in &gone {
            self.0.carrier.close(id, member);
            self.close_keys(id, member, Keys::All);
            self.0.app.audit(AuditEvent::Removed { federation: *id, member: *member });
        }
        for member in &change.rotated {
            self.follow_key(id, member);
            self.close_keys(id, member, Keys::Replaced);
            self.0.app.audit(AuditEvent::Rotated { federation: *id, member: *member });
        }
        for member in &change.admitted {
            self.0.app.audit(AuditEvent::Admitted { federation: *id, member: *member });
        }
        if gone.contains(&own) {
            self.0.app.changed(Change::Removed(*id));
        }
        self.0.changes.send_modify(|count| *count += 1);
        self.0.app.changed(Change::Members);
        self.tell_links(id);
        let runtime = self.clone();
        tokio::spawn(async move { runtime.refresh_members().await });
    }

    /// Ends the sessions of keys that open nothing any more.
    fn close_keys(&self, id: &FederationId, member: &MemberId, which: Keys) {
        let keys: Vec<PublicKey> = self
            .0
            .state
            .with(id, |federation| {
                let log = federation.acts().key_log(member)?;
                let last = log.seq();
                let end = if which == Keys::All { last + 1 } else { last };
                Some((0..end).filter_map(|seq| log.key_at(seq)).collect())
            })
            .flatten()
            .unwrap_or_default();
        for key in keys {
            self.0.links.close_in(&kos_mesh::link::To { federation: *id, key });
        }
    }

    /// A member with a new key is, at first, where it was with the old one; the record that says so went with that key.
    fn follow_key(&self, id: &FederationId, member: &MemberId) {
        let keys = self.0.state.with(id, |federation| {
            let log = federation.acts().key_log(member)?;
            Some((log.key_at(log.seq().checked_sub(1)?)?, log.current()))
        });
        let Some((old, new)) = keys.flatten() else { return };
        let known = lock(&self.0.wire.hints).remove(&old);
        if let Some(addresses) = &known {
            self.keep_way(new, addresses);
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            let Some(snapshot) = runtime.0.mesh.snapshot().await else { return };
            let mut addresses = known.unwrap_or_default();
            addresses.extend(snapshot.book.addresses(&peer_of(&old)));
            runtime.refresh_members().await;
            runtime.0.mesh.learn(peer_of(&new), addresses).await;
        });
    }

    fn addresses_changed(&self, id: &FederationId, author: &MemberId) {
        let found = self.0.state.with(id, |federation| {
            federation.roster().active_member(author).map(|member| (member.key(), member.role == Role::Relay))
        });
        let own = self.0.state.identity().key();
        let Some((key, is_relay)) = found.flatten().filter(|(key, _)| *key != own) else { return };
        let addresses = self.0.wire.addresses(&key);
        if is_relay {
            self.keep_way(key, &addresses);
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            runtime.0.mesh.learn(peer_of(&key), addresses).await;
            if is_relay {
                runtime.reserve_relays();
            }
        });
    }

    fn draw_secret(&self, id: &FederationId) {
        let Ok(random) = random() else { return };
        let identity = self.0.state.identity();
        let now = self.0.state.now();
        self.0.state.with(id, |federation| {
            let draft = federation.draft_secret(random);
            match Signed::sign(draft, Scope::Federation(*id), identity.secret()) {
                Ok(secret) => drop(federation.handle(now, Input::Secret(secret.bytes()))),
                Err(error) => tracing::warn!(%error, "no discovery secret"),
            }
        });
    }

    /// Whether an act of ours would be taken; does nothing.
    pub(crate) fn may_act(&self, id: &FederationId, action: &Action) -> Result<(), ActFailed> {
        let now = self.0.state.now();
        let drafted = self.0.state.with(id, |federation| federation.draft_act(now, action).map(drop));
        drafted.ok_or(ActFailed::NotInFederation)?.map_err(ActFailed::from)
    }

    /// Drafts an act of ours, signs it and takes it in; its effects follow with [`Runtime::carry_out`].
    pub(crate) fn act(&self, id: &FederationId, action: &Action) -> Result<Vec<u8>, ActFailed> {
        let identity = self.0.state.identity();
        let now = self.0.state.now();
        self.0
            .state
            .with(id, |federation| {
                let draft = federation.draft_act(now, action)?;
                let act = Signed::sign(draft, Scope::Federation(*id), identity.secret())?;
                federation.handle(now, Input::Acted(&act)).acted()?;
                Ok(kos_engine::Item::new(kos_engine::item::ACT, act.bytes()).to_bytes())
            })
            .ok_or(ActFailed::NotInFederation)?
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    All,
    Replaced,
}

/// Why an act of ours did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActFailed {
    /// The rules.
    #[error(transparent)]
    Act(#[from] kos_governance::acts::ActError),
    /// Too long.
    #[error(transparent)]
    Size(#[from] kos_protocol::cbor::DecodeError),
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
}
