//! Measurements that need what no caller does: a connection made from nothing, over and over.

use crate::{intents::PING, runtime::Runtime, wire::peer_of};
use kos_mesh::link::{Body, CallError, To, Unreachable};
use kos_protocol::{
    id::{FederationId, MemberId},
    message::Head,
};
use std::time::{Duration, Instant};

/// What the caller knows of the peer it has no session with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Its key: the handshake is IK and carries the request.
    Key,
    /// Nothing but its addresses: the handshake is XX.
    Addresses,
}

/// How long the other end is given to notice that a connection is gone.
const NOTICED: Duration = Duration::from_millis(200);

impl Runtime {
    /// Drops every connection and session with a member, then measures how long connecting and a first reply take.
    ///
    /// # Errors
    /// [`CallError`], also when it is no active member.
    pub async fn cold_ping(
        &self,
        id: &FederationId,
        member: MemberId,
        knowledge: Knowledge,
    ) -> Result<Duration, CallError> {
        let key = self
            .0
            .state
            .with(id, |federation| federation.roster().active_member(&member).map(|member| member.key()));
        let key = key.flatten().ok_or(CallError::NotInFederation)?;
        let (to, head) = (To { federation: *id, key }, Head { intent: PING.to_owned(), ..Head::default() });
        self.0.links.close(&key);
        self.0.mesh.disconnect(peer_of(&key)).await;
        while !self.0.mesh.links_with(&peer_of(&key)).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(NOTICED).await;
        let begun = Instant::now();
        let answer = match knowledge {
            // A session that another task began while the connection went may be one that the peer gave up.
            Knowledge::Key => self.0.links.request(to, &head, b"").await?.1,
            Knowledge::Addresses => {
                let mut exchange = self.0.links.open_with_xx(to, &head, Body::Whole(b"")).await?;
                exchange.recv.head().await?
            }
        };
        answer.map_err(|end| Unreachable(end.to_string()))?;
        Ok(begun.elapsed())
    }
}
