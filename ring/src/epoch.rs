//! [`Epoch`]: who is in the ring, with what weight and in which zone, under one number.
//!
//! Invariants:
//!
//! - Members are sorted by node and distinct; there is at least one and at most [`MEMBERS_MAX`].
//! - The order in which members were given leaves no trace: equal sets make equal epochs and digests.
//! - Weights are bounded alone and together, so that a ring has at most 4 M virtual nodes.
//!
//! It does not say which epoch is the present one, nor how an epoch is decided.

use starling_clock::NodeId;
use xxhash_rust::xxh3::xxh3_64;

use crate::Partitions;

/// The most members of one epoch.
pub const MEMBERS_MAX: usize = 10_000;
/// The largest weight of one member.
pub const WEIGHT_MAX: u32 = 1000;
/// The largest sum of weights: it bounds the memory and the time that placement takes.
pub const TOTAL_WEIGHT_MAX: u32 = 1 << 14;
/// The longest name of a zone, in bytes.
pub const ZONE_SIZE_MAX: usize = 64;

const _: () = assert!(MEMBERS_MAX <= TOTAL_WEIGHT_MAX as usize, "weight 1 always fits");
const _: () = assert!(ZONE_SIZE_MAX <= u8::MAX as usize, "its length is one byte in the encoding");

/// A node's part in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub node: NodeId,
    /// What fails together: a rack, a data centre, an availability zone. At most [`ZONE_SIZE_MAX`] bytes. The
    /// empty name is a zone like any other, so that a cluster without zones has one.
    pub zone: String,
    /// How much it takes compared to others, from 1 to [`WEIGHT_MAX`]. Give equal nodes 1: small weights
    /// make a small ring, and only the ratio counts.
    pub weight: u32,
}

/// Why members do not make an epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// Nobody would hold the data.
    #[error("an epoch needs at least one member")]
    NoMembers,
    /// Over [`MEMBERS_MAX`].
    #[error("{0} members are over the limit of {MEMBERS_MAX}")]
    TooManyMembers(usize),
    /// A node is listed twice.
    #[error("node {0} is listed twice")]
    DuplicateNode(NodeId),
    /// Zero, or over [`WEIGHT_MAX`].
    #[error("weight {weight} of node {node} is not from 1 to {WEIGHT_MAX}")]
    Weight {
        /// Whose weight.
        node: NodeId,
        /// The weight given.
        weight: u32,
    },
    /// The sum of weights is over [`TOTAL_WEIGHT_MAX`].
    #[error("the weights sum up to {0}, over the limit of {TOTAL_WEIGHT_MAX}: divide all of them")]
    TotalWeight(u32),
    /// The zone's name is over [`ZONE_SIZE_MAX`] bytes.
    #[error("the zone of node {node} has {size} bytes, over the limit of {ZONE_SIZE_MAX}")]
    ZoneTooLong {
        /// Whose zone.
        node: NodeId,
        /// Size of the name, in bytes.
        size: usize,
    },
}

/// One state of the ring. Epoch `number + 1` follows it; two nodes never disagree what epoch `number` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    number: u64,
    partitions: Partitions,
    members: Vec<Member>,
}

impl Epoch {
    /// An epoch of `members`, in any order.
    ///
    /// # Errors
    /// [`EpochError`], which names the first member that is wrong.
    pub fn new(
        number: u64,
        partitions: Partitions,
        mut members: Vec<Member>,
    ) -> Result<Self, EpochError> {
        if members.is_empty() {
            return Err(EpochError::NoMembers);
        }
        if members.len() > MEMBERS_MAX {
            return Err(EpochError::TooManyMembers(members.len()));
        }
        members.sort_by_key(|member| member.node);
        if let Some(pair) = members.windows(2).find(|pair| pair[0].node == pair[1].node) {
            return Err(EpochError::DuplicateNode(pair[0].node));
        }
        let mut total_weight = 0;
        for member in &members {
            let &Member { node, weight, .. } = member;
            if !(1..=WEIGHT_MAX).contains(&weight) {
                return Err(EpochError::Weight { node, weight });
            }
            if member.zone.len() > ZONE_SIZE_MAX {
                return Err(EpochError::ZoneTooLong { node, size: member.zone.len() });
            }
            total_weight += weight;
        }
        if total_weight > TOTAL_WEIGHT_MAX {
            return Err(EpochError::TotalWeight(total_weight));
        }
        Ok(Self { number, partitions, members })
    }

    /// Counts the epochs of a cluster.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How the key space is cut: the same in all epochs of a cluster.
    pub fn partitions(&self) -> Partitions {
        self.partitions
    }

