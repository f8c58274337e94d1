//! Who a client is and what it may do.
//!
//! - On the Unix socket the kernel says who it is: root and the daemon's own user may use every session, others theirs.
//! - On the network it is the holder of a token if there is a token file, else whoever shares its address, which on
//!   loopback means every user of this host.
//!
//! Browsers send requests to loopback on behalf of any page: without tokens a request must name this host (DNS
//! rebinding), and whatever changes something must come from our own page (cross-site requests).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, Method, Uri, header};

use super::limits::TOKENS_MAX;
use super::refusal::Refusal;

/// What the sub-protocol of a WebSocket begins with if it carries a token, since browsers cannot set a header there.
const TOKEN_PROTOCOL: &str = "gamegend.token.";
/// A token that is shorter can be guessed.
const TOKEN_CHARS_MIN: usize = 16;
/// Paths that need a token where there are tokens. The page and the description of the routes do not: they are the
/// same for everybody, and the page asks for the token.
const GUARDED: [&str; 4] = ["/api/", "/ws/", "/v1/", "/metrics"];
const TOKEN_FILE_BYTES_MAX: u64 = 256 * 1024;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Network(SocketAddr),
    Local { user: u32 },
}

/// A client, as far as rights and rates go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// Root or the daemon's own user on the Unix socket.
    Admin(u32),
    User(u32),
    /// Line of the token file.
    Token(usize),
    Address(IpAddr),
}

impl Client {
    /// True if the session or generation of `owner` (the text of another client) is this client's to use.
    pub fn may_use(&self, owner: &str) -> bool {
        matches!(self, Client::Admin(_)) || self.to_string() == owner
    }

    /// Administrators are not counted: they could as well kill the daemon.
    pub fn is_limited(&self) -> bool {
        !matches!(self, Client::Admin(_))
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Admin(user) | Client::User(user) => write!(f, "uid {user}"),
            Client::Token(line) => write!(f, "token line {line}"),
            Client::Address(address) => write!(f, "address {address}"),
        }
    }
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token file {} can be read by others (mode {mode:o}); chmod o-rwx it", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("line {line} of the token file {}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: String },
}

/// The decisions about clients.
#[derive(Debug)]
pub struct Access {
    listen: SocketAddr,
    own_user: u32,
    /// Line number and token.
    tokens: Vec<(usize, String)>,
}

impl Access {
    /// `listen` is the address of the network front, `own_user` the user id of this process.
    pub fn new(listen: SocketAddr, own_user: u32, token_file: Option<&Path>) -> Result<Access, TokenError> {
        let tokens = token_file.map(read_tokens).transpose()?.unwrap_or_default();
        Ok(Access { listen, own_user, tokens })
    }

    /// True if clients of the network must show a token.
    pub fn needs_token(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Decides who sent a request.
    ///
    /// Errors: `unauthorized` without a valid token where one is needed; `cross_origin`.
    pub fn client(&self, peer: Peer, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Client, Refusal> {
        let changes = !matches!(*method, Method::GET | Method::HEAD) || headers.contains_key(header::UPGRADE);
        if changes {
            same_origin(headers)?;
        }
        let address = match peer {
            Peer::Local { user } if user == 0 || user == self.own_user => return Ok(Client::Admin(user)),
            Peer::Local { user } => return Ok(Client::User(user)),
            Peer::Network(address) => address.ip(),
        };
        if self.tokens.is_empty() {
            self.host_is_ours(headers)?;
            return Ok(Client::Address(address));
        }
        if !GUARDED.iter().any(|prefix| uri.path().starts_with(prefix)) {
            return Ok(Client::Address(address));
        }
        let given = token_of(headers);
        let known = given.and_then(|t| self.tokens.iter().find(|(_, token)| same(token, t)));
        known.map(|(line, _)| Client::Token(*line)).ok_or_else(|| {
            let what = if given.is_some() { "The token is not known." } else { "Send Authorization: Bearer TOKEN." };
            Refusal::new("unauthorized", what)
        })
    }

    fn host_is_ours(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
        let name = host_name(host);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let ours = match address {
            Ok(address) => address.is_loopback() || address == self.listen.ip(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        };
        if ours {
            return Ok(());
        }
        let detail = "The Host header must name this host by its loopback address or localhost.";
        Err(Refusal::new("cross_origin", detail).about("Host", "localhost, 127.0.0.1 or [::1]"))
    }
}

/// A browser tells where a request comes from; it must be the page that we served. Other programs tell nothing.
fn same_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let refused =
        || Err(Refusal::new("cross_origin", "Another site's page must not do this.").about("Origin", "our own"));
    if let Some(origin) = text(header::ORIGIN) {
        let authority = origin.split_once("://").map(|(_, rest)| rest);
        if authority.is_none() || authority != text(header::HOST) {
            return refused();
        }
    }
    match headers.get("sec-fetch-site").and_then(|v| v.to_str().ok()) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => refused(),
    }
}

/// The host of `host:port` or `[address]:port`.
fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    }
}

fn token_of(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    protocols.split(',').find_map(|p| p.trim().strip_prefix(TOKEN_PROTOCOL))
}

