//! What an administrator does to the daemon as a process: check, reload, upgrade, wait.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::{CtlError, print};
use crate::config::{self, Config, default_path};
use crate::proto::api::DaemonStatus;

/// Time between two questions whether the daemon is ready.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Which daemon is meant.
#[derive(Debug, Args)]
pub struct Files {
    /// The daemon's configuration file.
    #[arg(short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Files {
    /// The socket that a named configuration file names.
    pub fn socket(&self) -> Result<Option<PathBuf>, CtlError> {
        if self.config.is_none() {
            return Ok(None);
        }
        Ok(Some(self.load()?.1.control.socket))
    }

    fn load(&self) -> Result<(Option<PathBuf>, Config), CtlError> {
        let path = self.config.clone().or_else(default_path);
        let config = config::load(path.as_deref())?;
        Ok((path, config))
    }
}

/// The same check as `gamegend -n`.
pub fn check(files: &Files) -> Result<(), CtlError> {
    let (path, _) = files.load()?;
    print(&format!("{}: ok\n", path.as_deref().map_or("defaults".into(), |p| p.to_string_lossy())));
    Ok(())
}

/// A configuration that the daemon would refuse is told here, and the daemon is left alone.
pub fn reload(files: &Files) -> Result<(), CtlError> {
    let pid = signal(files, Signal::SIGHUP)?;
    print(&format!("process {pid} reads its configuration again; its log says what changed\n"));
    Ok(())
}

pub fn upgrade(files: &Files) -> Result<(), CtlError> {
    let pid = signal(files, Signal::SIGUSR2)?;
    print(&format!("process {pid} hands over to the program that is installed now; its log says how it went\n"));
    Ok(())
}

fn signal(files: &Files, signal: Signal) -> Result<i32, CtlError> {
    let (_, config) = files.load()?;
    let path = &config.state.pid_file;
    let failed = |what: String| CtlError::Service(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(format!("{e}; the daemon does not run")))?;
    let pid: i32 = text.trim().parse().map_err(|_| failed(format!("{:?} is not a process", text.trim())))?;
    kill(Pid::from_raw(pid), signal).map_err(|e| failed(format!("process {pid}: {e}")))?;
    Ok(pid)
}

/// Asks until the daemon is ready or gives up.
pub async fn ready(client: &Client, seconds: u64) -> Result<(), CtlError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let why = match client.get_json::<DaemonStatus>("/api/v1/status").await {
            Ok(status) if status.state == "ready" => return Ok(()),
            Ok(status) if status.state == "failed" => {
                return Err(CtlError::Service("the worker stays down; the log says why".to_string()));
            }
            Ok(status) => format!("it is {}", status.state),
            Err(e) => crate::exit::chain(&e),
        };
        if Instant::now() >= deadline {
            return Err(CtlError::NotReady(seconds, why));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
