//! The command-line tool. Flags become a typed value, the library runs, its result becomes an exit code.

use std::process::ExitCode;

use clap::Parser;

use gamegend::ctl::{self, Flags};
use gamegend::exit::Exit;

fn main() -> ExitCode {
    match Flags::try_parse() {
        Ok(flags) => ctl::run(flags),
        Err(e) => {
            // Help and version are answers, not errors; a closed standard output is no reason to complain.
            let _ = e.print();
            if e.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
        }
    }
}
