//! The `kos.*` intents, answered. Everything else goes to the application, for members only.

use crate::{
    app::App,
    deflate::deflate_if,
    intents::{self, Alive, Fetch, Fetched, Items, Place, Reconciled, Stored, join_error_word},
    runtime::Runtime,
};
use kos_directory::{
    liveness::Input as Liveness,
    reconcile::{NAME_BYTES, Name, respond},
};
use kos_engine::{
    Item,
    item::{Packed, unpack},
};
use kos_governance::join::JoinError;
use kos_mesh::link::{Pending, Refusal, Request, Service, StreamError};
use kos_protocol::{
    cbor,
    id::FederationId,
    limits::{
        BULK_MS_MAX, FETCH_BYTES_MAX, FETCH_NAMES_MAX, HEAD_BYTES_MAX, JOIN_REPLY_BYTES_MAX,
        JOIN_REQUEST_BYTES_MAX, PUSH_BYTES_MAX, RECONCILE_BYTES_MAX, STRANGER_BYTES_MAX,
    },
    message::{End, ReplyHead, Status},
};
use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

/// When a member whose bodies are too many may come back.
const BULK_RETRY_MS: u32 = 5_000;

/// Answers peers. Made before the runtime it works for, which is made of links that need it.
pub(crate) struct Intents {
    app: Arc<dyn App>,
    runtime: OnceLock<Weak<crate::runtime::Inner>>,
}

impl Intents {
    pub fn new(app: Arc<dyn App>) -> Self {
        Self { app, runtime: OnceLock::new() }
    }

    pub fn serve(&self, runtime: &Runtime) {
        // The first runtime stays; there is never another.
        let _ = self.runtime.set(Arc::downgrade(&runtime.0));
    }
}

impl Service for Intents {
    fn handle(&self, request: Request) -> Pending<'_, ()> {
        Box::pin(async move {
            let Some(inner) = self.runtime.get().and_then(Weak::upgrade) else { return };
            let runtime = Runtime(inner);
            let intent = request.head.intent.clone();
            let is_stranger = request.caller.member.is_none();
            if is_stranger && !intents::FOR_STRANGERS.contains(&intent.as_str()) {
                runtime.0.links.stats().refuse(Refusal::Stranger);
                let _ = request.send.refuse(Status::Denied, "only members may do this; join first").await;
                return;
            }
            // Admission comes first: what is refused leaves nothing in the ledger.
            let admitted = match is_own(&intent).then_some(None) {
                Some(own) => Ok(own),
                None => self.app.admit(&request.caller, &request.head).map(Some),
            };
            let answering = match admitted {
                Ok(answering) => answering,
                Err(end) => return drop(request.send.end(&end).await),
            };
            let Some(request) = runtime.0.once.pass(request).await else { return };
            let outcome = match answering {
                None => runtime.answer(request).await,
                Some(answering) => {
                    answering(request).await;
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(intent, %error, "an answer was not delivered");
            }
        })
    }
}

/// Whether an intent is answered here, and not by the application.
fn is_own(intent: &str) -> bool {
    use intents::{ALIVE, CLAIM, FETCH, HELLO, JOIN, LEAVE, PING, PUSH, RECONCILE};
    matches!(intent, PING | ALIVE | HELLO | RECONCILE | FETCH | PUSH | JOIN | CLAIM | LEAVE)
}

fn refused(error: JoinError) -> End {
    End::because(Status::Denied, join_error_word(error))
}

impl Runtime {
    /// Answers a request whose intent [`is_own`].
    async fn answer(&self, request: Request) -> Result<(), StreamError> {
        match request.head.intent.as_str() {
            intents::RECONCILE | intents::FETCH | intents::PUSH => self.answer_bulk(request).await,
            intents::JOIN => self.answer_join(request).await,
            intents::CLAIM => self.answer_claim(request).await,
            intents::LEAVE => self.answer_leave(request).await,
            intents::HELLO => self.answer_hello(request).await,
            intents::ALIVE => self.answer_alive(request).await,
            _ => request.send.reply(&ReplyHead::default(), b"").await,
        }
    }

