//! What a newcomer and a steward, or a steward and a relay, say to each other. Encoded with
//! [`cbor::encode`], read with the `decode` of each.

use crate::{
    act::{Action, Admit},
    acts::{ActError, Acts},
    invite::{Invite, InviteError, InviteProof},
};
use kos_protocol::{
    cbor::{self, DecodeError},
    id::{FederationId, MemberId, check_name},
    key_log::{KeyEvent, KeyLog},
    limits::{ACTS_MAX, JOIN_REPLY_BYTES_MAX, JOIN_REQUEST_BYTES_MAX, KEY_EVENTS_MAX},
    object::{Scope, Signed, Unverified},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_bytes::ByteBuf;

/// A newcomer asks to be admitted, inside a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Into which federation.
    pub federation: FederationId,
    /// What it wants to be called.
    pub name: String,
    /// Its key log: the envelopes of `KeyLog::to_list`.
    #[serde(deserialize_with = "cbor::bounded_list::<KEY_EVENTS_MAX, _, _>")]
    pub key_log: Vec<ByteBuf>,
    /// The envelope of the invitation.
    pub invite: ByteBuf,
    /// That it holds the code, bound to this session.
    pub proof: InviteProof,
}

impl JoinRequest {
    /// Reads a request of at most `JOIN_REQUEST_BYTES_MAX`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(bytes, JOIN_REQUEST_BYTES_MAX)
    }

    /// The admission this asks for, to be drafted by a steward with [`Acts::draft`], which checks the rest.
    ///
    /// `handshake_hash` is that of the session the request came through. The invitation and the proof come before the
    /// key log: a stranger without a code costs two signatures, not one for each of its key events.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn to_action(&self, acts: &Acts, handshake_hash: &[u8; 32]) -> Result<Action, JoinError> {
        if self.federation != acts.federation() {
            return Err(JoinError::OtherFederation);
        }
        check_name(&self.name).map_err(|_| JoinError::Name)?;
        if *self.proof.handshake_hash != *handshake_hash {
            return Err(JoinError::Forged);
        }
        let member = self.claimed_member()?;
        let invite = self.genuine_invite(acts, member)?;
        let log = KeyLog::parse(&self.key_log).map_err(|_| JoinError::KeyLog)?;
        assert_eq!(log.member(), member, "the inception event names the member");
        Ok(Action::Admit(Box::new(Admit {
            member,
            role: invite.role,
            name: self.name.clone(),
            key_log: self.key_log.clone(),
            invite: Some(self.invite.clone()),
            proof: Some(self.proof.clone()),
            until_ms: invite.until_ms,
        })))
    }

    /// Who asks, by the inception event alone: its signature and the rest of the log are not looked at yet.
    fn claimed_member(&self) -> Result<MemberId, JoinError> {
        if self.key_log.len() > KEY_EVENTS_MAX {
            return Err(JoinError::KeyLog);
        }
        let inception = self.key_log.first().ok_or(JoinError::KeyLog)?;
        let inception =
            Unverified::<KeyEvent>::parse(inception, Scope::Global).map_err(|_| JoinError::KeyLog)?;
        Ok(MemberId::from_bytes(*inception.id().as_bytes()))
    }

    /// The invitation, if a member signed it, now or in the past, and `member` proves to hold its code. Whether it
    /// still lets anybody in is judged with the act.
    fn genuine_invite(&self, acts: &Acts, member: MemberId) -> Result<Signed<Invite>, JoinError> {
        let fault = |error: InviteError| JoinError::from(&error);
        let read = Invite::read(&self.invite, self.federation).map_err(fault)?;
        let (issuer, key_seq) = (read.claim().author, read.claim().key_seq);
        let key = acts.key_log(&issuer).and_then(|log| log.key_at(key_seq)).ok_or(JoinError::IssuerGone)?;
        let invite = read.verify(&key).map_err(|_| JoinError::Forged)?;
        self.proof.verify(&invite.invite_key, self.federation, member).map_err(|_| JoinError::Forged)?;
        Ok(invite)
    }
}

/// What a new member needs to know to be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The genesis. Its hash is the federation the newcomer was invited to.
    pub genesis: ByteBuf,
    /// Acts, each after those it follows, at most `ACTS_MAX`. What does not fit comes by catch-up.
    #[serde(deserialize_with = "cbor::bounded_list::<ACTS_MAX, _, _>")]
    pub acts: Vec<ByteBuf>,
    /// Key logs that are ahead of the acts, at most `ACTS_MAX`.
    #[serde(deserialize_with = "key_logs")]
    pub key_logs: Vec<Vec<ByteBuf>>,
    /// The envelope of the discovery secret; none when there is none yet.
    #[serde(deserialize_with = "Option::deserialize")]
    pub secret: Option<ByteBuf>,
}

