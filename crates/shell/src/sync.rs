//! Catch-up: what one member lacks and another has. Design section 6, SPEC §9.13.
//!
//! Two members reconcile their sets, and each fetches by name what it lacks. Who has next to nothing, as after joining,
//! takes everything in order instead: names of what one lacks entirely are bytes for nothing. It may break off anywhere
//! and go on where it was, as what came counts at once.

use crate::{
    intents::{FETCH, Fetch, Fetched, HELLO, Items, PUSH, Place, RECONCILE, Reconciled, Stored},
    options::NodeRole,
    runtime::Runtime,
    state::lock,
    wire::peer_of,
};
use kos_directory::reconcile::{Initiator, Name, ReconcileError};
use kos_engine::{
    Check, Checked, Input, Screened, Verdict,
    item::{pack, unpack},
};
use kos_mesh::link::{CallError, To};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId},
    key::PublicKey,
    limits::{
        FETCH_BYTES_MAX, FETCH_NAMES_MAX, HEAD_BYTES_MAX, ITEM_BYTES_MAX, PUSH_BYTES_MAX, RECONCILE_BYTES_MAX,
    },
    message::{End, Head, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_bytes::{ByteArray, ByteBuf};
use std::{collections::btree_map::Entry, sync::Arc, time::Duration};

/// How long one catch-up may take. What came by then stays.
const SYNC_TIMEOUT: Duration = Duration::from_secs(300);
/// Who has less than this share of what the other end has takes everything in order.
const NEXT_TO_NOTHING: u64 = 16;
/// A difference of no more items is not worth that.
const FEW: u64 = 1_000;
/// News of a catch-up that are told to others one by one; for more they are asked to catch up themselves.
const TELL_MAX: usize = 64;
/// Signatures worth a second thread.
const CHECKS_IN_PARALLEL_MIN: usize = 16;
/// Longest body with as many items as fit: one more may begin below the limit.
const ITEMS_BODY_BYTES_MAX: usize = FETCH_BYTES_MAX + ITEM_BYTES_MAX + 64 * 1024;
/// Shortest pause between two catch-ups with one member, whoever asks for them.
const SYNC_PAUSE: Duration = Duration::from_millis(500);
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
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
}

/// What a catch-up came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CaughtUp {
    /// Items that were news.
    pub news: usize,
    /// Items the other end lacks.
    pub ahead: usize,
}

