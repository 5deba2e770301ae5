//! Heartbeats, probes and suspicions: what liveness orders, done. SPEC §9.15.

use crate::{
    intents::{ALIVE, Alive, PING},
    runtime::Runtime,
    wire::peer_of,
};
use kos_directory::liveness::{HEARTBEAT_MS, Input as Liveness, Reached};
use kos_engine::Input;
use kos_mesh::link::To;
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId},
    key::PublicKey,
    message::Head,
    object::{Scope, Signed},
};
use std::time::{Duration, Instant};

/// How long a heartbeat waits for its answer.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(HEARTBEAT_MS);
/// How long a probe waits where there is a link,
const PROBE_LINKED_TIMEOUT: Duration = Duration::from_millis(1_500);
/// and where one has to be made.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl Runtime {
    /// Tells every federation in which the holder of `key` is a member that something happened to it.
    pub(crate) fn tell_liveness(&self, key: &PublicKey, input: impl Fn(MemberId) -> Liveness) {
        for (federation, member) in self.0.state.memberships(key) {
            self.live(&federation, input(member));
        }
    }

    /// Tells a federation with whom there are links: some may have become members since. Its orders wait for whoever
    /// carries out what led here.
    pub(crate) fn tell_links(&self, id: &FederationId) {
        let now = self.0.state.now();
        for key in self.linked_members(id) {
            self.0.state.with(id, |federation| {
                let member = federation.roster().by_key(&key).map(|(member, ..)| member);
                member.map(|member| federation.handle(now, Input::Liveness(Liveness::Linked(member))))
            });
        }
    }

    pub(crate) fn live(&self, id: &FederationId, input: Liveness) {
        let now = self.0.state.now();
        self.0.state.with(id, |federation| federation.handle(now, Input::Liveness(input)));
        self.carry_out(id);
    }

    fn key_of_member(&self, id: &FederationId, member: &MemberId) -> Option<PublicKey> {
        let key =
            |federation: &mut kos_engine::Federation| Some(federation.roster().active_member(member)?.key());
        self.0.state.with(id, key).flatten()
    }

    pub(crate) fn send_heartbeat(&self, id: &FederationId, to: &MemberId) {
        let Some(key) = self.key_of_member(id, to) else { return };
        let (runtime, to) = (self.clone(), To { federation: *id, key });
        tokio::spawn(async move {
            let params = cbor::encode(&Alive { period_ms: HEARTBEAT_MS });
            let head = Head { intent: ALIVE.to_owned(), params: params.into(), ..Head::default() };
            let begun = Instant::now();
            let beat = tokio::time::timeout(HEARTBEAT_TIMEOUT, runtime.0.links.ask(to, &head, &[], 0));
            let input = match beat.await {
                Ok(Ok(Ok(_))) => Liveness::Acknowledged { after_ms: begun.elapsed().as_millis() as u64 },
                _ => Liveness::Unacknowledged,
            };
            runtime.live(&to.federation, input);
        });
    }

    /// The last heartbeat to a member that watches us no more. Nobody waits for what becomes of it.
    pub(crate) fn release_watcher(&self, id: &FederationId, to: &MemberId) {
        let Some(key) = self.key_of_member(id, to) else { return };
        let (runtime, to) = (self.clone(), To { federation: *id, key });
        tokio::spawn(async move {
            let params = cbor::encode(&Alive { period_ms: 0 });
            let head = Head { intent: ALIVE.to_owned(), params: params.into(), ..Head::default() };
            let _ = tokio::time::timeout(HEARTBEAT_TIMEOUT, runtime.0.links.ask(to, &head, &[], 0)).await;
        });
    }

    pub(crate) fn probe(&self, id: &FederationId, member: MemberId) {
        let Some(key) = self.key_of_member(id, &member) else { return };
        let (runtime, to) = (self.clone(), To { federation: *id, key });
        tokio::spawn(async move {
            let is_linked = runtime.0.mesh.is_direct(&peer_of(&key));
            let timeout = if is_linked { PROBE_LINKED_TIMEOUT } else { PROBE_TIMEOUT };
            let head = Head { intent: PING.to_owned(), ..Head::default() };
            let ping = tokio::time::timeout(timeout, runtime.0.links.ask(to, &head, &[], 0)).await;
            let outcome = if matches!(ping, Ok(Ok(Ok(_)))) { Reached::Yes } else { Reached::No };
            runtime.live(&to.federation, Liveness::Probed { member, outcome });
        });
    }

    /// Signs and publishes what we suspect.
    pub(crate) fn publish_suspicion(
        &self,
        id: &FederationId,
        subject: MemberId,
        subject_seq: u64,
        since_ms: Option<u64>,
    ) {
        let (state, now) = (&self.0.state, self.0.state.now());
        let identity = state.identity();
        let published = state.with(id, |federation| {
            let about = (subject, subject_seq);
            let record = federation.draft_suspicion(now, about, since_ms, state.greatest_record());
            let seq = record.seq;
            let record = Signed::sign(record, Scope::Federation(*id), identity.secret())
                .map_err(|error| error.to_string())?;
            let verdict = federation.handle(now, Input::Published((&record).into()));
            verdict.published().map_err(|error| error.to_string())?;
            Ok::<_, String>(seq)
        });
        match published {
            Some(Ok(seq)) => self.keep_greatest_record(seq),
            Some(Err(error)) => tracing::debug!(%error, "a suspicion was not published"),
            None => {}
        }
    }
}
