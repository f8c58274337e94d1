//! Exit codes of every role, after sysexits(3). The parent's supervision reads them, and so do scripts.

use std::process::ExitCode;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked.
    Ok = 0,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// Data is damaged, for instance a model's file (`EX_DATAERR`).
    Data = 65,
    /// A file that was named does not exist or cannot be read (`EX_NOINPUT`).
    NoInput = 66,
    /// Something needed is not there now: an address or socket in use, another instance (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A bug in this program (`EX_SOFTWARE`).
    Software = 70,
    /// The system refused something that it should not (`EX_OSERR`).
    Os = 71,
    /// A file or directory could not be made or written (`EX_CANTCREAT`).
    CantCreate = 73,
    /// Worth another try: the device was lost, memory ran out (`EX_TEMPFAIL`).
    TempFail = 75,
    /// The user may not do this (`EX_NOPERM`).
    NoPermission = 77,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl Exit {
    /// The exit code that a number stands for, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Exit> {
        use Exit::*;
        let all = [Ok, Usage, Data, NoInput, Unavailable, Software, Os, CantCreate, TempFail, NoPermission, Config];
        all.into_iter().find(|e| *e as i32 == code)
    }

    /// True if another try would meet the same obstacle: the parent then leaves the role down.
    pub fn is_permanent(self) -> bool {
        use Exit::*;
        matches!(self, Usage | Data | NoInput | NoPermission | Config)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Prints an error and its causes on standard error, in one line, and hands back the exit code: for `return`.
pub fn report(error: &dyn std::error::Error, exit: Exit) -> Exit {
    eprintln!("gamegend: {}", chain(error));
    exit
}

/// An error with its causes, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_sysexits() {
        for (exit, code) in [(Exit::Ok, 0), (Exit::NoInput, 66), (Exit::TempFail, 75), (Exit::Config, 78)] {
            assert_eq!(exit as i32, code);
            assert_eq!(Exit::from_code(code), Some(exit));
        }
        assert_eq!(Exit::from_code(101), None);
        assert!(Exit::Config.is_permanent() && !Exit::TempFail.is_permanent());
    }
}
