//! The keyspaces that this node knows, and [`Create`], the making of one.
//!
//! Invariants:
//!
//! - Of two settings under one name the greater stamp wins, on every node the same.
//! - The keyspace `default` always exists, the same on every node of an epoch, and is no register.
//! - `Create` answers exactly once; `Ok` only after a majority of the members have the keyspace on disk.
//!
//! Settings travel as gossip registers `keyspace/<name>`; a keyspace is never removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use starling_client::wire::{Durability, KeyspaceSettings, Level};
use starling_clock::{NodeId, Stamp};
use starling_storage::{HistoryRetention, KeyspaceId};

use super::error::Refusal;
use super::settings;
use super::types::Instant;
use crate::limits::KEYSPACES_MAX;

/// What a keyspace's register is called, before its name.
pub const REGISTER_PREFIX: &str = "keyspace/";
/// The keyspace that is always there.
pub const DEFAULT_KEYSPACE: &str = "default";
/// N of the keyspace that is always there, in clusters that are large enough.
pub const DEFAULT_REPLICATION: u8 = 3;

/// One keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// Hash of its name.
    pub id: KeyspaceId,
    /// What holds for its keys.
    pub settings: KeyspaceSettings,
    /// When the settings were made; [`Stamp::ZERO`] for the built-in one.
    pub stamp: Stamp,
}

impl Keyspace {
    fn new(settings: KeyspaceSettings, stamp: Stamp) -> Self {
        Self { id: KeyspaceId::of(&settings.name), settings, stamp }
    }

    /// How much history it keeps.
    pub fn retention(&self) -> HistoryRetention {
        HistoryRetention {
            versions_max: self.settings.history_versions_max,
            age_ms_max: self.settings.history_age_ms_max,
        }
    }
}

/// All keyspaces that this node knows.
#[derive(Debug)]
pub struct Keyspaces {
    by_name: BTreeMap<String, Arc<Keyspace>>,
    by_id: BTreeMap<KeyspaceId, Arc<Keyspace>>,
}

impl Keyspaces {
    /// The built-in keyspace alone, in a cluster of as many members.
    pub fn new(members: usize) -> Self {
        let replication = u8::try_from(members).unwrap_or(u8::MAX).min(DEFAULT_REPLICATION);
        let mut keyspaces = Self { by_name: BTreeMap::new(), by_id: BTreeMap::new() };
        let settings = KeyspaceSettings {
            name: DEFAULT_KEYSPACE.into(),
            replication,
            write_level: Level::Quorum,
            read_level: Level::Quorum,
            durability: Durability::Sync,
            history_versions_max: None,
            history_age_ms_max: None,
        };
        keyspaces.insert(Keyspace::new(settings, Stamp::ZERO));
        keyspaces
    }

    /// The keyspace called so.
    pub fn get(&self, name: &str) -> Option<&Arc<Keyspace>> {
        self.by_name.get(name)
    }

