//! Ed25519 keys, and their one use besides signing: as static keys of the Noise session. SPEC §3.

use ed25519_dalek::Signer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes that are not a usable Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a usable ed25519 public key")]
pub struct InvalidKey;

/// A signature that does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// An Ed25519 public key, checked: a point on the curve, not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Reads a key.
    ///
    /// # Errors
    /// [`InvalidKey`] when the bytes are no point, not its canonical encoding, or a point of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, InvalidKey> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| InvalidKey)?;
        if key.is_weak() || !is_reduced(bytes) { Err(InvalidKey) } else { Ok(Self(key)) }
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Verifies strictly: the one equation of RFC 8032 without cofactor, no small-order parts.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), BadSignature> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).map_err(|_| BadSignature)
    }

    /// The same key on Curve25519 (RFC 7748 §4.1), which a Noise session of its holder shows.
    pub fn to_x25519(&self) -> [u8; 32] {
        self.0.to_montgomery().to_bytes()
    }

    /// The libp2p peer id of this key, as bytes: an identity multihash of its protobuf form.
    pub fn to_peer_id(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20]);
        bytes[6..].copy_from_slice(self.as_bytes());
        bytes
    }

    /// The key inside a libp2p peer id, for those that hold one.
    pub fn from_peer_id(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
        Self::from_bytes(key.try_into().ok()?).ok()
    }

    /// The first five bytes in hex. For log lines, never for lookups.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.as_bytes()[..5])
    }
}

/// Whether the y coordinate that `bytes` encode is below the field's prime, 2^255 - 19. Of the points whose x is 0, for
/// which the sign bit would make a second encoding, all are of small order: for other points this alone makes the
/// encoding canonical (RFC 8032 §5.1.3), without the inversion that encoding the point again would cost.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let high = bytes[31] & 0x7f;
    high != 0x7f || bytes[1..31].iter().any(|byte| *byte != 0xff) || bytes[0] < 0xed
}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

/// Bytes in binary formats, hex in formats for people.
impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&data_encoding::HEXLOWER.encode(self.as_bytes()))
        } else {
            serializer.serialize_bytes(self.as_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: [u8; 32] = if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
            bytes.try_into().map_err(|_| D::Error::custom(InvalidKey))?
        } else {
            <serde_bytes::ByteArray<32>>::deserialize(deserializer)?.into_array()
        };
        Self::from_bytes(&bytes).map_err(D::Error::custom)
    }
}

/// An Ed25519 secret key. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct SecretKey(ed25519_dalek::SigningKey);

impl SecretKey {
    /// The key that grows from `seed`, 32 bytes from the operating system or from a recovery key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, for writing it to its file.
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `message`, deterministically (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The scalar as an X25519 secret: the static key of this holder's Noise sessions.
    ///
    /// Using one key for both is sound (Thormarker, "On using the same key pair for Ed25519 and an X25519 based
    /// KEM", 2021), and spares a certificate.
    pub fn to_x25519(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_scalar_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_key_belong_together() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let from_secret = x25519_dalek::x25519(*secret.to_x25519(), x25519_dalek::X25519_BASEPOINT_BYTES);
        assert_eq!(from_secret, secret.public().to_x25519());
    }

    #[test]
    fn weak_and_odd_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(InvalidKey), "small order");
        assert_eq!(PublicKey::from_bytes(&[0; 32]), Err(InvalidKey), "small order");
        let mut above_p = [0xff; 32];
        above_p[31] = 0x7f;
        assert_eq!(PublicKey::from_bytes(&above_p), Err(InvalidKey), "not canonical");
    }

    #[test]
    fn a_peer_id_holds_its_key() {
        let key = SecretKey::from_seed(&[7; 32]).public();
        assert_eq!(PublicKey::from_peer_id(&key.to_peer_id()), Some(key));
        assert_eq!(PublicKey::from_peer_id(&[0; 38]), None);
    }
}