/// What became of a batch of items.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Those that were news.
    pub news: Vec<Vec<u8>>,
    /// How many of them are here now.
    pub stored: u64,
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

    /// Catches up with a member; where that is under way, once more behind it.
    pub(crate) fn sync_soon(&self, federation: FederationId, key: PublicKey) {
        match lock(&self.0.syncing).entry((federation, key)) {
            Entry::Occupied(mut again) => {
                *again.get_mut() = true;
                return;
            }
            Entry::Vacant(place) => drop(place.insert(false)),
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            loop {
                runtime.catch_up(federation, key).await;
                let pause = tokio::time::sleep(SYNC_PAUSE);
                let goes_on = runtime.0.stop.run_until_cancelled(pause).await.is_some();
                let mut syncing = lock(&runtime.0.syncing);
                match syncing.get_mut(&(federation, key)) {
                    Some(again) if *again && goes_on => *again = false,
                    _ => {
                        syncing.remove(&(federation, key));
                        break;
                    }
                }
            }
        });
    }

    async fn catch_up(&self, federation: FederationId, key: PublicKey) {
        let catching_up = async {
            match self.sync(federation, key).await {
                Err(SyncError::Refused(end)) if end.status == Status::Denied => {
                    self.show_log(federation, key, end).await?;
                    self.sync(federation, key).await
                }
                outcome => outcome,
            }
        };
        match tokio::time::timeout(SYNC_TIMEOUT, catching_up).await {
            Ok(Ok(CaughtUp { news, ahead })) => {
                tracing::debug!(peer = %key.short(), news, ahead, "caught up");
                lock(&self.0.caught_up).insert(federation, self.0.state.now().monotonic_ms);
                if news > 0 {
                    self.nudge(&federation, Some(key)).await;
                }
            }
            Ok(Err(error)) => tracing::debug!(peer = %key.short(), %error, "not caught up"),
            Err(_) => tracing::debug!(peer = %key.short(), "catch-up took too long"),
        }
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

    /// Reconciles, and fetches what we lack.
    pub(crate) async fn sync(&self, federation: FederationId, key: PublicKey) -> Result<CaughtUp, SyncError> {
        let to = To { federation, key };
        let mut caught_up = CaughtUp::default();
        let mut took_all = false;
        'again: loop {
            let Some(set) = self.0.state.with(&federation, |federation| federation.set()) else {
                return Ok(caught_up);
            };
            let ours = set.len() as u64;
            let (mut initiator, mut message) = Initiator::new(set);
            loop {
                let (reply, answer): (Reconciled, _) =
                    self.ask_for(to, RECONCILE, &(), &message, RECONCILE_BYTES_MAX).await?;
                if let Some(secret) = &reply.secret {
                    self.take_secret(&federation, secret);
                }
                let is_worth_it = reply.count > ours.saturating_mul(NEXT_TO_NOTHING).max(ours + FEW);
                if is_worth_it && !took_all {
                    took_all = true;
                    caught_up.news += self.fetch_all(to).await?;
                    continue 'again;
                }
                let step = initiator.step(&answer)?;
                caught_up.ahead += step.have.len();
                caught_up.news += self.fetch(to, step.need).await?;
                match step.message {
                    Some(next) => message = next,
                    None => break 'again,
                }
            }
        }
        Ok(caught_up)
    }

    /// Fetches items by name; returns how many were news.
    async fn fetch(&self, to: To, names: Vec<Name>) -> Result<usize, SyncError> {
        let mut news = 0;
        for batch in names.chunks(FETCH_NAMES_MAX) {
            let mut left = batch.to_vec();
            while !left.is_empty() {
                let (items, body): (Items, _) = self
                    .ask_for(to, FETCH, &Fetch::default(), left.as_flattened(), ITEMS_BODY_BYTES_MAX)
                    .await?;
                let items = unpack(&items.kinds, &body).collect();
                news += self.take_items(&to.federation, Some(to.key), items).await.news.len();
                // Whatever came is here now, or was refused and would be again.
                let before = left.len();
                left.retain(|name| !self.has(&to.federation, name));
                if left.len() == before {
                    break;
                }
            }
        }
        Ok(news)
    }

    fn has(&self, id: &FederationId, name: &Name) -> bool {
        self.0.state.with(id, |federation| federation.has(name)).unwrap_or_default()
    }

    /// Takes everything there is, in order; returns how much was news. While one part is verified the next one comes.
    async fn fetch_all(&self, to: To) -> Result<usize, SyncError> {
        let mut news = 0;
        let mut coming = Some(self.fetch_after(to, None).await?);
        while let Some((items, last)) = coming {
            let next = async {
                match last {
                    Some(last) => self.fetch_after(to, Some(last)).await.map(Some),
                    None => Ok(None),
                }
            };
            let (taken, next) = tokio::join!(self.take_items(&to.federation, Some(to.key), items), next);
            news += taken.news.len();
            coming = next?;
        }
        Ok(news)
    }

    async fn fetch_after(
        &self,
        to: To,
        after: Option<(u64, Name)>,
    ) -> Result<(Vec<Vec<u8>>, Option<(u64, Name)>), SyncError> {
        // No place is behind this one, so that the first request has a place, too.
        let (order, name) = after.unwrap_or((0, [0; 32]));
        let after = Some(Place { order, name: ByteArray::new(name) });
        let (fetched, body): (Fetched, _) =
            self.ask_for(to, FETCH, &Fetch { after }, &[], ITEMS_BODY_BYTES_MAX).await?;
        let items: Vec<Vec<u8>> = unpack(&fetched.kinds, &body).collect();
        let last = fetched.last.map(|last| (last.order, last.name.into_array()));
        if last.is_some_and(|last| last <= (order, name)) {
            return Err(SyncError::Malformed);
        }
        Ok((items, last))
    }

    async fn ask_for<T: DeserializeOwned>(
        &self,
        to: To,
        intent: &str,
        params: &impl Serialize,
        body: &[u8],
        limit_bytes: usize,
    ) -> Result<(T, Vec<u8>), SyncError> {
        let head = Head { intent: intent.to_owned(), params: cbor::encode(params).into(), ..Head::default() };
        let answer = self.0.links.ask(to, &head, body, limit_bytes).await?.map_err(SyncError::Refused)?;
        let params = cbor::decode_message(&answer.head.params, HEAD_BYTES_MAX);
        Ok((params.map_err(|_| SyncError::Malformed)?, answer.body))
    }

    pub(crate) fn take_secret(&self, id: &FederationId, secret: &[u8]) {
        let now = self.0.state.now();
        self.0.state.with(id, |federation| federation.handle(now, Input::Secret(secret)));
        self.carry_out(id);
    }

    /// Takes items that a member gave us. Signatures of records are checked on all cores.
    pub(crate) async fn take_items(
        &self,
        id: &FederationId,
        from: Option<PublicKey>,
        items: Vec<Vec<u8>>,
    ) -> Taken {
        let now = self.0.state.now();
        let from = from.and_then(|key| self.member_with(id, &key));
        let mut taken = Taken::default();
        let mut note = |verdict: &Verdict, item: &Vec<u8>| match verdict {
            Verdict::New => {
                taken.stored += 1;
                taken.news.push(item.clone());
            }
            Verdict::Known => taken.stored += 1,
            Verdict::Held => {}
            Verdict::Refused(refusal) => tracing::debug!(%refusal, "item refused"),
        };
        let mut checks = Vec::new();
        let mut to_check = Vec::new();
        for item in items {
            match self.0.state.with(id, |federation| federation.screen(now, from, &item)) {
                Some(Screened::Done(verdict)) => note(&verdict, &item),
                Some(Screened::Check(check)) => {
                    checks.push(*check);
                    to_check.push(item);
                }
                None => break,
            }
        }
        for (checked, item) in run(checks).await.into_iter().zip(&to_check) {
            let verdict = self.0.state.with(id, |federation| federation.handle(now, Input::Checked(checked)));
            if let Some(verdict) = verdict {
                note(&verdict, item);
            }
        }
        self.carry_out(id);
        taken
    }

    fn member_with(&self, id: &FederationId, key: &PublicKey) -> Option<MemberId> {
        self.0.state.with(id, |federation| Some(federation.roster().by_key(key)?.0)).flatten()
    }

    /// What a catch-up brought, others may lack as well: they are told, or asked to catch up with us.
    pub(crate) async fn spread(&self, id: &FederationId, news: Vec<Vec<u8>>) {
        if news.len() <= TELL_MAX {
            for item in news {
                self.pass_on(id, &item);
                self.broadcast(id, item);
            }
        } else {
            self.nudge(id, None).await;
        }
    }

    /// Asks every linked member but one to catch up with us.
    pub(crate) async fn nudge(&self, id: &FederationId, but: Option<PublicKey>) {
        let keys = self.linked_members(id).into_iter().filter(|key| Some(*key) != but);
        let nudges = keys.map(|key| async move {
            let nudge = self.push(id, key, &[], None, More::There);
            if let Ok(Err(error)) = tokio::time::timeout(PUSH_TIMEOUT, nudge).await {
                tracing::debug!(peer = %key.short(), %error, "not nudged");
            }
        });
        futures::future::join_all(nudges).await;
    }

    /// What an answer to a catch-up, or a push, says to an active member.
    pub(crate) fn secret_of(&self, id: &FederationId) -> Option<ByteBuf> {
        let secret =
            |federation: &mut kos_engine::Federation| Some(federation.secret()?.bytes().to_vec().into());
        self.0.state.with(id, secret).flatten()
    }

    /// Gives items, and a secret, to one member inside a session; returns how many of them it has now.
    pub(crate) async fn push(
        &self,
        id: &FederationId,
        key: PublicKey,
        items: &[Vec<u8>],
        secret: Option<ByteBuf>,
        more: More,
    ) -> Result<u64, SyncError> {
        let mut room = PUSH_BYTES_MAX;
        let fits = items.iter().take_while(|item| {
            let left = room.checked_sub(item.len() + 3);
            room = left.unwrap_or(0);
            left.is_some()
        });
        let fits: Vec<_> = fits.cloned().collect();
        let packed = pack(&fits);
        let more = more == More::There || fits.len() < items.len();
        let params = Items { secret, more, kinds: packed.kinds };
        let (stored, _): (Stored, _) =
            self.ask_for(To { federation: *id, key }, PUSH, &params, &packed.body, 0).await?;
        Ok(stored.stored)
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

    /// As [`Runtime::push`], with the newest secret, to every member we have a direct link with. Returns who has all of
    /// the items, as soon as `enough` have them or everybody answered, or failed to in time.
    pub(crate) async fn store_at(
        &self,
        id: &FederationId,
        items: Vec<Vec<u8>>,
        enough: usize,
    ) -> Vec<PublicKey> {
        let count = items.len() as u64;
        let items = Arc::new(items);
        let linked = self.linked_members(id);
        let (stored_at, mut stored) = tokio::sync::mpsc::channel(linked.len().max(1));
        for key in linked {
            let (runtime, id, items, stored_at) = (self.clone(), *id, items.clone(), stored_at.clone());
            tokio::spawn(async move {
                let push = runtime.push(&id, key, &items, runtime.secret_of(&id), More::None);
                match tokio::time::timeout(PUSH_TIMEOUT, push).await {
                    Ok(Ok(stored)) if stored == count => drop(stored_at.try_send(key)),
                    Ok(Ok(stored)) => tracing::debug!(peer = %key.short(), stored, count, "not all stored"),
                    Ok(Err(error)) => tracing::debug!(peer = %key.short(), %error, "not pushed"),
                    Err(_) => tracing::debug!(peer = %key.short(), "push took too long"),
                }
            });
        }
        drop(stored_at);
        let mut keys = Vec::new();
        while keys.len() < enough
            && let Some(key) = stored.recv().await
        {
            keys.push(key);
        }
        keys
    }

    /// As [`Runtime::store_at`], without asking who has it.
    pub(crate) async fn push_to_all(&self, id: &FederationId, items: Vec<Vec<u8>>) {
        self.store_at(id, items, usize::MAX).await;
    }
}

/// Whether there is more than is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    /// No.
    None,
    /// Yes: whoever hears it reconciles.
    There,
}

/// Checks signatures, on as many threads as there are cores where there are many.
async fn run(checks: Vec<Check>) -> Vec<Checked> {
    if checks.len() < CHECKS_IN_PARALLEL_MIN {
        return checks.into_iter().map(Check::run).collect();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = checks.len().div_ceil(threads);
    let mut checks = checks.into_iter();
    let mut running = Vec::new();
    loop {
        let part: Vec<Check> = checks.by_ref().take(share).collect();
        if part.is_empty() {
            break;
        }
        running
            .push(tokio::task::spawn_blocking(move || part.into_iter().map(Check::run).collect::<Vec<_>>()));
    }
    let mut checked = Vec::new();
    for part in running {
        // A blocking task ends early only where the whole runtime does.
        checked.extend(part.await.unwrap_or_default());
    }
    checked
}
