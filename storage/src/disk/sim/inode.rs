//! One file of a simulated disk: what a read sees, what a crash leaves for sure, and what leads from the one to the other.
//!
//! Invariants:
//!
//! - What a crash leaves for sure is what a read sees with all that is not synced undone, unless a sync has failed or the
//!   disk was damaged: then it is kept apart.
//! - A write that a crash tears leaves whole sectors of the new bytes or of the old.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::CrashMode;

/// The unit that a disk writes whole or not at all.
const SECTOR_SIZE: u64 = 512;

#[derive(Clone, Debug)]
enum FileOperation {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { len: u64 },
}

/// An operation that is not synced, as what takes it back. Most files grow at their end: there is nothing to be kept then.
#[derive(Clone, Debug)]
struct Undo {
    /// Where it wrote, and how many bytes; `None`: it changed the length.
    written: Option<(u64, usize)>,
    /// How long the file was.
    len: usize,
    /// What it replaced or cut off, and where that was.
    at: usize,
    bytes: Vec<u8>,
}

/// What a crash leaves for sure.
#[derive(Clone, Debug)]
enum Durable {
    /// What a read sees, once this is undone, the last first.
    Undone(Vec<Undo>),
    /// Something else, and what leads from there to what a read sees, or would if it had not failed.
    Apart { bytes: Vec<u8>, unsynced: Vec<FileOperation> },
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// What a read sees.
    current: Vec<u8>,
    durable: Durable,
}

impl Default for Inode {
    fn default() -> Self {
        Self::new(Vec::new())
    }
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
    let start = index(offset);
    if bytes.len() < start {
        bytes.resize(start, 0);
    }
    let (inside, behind) = written.split_at(written.len().min(bytes.len() - start));
    bytes[start..start + inside.len()].copy_from_slice(inside);
    if bytes.capacity() - bytes.len() < behind.len() {
        // Logs grow by small writes: fewer copies of what is there.
        bytes.reserve(3 * bytes.len() + behind.len());
    }
    bytes.extend_from_slice(behind);
}

impl Undo {
    fn undo(self, bytes: &mut Vec<u8>) {
        bytes.resize(self.len, 0);
        bytes[self.at..self.at + self.bytes.len()].copy_from_slice(&self.bytes);
    }

    /// What it takes back, which is in `bytes`.
    fn operation(&self, bytes: &[u8]) -> FileOperation {
        match self.written {
            Some((offset, size)) => {
                let bytes = bytes[index(offset)..index(offset) + size].to_vec();
                FileOperation::Write { offset, bytes }
            }
            None => FileOperation::Truncate { len: bytes.len() as u64 },
        }
    }
}

