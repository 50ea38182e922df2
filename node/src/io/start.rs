//! [`run`]: a node from its settings to its end.
//!
//! Invariants:
//!
//! - Things are taken in the order data directory, certificates, address, storage; whatever fails, nothing that came before is changed by it.
//! - `ready` is called when requests are taken, not before.
//! - A graceful stop answers what is in flight, says goodbye to peers, writes and syncs everything; then the directory may be used again.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use starling_client::transport::{
    Credentials, KeptKeys, LargeFrameBudget, TlsFiles, TransportOptions, bind, client_config,
    server_config,
};
use starling_client::wire::{ALPN_CLIENT, ALPN_PEER};
use starling_clock::NodeId;
use starling_ring::{Epoch, Partitions};
use starling_storage::{OsDisk, Scrub, Storage};
use tokio::task::LocalSet;

use super::close_code::CloseCode;
use super::driver::{Driver, DriverConfig};
use super::error::NodeError;
use super::listen;
use super::storage::StorageThreads;
use super::time::{Clock, wall_s};
use crate::config::Config;
use crate::core::peer::Hello;
use crate::core::storage::Writer;
use crate::core::types::Input;
use crate::core::{Core, CoreConfig};
use crate::identity::{DataDir, draw_seed};
use crate::tls;

/// Bytes of large frames of clients, and of peers, in memory at once.
const LARGE_FRAMES_BYTES: usize = 256 << 20;
/// A node is lost to its peers after so long without a packet; SWIM notices sooner.
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection shows that it is there.
const PEER_KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// How long the last answers may take to leave when the node stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last packets may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs a node until `stop` is ready and everything is finished. `ready` learns where it listens.
///
/// It makes the thread it is called on the node's network thread, and two more.
///
/// # Errors
/// [`NodeError`], which says what to do.
pub fn run(
    config: &Config,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    config.validate()?;
    let wanted = config.node.id.map(NodeId);
    let cluster = &config.cluster;
    let data_dir = DataDir::open(&config.node.data_dir, wanted, &cluster.name, cluster.partitions)?;
    let node = data_dir.identity().node;
    let credentials = credentials(config, &data_dir, node)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NodeError::System)?;
    let local = LocalSet::new();
    runtime.block_on(async {
        let endpoint = listen(config, &credentials, &data_dir)?;
        let address = endpoint.local_addr().map_err(NodeError::System)?;
        let driver = local
            .run_until(async { start(config, node, &credentials, &data_dir, endpoint, address) })
            .await?;
        let announce = || {
            data_dir.write_running(address)?;
            tracing::info!(%node, %address, cluster = %cluster.name, "the node is up");
            ready(address);
            Ok(())
        };
        let ended = local.run_until(serve(driver.clone(), announce, stop)).await;
        driver.finish();
        // Tasks hold the driver; when they are gone, storage is this function's alone.
        drop(local);
        driver.stop_storage();
        data_dir.remove_running();
        tracing::info!(%node, "the node has stopped");
        ended
    })
}

async fn serve(
    driver: Driver,
    announce: impl FnOnce() -> Result<(), NodeError>,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let accepting = tokio::task::spawn_local(listen::accept(driver.clone()));
    let timer = tokio::task::spawn_local(driver.clone().run_timer());
    let storage = driver.clone().run_storage_answers();
    tokio::pin!(storage);
    let endpoint = driver.config().endpoint.clone();
    let announced = async {
        driver.serving().await;
        match announce() {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    let graceful = async {
        stop.await;
        tracing::info!("stopping");
        driver.feed(Input::Stop);
        driver.stopped().await;
        accepting.abort();
        if tokio::time::timeout(FLUSH_TIMEOUT, driver.flush()).await.is_err() {
            tracing::info!("some connections did not read to the end");
        }
    };
    let ended = tokio::select! {
        biased;
        () = &mut storage => Err(NodeError::StorageThreadLost),
        () = graceful => Ok(()),
        error = announced => Err(error),
    };
    timer.abort();
    let stopping = CloseCode::Stopping;
    endpoint.close(stopping.number(), stopping.reason().as_bytes());
    // Whoever does not hear of it finds out by itself.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
    ended
}

fn credentials(
    config: &Config,
    data_dir: &DataDir,
    node: NodeId,
) -> Result<Credentials, NodeError> {
    let settings = &config.tls;
    let directory: PathBuf = match &settings.dir {
        Some(directory) => directory.clone(),
        None => data_dir.tls(),
    };
    let named = [&settings.ca, &settings.cert, &settings.key];
    if settings.dir.is_none() && named.iter().any(|path| path.is_none()) {
        tls::ensure_development(&directory, &config.cluster.name, node, wall_s())?;
    }
    let usual = TlsFiles::of_node(&directory);
    let files = TlsFiles {
        authority: settings.ca.clone().unwrap_or(usual.authority),
        certificate: settings.cert.clone().unwrap_or(usual.certificate),
        key: settings.key.clone().unwrap_or(usual.key),
    };
    tls::check_node(&files, node, wall_s())?;
    Ok(Credentials::from_files(&files)?)
}

fn listen(
    config: &Config,
    credentials: &Credentials,
    data_dir: &DataDir,
) -> Result<quinn::Endpoint, NodeError> {
    let keys = data_dir.transport_keys()?;
    let keys = KeptKeys { reset: keys.reset, connection_id: keys.connection_id };
    let crypto = credentials.server_crypto(&[ALPN_CLIENT, ALPN_PEER])?;
    let server = server_config(crypto, TransportOptions::DEFAULT);
    let address = config.node.listen;
    bind(address, Some(server), Some(&keys)).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => NodeError::AddressInUse { address },
        _ => NodeError::Listen { address, source },
    })
}

