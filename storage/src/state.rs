//! The state file: what the write-ahead log said about named values and consumed hints, kept when the log's
//! segments go. See FORMAT.md, "State".
//!
//! Invariants:
//!
//! - What it says is true of every log record up to `up_to`; later records are applied on top of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use starling_clock::NodeId;

use crate::event::{DecodeError, array};
use crate::wal::record::{decode_meta, encode_meta};
use crate::{Disk, Error, Lsn, small_file};

const PATH: &str = "state";
pub(crate) const MAGIC: [u8; 8] = *b"STARSTA\0";

/// What is known of the hints for one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HintMark {
    /// It has the hints up to this and with it.
    pub(crate) done: u64,
    /// The number that its next hint gets.
    pub(crate) next: u64,
}

/// The contents of the state file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) up_to: Lsn,
    /// The number that the next change got then: the change log had those before it on disk.
    pub(crate) changes: u64,
    pub(crate) metas: BTreeMap<String, Bytes>,
    pub(crate) hints: BTreeMap<NodeId, HintMark>,
}

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.up_to.0.to_le_bytes().to_vec();
        out.extend_from_slice(&self.changes.to_le_bytes());
        out.extend_from_slice(&count(self.metas.len()));
        out.extend_from_slice(&count(self.hints.len()));
        for (name, value) in &self.metas {
            encode_meta(name, value, &mut out);
        }
        for (target, mark) in &self.hints {
            for number in [target.0, mark.done, mark.next] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let header = bytes.get(..24).ok_or(DecodeError::Short)?;
        let mut state = Self {
            up_to: Lsn(u64::from_le_bytes(array(header, 0))),
            changes: u64::from_le_bytes(array(header, 8)),
            ..Self::default()
        };
        let metas = u32::from_le_bytes(array(header, 16));
        let hints = u32::from_le_bytes(array(header, 20));
        let mut rest = bytes.slice(24..);
        for _ in 0..metas {
            let (name, value, size) = decode_meta(&rest)?;
            // A copy: the file's buffer should not live as long as the smallest value in it.
            state.metas.insert(name, Bytes::copy_from_slice(&value));
            rest = rest.slice(size..);
        }
        for _ in 0..hints {
            let entry = rest.get(..24).ok_or(DecodeError::Short)?;
            let number = |offset| u64::from_le_bytes(array(entry, offset));
            let mark = HintMark { done: number(8), next: number(16) };
            state.hints.insert(NodeId(number(0)), mark);
            rest = rest.slice(24..);
        }
        if rest.is_empty() { Ok(state) } else { Err(DecodeError::Corrupt("state length")) }
    }

    /// Reads the file; an empty state if it is not there.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::NewerFormat`] or a failed read.
    pub(crate) fn read<D: Disk>(disk: &D) -> Result<Self, Error> {
        match small_file::read(disk, PATH, MAGIC)? {
            Some(contents) => Self::decode(&contents)
                .map_err(|_| Error::corrupt(PATH, 0, "contents of the state")),
            None => Ok(Self::default()),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// As [`small_file::replace`].
    pub(crate) fn write<D: Disk>(&self, disk: &D) -> Result<(), Error> {
        small_file::replace(disk, PATH, MAGIC, &self.encode())
    }
}

fn count(number: usize) -> [u8; 4] {
    u32::try_from(number)
        .expect("bounded by META_COUNT_MAX and the size of a cluster")
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrips_and_every_cut_is_refused(
            up_to: u64,
            changes: u64,
            metas in prop::collection::btree_map("[a-z]{0,9}", prop::collection::vec(any::<u8>(), 0..20), 0..5),
            hints in prop::collection::btree_map(any::<u64>(), any::<(u64, u64)>(), 0..5),
        ) {
            let state = State {
                up_to: Lsn(up_to),
                changes,
                metas: metas.into_iter().map(|(name, value)| (name, value.into())).collect(),
                hints: hints.into_iter().map(|(node, (done, next))| (NodeId(node), HintMark { done, next })).collect(),
            };
            let bytes = Bytes::from(state.encode());
            prop_assert_eq!(State::decode(&bytes), Ok(state));
            for cut in 0..bytes.len() {
                prop_assert!(State::decode(&bytes.slice(..cut)).is_err());
            }
        }
    }
}
