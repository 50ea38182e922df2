//! A small file that is replaced as a whole: the identity and the state. See FORMAT.md, "Small file".
//!
//! Invariants:
//!
//! - After a crash at any instant the file holds the old contents or the new ones.
//! - Nothing of it is believed before its checksum has been checked.

use bytes::Bytes;

use crate::event::array;
use crate::log::write_failed;
use crate::{Disk, DiskFile, Error};

/// The version that this code writes, and the newest that it reads.
pub(crate) const SMALL_FILE_VERSION: u32 = 1;
/// Bytes before the contents.
pub(crate) const SMALL_FILE_HEADER_SIZE: usize = 20;
/// Larger contents are never written and are damage on read.
pub(crate) const SMALL_FILE_SIZE_MAX: usize = 128 << 20;

/// Field name, offset, size: the same table as FORMAT.md, for the test that compares them.
#[cfg(test)]
pub(crate) const SMALL_FILE_LAYOUT: [(&str, usize, usize); 4] =
    [("magic", 0, 8), ("version", 8, 4), ("length", 12, 4), ("crc", 16, 4)];

/// The whole file.
pub(crate) fn encode(magic: [u8; 8], contents: &[u8]) -> Vec<u8> {
    assert!(contents.len() <= SMALL_FILE_SIZE_MAX);
    let length = u32::try_from(contents.len()).expect("bounded by SMALL_FILE_SIZE_MAX");
    let mut bytes = Vec::with_capacity(SMALL_FILE_HEADER_SIZE + contents.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&SMALL_FILE_VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), contents);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(contents);
    bytes
}

/// The contents of the whole file.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::NewerFormat`].
pub(crate) fn decode(path: &str, magic: [u8; 8], bytes: &Bytes) -> Result<Bytes, Error> {
    let corrupt = |reason| Error::corrupt(path, 0, reason);
    if bytes.len() < SMALL_FILE_HEADER_SIZE {
        return Err(corrupt("file is cut short"));
    }
    if bytes[..8] != magic {
        return Err(corrupt("magic"));
    }
    let found = u32::from_le_bytes(array(bytes, 8));
    if found > SMALL_FILE_VERSION {
        return Err(Error::NewerFormat {
            file: path.to_owned(),
            found,
            supported: SMALL_FILE_VERSION,
        });
    }
    let contents = bytes.slice(SMALL_FILE_HEADER_SIZE..);
    if u32::from_le_bytes(array(bytes, 12)) as usize != contents.len() || found == 0 {
        return Err(corrupt("header"));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &contents);
    if crc != u32::from_le_bytes(array(bytes, 16)) {
        return Err(corrupt("checksum"));
    }
    Ok(contents)
}

/// The contents of the file; `None` if it is not there.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::NewerFormat`] or a failed read.
pub(crate) fn read<D: Disk>(disk: &D, path: &str, magic: [u8; 8]) -> Result<Option<Bytes>, Error> {
    if !disk.exists(path).map_err(Error::io("look for", path))? {
        return Ok(None);
    }
    let file = disk.open_read(path).map_err(Error::io("open", path))?;
    let size = file.len().map_err(Error::io("read", path))?;
    let limit = SMALL_FILE_HEADER_SIZE + SMALL_FILE_SIZE_MAX;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > limit {
        return Err(Error::corrupt(path, 0, "file is too long"));
    }
    let mut bytes = vec![0; size];
    let read = file.read_full_at(&mut bytes, 0).map_err(Error::io("read", path))?;
    bytes.truncate(read);
    decode(path, magic, &Bytes::from(bytes)).map(Some)
}

/// Replaces the contents of the file, durably.
///
/// # Errors
/// [`Error::Full`], [`Error::Io`]: it is as it was. [`Error::WriteFailed`]: it has either contents.
pub(crate) fn replace<D: Disk>(
    disk: &D,
    path: &str,
    magic: [u8; 8],
    contents: &[u8],
) -> Result<(), Error> {
    let new = format!("{path}.new");
    if disk.exists(&new).map_err(Error::io("look for", &new))? {
        disk.remove(&new).map_err(Error::io("remove", &new))?;
    }
    let file = disk.create(&new).map_err(Error::io("create", &new))?;
    file.write_at(&encode(magic, contents), 0).map_err(Error::io("write", &new))?;
    // The new file is used only once it is whole: a failed sync of it is no reason to distrust the old one.
    file.sync().map_err(Error::io("sync", &new))?;
    disk.rename(&new, path).map_err(Error::io("rename", &new))?;
    disk.sync_dir("").map_err(write_failed("sync", path))
}