fn start(
    config: &Config,
    node: NodeId,
    credentials: &Credentials,
    data_dir: &DataDir,
    endpoint: quinn::Endpoint,
    address: SocketAddr,
) -> Result<Driver, NodeError> {
    let core_config = core_config(config, node, address)?;
    let hello = Hello {
        cluster: config.cluster.name.as_str().into(),
        epoch: core_config.epoch.number(),
        epoch_digest: core_config.epoch.digest(),
    };
    let disk = OsDisk::new(data_dir.storage()).map_err(NodeError::System)?;
    let identity = starling_storage::Identity { cluster: config.cluster.name.clone(), node };
    let disk = Arc::new(disk);
    let storage_config = starling_storage::Config {
        log_salt: u32::try_from(draw_seed()? >> 32).expect("half of it"),
        ..storage_config(config)
    };
    let storage = Storage::open(Arc::clone(&disk), storage_config, identity)?;
    for place in storage.damage_log().status().latest {
        let (file, offset, what) = (place.file, place.offset, place.what);
        tracing::error!(file, offset, what, "the disk is damaged: what is there is passed over");
    }
    let (metas, greatest) = (storage.metas(""), storage.recovered_stamp());
    let writer = Writer::new(storage);
    let reader = writer.reader();
    let clock = Clock::start();
    let mut core = Core::new(core_config, &metas, draw_seed()?, clock.now())?;
    core.observe_recovered(greatest);
    let sync_interval = Duration::from_millis(config.storage.interval_ms);
    let scrub_bytes = config.storage.scrub_mib_per_second << 20;
    let scrub = (0 < scrub_bytes).then(|| (Scrub::new(disk), scrub_bytes));
    let threads = StorageThreads::start(writer, reader, clock, sync_interval, scrub)
        .map_err(NodeError::System)?;
    let options = TransportOptions {
        idle_timeout: PEER_IDLE_TIMEOUT,
        keep_alive: Some(PEER_KEEP_ALIVE),
        ..TransportOptions::DEFAULT
    };
    let driver_config = DriverConfig {
        hello,
        node,
        endpoint,
        peer_config: client_config(credentials.client_crypto(ALPN_PEER)?, options),
        peer_queue_bytes: config.limits.peer_queue_bytes,
        client_queue_bytes: config.limits.client_queue_bytes,
        connections_max: config.limits.connections_max,
        client_budget: LargeFrameBudget::new(LARGE_FRAMES_BYTES),
        peer_budget: LargeFrameBudget::new(LARGE_FRAMES_BYTES),
    };
    Ok(Driver::new(core, threads, clock, driver_config))
}

fn core_config(
    config: &Config,
    node: NodeId,
    address: SocketAddr,
) -> Result<CoreConfig, NodeError> {
    let mut addresses = BTreeMap::new();
    let mut members = Vec::new();
    if config.cluster.members.0.is_empty() {
        addresses.insert(node, config.node.advertise.unwrap_or(address));
        members.push(starling_ring::Member { node, zone: String::new(), weight: 1 });
    }
    for member in &config.cluster.members.0 {
        let node = NodeId(member.id);
        addresses.insert(node, member.address);
        let (zone, weight) = (member.zone.clone(), member.weight);
        members.push(starling_ring::Member { node, zone, weight });
    }
    let partitions =
        Partitions::new(config.cluster.partitions).expect("the configuration was validated");
    let gossip = &config.gossip;
    Ok(CoreConfig {
        cluster: config.cluster.name.clone(),
        node,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: Epoch::new(1, partitions, members)?,
        addresses,
        gossip: starling_gossip::GossipConfig {
            probe_timeout_us: gossip.probe_timeout_ms * 1000,
            suspicion_multiplier: gossip.suspicion_multiplier,
            push_pull_interval_us: gossip.push_pull_interval_ms * 1000,
            reconnect_interval_us: gossip.reconnect_interval_ms * 1000,
            ..starling_gossip::GossipConfig::scaled(gossip.probe_interval_ms * 1000)
        },
        clock: starling_clock::ClockConfig {
            skew_ms_max: config.clock.skew_ms_max,
            bound_window_ms: config.clock.bound_window_ms,
        },
        limits: crate::limits::Limits {
            payload_size_max: config.limits.payload_size_max,
            in_flight_max: config.limits.requests_in_flight_max,
            subscriptions_max: config.limits.subscriptions_max,
            request_timeout_ms_max: config.limits.request_timeout_ms_max.into(),
            anti_entropy_interval_ms: config.limits.anti_entropy_interval_ms,
            ..crate::limits::Limits::default()
        },
    })
}

fn storage_config(config: &Config) -> starling_storage::Config {
    let usual = starling_storage::Config::default();
    let settings = &config.storage;
    let size = |bytes: u64| usize::try_from(bytes).expect("the configuration was validated");
    starling_storage::Config {
        payload_size_max: config.limits.payload_size_max,
        memtable_bytes_max: size(settings.memtable_bytes),
        // Retention removes whole segments: a quarter of what may stay is fine enough.
        change_segment_bytes_max: usual
            .change_segment_bytes_max
            .min((settings.changes_bytes_max / 4).max(1)),
        change_bytes_max: settings.changes_bytes_max,
        change_age_ms_max: settings.changes_age_ms_max,
        hint_bytes_max: settings.hint_bytes_max,
        hint_segment_bytes_max: usual
            .hint_segment_bytes_max
            .min((settings.hint_bytes_max / 4).max(1)),
        tree: starling_storage::TreeConfig {
            block_cache_bytes: settings.cache_bytes,
            ..usual.tree
        },
        ..usual
    }
}
