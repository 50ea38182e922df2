//! The data directory: whose it is, that one process has it, and the keys that a node keeps over restarts.
//!
//! ```text
//! identity.toml    format, node, cluster, partitions; written once
//! transport.key    64 bytes: stateless-reset key; 8 bytes: connection-id key; mode 0600; written once
//! lock             held while a process uses the directory
//! address, pid     of the running node, for scripts
//! tls/             development certificates (`tls.rs`)
//! storage/         everything else (`starling-storage`)
//! ```
//!
//! Invariants:
//!
//! - A directory never changes its node, cluster or number of partitions.
//! - The identity is on disk before anything else is made in the directory.
//!
//! Why the transport keys are kept: a node that was killed and comes back with them answers its peers' old packets with a reset that they believe,
//! so that they connect anew at once instead of after their idle timeout.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use starling_clock::NodeId;

/// The newest layout of the directory that this release reads, and the one it writes.
const FORMAT: u32 = 1;
const IDENTITY: &str = "identity.toml";
const TRANSPORT_KEY: &str = "transport.key";
const LOCK: &str = "lock";
const ADDRESS: &str = "address";
const PID: &str = "pid";
const STORAGE: &str = "storage";
const TLS: &str = "tls";
const RESET_KEY_SIZE: usize = 64;
const CONNECTION_ID_KEY_SIZE: usize = 8;
/// Drawn ids have this many bits: short enough to type, and two nodes of a cluster hardly ever draw the same.
const DRAWN_ID_BITS: u32 = 40;

/// A data directory that cannot be used. Nothing was changed, but for [`Self::Unusable`].
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Unusable {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk has no room.
    #[error("no space left on the disk for {path}: free some", path = path.display())]
    Full {
        /// Which file or directory.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("data directory {path} is in use by another process: stop it, or give this node a directory of its own (--data-dir)", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It is another node's.
    #[error("data directory {path} belongs to node {found}, not to node {expected}: point each node at its own", path = path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// It is another cluster's.
    #[error("data directory {path} belongs to cluster {found:?}, not to {expected:?}: correct cluster.name, or point the node at its own directory", path = path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// It was made with another number of partitions.
    #[error("data directory {path} has {found} partitions, the configuration says {expected}: the number is set for the cluster's life", path = path.display())]
    OtherPartitions {
        /// The directory.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// What is configured.
        expected: u32,
    },
    /// A later release wrote it.
    #[error("data directory {path} has format {found}, this release reads up to {FORMAT}: run the newer release", path = path.display())]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A file does not hold what this code wrote.
    #[error("{path} is damaged ({reason}): restore it from a copy, or start the node anew with an empty directory", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(String),
}

/// What a node is for its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its id.
    #[serde(serialize_with = "serialize_node", deserialize_with = "deserialize_node")]
    pub node: NodeId,
    /// Its cluster.
    pub cluster: String,
    /// How many partitions that has.
    pub partitions: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn serialize_node<S: Serializer>(node: &NodeId, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(node.0)
}

fn deserialize_node<'de, D: Deserializer<'de>>(from: D) -> Result<NodeId, D::Error> {
    u64::deserialize(from).map(NodeId)
}

#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
}

