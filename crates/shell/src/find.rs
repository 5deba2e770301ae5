//! Members found through the hash table: where a node names itself, and when it looks for others. Design section 5.
//!
//! The table is strangers' word. It only adds addresses of keys that the roster knows, and a connection proves the key.

use crate::{
    runtime::Runtime,
    state::{State, lock},
    wire::peer_of,
};
use futures::{StreamExt, future::Either, stream::FuturesUnordered};
use kos_governance::secret::day_of;
use kos_mesh::{
    Mesh, Multiaddr, PeerId,
    limits::{
        KAD_CALL_PAUSE, KAD_CALL_TIMEOUT, KAD_KEYS_OURS_MAX, KAD_SEARCH_MAX, KAD_SEARCH_MEMBERS_MAX,
        KAD_SEARCH_MIN,
    },
};
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The name under which members of a federation are found, whoever they are.
pub(crate) const MEMBERS: &str = "members";

/// The name under which one member is found.
pub(crate) fn name_of(member: &MemberId) -> String {
    format!("member/{member}")
}

/// Whom a search is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// Some members have no link.
    Some,
    /// No member has one.
    All,
}

/// When a lookup has found enough. The first answer may be a lie, so only somebody who waits is content with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enough {
    First,
    All,
}

/// Searches for members of one federation: when the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Search {
    lack: Lack,
    rounds: u32,
    next_ms: u64,
}

impl Search {
    fn new(lack: Lack, now_ms: u64) -> Self {
        Self { lack, rounds: 0, next_ms: now_ms + millis(KAD_SEARCH_MIN) }
    }

    /// What is lacked now; whether it is time to look. Losing the last link begins anew.
    fn is_due(&mut self, lack: Lack, now_ms: u64) -> bool {
        if lack == Lack::All && self.lack == Lack::Some {
            *self = Self::new(lack, now_ms);
        }
        self.lack = lack;
        if now_ms < self.next_ms {
            return false;
        }
        self.rounds = self.rounds.saturating_add(1);
        let wait = KAD_SEARCH_MIN.saturating_mul(1 << self.rounds.min(16)).min(KAD_SEARCH_MAX);
        self.next_ms = now_ms + millis(wait);
        true
    }
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}

/// Looks members up, paced.
pub(crate) struct Finder {
    mesh: Mesh,
    state: Arc<State>,
    /// Whether there is a table to ask.
    table: Table,
    searches: Mutex<BTreeMap<FederationId, Search>>,
    /// Keys of the table we are named under.
    named: Mutex<BTreeSet<Vec<u8>>>,
    /// When a call last had a member looked up. Members only, so it is as long as the rosters.
    called: Mutex<BTreeMap<PublicKey, u64>>,
}

/// Whether the node takes part in the hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    On,
    Off,
}

impl Finder {
    pub fn new(mesh: Mesh, state: Arc<State>, table: Table) -> Self {
        Self {
            mesh,
            state,
            table,
            searches: Mutex::default(),
            named: Mutex::default(),
            called: Mutex::default(),
        }
    }

    /// The keys of a name: of today, then of yesterday, whose names are still kept.
    fn keys(&self, federation: &FederationId, name: &str) -> Vec<Vec<u8>> {
        let today = day_of(self.state.now().wall_ms);
        let derive = |federation: &mut kos_engine::Federation| {
            let secret = federation.secret()?;
            let days = [today, today.saturating_sub(1)];
            Some(days.iter().map(|day| secret.derive(name, *day).into_bytes()).collect())
        };
        self.state.with(federation, derive).flatten().unwrap_or_default()
    }

    /// Has the mesh name us under the keys of today, and under no others.
    pub async fn name_ourselves(&self) {
        if self.table == Table::Off {
            return;
        }
        let own = self.state.identity().member();
        let is_active =
            |federation: &kos_engine::Federation| federation.roster().active_member(&own).is_some();
        let ids: Vec<_> = {
            let federations = self.state.federations();
            federations.iter().filter(|(_, federation)| is_active(federation)).map(|(id, _)| *id).collect()
        };
        let names = [MEMBERS.to_owned(), name_of(&own)];
        let keys =
            ids.iter().flat_map(|id| names.iter().filter_map(|name| self.keys(id, name).into_iter().next()));
        let wanted: BTreeSet<_> = keys.take(KAD_KEYS_OURS_MAX).collect();
        let old = std::mem::replace(&mut *lock(&self.named), wanted.clone());
        for key in old.difference(&wanted) {
            self.mesh.stop_providing(key.clone()).await;
        }
        for key in wanted {
            self.mesh.provide(key).await;
        }
    }

    /// The federation's members with whom there is no link.
    fn missing(&self, federation: &FederationId) -> (Vec<(MemberId, PublicKey)>, Lack) {
        let own = self.state.identity().member();
        let others: Vec<_> = self
            .state
            .with(federation, |federation| {
                let active = federation.roster().active().filter(|member| member.id != own);
                active.map(|member| (member.id, member.key())).collect()
            })
            .unwrap_or_default();
        let count = others.len();
        let is_missing = |(_, key): &(MemberId, PublicKey)| self.mesh.links_with(&peer_of(key)).is_empty();
        let missing: Vec<_> = others.into_iter().filter(is_missing).collect();
        let lack = if missing.len() == count { Lack::All } else { Lack::Some };
        (missing, lack)
    }

