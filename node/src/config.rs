//! The node's settings: where they come from, what each one does, and whether they make sense together.
//!
//! Invariants:
//!
//! - Sources, each over the one before: defaults, the TOML file, the environment (`STARLING_<SECTION>__<FIELD>`), flags.
//! - A name that is not a setting is an error wherever it stands: a misspelt setting never passes for a default.
//! - [`Config`] is data. What it means for a component is that component's own configuration, made in `io` from here.
//!
//! It opens nothing but the configuration file: whether a directory or a port can be used shows when it is used.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use config::{Environment, File, FileFormat};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use starling_clock::NodeId;

/// What every environment variable of ours begins with.
const ENVIRONMENT_PREFIX: &str = "STARLING";
/// Between section and field. Variables without it are not settings (`STARLING_CONFIG`, and those of other commands).
const ENVIRONMENT_SEPARATOR: &str = "__";
/// Longest name of a cluster or a zone, in bytes.
const NAME_SIZE_MAX: usize = 64;
/// Most members of a cluster.
const MEMBERS_MAX: usize = 10_000;
/// Most partitions of a cluster.
const PARTITIONS_MAX: u32 = 65_536;
/// Largest weight of a member.
const WEIGHT_MAX: u32 = 1_000;

/// Settings that cannot be used. Nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read, or is no TOML.
    #[error("configuration file {path}: {reason}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// A name is not a setting, or a value is not of the setting's kind.
    #[error("configuration: {0}; `starling node --print-config` shows all settings")]
    Setting(String),
    /// A value on the command line could not be understood.
    #[error(
        "--set {0}: write it as section.field=value, for example --set limits.connections_max=100"
    )]
    Flag(String),
    /// A value is out of its range.
    #[error("{setting} is {found}, it must be {expected}")]
    Range {
        /// As `section.field`.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Two members have the same id.
    #[error("cluster.members names node {0} twice: give each node an id of its own")]
    MemberTwice(NodeId),
    /// Two members have the same address.
    #[error("cluster.members names the address {0} twice: each node listens on its own")]
    AddressTwice(SocketAddr),
    /// There are members, and this node's id was not said.
    #[error(
        "cluster.members is set but node.id is not: say which of the members this node is (--id)"
    )]
    IdMissing,
    /// Listening everywhere says nothing about where others reach the node.
    #[error(
        "node.listen {0} is no address that others can reach: set node.advertise to one (--advertise)"
    )]
    AdvertiseMissing(SocketAddr),
    /// Two settings say where others reach this node, and disagree.
    #[error(
        "node.advertise is {advertise}, cluster.members says {member} for this node: remove node.advertise, or correct one"
    )]
    AdvertiseDiffers {
        /// `node.advertise`.
        advertise: SocketAddr,
        /// What the other members dial.
        member: SocketAddr,
    },
    /// This node is not a member.
    #[error("node.id {0} is not among cluster.members: add it, or correct the id")]
    NotMember(NodeId),
}

/// All settings of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who and where this node is.
    pub node: NodeConfig,
    /// What it is a member of. The same on all members.
    pub cluster: ClusterConfig,
    /// Certificates.
    pub tls: TlsConfig,
    /// What the disk keeps.
    pub storage: StorageConfig,
    /// Bounds of memory and of time.
    pub limits: LimitsConfig,
    /// Failure detection.
    pub gossip: GossipConfig,
    /// The hybrid logical clock.
    pub clock: ClockConfig,
    /// What is logged and how.
    pub log: LogConfig,
}

/// Who and where this node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's id, 1 to 2^63-1, unique in the cluster and never given to another node. Without it, and without members, one is drawn at
    /// random at the first start and kept in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Everything this node keeps. Belongs to this node alone: moving it to another id or cluster is refused.
    pub data_dir: PathBuf,
    /// Where to listen (UDP), for clients and peers alike. Port 0 lets the system choose; the choice is written to `<data_dir>/address`.
    pub listen: SocketAddr,
    /// Where others reach this node, if that is not where it listens (address translation, `0.0.0.0`). With members their list says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            id: None,
            data_dir: PathBuf::from("starling-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
        }
    }
}

/// What the node is a member of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name, 1 to 64 bytes. Nodes of another name are not talked to.
    pub name: String,
    /// How many partitions keys are spread over: a power of two, set once for the cluster's life. More spread
    /// better over many nodes and cost each node a little memory.
    pub partitions: u32,
    /// All members; empty: this node alone. In the environment and in flags a member reads `id@ip:port[@zone[@weight]]`, and commas part them.
    pub members: Members,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { name: "starling".to_owned(), partitions: 1024, members: Members::default() }
    }
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its node id.
    pub id: u64,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Replicas of a key go to different zones where there are enough. May be empty.
    #[serde(default)]
    pub zone: String,
    /// Its share of the keys, relative to the others': 1 to 1000.
    #[serde(default = "weight_default")]
    pub weight: u32,
}