/// The keys that let peers notice a restart at once.
#[derive(Clone)]
pub struct TransportKeys {
    /// Of stateless resets.
    pub reset: [u8; RESET_KEY_SIZE],
    /// Of connection ids.
    pub connection_id: u64,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    identity: Identity,
    /// Released when dropped, or when the process ends in whatever way.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, and makes it if it is not there. `node` `None`: whoever it belongs to; a new one gets a drawn id.
    ///
    /// # Errors
    /// [`DataDirError`] with what to do.
    pub fn open(
        root: &Path,
        node: Option<NodeId>,
        cluster: &str,
        partitions: u32,
    ) -> Result<Self, DataDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|source| unusable(root, source))?;
        let lock = take_lock(root)?;
        let path = root.join(IDENTITY);
        let identity = match fs::read_to_string(&path) {
            Ok(text) => read_identity(root, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if root.join(STORAGE).exists() {
                    let reason = "it is missing, and there is data".to_owned();
                    return Err(DataDirError::Damaged { path, reason });
                }
                let node = node.map_or_else(draw_id, Ok)?;
                let identity = Identity { node, cluster: cluster.to_owned(), partitions };
                write_identity(root, &identity)?;
                identity
            }
            Err(error) => return Err(unusable(&path, error)),
        };
        check(root, &identity, node, cluster, partitions)?;
        Ok(Self { root: root.to_owned(), identity, _lock: lock })
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where storage keeps its files.
    pub fn storage(&self) -> PathBuf {
        self.root.join(STORAGE)
    }

    /// Where development certificates are.
    pub fn tls(&self) -> PathBuf {
        self.root.join(TLS)
    }

    /// The keys of this node's connections; drawn at the first call.
    ///
    /// # Errors
    /// [`DataDirError`] if they cannot be read or kept.
    pub fn transport_keys(&self) -> Result<TransportKeys, DataDirError> {
        let path = self.root.join(TRANSPORT_KEY);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let bytes = random::<{ RESET_KEY_SIZE + CONNECTION_ID_KEY_SIZE }>()?.to_vec();
                replace(&self.root, TRANSPORT_KEY, &bytes)?;
                bytes
            }
            Err(error) => return Err(unusable(&path, error)),
        };
        let keys = bytes.split_first_chunk::<RESET_KEY_SIZE>().and_then(|(reset, rest)| {
            let connection_id = u64::from_le_bytes(rest.try_into().ok()?);
            Some(TransportKeys { reset: *reset, connection_id })
        });
        keys.ok_or_else(|| DataDirError::Damaged {
            path,
            reason: format!("{} bytes long", bytes.len()),
        })
    }

    /// Tells scripts where the running node listens and which process it is.
    ///
    /// # Errors
    /// [`DataDirError`] if the files cannot be written.
    pub fn write_running(&self, address: SocketAddr) -> Result<(), DataDirError> {
        replace(&self.root, PID, format!("{}\n", std::process::id()).as_bytes())?;
        replace(&self.root, ADDRESS, format!("{address}\n").as_bytes())
    }

    /// The node has stopped: takes back what [`Self::write_running`] told.
    pub fn remove_running(&self) {
        for name in [ADDRESS, PID] {
            let path = self.root.join(name);
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "could not remove");
            }
        }
    }
}

fn take_lock(root: &Path) -> Result<File, DataDirError> {
    let path = root.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| unusable(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::Locked { path: root.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(&path, source)),
    }
}

fn read_identity(root: &Path, text: &str) -> Result<Identity, DataDirError> {
    let damaged = |reason: String| DataDirError::Damaged { path: root.join(IDENTITY), reason };
    let mut table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| damaged(error.to_string()))?;
    // The format comes first: what a later release wrote beside it need not make sense here.
    let format = table.remove("format").and_then(|value| value.as_integer());
    match format.and_then(|format| u32::try_from(format).ok()) {
        Some(FORMAT) => {}
        Some(found) if FORMAT < found => {
            return Err(DataDirError::NewerFormat { path: root.to_owned(), found });
        }
        _ => return Err(damaged("no format".to_owned())),
    }
    table.try_into().map_err(|error: toml::de::Error| damaged(error.to_string()))
}

fn write_identity(root: &Path, identity: &Identity) -> Result<(), DataDirError> {
    let parts = [toml::to_string(&Format { format: FORMAT }), toml::to_string(identity)];
    let text: String = parts.into_iter().map(|part| part.expect("plain data")).collect();
    replace(root, IDENTITY, text.as_bytes())
}

