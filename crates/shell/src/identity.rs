//! Who this node is: its key log in the ledger, its secret keys in files of their own. SPEC §5.
//!
//! `key.seed` signs. `next.seed` is the key that only a rotation uses; it lies here until its 24 words are written
//! down, and only then is a stolen folder not enough to take the member over. With a passphrase both are sealed, and
//! the signing key may come from the service manager instead ([`crate::Secrets`]).

use crate::{
    key_files::{KeyFiles, Secrets},
    tables::KEY_EVENTS,
};
use kos_protocol::{
    id::{MemberId, sha256},
    key::{PublicKey, SecretKey},
    key_log::{KeyLog, KeyLogError},
};
use kos_store::{Batch, CommitError, FileError, Folder, Ledger, ReadError};
use zeroize::Zeroizing;

const KEY_FILE: &str = "key";
const NEXT_FILE: &str = "next";
/// Both seeds of a rotation under way, until the ledger has its event.
const ROTATION_FILE: &str = "rotation";

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key file cannot be read or written, or others could read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The ledger cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The key events in the ledger do not verify.
    #[error("the key log in the ledger is damaged: {0}")]
    Log(#[from] KeyLogError),
    /// The key file holds another key than the key log names.
    #[error(
        "`key.seed` does not belong to the key log of this folder: restore the file, or use the recovery words"
    )]
    OtherKey,
    /// A key file is missing.
    #[error("`key.seed` is missing: restore the file, or use the recovery words")]
    NoKey,
    /// The operating system gives no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(String),
    /// The recovery words are not on this machine any more.
    #[error("the recovery key is not on this node any more: give its 24 words")]
    WordsNeeded,
    /// The words are no recovery key.
    #[error("these are not 24 recovery words: {0}")]
    Words(String),
    /// The words are another member's, or those of a rotation ago.
    #[error("these words are not the recovery key of {0}")]
    OtherWords(MemberId),
    /// Sealed keys, and no passphrase.
    #[error(
        "the keys in this folder are sealed: give the passphrase as the credential `kai.passphrase`, or name its \
         file in KAI_PASSPHRASE_FILE"
    )]
    Sealed,
    /// Another passphrase sealed them.
    #[error("the passphrase does not open the keys in this folder")]
    WrongPassphrase,
    /// A sealed file that is none.
    #[error("`{0}` is damaged: restore the file, or use the recovery words")]
    SealDamaged(String),
    /// An identity is here already.
    #[error("this folder has an identity already: {0}")]
    Exists(MemberId),
}

/// 32 bytes from the operating system.
///
/// # Errors
/// [`IdentityError::Random`].
pub fn random() -> Result<[u8; 32], IdentityError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| IdentityError::Random(error.to_string()))?;
    Ok(bytes)
}

/// The member this node is.
#[derive(Clone, Debug)]
pub struct Identity {
    secret: SecretKey,
    next: Option<SecretKey>,
    log: KeyLog,
}

