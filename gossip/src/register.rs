//! [`Register`]: a small value of the whole cluster that travels with gossip; the greatest stamp wins.
//!
//! Invariants:
//!
//! - A register that [`Register::check`] accepts can be encoded, and decoding gives the same register.
//!
//! A register is never deleted: write a value that means "gone" instead.

use starling_clock::Stamp;

use crate::GossipError;
use crate::limits::{REGISTER_NAME_SIZE_MAX, REGISTER_VALUE_SIZE_MAX};

/// A last-writer-wins register (Shapiro et al. 2011).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// What it is called, 1 to 128 bytes.
    pub name: String,
    /// When the value was set; of two values of a name the one with the greater stamp stays.
    pub stamp: Stamp,
    /// At most 4,096 bytes, opaque to this crate.
    pub value: Vec<u8>,
}

impl Register {
    /// Whether the register is within the bounds.
    ///
    /// # Errors
    /// [`GossipError::EmptyName`] or [`GossipError::TooLong`].
    pub fn check(&self) -> Result<(), GossipError> {
        if self.name.is_empty() {
            return Err(GossipError::EmptyName);
        }
        let fields = [
            ("register name", self.name.len(), REGISTER_NAME_SIZE_MAX),
            ("register value", self.value.len(), REGISTER_VALUE_SIZE_MAX),
        ];
        for (field, size, limit) in fields {
            if size > limit {
                return Err(GossipError::TooLong { field, size, limit });
            }
        }
        Ok(())
    }
}
