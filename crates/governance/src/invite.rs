//! Invitations: one-time keys. What is signed may be public; who holds the seed may join.

use crate::act::Role;
use kos_protocol::{
    cbor::DecodeError,
    id::{FederationId, MemberId},
    key::{BadSignature, PublicKey, SecretKey},
    limits::{INVITE_BYTES_MAX, INVITE_USES_MAX, WHY_BYTES_MAX},
    object::{Object, ObjectError, Scope, Signed, Unverified},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

/// An offer of membership to whoever holds the secret half of `invite_key`. Domain `kos/invite/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Which federation; signed over as well, repeated so that a stray one can be told from a forged one.
    pub federation: FederationId,
    /// What people call the federation.
    pub federation_name: String,
    /// The one-time key; its seed is in the code.
    pub invite_key: PublicKey,
    /// As what the holder joins.
    pub role: Role,
    /// How many may join with it, 1 to `INVITE_USES_MAX`.
    pub uses: u32,
    /// When the offer ends, in wall milliseconds.
    pub expires_ms: u64,
    /// When the membership ends, in wall milliseconds; none for no end.
    #[serde(deserialize_with = "Option::deserialize")]
    pub until_ms: Option<u64>,
    /// The steward who offers.
    pub author: MemberId,
    /// The number of the steward's key that signs. An invitation ends when that key is replaced.
    pub key_seq: u64,
    /// A word for the steward's own list, at most `WHY_BYTES_MAX` bytes.
    #[serde(deserialize_with = "Option::deserialize")]
    pub note: Option<String>,
}

impl Object for Invite {
    const DOMAIN: &'static str = "kos/invite/1";
    const BYTES_MAX: usize = INVITE_BYTES_MAX;
}

impl Invite {
    /// Reads an invitation for `federation` without checking its signature, telling a stray one from a broken one.
    ///
    /// # Errors
    /// [`InviteError::Malformed`], [`InviteError::OtherFederation`].
    pub fn read(bytes: &[u8], federation: FederationId) -> Result<Unverified<Self>, InviteError> {
        let read =
            Unverified::<Self>::parse(bytes, Scope::Federation(federation)).map_err(|error| match error {
                ObjectError::Decode(error) => InviteError::Malformed(error),
                ObjectError::Header | ObjectError::Signature(_) => InviteError::Forged,
            })?;
        let claim = read.claim();
        if claim.federation != federation {
            return Err(InviteError::OtherFederation { invited_to: claim.federation });
        }
        let note_bytes = claim.note.as_ref().map_or(0, String::len);
        if !(1..=INVITE_USES_MAX).contains(&claim.uses) || note_bytes > WHY_BYTES_MAX {
            return Err(InviteError::Malformed(DecodeError::Malformed(
                "uses or note out of range".to_owned(),
            )));
        }
        Ok(read)
    }

    /// The federation an invitation says it is for, before anything is checked.
    ///
    /// # Errors
    /// [`InviteError::Malformed`].
    pub fn claimed_federation(bytes: &[u8]) -> Result<FederationId, InviteError> {
        match Unverified::<Self>::parse(bytes, Scope::Global) {
            Ok(read) => Ok(read.claim().federation),
            Err(ObjectError::Decode(error)) => Err(InviteError::Malformed(error)),
            Err(_) => Err(InviteError::Forged),
        }
    }

    /// Reads an invitation for `federation` and checks it against the steward's key.
    ///
    /// # Errors
    /// As [`Invite::read`], and [`InviteError::Forged`].
    pub fn verify(
        bytes: &[u8],
        federation: FederationId,
        key: &PublicKey,
    ) -> Result<Signed<Self>, InviteError> {
        Self::read(bytes, federation)?.verify(key).map_err(|BadSignature| InviteError::Forged)
    }
}

/// Why an invitation does not let someone in. Every member finds the same answer alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// No invitation.
    #[error("not an invitation: {0}")]
    Malformed(DecodeError),
    /// Into another federation.
    #[error("the invitation is for another federation, {invited_to}")]
    OtherFederation {
        /// The one it is for.
        invited_to: FederationId,
    },
    /// Not signed by the steward it names, or altered.
    #[error("the invitation was not signed by the steward it names")]
    Forged,
    /// The steward who signed it is no longer an active steward.
    #[error("the steward who gave this invitation may no longer invite")]
    IssuerGone,
    /// The steward has replaced the key it was signed with.
    #[error("the invitation was signed with a key that has been replaced since; ask for a new one")]
    OldKey,
    /// Too late.
    #[error("the invitation expired {late_ms} ms before it was used")]
    Expired {
        /// How late.
        late_ms: u64,
    },
    /// Somebody else used it.
    #[error("the invitation has been used {uses} of {uses} times")]
    Used {
        /// How often it may be used.
        uses: u32,
    },
    /// Withdrawn.
    #[error("the invitation has been withdrawn")]
    Revoked,
    /// The newcomer did not prove to hold the code.
    #[error("no proof that the newcomer holds the code of this invitation")]
    Unproven,
    /// Admitted with another role or for longer than invited.
    #[error("the admission does not say what the invitation says")]
    Terms,
}

impl InviteError {
    /// A word from a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "invite_malformed",
            Self::OtherFederation { .. } => "invite_other_federation",
            Self::Forged => "invite_forged",
            Self::IssuerGone => "invite_issuer_gone",
            Self::OldKey => "invite_old_key",
            Self::Expired { .. } => "invite_expired",
            Self::Used { .. } => "invite_used",
            Self::Revoked => "invite_revoked",
            Self::Unproven => "invite_unproven",
            Self::Terms => "invite_terms",
        }
    }
}

/// Proof that a newcomer held the code, bound to the session it came through and to who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteProof {
    /// The handshake hash of the session in which it was given.
    pub handshake_hash: ByteArray<32>,
    /// By the invitation's key, over `kos/join/1` ‖ federation ‖ handshake hash ‖ member.
    pub signature: ByteArray<64>,
}

impl InviteProof {
    /// Made by the newcomer, with the seed from its code.
    pub fn sign(
        invite_key: &SecretKey,
        federation: FederationId,
        handshake_hash: [u8; 32],
        member: MemberId,
    ) -> Self {
        let signature = invite_key.sign(&joining(federation, &handshake_hash, member));
        Self { handshake_hash: ByteArray::new(handshake_hash), signature: ByteArray::new(signature) }
    }

    /// Checks the proof. The steward in the session also compares the handshake hash with its own.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(
        &self,
        invite_key: &PublicKey,
        federation: FederationId,
        member: MemberId,
    ) -> Result<(), BadSignature> {
        invite_key.verify(&joining(federation, &self.handshake_hash, member), &self.signature)
    }
}

fn joining(federation: FederationId, handshake_hash: &[u8; 32], member: MemberId) -> Vec<u8> {
    [b"kos/join/1".as_slice(), federation.as_bytes(), handshake_hash, member.as_bytes()].concat()
}
