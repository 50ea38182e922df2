//! One file of a simulated disk: what a crash leaves for sure, what a read sees, and what leads from the one to the other.
//!
//! Invariants:
//!
//! - Applied to what is durable, what is not synced gives what a read sees, unless a sync has failed.
//! - A write that a crash tears leaves whole sectors of the new bytes or of the old.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::CrashMode;

/// The unit that a disk writes whole or not at all.
const SECTOR_SIZE: u64 = 512;

#[derive(Clone, Debug)]
pub(super) enum FileOperation {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { len: u64 },
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// What a crash leaves for sure.
    pub(super) durable: Vec<u8>,
    /// What a read sees.
    pub(super) current: Vec<u8>,
    /// What leads from the one to the other.
    pub(super) unsynced: Vec<FileOperation>,
}

pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated file fits in memory")
}

impl FileOperation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: written } => write(bytes, *offset, written),
            Self::Truncate { len } => bytes.resize(index(*len), 0),
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: u64, written: &[u8]) {
    let (start, end) = (index(offset), index(offset) + written.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(written);
}

impl Inode {
    pub(super) fn operate(&mut self, operation: FileOperation) {
        operation.apply(&mut self.current);
        self.unsynced.push(operation);
    }

    pub(super) fn sync(&mut self) {
        for operation in self.unsynced.drain(..) {
            operation.apply(&mut self.durable);
        }
    }

    /// A sync that failed: the length may be known to the disk, the bytes are gone for good.
    pub(super) fn lose(&mut self) {
        for operation in self.unsynced.drain(..) {
            if let FileOperation::Write { offset, bytes } = &operation {
                let end = index(*offset) + bytes.len();
                if self.durable.len() < end {
                    self.durable.resize(end, 0);
                }
            }
        }
    }

    pub(super) fn crash(&mut self, mode: CrashMode, random: &mut ChaCha8Rng) {
        let total = self.unsynced.len();
        let kept = if mode == CrashMode::LoseUnsynced { 0 } else { below(random, total + 1) };
        for operation in &self.unsynced[..kept] {
            operation.apply(&mut self.durable);
        }
        if mode == CrashMode::Torn
            && let Some(FileOperation::Write { offset, bytes }) = self.unsynced.get(kept)
        {
            tear(&mut self.durable, *offset, bytes, random);
        }
        self.unsynced.clear();
        self.current.clone_from(&self.durable);
    }
}

/// Writes some of the sectors that `written` touches.
fn tear(bytes: &mut Vec<u8>, offset: u64, written: &[u8], random: &mut ChaCha8Rng) {
    let end = offset + written.len() as u64;
    let mut at = offset;
    while at < end {
        let sector_end = ((at / SECTOR_SIZE + 1) * SECTOR_SIZE).min(end);
        if below(random, 2) == 1 {
            write(bytes, at, &written[index(at - offset)..index(sector_end - offset)]);
        }
        at = sector_end;
    }
}

pub(super) fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    // The bias is of no matter here, the same answer on every machine is.
    usize::try_from(random.next_u64() % bound as u64).expect("below a usize")
}
