//! The bearer token: 256 bits in a file that only the node's user reads.

use crate::errors::{Code, Failure};
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, header};
use kos_store::Folder;
use std::hint::black_box;
use zeroize::Zeroizing;

/// The file in the data folder, mode 0600. Removing it makes a new token at the next start.
pub const TOKEN: &str = "api.token";
const TOKEN_BYTES: usize = 32;
/// Longest token file: a token and what an editor adds.
const FILE_BYTES_MAX: u64 = 256;

/// What a request must carry.
pub struct Token(Zeroizing<[u8; TOKEN_BYTES]>);

impl Token {
    /// The token in the folder; makes one where there is none.
    ///
    /// # Errors
    /// [`Code::FolderUnfit`]: the file is open to others, is no token of ours, or cannot be written.
    pub fn open(folder: &Folder) -> Result<Self, Failure> {
        let unfit = |why: &dyn std::fmt::Display| Code::FolderUnfit.because(format!("{TOKEN}: {why}"));
        if let Some(text) = folder.read_file(TOKEN, FILE_BYTES_MAX).map_err(|error| unfit(&error))? {
            let text = Zeroizing::new(text);
            return decode(text.trim_ascii())
                .ok_or_else(|| unfit(&"not a token: remove the file for a new one"));
        }
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        getrandom::fill(&mut *bytes).map_err(|error| Code::Internal.because(error))?;
        let text = Zeroizing::new(format!("{}\n", BASE64URL_NOPAD.encode(&*bytes)));
        folder.write_file(TOKEN, text.as_bytes()).map_err(|error| unfit(&error))?;
        Ok(Self(bytes))
    }

    /// Checks the `Authorization` of a request.
    ///
    /// # Errors
    /// [`Code::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let mut fields = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return Err(Code::Unauthorized.because("the request carries no `Authorization: Bearer TOKEN`"));
        };
        match bearer(field.as_bytes()).and_then(decode) {
            Some(given) if self.is(&given) => Ok(()),
            _ => Err(Code::Unauthorized.because("the token is not that of `api.token` in the data folder")),
        }
    }

    /// Takes as long wherever the two differ, so that time tells nothing of the token.
    fn is(&self, given: &Self) -> bool {
        let differing =
            self.0.iter().zip(given.0.iter()).fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
        black_box(differing) == 0
    }
}

/// The scheme's name is told apart without regard to case (RFC 9110 §11.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn decode(text: &[u8]) -> Option<Token> {
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text).ok()?);
    Some(Token(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn field(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_token_is_made_once_and_is_private() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("kai")).unwrap();
        let first = Token::open(&folder).unwrap();
        let path = folder.path().join(TOKEN);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(first.is(&Token::open(&folder).unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert!(!first.is(&Token::open(&folder).unwrap()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::open(&folder).is_err_and(|failure| failure.is(Code::FolderUnfit)));
        std::fs::remove_file(&path).unwrap();
        folder.write_file(TOKEN, b"short").unwrap();
        assert!(Token::open(&folder).is_err_and(|failure| failure.is(Code::FolderUnfit)));
    }

    #[test]
    fn only_the_whole_token_in_its_header_counts() {
        let token = Token(Zeroizing::new([7; TOKEN_BYTES]));
        let text = BASE64URL_NOPAD.encode(&[7; TOKEN_BYTES]);
        for good in [format!("Bearer {text}"), format!("bearer  {text}")] {
            assert_eq!(token.check(&field(&good)), Ok(()), "{good}");
        }
        let mut last = [7; TOKEN_BYTES];
        last[TOKEN_BYTES - 1] = 6;
        let bad = [
            text.clone(),
            format!("Basic {text}"),
            format!("Bearer {}", &text[1..]),
            format!("Bearer {text}{text}"),
            format!("Bearer {}", BASE64URL_NOPAD.encode(&last)),
            "Bearer ".to_owned(),
        ];
        for bad in bad {
            assert!(token.check(&field(&bad)).is_err_and(|failure| failure.is(Code::Unauthorized)), "{bad}");
        }
        assert!(token.check(&HeaderMap::new()).is_err());
        let mut twice = field(&format!("Bearer {text}"));
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(token.check(&twice).is_err());
    }
}
