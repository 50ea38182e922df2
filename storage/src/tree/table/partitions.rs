//! What a table tells of each partition in it: counts, and a digest of its events. See `FORMAT.md`, "Table partitions".
//!
//! Invariants:
//!
//! - Exact for the table: so that the digest of a partition is the sum over the tables and memtables that have it,
//!   as long as no event is in two of them.
//! - A partition stands here if the table has an event of it, and only then.

#[cfg(test)]
use bytes::Bytes;

use super::block::Damaged;
use super::entries::{Entries, EntriesBuilder, EntriesCursor, RESTART_INTERVAL};
use crate::types::Digest;

/// Field name, offset, size: the same table as `FORMAT.md`, for the test that compares them.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize, usize); 5] =
    [("events", 0, 8), ("deletes", 8, 8), ("keys", 16, 8), ("bytes", 24, 8), ("digest", 32, 8)];

/// What is known of the events of one partition in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionSummary {
    /// How many events, and the digest of their identities.
    pub(crate) digest: Digest,
    /// How many of them are tombstones.
    pub(crate) deletes: u64,
    /// Distinct keys.
    pub(crate) keys: u64,
    /// Bytes of internal keys and payloads.
    pub(crate) bytes: u64,
}

impl PartitionSummary {
    /// Bytes of the fields.
    const SIZE: usize = 40;

    fn encode(&self) -> [u8; Self::SIZE] {
        let fields = [self.digest.events, self.deletes, self.keys, self.bytes, self.digest.hash];
        let mut bytes = [0; Self::SIZE];
        for (field, bytes) in fields.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let (fields, _) = bytes.as_chunks::<8>();
        let field = |index: usize| u64::from_le_bytes(fields[index]);
        Some(Self {
            digest: Digest { events: field(0), hash: field(4) },
            deletes: field(1),
            keys: field(2),
            bytes: field(3),
        })
    }
}

/// Lays out the summaries of a table's partitions.
pub(crate) struct PartitionsBuilder(EntriesBuilder);

impl PartitionsBuilder {
    pub(crate) fn new() -> Self {
        Self(EntriesBuilder::new(RESTART_INTERVAL))
    }

    /// Appends a partition.
    ///
    /// # Panics
    /// If it is not above the one before.
    pub(crate) fn add(&mut self, partition: u32, summary: &PartitionSummary) {
        self.0.add(&partition.to_be_bytes(), &[&summary.encode()]);
    }

    /// The contents of the block.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.0.finish()
    }
}

/// What `entries` tell of `partition`.
///
/// # Errors
/// [`Damaged`] if they are not summaries.
pub(crate) fn find(entries: &Entries, partition: u32) -> Result<Option<PartitionSummary>, Damaged> {
    let target = partition.to_be_bytes();
    let Some(found) = entries.find(&target)? else { return Ok(None) };
    if [&target[..found.shared], entries.slice(found.suffix)].concat() != target {
        return Ok(None);
    }
    PartitionSummary::decode(entries.slice(found.value)).map(Some).ok_or(Damaged)
}

/// All partitions and what `entries` tell of them, in order.
///
/// # Errors
/// [`Damaged`] if they are not summaries.
pub(crate) fn list(entries: Entries) -> Result<Vec<(u32, PartitionSummary)>, Damaged> {
    let mut cursor = EntriesCursor::new(entries);
    let mut all = Vec::new();
    cursor.first()?;
    while cursor.valid() {
        let partition = cursor.key().try_into().map_err(|_| Damaged)?;
        let summary = PartitionSummary::decode(cursor.value()).ok_or(Damaged)?;
        all.push((u32::from_be_bytes(partition), summary));
        cursor.advance()?;
    }
    Ok(all)
}

/// The example of `FORMAT.md`.
#[cfg(test)]
pub(crate) fn example() -> Bytes {
    let digest = Digest { events: 2, hash: 0x0a0b };
    let mut builder = PartitionsBuilder::new();
    builder.add(3, &PartitionSummary { digest, deletes: 1, keys: 2, bytes: 70 });
    Bytes::copy_from_slice(builder.finish())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::table::entries::EntriesBlock;

    proptest! {
        #[test]
        fn roundtrips(
            model in prop::collection::btree_map(0..300_u32, any::<[u64; 5]>(), 0..100),
            probes in prop::collection::vec(0..300_u32, 20),
        ) {
            let model: BTreeMap<u32, PartitionSummary> = model
                .into_iter()
                .map(|(partition, [events, hash, deletes, keys, bytes])| {
                    let digest = Digest { events, hash };
                    (partition, PartitionSummary { digest, deletes, keys, bytes })
                })
                .collect();
            let mut builder = PartitionsBuilder::new();
            for (partition, summary) in &model {
                builder.add(*partition, summary);
            }
            let entries = EntriesBlock::open(Bytes::copy_from_slice(builder.finish())).expect("just built");
            for probe in probes {
                let found = find(&entries, probe).expect("sound");
                prop_assert_eq!(found.as_ref(), model.get(&probe));
            }
            let all: Vec<_> = model.into_iter().collect();
            prop_assert_eq!(list(entries).expect("sound"), all);
        }

        #[test]
        fn garbage_is_refused_or_read(bytes in prop::collection::vec(0..50_u8, 0..120), probe: u32) {
            if let Ok(entries) = EntriesBlock::open(bytes.into()) {
                let _ = find(&entries, probe);
                let _ = list(entries);
            }
        }
    }
}
