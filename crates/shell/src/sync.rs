//! Catch-up: what one member lacks and another has. Design section 6; the next version reconciles sets.

use crate::{
    intents::{HASH_BYTES, HELLO, PUSH, SYNC, SyncReply},
    options::NodeRole,
    runtime::Runtime,
    state::lock,
    wire::peer_of,
};
use bytes::{Buf, Bytes};
use kos_mesh::link::{CallError, To};
use kos_protocol::{
    cbor,
    id::FederationId,
    key::PublicKey,
    limits::{HEAD_BYTES_MAX, PUSH_BYTES_MAX, SYNC_BYTES_MAX},
    message::{End, Head, Status},
};
use serde_bytes::ByteBuf;
use std::time::Duration;

/// How long one catch-up may take.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// How long after a catch-up for missing acts the next one with the same member may follow.
const SYNC_FOR_ACTS_MS: u64 = 10_000;
/// How long after a link came up gossip flows over it: a few heartbeats, in which each end grafts the other.
const GOSSIP_FLOWS: Duration = Duration::from_secs(4);
/// Members remembered for that.
const ASKED_MAX: usize = 64;
/// How long a push waits for its receiver.
const PUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a catch-up did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("refused: {0}")]
    Refused(End),
    #[error("malformed answer")]
    Malformed,
}

/// Puts items one behind the other, each after its length in two bytes.
pub(crate) fn pack<'a>(items: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut packed = Vec::new();
    for item in items {
        // Items are at most 62 KiB, by the limit of their kind.
        if let Ok(length) = u16::try_from(item.len()) {
            packed.extend_from_slice(&length.to_be_bytes());
            packed.extend_from_slice(item);
        }
    }
    packed
}

/// The reverse of [`pack`]; stops at the first thing that is none.
pub(crate) fn unpack(mut packed: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if packed.remaining() < 2 {
            return None;
        }
        let length = usize::from(packed.get_u16());
        (packed.remaining() >= length).then(|| packed.split_to(length))
    })
}

