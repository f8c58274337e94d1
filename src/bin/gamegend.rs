//! The daemon. Flags become a typed value, the library runs, its result becomes an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use gamegend::exit::{Exit, report};
use gamegend::parent;
use gamegend::sys::link::Link;
use gamegend::sys::process::{self, die_with_parent, inherited_link, set_title};

/// Generates playable game video from text. See gamegend(8).
#[derive(Debug, Parser)]
#[command(name = "gamegend", version, disable_help_subcommand = true)]
struct Flags {
    /// Configuration file; see gamegend.toml(5).
    #[arg(short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stay in the foreground and log to standard error.
    #[arg(short = 'd')]
    foreground: bool,
    /// Stay in the foreground and log to the system log, for a supervisor.
    #[arg(short = 'f', conflicts_with = "foreground")]
    attached: bool,
    /// Check the configuration and exit.
    #[arg(short = 'n')]
    check: bool,
    /// Log more.
    #[arg(short)]
    verbose: bool,
    /// Set by the parent when it starts this program again.
    #[arg(long, hide = true, requires = "link")]
    role: Option<Role>,
    /// Set by the program that this one replaces.
    #[arg(long, hide = true, conflicts_with = "role")]
    adopt: Option<parent::upgrade::Adopted>,
    /// Number of the descriptor that links a role to the parent.
    #[arg(long, hide = true, requires = "role")]
    link: Option<i32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Api,
    Worker,
    Decoder,
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(e) => {
            // Help and version are answers, not errors; a closed standard output is no reason to complain.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match (flags.role, flags.link) {
        (Some(role), Some(link)) => run_role(role, link),
        _ => {
            let Flags { config, foreground, attached, check, verbose, adopt, .. } = flags;
            parent::run(&parent::Args { config, foreground, attached, check, verbose, adopt }).into()
        }
    }
}

/// A role: tie it to its parent, check what it was given, run.
fn run_role(role: Role, link: i32) -> ExitCode {
    let parent = process::parent();
    let link = match inherited_link(link) {
        Ok(link) => Link::from_fd(link),
        Err(e) => return report(&e, Exit::Usage).into(),
    };
    gamegend::sys::log::init_role();
    if let Err(e) = die_with_parent(parent) {
        return report(&e, Exit::Os).into();
    }
    match role {
        Role::Api => {
            set_title("api");
            gamegend::api::run(link)
        }
        Role::Worker => {
            set_title("worker");
            gamegend::worker::run(link)
        }
        Role::Decoder => {
            set_title("decoder");
            gamegend::decode::run(link)
        }
    }
}
