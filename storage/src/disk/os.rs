//! [`OsDisk`]: the operating system's files, under one root directory.
//!
//! Invariants:
//!
//! - Nothing outside the root is touched: absolute paths and `..` are programmer errors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Disk, DiskFile};

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct OsDisk {
    root: PathBuf,
}

/// An open file of the operating system.
#[derive(Debug)]
pub struct OsFile(File);

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
        Ok(Self { root })
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
        options
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(path))
            .map(OsFile)
            .map_err(no_room)
    }

    fn open(&self, path: &str) -> io::Result<OsFile> {
        OpenOptions::new().read(true).write(true).open(self.path(path)).map(OsFile)
    }

    fn open_read(&self, path: &str) -> io::Result<OsFile> {
        File::open(self.path(path)).map(OsFile)
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

impl DiskFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset).map_err(no_room)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
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

    #[test]
    fn a_file_that_is_opened_for_reading_takes_no_write() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path()).unwrap();
        disk.create("x").unwrap().write_at(b"hello", 0).unwrap();
        let file = disk.open_read("x").unwrap();
        file.write_at(b"b", 0).unwrap_err();
        file.truncate(0).unwrap_err();
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
