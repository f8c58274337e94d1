//! HTTP and WebSocket over the Unix socket.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::CtlError;
use crate::proto::api::{GenerateReply, GenerateRequest, Problem};

/// The daemon, as far as its socket goes.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    async fn connect(&self) -> Result<UnixStream, CtlError> {
        let socket = || self.socket.clone();
        UnixStream::connect(&self.socket).await.map_err(|source| CtlError::Connect { socket: socket(), source })
    }

    /// The body of a successful answer. Errors: `Refused` with the daemon's problem for any other.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, CtlError> {
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(io).await.map_err(CtlError::Http)?;
        // Ends by itself with the connection; its error is the request's as well.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| CtlError::Answer(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(CtlError::Http)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(CtlError::Http)?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body);
        }
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => CtlError::Refused(Box::new(problem)),
            Err(_) => CtlError::Answer(format!("status {status}")),
        })
    }

    pub async fn get(&self, path: &str) -> Result<Bytes, CtlError> {
        self.send(Method::GET, path, Vec::new()).await
    }

    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, CtlError> {
        decode(&self.get(path).await?)
    }

    pub async fn delete_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, CtlError> {
        decode(&self.send(Method::DELETE, path, Vec::new()).await?)
    }

    pub async fn post_json<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CtlError> {
        let body = serde_json::to_vec(body).map_err(|e| CtlError::Answer(e.to_string()))?;
        decode(&self.send(Method::POST, path, body).await?)
    }

    pub async fn generate(&self, request: &GenerateRequest) -> Result<GenerateReply, CtlError> {
        self.post_json("/api/v1/generate", request).await
    }

    /// The stream of a session; `path` is the link that the daemon gave.
    pub async fn stream(&self, path: &str) -> Result<WebSocketStream<UnixStream>, CtlError> {
        let url = format!("ws://localhost{path}");
        let (stream, _) = client_async(url, self.connect().await?).await.map_err(stream_error)?;
        Ok(stream)
    }
}

/// What a stream's error means; a refused handshake carries the daemon's problem.
pub fn stream_error(error: tokio_tungstenite::tungstenite::Error) -> CtlError {
    if let tokio_tungstenite::tungstenite::Error::Http(response) = &error {
        let body = response.body().as_deref().unwrap_or_default();
        if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
            return CtlError::Refused(Box::new(problem));
        }
    }
    CtlError::Stream(Box::new(error))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CtlError> {
    serde_json::from_slice(body).map_err(|e| CtlError::Answer(e.to_string()))
}