fn key_logs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<ByteBuf>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Log(#[serde(deserialize_with = "cbor::bounded_list::<KEY_EVENTS_MAX, _, _>")] Vec<ByteBuf>);
    let logs = cbor::bounded_list::<ACTS_MAX, Log, _>(deserializer)?;
    Ok(logs.into_iter().map(|Log(events)| events).collect())
}

impl JoinReply {
    /// Puts a reply together from what is known, within `JOIN_REPLY_BYTES_MAX`.
    pub fn new(acts: &Acts, secret: Option<&[u8]>) -> Self {
        let genesis = ByteBuf::from(acts.genesis().bytes());
        let mut room = JOIN_REPLY_BYTES_MAX - genesis.len() - 16 * 1024;
        let mut fits = |bytes: usize| {
            let enough = room.checked_sub(bytes + 8);
            room = enough.unwrap_or(0);
            enough.is_some()
        };
        let listed = acts.in_order().into_iter().map(|(act, _)| ByteBuf::from(act.bytes()));
        let listed = listed.take_while(|act| fits(act.len())).collect();
        let ahead = acts.unrecorded().map(|(log, _)| log.to_list());
        let key_logs = ahead.take_while(|log| fits(log.iter().map(|event| event.len() + 8).sum())).collect();
        Self { genesis, acts: listed, key_logs, secret: secret.map(ByteBuf::from) }
    }

    /// Reads a reply of at most `JOIN_REPLY_BYTES_MAX`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(bytes, JOIN_REPLY_BYTES_MAX)
    }
}

/// Why nobody was let in. Goes over the wire as one word; later versions may add words, read as
/// [`JoinError::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum JoinError {
    /// Too late.
    #[error("the invitation has expired; ask for a new one")]
    Expired,
    /// Somebody else used it.
    #[error("the invitation has been used already; ask for a new one")]
    Used,
    /// A steward withdrew it.
    #[error("the invitation has been withdrawn; ask for a new one")]
    Revoked,
    /// Not signed by a steward, altered, or without the code.
    #[error("the invitation is not genuine")]
    Forged,
    /// The steward who gave it may not invite any more, or has a new key since.
    #[error("the steward who gave this invitation cannot invite with it any more; ask for a new one")]
    IssuerGone,
    /// For another federation than this node's.
    #[error("the invitation is for another federation")]
    OtherFederation,
    /// The node asked is no steward, so it cannot admit.
    #[error("the node that was asked is not a steward; join through the one that invited you")]
    NotASteward,
    /// The name wanted.
    #[error("the name is not possible: 1 to 32 of a-z, 0-9 and `-`")]
    Name,
    /// In already.
    #[error("this node is a member already")]
    AlreadyMember,
    /// Was put out.
    #[error("this node was removed from the federation; a steward has to reinstate it")]
    Expelled,
    /// The newcomer's keys do not verify.
    #[error("the node's key log does not verify or contradicts an earlier one")]
    KeyLog,
    /// The relay does not know the token.
    #[error("the relay does not know this claim token; take the line it prints now")]
    Token,
    /// The claimed relay is not admitted in what it was shown.
    #[error("the relay has not been admitted to the federation that claims it")]
    NotAdmitted,
    /// No room for another act.
    #[error("the federation has no room for another member")]
    Full,
    /// Anything else.
    #[error("the request was refused")]
    #[serde(other)]
    Refused,
}

impl From<&InviteError> for JoinError {
    fn from(error: &InviteError) -> Self {
        match error {
            InviteError::Malformed(_) | InviteError::Forged | InviteError::Unproven | InviteError::Terms => {
                Self::Forged
            }
            InviteError::OtherFederation { .. } => Self::OtherFederation,
            InviteError::IssuerGone | InviteError::OldKey => Self::IssuerGone,
            InviteError::Expired { .. } => Self::Expired,
            InviteError::Used { .. } => Self::Used,
            InviteError::Revoked => Self::Revoked,
        }
    }
}