fn check(
    root: &Path,
    identity: &Identity,
    node: Option<NodeId>,
    cluster: &str,
    partitions: u32,
) -> Result<(), DataDirError> {
    let path = root.to_owned();
    if identity.cluster != cluster {
        let (found, expected) = (identity.cluster.clone(), cluster.to_owned());
        return Err(DataDirError::OtherCluster { path, found, expected });
    }
    if let Some(expected) = node
        && expected != identity.node
    {
        return Err(DataDirError::OtherNode { path, found: identity.node, expected });
    }
    if identity.partitions != partitions {
        let found = identity.partitions;
        return Err(DataDirError::OtherPartitions { path, found, expected: partitions });
    }
    Ok(())
}

/// Whole or not at all, also after a crash.
fn replace(root: &Path, name: &str, bytes: &[u8]) -> Result<(), DataDirError> {
    let (path, temporary) = (root.join(name), root.join(format!("{name}.tmp")));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(root)?.sync_all()
    };
    write().map_err(|source| unusable(&path, source))
}

fn draw_id() -> Result<NodeId, DataDirError> {
    let drawn = u64::from_le_bytes(random()?) >> (u64::BITS - DRAWN_ID_BITS);
    Ok(NodeId(drawn.max(1)))
}

/// A seed for the core's generator.
///
/// # Errors
/// [`DataDirError::Random`].
pub fn draw_seed() -> Result<u64, DataDirError> {
    random().map(u64::from_le_bytes)
}

fn random<const N: usize>() -> Result<[u8; N], DataDirError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|error| DataDirError::Random(error.to_string()))?;
    Ok(bytes)
}

fn unusable(path: &Path, source: io::Error) -> DataDirError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull => DataDirError::Full { path },
        _ => DataDirError::Unusable { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Option<NodeId> = Some(NodeId(3));

    #[test]
    fn a_drawn_id_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), None, "a", 16).unwrap();
        let identity = first.identity().clone();
        let keys = first.transport_keys().unwrap();
        drop(first);
        let second = DataDir::open(dir.path(), None, "a", 16).unwrap();
        assert_eq!(*second.identity(), identity);
        assert_eq!(second.transport_keys().unwrap().reset, keys.reset);
        assert_eq!(second.transport_keys().unwrap().connection_id, keys.connection_id);
    }

    #[test]
    fn one_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let _held = DataDir::open(dir.path(), NODE, "a", 16).unwrap();
        let error = DataDir::open(dir.path(), NODE, "a", 16).unwrap_err();
        assert!(matches!(error, DataDirError::Locked { .. }));
    }

    #[test]
    fn it_belongs_to_one_node_of_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), NODE, "a", 16).unwrap());
        let open = |node, cluster, partitions| {
            DataDir::open(dir.path(), Some(NodeId(node)), cluster, partitions).unwrap_err()
        };
        assert!(matches!(open(4, "a", 16), DataDirError::OtherNode { found: NodeId(3), .. }));
        assert!(matches!(open(3, "b", 16), DataDirError::OtherCluster { .. }));
        assert!(matches!(open(3, "a", 32), DataDirError::OtherPartitions { found: 16, .. }));
    }

    #[test]
    fn what_another_release_or_a_fault_wrote_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY);
        let open = || DataDir::open(dir.path(), NODE, "a", 16).unwrap_err();
        fs::write(&path, "format = 2\nsomething = \"else\"\n").unwrap();
        assert!(matches!(open(), DataDirError::NewerFormat { found: 2, .. }));
        for text in
            ["", "format = 1\n", "\u{1}", "format = -1\nnode = 3\n", "format = 1\nnode = \"3\""]
        {
            fs::write(&path, text).unwrap();
            assert!(matches!(open(), DataDirError::Damaged { .. }), "{text}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(dir.path().join(STORAGE)).unwrap();
        assert!(matches!(open(), DataDirError::Damaged { .. }));
    }

    #[test]
    fn short_transport_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path(), NODE, "a", 16).unwrap();
        fs::write(dir.path().join(TRANSPORT_KEY), [7; 71]).unwrap();
        assert!(matches!(data_dir.transport_keys(), Err(DataDirError::Damaged { .. })));
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::open(file.path(), NODE, "a", 16).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }
}
