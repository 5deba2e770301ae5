//! The primitives behind snow: ring for ciphers and hashes, x25519-dalek, and a random source the caller seeds; and
//! the ciphers of a finished handshake.

use crate::id::sha256;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use snow::{
    Error, HandshakeState,
    error::StateProblem,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};
use zeroize::Zeroizing;

/// A finished handshake's two cipher states (Noise §5.1, ChaChaPoly of §12.3), one for each direction. snow's own copy
/// each message once more than sealing in place does.
pub struct CipherStates {
    ours: LessSafeKey,
    theirs: LessSafeKey,
}

impl CipherStates {
    /// What the finished handshake splits into.
    ///
    /// # Errors
    /// [`Error::State`] when the handshake is not finished.
    pub fn split(mut handshake: HandshakeState) -> Result<Self, Error> {
        if !handshake.is_handshake_finished() {
            return Err(Error::State(StateProblem::HandshakeNotFinished));
        }
        let (initiators, responders) = handshake.dangerously_get_raw_split();
        let (initiators, responders) = (key(Zeroizing::new(initiators))?, key(Zeroizing::new(responders))?);
        Ok(match handshake.is_initiator() {
            true => Self { ours: initiators, theirs: responders },
            false => Self { ours: responders, theirs: initiators },
        })
    }

    /// Encrypts `text` where it lies. A nonce serves once.
    ///
    /// # Errors
    /// [`Error::Input`] for a text beyond what the cipher takes (256 GiB).
    pub fn seal(&self, nonce: u64, text: &mut [u8]) -> Result<Tag, Error> {
        self.ours
            .seal_in_place_separate_tag(cipher_nonce(nonce), Aad::empty(), text)
            .map_err(|_| Error::Input)
    }

    /// Decrypts `sealed`, text and tag, where it lies, and returns the text. What fails is overwritten.
    ///
    /// # Errors
    /// [`Error::Decrypt`].
    pub fn open<'a>(&self, nonce: u64, sealed: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
        self.theirs.open_in_place(cipher_nonce(nonce), Aad::empty(), sealed).map_err(|_| Error::Decrypt)
    }
}

fn key(bytes: Zeroizing<[u8; 32]>) -> Result<LessSafeKey, Error> {
    UnboundKey::new(&CHACHA20_POLY1305, &*bytes).map(LessSafeKey::new).map_err(|_| Error::Input)
}

/// 32 zero bits, then the counter in little endian.
fn cipher_nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Gives snow its primitives. The same seed gives the same handshake, byte for byte.
pub struct Resolver {
    seed: Zeroizing<[u8; 32]>,
}

impl Resolver {
    /// A resolver whose only randomness is `seed`: 32 fresh bytes for each handshake, never used twice.
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self { seed: Zeroizing::new(seed) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Expander { seed: self.seed.clone(), blocks: 0 }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// SHA-256 in counter mode over the seed: a handshake draws one block from it, its ephemeral key.
struct Expander {
    seed: Zeroizing<[u8; 32]>,
    blocks: u64,
}

impl Random for Expander {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        for chunk in dest.chunks_mut(32) {
            let mut input = Zeroizing::new(b"klp/1 random".to_vec());
            input.extend_from_slice(&*self.seed);
            input.extend_from_slice(&self.blocks.to_be_bytes());
            chunk.copy_from_slice(&sha256(&input)[..chunk.len()]);
            self.blocks += 1;
        }
        Ok(())
    }
}

/// RFC 7748 X25519.
#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        32
    }
    fn priv_len(&self) -> usize {
        32
    }
    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
        self.public = x25519(*self.secret, X25519_BASEPOINT_BYTES);
    }
    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *secret)?;
        self.set(&*secret);
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        &self.public
    }
    fn privkey(&self) -> &[u8] {
        &*self.secret
    }
    /// Refuses an all-zero result, which only a point of small order gives.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public: [u8; 32] = public.get(..32).and_then(|key| key.try_into().ok()).ok_or(Error::Dh)?;
        let shared = Zeroizing::new(x25519(*self.secret, public));
        if *shared == [0; 32] {
            return Err(Error::Dh);
        }
        out[..32].copy_from_slice(&*shared);
        Ok(())
    }
}
