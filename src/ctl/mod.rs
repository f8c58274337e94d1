//! `gamegendctl`: the daemon's local client. It speaks the same HTTP as everybody else, over the Unix socket.
//!
//! Owns the command line and what is printed. Holds no state; `gpu` and `eval` work without a daemon, and `eval` alone
//! runs a model.

mod client;
mod eval;
mod generate;
mod gpu;
mod model;
mod play;
mod service;
mod show;
mod terminal;
mod value;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::client::Client;
use crate::config::{Control, default_path, load};
use crate::exit::{Exit, chain};
use crate::proto::api::{DaemonStatus, GenerateRequest, Problem, SessionStatus};
use crate::proto::keys::Keys;

/// Talks to the gamegend daemon. See gamegendctl(8).
#[derive(Debug, Parser)]
#[command(name = "gamegendctl", version, disable_help_subcommand = true)]
pub struct Flags {
    /// The daemon's Unix socket.
    #[arg(short, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the daemon, its worker and its load.
    Status {
        /// Print the daemon's answer as it is.
        #[arg(long)]
        json: bool,
    },
    /// Generate a clip and save it as MP4.
    Generate {
        #[command(flatten)]
        world: World,
        /// Length in frames.
        #[arg(long, value_name = "N", default_value_t = 96)]
        frames: u32,
        /// File to write.
        #[arg(short, long = "output", value_name = "FILE")]
        output: PathBuf,
    },
    /// Play in real time, with statistics in the terminal: W, A, S, D and space steer, q ends.
    Play {
        #[command(flatten)]
        world: World,
        /// Hold these keys instead of reading the terminal, for instance W,D.
        #[arg(long, value_name = "KEYS", value_parser = keys)]
        keys: Option<Keys>,
        /// End after this many frames.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        frames: Option<u64>,
        /// Save the last frame as JPEG.
        #[arg(short, long = "output", value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List sessions and stored generations.
    Sessions,
    /// Cancel a generation or end a session.
    Stop {
        /// Id, or the beginning of one.
        id: String,
    },
    /// Keep the newest state of a session, to be continued later, and print its id.
    Save(value::Which),
    /// Make the video of a session again from its value and save it as MP4.
    Replay(value::Replay),
    /// List the devices that the daemon can use.
    Gpu,
    /// Measure a model by its judges.
    Eval(eval::Evaluate),
    /// Check a configuration without starting anything.
    Configtest(service::Files),
    /// Let the daemon read its configuration and open its log file again.
    Reload(service::Files),
    /// Let the program that is installed now take over from the one that runs.
    Upgrade(service::Files),
    /// Wait until the daemon serves and its model is loaded.
    Ready {
        /// For so many seconds at the most.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
        #[command(flatten)]
        files: service::Files,
    },
    /// Versions of models: which there are, which one is in use.
    #[command(subcommand)]
    Model(model::Action),
}

/// What is to be seen.
#[derive(Debug, Args)]
struct World {
    /// The world in words.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Size in pixels.
    #[arg(long, value_name = "WxH", default_value = "320x192", value_parser = size)]
    size: (u32, u32),
    /// Frames a second.
    #[arg(long, value_name = "N", default_value_t = 24)]
    fps: u32,
    /// Denoising steps a frame.
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// Seed of the noise.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// first or third.
    #[arg(long, value_name = "P")]
    perspective: Option<String>,
    /// Continue this session or stored generation.
    #[arg(long, value_name = "ID")]
    from: Option<String>,
}

impl World {
    fn request(self, frames: Option<u32>) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt,
            width: self.size.0,
            height: self.size.1,
            frames: frames.unwrap_or(1),
            fps: self.fps,
            steps: self.steps,
            seed: self.seed,
            perspective: self.perspective,
            interactive: frames.is_none(),
            from: self.from,
            video_prompt: None,
        }
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    parsed.ok_or_else(|| "a size is WIDTHxHEIGHT, for instance 320x192".to_string())
}

