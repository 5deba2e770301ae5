//! Catch-up: what one member lacks and another has. Design section 6, SPEC §9.14.
//!
//! Two members reconcile their sets, and each fetches by name what it lacks. Who has next to nothing, as after joining,
//! takes everything in order instead: names of what one lacks entirely are bytes for nothing. It may break off anywhere
//! and go on where it was, as what came counts at once.

use crate::{
    deflate::inflate,
    intents::{FETCH, Fetch, Fetched, HELLO, Items, PUSH, Place, RECONCILE, Reconciled, Stored},
    options::NodeRole,
    runtime::Runtime,
    state::lock,
    wire::peer_of,
};
use kos_directory::reconcile::{Initiator, Name, ReconcileError};
use kos_engine::{
    Check, Checked, Input, Screened, Verdict,
    item::{Piece, pack, unpack},
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
use std::{
    collections::{BTreeSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

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
    /// Items the other end named and did not give.
    pub missing: usize,
}

/// What became of a batch of items.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// How many were news.
    pub news: usize,
    /// Those that were news, as long as they are few enough to be told to others one by one.
    pub few: Vec<Vec<u8>>,
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
            Ok(Ok(CaughtUp { news, ahead, missing })) => {
                tracing::debug!(peer = %key.short(), news, ahead, missing, "caught up");
                if missing == 0 {
                    lock(&self.0.caught_up).insert(federation, self.0.state.now().monotonic_ms);
                }
                if news > 0 {
                    self.nudge(&federation, Some(key)).await;
                }
                // The other end has no reason of its own to ask: the link may be older than our membership.
                if ahead > 0 {
                    self.nudge_one(&federation, key).await;
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
                let (news, missing) = self.fetch(to, step.need).await?;
                caught_up.news += news;
                caught_up.missing += missing;
                match step.message {
                    Some(next) => message = next,
                    None => break 'again,
                }
            }
        }
        Ok(caught_up)
    }

    /// Fetches items by name; returns how many were news, and how many did not come.
    async fn fetch(&self, to: To, names: Vec<Name>) -> Result<(usize, usize), SyncError> {
        let (mut news, mut missing) = (0, 0);
        for batch in names.chunks(FETCH_NAMES_MAX) {
            let mut left: BTreeSet<Name> = batch.iter().copied().collect();
            while !left.is_empty() {
                let asked: Vec<Name> = left.iter().copied().collect();
                let (items, body): (Items, _) = self
                    .ask_for(
                        to,
                        FETCH,
                        &Fetch { after: None, deflate: true },
                        asked.as_flattened(),
                        ITEMS_BODY_BYTES_MAX,
                    )
                    .await?;
                let body = inflated(body, items.deflated).await?;
                let pieces = unpack(&items.kinds, &body);
                news += self.take_items(&to.federation, Some(to.key), pieces).await.news;
                left.retain(|name| !self.has(&to.federation, name));
                if left.is_empty() {
                    break;
                }
                // What came and was refused is not asked for again.
                for name in unpack(&items.kinds, &body).filter_map(|piece| piece.name(&to.federation)) {
                    left.remove(&name);
                }
                if left.len() == asked.len() || !items.more {
                    break;
                }
            }
            missing += left.len();
        }
        Ok((news, missing))
    }

    fn has(&self, id: &FederationId, name: &Name) -> bool {
        self.0.state.with(id, |federation| federation.has(name)).unwrap_or_default()
    }

    /// Takes everything there is, in order; returns how much was news. While one part is verified the one before is
    /// taken in, and the next one comes.
    async fn fetch_all(&self, to: To) -> Result<usize, SyncError> {
        let mut news = 0;
        let mut before: Option<Checking> = None;
        let mut coming = Some(self.fetch_after(to, None).await?);
        while let Some((kinds, body, last)) = coming {
            let checking = self.begin_to_take(&to.federation, Some(to.key), unpack(&kinds, &body));
            let next = async {
                match last {
                    Some(last) => self.fetch_after(to, Some(last)).await.map(Some),
                    None => Ok(None),
                }
            };
            let finish = async {
                match before.replace(checking) {
                    Some(before) => self.take_checked(&to.federation, before).await.news,
                    None => 0,
                }
            };
            let (taken, next) = tokio::join!(finish, next);
            news += taken;
            // What came before it broke off counts.
            if !matches!(next, Ok(Some(_)))
                && let Some(last) = before.take()
            {
                news += self.take_checked(&to.federation, last).await.news;
            }
            coming = next?;
        }
        Ok(news)
    }

    /// Kinds and body of the items behind a place, with the place of the last one.
    async fn fetch_after(
        &self,
        to: To,
        after: Option<(u64, Name)>,
    ) -> Result<(Vec<String>, Vec<u8>, Option<(u64, Name)>), SyncError> {
        // No place is behind this one, so that the first request has a place, too.
        let (order, name) = after.unwrap_or((0, [0; 32]));
        let after = Some(Place { order, name: ByteArray::new(name) });
        let (fetched, body): (Fetched, _) =
            self.ask_for(to, FETCH, &Fetch { after, deflate: true }, &[], ITEMS_BODY_BYTES_MAX).await?;
        let body = inflated(body, fetched.deflated).await?;
        let last = fetched.last.map(|last| (last.order, last.name.into_array()));
        if last.is_some_and(|last| last <= (order, name)) {
            return Err(SyncError::Malformed);
        }
        Ok((fetched.kinds, body, last))
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
    pub(crate) async fn take_items<'a>(
        &self,
        id: &FederationId,
        from: Option<PublicKey>,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> Taken {
        let checking = self.begin_to_take(id, from, pieces);
        self.take_checked(id, checking).await
    }

    /// Looks at items, and begins to check the signatures of those that are records and would be news. The others are
    /// taken in.
    fn begin_to_take<'a>(
        &self,
        id: &FederationId,
        from: Option<PublicKey>,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> Checking {
        let now = self.0.state.now();
        let from = from.and_then(|key| self.member_with(id, &key));
        let (mut taken, mut checks) = (Taken::default(), Vec::new());
        for piece in pieces {
            match self.0.state.with(id, |federation| federation.screen(now, from, &piece)) {
                Some(Screened::Done(verdict)) => taken.note(&verdict, || piece.to_bytes()),
                Some(Screened::Check(check)) => checks.push(*check),
                None => break,
            }
        }
        Checking { taken, checked: run(checks) }
    }

    async fn take_checked(&self, id: &FederationId, checking: Checking) -> Taken {
        let Checking { mut taken, checked } = checking;
        for part in checked {
            for checked in part.get().await {
                let item = (taken.few.len() < TELL_MAX).then(|| checked.to_item()).flatten();
                let now = self.0.state.now();
                let input = Input::Checked(checked);
                if let Some(verdict) = self.0.state.with(id, |federation| federation.handle(now, input)) {
                    taken.note(&verdict, || item.unwrap_or_default());
                }
            }
        }
        self.carry_out(id);
        taken
    }

    fn member_with(&self, id: &FederationId, key: &PublicKey) -> Option<MemberId> {
        self.0.state.with(id, |federation| Some(federation.roster().by_key(key)?.0)).flatten()
    }

    /// What a catch-up brought, others may lack as well: they are told, or asked to catch up with us.
    pub(crate) async fn spread(&self, id: &FederationId, taken: Taken) {
        if taken.news <= TELL_MAX {
            for item in taken.few.into_iter().filter(|item| spreads(item)) {
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
        futures::future::join_all(keys.map(|key| self.nudge_one(id, key))).await;
    }

    async fn nudge_one(&self, id: &FederationId, key: PublicKey) {
        let nudge = self.push(id, key, &[], None, More::There);
        if let Ok(Err(error)) = tokio::time::timeout(PUSH_TIMEOUT, nudge).await {
            tracing::debug!(peer = %key.short(), %error, "not nudged");
        }
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
        let params = Items { secret, more, kinds: packed.kinds, deflated: false };
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

impl Taken {
    fn note(&mut self, verdict: &Verdict, item: impl FnOnce() -> Vec<u8>) {
        match verdict {
            Verdict::New => {
                self.stored += 1;
                self.news += 1;
                if self.few.len() < TELL_MAX {
                    self.few.push(item());
                }
            }
            Verdict::Known => self.stored += 1,
            Verdict::Held => {}
            Verdict::Refused(refusal) => tracing::debug!(%refusal, "item refused"),
        }
    }
}

/// The items of an answer.
async fn inflated(body: Vec<u8>, is_deflated: bool) -> Result<Vec<u8>, SyncError> {
    if !is_deflated {
        return Ok(body);
    }
    inflate(body, ITEMS_BODY_BYTES_MAX).await.ok_or(SyncError::Malformed)
}

/// Whether an item is for everybody.
fn spreads(item: &[u8]) -> bool {
    let kind = kos_engine::Item::parse(item).ok().and_then(|item| kos_directory::Kind::parse(&item.kind));
    kind.is_none_or(|kind| kind.is_global())
}

/// Items on their way in.
struct Checking {
    taken: Taken,
    checked: Vec<Running>,
}

/// Signatures that are, or were, checked.
enum Running {
    Here(Vec<Checked>),
    There(tokio::task::JoinHandle<Vec<Checked>>),
}

impl Running {
    async fn get(self) -> Vec<Checked> {
        match self {
            Self::Here(checked) => checked,
            // A blocking task ends early only where the whole runtime does.
            Self::There(task) => task.await.unwrap_or_default(),
        }
    }
}

/// Checks signatures, on as many threads as there are cores where there are many.
fn run(checks: Vec<Check>) -> Vec<Running> {
    if checks.len() < CHECKS_IN_PARALLEL_MIN {
        return vec![Running::Here(checks.into_iter().map(Check::run).collect())];
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = checks.len().div_ceil(threads);
    let mut checks = checks.into_iter();
    let mut running = Vec::new();
    loop {
        let part: Vec<Check> = checks.by_ref().take(share).collect();
        if part.is_empty() {
            return running;
        }
        let work = move || part.into_iter().map(Check::run).collect();
        running.push(Running::There(tokio::task::spawn_blocking(work)));
    }
}
