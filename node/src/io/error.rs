//! [`NodeError`]: why a node did not start or does not run any more, with the exit code of the process.

use std::io;
use std::net::SocketAddr;

use crate::config::ConfigError;
use crate::core::StartError;
use crate::identity::DataDirError;
use crate::tls::TlsError;

/// Why a node does not run. What was acknowledged is on disk in each case.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Settings make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ring cannot be made from the members.
    #[error("cluster: {0}")]
    Ring(#[from] starling_ring::EpochError),
    /// The core cannot start from this.
    #[error(transparent)]
    Core(#[from] StartError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Another process listens there.
    #[error("{address} is in use by another process: stop it, or listen elsewhere (--listen)")]
    AddressInUse {
        /// Where the node should listen.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where the node should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS cannot be set up from them.
    #[error(transparent)]
    Transport(#[from] starling_client::transport::TlsError),
    /// Storage cannot be opened.
    #[error("storage: {0}")]
    Storage(#[from] starling_storage::Error),
    /// A storage thread panicked. The log has what was acknowledged.
    #[error("a storage thread was lost: start the node again, and report what it logged")]
    StorageThreadLost,
    /// The system has no threads or no timers left.
    #[error("the system refused: {0}")]
    System(#[source] io::Error),
}

impl NodeError {
    /// What the process ends with: 2 configuration, 3 data directory, 4 address, 5 certificates, 6 storage, 1 anything else. 0 is a graceful stop.
    pub fn exit_code(&self) -> u8 {
        use starling_storage::ErrorKind;
        match self {
            Self::Storage(error) if error.kind() == ErrorKind::Configuration => 3,
            Self::Core(StartError::BadMeta { .. }) | Self::Storage(_) | Self::StorageThreadLost => {
                6
            }
            Self::Config(_) | Self::Ring(_) | Self::Core(_) => 2,
            Self::DataDir(_) => 3,
            Self::AddressInUse { .. } | Self::Listen { .. } => 4,
            Self::Tls(_) | Self::Transport(_) => 5,
            Self::System(_) => 1,
        }
    }
}
