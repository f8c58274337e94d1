//! A blocking client of the HTTP routes and the WebSocket, over TCP or the Unix socket, small enough to see every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use gamegend::proto::api::{GenerateReply, Problem, ServerMessage, SessionStatus};
use gamegend::proto::wire::{FRAME_HEADER_BYTES, FrameHeader};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach the daemon.
#[derive(Clone)]
pub enum Client {
    Network(SocketAddr),
    Local(PathBuf),
}

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {} {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The problem, whose status must be the reply's.
    pub fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status);
        problem
    }
}

impl Client {
    pub fn connect(&self) -> Box<dyn Stream> {
        match self {
            Client::Network(address) => {
                let stream = TcpStream::connect(address).expect("the daemon listens");
                stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                Box::new(stream)
            }
            Client::Local(path) => {
                let stream = UnixStream::connect(path).expect("the daemon listens");
                stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                Box::new(stream)
            }
        }
    }

    pub fn host(&self) -> String {
        match self {
            Client::Network(address) => address.to_string(),
            Client::Local(_) => "localhost".into(),
        }
    }

    /// Sends one request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.host()));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).expect("the daemon reads");
        // A refusal may come before the body was read; what cannot be sent then does not matter.
        let _ = stream.write_all(body);
        parse(&read_answer(&mut *stream))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn generate(&self, request: &Value) -> GenerateReply {
        let reply = self.post("/api/v1/generate", request);
        assert_eq!(reply.status, 202, "{}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }

    /// A small interactive session; its id.
    pub fn play(&self) -> String {
        let request = json!({"prompt": "a green meadow", "width": 96, "height": 64, "interactive": true});
        self.generate(&request).id
    }

    pub fn status(&self, id: &str) -> SessionStatus {
        self.get(&format!("/api/v1/status?id={id}")).json()
    }

    /// Opens the stream of a session.
    pub fn watch(&self, id: &str) -> Watch {
        self.try_watch(id, &[]).unwrap_or_else(|e| panic!("the stream opens: {e}"))
    }

    pub fn try_watch(&self, id: &str, headers: &[(&'static str, &str)]) -> Result<Watch, tungstenite::Error> {
        let url = format!("ws://{}/ws/stream?session={id}", self.host());
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header value"));
        }
        let socket = tungstenite::client(request, self.connect()).map_err(|e| match e {
            tungstenite::HandshakeError::Failure(e) => e,
            tungstenite::HandshakeError::Interrupted(_) => panic!("a blocking handshake does not stop half way"),
        })?;
        Ok(Watch { socket: socket.0 })
    }
}

/// A viewer.
pub struct Watch {
    pub socket: WebSocket<Box<dyn Stream>>,
}

/// What a viewer gets.
#[derive(Debug)]
pub enum Got {
    Frame(FrameHeader, Vec<u8>),
    Message(ServerMessage),
    Closed(u16),
}

impl Watch {
    pub fn next(&mut self) -> Got {
        match self.socket.read().expect("the stream goes on") {
            Message::Binary(bytes) => {
                let header = FrameHeader::decode(&bytes).expect("a frame");
                assert_eq!(bytes.len(), FRAME_HEADER_BYTES + header.payload_bytes as usize);
                Got::Frame(header, bytes[FRAME_HEADER_BYTES..].to_vec())
            }
            Message::Text(text) => {
                Got::Message(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}")))
            }
            Message::Close(frame) => Got::Closed(frame.map_or(0, |f| f.code.into())),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub fn say(&mut self, text: &str) {
        self.socket.send(Message::Text(text.into())).expect("the daemon reads");
    }

    /// The next frame, past any messages.
    pub fn frame(&mut self) -> (FrameHeader, Vec<u8>) {
        loop {
            match self.next() {
                Got::Frame(header, jpeg) => return (header, jpeg),
                Got::Message(_) => {}
                Got::Closed(code) => panic!("closed with {code} instead of a frame"),
            }
        }
    }

    /// The next message for which `wanted` holds, past frames and other messages.
    pub fn message(&mut self, wanted: impl Fn(&ServerMessage) -> bool) -> ServerMessage {
        loop {
            match self.next() {
                Got::Message(message) if wanted(&message) => return message,
                Got::Closed(code) => panic!("closed with {code} instead of a message"),
                _ => {}
            }
        }
    }

    /// The code of the close frame, past everything else.
    pub fn close_code(&mut self) -> u16 {
        loop {
            if let Got::Closed(code) = self.next() {
                return code;
            }
        }
    }
}

/// Reads to the end, or as far as the answer says that it goes: not every server closes when it is asked to.
fn read_answer(stream: &mut dyn Stream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return answer,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
        }
        let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head.split("\r\n").find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if length.is_some_and(|n| answer.len() >= end + 4 + n) {
            return answer;
        }
    }
}

fn parse(answer: &[u8]) -> Reply {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a complete head");
    let head = std::str::from_utf8(&answer[..end]).expect("heads are text");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok()).expect("a status line");
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(": ").map(|(n, v)| (n.to_string(), v.to_string()))).collect();
    let mut body = answer[end + 4..].to_vec();
    if headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("transfer-encoding") && v == "chunked") {
        body = unchunk(&body);
    }
    Reply { status, headers, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
        let size = size.expect("a chunk's size");
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    body
}
