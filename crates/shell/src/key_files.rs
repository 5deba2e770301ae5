//! The secret keys on disk: plain files for this user alone, or sealed with a passphrase. Design section 3.
//!
//! A sealed file is AES-256-GCM under a key that Argon2id makes of the passphrase, with the file's own name as
//! associated data, so that one cannot stand in for another. A node that is given a passphrase seals what it finds
//! plain. The passphrase comes from the service manager or a file, never from a question: a node starts unattended.

use crate::{
    identity::{IdentityError, random},
    state::lock,
};
use argon2::{Algorithm, Argon2, Params, Version};
use kos_protocol::key::SecretKey;
use kos_store::Folder;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::{env, fmt, fs, io, path::PathBuf, sync::Mutex};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"kosseal1";
const SALT_BYTES: usize = 16;
/// Memory of Argon2id in KiB, passes, lanes: the second choice of RFC 9106 section 4, with one lane for small machines.
const ARGON2: (u32, u32, u32) = (64 * 1024, 3, 1);
/// Shortest passphrase taken.
const PASSPHRASE_BYTES_MIN: usize = 8;
/// Longest passphrase taken.
const PASSPHRASE_BYTES_MAX: u64 = 4096;
const FILE_BYTES_MAX: u64 = 256;

/// What the service manager, or a file named in the environment, gives a node of its secrets.
#[derive(Clone, Default)]
pub struct Secrets {
    passphrase: Option<Zeroizing<Vec<u8>>>,
    key: Option<SecretKey>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sealed, given) = (self.passphrase.is_some(), self.key.is_some());
        f.debug_struct("Secrets").field("passphrase", &sealed).field("key", &given).finish()
    }
}

/// Why a secret that was given is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where it should be.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A passphrase out of bounds.
    #[error("{}: a passphrase has {PASSPHRASE_BYTES_MIN} to {PASSPHRASE_BYTES_MAX} bytes", .0.display())]
    Passphrase(PathBuf),
    /// A key that is none.
    #[error("{}: a key is 32 bytes", .0.display())]
    Key(PathBuf),
}

impl Secrets {
    /// The systemd credentials `kai.passphrase` and `kai.key` (32 bytes) of this service; the passphrase also from the
    /// file `KAI_PASSPHRASE_FILE` names.
    ///
    /// # Errors
    /// [`SecretsError`]: one is there and of no use. One that is not there is no error, unless it was named.
    pub fn of_system() -> Result<Self, SecretsError> {
        let credentials = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let credential = |name: &str| credentials.as_ref().map(|folder| folder.join(name));
        let named = env::var_os("KAI_PASSPHRASE_FILE").map(PathBuf::from);
        let passphrase = match named {
            Some(path) => Some((read(&path)?, path)),
            None => read_if_there(credential("kai.passphrase"))?,
        };
        let passphrase = passphrase.map(trimmed).transpose()?;
        let key = read_if_there(credential("kai.key"))?.map(|(bytes, path)| {
            let seed: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| SecretsError::Key(path))?;
            Ok(SecretKey::from_seed(seed))
        });
        Ok(Self { passphrase, key: key.transpose()? })
    }

    /// These and no others. For tests and programs that have secrets of their own.
    pub fn new(passphrase: Option<&str>, key: Option<SecretKey>) -> Self {
        Self { passphrase: passphrase.map(|text| Zeroizing::new(text.as_bytes().to_vec())), key }
    }

    /// The node's key, where it was given and is not in the folder.
    pub(crate) fn key(&self) -> Option<&SecretKey> {
        self.key.as_ref()
    }
}

fn read(path: &PathBuf) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let failed = |source| SecretsError::Io { path: path.clone(), source };
    let mut bytes = Zeroizing::new(Vec::new());
    let file = fs::File::open(path).map_err(failed)?;
    io::Read::read_to_end(&mut io::Read::take(file, PASSPHRASE_BYTES_MAX + 2), &mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What a file holds, and where it is.
type Given = (Zeroizing<Vec<u8>>, PathBuf);

fn read_if_there(path: Option<PathBuf>) -> Result<Option<Given>, SecretsError> {
    let Some(path) = path else { return Ok(None) };
    match read(&path) {
        Err(SecretsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => Ok(Some((bytes?, path))),
    }
}

/// Without the line end that editors put there.
fn trimmed((mut bytes, path): Given) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    let length = bytes.len();
    let fits = (PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX as usize).contains(&length);
    if fits { Ok(bytes) } else { Err(SecretsError::Passphrase(path)) }
}

/// The key files of a folder.
pub(crate) struct KeyFiles<'a> {
    folder: &'a Folder,
    secrets: &'a Secrets,
    /// Argon2id is slow by design: one salt, and so one key, serves all files written at a time.
    sealing: Mutex<Option<Sealing>>,
}

#[derive(Clone)]
struct Sealing {
    salt: [u8; SALT_BYTES],
    key: LessSafeKey,
}

impl<'a> KeyFiles<'a> {
    pub fn new(folder: &'a Folder, secrets: &'a Secrets) -> Self {
        Self { folder, secrets, sealing: Mutex::default() }
    }

