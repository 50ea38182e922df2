//! The footer: the last bytes of a table, from which everything else in it is found. See `FORMAT.md`, "Table footer".
//!
//! Invariants:
//!
//! - Fixed size, checksummed, at the very end: a truncated table has no footer.
//! - It names the table it belongs to, so that a file in the place of another is noticed.
//! - The bounds are exact: no event of the table lies outside them, and some event lies on each.

use starling_clock::Stamp;

/// Bytes of a footer.
pub(crate) const FOOTER_SIZE: usize = 120;
/// The last bytes of every table.
pub(crate) const MAGIC: [u8; 8] = *b"STARLTBL";
/// The format version written, and the only one read.
pub(crate) const VERSION: u32 = 1;

/// Field name, offset, size: the same table as `FORMAT.md`, for the test that compares them.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize, usize); 16] = [
    ("crc", 0, 4),
    ("version", 4, 4),
    ("table", 8, 8),
    ("sections offset", 16, 8),
    ("sections length", 24, 4),
    ("partitions length", 28, 4),
    ("partitions offset", 32, 8),
    ("partition least", 40, 4),
    ("partition greatest", 44, 4),
    ("stamp least", 48, 16),
    ("stamp greatest", 64, 16),
    ("events", 80, 8),
    ("deletes", 88, 8),
    ("keys", 96, 8),
    ("bytes", 104, 8),
    ("magic", 112, 8),
];

/// Where a block lies in its file, envelope included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl Handle {
    /// Encoded size in bytes.
    pub(crate) const SIZE: usize = 12;

    /// Little-endian.
    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The reverse of [`Self::to_bytes`]; `None` if the length is another.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (offset, length) = bytes.split_first_chunk::<8>()?;
        let offset = u64::from_le_bytes(*offset);
        Some(Self { offset, length: u32::from_le_bytes(length.try_into().ok()?) })
    }
}

/// What is known of the events of a table as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) partition_least: u32,
    pub(crate) partition_greatest: u32,
    pub(crate) stamp_least: Stamp,
    pub(crate) stamp_greatest: Stamp,
    pub(crate) events: u64,
    /// How many of the events are tombstones.
    pub(crate) deletes: u64,
    /// Distinct keys.
    pub(crate) keys: u64,
    /// Bytes of internal keys and payloads, before compression.
    pub(crate) bytes: u64,
}

/// A decoded footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) table: u64,
    pub(crate) sections: Handle,
    pub(crate) partitions: Handle,
    pub(crate) bounds: Bounds,
}

/// Why bytes are not a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FooterError {
    /// Not what was written.
    Damaged,
    /// Whole, and of a format this release doesn't know.
    Newer {
        /// The version found.
        version: u32,
    },
}

impl Footer {
    pub(crate) fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut out = Vec::with_capacity(FOOTER_SIZE);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.table.to_le_bytes());
        out.extend_from_slice(&self.sections.offset.to_le_bytes());
        out.extend_from_slice(&self.sections.length.to_le_bytes());
        out.extend_from_slice(&self.partitions.length.to_le_bytes());
        out.extend_from_slice(&self.partitions.offset.to_le_bytes());
        out.extend_from_slice(&self.bounds.partition_least.to_le_bytes());
        out.extend_from_slice(&self.bounds.partition_greatest.to_le_bytes());
        out.extend_from_slice(&self.bounds.stamp_least.to_bytes());
        out.extend_from_slice(&self.bounds.stamp_greatest.to_bytes());
        out.extend_from_slice(&self.bounds.events.to_le_bytes());
        out.extend_from_slice(&self.bounds.deletes.to_le_bytes());
        out.extend_from_slice(&self.bounds.keys.to_le_bytes());
        out.extend_from_slice(&self.bounds.bytes.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out.try_into().expect("the fields add up to FOOTER_SIZE")
    }

    pub(crate) fn decode(bytes: &[u8; FOOTER_SIZE]) -> Result<Self, FooterError> {
        let sound = bytes[FOOTER_SIZE - MAGIC.len()..] == MAGIC
            && crc32c::crc32c(&bytes[4..]) == le_u32(bytes, 0);
        if !sound {
            return Err(FooterError::Damaged);
        }
        let version = le_u32(bytes, 4);
        if version != VERSION {
            return Err(FooterError::Newer { version });
        }
        let stamp = |offset: usize| {
            let bytes = bytes[offset..].first_chunk().expect("the field lies in the footer");
            Stamp::from_bytes(*bytes).ok_or(FooterError::Damaged)
        };
        Ok(Self {
            table: le_u64(bytes, 8),
            sections: Handle { offset: le_u64(bytes, 16), length: le_u32(bytes, 24) },
            partitions: Handle { offset: le_u64(bytes, 32), length: le_u32(bytes, 28) },
            bounds: Bounds {
                partition_least: le_u32(bytes, 40),
                partition_greatest: le_u32(bytes, 44),
                stamp_least: stamp(48)?,
                stamp_greatest: stamp(64)?,
                events: le_u64(bytes, 80),
                deletes: le_u64(bytes, 88),
                keys: le_u64(bytes, 96),
                bytes: le_u64(bytes, 104),
            },
        })
    }
}

fn le_u32(bytes: &[u8; FOOTER_SIZE], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().expect("the field lies in the footer"))
}

fn le_u64(bytes: &[u8; FOOTER_SIZE], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().expect("the field lies in the footer"))
}

#[cfg(test)]
pub(crate) mod tests {
    use starling_clock::{HybridTime, NodeId};

    use super::*;

    /// The example of `FORMAT.md`.
    pub(crate) fn example() -> Footer {
        let stamp = |ms| Stamp::new(HybridTime::new(ms, 0), NodeId(1));
        Footer {
            table: 7,
            sections: Handle { offset: 190, length: 140 },
            partitions: Handle { offset: 330, length: 60 },
            bounds: Bounds {
                partition_least: 3,
                partition_greatest: 5,
                stamp_least: stamp(1000),
                stamp_greatest: stamp(2000),
                events: 2,
                deletes: 1,
                keys: 2,
                bytes: 70,
            },
        }
    }

    #[test]
    fn roundtrips() {
        assert_eq!(Footer::decode(&example().encode()), Ok(example()));
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        for bit in 0..FOOTER_SIZE * 8 {
            let mut bytes = example().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Footer::decode(&bytes), Err(FooterError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = example().encode();
        bytes[4] = 9;
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Footer::decode(&bytes), Err(FooterError::Newer { version: 9 }));
    }
}