impl Identity {
    /// Opens the identity of a folder, making one if there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open_or_create(
        folder: &Folder,
        ledger: &Ledger,
        secrets: &Secrets,
    ) -> Result<Self, IdentityError> {
        match Self::open(folder, ledger, secrets)? {
            Some(identity) => Ok(identity),
            None => {
                let files = KeyFiles::new(folder, secrets);
                let next = SecretKey::from_seed(&random()?);
                // The files come first: an event whose key is lost would be a member nobody is.
                let secret = match secrets.key() {
                    Some(given) => given.clone(),
                    None => {
                        let made = SecretKey::from_seed(&random()?);
                        files.write(KEY_FILE, &*made.to_seed())?;
                        made
                    }
                };
                files.write(NEXT_FILE, &*next.to_seed())?;
                let log = KeyLog::incept(&secret, &next.public());
                save_log(ledger, &log)?;
                Ok(Self { secret, next: Some(next), log })
            }
        }
    }

    /// Opens the identity of a folder, if there is one; finishes a rotation that a crash interrupted.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(folder: &Folder, ledger: &Ledger, secrets: &Secrets) -> Result<Option<Self>, IdentityError> {
        let files = KeyFiles::new(folder, secrets);
        let mut events = Vec::new();
        for row in ledger.range(KEY_EVENTS, ..)? {
            events.push(row?.1);
        }
        if events.is_empty() {
            return Ok(None);
        }
        let log = KeyLog::parse(&events)?;
        if let Some(seeds) = files.read(ROTATION_FILE)? {
            if let Ok((secret, next)) = parse_pair(&seeds)
                && secret.public() == log.current()
            {
                files.write(KEY_FILE, &*secret.to_seed())?;
                files.write(NEXT_FILE, &*next.to_seed())?;
            }
            files.remove(ROTATION_FILE)?;
        }
        // A key that was given is used as long as the log names it; a rotation puts its successor into the folder.
        let given = secrets.key().filter(|given| given.public() == log.current());
        let secret = match given {
            Some(given) => given.clone(),
            None => read_seed(&files, KEY_FILE)?.ok_or(IdentityError::NoKey)?,
        };
        if secret.public() != log.current() {
            return Err(IdentityError::OtherKey);
        }
        let next =
            read_seed(&files, NEXT_FILE)?.filter(|next| sha256(next.public().as_bytes()) == log.next_hash());
        Ok(Some(Self { secret, next, log }))
    }

    /// Takes a member over on a new machine: a rotation with the recovery words.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when the folder has an identity, [`IdentityError::OtherWords`].
    pub fn restore(
        folder: &Folder,
        ledger: &Ledger,
        secrets: &Secrets,
        log: &KeyLog,
        words: &str,
    ) -> Result<Self, IdentityError> {
        if let Some(own) = Self::open(folder, ledger, secrets)? {
            return Err(IdentityError::Exists(own.member()));
        }
        Self::advance(&KeyFiles::new(folder, secrets), ledger, log, words_to_key(words)?)
    }

    /// Replaces the key by the next one: the one that lies here, or the one of `words`.
    ///
    /// # Errors
    /// [`IdentityError::WordsNeeded`], [`IdentityError::OtherWords`].
    pub fn rotate(
        &self,
        folder: &Folder,
        ledger: &Ledger,
        secrets: &Secrets,
        words: Option<&str>,
    ) -> Result<Self, IdentityError> {
        let secret = match (words, &self.next) {
            (Some(words), _) => words_to_key(words)?,
            (None, Some(next)) => next.clone(),
            (None, None) => return Err(IdentityError::WordsNeeded),
        };
        Self::advance(&KeyFiles::new(folder, secrets), ledger, &self.log, secret)
    }

    fn advance(
        files: &KeyFiles<'_>,
        ledger: &Ledger,
        log: &KeyLog,
        secret: SecretKey,
    ) -> Result<Self, IdentityError> {
        let next = SecretKey::from_seed(&random()?);
        let rotated = log.rotate(&secret, &next.public()).map_err(|error| match error {
            KeyLogError::Broken { .. } => IdentityError::OtherWords(log.member()),
            other => IdentityError::Log(other),
        })?;
        let mut seeds = Zeroizing::new(Vec::with_capacity(64));
        seeds.extend_from_slice(&*secret.to_seed());
        seeds.extend_from_slice(&*next.to_seed());
        files.write(ROTATION_FILE, &seeds)?;
        save_log(ledger, &rotated)?;
        files.write(KEY_FILE, &*secret.to_seed())?;
        files.write(NEXT_FILE, &*next.to_seed())?;
        files.remove(ROTATION_FILE)?;
        Ok(Self { secret, next: Some(next), log: rotated })
    }

    /// The 24 words of the next key, as long as it lies here. Show them on a terminal, and nowhere else.
    ///
    /// # Errors
    /// [`IdentityError::WordsNeeded`] once they were backed up.
    pub fn words(&self) -> Result<Zeroizing<String>, IdentityError> {
        let next = self.next.as_ref().ok_or(IdentityError::WordsNeeded)?;
        let words = bip39::Mnemonic::from_entropy(&*next.to_seed())
            .map_err(|error| IdentityError::Words(error.to_string()))?;
        Ok(Zeroizing::new(words.to_string()))
    }

    /// The words are written down: the next key leaves this node.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn forget_next(&mut self, folder: &Folder) -> Result<(), IdentityError> {
        KeyFiles::new(folder, &Secrets::default()).remove(NEXT_FILE)?;
        self.next = None;
        Ok(())
    }

    /// Whether the recovery key was written down and taken off this node.
    pub fn is_backed_up(&self) -> bool {
        self.next.is_none()
    }
    /// The member.
    pub fn member(&self) -> MemberId {
        self.log.member()
    }
    /// The current key.
    pub fn secret(&self) -> &SecretKey {
        &self.secret
    }
    /// Its public half.
    pub fn key(&self) -> PublicKey {
        self.secret.public()
    }
    /// The key log.
    pub fn log(&self) -> &KeyLog {
        &self.log
    }
}

fn words_to_key(words: &str) -> Result<SecretKey, IdentityError> {
    let words = bip39::Mnemonic::parse_normalized(words.trim())
        .map_err(|error| IdentityError::Words(error.to_string()))?;
    let entropy = Zeroizing::new(words.to_entropy());
    let seed: [u8; 32] =
        entropy.as_slice().try_into().map_err(|_| IdentityError::Words("24 words are needed".to_owned()))?;
    Ok(SecretKey::from_seed(&seed))
}

fn parse_pair(seeds: &[u8]) -> Result<(SecretKey, SecretKey), ()> {
    let (first, rest) = seeds.split_first_chunk::<32>().ok_or(())?;
    let second: &[u8; 32] = rest.try_into().map_err(|_| ())?;
    Ok((SecretKey::from_seed(first), SecretKey::from_seed(second)))
}

fn read_seed(files: &KeyFiles<'_>, name: &str) -> Result<Option<SecretKey>, IdentityError> {
    let Some(bytes) = files.read(name)? else { return Ok(None) };
    let seed: [u8; 32] = bytes.as_slice().try_into().map_err(|_| IdentityError::NoKey)?;
    Ok(Some(SecretKey::from_seed(&seed)))
}