    /// Sorted by node, distinct.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that is `node`.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&node, |member| member.node).ok()?;
        Some(&self.members[at])
    }

    /// xxh3-64 of the canonical encoding: two nodes whose digests are equal mean the same epoch.
    ///
    /// The encoding, little-endian: number u64, partitions u32, count of members u32, then for each member
    /// node u64, weight u32, size of the zone's name u8, the name.
    pub fn digest(&self) -> u64 {
        let mut bytes = Vec::with_capacity(16 + self.members.len() * 32);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.partitions.count().to_le_bytes());
        let count = u32::try_from(self.members.len()).expect("at most MEMBERS_MAX");
        bytes.extend_from_slice(&count.to_le_bytes());
        for Member { node, zone, weight } in &self.members {
            bytes.extend_from_slice(&node.0.to_le_bytes());
            bytes.extend_from_slice(&weight.to_le_bytes());
            bytes.push(u8::try_from(zone.len()).expect("at most ZONE_SIZE_MAX"));
            bytes.extend_from_slice(zone.as_bytes());
        }
        xxh3_64(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64) -> Member {
        Member { node: NodeId(node), zone: String::new(), weight: 1 }
    }

    fn epoch(members: Vec<Member>) -> Result<Epoch, EpochError> {
        Epoch::new(1, Partitions::default(), members)
    }

    #[test]
    fn wrong_members_get_a_typed_error() {
        assert_eq!(epoch(vec![]), Err(EpochError::NoMembers));
        let twice = vec![member(2), member(1), member(2)];
        assert_eq!(epoch(twice), Err(EpochError::DuplicateNode(NodeId(2))));
        for weight in [0, WEIGHT_MAX + 1, u32::MAX] {
            let node = NodeId(1);
            let wrong = vec![Member { weight, ..member(1) }];
            assert_eq!(epoch(wrong), Err(EpochError::Weight { node, weight }));
        }
        let zone = "z".repeat(ZONE_SIZE_MAX + 1);
        let size = zone.len();
        let long = vec![Member { zone, ..member(1) }];
        assert_eq!(epoch(long), Err(EpochError::ZoneTooLong { node: NodeId(1), size }));
    }

    #[test]
    fn bounds_are_inclusive() {
        let edge = Member { zone: "z".repeat(ZONE_SIZE_MAX), weight: WEIGHT_MAX, ..member(1) };
        assert!(epoch(vec![edge]).is_ok());

        let most = MEMBERS_MAX as u64;
        assert!(epoch((0..most).map(member).collect()).is_ok());
        let over = (0..=most).map(member).collect();
        assert_eq!(epoch(over), Err(EpochError::TooManyMembers(MEMBERS_MAX + 1)));

        let heavy = |count| (0..count).map(|node| Member { weight: 512, ..member(node) }).collect();
        assert!(epoch(heavy(32)).is_ok());
        assert_eq!(epoch(heavy(33)), Err(EpochError::TotalWeight(TOTAL_WEIGHT_MAX + 512)));
    }

    #[test]
    fn order_of_members_leaves_no_trace() {
        let forth = epoch(vec![member(1), member(2), member(3)]).unwrap();
        let back = epoch(vec![member(3), member(2), member(1)]).unwrap();
        assert_eq!(forth, back);
        assert_eq!(forth.digest(), back.digest());
        assert_eq!(forth.member(NodeId(2)), Some(&member(2)));
        assert_eq!(forth.member(NodeId(4)), None);
    }

    #[test]
    fn digest_tells_every_field() {
        let partitions = Partitions::default();
        let base = vec![member(1), member(2)];
        let with = |change: fn(&mut Member)| {
            let mut members = base.clone();
            change(&mut members[1]);
            Epoch::new(1, partitions, members).unwrap().digest()
        };
        let mut digests = vec![
            Epoch::new(1, partitions, base.clone()).unwrap().digest(),
            Epoch::new(2, partitions, base.clone()).unwrap().digest(),
            Epoch::new(1, Partitions::new(2048).unwrap(), base.clone()).unwrap().digest(),
            Epoch::new(1, partitions, vec![member(1)]).unwrap().digest(),
            with(|member| member.node = NodeId(3)),
            with(|member| member.weight = 2),
            with(|member| member.zone = "a".into()),
        ];
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 7);
    }

    /// A change here is a change of format: nodes of two releases would disagree about one epoch.
    #[test]
    fn digest_never_changes() {
        let members = vec![
            Member { node: NodeId(1), zone: "a".into(), weight: 1 },
            Member { node: NodeId(2), zone: "north".into(), weight: 3 },
        ];
        let epoch = Epoch::new(7, Partitions::default(), members).unwrap();
        let encoding = [
            &[7, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 4, 0, 0],
            &[2, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
            b"a",
            &[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5],
            b"north",
        ];
        assert_eq!(epoch.digest(), xxh3_64(&encoding.concat()));
        assert_eq!(epoch.digest(), 0x8279_32f7_6564_4722);
    }
}
