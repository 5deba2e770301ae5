//! Coming into a federation and leaving it: invitations, joining, relays, removal.

use crate::{
    carry_out::ActFailed,
    identity::{IdentityError, random},
    intents::{CLAIM, HELLO, JOIN, LEAVE, join_error_from},
    keep::Row,
    options::NodeRole,
    runtime::Runtime,
    state::{State, lock},
    sync::More,
    tables::{INDEX_ITEMS, INVITES, LEDGER_ITEMS},
};
use kos_engine::{Federation, Input, WelcomeError};
use kos_governance::{
    act::{Action, Admit, Role},
    acts::ActError,
    code::{CodeError, Invitation, RelayLine},
    genesis::Genesis,
    invite::{Invite, InviteProof},
    join::{JoinError, JoinReply, JoinRequest},
};
use kos_mesh::{
    Multiaddr,
    link::{CallError, Caller, To},
};
use kos_protocol::{
    cbor,
    id::{AgentClass, FederationId, MemberId, ObjectId},
    key::{PublicKey, SecretKey},
    key_log::KeyLog,
    limits::{JOIN_REPLY_BYTES_MAX, PARAMS_BYTES_MAX},
    message::{End, Head, Status},
    object::{Scope, Signed},
    preamble::Notice,
    session::HandshakeError,
};
use kos_store::{Batch, CommitError, ReadError};
use serde::Serialize;
use serde_bytes::ByteArray;
use std::{sync::Arc, time::Duration};

/// How long joining may take once it was accepted.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a request to join is made when its stream is cut.
const JOIN_TRIES: u32 = 4;
/// How often a claim is tried, and how long apart.
const CLAIM_TRIES: u32 = 10;
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// How long a removed member is given to hear of it from us.
const FAREWELL: Duration = Duration::from_millis(300);

/// What an invitation shall offer.
#[derive(Clone, Debug)]
pub struct InviteOptions {
    /// As what.
    pub role: Role,
    /// How many may join with it.
    pub uses: u32,
    /// How long the offer stands, in milliseconds.
    pub ttl_ms: u64,
    /// When the membership ends, in wall milliseconds; none for no end.
    pub until_ms: Option<u64>,
    /// Good for joining on this LAN: no address needs to be reachable from outside.
    pub lan: bool,
    /// For the own list.
    pub note: Option<String>,
}

/// An invitation just made.
#[derive(Clone, Debug, Serialize)]
pub struct Issued {
    /// The code. Whoever holds it may join.
    pub code: String,
    /// The id of the signed invitation, for the list and for revoking.
    pub id: String,
    /// As what.
    pub role: Role,
    /// How many may join.
    pub uses: u32,
    /// When the offer ends, in wall milliseconds.
    pub expires_ms: u64,
    /// Where the newcomer will look for this node.
    pub addresses: Vec<String>,
}

/// An invitation in the list.
#[derive(Clone, Debug, Serialize)]
pub struct InviteSummary {
    /// The id of the signed invitation.
    pub id: String,
    /// As what.
    pub role: Role,
    /// How many may join.
    pub uses: u32,
    /// How many have.
    pub used: usize,
    /// When the offer ends, in wall milliseconds.
    pub expires_ms: u64,
    /// Whether it was withdrawn.
    pub revoked: bool,
    /// The note given.
    pub note: Option<String>,
}

