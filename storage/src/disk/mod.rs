//! [`Disk`]: every byte that storage keeps goes through it.
//!
//! Contract, which the rest of the crate relies on and [`SimDisk`] is strict about:
//!
//! - Bytes written to a file survive a crash only after [`DiskFile::sync`] of that file.
//! - A create, rename or remove survives a crash only after [`Disk::sync_dir`] of its directory.
//! - After a failed sync nothing is known about what was written since the one before: the writer stops.
//! - A file that is removed stays readable through the handles that are open.
//!
//! Paths are relative to the root of the data directory, with `/` between the parts.

mod os;
mod sim;

use std::io;

pub use os::{OsDisk, OsFile, OsLock};
pub use sim::{CrashMode, Fault, SimDisk, SimFile, SimLock};

/// A directory tree.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// A held lock; released when dropped.
    type Lock: Send + Sync + 'static;

    /// Makes a file and opens it for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if it is there; whatever else the system says.
    fn create(&self, path: &str) -> io::Result<Self::File>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there; whatever else the system says.
    fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Opens a file for reading alone, which needs no leave to write: writes to it fail, or are not to be tried.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there; whatever else the system says.
    fn open_read(&self, path: &str) -> io::Result<Self::File>;
    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there; whatever else the system says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there; whatever else the system says.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Gives a file another name; a file that had that name is replaced, atomically.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there; whatever else the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes a directory; it is no error if it is there. Its parent must be there.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Makes what was created, renamed and removed in `dir` survive a crash. `""` is the root.
    ///
    /// # Errors
    /// Whatever the system says. Nothing is known then: the caller stops.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Whether a file or directory is there.
    ///
    /// # Errors
    /// Whatever the system says.
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Takes the exclusive lock called `path` for as long as the answer lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody holds it; [`io::ErrorKind::NotFound`] if there never was one, and none can be
    /// made; whatever else the system says.
    fn lock(&self, path: &str) -> io::Result<Self::Lock>;
}

/// An open file. Reads may run beside writes.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file's length is asked of the system and can fail"
)]
pub trait DiskFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes; 0 is the end of the file. May read less than there is.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] if there is no room; whatever else the system says. Any part may be written then.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Gets ready for many small writes from `offset` on, one behind the other, and tells where what is ready ends; `offset` if
    /// nothing is, which is no error. The file may be longer then, by zeros. Such writes mean what they always do, and cost less, until the
    /// next [`Self::sync`] or [`Self::truncate`].
    fn prepare_writes(&self, offset: u64) -> u64 {
        offset
    }
    /// Makes what was written survive a crash, the length too (`fdatasync`).
    ///
    /// # Errors
    /// Whatever the system says. Nothing is known then: the caller stops.
    fn sync(&self) -> io::Result<()>;
    /// How long the file is, in bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn len(&self) -> io::Result<u64>;
    /// Makes the file `len` bytes long.
    ///
    /// # Errors
    /// Whatever the system says.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Reads until `buf` is full or the file ends, and tells how much it read.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_full_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let read = self.read_at(&mut buf[done..], offset + done as u64)?;
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }
}