    /// Begins searches whose time has come.
    pub fn look_around(self: &Arc<Self>) {
        if self.table == Table::Off {
            return;
        }
        let now_ms = self.state.now().monotonic_ms;
        let ids: Vec<_> = self.state.federations().keys().copied().collect();
        lock(&self.searches).retain(|id, _| ids.contains(id));
        for id in ids {
            let (missing, lack) = self.missing(&id);
            if missing.is_empty() {
                lock(&self.searches).remove(&id);
                continue;
            }
            let turn = {
                let mut searches = lock(&self.searches);
                let search = searches.entry(id).or_insert_with(|| Search::new(lack, now_ms));
                search.is_due(lack, now_ms).then_some(search.rounds as usize)
            };
            if let Some(turn) = turn {
                let finder = self.clone();
                tokio::spawn(async move { finder.search(&id, missing, turn).await });
            }
        }
    }

    /// Looks for whoever is named under the federation's key, then for some of the missing by name.
    async fn search(&self, federation: &FederationId, missing: Vec<(MemberId, PublicKey)>, turn: usize) {
        let wanted: BTreeSet<PeerId> = missing.iter().map(|(_, key)| peer_of(key)).collect();
        let mut left = wanted.clone();
        for key in self.keys(federation, MEMBERS) {
            let mut found = self.mesh.find_providers(key).await;
            while let Some((peer, addresses)) = found.recv().await {
                if wanted.contains(&peer) {
                    self.take(peer, addresses).await;
                    left.remove(&peer);
                }
            }
        }
        // Others each time, so that some who are away for long do not hide one who moved.
        let skipped = turn.saturating_mul(KAD_SEARCH_MEMBERS_MAX) % missing.len().max(1);
        let in_turn = missing.iter().cycle().skip(skipped).take(missing.len());
        let by_name: Vec<_> = in_turn.filter(|(_, key)| left.contains(&peer_of(key))).collect();
        for (member, key) in by_name.into_iter().take(KAD_SEARCH_MEMBERS_MAX) {
            if self.find(federation, member, key, Enough::All).await {
                left.remove(&peer_of(key));
            }
        }
        tracing::debug!(federation = %federation, missing = wanted.len(), found = wanted.len() - left.len(), "searched");
    }

    /// One member, by its name and by its id, until `enough` is found; whether anything was.
    async fn find(
        &self,
        federation: &FederationId,
        member: &MemberId,
        key: &PublicKey,
        enough: Enough,
    ) -> bool {
        let peer = peer_of(key);
        let mut lookups = FuturesUnordered::new();
        for name in self.keys(federation, &name_of(member)) {
            let mut found = self.mesh.find_providers(name).await;
            lookups.push(Either::Left(async move {
                let mut addresses = Vec::new();
                while let Some((named, some)) = found.recv().await {
                    if named == peer {
                        addresses.extend(some);
                        if enough == Enough::First {
                            break;
                        }
                    }
                }
                addresses
            }));
        }
        lookups.push(Either::Right(self.mesh.find_peer(peer)));
        let mut any = false;
        while let Some(addresses) = lookups.next().await {
            if !addresses.is_empty() {
                any = true;
                self.take(peer, addresses).await;
                if enough == Enough::First {
                    break;
                }
            }
        }
        any
    }

    /// Keeps what was found of a member. The mesh dials it.
    async fn take(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        tracing::debug!(%peer, addresses = addresses.len(), "found in the hash table");
        self.mesh.learn(peer, addresses).await;
    }

    /// A call did not reach a member at any known address; whether the table knows more. Waits a little.
    pub async fn find_for_call(&self, key: &PublicKey) -> bool {
        if self.table == Table::Off || !self.may_look(key) {
            return false;
        }
        for (federation, member) in self.state.memberships(key) {
            let finding = self.find(&federation, &member, key, Enough::First);
            if tokio::time::timeout(KAD_CALL_TIMEOUT, finding).await == Ok(true) {
                return true;
            }
        }
        false
    }

    fn may_look(&self, key: &PublicKey) -> bool {
        if self.state.memberships(key).is_empty() {
            return false;
        }
        let (now_ms, pause_ms) = (self.state.now().monotonic_ms, millis(KAD_CALL_PAUSE));
        let mut called = lock(&self.called);
        called.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) < pause_ms);
        match called.contains_key(key) {
            true => false,
            false => called.insert(*key, now_ms).is_none(),
        }
    }
}

impl Runtime {
    /// See [`Finder::name_ourselves`].
    pub(crate) async fn name_ourselves(&self) {
        self.0.wire.finder.name_ourselves().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_double_their_pause_and_begin_anew_when_the_last_link_is_lost() {
        let mut search = Search::new(Lack::Some, 0);
        let (min_ms, max_ms) = (millis(KAD_SEARCH_MIN), millis(KAD_SEARCH_MAX));
        assert!(!search.is_due(Lack::Some, min_ms - 1));
        let mut now_ms = min_ms;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert!(search.is_due(Lack::Some, now_ms));
            pauses.push(search.next_ms - now_ms);
            now_ms = search.next_ms;
        }
        assert_eq!(pauses[..3], [2 * min_ms, 4 * min_ms, 8 * min_ms]);
        assert_eq!(pauses.last(), Some(&max_ms));
        let lost_ms = now_ms - max_ms + 1;
        assert!(!search.is_due(Lack::All, lost_ms));
        assert_eq!(search.next_ms, lost_ms + min_ms);
        assert!(!search.is_due(Lack::Some, lost_ms + 1), "a link that is back does not hurry it");
    }
}
