//! Methods and targets: what is checked is what is sent, byte for byte.
//!
//! The danger is two readers of one path: a rule that reads `/public/..%2fadmin` as public, an origin that reads it as
//! `/admin`. So nothing is ever normalised. A path that some server might read in two ways is refused, and what is
//! left reads the same to all of them.

/// Longest method.
pub const METHOD_BYTES_MAX: usize = 32;
/// Longest target, path and query together.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Why a method or a target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestLineError {
    /// Not upper case letters and `-`, or too long.
    #[error("the method is not 1 to {METHOD_BYTES_MAX} upper case letters")]
    Method,
    /// `CONNECT` makes a tunnel and `TRACE` echoes what we add; neither passes anywhere.
    #[error("{0} is never allowed")]
    ForbiddenMethod(String),
    /// Not a path: absolute form, authority form or `*`.
    #[error("the path does not begin with `/`")]
    NotOriginForm,
    /// Above its limit.
    #[error("the path is {size_bytes} bytes, limit {TARGET_BYTES_MAX}")]
    TargetTooLong {
        /// What it takes.
        size_bytes: usize,
    },
    /// A byte that a target never has: a control character, a space, a quote, `#`.
    #[error("the path holds byte 0x{0:02x}, which no path may")]
    Byte(u8),
    /// `%` without two hexadecimal digits behind it, or text encoded over and over.
    #[error("the path is not encoded, or encoded too often")]
    Escape,
    /// `//`: some servers read one slash, some a host.
    #[error("the path holds `//`")]
    DoubleSlash,
    /// `%2f`: some servers read a slash, some do not.
    #[error("the path holds an encoded slash")]
    EncodedSlash,
    /// `\` or `%5c`: some servers read a slash.
    #[error("the path holds a backslash")]
    Backslash,
    /// `.` or `..` as a segment, in whatever disguise.
    #[error("the path holds a dot segment")]
    DotSegment,
    /// An encoded control character.
    #[error("the path holds an encoded control character")]
    Control,
    /// Decodes to bytes that are not UTF-8: overlong dots and slashes hide there.
    #[error("the path does not decode to UTF-8")]
    NotUtf8,
}

/// A method and a target that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLine {
    method: String,
    target: String,
    path_bytes: usize,
}

impl RequestLine {
    /// Checks both.
    ///
    /// # Errors
    /// [`RequestLineError`].
    pub fn parse(method: &str, target: &str) -> Result<Self, RequestLineError> {
        check_method(method)?;
        let path_bytes = check_target(target)?;
        Ok(Self { method: method.to_owned(), target: target.to_owned(), path_bytes })
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Path and query, the bytes to send.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path alone, still encoded.
    pub fn path(&self) -> &str {
        &self.target[..self.path_bytes]
    }
}

fn check_method(method: &str) -> Result<(), RequestLineError> {
    let fits = (1..=METHOD_BYTES_MAX).contains(&method.len())
        && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    match method {
        _ if !fits => Err(RequestLineError::Method),
        "CONNECT" | "TRACE" | "TRACK" => Err(RequestLineError::ForbiddenMethod(method.to_owned())),
        _ => Ok(()),
    }
}

/// Checks a target; returns the length of its path.
fn check_target(target: &str) -> Result<usize, RequestLineError> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(RequestLineError::TargetTooLong { size_bytes: target.len() });
    }
    if !target.starts_with('/') {
        return Err(RequestLineError::NotOriginForm);
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, query),
        None => (target, ""),
    };
    check_path(path)?;
    // A query is data: any visible character, encoded or not, but none that could end the line or the target.
    match query.bytes().find(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'"' | b'<' | b'>')) {
        Some(byte) => Err(RequestLineError::Byte(byte)),
        None => Ok(path.len()),
    }
}

/// Checks a path as it is, and what it decodes to.
pub(super) fn check_path(path: &str) -> Result<(), RequestLineError> {
    check_path_bytes(path)?;
    let mut encoded = path.as_bytes().to_vec();
    let mut decoded = decode(&encoded, Stray::Refused)?;
    check_decoded(&encoded, &decoded)?;
    // What is left of escapes is literal text, unless an origin decodes again; then it must be harmless as well.
    for _ in 1..DECODINGS_MAX {
        encoded = decoded;
        decoded = decode(&encoded, Stray::Kept)?;
        if decoded == encoded {
            return Ok(());
        }
        check_decoded(&encoded, &decoded)?;
    }
    Err(RequestLineError::Escape)
}

/// How often a path may be encoded over and over. Nobody means it more than once.
const DECODINGS_MAX: usize = 4;

/// What becomes of a `%` without two hexadecimal digits behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stray {
    Refused,
    Kept,
}

/// RFC 3986's `pchar`, and four that browsers send as they are.
fn check_path_bytes(path: &str) -> Result<(), RequestLineError> {
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err(RequestLineError::Backslash),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {}
            _ if b"/-._~%!$&'()*+,;=:@[]|^".contains(&byte) => {}
            _ => return Err(RequestLineError::Byte(byte)),
        }
    }
    Ok(())
}

fn decode(text: &[u8], stray: Stray) -> Result<Vec<u8>, RequestLineError> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match (*byte == b'%').then(|| (digit(at), digit(at + 1))) {
            Some((Some(high), Some(low))) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                at += 2;
            }
            Some(_) if stray == Stray::Refused => return Err(RequestLineError::Escape),
            _ => decoded.push(*byte),
        }
    }
    Ok(decoded)
}

/// Checks `decoded`, which `encoded` decodes to.
fn check_decoded(encoded: &[u8], decoded: &[u8]) -> Result<(), RequestLineError> {
    let slashes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'/').count();
    if slashes(encoded) != slashes(decoded) {
        return Err(RequestLineError::EncodedSlash);
    }
    if decoded.contains(&b'\\') {
        return Err(RequestLineError::Backslash);
    }
    let text = std::str::from_utf8(decoded).map_err(|_| RequestLineError::NotUtf8)?;
    if text.contains(char::is_control) {
        return Err(RequestLineError::Control);
    }
    if text.contains("//") {
        return Err(RequestLineError::DoubleSlash);
    }
    if text.split('/').any(is_dot_segment) {
        return Err(RequestLineError::DotSegment);
    }
    Ok(())
}

/// Whether some server reads a segment as `.` or `..`: also with parameters behind it (`..;x`) or blanks around it.
fn is_dot_segment(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or(segment).trim();
    name == "." || name == ".."
}