fn keys(text: &str) -> Result<Keys, String> {
    let names: Vec<&str> = text.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    Keys::from_names(&names).map_err(|e| format!("{e}; keys are {}", crate::proto::keys::KEY_NAMES.join(", ")))
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error(
        "cannot reach the daemon at {}; start it with `service gamegend onestart` or `gamegend -d`, or name its socket \
         with -s", socket.display()
    )]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("the daemon ended the connection")]
    Http(#[source] hyper::Error),
    #[error("the stream broke")]
    Stream(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("{}", refused(.0))]
    Refused(Box<Problem>),
    #[error("the daemon's answer makes no sense: {0}")]
    Answer(String),
    #[error("{0:?} is the beginning of {1} ids")]
    Ambiguous(String, usize),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error("{0}")]
    Service(String),
    #[error("after {0} s the daemon is not ready: {1}")]
    NotReady(u64, String),
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot evaluate the model")]
    Evaluation(#[from] Box<crate::model::ModelError>),
    #[error("use the terminal")]
    Terminal(#[source] std::io::Error),
    #[error("interrupted")]
    Interrupted,
}

fn refused(problem: &Problem) -> String {
    let allowed = match (&problem.field, &problem.allowed) {
        (Some(field), Some(allowed)) if !problem.detail.contains(allowed.as_str()) => {
            format!(" Allowed for {field}: {allowed}.")
        }
        _ => String::new(),
    };
    format!("{}{allowed} ({})", problem.detail, problem.code)
}

impl CtlError {
    fn exit_code(&self) -> ExitCode {
        let exit = match self {
            CtlError::Connect { .. } => Exit::Unavailable,
            CtlError::Refused(p) if matches!(p.status, 429 | 503) => Exit::TempFail,
            CtlError::Refused(p) if matches!(p.status, 401 | 403) => Exit::NoPermission,
            CtlError::Refused(p) if p.code == "unknown_session" => Exit::NoInput,
            CtlError::Refused(p) if p.status < 500 => Exit::Usage,
            CtlError::Ambiguous(..) => Exit::Usage,
            CtlError::Evaluation(e) => model_exit(e),
            CtlError::Config(e) => e.exit(),
            CtlError::Service(_) => Exit::Unavailable,
            CtlError::NotReady(..) => Exit::TempFail,
            CtlError::Model(e) => e.exit(),
            CtlError::Write { .. } => Exit::CantCreate,
            CtlError::Terminal(_) => Exit::Os,
            // What a shell reports for SIGINT.
            CtlError::Interrupted => return ExitCode::from(130),
            CtlError::Http(_) | CtlError::Stream(_) | CtlError::Refused(_) | CtlError::Answer(_) => Exit::Software,
        };
        exit.into()
    }
}

fn model_exit(error: &crate::model::ModelError) -> Exit {
    use crate::model::ModelError as E;
    match error {
        E::Read { .. } => Exit::NoInput,
        E::Write { .. } => Exit::CantCreate,
        E::Request { .. } => Exit::Usage,
        E::Compute(_) => Exit::Unavailable,
        _ => Exit::Data,
    }
}

/// Runs one command. Answers an exit code of sysexits(3).
pub fn run(flags: Flags) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(command(flags)),
        Err(e) => Err(CtlError::Terminal(e)),
    };
    match outcome {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("gamegendctl: {}", chain(&error));
            error.exit_code()
        }
    }
}

