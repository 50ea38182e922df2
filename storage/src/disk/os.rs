//! [`OsDisk`]: the operating system's files, under one root directory.
//!
//! Invariants:
//!
//! - Nothing outside the root is touched: absolute paths and `..` are programmer errors.
//! - A file has at most one [`Window`], and none after it was synced or cut off.

mod window;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};
use window::Window;

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct OsDisk {
    root: PathBuf,
    copied_bytes: Arc<AtomicU64>,
}

/// An open file of the operating system.
#[derive(Debug)]
pub struct OsFile {
    file: File,
    window: Mutex<Option<Window>>,
    /// Those of all files of the disk.
    copied_bytes: Arc<AtomicU64>,
}

/// A held lock of the operating system (`flock`): it ends with the process, however that ends.
#[derive(Debug)]
pub struct OsLock {
    _file: File,
}

impl OsDisk {
    /// The directory `root`; it and its parents are made if they are not there.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        Ok(Self { root, copied_bytes: Arc::default() })
    }

    /// Bytes that were written by a copy into the page cache (see [`DiskFile::prepare_writes`]): what the system counts as
    /// written by this process does not have them.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Ordering::Relaxed)
    }

    fn file(&self, file: File) -> OsFile {
        OsFile { file, window: Mutex::default(), copied_bytes: Arc::clone(&self.copied_bytes) }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> PathBuf {
        assert!(!path.starts_with('/'), "paths are relative to the root");
        assert!(path.split('/').all(|part| part != ".."), "paths stay under the root");
        self.root.join(path)
    }
}

impl Disk for OsDisk {
    type File = OsFile;
    type Lock = OsLock;

    fn create(&self, path: &str) -> io::Result<OsFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Ok(self.file(options.open(self.path(path)).map_err(no_room)?))
    }

    fn open(&self, path: &str) -> io::Result<OsFile> {
        Ok(self.file(OpenOptions::new().read(true).write(true).open(self.path(path))?))
    }

    fn open_read(&self, path: &str) -> io::Result<OsFile> {
        Ok(self.file(File::open(self.path(path))?))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(dir))? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match fs::create_dir(self.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        fs::exists(self.path(path))
    }

    fn lock(&self, path: &str) -> io::Result<OsLock> {
        let path = self.path(path);
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match opened.map_err(|error| (error.kind(), error)) {
            // Where nothing can be written the lock of a directory that is only looked at is the same.
            Err((io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem, _)) => {
                File::open(&path)?
            }
            result => result.map_err(|(_, error)| error)?,
        };
        file.try_lock().map_err(io::Error::from)?;
        Ok(OsLock { _file: file })
    }
}

/// A quota that is used up and a limit on the size of files are no room as a full disk is, and are told as one.
fn no_room(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            io::Error::new(io::ErrorKind::StorageFull, error)
        }
        _ => error,
    }
}

