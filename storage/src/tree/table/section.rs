//! [`Section`]: some data blocks that follow each other, by the index and the filter that they have of their own.
//!
//! Invariants:
//!
//! - Index and filter are read and cached as one: who asks the filter mostly needs the index next, or never again.

use super::block::Damaged;
use super::bloom::Bloom;
use super::entries::EntriesBlock;
use super::footer::Handle;
use super::index::Index;
use super::slot::Slot;

/// Where a section's filter and index lie. The one follows the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SectionHandle {
    pub(super) index: Handle,
    pub(super) filter: Handle,
}

impl SectionHandle {
    /// The value of an entry of the sections block.
    pub(super) fn to_bytes(self) -> [[u8; Handle::SIZE]; 2] {
        [self.index.to_bytes(), self.filter.to_bytes()]
    }

    /// The reverse of [`Self::to_bytes`]; `None` if it is not that.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (index, filter) = bytes.split_at_checked(Handle::SIZE)?;
        let (index, filter) = (Handle::from_bytes(index)?, Handle::from_bytes(filter)?);
        let follows = filter.offset.checked_add(u64::from(filter.length)) == Some(index.offset);
        follows.then_some(Self { index, filter })
    }

    /// Both in one.
    pub(super) fn whole(self) -> Option<Handle> {
        let length = self.filter.length.checked_add(self.index.length)?;
        Some(Handle { offset: self.filter.offset, length })
    }
}

/// See the file's head.
pub(crate) struct Section {
    pub(super) filter: Bloom,
    pub(super) index: Index<Handle>,
    /// The data block of each place of the index.
    pub(super) slots: Box<[Slot<EntriesBlock>]>,
}

impl Section {
    /// From the contents of both blocks.
    ///
    /// # Errors
    /// [`Damaged`] if the index is none.
    pub(super) fn new(filter: bytes::Bytes, index: bytes::Bytes) -> Result<Self, Damaged> {
        let index = Index::new(index, Handle::from_bytes)?;
        let slots = Slot::list(index.len());
        Ok(Self { filter: Bloom::from_bytes(filter), index, slots })
    }

    /// Memory held, in bytes.
    pub(super) fn size(&self) -> usize {
        self.filter.bytes().len() + self.index.size() + size_of_val(&*self.slots)
    }
}
