//! Why a command failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use starling_client::ClientError;
use starling_client::wire::ErrorKind;

use super::rows::RowError;
use crate::tls::TlsError;

/// Exit codes of the client commands; those of `starling node` are in its help. 0 is success, 2 a command line that makes no sense.
pub mod exit {
    /// Anything that has no code of its own.
    pub const OTHER: u8 = 1;
    /// `storage`: something is damaged.
    pub const DAMAGED: u8 = 1;
    /// `storage`: the data directory could not be looked at.
    pub const UNREADABLE: u8 = 2;
    /// Certificates are missing or of no use.
    pub const TLS: u8 = 5;
    /// There is no such key, no event of it in the range asked for, or (`keyspace show`) no such keyspace.
    pub const NOT_FOUND: u8 = 10;
    /// Nothing happened; the same command may succeed later.
    pub const NOTHING_HAPPENED: u8 = 11;
    /// It may or may not have happened.
    pub const UNKNOWN: u8 = 12;
    /// Nothing happened, and the same command will never succeed.
    pub const CHANGE_REQUEST: u8 = 13;
    /// Nothing happened; another node may take it.
    pub const TRY_ELSEWHERE: u8 = 14;
}

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The cluster said no, or did not say anything.
    #[error("{0}{hint}", hint = hint(.0))]
    Client(#[from] ClientError),
    /// Certificates for the connection.
    #[error(
        "{0}: name the directory with ca.pem, client.pem and client.key by --tls (`starling cert client` makes one)"
    )]
    Credentials(#[source] starling_client::transport::TlsError),
    /// Making certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file of the user's.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A row of the user's.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Some rows of an import were not written.
    #[error("{failed} of {rows} rows {verb}; the first: {first}", verb = verb(*kind))]
    Import {
        /// How many.
        failed: u64,
        /// Of how many.
        rows: u64,
        /// Why the first was not.
        first: String,
        /// What the worst of them means for the caller.
        kind: ErrorKind,
    },
    /// There is no such key.
    #[error("there is no key '{0}'")]
    NotFound(String),
    /// The key has events, or not, but none that was asked for.
    #[error("there is no event of '{0}' between these stamps")]
    NoEvent(String),
    /// There is no such keyspace.
    #[error("there is no keyspace '{0}': `starling keyspace list` shows those that there are")]
    NoKeyspace(String),
    /// The answer is not the whole of what was asked for.
    #[error("{0}")]
    Incomplete(String),
    /// The command line makes no sense in a way that the parser cannot see.
    #[error("{0}")]
    Usage(String),
    /// What was waited for did not come.
    #[error("{0}")]
    Waited(String),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A data directory is damaged, in ways that the answer told.
    #[error("{0}")]
    Damaged(String),
    /// A data directory could not be looked at.
    #[error(transparent)]
    Unreadable(#[from] starling_storage::Error),
    /// The system refused a data directory.
    #[error("{path}: {source}", path = path.display())]
    CannotLook {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no storage in a directory.
    #[error("{path} is no data directory of a node: there is no `storage` in it", path = .0.display())]
    NoStorage(PathBuf),
    /// Standard output is gone or full.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
}

impl Failure {
    /// The process's exit code. Every variant is listed: a new one does not compile until it has a code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::Tls(_)) | Self::Credentials(_) | Self::Tls(_) => exit::TLS,
            Self::Client(error) => exit_of(error.kind()),
            Self::Import { kind, .. } => exit_of(*kind),
            Self::NotFound(_) | Self::NoEvent(_) | Self::NoKeyspace(_) => exit::NOT_FOUND,
            Self::Waited(_) | Self::Incomplete(_) => exit::NOTHING_HAPPENED,
            Self::Row(RowError::Input { .. }) => exit::OTHER,
            Self::Row(_) => exit::CHANGE_REQUEST,
            Self::Usage(_) => 2,
            Self::Damaged(_) => exit::DAMAGED,
            Self::Unreadable(_) | Self::CannotLook { .. } | Self::NoStorage(_) => exit::UNREADABLE,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::File { .. } | Self::System { .. } | Self::Output(_) => exit::OTHER,
        }
    }

    /// The reader of our output went away, as `head` does: nothing to complain of.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What the command line can do about an error that any client may get.
fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::NoNode(_) => {
            ". Name nodes that run by --connect, and the directory of this cluster's certificates by --tls"
        }
        ClientError::UnknownNode(_) => ": `starling status` shows those that there are",
        ClientError::Unknown { .. } => ". Read whether it is there before you write it again",
        _ => "",
    }
}

/// What became of rows whose worst failure is of this kind.
fn verb(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unknown => "were not confirmed and may be there or not",
        ErrorKind::NothingHappened | ErrorKind::ChangeRequest | ErrorKind::TryElsewhere => {
            "were not written"
        }
    }
}

fn exit_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NothingHappened => exit::NOTHING_HAPPENED,
        ErrorKind::Unknown => exit::UNKNOWN,
        ErrorKind::ChangeRequest => exit::CHANGE_REQUEST,
        ErrorKind::TryElsewhere => exit::TRY_ELSEWHERE,
    }
}
