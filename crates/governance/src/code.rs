//! Texts that people pass on: invitation codes and relay lines.
//!
//! `kai:join/…` and `kai:relay/…`, base32 without padding and with a checksum, so that a mistyped code is told from
//! a forged one. Upper and lower case mean the same; in upper case a QR code holds them in its alphanumeric mode.

use crate::invite::{Invite, InviteError};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, check_name, sha256},
    key::{PublicKey, SecretKey},
    key_log::KeyLog,
    limits::{ADDRESS_BYTES_MAX, CODE_ADDRESSES_MAX, CODE_CHARS_MAX},
    object::Signed,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_bytes::{ByteArray, ByteBuf};
use std::fmt;

const JOIN: &str = "kai:join/";
const RELAY: &str = "kai:relay/";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Why a text is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Does not begin like a code.
    #[error("this is not a code: one begins with `{expected}`")]
    NotACode {
        /// How it should begin.
        expected: &'static str,
    },
    /// A code for another command.
    #[error("this code begins with `{found}`; one that begins with `{expected}` is needed here")]
    OtherKind {
        /// How it should begin.
        expected: &'static str,
        /// How it begins.
        found: &'static str,
    },
    /// Mistyped or cut off: the checksum does not fit.
    #[error("the code is mistyped or incomplete: its checksum does not fit")]
    Typo,
    /// Longer than any code.
    #[error("a code has at most {CODE_CHARS_MAX} characters")]
    TooLong,
    /// Made by a later version.
    #[error("the code is of version {0}, this version reads {VERSION}: update kai")]
    Version(u8),
    /// The checksum fits, the content does not: made by a broken or hostile program.
    #[error("the code is intact but makes no sense")]
    Malformed,
    /// More than six addresses, or one that is empty, too long or not printable.
    #[error("a code holds up to {CODE_ADDRESSES_MAX} addresses of up to {ADDRESS_BYTES_MAX} bytes")]
    Addresses,
    /// The invitation inside was not signed by the key it names, or the seed does not fit it.
    #[error(transparent)]
    Invite(#[from] InviteError),
}

/// An invitation as it is passed on: whoever holds it may join.
#[derive(Clone)]
pub struct Invitation {
    invite: Signed<Invite>,
    invite_key: SecretKey,
    issuer_key: PublicKey,
    addresses: Vec<String>,
}

impl Invitation {
    /// Puts a code together. `issuer_key` signed `invite`; `addresses` are multiaddr texts, best first.
    ///
    /// # Errors
    /// [`CodeError::Addresses`], [`CodeError::Invite`] when the keys do not fit the invitation.
    pub fn new(
        invite: Signed<Invite>,
        invite_key: SecretKey,
        issuer_key: PublicKey,
        addresses: Vec<String>,
    ) -> Result<Self, CodeError> {
        check_addresses(&addresses)?;
        if invite_key.public() != invite.invite_key {
            return Err(InviteError::Forged.into());
        }
        Ok(Self { invite, invite_key, issuer_key, addresses })
    }

    /// Reads a code, however it is cased and whatever white space is in it.
    ///
    /// The invitation inside is checked against the key beside it; that this key is the steward's is checked by the
    /// handshake with the steward.
    ///
    /// # Errors
    /// [`CodeError`].
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        type Parts = (ByteArray<32>, PublicKey, ByteBuf, Vec<String>);
        let (seed, issuer_key, invite, addresses): Parts = read(JOIN, text)?;
        let federation = Invite::claimed_federation(&invite)?;
        let invite = Invite::verify(&invite, federation, &issuer_key)?;
        Self::new(invite, SecretKey::from_seed(&seed), issuer_key, addresses)
    }

    /// The code, in lower case. Keep it secret.
    pub fn to_text(&self) -> String {
        let seed = self.invite_key.to_seed();
        let seed = serde_bytes::Bytes::new(&*seed);
        let invite = serde_bytes::Bytes::new(self.invite.bytes());
        write(JOIN, &(seed, self.issuer_key, invite, &self.addresses))
    }

    /// What is offered: role, uses, end.
    pub fn invite(&self) -> &Signed<Invite> {
        &self.invite
    }
    /// The federation it leads into.
    pub fn federation(&self) -> FederationId {
        self.invite.federation
    }
    /// The steward who offers.
    pub fn issuer(&self) -> MemberId {
        self.invite.author
    }
    /// The steward's current key, with which the handshake begins.
    pub fn issuer_key(&self) -> PublicKey {
        self.issuer_key
    }
    /// The one-time key, with which the newcomer proves that it holds the code.
    pub fn invite_key(&self) -> &SecretKey {
        &self.invite_key
    }
    /// Where the steward can be reached, multiaddr texts, best first.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({:?})", self.invite.id())
    }
}

