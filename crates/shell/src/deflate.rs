//! Bodies of catch-ups, deflated (RFC 1951): a record repeats the names of its fields, and its author's others repeat its id.

use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};

/// Fast: a joining node waits for its own processor longer than for most networks.
const LEVEL: u8 = 1;
/// A shorter body travels as it is.
const BYTES_MIN: usize = 1024;

/// A body to be sent, and whether it is deflated, which it may be only where the other end `takes` that. Takes some milliseconds for each MiB, beside the threads that serve.
pub(crate) async fn deflate_if(takes: bool, body: Vec<u8>) -> (Vec<u8>, bool) {
    if !takes || body.len() < BYTES_MIN {
        return (body, false);
    }
    let work = move || {
        let deflated = compress_to_vec(&body, LEVEL);
        if deflated.len() < body.len() { (deflated, true) } else { (body, false) }
    };
    // A blocking task ends early only where the whole runtime does.
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// A body that came; none where it is no deflated one, or would be longer than `bytes_max`.
pub(crate) async fn inflate(body: Vec<u8>, bytes_max: usize) -> Option<Vec<u8>> {
    let work = move || decompress_to_vec_with_limit(&body, bytes_max).ok();
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_comes_out_as_it_went_in_and_none_is_longer_than_allowed() {
        let body = b"author, kind, name, author, kind, name, ".repeat(1_000);
        let (sent, is_deflated) = deflate_if(true, body.clone()).await;
        assert!(is_deflated && sent.len() < body.len() / 10);
        assert_eq!(inflate(sent.clone(), body.len()).await, Some(body.clone()));
        assert_eq!(inflate(sent.clone(), body.len() - 1).await, None, "a bomb");
        assert_eq!(inflate(sent[..sent.len() / 2].to_vec(), body.len()).await, None, "cut");
        assert_eq!(inflate(vec![0xff; 10_000], 1 << 20).await, None);
        assert_eq!(deflate_if(true, vec![7; 100]).await, (vec![7; 100], false));
    }
}
