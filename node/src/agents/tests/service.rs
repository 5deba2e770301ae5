//! A service on loopback that answers as it is told and keeps what it was sent, byte for byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its line.
    pub line: String,
    /// Its fields in their order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// Its body, without framing.
    pub body: Vec<u8>,
    /// Whether the body came to its end.
    pub is_whole: bool,
}

impl Seen {
    pub fn field(&self, wanted: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }
}

/// What to do after a request.
pub enum Answer {
    /// Send this, and wait for the next request.
    Send(String),
    /// Send this and close the connection.
    Close(String),
    /// Send this and nothing more, ever.
    Stall(String),
    /// Send this, then everything that comes back.
    Echo(String),
}

/// A whole answer.
pub fn ok(body: &str) -> Answer {
    Answer::Send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

pub struct Service {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Service {
    /// Starts one; it runs for as long as the test.
    pub async fn new(answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let (all, connections) = (seen.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (all, answer) = (all.clone(), answer.clone());
                tokio::spawn(async move { serve(stream, &all, &*answer).await });
            }
        });
        Self { address, seen, connections }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    all: &Mutex<Vec<Seen>>,
    answer: &(dyn Fn(&Seen) -> Answer + Send + Sync),
) {
    while let Some(seen) = read(&mut stream).await {
        let is_whole = seen.is_whole;
        let answer = answer(&seen);
        all.lock().unwrap().push(seen);
        if !is_whole {
            return;
        }
        let (Answer::Send(text) | Answer::Close(text) | Answer::Stall(text) | Answer::Echo(text)) = &answer;
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        match answer {
            Answer::Send(_) => {}
            Answer::Close(_) => return,
            Answer::Stall(_) => std::future::pending().await,
            Answer::Echo(_) => {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
        }
    }
}

/// The next request; none when the connection was closed before one began.
async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let mut seen = Seen { line, fields: lines.map(field).collect(), body: Vec::new(), is_whole: true };
    if let Some(length) = seen.field("content-length") {
        let length = length.parse().unwrap();
        seen.is_whole = exactly(stream, length, &mut seen.body).await;
    } else if seen.field("transfer-encoding") == Some("chunked") {
        seen.is_whole = chunks(stream, &mut seen.body).await;
    }
    Some(seen)
}

async fn exactly(stream: &mut TcpStream, length: u64, body: &mut Vec<u8>) -> bool {
    matches!(stream.take(length).read_to_end(body).await, Ok(read) if read as u64 == length)
}

async fn chunks(stream: &mut TcpStream, body: &mut Vec<u8>) -> bool {
    loop {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            let Ok(byte) = stream.read_u8().await else { return false };
            size.push(byte);
        }
        let size = u64::from_str_radix(String::from_utf8_lossy(&size).trim(), 16).unwrap();
        let mut end = Vec::new();
        if !exactly(stream, size, body).await || !exactly(stream, 2, &mut end).await {
            return false;
        }
        if size == 0 {
            return true;
        }
    }
}
