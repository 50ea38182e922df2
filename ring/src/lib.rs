//! Where data lives in Starling: partitions, placement, ring epochs and the ranges that move between two.
//!
//! ```text
//! key --xxh3-64, top bits--> Partition --RoutingTable (one epoch, one N)--> preference list: N distinct nodes
//! ```
//!
//! Architecture invariant: this crate does not know who is alive. A preference list depends on the
//! [`Epoch`] and the [`ReplicationFactor`] and on nothing else, so that two nodes with the same epoch
//! never disagree. Skipping a dead replica is the business of whoever sends.
//!
//! Architecture invariant: placement is a format. The same epoch gives the same table for ever, on every
//! machine: hashes are over bytes that are laid by hand, shares are integers, no map has an order of its own.
//! `tests/golden/` pins it; a change there moves the data of every existing cluster.
//!
//! Architecture invariant: routing a key costs one hash and one index, and allocates nothing. Everything
//! that costs more happens once, in [`RoutingTable::new`], when the epoch changes.

mod epoch;
mod hash;
mod moves;
mod partition;
mod placement;
mod shares;
mod table;

pub use epoch::{
    Epoch, EpochError, MEMBERS_MAX, Member, TOTAL_WEIGHT_MAX, WEIGHT_MAX, ZONE_SIZE_MAX,
};
pub use moves::{Move, moves};
pub use partition::{PARTITIONS_MAX, Partition, Partitions, PartitionsError};
pub use placement::VIRTUAL_NODES_PER_WEIGHT;
pub use table::{REPLICATION_MAX, ReplicationError, ReplicationFactor, RoutingTable};