fn weight_default() -> u32 {
    1
}

/// Text that is not a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a member: write id@ip:port, id@ip:port@zone or id@ip:port@zone@weight")]
pub struct ParseMemberError(String);

impl FromStr for Member {
    type Err = ParseMemberError;

    fn from_str(text: &str) -> Result<Self, ParseMemberError> {
        let error = || ParseMemberError(text.to_owned());
        let mut parts = text.trim().split('@');
        let id = parts.next().and_then(|part| part.parse().ok()).ok_or_else(error)?;
        let address = parts.next().and_then(|part| part.parse().ok()).ok_or_else(error)?;
        let zone = parts.next().unwrap_or_default().to_owned();
        let weight = parts.next().map_or(Ok(1), |part| part.parse().map_err(|_| error()))?;
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self { id, address, zone, weight })
    }
}

/// A list of members, as a list of tables, a list of texts, or one text with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Members(pub Vec<Member>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of members, or `id@ip:port[@zone[@weight]]` parted by commas")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Members, E> {
                let parts = text.split(',').filter(|part| !part.trim().is_empty());
                parts
                    .map(|part| part.parse().map_err(E::custom))
                    .collect::<Result<_, E>>()
                    .map(Members)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(MemberEntry(member)) = list.next_element()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// One element of the list: a table or a text.
struct MemberEntry(Member);

impl<'de> Deserialize<'de> for MemberEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = MemberEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a member: { id, address, zone, weight } or `id@ip:port[@zone[@weight]]`",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MemberEntry, E> {
                text.parse().map(MemberEntry).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MemberEntry, A::Error> {
                Member::deserialize(MapAccessDeserializer::new(map)).map(MemberEntry)
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

/// Certificates: files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Where `ca.pem`, `node.pem` and `node.key` are. Without it: `<data_dir>/tls`, where a development authority and a node certificate are made at
    /// the first start. In a directory that is named here nothing is ever made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The authority's certificate, if it is not `ca.pem` of the directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This node's certificate, if it is not `node.pem` of the directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// This node's key, if it is not `node.key` of the directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// What the disk keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// A memtable of this size is flushed. Larger means fewer merges, more memory (up to twice this) and a longer recovery.
    pub memtable_bytes: u64,
    /// Memory for blocks of tables. Larger means fewer reads of the disk.
    pub cache_bytes: u64,
    /// How long the change log keeps changes, in milliseconds. Consumers that are further behind meet a gap.
    pub changes_age_ms_max: u64,
    /// How large the change log may grow. Whichever of age and bytes is reached first ends a change's life.
    pub changes_bytes_max: u64,
    /// A write of durability `interval` is on disk after this many milliseconds at the latest: what a crash may lose.
    pub interval_ms: u64,
    /// Hints kept for one node that is away. What does not fit is left to anti-entropy.
    pub hint_bytes_max: u64,
    /// How fast all that lies on the disk is read again, in MiB a second, to find damage before a request does; 0: never. A round
    /// begins once an hour at most.
    pub scrub_mib_per_second: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            memtable_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            changes_age_ms_max: 7 * 24 * 60 * 60 * 1000,
            changes_bytes_max: 4 << 30,
            interval_ms: 100,
            hint_bytes_max: 1 << 30,
            scrub_mib_per_second: 1,
        }
    }
}

/// Bounds of memory and of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Longest payload that this node takes, in bytes. The same on all members, or replicas refuse what coordinators take.
    pub payload_size_max: usize,
    /// Requests that this node coordinates at a time; more are refused with `Overloaded`.
    pub requests_in_flight_max: usize,
    /// Longest that a request may take, in milliseconds, whatever the client asks for.
    pub request_timeout_ms_max: u32,
    /// Connections from clients at a time; more are refused.
    pub connections_max: usize,
    /// Change subscriptions at a time; more are refused.
    pub subscriptions_max: usize,
    /// Answers that wait for a client, in bytes; with more, nothing is read from it until it has read.
    pub client_queue_bytes: usize,
    /// Messages that wait for a peer, in bytes; more are dropped, and their deadlines see to it.
    pub peer_queue_bytes: usize,
    /// How often replicas compare what they have, in milliseconds.
    pub anti_entropy_interval_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            payload_size_max: starling_client::wire::PAYLOAD_SIZE_DEFAULT,
            requests_in_flight_max: 8_192,
            request_timeout_ms_max: 60_000,
            connections_max: 10_000,
            subscriptions_max: 1_000,
            client_queue_bytes: 4 << 20,
            peer_queue_bytes: 64 << 20,
            anti_entropy_interval_ms: 60_000,
        }
    }
}

