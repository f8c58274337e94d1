//! `gamegendctl play`: a session in real time, with what it measures in the terminal.

use std::collections::VecDeque;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, stream_error};
use super::terminal::{Line, SingleKeys};
use super::{CtlError, print, write_file};
use crate::proto::api::{ClientMessage, Control, GenerateRequest, ServerMessage, SessionStatus};
use crate::proto::keys::Keys;
use crate::proto::wire::{FRAME_HEADER_BYTES, FrameHeader};

/// A terminal tells presses, not releases: a key counts as held until this long after its last repetition.
const HOLD: Duration = Duration::from_millis(600);
/// Held keys are sent again this often, which measures the latency when nothing else does.
const REPEAT_PERIOD: Duration = Duration::from_millis(500);
const LINE_PERIOD: Duration = Duration::from_secs(1);
const REWRITE_PERIOD: Duration = Duration::from_millis(200);
/// Frames over which the rate is measured, latencies over which the median is taken.
const FRAMES_MEASURED: usize = 120;
const LATENCIES_MEASURED: usize = 1000;

/// What the command line says beside the world.
pub struct Options {
    pub keys: Option<Keys>,
    pub frames: Option<u64>,
    pub output: Option<PathBuf>,
}

/// Plays until the player, the number of frames or the daemon ends it; the session ends too.
pub async fn run(client: &Client, request: &GenerateRequest, options: &Options) -> Result<(), CtlError> {
    let reply = client.generate(request).await?;
    let stream = client.stream(&reply.links.stream).await?;
    let terminal = match options.keys {
        Some(_) => None,
        None => SingleKeys::new().map_err(CtlError::Terminal)?,
    };
    let mut player = Player::new(stream, options.keys.unwrap_or_default());
    let played = player.play(options.frames, terminal.is_some()).await;
    drop(terminal);
    player.line.end();
    // Whatever happened, the session must not go on without a player.
    let stopped: Result<SessionStatus, CtlError> = client.delete_json(&reply.links.cancel).await;
    played?;
    stopped?;
    if let (Some(path), Some(jpeg)) = (&options.output, &player.last) {
        write_file(path, jpeg)?;
    }
    print(&format!("{}\n", player.summary()));
    Ok(())
}

struct Player {
    stream: WebSocketStream<UnixStream>,
    line: Line,
    held: Keys,
    /// When each key of a terminal was last repeated.
    pressed: [Option<Instant>; 6],
    seq: u32,
    sent: VecDeque<(u32, Instant)>,
    latencies: VecDeque<Duration>,
    arrivals: VecDeque<Instant>,
    begun: Option<Instant>,
    frames: u64,
    /// Width and height of the newest one.
    size: (u16, u16),
    last: Option<Vec<u8>>,
    note: String,
}

impl Player {
    fn new(stream: WebSocketStream<UnixStream>, held: Keys) -> Player {
        Player {
            stream,
            line: Line::new(),
            held,
            pressed: [None; 6],
            seq: 0,
            sent: VecDeque::new(),
            latencies: VecDeque::new(),
            arrivals: VecDeque::new(),
            begun: None,
            frames: 0,
            size: (0, 0),
            last: None,
            note: String::new(),
        }
    }