/// Compares in a time that depends on the lengths only.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// One token a line; empty lines and lines that begin with `#` do not count.
fn read_tokens(path: &Path) -> Result<Vec<(usize, String)>, TokenError> {
    let unreadable = |source| TokenError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(TokenError::Mode { path: path.to_path_buf(), mode });
    }
    let mut text = String::new();
    file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let mut tokens = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |what: String| TokenError::Line { path: path.to_path_buf(), line: index + 1, what };
        // Base64, hexadecimal and UUIDs fit; a sub-protocol and a header can carry these characters as they are.
        if !line.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+".contains(&b)) {
            return Err(bad("a token is letters, digits and any of -._~+".to_string()));
        }
        if line.len() < TOKEN_CHARS_MIN {
            return Err(bad(format!("a token has at least {TOKEN_CHARS_MIN} characters")));
        }
        if tokens.len() == TOKENS_MAX {
            return Err(bad(format!("more than {TOKENS_MAX} tokens")));
        }
        tokens.push((index + 1, line.to_string()));
    }
    if tokens.is_empty() {
        return Err(TokenError::Line { path: path.to_path_buf(), line: 1, what: "no token in the file".to_string() });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<header::HeaderName>().expect("a name"), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    fn access(tokens: &[&str]) -> Access {
        let tokens = tokens.iter().enumerate().map(|(i, t)| (i + 1, t.to_string())).collect();
        Access { listen: SocketAddr::from(([127, 0, 0, 1], 8420)), own_user: 7, tokens }
    }

    fn ask(access: &Access, method: Method, path: &str, pairs: &[(&str, &str)]) -> Result<Client, String> {
        let peer = Peer::Network(SocketAddr::from(([127, 0, 0, 1], 50000)));
        let uri: Uri = path.parse().expect("a path");
        access.client(peer, &method, &uri, &headers(pairs)).map_err(|r| r.problem.code)
    }

    #[test]
    fn another_host_or_origin_is_refused() {
        let a = access(&[]);
        let local = Ok(Client::Address([127, 0, 0, 1].into()));
        for host in ["localhost:8420", "127.0.0.1:8420", "[::1]:8420", "LOCALHOST"] {
            assert_eq!(ask(&a, Method::GET, "/", &[("host", host)]), local, "{host}");
        }
        let cross = Err("cross_origin".to_string());
        for host in ["evil.example:8420", "127.0.0.1.evil.example", "", "10.0.0.1"] {
            assert_eq!(ask(&a, Method::GET, "/", &[("host", host)]), cross, "{host}");
        }
        let post =
            |origin: &str| ask(&a, Method::POST, "/api/v1/generate", &[("host", "localhost:8420"), ("origin", origin)]);
        assert_eq!(post("http://localhost:8420"), local);
        assert_eq!(post("http://evil.example"), cross);
        assert_eq!(post("http://localhost:9999"), cross);
        assert_eq!(post("null"), cross);
        let upgrade = [("host", "localhost"), ("upgrade", "websocket"), ("origin", "http://evil.example")];
        assert_eq!(ask(&a, Method::GET, "/ws/stream", &upgrade), cross);
        let site = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert_eq!(ask(&a, Method::DELETE, "/api/v1/generate", &site), cross);
    }

    #[test]
    fn a_token_is_needed_where_there_are_tokens() {
        let a = access(&["first-token-of-two", "second-token-of-two"]);
        let status = |pairs: &[(&str, &str)]| ask(&a, Method::GET, "/api/v1/status", pairs);
        assert_eq!(status(&[]), Err("unauthorized".to_string()));
        assert_eq!(status(&[("authorization", "Bearer first-token-of-tw")]), Err("unauthorized".to_string()));
        assert_eq!(status(&[("authorization", "bearer second-token-of-two")]), Ok(Client::Token(2)));
        let protocols = [("sec-websocket-protocol", "gamegend.1, gamegend.token.first-token-of-two")];
        assert_eq!(status(&protocols), Ok(Client::Token(1)));
        assert!(ask(&a, Method::GET, "/", &[]).is_ok(), "the page asks for the token");
    }

    #[test]
    fn the_kernel_says_who_is_on_the_unix_socket() {
        let a = access(&["first-token-of-two"]);
        let ask = |user| {
            let uri = Uri::from_static("/api/v1/status");
            a.client(Peer::Local { user }, &Method::GET, &uri, &HeaderMap::new()).expect("never refused")
        };
        assert_eq!((ask(0), ask(7), ask(8)), (Client::Admin(0), Client::Admin(7), Client::User(8)));
        assert!(ask(0).may_use("uid 8") && ask(8).may_use("uid 8") && !ask(8).may_use("uid 7"));
    }

    #[test]
    fn a_token_file_is_checked() {
        let path = std::env::temp_dir().join(format!("gamegend-tokens-{}", std::process::id()));
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("a temporary file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("our own file");
            read_tokens(&path)
        };
        let good = read("# players\n\n0123456789abcdef\n", 0o640).expect("one token");
        assert_eq!(good, [(3, "0123456789abcdef".to_string())]);
        assert!(matches!(read("0123456789abcdef\n", 0o644), Err(TokenError::Mode { mode: 0o644, .. })));
        for text in ["short\n", "a token with spaces\n", "# nothing\n"] {
            assert!(matches!(read(text, 0o600), Err(TokenError::Line { line: 1, .. })), "{text:?}");
        }
        let _ = std::fs::remove_file(&path);
        assert!(matches!(read_tokens(&path), Err(TokenError::Read { .. })));
    }
}