/// What a relay prints: enough to reach it, to know it, and to claim it for a federation.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayLine {
    /// What the relay calls itself.
    pub name: String,
    /// Who it is.
    pub key_log: KeyLog,
    /// Where it can be reached, multiaddr texts, best first.
    pub addresses: Vec<String>,
    /// Shown to the relay by whoever claims it. Keep it secret.
    pub token: [u8; 16],
}

impl RelayLine {
    /// Reads a relay line, however it is cased and whatever white space is in it.
    ///
    /// # Errors
    /// [`CodeError`].
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        type Parts = (String, Vec<ByteBuf>, Vec<String>, ByteArray<16>);
        let (name, key_log, addresses, token): Parts = read(RELAY, text)?;
        check_name(&name).map_err(|_| CodeError::Malformed)?;
        check_addresses(&addresses)?;
        let key_log = KeyLog::parse(&key_log).map_err(|_| CodeError::Malformed)?;
        Ok(Self { name, key_log, addresses, token: token.into_array() })
    }

    /// The line, in lower case.
    ///
    /// # Errors
    /// [`CodeError::Addresses`]; [`CodeError::TooLong`] for a relay with more than about ten key events.
    pub fn to_text(&self) -> Result<String, CodeError> {
        check_addresses(&self.addresses)?;
        let token = serde_bytes::Bytes::new(&self.token);
        let text = write(RELAY, &(&self.name, self.key_log.to_list(), &self.addresses, token));
        if text.len() > CODE_CHARS_MAX { Err(CodeError::TooLong) } else { Ok(text) }
    }
}

