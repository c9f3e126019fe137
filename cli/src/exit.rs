//! Exit codes of `kiln`, in one table: scripts rely on them, the README lists them.

use std::process::ExitCode;

/// Why the program ends. The numbers are a promise (README.md, "Exit codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything that was asked for is done.
    Success,
    /// The input cannot be built: a fault in the Dockerfile, the context or a command of it.
    Failed,
    /// The command line is wrong (clap's number).
    Usage,
    /// The surroundings refuse: disk, kernel, network, registry, credentials.
    Environment,
    /// A bug in Kiln.
    Internal,
    /// What the command of `kiln run` ended with.
    Command(u8),
    /// Stopped by Ctrl-C or SIGTERM (128 + SIGINT, as shells count).
    Interrupted,
}

impl Exit {
    /// The number that the calling process sees.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Environment => 3,
            Self::Internal => 70,
            Self::Command(code) => code,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn numbers_are_distinct_and_zero_means_success() {
        let all = [
            Exit::Success,
            Exit::Failed,
            Exit::Usage,
            Exit::Environment,
            Exit::Internal,
            Exit::Interrupted,
        ];
        let mut numbers: Vec<u8> = all.iter().map(|exit| exit.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len());
        assert_eq!(numbers.first(), Some(&Exit::Success.number()));
    }
}
