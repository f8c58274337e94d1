//! The parent: reads the configuration, opens what needs privileges, starts the roles and keeps them running.
//!
//! It has one thread and one poll loop, and never parses anything that a client sent: what the roles may tell it are
//! the closed sets `FromApi` and `FromWorkerToParent`, bounded in size and time. A role that does anything else is
//! killed.

mod child;
mod detach;
mod prepare;
mod run;
pub mod supervise;

use std::path::PathBuf;

use crate::config;
use crate::exit::{Exit, report};
use crate::sys::log::{Output, Syslog, init_parent};

/// What was said on the command line.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// `-c`: the configuration file.
    pub config: Option<PathBuf>,
    /// `-d`: stay in the foreground, log to standard error.
    pub foreground: bool,
    /// `-n`: check the configuration and exit.
    pub check: bool,
    /// `-v`: log more.
    pub verbose: bool,
}

/// Runs the daemon until it is told to end. Messages about what keeps it from starting go to standard error.
pub fn run(args: &Args) -> Exit {
    if let Err(e) = crate::sys::process::keep_descriptors_here() {
        return report(&e, Exit::Os);
    }
    // Asked early: the path may lead to another program once this one is replaced by an upgrade.
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => return report(&e, Exit::Os),
    };
    let path = args.config.clone().or_else(config::default_path);
    let config = match config::load(path.as_deref()) {
        Ok(config) => config,
        Err(e) => return report(&e, e.exit()),
    };
    if args.check {
        println!("{}: ok", path.as_deref().map_or("defaults".into(), |p| p.to_string_lossy()));
        return Exit::Ok;
    }
    let mut prepared = match prepare::prepare(config, &program) {
        Ok(prepared) => prepared,
        Err(e) => return report(&e, e.exit()),
    };
    let waiting = if args.foreground {
        None
    } else {
        match detach::detach() {
            Ok(detach::Side::Daemon(waiting)) => Some(waiting),
            // The listeners and the pid file belong to the daemon now: this process must not undo them.
            Ok(detach::Side::Launcher(exit)) => std::process::exit(exit as i32),
            Err(e) => return report(&e, Exit::Os),
        }
    };
    let output = if args.foreground { Some(Output::Stderr) } else { syslog(&prepared.config) };
    init_parent(output.unwrap_or(Output::Stderr), level(&prepared.config, args.verbose));
    if let Err(e) = prepared.pid_file.write() {
        log::warn!("pid file: {e}");
    }
    run::Parent::new(prepared, args.clone(), path, program, waiting).map_or_else(
        |e| {
            log::error!("{e}");
            Exit::Os
        },
        run::Parent::run,
    )
}

/// The level of the log: the configured one, raised by `-v`.
fn level(config: &config::Config, verbose: bool) -> log::LevelFilter {
    let level = config.log.level.parse().unwrap_or(log::LevelFilter::Info);
    if verbose { log::LevelFilter::Debug.max(level) } else { level }
}

/// The system log. The facility was checked as the configuration was loaded.
fn syslog(config: &config::Config) -> Option<Output> {
    Syslog::new(&config.log.facility).map(|s| Output::Syslog(Box::new(s)))
}
