//! How a command talks to the running node: HTTP/1.1 over the socket in the data folder.

use crate::{
    errors::{Code, Failure},
    os,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{io, path::PathBuf};

/// The socket's name in the data folder.
pub const SOCKET: &str = "kai.sock";
/// Longest answer that is read whole.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A way to the node of one data folder.
#[derive(Clone, Debug)]
pub struct Client {
    folder: PathBuf,
}

impl Client {
    /// To the node whose data folder this is; nothing is opened yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Asks and reads the whole answer.
    ///
    /// # Errors
    /// The node's own failure, [`Code::NotRunning`], [`Code::Protocol`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let response = self.send(method, path, body).await?;
        let (head, body) = response.into_parts();
        let bytes = http_body_util::Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Code::Protocol.because(format!("the node's answer broke off: {error}")))?
            .to_bytes();
        if !head.status.is_success() {
            return Err(failure(head.status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Code::Protocol.because(format!("the node's answer makes no sense: {error}")))
    }

    /// `GET`, an answer of lines without an end: until the node stops, or Ctrl-C.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn follow(&self, path: &str, mut show: impl FnMut(&str)) -> Result<(), Failure> {
        let response = self.send(Method::GET, path, &()).await?;
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            let bytes = body.collect().await.map_err(|error| Code::Protocol.because(error))?.to_bytes();
            return Err(failure(head.status, &bytes));
        }
        let mut lines = Lines::default();
        loop {
            let frame = tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                frame = body.frame() => frame,
            };
            // A node that stops ends what it says; one that was killed breaks off, and has nothing to add either.
            let Some(Ok(frame)) = frame else { return Ok(()) };
            if let Some(part) = frame.data_ref() {
                lines.add(part, &mut show);
            }
        }
    }

    /// `GET`, the whole answer.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, &()).await
    }

    /// `POST`, the whole answer.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, body).await
    }

    /// Asks and leaves the answer's body to the caller, whatever its status.
    ///
    /// # Errors
    /// [`Code::NotRunning`], [`Code::SocketForeign`], [`Code::Protocol`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Response<Incoming>, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Code::Internal.because(error))?;
        let (socket, _handle) = os::socket_path(&self.folder, SOCKET).map_err(|_| self.not_running())?;
        let stream = tokio::net::UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Code::SocketForeign.plain(),
            _ => self.not_running(),
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Code::Protocol.because(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "kai")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Code::Internal.because(error))?;
        sender.send_request(request).await.map_err(|error| Code::Protocol.because(error))
    }

    fn not_running(&self) -> Failure {
        Code::NotRunning.because(format!("no node is running in {}", self.folder.display()))
    }
}

/// The failure an answer carries.
pub fn failure(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Failure,
    }
    match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => answer.error,
        Err(_) => Code::Protocol.because(format!("the node answered {status}")),
    }
}

/// Puts lines together from parts that end anywhere.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, part: &[u8], mut show: impl FnMut(&str)) {
        self.0.extend_from_slice(part);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            show(String::from_utf8_lossy(&line[..end]).as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_their_parts_end() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for part in ["{\"a\"", ":1}\n{\"b\":2}\n", "", "\n{\"c\":"] {
            lines.add(part.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["{\"a\":1}", "{\"b\":2}", ""]);
    }
}