impl Inode {
    /// A file with these bytes, durably.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { current: bytes, durable: Durable::Undone(Vec::new()) }
    }

    /// What a read sees.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn write(&mut self, offset: u64, written: &[u8]) {
        match &mut self.durable {
            Durable::Undone(undos) => {
                let len = self.current.len();
                let at = index(offset).min(len);
                let bytes = self.current[at..len.min(index(offset) + written.len())].to_vec();
                undos.push(Undo { written: Some((offset, written.len())), len, at, bytes });
            }
            Durable::Apart { unsynced, .. } => {
                unsynced.push(FileOperation::Write { offset, bytes: written.to_vec() });
            }
        }
        write(&mut self.current, offset, written);
    }

    pub(super) fn truncate(&mut self, len: u64) {
        match &mut self.durable {
            Durable::Undone(undos) => {
                let before = self.current.len();
                let at = index(len).min(before);
                let bytes = self.current[at..].to_vec();
                undos.push(Undo { written: None, len: before, at, bytes });
            }
            Durable::Apart { unsynced, .. } => unsynced.push(FileOperation::Truncate { len }),
        }
        self.current.resize(index(len), 0);
    }

    pub(super) fn sync(&mut self) {
        match &mut self.durable {
            Durable::Undone(undos) => undos.clear(),
            Durable::Apart { bytes, unsynced } => {
                for operation in unsynced.drain(..) {
                    operation.apply(bytes);
                }
            }
        }
    }

    /// A sync that failed: the length may be known to the disk, the bytes are gone for good.
    pub(super) fn lose(&mut self) {
        let (durable, unsynced) = self.apart();
        for operation in unsynced.drain(..) {
            if let FileOperation::Write { offset, bytes } = &operation {
                let end = index(*offset) + bytes.len();
                if durable.len() < end {
                    durable.resize(end, 0);
                }
            }
        }
    }

    /// Damages one bit, of what is durable too. What is on its way to the disk is as it was.
    ///
    /// # Panics
    /// If the file is not that long.
    pub(super) fn flip_bit(&mut self, at: usize, bit: u32) {
        let (durable, _) = self.apart();
        if let Some(byte) = durable.get_mut(at) {
            *byte ^= 1 << bit;
        }
        self.current[at] ^= 1 << bit;
    }

    pub(super) fn crash(&mut self, mode: CrashMode, random: &mut ChaCha8Rng) {
        let total = match &self.durable {
            Durable::Undone(undos) => undos.len(),
            Durable::Apart { unsynced, .. } => unsynced.len(),
        };
        let kept = if mode == CrashMode::LoseUnsynced { 0 } else { below(random, total + 1) };
        let mut lost = None;
        match &mut self.durable {
            Durable::Undone(undos) => {
                for undo in undos.drain(kept..).rev() {
                    lost = Some(undo.operation(&self.current));
                    undo.undo(&mut self.current);
                }
                undos.clear();
            }
            Durable::Apart { bytes, unsynced } => {
                lost = unsynced.drain(kept..).next();
                for operation in unsynced.drain(..) {
                    operation.apply(bytes);
                }
                self.current = std::mem::take(bytes);
                self.durable = Durable::Undone(Vec::new());
            }
        }
        if mode == CrashMode::Torn
            && let Some(FileOperation::Write { offset, bytes }) = lost
        {
            tear(&mut self.current, offset, &bytes, random);
        }
    }

    /// What a crash leaves for sure, apart from what a read sees, and what leads from there.
    fn apart(&mut self) -> (&mut Vec<u8>, &mut Vec<FileOperation>) {
        if let Durable::Undone(undos) = &mut self.durable {
            let mut bytes = self.current.clone();
            let mut unsynced = Vec::with_capacity(undos.len());
            for undo in undos.drain(..).rev() {
                unsynced.push(undo.operation(&bytes));
                undo.undo(&mut bytes);
            }
            unsynced.reverse();
            self.durable = Durable::Apart { bytes, unsynced };
        }
        match &mut self.durable {
            Durable::Apart { bytes, unsynced } => (bytes, unsynced),
            Durable::Undone(_) => unreachable!("it was set apart just now"),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Sync,
        Lose,
        Flip(usize, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..1500_u64, prop::collection::vec(any::<u8>(), 0..1200))
                .prop_map(|(offset, bytes)| Step::Write(offset, bytes)),
            2 => (0..2000_u64).prop_map(Step::Truncate),
            3 => Just(Step::Sync),
            1 => Just(Step::Lose),
            1 => (any::<usize>(), 0..8_u32).prop_map(|(at, bit)| Step::Flip(at, bit)),
        ]
    }

    /// The file as it was written down before anything was undone: both states in full, and every operation between them.
    #[derive(Default)]
    struct Model {
        durable: Vec<u8>,
        current: Vec<u8>,
        unsynced: Vec<FileOperation>,
    }

    impl Model {
        fn operate(&mut self, operation: FileOperation) {
            operation.apply(&mut self.current);
            self.unsynced.push(operation);
        }

        fn crash(mut self, mode: CrashMode, random: &mut ChaCha8Rng) -> Vec<u8> {
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
            self.durable
        }
    }

    proptest! {
        #[test]
        fn what_is_undone_is_what_was(
            steps in prop::collection::vec(step(), 0..40),
            mode in prop::sample::select(vec![
                CrashMode::LoseUnsynced, CrashMode::KeepPrefix, CrashMode::Torn,
            ]),
            seed in any::<u64>(),
        ) {
            let (mut inode, mut model) = (Inode::default(), Model::default());
            for step in steps {
                match step {
                    Step::Write(offset, bytes) => {
                        inode.write(offset, &bytes);
                        model.operate(FileOperation::Write { offset, bytes });
                    }
                    Step::Truncate(len) => {
                        inode.truncate(len);
                        model.operate(FileOperation::Truncate { len });
                    }
                    Step::Sync => {
                        inode.sync();
                        for operation in std::mem::take(&mut model.unsynced) {
                            operation.apply(&mut model.durable);
                        }
                    }
                    Step::Lose => {
                        inode.lose();
                        for operation in std::mem::take(&mut model.unsynced) {
                            if let FileOperation::Write { offset, bytes } = operation {
                                let end = index(offset) + bytes.len();
                                let len = model.durable.len().max(end);
                                model.durable.resize(len, 0);
                            }
                        }
                    }
                    Step::Flip(at, bit) => {
                        if let Some(at) = at.checked_rem(model.current.len()) {
                            inode.flip_bit(at, bit);
                            model.current[at] ^= 1 << bit;
                            if let Some(byte) = model.durable.get_mut(at) {
                                *byte ^= 1 << bit;
                            }
                        }
                    }
                }
                prop_assert_eq!(inode.bytes(), &model.current);
            }
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            inode.crash(mode, &mut random);
            let wanted = model.crash(mode, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(inode.bytes(), &wanted);
            inode.crash(CrashMode::LoseUnsynced, &mut random);
            prop_assert_eq!(inode.bytes(), &wanted);
        }
    }
}