impl OsFile {
    // A window is whole whenever the lock is free.
    fn window(&self) -> MutexGuard<'_, Option<Window>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let copied = self.window().as_mut().map_or(0, |window| window.write(buf, offset));
        if 0 < copied {
            self.copied_bytes.fetch_add(copied as u64, Ordering::Relaxed);
        }
        let rest = &buf[copied..];
        if rest.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(rest, offset + copied as u64).map_err(no_room)
    }

    fn prepare_writes(&self, offset: u64) -> u64 {
        let mut window = self.window();
        *window = None;
        *window = Window::open(&self.file, offset);
        window.as_ref().map_or(offset, Window::end)
    }

    fn sync(&self) -> io::Result<()> {
        // What is mapped is taken from the other processors page by page when it is written, which costs more than to map it again.
        // And who syncs often writes little between two syncs: less than all that a window makes dirty.
        *self.window() = None;
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        *self.window() = None;
        self.file.set_len(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_behave() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path().join("a/b")).unwrap();
        disk.create_dir("d").unwrap();
        disk.create_dir("d").unwrap();
        let file = disk.create("d/x").unwrap();
        assert_eq!(disk.create("d/x").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.open("d/y").unwrap_err().kind(), io::ErrorKind::NotFound);
        file.write_at(b"hello", 3).unwrap();
        file.sync().unwrap();
        assert_eq!(file.len().unwrap(), 8);
        let mut buf = [1; 10];
        assert_eq!(file.read_full_at(&mut buf, 0).unwrap(), 8);
        assert_eq!(&buf[..8], b"\0\0\0hello");
        file.truncate(4).unwrap();
        assert_eq!(file.len().unwrap(), 4);
        disk.rename("d/x", "d/z").unwrap();
        disk.sync_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        assert_eq!(disk.list("d").unwrap(), ["z"]);
        disk.remove("d/z").unwrap();
        assert!(!disk.exists("d/z").unwrap());
        assert_eq!(file.read_full_at(&mut buf, 0).unwrap(), 4, "an open file outlives its name");
    }

    /// More than fits in one window, in pieces of no round size.
    fn write_much(file: &OsFile) -> Vec<u8> {
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).skip(3).collect();
        let mut prepared = 0;
        for (number, piece) in bytes.chunks(1009).enumerate() {
            let offset = number as u64 * 1009;
            if prepared <= offset {
                prepared = file.prepare_writes(offset).max(offset + 1);
            }
            file.write_at(piece, offset).unwrap();
        }
        bytes
    }

    #[test]
    fn prepared_writes_are_writes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path()).unwrap();
        let file = disk.create("x").unwrap();
        let bytes = write_much(&file);
        let is_prepared = 0 < disk.copied_bytes();
        if is_prepared {
            // Each piece that does not end in the window it begins in is written in part.
            assert!(bytes.len() as u64 - 8 * 1009 < disk.copied_bytes(), "{}", disk.copied_bytes());
            assert_eq!(file.len().unwrap() % window::WINDOW_SIZE, 0, "longer, by zeros");
        }
        let mut found = vec![1; 12 << 20];
        let read = file.read_full_at(&mut found, 0).unwrap();
        assert!(
            found[..bytes.len()] == bytes && found[bytes.len()..read].iter().all(|&it| it == 0)
        );
        // After a sync the rest is written as ever, and what was cut off is gone.
        file.sync().unwrap();
        let (len, copied) = (bytes.len() as u64, disk.copied_bytes());
        file.write_at(b"more...", len).unwrap();
        assert_eq!(disk.copied_bytes(), copied);
        file.prepare_writes(len + 7);
        let copied = disk.copied_bytes();
        file.write_at(&bytes[..9], 0).unwrap();
        assert_eq!(disk.copied_bytes(), copied, "only what it was prepared for");
        file.truncate(len + 2).unwrap();
        file.write_at(b"!", len + 2).unwrap();
        assert_eq!(file.len().unwrap(), len + 3);
        let mut end = [0; 3];
        assert_eq!(file.read_full_at(&mut end, len).unwrap(), 3);
        assert_eq!(&end, b"mo!");
    }

    #[test]
    fn prepared_writes_outlive_the_process() {
        const DIR: &str = "STARLING_TEST_DIR";
        if let Some(dir) = std::env::var_os(DIR) {
            write_much(&OsDisk::new(dir).unwrap().create("x").unwrap());
            std::process::abort();
        }
        let folder = tempfile::tempdir().unwrap();
        // Not the thread's name: that is another if tests run one after the other.
        let (_, module) = module_path!().split_once("::").unwrap();
        let name = format!("{module}::prepared_writes_outlive_the_process");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args([&name, "--exact"]).env(DIR, folder.path()).output().unwrap();
        assert!(!output.status.success(), "it ends in the middle");
        let disk = OsDisk::new(folder.path()).unwrap();
        let expected = write_much(&disk.create("y").unwrap());
        let mut found = vec![0; expected.len()];
        disk.open("x").unwrap().read_full_at(&mut found, 0).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn a_file_that_is_opened_for_reading_takes_no_write() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path()).unwrap();
        disk.create("x").unwrap().write_at(b"hello", 0).unwrap();
        let file = disk.open_read("x").unwrap();
        file.write_at(b"b", 0).unwrap_err();
        file.truncate(0).unwrap_err();
        assert_eq!(file.prepare_writes(5), 5);
        let mut buf = [0; 5];
        assert_eq!((file.read_at(&mut buf, 0).unwrap(), &buf), (5, b"hello"));
        assert_eq!(disk.open_read("y").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_lock_is_exclusive_and_ends_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path()).unwrap();
        let held = disk.lock("lock").unwrap();
        assert_eq!(disk.lock("lock").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock("lock").unwrap();
    }
}
