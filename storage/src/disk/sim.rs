//! [`SimDisk`]: a disk in memory that forgets, tears, damages, fails and fills up, the same way for the same seed.
//!
//! Invariants:
//!
//! - It keeps the contract of [`Disk`] and not a bit more: what was not synced may be lost.
//! - Every call of every handle is counted, and a fault can be put at any count.
//! - After a crash every handle of before answers with an error, and changes nothing.
//! - A failed sync loses what was written since the last one for good, while reads go on to show it (the page
//!   cache of ext4 does so): a later sync answers `Ok` and saves none of it.
//!
//! Clones are handles on the same disk; [`SimDisk::fork`] makes another disk.

mod inode;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{Disk, DiskFile};
use inode::{Inode, below, index};

/// Where what is made ready for writes ends: a multiple of this.
const PREPARED_SIZE: u64 = 128 << 10;

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this call and all later ones fail, until [`SimDisk::restart`].
    Crash,
    /// `EIO`. A write may have been done in part; a sync has lost what it was for.
    Io,
    /// `ENOSPC`. A write may have been done in part; calls that need no room are done.
    Full,
}

/// What is left of unsynced work after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// All of it is lost.
    LoseUnsynced,
    /// The first so many calls of each file and directory survive, drawn by the seed.
    KeepPrefix,
    /// As `KeepPrefix`, and of the first lost write some sectors survive.
    Torn,
    /// Only the process died: the system has it all, still unsynced.
    KeepAll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(u64),
    Directory,
}

#[derive(Clone, Debug)]
enum NameOperation {
    Set { path: String, entry: Entry },
    Unset { path: String },
    Rename { from: String, to: String, entry: Entry },
}

#[derive(Clone, Debug)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    inode_next: u64,
    current: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    unsynced: Vec<NameOperation>,
    locks: BTreeSet<String>,
    faults: BTreeMap<u64, Fault>,
    calls: u64,
    syncs: u64,
    capacity: Option<u64>,
    crashed: bool,
    /// Counts restarts; handles of an earlier life are dead.
    life: u64,
    random: ChaCha8Rng,
}

/// A simulated disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    life: u64,
}

/// A held lock of a [`SimDisk`].
#[derive(Debug)]
pub struct SimLock {
    disk: SimDisk,
    path: String,
    life: u64,
}

impl SimDisk {
    /// An empty disk whose chances are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            inode_next: 0,
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            unsynced: Vec::new(),
            locks: BTreeSet::new(),
            faults: BTreeMap::new(),
            calls: 0,
            syncs: 0,
            capacity: None,
            crashed: false,
            life: 0,
            random: ChaCha8Rng::seed_from_u64(seed),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Another disk in the state of this one, with no lock held and no fault to come.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut state = self.state().clone();
        state.locks.clear();
        state.faults.clear();
        state.life += 1;
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// How many of them synced a file or a directory.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Lets `fault` happen at the call with this number; the first call of all is number 0.
    pub fn inject(&self, call: u64, fault: Fault) {
        self.state().faults.insert(call, fault);
    }

    /// Faults that have not happened yet never will.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Bytes that files may hold in all; `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes that files hold.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Whether the power is gone.
    pub fn is_crashed(&self) -> bool {
        self.state().crashed
    }

    /// The power goes now.
    pub fn crash(&self) {
        self.state().crashed = true;
    }

    /// The power comes back, or the process is started again: what `mode` leaves is there, no lock is held,
    /// no fault is to come, and handles of before are dead.
    pub fn restart(&self, mode: CrashMode) {
        self.state().restart(mode);
    }

    /// Damages one bit, on the disk itself.
    ///
    /// # Panics
    /// If the file is not there or not that long.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u32) {
        let mut state = self.state();
        let inode = state.inode_mut(path).expect("the file is there");
        inode.flip_bit(index(offset), bit);
    }

    /// What a file holds; `None` if it is not there.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        self.state().inode_mut(path).map(|inode| inode.bytes().to_vec())
    }

    /// Makes a file hold `bytes`, durably; it is made if it is not there.
    pub fn replace(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        let number = state.inode_next;
        state.inode_next += 1;
        state.inodes.insert(number, Inode::new(bytes.to_vec()));
        state.current.insert(path.to_owned(), Entry::File(number));
        state.durable.insert(path.to_owned(), Entry::File(number));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, inode: u64, life: u64) -> SimFile {
        SimFile { disk: self.clone(), inode, life }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path} is not there"))
}

