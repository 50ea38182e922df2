//! Every bound of the node in one place: what is counted here is what a peer or a client can make a node hold.
//!
//! Invariants:
//!
//! - No queue, table or message of the node is without a bound from this file or from the crate that owns it.
//! - The bounds fit each other: the assertions below do not compile otherwise.
//!
//! What an operator may change is in [`Limits`]; the rest are constants.

use starling_client::wire::{
    DAMAGED_PLACES_MAX, KEY_SIZE_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX, PAYLOAD_SIZE_DEFAULT,
    PAYLOAD_SIZE_LIMIT,
};

/// Most home replicas of a key; the ring's bound.
pub const REPLICATION_MAX: u8 = 16;
/// Most keyspaces that a node keeps.
pub const KEYSPACES_MAX: usize = 1024;
/// Most times that one write is given a newer stamp; then it is written as superseded.
pub const RESTAMPS_MAX: u32 = 4;
/// Most times that one write is sent again to replicas whose connection broke.
pub const RESENDS_MAX: u32 = 8;
/// Most clients' requests that wait for one write in flight with the same request id.
pub const JOINED_MAX: usize = 16;
/// Writes whose outcome is kept for a repetition of the request.
pub const REMEMBERED_REQUESTS_MAX: usize = 16_384;
/// Versions of a key that are looked through for the event of an earlier attempt.
pub const RETRY_VERSIONS_MAX: u32 = 64;
/// Events in one message between peers: whatever a node sends has to fit, a batch of the smallest hints and the repair of a
/// page of the smallest rows too.
pub const PEER_EVENTS_MAX: usize = 16_384;
/// Bytes of hints in one batch, in the storage engine's encoding; one event at the least.
pub const HINT_BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of events in one answer of storage to a change subscription.
pub const CHANGE_BATCH_BYTES_MAX: usize = 256 << 10;
/// Changes in one answer of storage to a change subscription.
pub const CHANGE_BATCH_MAX: usize = 4096;
/// Longest query of events between peers, in bytes of events; one event at the least.
pub const PEER_READ_BYTES_MAX: usize = PAGE_BYTES_MAX;
/// Most events that one query between peers may ask for: a page and the one after it.
pub const PEER_READ_EVENTS_MAX: u32 = PAGE_ROWS_MAX + 1;
/// Partitions whose digests one query may ask for.
pub const DIGESTS_MAX: u32 = 65_536;
/// The longest text of an error sent to a client, in bytes.
pub const ERROR_TEXT_MAX: usize = 1024;

const _: () = assert!(PAYLOAD_SIZE_DEFAULT <= PAYLOAD_SIZE_LIMIT);
const _: () = assert!(PAYLOAD_SIZE_LIMIT <= starling_storage::PAYLOAD_SIZE_LIMIT);
const _: () = assert!(KEY_SIZE_MAX == starling_storage::KEY_SIZE_MAX);
const _: () = assert!(DAMAGED_PLACES_MAX == starling_storage::DAMAGED_PLACES_MAX as u64);
const _: () = assert!(PEER_READ_BYTES_MAX < starling_client::codec::MESSAGE_SIZE_MAX);
const _: () = assert!(HINT_BATCH_BYTES_MAX / starling_storage::EVENT_HEADER_SIZE < PEER_EVENTS_MAX);
const _: () = assert!((PEER_READ_EVENTS_MAX as usize) < PEER_EVENTS_MAX);
const _: () = assert!(HINT_BATCH_BYTES_MAX < starling_client::codec::MESSAGE_SIZE_MAX);

/// Bounds and waits that an operator may set. Each tells its consequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload that is taken, in bytes. Larger lets one write hold up others for longer.
    pub payload_size_max: usize,
    /// Clients' requests that are coordinated at one time and not answered yet; one more is refused as
    /// `Overloaded`. Larger queues longer before it refuses.
    pub in_flight_max: usize,
    /// Writes that are answered and still wait for slow replicas; beyond, the slow get a hint at once.
    pub lingering_max: usize,
    /// Bytes of keys and payloads of writes that are not finished; one more is refused as `Overloaded`. One write is
    /// always taken.
    pub write_bytes_max: usize,
    /// Requests of one peer that are served at one time; one more is refused as overloaded.
    pub served_per_peer_max: usize,
    /// Open change subscriptions; one more is refused.
    pub subscriptions_max: usize,
    /// No request runs longer than this, whatever its header says, in milliseconds.
    pub request_timeout_ms_max: u64,
    /// A replica that has not answered a write for this long gets a hint if the client has its answer already,
    /// in milliseconds. Shorter makes more needless hints, longer keeps more writes in memory.
    pub hint_after_ms: u64,
    /// Without an answer to a batch of hints for this long it is sent again, in milliseconds.
    pub hint_batch_timeout_ms: u64,
    /// First and longest wait before trying a peer again (dialling, hints), in milliseconds.
    pub retry_ms: (u64, u64),
    /// A read asks one more replica after this long without enough answers, in milliseconds.
    pub hedge_after_ms: u64,
    /// Every replica pair is compared about this often, in milliseconds. Shorter costs more reading of digests.
    pub anti_entropy_interval_ms: u64,
    /// One question of anti-entropy is given up after this long, in milliseconds.
    pub anti_entropy_timeout_ms: u64,
    /// The first comparisons begin this long after the start or a peer's return, in milliseconds: hints go first.
    pub anti_entropy_first_ms: u64,
    /// Wait after each batch of anti-entropy, in milliseconds. Longer leaves more to clients, and heals later.
    pub anti_entropy_pause_ms: u64,
    /// Events younger than this are left to the write that brings them, in milliseconds.
    pub anti_entropy_settle_ms: u64,
    /// A graceful stop waits no longer than this for what is in flight, in milliseconds.
    pub stop_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_size_max: PAYLOAD_SIZE_DEFAULT,
            in_flight_max: 8192,
            lingering_max: 65_536,
            write_bytes_max: 256 << 20,
            served_per_peer_max: 16_384,
            subscriptions_max: 1024,
            request_timeout_ms_max: 60_000,
            hint_after_ms: 1000,
            hint_batch_timeout_ms: 5000,
            retry_ms: (100, 5000),
            hedge_after_ms: 20,
            anti_entropy_interval_ms: 60_000,
            anti_entropy_timeout_ms: 10_000,
            anti_entropy_first_ms: 3000,
            anti_entropy_pause_ms: 5,
            anti_entropy_settle_ms: 2000,
            stop_timeout_ms: 5000,
        }
    }
}

impl Limits {
    /// # Panics
    /// If a limit makes no sense: configuration is checked where it is read.
    pub fn check(&self) {
        assert!(self.payload_size_max <= PAYLOAD_SIZE_LIMIT);
        assert!(0 < self.in_flight_max);
        assert!(0 < self.write_bytes_max);
        assert!(0 < self.served_per_peer_max);
        assert!(0 < self.request_timeout_ms_max);
        assert!(0 < self.hint_batch_timeout_ms);
        assert!(0 < self.retry_ms.0);
        assert!(self.retry_ms.0 <= self.retry_ms.1);
        assert!(0 < self.anti_entropy_interval_ms);
        assert!(0 < self.anti_entropy_timeout_ms);
    }
}