    /// The keyspace with this id.
    pub fn get_id(&self, id: KeyspaceId) -> Option<&Arc<Keyspace>> {
        self.by_id.get(&id)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Keyspace>> {
        self.by_name.values()
    }

    /// Whether a client may make this keyspace in a cluster of as many members; `Ok(Some)`: it is there already, the same.
    ///
    /// # Errors
    /// A [`Refusal`] that says what is wrong with it.
    pub fn check_new(
        &self,
        settings: &KeyspaceSettings,
        members: usize,
    ) -> Result<Option<Arc<Keyspace>>, Refusal> {
        settings::check(settings)?;
        if usize::from(settings.replication) > members {
            let rule = "replication is more than the cluster has members";
            return Err(Refusal::KeyspaceSettingsInvalid(rule));
        }
        if let Some(known) = self.by_name.get(settings.name.as_str()) {
            let name = settings.name.0.clone();
            let same = known.settings == *settings;
            return if same {
                Ok(Some(known.clone()))
            } else {
                Err(Refusal::KeyspaceExists { name })
            };
        }
        if self.by_id.contains_key(&KeyspaceId::of(&settings.name)) {
            // Two names of one hash: 2^-64 for each pair, and silent loss if it were let in.
            return Err(Refusal::KeyspaceExists { name: settings.name.0.clone() });
        }
        if self.by_name.len() >= KEYSPACES_MAX {
            return Err(Refusal::KeyspacesFull);
        }
        Ok(None)
    }

    /// Takes over the value of a register. `None` if it is not a keyspace's, malformed, not newer than what is known, or one too many.
    pub fn adopt(&mut self, register: &str, stamp: Stamp, value: &[u8]) -> Option<Arc<Keyspace>> {
        let name = register.strip_prefix(REGISTER_PREFIX)?;
        let settings = settings::decode(value)?;
        if settings.name.as_str() != name || name == DEFAULT_KEYSPACE {
            return None;
        }
        let is_taken = match self.by_name.get(name) {
            Some(known) => known.stamp < stamp,
            None => {
                self.by_name.len() < KEYSPACES_MAX
                    && !self.by_id.contains_key(&KeyspaceId::of(name))
            }
        };
        is_taken.then(|| self.insert(Keyspace::new(settings, stamp)))
    }

    fn insert(&mut self, keyspace: Keyspace) -> Arc<Keyspace> {
        let keyspace = Arc::new(keyspace);
        self.by_name.insert(keyspace.settings.name.0.clone(), keyspace.clone());
        self.by_id.insert(keyspace.id, keyspace.clone());
        keyspace
    }
}

/// What the driver of a [`Create`] must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateOutput {
    /// Tell this node of the register, then [`Create::handle_registered`] once it is on its disk.
    Register {
        /// May be this node.
        to: NodeId,
    },
    /// Tell the client how many nodes have it. Emitted exactly once.
    Answer(Result<usize, Refusal>),
}

/// The making of one keyspace: on disk at all live members, or at a majority of all at the deadline.
#[derive(Debug)]
pub struct Create {
    waiting: BTreeSet<NodeId>,
    durable: BTreeSet<NodeId>,
    majority: usize,
    deadline: Instant,
    answered: bool,
    outputs: VecDeque<CreateOutput>,
}

impl Create {
    /// Tells all `reachable` nodes, of as many `members`.
    ///
    /// # Panics
    /// If nobody is reachable: this node always is.
    pub fn new(reachable: BTreeSet<NodeId>, members: usize, deadline: Instant) -> Self {
        assert!(!reachable.is_empty());
        let majority = members / 2 + 1;
        let mut create = Self {
            waiting: BTreeSet::new(),
            durable: BTreeSet::new(),
            majority,
            deadline,
            answered: false,
            outputs: VecDeque::new(),
        };
        if reachable.len() < majority {
            let (reachable, replicas) = (reachable.len(), members);
            create.answer(Err(Refusal::Unavailable { reachable, needed: majority, replicas }));
        } else {
            create.outputs.extend(reachable.iter().map(|&to| CreateOutput::Register { to }));
            create.waiting = reachable;
        }
        create
    }

    /// `from` has it on disk.
    pub fn handle_registered(&mut self, from: NodeId) {
        if self.waiting.remove(&from) {
            self.durable.insert(from);
        }
        self.decide();
    }

    /// `from` will not answer.
    pub fn handle_unreachable(&mut self, from: NodeId) {
        self.waiting.remove(&from);
        self.decide();
    }

    /// Time has passed. Early calls change nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|timeout| timeout <= now) {
            self.waiting.clear();
            self.decide();
        }
    }

    /// When `handle_timeout` is next wanted; `None` once it is answered.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.answered).then_some(self.deadline)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<CreateOutput> {
        self.outputs.pop_front()
    }

    /// It is answered.
    pub fn is_done(&self) -> bool {
        self.answered
    }

    fn decide(&mut self) {
        if self.answered || !self.waiting.is_empty() {
            return;
        }
        let (nodes, needed) = (self.durable.len(), self.majority);
        let enough = needed <= nodes;
        self.answer(if enough {
            Ok(nodes)
        } else {
            Err(Refusal::KeyspaceTimeout { nodes, needed })
        });
    }

    fn answer(&mut self, result: Result<usize, Refusal>) {
        assert!(!self.answered);
        self.answered = true;
        self.outputs.push_back(CreateOutput::Answer(result));
    }
}