impl fmt::Debug for RelayLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayLine({} at {:?})", self.name, self.addresses)
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), CodeError> {
    let fits = |address: &String| {
        (1..=ADDRESS_BYTES_MAX).contains(&address.len())
            && address.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if addresses.len() > CODE_ADDRESSES_MAX || !addresses.iter().all(fits) {
        return Err(CodeError::Addresses);
    }
    Ok(())
}

fn checksum(prefix: &str, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = sha256(&[prefix.as_bytes(), payload].concat());
    std::array::from_fn(|i| hash[i])
}

fn write(prefix: &str, parts: &impl Serialize) -> String {
    let mut payload = vec![VERSION];
    payload.extend(cbor::encode(parts));
    let checksum = checksum(prefix, &payload);
    payload.extend(checksum);
    let code = data_encoding::BASE32_NOPAD.encode(&payload).to_lowercase();
    format!("{prefix}{code}")
}

fn read<T: DeserializeOwned>(prefix: &'static str, text: &str) -> Result<T, CodeError> {
    if text.len() > 2 * CODE_CHARS_MAX {
        return Err(CodeError::TooLong);
    }
    let text: String = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect();
    if text.len() > CODE_CHARS_MAX {
        return Err(CodeError::TooLong);
    }
    let Some(code) = text.strip_prefix(prefix) else {
        let found = [JOIN, RELAY].into_iter().find(|kind| text.starts_with(kind));
        return Err(found.map_or(CodeError::NotACode { expected: prefix }, |found| CodeError::OtherKind {
            expected: prefix,
            found,
        }));
    };
    let bytes = data_encoding::BASE32_NOPAD
        .decode(code.to_ascii_uppercase().as_bytes())
        .map_err(|_| CodeError::Typo)?;
    let (payload, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(CodeError::Typo)?;
    if *sum != checksum(prefix, payload) {
        return Err(CodeError::Typo);
    }
    let (version, parts) = payload.split_first().ok_or(CodeError::Typo)?;
    if *version != VERSION {
        return Err(CodeError::Version(*version));
    }
    cbor::decode_message(parts, CODE_CHARS_MAX).map_err(|_| CodeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::Role;
    use kos_protocol::object::Scope;
    use proptest::prelude::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    fn addresses() -> Vec<String> {
        vec!["/ip4/203.0.113.7/udp/4001/quic-v1".to_owned(), "/ip6/2001:db8::7/tcp/4001".to_owned()]
    }

    fn signed_invite(by: &SecretKey, invite_key: &SecretKey) -> Signed<Invite> {
        let federation = FederationId::from_bytes([4; 32]);
        let invite = Invite {
            federation,
            federation_name: "home".to_owned(),
            invite_key: invite_key.public(),
            role: Role::Member,
            uses: 1,
            expires_ms: 1_800_000_000_000,
            until_ms: None,
            author: MemberId::from_bytes([5; 32]),
            key_seq: 0,
            note: None,
        };
        Signed::sign(invite, Scope::Federation(federation), by).unwrap()
    }

    fn invitation() -> Invitation {
        Invitation::new(signed_invite(&key(1), &key(2)), key(2), key(1).public(), addresses()).unwrap()
    }

    fn relay_line() -> RelayLine {
        let key_log = KeyLog::incept(&key(1), &key(2).public());
        RelayLine { name: "harbour".to_owned(), key_log, addresses: addresses(), token: [6; 16] }
    }

    #[test]
    fn a_code_reads_back_in_any_case_and_with_line_breaks() {
        let text = invitation().to_text();
        assert!(text.len() < 1_300, "{} characters", text.len());
        let wrapped = format!(" {}\r\n{}\n", &text[..70], &text[70..]);
        for text in [text.clone(), text.to_uppercase(), wrapped] {
            let read = Invitation::parse(&text).unwrap();
            assert_eq!(read.invite(), invitation().invite());
            assert_eq!(read.invite_key().public(), key(2).public());
            assert_eq!(read.issuer_key(), key(1).public());
            assert_eq!(read.addresses(), addresses());
        }
        let line = relay_line().to_text().unwrap();
        assert_eq!(RelayLine::parse(&line.to_uppercase()), Ok(relay_line()));
        let qr_alphanumeric =
            |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || " $%*+-./:".contains(c);
        assert!(text.to_uppercase().chars().all(qr_alphanumeric));
    }

    #[test]
    fn a_typo_is_told_from_a_forgery() {
        let text = invitation().to_text();
        let typo = format!("{}{}", &text[..text.len() - 1], if text.ends_with('a') { 'b' } else { 'a' });
        for bad in [&typo, &text[..text.len() - 5], "kai:join/", "kai:join/1", "kai:join/é"] {
            assert_eq!(Invitation::parse(bad).unwrap_err(), CodeError::Typo, "{bad}");
        }
        let forged = Invitation { invite: signed_invite(&key(3), &key(2)), ..invitation() };
        assert_eq!(Invitation::parse(&forged.to_text()).unwrap_err(), InviteError::Forged.into());
        let other_seed = Invitation { invite_key: key(9), ..invitation() };
        assert_eq!(Invitation::parse(&other_seed.to_text()).unwrap_err(), InviteError::Forged.into());
    }

    #[test]
    fn what_is_no_code_is_refused_with_the_reason() {
        let expected = JOIN;
        assert_eq!(Invitation::parse("hello").unwrap_err(), CodeError::NotACode { expected });
        let line = relay_line().to_text().unwrap();
        assert_eq!(Invitation::parse(&line).unwrap_err(), CodeError::OtherKind { expected, found: RELAY });
        assert_eq!(Invitation::parse(&"a".repeat(CODE_CHARS_MAX + 1)).unwrap_err(), CodeError::TooLong);
        assert_eq!(RelayLine::parse(&write(RELAY, &("harbour", 7))).unwrap_err(), CodeError::Malformed);
        let too_many = RelayLine { addresses: vec!["/x".to_owned(); CODE_ADDRESSES_MAX + 1], ..relay_line() };
        assert_eq!(too_many.to_text().unwrap_err(), CodeError::Addresses);
        let escape = RelayLine { addresses: vec!["/ip4/\u{1b}".to_owned()], ..relay_line() };
        assert_eq!(escape.to_text().unwrap_err(), CodeError::Addresses);
        let longest =
            RelayLine { addresses: vec!["/".repeat(ADDRESS_BYTES_MAX); CODE_ADDRESSES_MAX], ..relay_line() };
        assert_eq!(RelayLine::parse(&longest.to_text().unwrap()), Ok(longest));
    }

    #[test]
    fn debug_output_keeps_the_secrets() {
        let line = format!("{:?} {:?}", invitation(), relay_line());
        assert!(!line.contains("6, 6") && !line.contains("seed") && line.len() < 200, "{line}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", code in "[a-z2-7]{0,400}") {
            prop_assert!(Invitation::parse(&text).is_err());
            let line = format!("kai:relay/{code}");
            prop_assert!(RelayLine::parse(&line).is_err());
        }
    }
}