    async fn answer_alive(&self, request: Request) -> Result<(), StreamError> {
        let alive = cbor::decode_message::<Alive>(&request.head.params, HEAD_BYTES_MAX);
        let (Ok(Alive { period_ms }), Some(from)) = (alive, request.caller.member) else {
            return request.send.refuse(Status::Invalid, "a malformed heartbeat").await;
        };
        self.live(&request.caller.federation, Liveness::Heartbeat { from, period_ms });
        request.send.reply(&ReplyHead::default(), b"").await
    }

    /// What comes or goes as a whole body waits for the member's place, and has its time.
    async fn answer_bulk(&self, request: Request) -> Result<(), StreamError> {
        let answering = async {
            let Some(_place) = self.0.bulk.take(request.caller.key).await else {
                self.0.links.stats().refuse(Refusal::Body);
                let busy = End::because(Status::RateLimited, "too many bodies at once");
                return request.send.end(&End { retry_after_ms: Some(BULK_RETRY_MS), ..busy }).await;
            };
            match request.head.intent.as_str() {
                intents::RECONCILE => self.answer_reconcile(request).await,
                intents::FETCH => self.answer_fetch(request).await,
                _ => self.answer_push(request).await,
            }
        };
        tokio::time::timeout(Duration::from_millis(BULK_MS_MAX), answering).await.unwrap_or_else(|_| {
            self.0.links.stats().refuse(Refusal::Body);
            Ok(())
        })
    }

    async fn answer_reconcile(&self, mut request: Request) -> Result<(), StreamError> {
        let id = request.caller.federation;
        let message = request.recv.read_all(RECONCILE_BYTES_MAX).await?;
        let Some(set) = self.0.state.with(&id, |federation| federation.set()) else {
            return request.send.refuse(Status::NotFound, "not in this federation").await;
        };
        let Ok(answer) = respond(&set, &message) else {
            return request.send.refuse(Status::Invalid, "a malformed reconciliation").await;
        };
        let reply = Reconciled { count: set.len() as u64, secret: self.secret_of(&id) };
        request.send.reply(&ReplyHead { params: cbor::encode(&reply).into() }, &answer).await
    }

    async fn answer_fetch(&self, mut request: Request) -> Result<(), StreamError> {
        let id = request.caller.federation;
        let asked = cbor::decode_message::<Fetch>(&request.head.params, HEAD_BYTES_MAX);
        let body = request.recv.read_all(FETCH_NAMES_MAX * NAME_BYTES).await?;
        let (Ok(asked), (names, [])) = (asked, body.as_chunks::<NAME_BYTES>()) else {
            return request.send.refuse(Status::Invalid, "a malformed fetch").await;
        };
        let (params, body) = match asked.after {
            None => {
                let (Packed { kinds, body }, more) = self.named(&id, names);
                let (body, deflated) = deflate_if(asked.deflate, body).await;
                (cbor::encode(&Items { kinds, more, secret: None, deflated }), body)
            }
            Some(after) => {
                let (Packed { kinds, body }, last) = self.behind(&id, (after.order, after.name.into_array()));
                let (body, deflated) = deflate_if(asked.deflate, body).await;
                (cbor::encode(&Fetched { kinds, last, deflated }), body)
            }
        };
        request.send.reply(&ReplyHead { params: params.into() }, &body).await
    }

    /// Items by name, and whether there are more of these.
    fn named(&self, id: &FederationId, names: &[Name]) -> (Packed, bool) {
        let items = self.0.state.with(id, |federation| federation.items(names, FETCH_BYTES_MAX));
        let (packed, count) = items.unwrap_or_default();
        (packed, count < names.len())
    }