#[cfg(test)]
mod tests {
    use starling_clock::HybridTime;

    use super::*;

    fn stamp(ms: u64) -> Stamp {
        Stamp::new(HybridTime::new(ms, 0), NodeId(1))
    }

    fn named(name: &str, replication: u8) -> KeyspaceSettings {
        let default = Keyspaces::new(3).get(DEFAULT_KEYSPACE).unwrap().settings.clone();
        KeyspaceSettings { name: name.into(), replication, ..default }
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    #[test]
    fn the_default_fits_every_cluster() {
        for (members, replication) in [(1, 1), (2, 2), (3, 3), (100, 3), (10_000, 3)] {
            let keyspaces = Keyspaces::new(members);
            let default = keyspaces.get(DEFAULT_KEYSPACE).unwrap();
            assert_eq!(default.settings.replication, replication);
            assert_eq!(settings::check(&default.settings), Ok(()));
        }
    }

    #[test]
    fn the_greater_stamp_wins_and_nothing_else_is_adopted() {
        let mut keyspaces = Keyspaces::new(3);
        let (old, new) = (settings::encode(&named("a", 1)), settings::encode(&named("a", 2)));
        assert!(keyspaces.adopt("keyspace/a", stamp(5), &new).is_some());
        for (name, stamp, value) in [
            ("keyspace/a", stamp(4), &old),
            ("keyspace/a", stamp(5), &new),
            ("keyspace/b", stamp(9), &new),
            ("a", stamp(9), &new),
            ("keyspace/default", stamp(9), &settings::encode(&named("default", 1))),
            ("keyspace/a", stamp(9), &vec![1, 2]),
        ] {
            assert_eq!(keyspaces.adopt(name, stamp, value), None, "{name}");
        }
        assert_eq!(keyspaces.get("a").unwrap().settings.replication, 2);
        assert_eq!(keyspaces.get_id(KeyspaceId::of("a")), keyspaces.get("a"));
        for number in keyspaces.iter().count()..KEYSPACES_MAX {
            let settings = named(&format!("k{number}"), 1);
            assert_eq!(keyspaces.check_new(&settings, 3), Ok(None));
            let name = format!("keyspace/k{number}");
            assert!(keyspaces.adopt(&name, stamp(1), &settings::encode(&settings)).is_some());
        }
        let more = named("more", 1);
        assert_eq!(keyspaces.check_new(&more, 3), Err(Refusal::KeyspacesFull));
        assert_eq!(keyspaces.adopt("keyspace/more", stamp(1), &settings::encode(&more)), None);
    }

    #[test]
    fn all_live_or_a_majority_at_the_deadline() {
        let mut create = Create::new(nodes(&[1, 2, 3]), 3, Instant(100));
        let told: Vec<_> = std::iter::from_fn(|| create.poll_output()).collect();
        assert_eq!(told.len(), 3);
        create.handle_registered(NodeId(1));
        create.handle_registered(NodeId(1));
        create.handle_registered(NodeId(9));
        create.handle_registered(NodeId(2));
        create.handle_timeout(Instant(99));
        assert_eq!(create.poll_output(), None);
        create.handle_timeout(Instant(100));
        assert_eq!(create.poll_output(), Some(CreateOutput::Answer(Ok(2))));
        create.handle_registered(NodeId(3));
        assert_eq!((create.poll_output(), create.poll_timeout()), (None, None));

        let mut create = Create::new(nodes(&[1, 2]), 3, Instant(100));
        while create.poll_output().is_some() {}
        create.handle_registered(NodeId(1));
        create.handle_unreachable(NodeId(2));
        let refusal = Refusal::KeyspaceTimeout { nodes: 1, needed: 2 };
        assert_eq!(create.poll_output(), Some(CreateOutput::Answer(Err(refusal))));

        let mut create = Create::new(nodes(&[1]), 3, Instant(100));
        let refusal = Refusal::Unavailable { reachable: 1, needed: 2, replicas: 3 };
        assert_eq!(create.poll_output(), Some(CreateOutput::Answer(Err(refusal))));
        assert!(create.is_done());
    }
}