impl From<&ActError> for JoinError {
    fn from(error: &ActError) -> Self {
        match error {
            ActError::Invite(error) => error.into(),
            ActError::NotASteward(_) | ActError::OldKey(_) => Self::NotASteward,
            ActError::AlreadyMember(_) => Self::AlreadyMember,
            ActError::Expelled(_) => Self::Expelled,
            ActError::Name(_) => Self::Name,
            ActError::KeyLog(_) | ActError::OtherKeyLog(_) | ActError::Forked(_) | ActError::KeyInUse(_) => {
                Self::KeyLog
            }
            ActError::Full | ActError::HeldFull => Self::Full,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{act::Role, genesis::Genesis};
    use kos_protocol::{
        key::SecretKey,
        limits::{
            ACT_BYTES_MAX, ACT_PARENTS_MAX, INVITE_BYTES_MAX, INVITE_USES_MAX, ITEM_BYTES_MAX,
            NAME_BYTES_MAX, STRANGER_BYTES_MAX, WHY_BYTES_MAX,
        },
        time::Timestamp,
    };

    const T0: u64 = 1_800_000_000_000;
    const HASH: [u8; 32] = [5; 32];

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    fn acts() -> Acts {
        let founder = KeyLog::incept(&key(1), &key(2).public());
        Acts::new(Genesis::household([7; 32], "home", "attic", &founder).unwrap())
    }

    /// As long as a key log can be.
    fn longest_log() -> KeyLog {
        let first = KeyLog::incept(&key(100), &key(101).public());
        (101..)
            .take(KEY_EVENTS_MAX - 1)
            .fold(first, |log, n| log.rotate(&key(n), &key(n + 1).public()).unwrap())
    }

    /// With the longest of everything.
    fn request(acts: &Acts) -> JoinRequest {
        let invite = Invite {
            federation: acts.federation(),
            federation_name: "h".repeat(NAME_BYTES_MAX),
            invite_key: key(3).public(),
            role: Role::Steward,
            uses: INVITE_USES_MAX,
            expires_ms: u64::MAX,
            until_ms: Some(u64::MAX),
            author: acts.genesis().charter().roster[0].member,
            key_seq: 0,
            note: Some("n".repeat(WHY_BYTES_MAX)),
        };
        let invite = Signed::sign(invite, Scope::Federation(acts.federation()), &key(1)).unwrap();
        let log = longest_log();
        JoinRequest {
            federation: acts.federation(),
            name: "c".repeat(32),
            key_log: log.to_list(),
            invite: ByteBuf::from(invite.bytes()),
            proof: InviteProof::sign(&key(3), acts.federation(), HASH, log.member()),
        }
    }

    #[test]
    fn the_longest_key_log_fits_in_a_request_an_act_and_an_item() {
        let acts = acts();
        let request = request(&acts);
        assert!(longest_log().rotate(&key(100), &key(101).public()).is_err(), "it is the longest");
        let room = INVITE_BYTES_MAX - request.invite.len();
        let bytes = cbor::encode(&request);
        assert!(
            bytes.len() + room <= JOIN_REQUEST_BYTES_MAX.min(STRANGER_BYTES_MAX),
            "{} bytes",
            bytes.len()
        );
        assert_eq!(JoinRequest::decode(&bytes).as_ref(), Ok(&request));
        let action = request.to_action(&acts, &HASH).unwrap();
        let author = acts.genesis().charter().roster[0].member;
        let now = Timestamp { monotonic_ms: 0, wall_ms: T0 };
        let act = acts.draft(now, author, &action).unwrap();
        let act = Signed::sign(act, Scope::Federation(acts.federation()), &key(1)).unwrap();
        let parents = 40 * ACT_PARENTS_MAX;
        assert!(act.bytes().len() + room + parents <= ACT_BYTES_MAX.min(ITEM_BYTES_MAX - 64));
    }

    #[test]
    fn a_stranger_without_a_code_is_refused_before_its_key_log_is_read() {
        let acts = acts();
        let mut broken = request(&acts);
        *broken.key_log[KEY_EVENTS_MAX - 1].last_mut().unwrap() ^= 1;
        assert_eq!(broken.to_action(&acts, &HASH), Err(JoinError::KeyLog), "with a code it is read");

        let fault = |change: &dyn Fn(&mut JoinRequest)| {
            let mut request = broken.clone();
            change(&mut request);
            request.to_action(&acts, &HASH).unwrap_err()
        };
        assert_eq!(fault(&|r| *r.invite.last_mut().unwrap() ^= 1), JoinError::Forged);
        assert_eq!(fault(&|r| r.proof.signature[0] ^= 1), JoinError::Forged);
        let copied = KeyLog::incept(&key(9), &key(10).public()).to_list();
        assert_eq!(fault(&|r| r.key_log[0] = copied[0].clone()), JoinError::Forged, "another's proof");
        assert_eq!(fault(&|r| r.invite.clear()), JoinError::Forged);
        assert_eq!(fault(&|r| r.key_log.clear()), JoinError::KeyLog);
        assert_eq!(fault(&|r| r.key_log.push(r.key_log[1].clone())), JoinError::KeyLog, "one event too many");
    }

    #[test]
    fn a_refusal_is_one_word_on_the_wire_and_new_words_are_understood_as_refusals() {
        let bytes = cbor::encode(&JoinError::OtherFederation);
        assert_eq!(bytes, cbor::encode("other-federation"));
        assert_eq!(cbor::decode_message(&bytes, 64), Ok(JoinError::OtherFederation));
        let later = cbor::encode("moon-is-full");
        assert_eq!(cbor::decode_message(&later, 64), Ok(JoinError::Refused));
    }
}