    /// What is behind a place, with the place of the last item.
    fn behind(&self, id: &FederationId, after: (u64, Name)) -> (Packed, Option<Place>) {
        let found = self.0.state.with(id, |federation| {
            let set = federation.set();
            let rest = set.after((after != (0, [0; NAME_BYTES])).then_some(after));
            let names = rest.iter().map(|(_, name)| name);
            let (packed, count) = federation.items_in_order(names, FETCH_BYTES_MAX);
            (packed, count.checked_sub(1).map(|last| rest[last]))
        });
        let (packed, last) = found.unwrap_or_default();
        (packed, last.map(|(order, name)| Place { order, name: serde_bytes::ByteArray::new(name) }))
    }

    async fn answer_push(&self, mut request: Request) -> Result<(), StreamError> {
        let Ok(pushed) = cbor::decode_message::<Items>(&request.head.params, HEAD_BYTES_MAX) else {
            return request.send.refuse(Status::Invalid, "a malformed push").await;
        };
        let body = request.recv.read_all(PUSH_BYTES_MAX).await?;
        let (id, from) = (request.caller.federation, request.caller.key);
        if let Some(secret) = pushed.secret.as_deref() {
            self.take_secret(&id, secret);
        }
        let taken = self.take_items(&id, Some(from), unpack(&pushed.kinds, &body)).await;
        let stored = taken.stored;
        let reply = Stored { stored };
        // At once: whoever pushed does not wait for those behind us.
        let answered = request.send.reply(&ReplyHead { params: cbor::encode(&reply).into() }, b"").await;
        // It knows only those it is linked with; the others hear it from us.
        self.spread(&id, taken).await;
        if pushed.more {
            self.sync_soon(id, from);
        }
        answered
    }

    async fn answer_hello(&self, mut request: Request) -> Result<(), StreamError> {
        let shown = request.recv.read_all(STRANGER_BYTES_MAX).await?;
        if shown.is_empty() || request.caller.member.is_some() {
            return request.send.reply(&ReplyHead::default(), b"").await;
        }
        let log = Item::parse(&shown).ok().and_then(|item| item.as_key_log());
        let Some(log) = log.filter(|log| log.current() == request.caller.key) else {
            self.0.links.stats().refuse(Refusal::Stranger);
            return request.send.refuse(Status::Invalid, "not the key log of the session's key").await;
        };
        match self.take_shown_log(&request.caller.federation, &log).await {
            true => request.send.reply(&ReplyHead::default(), b"").await,
            false => {
                self.0.links.stats().refuse(Refusal::Stranger);
                request.send.refuse(Status::Denied, "no active member's key log").await
            }
        }
    }

    async fn answer_join(&self, mut request: Request) -> Result<(), StreamError> {
        let body = request.recv.read_all(JOIN_REQUEST_BYTES_MAX).await?;
        match self.admit(&request.caller, &body).await {
            Ok(welcome) => request.send.reply(&ReplyHead::default(), &welcome).await,
            Err(error) => {
                self.0.links.stats().refuse(Refusal::Join);
                tracing::info!(%error, "nobody was let in");
                request.send.end(&refused(error)).await
            }
        }
    }

    async fn answer_claim(&self, mut request: Request) -> Result<(), StreamError> {
        if !self.is_claim_token(&request.head.params) {
            self.0.links.stats().refuse(Refusal::Join);
            return request.send.end(&refused(JoinError::Token)).await;
        }
        // Whoever knows the token may send as much as a welcome takes.
        request.recv.allow(JOIN_REPLY_BYTES_MAX);
        let body = request.recv.read_all(JOIN_REPLY_BYTES_MAX).await?;
        match self.be_claimed(&request.caller, &body).await {
            Ok(()) => request.send.reply(&ReplyHead::default(), b"").await,
            Err(error) => request.send.end(&refused(error)).await,
        }
    }

    async fn answer_leave(&self, request: Request) -> Result<(), StreamError> {
        let Some(member) = request.caller.member else {
            return request.send.refuse(Status::Denied, "not a member").await;
        };
        match self.release(&request.caller.federation, member).await {
            Ok(()) => request.send.reply(&ReplyHead::default(), b"").await,
            Err(error) => request.send.refuse_unbegun(Status::Unavailable, error.to_string()).await,
        }
    }
}