async fn command(flags: Flags) -> Result<(), CtlError> {
    let named = flags.socket.is_some();
    let client = Client::new(flags.socket.unwrap_or_else(default_socket));
    match flags.command {
        Command::Status { json: true } => {
            let body = client.get("/api/v1/status").await?;
            print(&format!("{}\n", String::from_utf8_lossy(&body)));
            Ok(())
        }
        Command::Status { json: false } => {
            let status: DaemonStatus = client.get_json("/api/v1/status").await?;
            print(&show::status(&status));
            Ok(())
        }
        Command::Generate { world, frames, output } => {
            generate::run(&client, &world.request(Some(frames)), &output).await
        }
        Command::Play { world, keys, frames, output } => {
            let options = play::Options { keys, frames, output };
            play::run(&client, &world.request(None), &options).await
        }
        Command::Sessions => {
            let status: DaemonStatus = client.get_json("/api/v1/status").await?;
            print(&show::sessions(&status.sessions));
            Ok(())
        }
        Command::Stop { id } => {
            let status: DaemonStatus = client.get_json("/api/v1/status").await?;
            let id = full_id(&status.sessions, &id)?;
            let ended: SessionStatus = client.delete_json(&format!("/api/v1/generate?id={id}")).await?;
            print(&format!("{id}: {}\n", ended.state.name()));
            Ok(())
        }
        Command::Save(which) => value::save(&client, &which).await,
        Command::Replay(replay) => value::replay(&client, &replay).await,
        Command::Eval(asked) => eval::evaluate(asked),
        Command::Gpu => {
            print(&gpu::list());
            Ok(())
        }
        Command::Configtest(files) => service::check(&files),
        Command::Reload(files) => service::reload(&files),
        Command::Upgrade(files) => service::upgrade(&files),
        Command::Ready { wait, files } => match files.socket()? {
            Some(socket) if !named => service::ready(&Client::new(socket), wait).await,
            _ => service::ready(&client, wait).await,
        },
        Command::Model(action) => Ok(model::run(action)?),
    }
}

/// The id that begins with `start`; one that the daemon does not list is left for the daemon to judge.
fn full_id(sessions: &[SessionStatus], start: &str) -> Result<String, CtlError> {
    let found: Vec<&SessionStatus> = sessions.iter().filter(|s| s.id.starts_with(start)).collect();
    match found.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => Ok(start.chars().filter(char::is_ascii_alphanumeric).collect()),
        many => Err(CtlError::Ambiguous(start.to_string(), many.len())),
    }
}

/// The socket of the daemon that this user would start, else that of the system's daemon.
fn default_socket() -> PathBuf {
    let own = load(default_path().as_deref()).map(|config| config.control.socket);
    let system = Control::default().socket;
    match own {
        Ok(own) if own.exists() || !system.exists() => own,
        _ => system,
    }
}

/// Prints, and does not mind if nobody reads.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a file as a whole: whoever looks at `path` sees all of it or nothing.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CtlError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&part);
        CtlError::Write { path: path.to_path_buf(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read() {
        let line = "gamegendctl -s /tmp/s generate --prompt meadow --size 64x128 --frames 5 --seed 7 -o out.mp4";
        let flags = Flags::try_parse_from(line.split(' ')).expect("a valid line");
        assert_eq!(flags.socket, Some(PathBuf::from("/tmp/s")));
        let Command::Generate { world, frames, .. } = flags.command else { panic!("generate was said") };
        let request = world.request(Some(frames));
        assert_eq!((request.width, request.height, request.frames, request.seed), (64, 128, 5, Some(7)));
        assert!(!request.interactive);
        for wrong in [
            "gamegendctl generate --prompt x",
            "gamegendctl generate --prompt x --size 64 -o f",
            "gamegendctl play --prompt x --keys W,Q",
            "gamegendctl play --prompt x --frames 0",
            "gamegendctl stop",
            "gamegendctl",
        ] {
            assert!(Flags::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_tells_what_is_allowed_once() {
        let mut problem = Problem {
            kind: "about:blank".into(),
            title: "t".into(),
            status: 400,
            detail: "fps: 99 is not allowed; allowed: 1 to 60.".into(),
            code: "invalid_field".into(),
            field: Some("fps".into()),
            allowed: Some("1 to 60".into()),
            request_id: None,
        };
        assert_eq!(refused(&problem), "fps: 99 is not allowed; allowed: 1 to 60. (invalid_field)");
        problem.detail = "There is no field \"x\".".into();
        assert!(refused(&problem).ends_with("Allowed for fps: 1 to 60. (invalid_field)"));
    }
}