    /// The file of this name, plain or sealed; a plain one is sealed where there is a passphrase.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        if let Some(sealed) = self.folder.read_file(&sealed_name(name), FILE_BYTES_MAX)? {
            return self.unseal(name, &sealed).map(Some);
        }
        let Some(bytes) = self.folder.read_file(&plain_name(name), FILE_BYTES_MAX)?.map(Zeroizing::new)
        else {
            return Ok(None);
        };
        if self.secrets.passphrase.is_some() {
            self.write(name, &bytes)?;
        }
        Ok(Some(bytes))
    }

    /// Replaces the file of this name; durable when it returns.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        if self.secrets.passphrase.is_none() {
            self.folder.write_file(&plain_name(name), bytes)?;
            return Ok(());
        }
        let sealed = self.seal(name, bytes)?;
        self.folder.write_file(&sealed_name(name), &sealed)?;
        self.folder.remove_file(&plain_name(name))?;
        Ok(())
    }

    /// Removes the file of this name, if it is there; durable when it returns.
    pub fn remove(&self, name: &str) -> Result<(), IdentityError> {
        self.folder.remove_file(&plain_name(name))?;
        self.folder.remove_file(&sealed_name(name))?;
        Ok(())
    }

    fn seal(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let known = lock(&self.sealing).clone();
        let sealing = match known {
            Some(sealing) => sealing,
            None => {
                let mut salt = [0; SALT_BYTES];
                salt.copy_from_slice(&random()?[..SALT_BYTES]);
                self.sealing(salt)?
            }
        };
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&random()?[..NONCE_LEN]);
        let mut body = Zeroizing::new(bytes.to_vec());
        sealing
            .key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut *body,
            )
            .map_err(|_| IdentityError::WrongPassphrase)?;
        Ok([MAGIC.as_slice(), &sealing.salt, &nonce, &body].concat())
    }

    fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        let damaged = || IdentityError::SealDamaged(sealed_name(name));
        let rest = sealed.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(damaged)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let known = lock(&self.sealing).clone().filter(|sealing| sealing.salt == *salt);
        let sealing = match known {
            Some(sealing) => sealing,
            None => self.sealing(*salt)?,
        };
        let mut body = Zeroizing::new(body.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = sealing
            .key
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut body)
            .map_err(|_| IdentityError::WrongPassphrase)?;
        Ok(Zeroizing::new(plain.to_vec()))
    }

    fn sealing(&self, salt: [u8; SALT_BYTES]) -> Result<Sealing, IdentityError> {
        let passphrase = self.secrets.passphrase.as_ref().ok_or(IdentityError::Sealed)?;
        let (memory_kib, passes, lanes) = ARGON2;
        let params =
            Params::new(memory_kib, passes, lanes, Some(32)).expect("these are within Argon2's bounds");
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, &salt, &mut *key)
            .map_err(|_| IdentityError::WrongPassphrase)?;
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("AES-256 takes 32 bytes");
        let sealing = Sealing { salt, key: LessSafeKey::new(key) };
        *lock(&self.sealing) = Some(sealing.clone());
        Ok(sealing)
    }
}

fn plain_name(name: &str) -> String {
    format!("{name}.seed")
}

fn sealed_name(name: &str) -> String {
    format!("{name}.sealed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(place: &tempfile::TempDir) -> Folder {
        Folder::open(place.path().join("kai")).unwrap()
    }

    #[test]
    fn a_passphrase_seals_what_was_plain_and_opens_it_again() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(&place);
        let (none, right) = (Secrets::default(), Secrets::new(Some("correct horse"), None));
        KeyFiles::new(&folder, &none).write("key", &[7; 32]).unwrap();
        assert_eq!(**KeyFiles::new(&folder, &right).read("key").unwrap().unwrap(), [7; 32]);
        assert!(!folder.path().join("key.seed").exists(), "the plain file is gone");
        let bytes = std::fs::read(folder.path().join("key.sealed")).unwrap();
        assert!(!bytes.windows(8).any(|window| window == [7; 8]));
        assert_eq!(**KeyFiles::new(&folder, &right).read("key").unwrap().unwrap(), [7; 32]);
        assert!(matches!(KeyFiles::new(&folder, &none).read("key"), Err(IdentityError::Sealed)));
        let wrong = Secrets::new(Some("correct house"), None);
        assert!(matches!(KeyFiles::new(&folder, &wrong).read("key"), Err(IdentityError::WrongPassphrase)));
    }

    #[test]
    fn one_sealed_file_cannot_stand_in_for_another_and_damage_is_told() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(&place);
        let secrets = Secrets::new(Some("correct horse"), None);
        let files = KeyFiles::new(&folder, &secrets);
        files.write("next", &[9; 32]).unwrap();
        let sealed = std::fs::read(folder.path().join("next.sealed")).unwrap();
        folder.write_file("key.sealed", &sealed).unwrap();
        assert!(matches!(files.read("key"), Err(IdentityError::WrongPassphrase)));
        folder.write_file("key.sealed", &sealed[..20]).unwrap();
        assert!(matches!(files.read("key"), Err(IdentityError::SealDamaged(name)) if name == "key.sealed"));
        files.remove("key").unwrap();
        assert!(files.read("key").unwrap().is_none());
    }
}
