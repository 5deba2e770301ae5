//! Signed objects: COSE_Sign1 (RFC 9052) with one suite, one encoding and a domain for each kind. SPEC §4.

use crate::{
    cbor::{self, DecodeError},
    id::{FederationId, ObjectId, sha256},
    key::{BadSignature, PublicKey, SecretKey},
};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_bytes::Bytes;
use std::{collections::BTreeMap, marker::PhantomData};

/// The only protected header there is: `{1: -8}`, EdDSA.
pub const PROTECTED: [u8; 3] = [0xa1, 0x01, 0x27];

/// A kind of signed object.
pub trait Object: Serialize + DeserializeOwned {
    /// What the signature covers besides the payload, so that no object passes for one of another kind.
    const DOMAIN: &'static str;
    /// Longest envelope of this kind.
    const BYTES_MAX: usize;
}

/// Where an object counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere: key events only.
    Global,
    /// In one federation; copied into another one, its signature does not verify.
    Federation(FederationId),
}

/// Why bytes are no signed object of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Not an envelope of this kind.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A header other than `{1: -8}`, or a filled unprotected one.
    #[error("a header that klp 1 does not have")]
    Header,
    /// Signed by another key, for another federation, as another kind, or altered.
    #[error(transparent)]
    Signature(#[from] BadSignature),
}

/// The bytes a COSE_Sign1 signature covers (RFC 9052 §4.4).
pub fn sig_structure(external_aad: &[u8], payload: &[u8]) -> Vec<u8> {
    let parts = [&PROTECTED, external_aad, payload].map(Bytes::new);
    cbor::encode(&("Signature1", parts[0], parts[1], parts[2]))
}

fn external_aad(domain: &str, scope: Scope) -> Vec<u8> {
    let mut aad = domain.as_bytes().to_vec();
    if let Scope::Federation(id) = scope {
        aad.extend_from_slice(id.as_bytes());
    }
    aad
}

/// The four parts of an envelope as they are read. What an unprotected header holds is not even looked at: the only one
/// there may be is the empty map, one byte behind the protected header.
#[derive(Deserialize)]
struct Envelope<'a>(#[serde(borrow)] &'a Bytes, IgnoredAny, &'a Bytes, &'a Bytes);
const UNPROTECTED_AT: usize = 2 + PROTECTED.len();
const EMPTY_MAP: u8 = 0xa0;

/// Takes an envelope of any kind apart: its payload and its signature, neither of them checked. For kinds that are known
/// only at run time; others use [`Unverified`].
///
/// # Errors
/// [`ObjectError::Decode`] and [`ObjectError::Header`].
pub fn open_envelope(bytes: &[u8], limit_bytes: usize) -> Result<(&[u8], [u8; 64]), ObjectError> {
    let Envelope(protected, _, payload, signature) = cbor::decode_canonical(bytes, limit_bytes)?;
    if protected[..] != PROTECTED || bytes.get(UNPROTECTED_AT) != Some(&EMPTY_MAP) {
        return Err(ObjectError::Header);
    }
    let signature = <[u8; 64]>::try_from(&**signature)
        .map_err(|_| DecodeError::Malformed("a signature has 64 bytes".to_owned()))?;
    Ok((payload, signature))
}

/// An object of known form whose signature nobody has checked yet: enough to look its author up.
#[derive(Clone, Debug)]
pub struct Unverified<T> {
    object: T,
    bytes: Vec<u8>,
    signed: Vec<u8>,
    signature: [u8; 64],
}

impl<T: Object> Unverified<T> {
    /// Reads an envelope. Costs no signature check.
    ///
    /// # Errors
    /// [`ObjectError::Decode`] and [`ObjectError::Header`].
    pub fn parse(bytes: &[u8], scope: Scope) -> Result<Self, ObjectError> {
        let (payload, signature) = open_envelope(bytes, T::BYTES_MAX)?;
        let object = cbor::decode_canonical(payload, T::BYTES_MAX)?;
        let signed = sig_structure(&external_aad(T::DOMAIN, scope), payload);
        Ok(Self { object, bytes: bytes.to_vec(), signed, signature })
    }

    /// What it claims.
    pub fn claim(&self) -> &T {
        &self.object
    }

    /// Its id, which does not depend on the signature.
    pub fn id(&self) -> ObjectId {
        ObjectId::from_bytes(sha256(&self.signed))
    }

    /// Checks the signature, strictly, and leaves the object as it is: for whoever must set it aside meanwhile.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn check(&self, key: &PublicKey) -> Result<(), BadSignature> {
        key.verify(&self.signed, &self.signature)
    }

    /// Checks the signature, strictly.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(self, key: &PublicKey) -> Result<Signed<T>, BadSignature> {
        self.check(key)?;
        Ok(Signed { id: self.id(), object: self.object, bytes: self.bytes, verified: PhantomData })
    }
}

/// An object whose signature was made or checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    object: T,
    id: ObjectId,
    bytes: Vec<u8>,
    verified: PhantomData<()>,
}

impl<T: Object> Signed<T> {
    /// Signs `object` in `scope`.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] when the envelope is above the limit of its kind.
    pub fn sign(object: T, scope: Scope, key: &SecretKey) -> Result<Self, DecodeError> {
        let payload = cbor::encode(&object);
        let signed = sig_structure(&external_aad(T::DOMAIN, scope), &payload);
        let signature = key.sign(&signed);
        let unprotected = BTreeMap::<u8, u8>::new();
        let [protected, payload, signature] = [&PROTECTED, &payload[..], &signature].map(Bytes::new);
        let bytes = cbor::encode(&(protected, unprotected, payload, signature));
        if bytes.len() > T::BYTES_MAX {
            return Err(DecodeError::TooLarge { size_bytes: bytes.len(), limit_bytes: T::BYTES_MAX });
        }
        Ok(Self { object, id: ObjectId::from_bytes(sha256(&signed)), bytes, verified: PhantomData })
    }

    /// Reads and verifies in one step, where the key is known beforehand.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn verify(bytes: &[u8], scope: Scope, key: &PublicKey) -> Result<Self, ObjectError> {
        Ok(Unverified::parse(bytes, scope)?.verify(key)?)
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The envelope, byte for byte as it was signed: what is stored and forwarded.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> std::ops::Deref for Signed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}