fn failed(fault: Fault) -> io::Error {
    match fault {
        Fault::Crash => io::Error::other("the simulated power is gone"),
        Fault::Io => io::Error::other("simulated EIO"),
        Fault::Full => io::Error::from(io::ErrorKind::StorageFull),
    }
}

impl NameOperation {
    fn directory(&self) -> &str {
        match self {
            Self::Set { path, .. } | Self::Unset { path } => parent(path),
            Self::Rename { to, .. } => parent(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Set { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            Self::Unset { path } => {
                names.remove(path);
            }
            Self::Rename { from, to, entry } => {
                names.remove(from);
                names.insert(to.clone(), *entry);
            }
        }
    }
}

impl State {
    /// Counts a call and tells what is to go wrong with it.
    fn call(&mut self, life: u64) -> io::Result<Option<Fault>> {
        if self.crashed || life != self.life {
            return Err(failed(Fault::Crash));
        }
        let fault = self.faults.remove(&self.calls);
        self.calls += 1;
        self.crashed = fault == Some(Fault::Crash);
        Ok(fault)
    }

    /// As [`Self::call`], for calls that do nothing if anything goes wrong with them.
    fn call_whole(&mut self, life: u64, needs_room: bool) -> io::Result<()> {
        match self.call(life)? {
            Some(Fault::Full) if !needs_room => Ok(()),
            Some(fault) => Err(failed(fault)),
            None => Ok(()),
        }
    }

    fn name(&mut self, operation: NameOperation) {
        operation.apply(&mut self.current);
        self.unsynced.push(operation);
    }

    fn inode_mut(&mut self, path: &str) -> Option<&mut Inode> {
        match self.current.get(path) {
            Some(Entry::File(inode)) => self.inodes.get_mut(inode),
            _ => None,
        }
    }

    fn used(&self) -> u64 {
        let sizes = self.current.values().map(|entry| match entry {
            Entry::File(inode) => self.inodes[inode].bytes().len() as u64,
            Entry::Directory => 0,
        });
        sizes.sum()
    }

    fn check_parent(&self, path: &str) -> io::Result<()> {
        let dir = parent(path);
        if dir.is_empty() || self.current.get(dir) == Some(&Entry::Directory) {
            return Ok(());
        }
        Err(not_found(dir))
    }

    fn restart(&mut self, mode: CrashMode) {
        self.crashed = false;
        self.life += 1;
        self.locks.clear();
        self.faults.clear();
        if mode == CrashMode::KeepAll {
            return;
        }
        let total = self.unsynced.len();
        let kept =
            if mode == CrashMode::LoseUnsynced { 0 } else { below(&mut self.random, total + 1) };
        for operation in &self.unsynced[..kept] {
            operation.apply(&mut self.durable);
        }
        self.unsynced.clear();
        let durable = self.durable.clone();
        // A file whose directory was lost is lost with it.
        self.durable.retain(|path, _| {
            let mut dir = parent(path);
            while !dir.is_empty() && durable.contains_key(dir) {
                dir = parent(dir);
            }
            dir.is_empty()
        });
        self.current = self.durable.clone();
        for inode in self.inodes.values_mut() {
            inode.crash(mode, &mut self.random);
        }
        let named: BTreeSet<u64> = self.current.values().filter_map(Entry::inode).collect();
        self.inodes.retain(|number, _| named.contains(number));
    }
}

impl Entry {
    fn inode(&self) -> Option<u64> {
        match self {
            Self::File(inode) => Some(*inode),
            Self::Directory => None,
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn create(&self, path: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, true)?;
        state.check_parent(path)?;
        if state.current.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inode_next;
        state.inode_next += 1;
        state.inodes.insert(inode, Inode::default());
        state.name(NameOperation::Set { path: path.to_owned(), entry: Entry::File(inode) });
        Ok(self.handle(inode, life))
    }

    fn open(&self, path: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, false)?;
        match state.current.get(path) {
            Some(Entry::File(inode)) => Ok(self.handle(*inode, life)),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found(path)),
        }
    }

    fn open_read(&self, path: &str) -> io::Result<SimFile> {
        self.open(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, false)?;
        if !dir.is_empty() && state.current.get(dir) != Some(&Entry::Directory) {
            return Err(not_found(dir));
        }
        let inside = state.current.keys().filter(|path| parent(path) == dir);
        Ok(inside.map(|path| path.rsplit('/').next().unwrap_or(path).to_owned()).collect())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, false)?;
        match state.current.get(path) {
            Some(Entry::File(_)) => {
                state.name(NameOperation::Unset { path: path.to_owned() });
                Ok(())
            }
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found(path)),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        assert_eq!(parent(from), parent(to), "files are renamed within their directory");
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, true)?;
        let entry = *state.current.get(from).ok_or_else(|| not_found(from))?;
        state.name(NameOperation::Rename { from: from.to_owned(), to: to.to_owned(), entry });
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, true)?;
        state.check_parent(path)?;
        match state.current.get(path) {
            Some(Entry::Directory) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                let path = path.to_owned();
                state.name(NameOperation::Set { path, entry: Entry::Directory });
                Ok(())
            }
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        state.syncs += 1;
        state.call_whole(life, true)?;
        let (synced, unsynced) = std::mem::take(&mut state.unsynced)
            .into_iter()
            .partition(|operation| operation.directory() == dir);
        state.unsynced = unsynced;
        let synced: Vec<NameOperation> = synced;
        for operation in synced {
            operation.apply(&mut state.durable);
        }
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, false)?;
        Ok(path.is_empty() || state.current.contains_key(path))
    }

    fn lock(&self, path: &str) -> io::Result<SimLock> {
        let mut state = self.state();
        let life = state.life;
        state.call_whole(life, false)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(SimLock { disk: self.clone(), path: path.to_owned(), life })
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    fn with<T>(&self, body: impl FnOnce(&mut Inode) -> T, state: &mut State) -> io::Result<T> {
        // A file that was removed and lost in a crash has handles of an earlier life only.
        let inode = state.inodes.get_mut(&self.inode).ok_or_else(|| failed(Fault::Crash))?;
        Ok(body(inode))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.call_whole(self.life, false)?;
        self.with(
            |inode| {
                let rest = inode.bytes().get(index(offset)..).unwrap_or_default();
                let length = rest.len().min(buf.len());
                buf[..length].copy_from_slice(&rest[..length]);
                length
            },
            &mut state,
        )
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let mut fault = state.call(self.life)?;
        let mut written = buf.len();
        match fault {
            Some(Fault::Io | Fault::Full) => written = below(&mut state.random, buf.len() + 1),
            Some(Fault::Crash) => {}
            None => {
                let length = self.with(|inode| inode.bytes().len() as u64, &mut state)?;
                let growth = (offset + buf.len() as u64).saturating_sub(length);
                let room = state.capacity.map_or(u64::MAX, |all| all.saturating_sub(state.used()));
                if room < growth {
                    fault = Some(Fault::Full);
                    written = index((length + room).saturating_sub(offset)).min(buf.len());
                }
            }
        }
        self.with(|inode| inode.write(offset, &buf[..written]), &mut state)?;
        fault.map_or(Ok(()), |fault| Err(failed(fault)))
    }

    fn prepare_writes(&self, offset: u64) -> u64 {
        let mut state = self.disk.state();
        let end = (offset / PREPARED_SIZE + 1) * PREPARED_SIZE;
        let Ok(None) = state.call(self.life) else { return offset };
        let Ok(length) = self.with(|inode| inode.bytes().len() as u64, &mut state) else {
            return offset;
        };
        let growth = end.saturating_sub(length);
        let room = state.capacity.map_or(u64::MAX, |all| all.saturating_sub(state.used()));
        if room < growth {
            return offset;
        }
        let zeros = vec![0; index(growth)];
        let grown = self.with(|inode| inode.write(length, &zeros), &mut state);
        grown.map_or(offset, |()| end)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.syncs += 1;
        match state.call(self.life)? {
            Some(Fault::Crash) => Err(failed(Fault::Crash)),
            Some(fault) => {
                self.with(Inode::lose, &mut state)?;
                Err(failed(fault))
            }
            None => self.with(Inode::sync, &mut state),
        }
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.call_whole(self.life, false)?;
        self.with(|inode| inode.bytes().len() as u64, &mut state)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call_whole(self.life, false)?;
        self.with(|inode| inode.truncate(len), &mut state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synced(disk: &SimDisk, path: &str, bytes: &[u8]) -> SimFile {
        let file = disk.create(path).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(parent(path)).unwrap();
        file
    }

    #[test]
    fn what_was_not_synced_is_lost() {
        let disk = SimDisk::new(1);
        let file = synced(&disk, "a", b"hello");
        file.write_at(b"HELLO WORLD", 0).unwrap();
        let unnamed = disk.create("b").unwrap();
        unnamed.write_at(b"x", 0).unwrap();
        unnamed.sync().unwrap();
        disk.crash();
        assert!(disk.open("a").is_err());
        disk.restart(CrashMode::LoseUnsynced);
        assert_eq!(disk.contents("a").unwrap(), b"hello");
        assert!(!disk.exists("b").unwrap(), "its directory was not synced");
        assert!(file.write_at(b"late", 0).is_err(), "a handle of an earlier life is dead");
    }

    #[test]
    fn a_process_that_dies_loses_nothing_until_the_power_goes() {
        let disk = SimDisk::new(1);
        let file = synced(&disk, "a", b"hello");
        file.write_at(b"J", 0).unwrap();
        disk.restart(CrashMode::KeepAll);
        assert_eq!(disk.contents("a").unwrap(), b"Jello");
        disk.restart(CrashMode::LoseUnsynced);
        assert_eq!(disk.contents("a").unwrap(), b"hello");
    }

    #[test]
    fn renames_and_removes_need_a_directory_sync() {
        let disk = SimDisk::new(1);
        synced(&disk, "a", b"1");
        synced(&disk, "b", b"2");
        disk.rename("a", "b").unwrap();
        assert_eq!(disk.contents("b").unwrap(), b"1");
        disk.restart(CrashMode::LoseUnsynced);
        assert_eq!(disk.contents("b").unwrap(), b"2");
        disk.remove("b").unwrap();
        disk.sync_dir("").unwrap();
        disk.restart(CrashMode::LoseUnsynced);
        assert_eq!(disk.list("").unwrap(), ["a"]);
    }

    #[test]
    fn a_failed_sync_loses_for_good_and_looks_well() {
        let disk = SimDisk::new(1);
        let file = synced(&disk, "a", b"hello");
        file.write_at(b" world", 5).unwrap();
        disk.inject(disk.calls(), Fault::Io);
        assert!(file.sync().is_err());
        assert_eq!(disk.contents("a").unwrap(), b"hello world");
        file.sync().unwrap();
        disk.restart(CrashMode::LoseUnsynced);
        assert_eq!(disk.contents("a").unwrap(), b"hello\0\0\0\0\0\0");
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let disk = SimDisk::new(1);
        let file = synced(&disk, "a", b"hello");
        disk.set_capacity(Some(8));
        assert_eq!(file.write_at(b" world", 5).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.contents("a").unwrap(), b"hello wo");
        file.write_at(b"J", 0).unwrap();
        disk.set_capacity(None);
        file.write_at(b" world", 5).unwrap();
        assert_eq!(disk.used(), 11);
    }

    #[test]
    fn torn_writes_keep_whole_sectors_and_seeds_repeat() {
        let run = |seed| {
            let disk = SimDisk::new(seed);
            let file = synced(&disk, "a", b"");
            file.write_at(&[7; 5000], 100).unwrap();
            disk.restart(CrashMode::Torn);
            disk.contents("a").unwrap()
        };
        let mut torn = 0;
        for seed in 0..50 {
            let left = run(seed);
            assert_eq!(left, run(seed));
            torn += usize::from(left.contains(&7) && left.iter().skip(100).any(|&byte| byte == 0));
            for (number, sector) in left.chunks(512).enumerate().skip(1) {
                assert!(sector.iter().all(|&byte| byte == sector[0]), "sector {number}");
            }
        }
        assert!(torn > 10);
    }

    #[test]
    fn locks_are_exclusive_and_end_with_the_process() {
        let disk = SimDisk::new(1);
        let held = disk.lock("lock").unwrap();
        assert_eq!(disk.lock("lock").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        disk.restart(CrashMode::KeepAll);
        let again = disk.lock("lock").unwrap();
        drop(held);
        assert!(disk.lock("lock").is_err(), "a dead holder frees nothing");
        drop(again);
        disk.lock("lock").unwrap();
    }
}