impl Runtime {
    /// Catches up with a member that passed on something which needs acts we lack; not more often than the bound, as
    /// such a thing may also be made up.
    pub(crate) fn sync_for_acts(&self, federation: FederationId, key: PublicKey) {
        let now_ms = self.0.state.now().monotonic_ms;
        let mut asked = lock(&self.0.asked_for_acts);
        asked.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) < SYNC_FOR_ACTS_MS);
        if asked.len() < ASKED_MAX && asked.insert((federation, key), now_ms).is_none() {
            drop(asked);
            self.sync_soon(federation, key);
        }
    }

    /// Catches up with a member that was just linked, and once more when gossip flows over the link: what reaches the
    /// member in between, it may have nobody to gossip to about.
    pub(crate) fn sync_twice(&self, federation: FederationId, key: PublicKey) {
        self.sync_soon(federation, key);
        let runtime = self.clone();
        tokio::spawn(async move {
            let wait = tokio::time::sleep(GOSSIP_FLOWS);
            if runtime.0.stop.run_until_cancelled(wait).await.is_some() {
                runtime.sync_soon(federation, key);
            }
        });
    }

    /// Catches up with a member, unless that is under way.
    pub(crate) fn sync_soon(&self, federation: FederationId, key: PublicKey) {
        if !lock(&self.0.syncing).insert((federation, key)) {
            return;
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            let catching_up = async {
                match runtime.sync(federation, key).await {
                    Err(SyncError::Refused(end)) if end.status == Status::Denied => {
                        runtime.show_log(federation, key, end).await?;
                        runtime.sync(federation, key).await
                    }
                    outcome => outcome,
                }
            };
            match tokio::time::timeout(SYNC_TIMEOUT, catching_up).await {
                Ok(Ok(news)) => tracing::debug!(peer = %key.short(), news, "caught up"),
                Ok(Err(error)) => tracing::debug!(peer = %key.short(), %error, "not caught up"),
                Err(_) => tracing::debug!(peer = %key.short(), "catch-up took too long"),
            }
            lock(&runtime.0.syncing).remove(&(federation, key));
        });
    }

    /// Shows a member that takes us for a stranger where our key comes from, if we had another one before.
    async fn show_log(&self, federation: FederationId, key: PublicKey, denied: End) -> Result<(), SyncError> {
        let identity = self.0.state.identity();
        if identity.log().seq() == 0 {
            return Err(SyncError::Refused(denied));
        }
        let head = Head { intent: HELLO.to_owned(), ..Head::default() };
        let log = kos_engine::Item::key_log(identity.log()).to_bytes();
        let shown = self.0.links.ask(To { federation, key }, &head, &log, 0).await?;
        shown.map(drop).map_err(SyncError::Refused)
    }

    /// Catches up with one linked member, another one each time.
    pub(crate) fn sync_with_somebody(&self, federation: &FederationId, turn: u64) {
        let linked: Vec<PublicKey> = self.linked_members(federation);
        if !linked.is_empty() {
            let pick = usize::try_from(turn).unwrap_or_default() % linked.len();
            self.sync_soon(*federation, linked[pick]);
        }
    }

    pub(crate) fn linked_members(&self, federation: &FederationId) -> Vec<PublicKey> {
        let own = self.0.state.identity().key();
        let active = self.0.state.with(federation, |federation| {
            federation.roster().active().map(|member| member.key()).collect::<Vec<_>>()
        });
        let active = active.unwrap_or_default();
        active.into_iter().filter(|key| *key != own && self.0.mesh.is_direct(&peer_of(key))).collect()
    }

    /// Asks for what we lack until there is no more; returns how much of it was news.
    pub(crate) async fn sync(&self, federation: FederationId, key: PublicKey) -> Result<usize, SyncError> {
        let mut news = 0;
        loop {
            let inventory =
                self.0.state.with(&federation, |federation| federation.inventory()).unwrap_or_default();
            let head = Head { intent: SYNC.to_owned(), ..Head::default() };
            let to = To { federation, key };
            let asked = self.0.links.ask(to, &head, inventory.as_flattened(), 2 * SYNC_BYTES_MAX).await?;
            let answer = asked.map_err(SyncError::Refused)?;
            let reply: SyncReply = cbor::decode_message(&answer.head.params, HEAD_BYTES_MAX)
                .map_err(|_| SyncError::Malformed)?;
            let secret = reply.secret.as_deref().map(Vec::as_slice);
            let fresh = self.take_items(&federation, secret, answer.body.into());
            news += fresh.len();
            if !reply.more || fresh.is_empty() {
                return Ok(news);
            }
        }
    }

    /// Takes items and a secret that a member gave us; returns the items that were news.
    pub(crate) fn take_items(&self, id: &FederationId, secret: Option<&[u8]>, packed: Bytes) -> Vec<Bytes> {
        let now = self.0.state.now();
        let mut news = Vec::new();
        for item in unpack(packed) {
            let verdict = self.0.state.with(id, |federation| federation.heard(now, &item));
            match verdict {
                Some(kos_engine::Verdict::New) => news.push(item),
                Some(kos_engine::Verdict::Refused(refusal)) => tracing::debug!(%refusal, "item refused"),
                _ => {}
            }
        }
        if let Some(secret) = secret {
            self.0.state.with(id, |federation| federation.heard_secret(now, secret));
        }
        self.carry_out(id);
        news
    }

    /// What an answer to a catch-up, or a push, says to an active member.
    pub(crate) fn secret_of(&self, id: &FederationId) -> Option<ByteBuf> {
        let secret =
            |federation: &mut kos_engine::Federation| Some(federation.secret()?.bytes().to_vec().into());
        self.0.state.with(id, secret).flatten()
    }

    /// Gives items, and a secret, to one member inside a session.
    pub(crate) async fn push(
        &self,
        id: &FederationId,
        key: PublicKey,
        items: &[Vec<u8>],
        secret: Option<ByteBuf>,
    ) -> Result<(), SyncError> {
        let params = cbor::encode(&SyncReply { secret, more: false });
        let head = Head { intent: PUSH.to_owned(), params: params.into(), ..Head::default() };
        let mut room = PUSH_BYTES_MAX;
        let fits = items.iter().take_while(|item| {
            let left = room.checked_sub(item.len() + 2);
            room = left.unwrap_or(0);
            left.is_some()
        });
        let packed = pack(fits);
        let answer = self.0.links.ask(To { federation: *id, key }, &head, &packed, 0).await?;
        answer.map(drop).map_err(SyncError::Refused)
    }

    /// A relay pushes acts that are news to whom it is linked with. Those who meet only over it would otherwise depend on
    /// gossip, which forwards to its mesh at once and to others a heartbeat later or, after a regraft, a minute.
    pub(crate) fn pass_on(&self, id: &FederationId, item: &[u8]) {
        let is_act = kos_engine::Item::parse(item).is_ok_and(|item| item.kind == kos_engine::item::ACT);
        if self.0.options.role == NodeRole::Relay && is_act {
            let (runtime, id, items) = (self.clone(), *id, vec![item.to_vec()]);
            tokio::spawn(async move { runtime.push_to_all(&id, items).await });
        }
    }

    /// As [`Runtime::push`], with the newest secret, to every member we have a direct link with; waits for them a little.
    pub(crate) async fn push_to_all(&self, id: &FederationId, items: Vec<Vec<u8>>) {
        let pushes = self.linked_members(id).into_iter().map(|key| {
            let items = &items;
            async move {
                match tokio::time::timeout(PUSH_TIMEOUT, self.push(id, key, items, self.secret_of(id))).await
                {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(peer = %key.short(), %error, "not pushed"),
                    Err(_) => tracing::debug!(peer = %key.short(), "push took too long"),
                }
            }
        });
        futures::future::join_all(pushes).await;
    }
}

/// The names in a catch-up request.
pub(crate) fn names(body: &[u8]) -> std::collections::BTreeSet<[u8; HASH_BYTES]> {
    body.as_chunks::<HASH_BYTES>().0.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_items_come_out_as_they_went_in() {
        let items = vec![vec![], vec![1], vec![2; 62 * 1024]];
        let packed = Bytes::from(pack(&items));
        assert_eq!(unpack(packed.clone()).collect::<Vec<_>>(), items);
        assert_eq!(unpack(packed.slice(..packed.len() - 1)).count(), 2, "a cut item is none");
    }
}
