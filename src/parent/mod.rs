//! The parent: reads the configuration, opens what needs privileges, starts the roles and keeps them running.
//!
//! It has one thread and one poll loop, and never parses anything that a client sent: what the roles may tell it are
//! the closed sets `FromApi` and `FromWorkerToParent`, bounded in size and time. A role that does anything else is
//! killed.

mod child;
mod decoders;
mod detach;
mod prepare;
mod run;
pub mod supervise;
pub mod upgrade;
pub mod watchdog;

use std::path::PathBuf;

use crate::config;
use crate::exit::{Exit, report};
use crate::sys::log::{JsonFile, Output, Syslog, also_to, init_parent};

/// What was said on the command line.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// `-c`: the configuration file.
    pub config: Option<PathBuf>,
    /// `-d`: stay in the foreground, log to standard error.
    pub foreground: bool,
    /// `-f`: stay in the foreground, log to the system log.
    pub attached: bool,
    /// `-n`: check the configuration and exit.
    pub check: bool,
    /// `-v`: log more.
    pub verbose: bool,
    /// Set by the program that this one replaces, see [`upgrade`].
    pub adopt: Option<upgrade::Adopted>,
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
    let inherited = match args.adopt.map(upgrade::Adopted::take).transpose() {
        Ok(inherited) => inherited,
        Err(e) => return report(&e, Exit::Usage),
    };
    let replaces = inherited.is_some();
    if replaces && !args.foreground {
        // Nobody reads this process's standard error; what goes wrong from here on must be in the log.
        start_log(&config, args);
    }
    let mut prepared = match prepare::prepare(config, &program, inherited) {
        Ok(prepared) => prepared,
        Err(e) => {
            log::error!("{}", crate::exit::chain(&e));
            return report(&e, e.exit());
        }
    };
    let waiting = if args.foreground || args.attached || replaces {
        None
    } else {
        match detach::detach() {
            Ok(detach::Side::Daemon(waiting)) => Some(waiting),
            // The listeners and the pid file belong to the daemon now: this process must not undo them.
            Ok(detach::Side::Launcher(exit)) => std::process::exit(exit as i32),
            Err(e) => return report(&e, Exit::Os),
        }
    };
    start_log(&prepared.config, args);
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

/// Opens the log, again if it is open: its file may have been moved away.
fn start_log(config: &config::Config, args: &Args) {
    let output = if args.foreground { None } else { syslog(config) };
    init_parent(output.unwrap_or(Output::Stderr), level(config, args.verbose));
    let path = &config.log.file;
    if path.as_os_str().is_empty() {
        return also_to(None);
    }
    match JsonFile::open(path) {
        Ok(file) => also_to(Some(file)),
        Err(e) => log::error!("log.file: {}: {e}", path.display()),
    }
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