/// Failure detection (SWIM).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GossipConfig {
    /// One member is probed this often. Shorter finds failures sooner and costs datagrams.
    pub probe_interval_ms: u64,
    /// How long a probe waits before others are asked to probe. Longer than a usual round trip, at most half the interval.
    pub probe_timeout_ms: u64,
    /// How long a suspect has to defend itself, in probe intervals, for small clusters.
    pub suspicion_multiplier: u32,
    /// Full states are exchanged with one member this often.
    pub push_pull_interval_ms: u64,
    /// A dead member is tried again this often, so that a healed network is noticed.
    pub reconnect_interval_ms: u64,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            probe_interval_ms: 1_000,
            probe_timeout_ms: 500,
            suspicion_multiplier: 4,
            push_pull_interval_ms: 10_000,
            reconnect_interval_ms: 10_000,
        }
    }
}

/// The hybrid logical clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClockConfig {
    /// A stamp further than this ahead of this node's wall clock is refused, in milliseconds. Larger tolerates worse
    /// clocks, and lets one bad clock drag the cluster further ahead.
    pub skew_ms_max: u64,
    /// How far ahead the durable bound of stamps is set, in milliseconds: at most `skew_ms_max`. Smaller means more small writes.
    pub bound_window_ms: u64,
}

impl Default for ClockConfig {
    fn default() -> Self {
        let clock = starling_clock::ClockConfig::default();
        Self { skew_ms_max: clock.skew_ms_max, bound_window_ms: clock.bound_window_ms }
    }
}