/// Why there is no invitation.
#[derive(Debug, thiserror::Error)]
pub enum InviteFailed {
    /// Nobody outside could use it.
    #[error("no address of this node can be reached from outside")]
    Unreachable,
    /// Only stewards invite.
    #[error("only a steward may invite, and this node is none in that federation")]
    NotASteward,
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
    /// No such invitation.
    #[error("no invitation begins with `{0}`")]
    Unknown(String),
    /// The operating system.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A part above its limit.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// A part above its limit.
    #[error(transparent)]
    Size(#[from] cbor::DecodeError),
    /// The ledger.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The rules.
    #[error(transparent)]
    Act(#[from] ActFailed),
}

/// What a code offers, before anything is sent.
#[derive(Clone, Debug, Serialize)]
pub struct JoinPreview {
    /// Into which federation.
    pub federation: FederationId,
    /// What people call it.
    pub federation_name: String,
    /// The steward who offers.
    pub issuer: MemberId,
    /// As what.
    pub role: Role,
    /// What that role may do, a sentence each.
    pub rights: Vec<String>,
    /// When the membership ends, in wall milliseconds; none for no end.
    pub until_ms: Option<u64>,
    /// When the offer ends, in wall milliseconds.
    pub expires_ms: u64,
    /// Whether the federation we are in now has content, so that joining has to be told what becomes of it.
    pub current_has_content: bool,
}

/// A federation just joined.
#[derive(Clone, Debug, Serialize)]
pub struct Joined {
    /// Which.
    pub federation: FederationId,
    /// What people call it.
    pub federation_name: String,
    /// As what.
    pub role: Role,
    /// What the others see us as.
    pub name: String,
    /// How many active members it has, us included.
    pub members: usize,
}

/// Why we did not come in.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailed {
    /// The code.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The steward's answer, or our own look at the invitation.
    #[error(transparent)]
    Refused(#[from] JoinError),
    /// The steward's node cannot be reached.
    #[error("the steward's node cannot be reached: {0}")]
    Unreachable(String),
    /// The steward's node did not answer in time.
    #[error("the steward's node did not answer in time")]
    Timeout,
    /// The answer does not hold.
    #[error("the answer does not make this node a member: {0}")]
    Welcome(#[from] WelcomeError),
    /// The answer is malformed.
    #[error("the steward's answer is malformed")]
    Malformed,
    /// Joining would leave a federation of one that has content.
    #[error("the federation this node is in has agents or members of its own")]
    HasContent,
    /// The ledger.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why a relay was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RelayFailed {
    /// The line.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// Only stewards admit.
    #[error(transparent)]
    Act(#[from] ActFailed),
    /// The relay's answer.
    #[error("the relay refused: {0}")]
    Refused(#[from] JoinError),
    /// The relay cannot be reached.
    #[error("the relay cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the relay did not answer in time")]
    Timeout,
    /// The ledger.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
}

/// Why a member was not removed.
#[derive(Debug, thiserror::Error)]
pub enum MemberFailed {
    /// The rules.
    #[error(transparent)]
    Act(#[from] ActFailed),
    /// The ledger.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why we did not leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveFailed {
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
    /// We are the only steward of others.
    #[error("this node is the only steward; admit another steward first, or remove the members")]
    OnlySteward,
    /// The ledger.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The ledger.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// No randomness, or no keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The scope of sessions in which a relay is claimed: it is in no federation yet that both ends know.
pub(crate) const NOWHERE: FederationId = FederationId::from_bytes([0; 32]);

/// Ends the time as a stranger, however joining ends.
struct Joining(Arc<State>, FederationId);

impl Joining {
    fn begin(state: &Arc<State>, federation: FederationId) -> Self {
        state.begin_joining(federation);
        Self(state.clone(), federation)
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.0.end_joining(&self.1);
    }
}

impl Runtime {
    /// Replaces this node's key by the next one, and goes on under it: links of the old key end, records and
    /// certificates are published anew. The mesh has its id from the key, so the process must start again. Members that
    /// hear nothing of it now are shown the key log when they are met again.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn rotate(&self, words: Option<&str>) -> Result<PublicKey, IdentityError> {
        let state = &self.0.state;
        let secrets = &self.0.options.secrets;
        let identity = state.identity().rotate(&state.folder, &state.ledger, secrets, words)?;
        let (key, log) = (identity.key(), identity.log().clone());
        let item = kos_engine::Item::key_log(&log).to_bytes();
        let ids: Vec<_> = self.0.state.federations().keys().copied().collect();
        // The others must know the new key before the old one is gone: they would take us for strangers.
        for id in &ids {
            let now = self.0.state.now();
            self.push_to_all(id, vec![item.clone()]).await;
            self.0.state.with(id, |federation| federation.handle(now, Input::Rotated(&log)));
        }
        self.0.state.set_identity(identity);
        for id in &ids {
            // The identity is the new one already; a federation that could not keep the log gets it at the next start.
            if let Err(error) = self.settle(id).await {
                tracing::warn!(%error, "the new key is not in the federation's rows yet");
            }
        }
        Ok(key)
    }

    /// Makes an invitation.
    ///
    /// # Errors
    /// [`InviteFailed`].
    pub async fn invite(&self, id: &FederationId, options: InviteOptions) -> Result<Issued, InviteFailed> {
        let addresses = self.invite_addresses(options.lan).await?;
        let invite_key = SecretKey::from_seed(&random()?);
        let (identity, now) = (self.0.state.identity(), self.0.state.now());
        let invite = self
            .0
            .state
            .with(id, |federation| {
                let steward =
                    federation.roster().active_member(&identity.member()).filter(|me| me.is_active_steward());
                let steward = steward.ok_or(InviteFailed::NotASteward)?;
                let invite = Invite {
                    federation: *id,
                    federation_name: federation.acts().genesis().charter().name.clone(),
                    invite_key: invite_key.public(),
                    role: options.role,
                    uses: options.uses,
                    expires_ms: now.wall_ms.saturating_add(options.ttl_ms),
                    until_ms: options.until_ms,
                    author: identity.member(),
                    key_seq: steward.key_log.seq(),
                    note: options.note.clone(),
                };
                Ok::<_, InviteFailed>(Signed::sign(invite, Scope::Federation(*id), identity.secret())?)
            })
            .ok_or(InviteFailed::NotInFederation)??;
        let mut batch = Batch::new();
        batch.put(INVITES, &(*id.as_bytes(), *invite.id().as_bytes()), invite.bytes());
        self.0.state.ledger.commit_async(batch).await?;
        let issued = Issued {
            code: String::new(),
            id: invite.id().to_string(),
            role: options.role,
            uses: options.uses,
            expires_ms: invite.expires_ms,
            addresses: addresses.clone(),
        };
        let code = Invitation::new(invite, invite_key, identity.key(), addresses)?.to_text();
        Ok(Issued { code, ..issued })
    }

    /// Confirmed addresses and circuits; on the LAN those of our interfaces instead.
    async fn invite_addresses(&self, lan: bool) -> Result<Vec<String>, InviteFailed> {
        let snapshot = self.0.mesh.snapshot().await.ok_or(InviteFailed::Unreachable)?;
        let outside: Vec<Multiaddr> =
            self.0.options.external.iter().chain(&snapshot.external).cloned().collect();
        let mut addresses = outside;
        if lan {
            addresses.splice(0..0, self.inner_addresses(&snapshot));
        }
        if addresses.is_empty() {
            return Err(InviteFailed::Unreachable);
        }
        let mut texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        texts.dedup();
        texts.truncate(kos_protocol::limits::CODE_ADDRESSES_MAX);
        Ok(texts)
    }

    /// The invitations we made, newest offer first.
    pub fn invites(&self, id: &FederationId) -> Vec<InviteSummary> {
        let Ok(rows) = self.0.state.ledger.prefix(INVITES, id.as_bytes()) else { return Vec::new() };
        let key = self.0.state.identity().log().clone();
        let read = |bytes: Vec<u8>| {
            let invite = Invite::read(&bytes, *id).ok()?;
            let signer = key.key_at(invite.claim().key_seq)?;
            let invite = invite.verify(&signer).ok()?;
            self.0.state.with(id, |federation| InviteSummary {
                id: invite.id().to_string(),
                role: invite.role,
                uses: invite.uses,
                used: federation.acts().invite_uses(&invite.id()),
                expires_ms: invite.expires_ms,
                revoked: federation.acts().invite_revoked(&invite.id()),
                note: invite.note.clone(),
            })
        };
        let mut list: Vec<_> = rows.flatten().filter_map(|(_, bytes)| read(bytes)).collect();
        list.sort_by_key(|invite| std::cmp::Reverse(invite.expires_ms));
        list
    }

    /// Withdraws an invitation: its id, or the beginning of it.
    ///
    /// # Errors
    /// [`InviteFailed`].
    pub async fn revoke(&self, id: &FederationId, text: &str) -> Result<(), InviteFailed> {
        let matching: Vec<String> = self
            .invites(id)
            .into_iter()
            .map(|invite| invite.id)
            .filter(|own| !text.is_empty() && own.starts_with(text))
            .collect();
        let [only] = matching.as_slice() else {
            return Err(InviteFailed::Unknown(text.escape_default().to_string()));
        };
        let invite: ObjectId = only.parse().map_err(|_| InviteFailed::Unknown(text.to_owned()))?;
        let item = self.act(id, &Action::Revoke { invite })?;
        self.settle(id).await?;
        self.push_to_all(id, vec![item]).await;
        Ok(())
    }

    /// What a code offers. Sends nothing.
    ///
    /// # Errors
    /// [`JoinFailed::Code`], and [`JoinFailed::Refused`] where the code itself tells that it is of no use any more.
    pub fn preview(&self, code: &str) -> Result<JoinPreview, JoinFailed> {
        let invitation = Invitation::parse(code)?;
        let invite = invitation.invite();
        if self.0.state.now().wall_ms > invite.expires_ms {
            return Err(JoinError::Expired.into());
        }
        if self.0.state.federations().contains_key(&invite.federation) && self.is_active(&invite.federation) {
            return Err(JoinError::AlreadyMember.into());
        }
        Ok(JoinPreview {
            federation: invite.federation,
            federation_name: invite.federation_name.clone(),
            issuer: invite.author,
            role: invite.role,
            rights: invite.role.rights().iter().map(|&right| right.to_owned()).collect(),
            until_ms: invite.until_ms,
            expires_ms: invite.expires_ms,
            current_has_content: self.current_has_content(),
        })
    }

    fn is_active(&self, id: &FederationId) -> bool {
        let own = self.0.state.identity().member();
        self.0.state.with(id, |federation| federation.roster().active_member(&own).is_some()) == Some(true)
    }

    /// Whether the default federation holds more than ourselves: other members, acts, or agents of ours
    /// besides the one every node has.
    fn current_has_content(&self) -> bool {
        let current = self.0.state.default_federation();
        self.0.state.with(&current, |federation| {
            !federation.acts().is_empty()
                || federation.roster().active().count() > 1
                || federation.own_agents().any(|agent| agent.agent.class() != AgentClass::Sentinel)
        }) == Some(true)
    }

    /// Joins with a code. A federation of one without content is dropped; one with content stays beside the new one
    /// when `keep_current`, and is a reason not to join otherwise.
    ///
    /// # Errors
    /// [`JoinFailed`].
    pub async fn join(&self, code: &str, keep_current: bool) -> Result<Joined, JoinFailed> {
        let preview = self.preview(code)?;
        if preview.current_has_content && !keep_current {
            return Err(JoinFailed::HasContent);
        }
        let invitation = Invitation::parse(code)?;
        let id = invitation.federation();
        let to = To { federation: id, key: invitation.issuer_key() };
        let addresses: Vec<Multiaddr> =
            invitation.addresses().iter().filter_map(|text| text.parse().ok()).collect();
        lock(&self.0.wire.hints).insert(to.key, addresses.clone());
        let joining = Joining::begin(&self.0.state, id);
        let welcome = tokio::time::timeout(JOIN_TIMEOUT, self.ask_to_join(&to, &invitation)).await;
        self.0.links.close(&to.key);
        drop(joining);
        let welcome = welcome.map_err(|_| JoinFailed::Timeout)??;
        let me = self.0.state.identity().member();
        let federation = Federation::welcomed(self.0.state.now(), me, Some(id), &welcome)?;
        self.keep_way(to.key, &addresses);
        self.enter(federation, !preview.current_has_content).await?;
        // The rest comes by catch-up, from the steward first.
        self.sync_twice(id, to.key);
        self.joined(&id).ok_or(JoinFailed::Malformed)
    }

    fn joined(&self, id: &FederationId) -> Option<Joined> {
        let own = self.0.state.identity().member();
        self.0
            .state
            .with(id, |federation| {
                let me = federation.roster().active_member(&own)?;
                Some(Joined {
                    federation: *id,
                    federation_name: federation.acts().genesis().charter().name.clone(),
                    role: me.role,
                    name: me.name.clone(),
                    members: federation.roster().active().count(),
                })
            })
            .flatten()
    }

    /// Asks until there is an answer. The change of connection that a first contact sets off (a circuit, then a direct
    /// connection) may cut the stream under a request; asking again is safe, as nobody is admitted twice.
    async fn ask_to_join(&self, to: &To, invitation: &Invitation) -> Result<JoinReply, JoinFailed> {
        let mut tries_left = JOIN_TRIES;
        loop {
            tries_left -= 1;
            match self.ask_to_join_once(to, invitation).await {
                Err(CallError::Stream(error)) if tries_left > 0 => {
                    tracing::debug!(%error, "joining: the stream was cut, asking again");
                    self.0.links.close_in(to);
                }
                // Whoever answers there is not in that federation: the steward left it, or its node began anew.
                Err(CallError::Handshake(HandshakeError::Refused(Notice::UnknownFederation))) => {
                    return Err(JoinError::OtherFederation.into());
                }
                Err(error) => return Err(JoinFailed::Unreachable(error.to_string())),
                Ok(outcome) => return outcome,
            }
        }
    }

    /// Two exchanges in one session: the first makes it, the second proves with its hash that we hold the code.
    async fn ask_to_join_once(
        &self,
        to: &To,
        invitation: &Invitation,
    ) -> Result<Result<JoinReply, JoinFailed>, CallError> {
        let hello = Head { intent: HELLO.to_owned(), ..Head::default() };
        let greeted = match self.0.links.ask(*to, &hello, b"", 0).await? {
            Ok(greeted) => greeted,
            Err(end) => return Ok(Err(JoinFailed::Unreachable(end.to_string()))),
        };
        let identity = self.0.state.identity();
        let hash = greeted.handshake_hash();
        let request = JoinRequest {
            federation: to.federation,
            name: self.0.state.name(),
            key_log: identity.log().to_list(),
            invite: invitation.invite().bytes().to_vec().into(),
            proof: InviteProof::sign(invitation.invite_key(), to.federation, hash, identity.member()),
        };
        let head = Head { intent: JOIN.to_owned(), ..Head::default() };
        let body = cbor::encode(&request);
        let asked = self.0.links.ask_beside(&greeted, &head, &body, JOIN_REPLY_BYTES_MAX).await?;
        Ok(asked
            .map_err(|end| answer_error(&end).into())
            .and_then(|answer| JoinReply::decode(&answer.body).map_err(|_| JoinFailed::Malformed)))
    }

    /// Takes a federation in, as the default one; the federation of one we had goes if `replace`.
    async fn enter(&self, federation: Federation, replace: bool) -> Result<(), CommitError> {
        let id = federation.id();
        let previous = self.0.state.default_federation();
        self.0.state.federations().insert(id, federation);
        self.settle(&id).await?;
        self.make_default(id).await?;
        if replace && previous != id {
            self.drop_federation(&previous).await?;
        }
        self.refresh_members().await;
        self.subscribe(&id).await;
        self.tell_links(&id);
        self.carry_out(&id);
        self.0.republish.notify_one();
        if let Err(error) = self.publish_offers(&id) {
            tracing::debug!(%error, "no agents were published");
        }
        self.0.app.changed(crate::app::Change::Members);
        Ok(())
    }

    /// Forgets a federation: its rows, topics and sessions.
    async fn drop_federation(&self, id: &FederationId) -> Result<(), CommitError> {
        let gone = self.0.state.federations().remove(id);
        for member in gone.iter().flat_map(|federation| federation.roster().members()) {
            self.0.links.close_in(&To { federation: *id, key: member.key() });
        }
        lock(&self.0.published).remove(id);
        let topics: Vec<String> = {
            let mut topics = lock(&self.0.topics);
            let gone = topics.iter().filter(|(_, of)| *of == id).map(|(topic, _)| topic.clone()).collect();
            topics.retain(|_, of| of != id);
            gone
        };
        for topic in topics {
            self.0.mesh.unsubscribe(topic).await;
        }
        self.forget_rows(id).await
    }

    async fn forget_rows(&self, id: &FederationId) -> Result<(), CommitError> {
        let (ledger, index) = (&self.0.state.ledger, &self.0.state.index);
        // What is under way comes first, or it would be written behind the deletion.
        self.0.keeper.settle().await?;
        let items = ledger.prefix(LEDGER_ITEMS, id.as_bytes()).into_iter().flatten().flatten();
        let items = items.map(|((_, key), _)| (Row::Item(*id, key), None));
        self.0.keeper.put(items.chain([(Row::Genesis(*id), None)]));
        // The counters of peers stay: without them old early data could be replayed once we are back.
        let mut batch = Batch::new();
        for ((_, invite), _) in ledger.prefix(INVITES, id.as_bytes()).into_iter().flatten().flatten() {
            batch.delete(INVITES, &(*id.as_bytes(), invite));
        }
        ledger.commit_async(batch).await?;
        for (key, _) in index.prefix(INDEX_ITEMS, id.as_bytes()).into_iter().flatten().flatten() {
            if let Err(error) = index.delete(INDEX_ITEMS, &key) {
                tracing::debug!(%error, "a record of a federation that was left stays");
            }
        }
        self.0.keeper.settle().await
    }

    /// A steward's side of joining: judges the request, admits, tells the others, returns the welcome.
    pub(crate) async fn admit(&self, caller: &Caller, body: &[u8]) -> Result<Vec<u8>, JoinError> {
        let request = JoinRequest::decode(body).map_err(|_| JoinError::Refused)?;
        let id = caller.federation;
        // The invitation is judged first: a stranger's key log costs a signature check for each of its events.
        let action = self
            .0
            .state
            .with(&id, |federation| request.to_action(federation.acts(), &caller.handshake_hash))
            .ok_or(JoinError::OtherFederation)??;
        let log = KeyLog::parse(&request.key_log).map_err(|_| JoinError::KeyLog)?;
        if log.current() != caller.key {
            return Err(JoinError::KeyLog);
        }
        let was_admitted = match self.act(&id, &action) {
            Ok(item) => Some(item),
            // Our answer was lost and it asks again: it is in, so it is told once more. Or it is a member whose folder
            // was lost, back under its next key.
            Err(ActFailed::Act(ActError::AlreadyMember(_)))
                if caller.member == Some(log.member()) || self.take_shown_log(&id, &log).await =>
            {
                None
            }
            Err(ActFailed::Act(error)) => return Err(JoinError::from(&error)),
            Err(_) => return Err(JoinError::Refused),
        };
        self.settle(&id).await.map_err(|_| JoinError::Refused)?;
        self.refresh_members().await;
        if let Some(item) = was_admitted {
            // Relays first of all: the newcomer's calls may be carried by them at once.
            self.push_to_all(&id, vec![item]).await;
        }
        let welcome =
            self.0.state.with(&id, |federation| federation.welcome()).ok_or(JoinError::OtherFederation)?;
        Ok(cbor::encode(&welcome))
    }

    /// Takes in the log of a key that we do not know yet, and tells everybody. False unless it goes on from the one we
    /// know of an active member.
    pub(crate) async fn take_shown_log(&self, id: &FederationId, log: &KeyLog) -> bool {
        let now = self.0.state.now();
        let is_taken = self.0.state.with(id, |federation| {
            let is_active = federation.roster().active_member(&log.member()).is_some();
            is_active && federation.handle(now, Input::Rotated(log)).taken().is_ok()
        });
        if is_taken != Some(true) || self.settle(id).await.is_err() {
            return false;
        }
        self.refresh_members().await;
        self.push_to_all(id, vec![kos_engine::Item::key_log(log).to_bytes()]).await;
        true
    }

    /// Admits a relay by the line it prints, and makes it ours.
    ///
    /// # Errors
    /// [`RelayFailed`].
    pub async fn relay_add(&self, id: &FederationId, line: &str) -> Result<MemberId, RelayFailed> {
        let line = RelayLine::parse(line)?;
        let (member, key) = (line.key_log.member(), line.key_log.current());
        let addresses: Vec<Multiaddr> = line.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.keep_way(key, &addresses);
        // Reach it before anything is decided: a relay that is not there would be a member that never comes.
        let peer = crate::wire::peer_of(&key);
        self.0
            .mesh
            .connect(peer, addresses)
            .await
            .map_err(|error| RelayFailed::Unreachable(error.to_string()))?;
        let admitted =
            self.0.state.with(id, |federation| federation.roster().active_member(&member).is_some());
        let was_admitted = admitted.ok_or(RelayFailed::NotInFederation)?;
        let items = match was_admitted {
            true => Vec::new(),
            false => {
                let admit = Admit {
                    member,
                    role: Role::Relay,
                    name: line.name.clone(),
                    key_log: line.key_log.to_list(),
                    invite: None,
                    proof: None,
                    until_ms: None,
                };
                vec![self.act(id, &Action::Admit(Box::new(admit)))?]
            }
        };
        self.settle(id).await?;
        let claimed = tokio::time::timeout(JOIN_TIMEOUT, self.claim(id, key, line.token)).await;
        if let Err(error) = claimed.unwrap_or(Err(RelayFailed::Timeout)) {
            if !was_admitted {
                // It never came, so it is let go again; another line of it may bring it.
                self.act(id, &Action::Release { member })?;
                self.settle(id).await?;
            }
            return Err(error);
        }
        self.push_to_all(id, items).await;
        self.reserve_relays();
        self.sync_soon(*id, key);
        Ok(member)
    }

    async fn claim(&self, id: &FederationId, key: PublicKey, token: [u8; 16]) -> Result<(), RelayFailed> {
        let welcome =
            self.0.state.with(id, |federation| federation.welcome()).ok_or(RelayFailed::NotInFederation)?;
        let head = Head {
            intent: CLAIM.to_owned(),
            params: ByteArray::new(token).to_vec().into(),
            ..Head::default()
        };
        let unreachable = |error: &dyn std::fmt::Display| RelayFailed::Unreachable(error.to_string());
        let body = cbor::encode(&welcome);
        let _claiming = Joining::begin(&self.0.state, NOWHERE);
        let to = To { federation: NOWHERE, key };
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            match self.0.links.ask(to, &head, &body, 0).await {
                // To the relay we are strangers still, with one stream; a catch-up begun too early may have it.
                Err(error) if tries < CLAIM_TRIES => {
                    tracing::debug!(%error, "the claim is tried again");
                    tokio::time::sleep(CLAIM_PAUSE).await;
                }
                answer => break answer,
            }
        };
        self.0.links.close(&key);
        answer.map_err(|error| unreachable(&error))?.map(drop).map_err(|end| answer_error(&end).into())
    }

    /// A relay's side: whether the caller knows the token of the line we printed.
    pub(crate) fn is_claim_token(&self, shown: &[u8]) -> bool {
        let token = lock(&self.0.claim_token);
        shown.len() <= PARAMS_BYTES_MAX && token.is_some_and(|token| is_same(&token, shown))
    }

    /// A relay's side: becomes a member of the federation it is shown, and draws a new token.
    pub(crate) async fn be_claimed(&self, caller: &Caller, body: &[u8]) -> Result<(), JoinError> {
        let welcome = JoinReply::decode(body).map_err(|_| JoinError::Refused)?;
        let me = self.0.state.identity().member();
        let federation = Federation::welcomed(self.0.state.now(), me, None, &welcome)
            .map_err(|_| JoinError::NotAdmitted)?;
        // Whoever learned the token must still be a steward of what it claims us for.
        let steward = federation
            .roster()
            .by_key(&caller.key)
            .and_then(|(id, ..)| federation.roster().active_member(&id));
        if !steward.is_some_and(|steward| steward.is_active_steward()) {
            return Err(JoinError::NotASteward);
        }
        self.enter(federation, false).await.map_err(|_| JoinError::Refused)?;
        *lock(&self.0.claim_token) = None;
        self.0.app.changed(crate::app::Change::Claimed);
        Ok(())
    }

    /// The line this relay prints: whoever passes it to `kai relay add` claims the relay.
    ///
    /// # Errors
    /// [`InviteFailed`].
    pub fn relay_line(&self) -> Result<String, InviteFailed> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&random()?[..16]);
        let token = *lock(&self.0.claim_token).get_or_insert(bytes);
        let addresses = self.0.options.external.iter().map(ToString::to_string);
        let line = RelayLine {
            name: self.0.state.name(),
            key_log: self.0.state.identity().log().clone(),
            addresses: addresses.take(kos_protocol::limits::CODE_ADDRESSES_MAX).collect(),
            token,
        };
        Ok(line.to_text()?)
    }

    /// Removes a member for good: tells it, closes its sessions here, tells the others, has a new discovery secret
    /// drawn. Only [`Runtime::reinstate`] brings it back.
    ///
    /// # Errors
    /// [`MemberFailed`].
    pub async fn remove_member(
        &self,
        id: &FederationId,
        member: MemberId,
        why: String,
    ) -> Result<(), MemberFailed> {
        self.part_with(id, member, &Action::Expel { member, why }).await
    }

    /// As [`Runtime::remove_member`], but an invitation, or for a relay its line, brings it back.
    ///
    /// # Errors
    /// [`MemberFailed`].
    pub async fn let_go(&self, id: &FederationId, member: MemberId) -> Result<(), MemberFailed> {
        self.part_with(id, member, &Action::Release { member }).await
    }

    /// Makes a member that was removed, or left, active again.
    ///
    /// # Errors
    /// [`MemberFailed`].
    pub async fn reinstate(&self, id: &FederationId, member: MemberId) -> Result<(), MemberFailed> {
        let item = self.act(id, &Action::Reinstate { member })?;
        self.settle(id).await?;
        self.refresh_members().await;
        self.push_to_all(id, vec![item]).await;
        Ok(())
    }

    async fn part_with(
        &self,
        id: &FederationId,
        member: MemberId,
        action: &Action,
    ) -> Result<(), MemberFailed> {
        let others = self.linked_members(id);
        let key = self
            .0
            .state
            .with(id, |federation| federation.roster().active_member(&member).map(|member| member.key()));
        let item = self.act(id, action)?;
        // The removed one hears it from us while its session still stands.
        if let Some(key) = key.flatten().filter(|key| others.contains(key)) {
            // Without the secret: another task may have drawn the one that it must not have.
            let farewell = self.push(id, key, std::slice::from_ref(&item), None, More::None);
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
        }
        self.settle(id).await?;
        self.push_to_all(id, vec![item]).await;
        Ok(())
    }

    /// A steward's side of leaving: lets the member go; a new invitation may bring it back.
    pub(crate) async fn release(&self, id: &FederationId, member: MemberId) -> Result<(), MemberFailed> {
        // Checked now, done in a moment, in a task of its own: it ends the very session that asks for it.
        self.may_act(id, &Action::Release { member })?;
        let (runtime, id) = (self.clone(), *id);
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            let released = runtime.act(&id, &Action::Release { member });
            match released {
                Ok(item) => {
                    if let Err(error) = runtime.settle(&id).await {
                        tracing::warn!(%error, "a release was not stored");
                    }
                    runtime.push_to_all(&id, vec![item]).await;
                }
                Err(error) => tracing::warn!(%error, "a member was not released"),
            }
        });
        Ok(())
    }

    /// Leaves a federation: asks a steward to be let go, forgets it, and has one of its own again.
    ///
    /// # Errors
    /// [`LeaveFailed`].
    pub async fn leave(&self, id: &FederationId) -> Result<(), LeaveFailed> {
        let own = self.0.state.identity().member();
        let stewards = self.0.state.with(id, |federation| {
            let is_steward = federation.roster().active_member(&own).is_some_and(|me| me.is_active_steward());
            let others = federation.roster().active().count() > 1;
            let stewards = federation.roster().stewards();
            let keys: Vec<PublicKey> =
                stewards.iter().filter(|steward| steward.id != own).map(|steward| steward.key()).collect();
            (is_steward && others && keys.is_empty(), keys)
        });
        let (is_only_steward, stewards) = stewards.ok_or(LeaveFailed::NotInFederation)?;
        if is_only_steward {
            return Err(LeaveFailed::OnlySteward);
        }
        let idempotency_key = Some(serde_bytes::ByteBuf::from(random()?));
        let head = Head { intent: LEAVE.to_owned(), idempotency_key, ..Head::default() };
        for key in stewards {
            let asked = self.0.links.ask(To { federation: *id, key }, &head, b"", 0);
            if let Ok(Ok(Ok(_))) = tokio::time::timeout(Duration::from_secs(5), asked).await {
                break;
            }
        }
        self.drop_federation(id).await?;
        let next = self.0.state.federations().keys().next().copied();
        if next.is_none() && self.0.options.role == NodeRole::Home {
            let (identity, name) = (self.0.state.identity(), self.0.state.name());
            let genesis = Genesis::household(random()?, &name, &name, identity.log())
                .map_err(|error| IdentityError::Random(error.to_string()))?;
            let federation = Federation::found(self.0.state.now(), genesis, identity.member());
            self.enter(federation, false).await?;
        } else if let Some(next) = next {
            self.make_default(next).await?;
        }
        self.refresh_members().await;
        Ok(())
    }
}

fn answer_error(end: &End) -> JoinError {
    if end.status == Status::Denied { join_error_from(&end.text) } else { JoinError::Refused }
}

/// Compares in a time that does not depend on where the two differ.
fn is_same(token: &[u8; 16], shown: &[u8]) -> bool {
    shown.len() == token.len() && token.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}