    async fn play(&mut self, frames: Option<u64>, from_terminal: bool) -> Result<(), CtlError> {
        let (typed, mut keys) = mpsc::channel(64);
        if from_terminal {
            // The thread ends with the process: a read of the terminal cannot be taken back.
            std::thread::spawn(move || read_keys(&typed));
        }
        let period = if self.line.rewrites() { REWRITE_PERIOD } else { LINE_PERIOD };
        let mut show = tokio::time::interval(period);
        let mut repeat = tokio::time::interval(REPEAT_PERIOD);
        loop {
            tokio::select! {
                message = self.stream.next() => match message {
                    Some(message) => {
                        if !self.hear(message.map_err(stream_error)?)? {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                Some(byte) = keys.recv(), if from_terminal => {
                    if !self.key(byte).await? {
                        return Ok(());
                    }
                }
                _ = repeat.tick() => self.hold(from_terminal).await?,
                _ = show.tick() => {
                    if self.frames > 0 || !self.note.is_empty() {
                        let text = self.statistics();
                        self.line.show(&text);
                    }
                }
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
            if frames.is_some_and(|n| self.frames >= n) {
                return Ok(());
            }
        }
    }

    /// Takes a message. False at the end of the session.
    fn hear(&mut self, message: Message) -> Result<bool, CtlError> {
        match message {
            Message::Binary(bytes) => {
                let header = FrameHeader::decode(&bytes).map_err(|e| CtlError::Answer(e.to_string()))?;
                self.frame(&header, &bytes[FRAME_HEADER_BYTES..]);
            }
            Message::Text(text) => match serde_json::from_str(&text).map_err(|e| CtlError::Answer(e.to_string()))? {
                ServerMessage::Recovering { reason } => self.note = format!("recovering: {reason}"),
                ServerMessage::Degraded { reason } => self.note = format!("degraded: {reason}"),
                ServerMessage::Error { problem } => return Err(CtlError::Refused(Box::new(problem))),
                ServerMessage::Bye { reason } => {
                    self.note = reason;
                    return Ok(false);
                }
                _ => {}
            },
            Message::Close(_) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn frame(&mut self, header: &FrameHeader, jpeg: &[u8]) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        self.frames += 1;
        self.size = (header.width, header.height);
        self.note.clear();
        self.last = Some(jpeg.to_vec());
        self.arrivals.push_back(now);
        if self.arrivals.len() > FRAMES_MEASURED {
            self.arrivals.pop_front();
        }
        while self.sent.front().is_some_and(|(seq, _)| *seq <= header.seq) {
            if let Some((seq, at)) = self.sent.pop_front()
                // Those before were superseded: no frame is theirs.
                && seq == header.seq
            {
                self.latencies.push_back(now.duration_since(at));
            }
        }
        if self.latencies.len() > LATENCIES_MEASURED {
            self.latencies.pop_front();
        }
    }

    /// Takes a byte of the terminal. False if it means the end.
    async fn key(&mut self, byte: u8) -> Result<bool, CtlError> {
        let key = match byte.to_ascii_lowercase() {
            b'w' => Keys::W,
            b's' => Keys::S,
            b'a' => Keys::A,
            b'd' => Keys::D,
            b' ' => Keys::SPACE,
            b'q' | 0x1b | 0x03 | 0x04 => return Ok(false),
            _ => return Ok(true),
        };
        if key == Keys::SPACE {
            self.send(key).await?;
            return Ok(true);
        }
        let bit = key.0.trailing_zeros() as usize;
        let news = !self.held.contains(key);
        self.pressed[bit] = Some(Instant::now());
        self.held = self.held.union(key);
        if news {
            self.send(Keys::NONE).await?;
        }
        Ok(true)
    }

    /// Lets go what the terminal no longer repeats, and says again what is held.
    async fn hold(&mut self, from_terminal: bool) -> Result<(), CtlError> {
        let before = self.held;
        if from_terminal {
            let held = |at: &Option<Instant>| at.is_some_and(|t| t.elapsed() < HOLD);
            let bits = self.pressed.iter().enumerate().filter(|(_, at)| held(at)).map(|(bit, _)| 1 << bit);
            self.held = Keys(bits.fold(0, |all, bit: u8| all | bit));
        }
        if self.held != before || (self.held != Keys::NONE && self.frames > 0) {
            self.send(Keys::NONE).await?;
        }
        Ok(())
    }

    async fn send(&mut self, taps: Keys) -> Result<(), CtlError> {
        self.seq += 1;
        let names = |keys: Keys| keys.names().into_iter().map(String::from).collect();
        let control = Control { seq: self.seq, keys: Some(names(self.held)), taps: names(taps), ..Control::default() };
        let text = serde_json::to_string(&ClientMessage::Control(control));
        let text = text.map_err(|e| CtlError::Answer(e.to_string()))?;
        self.sent.push_back((self.seq, Instant::now()));
        self.stream.send(Message::Text(text.into())).await.map_err(stream_error)
    }

    fn statistics(&self) -> String {
        let keys = if self.held == Keys::NONE { "-".to_string() } else { self.held.names().join("+") };
        let latency = match (self.latencies.back(), median(&self.latencies)) {
            (Some(last), Some(median)) => {
                format!("key-to-frame {:.0} ms (median {:.0} ms)", 1e3 * last.as_secs_f64(), 1e3 * median.as_secs_f64())
            }
            _ => "key-to-frame -".to_string(),
        };
        let note = if self.note.is_empty() { String::new() } else { format!("  {}", self.note) };
        let ((width, height), frames, rate) = (self.size, self.frames, self.rate());
        format!("frame {frames}  {width}x{height}  {rate:.1} frames/s  {latency}  keys {keys}{note}")
    }

    fn rate(&self) -> f64 {
        match (self.arrivals.front(), self.arrivals.back()) {
            (Some(first), Some(last)) if last > first => {
                (self.arrivals.len() - 1) as f64 / last.duration_since(*first).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    fn summary(&self) -> String {
        let seconds = self.begun.map_or(0.0, |t| t.elapsed().as_secs_f64());
        let latency = match median(&self.latencies) {
            Some(median) => {
                let count = self.latencies.len();
                format!("key-to-frame median {:.1} ms of {count}", 1e3 * median.as_secs_f64())
            }
            None => "no key was answered".to_string(),
        };
        let note = if self.note.is_empty() { String::new() } else { format!("; {}", self.note) };
        format!("{} frames in {seconds:.1} s, {:.1} frames/s, {latency}{note}", self.frames, self.rate())
    }
}

fn median(latencies: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = latencies.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

fn read_keys(typed: &mpsc::Sender<u8>) {
    for byte in std::io::stdin().lock().bytes().map_while(Result::ok) {
        if typed.blocking_send(byte).is_err() {
            return;
        }
    }
}