/// What is logged, to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives by module as `tracing` writes them.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads all sources. `environment` is the process's variables, `flags` are (`section.field`, value) pairs.
    ///
    /// # Errors
    /// [`ConfigError`] with what to change. The result has been validated.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let setting = |error: config::ConfigError| ConfigError::Setting(error.to_string());
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            let error = |reason: String| ConfigError::File { path: path.to_owned(), reason };
            let text = std::fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
            // On its own first, so that an error names the file.
            let source = File::from_str(&text, FileFormat::Toml);
            config::Config::builder()
                .add_source(source.clone())
                .build()
                .and_then(config::Config::try_deserialize::<Self>)
                .map_err(|source| error(source.to_string()))?;
            builder = builder.add_source(source);
        }
        let ours = |(name, _): &(String, String)| {
            name.starts_with(ENVIRONMENT_PREFIX) && name.contains(ENVIRONMENT_SEPARATOR)
        };
        let environment = environment.into_iter().filter(ours).collect();
        builder = builder.add_source(
            Environment::with_prefix(ENVIRONMENT_PREFIX)
                .prefix_separator("_")
                .separator(ENVIRONMENT_SEPARATOR)
                .source(Some(environment)),
        );
        for (name, value) in flags {
            builder = builder.set_override(name, value.as_str()).map_err(setting)?;
        }
        let config: Self =
            builder.build().and_then(config::Config::try_deserialize).map_err(setting)?;
        config.validate()?;
        Ok(config)
    }

    /// All settings in effect, as a configuration file.
    ///
    /// # Panics
    /// Never on a validated configuration: its numbers fit TOML's.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("settings are plain data")
    }

    /// Whether the settings make sense, each alone and together.
    ///
    /// # Errors
    /// [`ConfigError`], the first that is found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(id) = self.node.id {
            range("node.id", id, 1, i64::MAX as u64)?;
        }
        range("cluster.name length", self.cluster.name.len() as u64, 1, NAME_SIZE_MAX as u64)?;
        let partitions = self.cluster.partitions;
        if !partitions.is_power_of_two() || partitions > PARTITIONS_MAX {
            let expected = format!("a power of two up to {PARTITIONS_MAX}");
            let found = partitions.to_string();
            return Err(ConfigError::Range { setting: "cluster.partitions", found, expected });
        }
        self.validate_members()?;
        self.validate_storage()?;
        self.validate_limits()?;
        let gossip = &self.gossip;
        range("gossip.probe_interval_ms", gossip.probe_interval_ms, 10, 60_000)?;
        let timeout_ms_max = gossip.probe_interval_ms / 2;
        range("gossip.probe_timeout_ms", gossip.probe_timeout_ms, 5, timeout_ms_max)?;
        range("gossip.suspicion_multiplier", gossip.suspicion_multiplier.into(), 1, 100)?;
        range("gossip.push_pull_interval_ms", gossip.push_pull_interval_ms, 10, 3_600_000)?;
        range("gossip.reconnect_interval_ms", gossip.reconnect_interval_ms, 10, 3_600_000)?;
        range("clock.skew_ms_max", self.clock.skew_ms_max, 1, 3_600_000)?;
        range("clock.bound_window_ms", self.clock.bound_window_ms, 1, self.clock.skew_ms_max)?;
        if self.log.level.parse::<tracing_subscriber::filter::Targets>().is_err() {
            let expected = "error, warn, info, debug, trace, or module=level parted by commas";
            let (found, expected) = (format!("{:?}", self.log.level), expected.to_owned());
            return Err(ConfigError::Range { setting: "log.level", found, expected });
        }
        Ok(())
    }

    fn validate_members(&self) -> Result<(), ConfigError> {
        let members = &self.cluster.members.0;
        range("cluster.members length", members.len() as u64, 0, MEMBERS_MAX as u64)?;
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for member in members {
            range("cluster.members id", member.id, 1, i64::MAX as u64)?;
            range("cluster.members port", member.address.port().into(), 1, u16::MAX.into())?;
            range("cluster.members weight", member.weight.into(), 1, WEIGHT_MAX.into())?;
            range(
                "cluster.members zone length",
                member.zone.len() as u64,
                0,
                NAME_SIZE_MAX as u64,
            )?;
            if !ids.insert(member.id) {
                return Err(ConfigError::MemberTwice(NodeId(member.id)));
            }
            if !addresses.insert(member.address) {
                return Err(ConfigError::AddressTwice(member.address));
            }
        }
        let NodeConfig { id, listen, advertise, .. } = self.node;
        if members.is_empty() {
            let unknown = listen.ip().is_unspecified() && advertise.is_none();
            return if unknown { Err(ConfigError::AdvertiseMissing(listen)) } else { Ok(()) };
        }
        let id = id.ok_or(ConfigError::IdMissing)?;
        let own = members.iter().find(|member| member.id == id);
        let own = own.ok_or(ConfigError::NotMember(NodeId(id)))?;
        match advertise {
            Some(advertise) if advertise != own.address => {
                Err(ConfigError::AdvertiseDiffers { advertise, member: own.address })
            }
            _ => Ok(()),
        }
    }

    fn validate_storage(&self) -> Result<(), ConfigError> {
        let storage = &self.storage;
        let memtable_bytes_max = starling_storage::MEMTABLE_BYTES_LIMIT as u64;
        range("storage.memtable_bytes", storage.memtable_bytes, 64 << 10, memtable_bytes_max)?;
        range("storage.cache_bytes", storage.cache_bytes, 0, 1 << 40)?;
        range("storage.changes_age_ms_max", storage.changes_age_ms_max, 1_000, i64::MAX as u64)?;
        range("storage.changes_bytes_max", storage.changes_bytes_max, 64 << 10, i64::MAX as u64)?;
        range("storage.interval_ms", storage.interval_ms, 1, 60_000)?;
        range("storage.hint_bytes_max", storage.hint_bytes_max, 0, i64::MAX as u64)?;
        range("storage.scrub_mib_per_second", storage.scrub_mib_per_second, 0, 1 << 20)
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let payload_size_limit = starling_client::wire::PAYLOAD_SIZE_LIMIT as u64;
        range("limits.payload_size_max", limits.payload_size_max as u64, 1, payload_size_limit)?;
        let in_flight = limits.requests_in_flight_max as u64;
        range("limits.requests_in_flight_max", in_flight, 1, 1 << 20)?;
        let timeout_ms = u64::from(limits.request_timeout_ms_max);
        range("limits.request_timeout_ms_max", timeout_ms, 1, 3_600_000)?;
        range("limits.connections_max", limits.connections_max as u64, 1, 1 << 20)?;
        range("limits.subscriptions_max", limits.subscriptions_max as u64, 1, 1 << 20)?;
        range("limits.client_queue_bytes", limits.client_queue_bytes as u64, 64 << 10, 1 << 32)?;
        range("limits.peer_queue_bytes", limits.peer_queue_bytes as u64, 64 << 10, 1 << 32)?;
        let anti_entropy_ms = limits.anti_entropy_interval_ms;
        range("limits.anti_entropy_interval_ms", anti_entropy_ms, 10, 24 * 3_600_000)
    }
}

fn range(setting: &'static str, found: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let expected = format!("from {least} to {most}");
    Err(ConfigError::Range { setting, found: found.to_string(), expected })
}

#[cfg(test)]
mod tests;
