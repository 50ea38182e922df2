//! Whose data directory it is. See FORMAT.md, "Identity".
//!
//! Invariants:
//!
//! - The identity is written last when a directory is made, and checked first when it is opened: nothing of
//!   another node's, another cluster's or a newer release's directory is touched.

use bytes::Bytes;
use starling_clock::NodeId;

use crate::event::array;
use crate::types::{CLUSTER_NAME_SIZE_MAX, Identity};
use crate::{Disk, Error, small_file};

const PATH: &str = "identity";
pub(crate) const MAGIC: [u8; 8] = *b"STARIDN\0";

/// The contents of the file: node (8 bytes), cluster.
pub(crate) fn encode(identity: &Identity) -> Vec<u8> {
    assert!(identity.cluster.len() <= CLUSTER_NAME_SIZE_MAX);
    let mut contents = identity.node.0.to_le_bytes().to_vec();
    contents.extend_from_slice(identity.cluster.as_bytes());
    contents
}

/// The reverse of [`encode`].
pub(crate) fn decode(contents: &Bytes) -> Option<Identity> {
    let node = NodeId(u64::from_le_bytes(array(contents.get(..8)?, 0)));
    let cluster = String::from_utf8(contents[8..].to_vec()).ok()?;
    Some(Identity { cluster, node })
}

/// Whose directory it is; `None` if it has no owner yet.
///
/// # Errors
/// [`Error::NewerFormat`], [`Error::Corrupt`] or a failed read.
pub(crate) fn read<D: Disk>(disk: &D) -> Result<Option<Identity>, Error> {
    let Some(contents) = small_file::read(disk, PATH, MAGIC)? else { return Ok(None) };
    decode(&contents).map(Some).ok_or_else(|| Error::corrupt(PATH, 0, "identity"))
}

/// Whether the directory has an owner; it has to be `expected`.
///
/// # Errors
/// [`Error::WrongNode`], [`Error::WrongCluster`], [`Error::NewerFormat`], [`Error::Corrupt`] or a failed read.
pub(crate) fn check<D: Disk>(disk: &D, expected: &Identity) -> Result<bool, Error> {
    let Some(found) = read(disk)? else { return Ok(false) };
    if found.cluster != expected.cluster {
        let expected = expected.cluster.clone();
        return Err(Error::WrongCluster { found: found.cluster, expected });
    }
    if found.node != expected.node {
        return Err(Error::WrongNode { found: found.node, expected: expected.node });
    }
    Ok(true)
}

/// Makes `identity` the owner.
///
/// # Errors
/// As [`small_file::replace`].
pub(crate) fn write<D: Disk>(disk: &D, identity: &Identity) -> Result<(), Error> {
    small_file::replace(disk, PATH, MAGIC, &encode(identity))
}