fn save_log(ledger: &Ledger, log: &KeyLog) -> Result<(), IdentityError> {
    let mut batch = Batch::new();
    for (seq, event) in (0..).zip(log.to_list()) {
        batch.put(KEY_EVENTS, &seq, event.as_slice());
    }
    Ok(ledger.commit(batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::schema;
    use std::sync::LazyLock;

    static NONE: LazyLock<Secrets> = LazyLock::new(Secrets::default);

    fn open(path: &std::path::Path) -> (Folder, Ledger) {
        let folder = Folder::open(path).unwrap();
        let ledger = Ledger::open(&folder, &schema()).unwrap();
        (folder, ledger)
    }

    #[test]
    fn an_identity_is_made_once_and_opened_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("kai");
        let (folder, ledger) = open(&path);
        let made = Identity::open_or_create(&folder, &ledger, &NONE).unwrap();
        let opened = Identity::open_or_create(&folder, &ledger, &NONE).unwrap();
        assert_eq!((opened.member(), opened.key()), (made.member(), made.key()));
        assert!(!opened.is_backed_up());
    }

    #[test]
    fn the_words_rotate_and_nothing_else_does() {
        let place = tempfile::tempdir().unwrap();
        let (folder, ledger) = open(&place.path().join("kai"));
        let mut first = Identity::open_or_create(&folder, &ledger, &NONE).unwrap();
        let words = first.words().unwrap();
        assert_eq!(words.split(' ').count(), 24);
        first.forget_next(&folder).unwrap();
        assert!(matches!(first.words(), Err(IdentityError::WordsNeeded)));
        assert!(matches!(first.rotate(&folder, &ledger, &NONE, None), Err(IdentityError::WordsNeeded)));
        let wrong = bip39::Mnemonic::from_entropy(&[1; 32]).unwrap().to_string();
        assert!(matches!(
            first.rotate(&folder, &ledger, &NONE, Some(&wrong)),
            Err(IdentityError::OtherWords(_))
        ));
        let second = first.rotate(&folder, &ledger, &NONE, Some(&words)).unwrap();
        assert_eq!(second.member(), first.member());
        assert_ne!(second.key(), first.key());
        assert_eq!(Identity::open(&folder, &ledger, &NONE).unwrap().unwrap().key(), second.key());
    }

    #[test]
    fn a_lost_machine_is_replaced_with_the_words() {
        let place = tempfile::tempdir().unwrap();
        let (folder, ledger) = open(&place.path().join("old"));
        let old = Identity::open_or_create(&folder, &ledger, &NONE).unwrap();
        let (folder, ledger) = open(&place.path().join("new"));
        let new = Identity::restore(&folder, &ledger, &NONE, old.log(), &old.words().unwrap()).unwrap();
        assert_eq!(new.member(), old.member());
        assert!(new.log().extends(old.log()));
        assert!(matches!(
            Identity::restore(&folder, &ledger, &NONE, old.log(), &old.words().unwrap()),
            Err(IdentityError::Exists(_))
        ));
    }

    #[test]
    fn a_rotation_that_a_crash_interrupted_is_finished() {
        let place = tempfile::tempdir().unwrap();
        let (folder, ledger) = open(&place.path().join("kai"));
        let first = Identity::open_or_create(&folder, &ledger, &NONE).unwrap();
        let old_seed = first.secret().to_seed();
        let second = first.rotate(&folder, &ledger, &NONE, None).unwrap();
        // As if the crash came right after the ledger's commit.
        let seeds = [*second.secret().to_seed(), *second.next.as_ref().unwrap().to_seed()].concat();
        let files = KeyFiles::new(&folder, &NONE);
        files.write(ROTATION_FILE, &seeds).unwrap();
        files.write(KEY_FILE, &*old_seed).unwrap();
        assert_eq!(Identity::open(&folder, &ledger, &NONE).unwrap().unwrap().key(), second.key());
    }

    #[test]
    fn a_key_that_is_given_stays_out_of_the_folder_until_it_is_rotated() {
        let place = tempfile::tempdir().unwrap();
        let (folder, ledger) = open(&place.path().join("kai"));
        let secrets = Secrets::new(Some("correct horse"), Some(SecretKey::from_seed(&[5; 32])));
        let made = Identity::open_or_create(&folder, &ledger, &secrets).unwrap();
        assert_eq!(made.key(), SecretKey::from_seed(&[5; 32]).public());
        assert!(!folder.path().join("key.sealed").exists() && folder.path().join("next.sealed").exists());
        let opened = Identity::open(&folder, &ledger, &secrets).unwrap().unwrap();
        assert_eq!(opened.key(), made.key());
        let rotated = opened.rotate(&folder, &ledger, &secrets, None).unwrap();
        assert_eq!(Identity::open(&folder, &ledger, &secrets).unwrap().unwrap().key(), rotated.key());
        assert!(matches!(Identity::open(&folder, &ledger, &NONE), Err(IdentityError::Sealed)));
    }
}
