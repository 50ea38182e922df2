//! `starling storage`: looks at the data directory of a node that is stopped, shows what is in it, and saves what can be saved.
//!
//! Invariants:
//!
//! - The directory's lock is held: the command is refused while the node runs, and the node while the command does.
//! - Only `repair --write` changes anything; the others need no leave to write.
//! - Exit codes: 0 all is well, 1 something is damaged, 2 it could not be looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::{Value, json};
use starling_clock::{NodeId, Stamp};
use starling_storage::offline::{
    self, DumpFilter, DumpKind, DumpRecord, DumpTable, Extent, KeyPlace, Loss, Repair,
    RepairOptions, Report, Step,
};
use starling_storage::{
    Action, Disk, Error, Event, Identity, KeyspaceId, OsDisk, OsLock, Provenance,
};

use super::Failure;
use super::output::{Out, bytes_json, count, printable, size};

const EXIT_CODES: &str =
    "Exit codes: 0 all is well, 1 something is damaged, 2 it could not be looked at.";

/// `starling storage`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct StorageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read every byte of a data directory and check it.
    ///
    /// Every checksum is checked, and what the files say of each other. Nothing is changed.
    #[command(after_help = EXIT_CODES)]
    Verify {
        #[command(flatten)]
        dir: DirArg,
    },
    /// Print records as JSON lines.
    ///
    /// What is damaged is a line of its own, and the rest goes on behind it. Nothing is changed.
    #[command(after_help = EXIT_CODES)]
    Dump(DumpArgs),
    /// Save what can be saved of a damaged data directory, so that the node starts again.
    ///
    /// Tells what it would do and what would be lost; does it with --write. Nothing is removed: files that are given up get names
    /// that end in `.damaged`. What was lost comes back from the other replicas once the node runs.
    #[command(after_help = EXIT_CODES)]
    Repair(RepairArgs),
}

#[derive(Debug, Args)]
struct DirArg {
    /// The node's data directory (`node.data_dir`).
    #[arg(long = "data-dir", visible_alias = "data", value_name = "DIR")]
    data_dir: PathBuf,
}

/// What to dump.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Whose directory it is.
    Identity,
    /// Named values and consumed hints.
    State,
    /// Which tables there are.
    Manifest,
    /// Events in tables.
    Tables,
    /// The write-ahead log.
    Wal,
    /// The change log.
    Changes,
    /// Hints.
    Hints,
}

#[derive(Debug, Args)]
struct DumpArgs {
    /// What.
    what: What,
    #[command(flatten)]
    dir: DirArg,
    /// Only records of logs from this number on.
    #[arg(long, value_name = "NUMBER")]
    from: Option<u64>,
    /// Only records of logs up to this number.
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
    /// Only events of this keyspace.
    #[arg(short, long, value_name = "NAME")]
    keyspace: Option<String>,
    /// Only events whose keys begin so.
    #[arg(long)]
    prefix: Option<String>,
    /// Only events of this partition.
    #[arg(long)]
    partition: Option<u32>,
    /// Only hints for this node.
    #[arg(long, value_name = "ID")]
    target: Option<u64>,
    /// Only this table.
    #[arg(long, value_name = "NUMBER")]
    table: Option<u64>,
}

#[derive(Debug, Args)]
struct RepairArgs {
    #[command(flatten)]
    dir: DirArg,
    /// Do it.
    #[arg(long)]
    write: bool,
    /// Give up the records of the write-ahead log that cannot be read. The node may have acknowledged them; with a quorum of the
    /// other replicas whole nothing is lost to the cluster.
    #[arg(long)]
    cut_log: bool,
    /// Give up a state file that cannot be read: what the node promised the others besides events. An empty data directory is safer,
    /// if the other replicas have its data.
    #[arg(long)]
    drop_state: bool,
}

/// Runs the command.
pub(super) fn run(args: StorageArgs, out: Out) -> Result<(), Failure> {
    match args.command {
        Command::Verify { dir } => verify(&Directory::open(&dir.data_dir)?, out),
        Command::Dump(args) => dump(&Directory::open(&args.dir.data_dir)?, out, args),
        Command::Repair(args) => {
            let directory = Directory::open(&args.dir.data_dir)?;
            let options = RepairOptions {
                write: args.write,
                cut_log: args.cut_log,
                drop_state: args.drop_state,
                identity: named_identity(&args.dir.data_dir),
                log_salt: draw_salt()?,
            };
            repair(&directory, out, &options)
        }
    }
}

/// For logs that begin anew: nobody is to guess it.
fn draw_salt() -> Result<u32, Failure> {
    let drawn = SysRng.try_next_u32();
    drawn.map_err(|error| Failure::System { what: "draw a number", source: error.into() })
}

/// An open data directory, and its lock.
struct Directory {
    disk: Arc<OsDisk>,
    /// `None`: there never was one and none can be made, so that no node uses the directory.
    _lock: Option<OsLock>,
}

impl Directory {
    /// The storage of the node whose data directory this is.
    fn open(data_dir: &Path) -> Result<Self, Failure> {
        let look = |source| Failure::CannotLook { path: data_dir.to_owned(), source };
        let storage = data_dir.join("storage");
        // It is made by no tool: a wrong name would look like an empty node.
        if !storage.is_dir() {
            let path = data_dir.to_owned();
            return Err(Failure::NoStorage(path));
        }
        let disk = OsDisk::new(storage).map_err(look)?;
        let lock = match disk.lock("lock") {
            Ok(lock) => Some(lock),
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound => None,
                std::io::ErrorKind::WouldBlock => return Err(Failure::Unreadable(Error::Locked)),
                _ => return Err(look(error)),
            },
        };
        Ok(Self { disk: Arc::new(disk), _lock: lock })
    }
}

/// Whose directory it is by the file that the node keeps beside its storage.
fn named_identity(data_dir: &Path) -> Option<Identity> {
    let table: toml::Table =
        std::fs::read_to_string(data_dir.join("identity.toml")).ok()?.parse().ok()?;
    let cluster = table.get("cluster")?.as_str()?.to_owned();
    let node = u64::try_from(table.get("node")?.as_integer()?).ok()?;
    Some(Identity { cluster, node: NodeId(node) })
}

fn spinner(out: Out) -> ProgressBar {
    if out.shows_progress() { ProgressBar::new_spinner() } else { ProgressBar::hidden() }
}

fn verify(directory: &Directory, out: Out) -> Result<(), Failure> {
    let bar = spinner(out);
    let report = offline::verify(&*directory.disk, |file, bytes| {
        bar.set_message(format!("{} read, {file}", size(bytes)));
        bar.tick();
    })?;
    bar.finish_and_clear();
    out.value(&report_json(&report), || report_text(&report))?;
    let found = report.damage.len() as u64 + report.damage_more;
    if found == 0 { Ok(()) } else { Err(Failure::Damaged(count(found, "place") + " damaged")) }
}

fn extent_json(extent: &Extent) -> Value {
    let Extent { segments, bytes, first, end } = extent;
    json!({ "segments": segments, "bytes": bytes, "first": first, "end": end })
}

fn report_json(report: &Report) -> Value {
    let hints = report.hints.iter().map(|(target, extent)| {
        let mut value = extent_json(extent);
        value["target"] = json!(target.0);
        value
    });
    let damage = report.damage.iter().map(|damage| {
        json!({
            "file": damage.file, "offset": damage.offset, "what": damage.what,
            "consequence": damage.consequence,
        })
    });
    let notes = report.notes.iter().map(|note| json!({ "file": note.file, "what": note.what }));
    json!({
        "clean": report.is_clean(),
        "node": report.identity.as_ref().map(|identity| identity.node.0),
        "cluster": report.identity.as_ref().map(|identity| &identity.cluster),
        "files": report.files,
        "bytes": report.bytes,
        "wal": extent_json(&report.wal),
        "flushed": report.flushed,
        "changes": extent_json(&report.changes),
        "hints": hints.collect::<Vec<_>>(),
        "tables": report.tables,
        "table_events": report.table_events,
        "damage": damage.collect::<Vec<_>>(),
        "damage_more": report.damage_more,
        "notes": notes.collect::<Vec<_>>(),
    })
}

fn report_text(report: &Report) -> String {
    let mut text = match &report.identity {
        Some(identity) => format!("node {} of cluster '{}'\n", identity.node, identity.cluster),
        None => "a node that cannot be told\n".to_owned(),
    };
    let range = |extent: &Extent| format!("{} to {}", extent.first, extent.end.saturating_sub(1));
    text += &format!("{} read in {}\n", size(report.bytes), count(report.files, "file"));
    text += &format!("tables: {}, {}\n", report.tables, count(report.table_events, "event"));
    text += &format!(
        "write-ahead log: records {}, in tables up to {}\n",
        range(&report.wal),
        report.flushed
    );
    text += &format!("change log: changes {}\n", range(&report.changes));
    for (target, extent) in &report.hints {
        text += &format!("hints for node {target}: {}\n", range(extent));
    }
    for note in &report.notes {
        text += &format!("note: {}: {}\n", printable(note.file.as_bytes()), note.what);
    }
    for damage in &report.damage {
        text += &format!("damaged: {}\n", printable(damage.to_string().as_bytes()));
    }
    if 0 < report.damage_more {
        text += &format!("and {} more\n", report.damage_more);
    }
    if report.is_clean() {
        text += "nothing is damaged\n";
    }
    text
}

fn dump(directory: &Directory, out: Out, args: DumpArgs) -> Result<(), Failure> {
    let kind = match args.what {
        What::Identity => DumpKind::Identity,
        What::State => DumpKind::State,
        What::Manifest => DumpKind::Manifest,
        What::Tables => DumpKind::Tables,
        What::Wal => DumpKind::Wal,
        What::Changes => DumpKind::Changes,
        What::Hints => DumpKind::Hints,
    };
    let filter = DumpFilter {
        from: args.from,
        to: args.to,
        keyspace: args.keyspace.map(|name| KeyspaceId::of(&name)),
        key_prefix: args.prefix.map(|prefix| prefix.into_bytes().into()),
        partition: args.partition,
        target: args.target.map(NodeId),
        table: args.table,
    };
    let mut damaged = 0;
    offline::dump(&*directory.disk, kind, &filter, |record| {
        damaged += u64::from(matches!(record, DumpRecord::Damaged { .. }));
        out.raw(format!("{}\n", record_json(&record)).as_bytes())
    })?;
    if damaged == 0 { Ok(()) } else { Err(Failure::Damaged(count(damaged, "place") + " damaged")) }
}

fn record_json(record: &DumpRecord) -> Value {
    match record {
        DumpRecord::Identity(identity) => {
            json!({ "node": identity.node.0, "cluster": identity.cluster })
        }
        DumpRecord::State { up_to, changes } => json!({ "up_to": up_to, "changes": changes }),
        DumpRecord::Meta { number, name, value } => {
            json!({ "number": number, "name": name, "value": bytes_json(value) })
        }
        DumpRecord::HintMark { target, done, next } => {
            json!({ "target": target.0, "done": done, "next": next })
        }
        DumpRecord::Manifest { flushed, next_table } => {
            json!({ "flushed": flushed, "next_table": next_table })
        }
        DumpRecord::Dropped { partition, up_to, changes } => {
            json!({ "dropped": partition, "up_to": up_to, "changes": changes })
        }
        DumpRecord::Table(table) => table_json(table),
        DumpRecord::Hidden { table, partition } => json!({ "table": table, "hidden": partition }),
        DumpRecord::TableEvent { table, event } => with(json!({ "table": table }), event),
        DumpRecord::WalEvent { number, change } => {
            let head = json!({
                "number": number,
                "change": change.sequence,
                "provenance": provenance_name(change.provenance),
                "previous": change.previous.map(|stamp| stamp.to_string()),
            });
            with(head, &change.event)
        }
        DumpRecord::WalHint { number, target, hint, event } => {
            with(json!({ "number": number, "target": target.0, "hint": hint }), event)
        }
        DumpRecord::HintsDone { number, target, up_to } => {
            json!({ "number": number, "target": target.0, "hints_done": up_to })
        }
        DumpRecord::Change(change) => {
            let head = json!({
                "change": change.sequence,
                "provenance": provenance_name(change.provenance),
                "previous": change.previous.map(|stamp| stamp.to_string()),
            });
            with(head, &change.event)
        }
        DumpRecord::Hint { target, number, event } => {
            with(json!({ "target": target.0, "hint": number }), event)
        }
        DumpRecord::Damaged { file, offset, what } => {
            json!({ "damaged": file, "offset": offset, "what": what })
        }
    }
}

fn table_json(table: &DumpTable) -> Value {
    let mut value = json!({ "table": table.number, "run": table.run, "bytes": table.bytes });
    if let Some(bounds) = table.bounds {
        value["partitions"] = json!([bounds.partitions.0, bounds.partitions.1]);
        value["stamps"] = stamps_json(bounds.stamps);
        value["events"] = json!(bounds.events);
    }
    value
}

fn stamps_json((least, greatest): (Stamp, Stamp)) -> Value {
    json!([least.to_string(), greatest.to_string()])
}

/// The fields of an event after those of its record.
fn with(mut head: Value, event: &Event) -> Value {
    head["partition"] = json!(event.partition);
    head["keyspace"] = json!(format!("{:016x}", event.keyspace.0));
    head["key"] = bytes_json(&event.key);
    head["stamp"] = json!(event.stamp.to_string());
    head["action"] = json!(match event.action {
        Action::Put => "put",
        Action::Delete => "delete",
    });
    head["request"] = json!(format!("{:016x}-{}", event.request.client, event.request.sequence));
    head["payload"] = bytes_json(&event.payload);
    head
}

fn provenance_name(provenance: Provenance) -> &'static str {
    match provenance {
        Provenance::Write => "write",
        Provenance::Hint => "hint",
        Provenance::ReadRepair => "read-repair",
        Provenance::AntiEntropy => "anti-entropy",
        Provenance::Transfer => "transfer",
        Provenance::Expiry => "expiry",
    }
}

fn repair(directory: &Directory, out: Out, options: &RepairOptions) -> Result<(), Failure> {
    let bar = spinner(out);
    let repair = offline::repair(&directory.disk, options, |file, bytes| {
        bar.set_message(format!("{} read, {file}", size(bytes)));
        bar.tick();
    })?;
    bar.finish_and_clear();
    out.value(&repair_json(&repair), || repair_text(&repair))?;
    if !repair.refused.is_empty() {
        return Err(Failure::Damaged("nothing was changed".to_owned()));
    }
    match (repair.steps.is_empty(), repair.written) {
        (true, _) | (_, true) => Ok(()),
        (false, false) => {
            Err(Failure::Damaged("nothing was changed yet: --write does it".to_owned()))
        }
    }
}

fn repair_json(repair: &Repair) -> Value {
    let steps = repair.steps.iter().map(|step| match step {
        Step::Quarantine { file } => json!({ "quarantine": file }),
        Step::SalvageTable { file, events } => {
            json!({ "salvage_table": { "file": file, "events": events } })
        }
        Step::SalvageLog { events } => json!({ "salvage_log": { "events": events } }),
        Step::RebuildManifest { tables } => json!({ "rebuild_manifest": { "tables": tables } }),
        Step::RewriteState => json!("rewrite_state"),
        Step::RestartLog { dir, first } => json!({ "restart_log": { "dir": dir, "first": first } }),
        Step::WriteIdentity => json!("write_identity"),
    });
    let losses = repair.losses.iter().map(|loss| {
        json!({
            "what": loss.what,
            "file": loss.file,
            "partitions": loss.partitions.map(|(least, greatest)| [least, greatest]),
            "stamps": loss.stamps.map(stamps_json),
            "records": loss.records.map(|(first, last)| [first, last]),
            "events": loss.events,
            "deletes": loss.deletes,
            "between": loss.between.as_ref().map(|(after, before)| {
                [after.as_ref().map(place_json), before.as_ref().map(place_json)]
            }),
        })
    });
    json!({
        "written": repair.written,
        "steps": steps.collect::<Vec<_>>(),
        "losses": losses.collect::<Vec<_>>(),
        "refused": repair.refused,
    })
}

fn place_json(place: &KeyPlace) -> Value {
    json!({
        "partition": place.partition,
        "keyspace": format!("{:016x}", place.keyspace.0),
        "key": bytes_json(&place.key),
    })
}

fn repair_text(repair: &Repair) -> String {
    if repair.steps.is_empty() && repair.refused.is_empty() {
        return "nothing is damaged\n".to_owned();
    }
    let mut text = String::new();
    for step in &repair.steps {
        text += &match step {
            Step::Quarantine { file } => format!("give up {}\n", printable(file.as_bytes())),
            Step::SalvageTable { file, events } => {
                let file = printable(file.as_bytes());
                format!("save {} of {file} in new tables\n", count(*events, "event"))
            }
            Step::SalvageLog { events } => {
                format!("save {} of the write-ahead log in tables\n", count(*events, "event"))
            }
            Step::RebuildManifest { tables } => {
                format!("make a manifest of {}\n", count(*tables, "whole table"))
            }
            Step::RewriteState => "make a state file of what is known\n".to_owned(),
            Step::RestartLog { dir, first } => format!("begin {dir} anew at {first}\n"),
            Step::WriteIdentity => "say whose directory it is\n".to_owned(),
        };
    }
    for loss in &repair.losses {
        text += &loss_text(loss);
    }
    for why in &repair.refused {
        text += &format!("refused: {why}\n");
    }
    text
}

fn loss_text(loss: &Loss) -> String {
    let mut text = format!("lost: {}, {}", loss.what, printable(loss.file.as_bytes()));
    if let Some((first, last)) = loss.records {
        text += &format!(", records {first} to {last}");
    }
    if let Some(events) = loss.events {
        text += &format!(", up to {}", count(events, "event"));
    }
    match loss.deletes {
        None => {}
        Some(0) => text += ", none of them a delete",
        Some(deletes) => text += &format!(", {} among them", count(deletes, "delete")),
    }
    if let Some((least, greatest)) = loss.partitions {
        text += &format!(", partitions {least} to {greatest}");
    }
    if let Some((after, before)) = &loss.between {
        let end = |place: &Option<KeyPlace>, otherwise: &str| match place {
            None => otherwise.to_owned(),
            Some(place) => {
                format!("'{}' of partition {}", printable(&place.key), place.partition)
            }
        };
        text += &format!(
            ", between {} and {}",
            end(after, "the table's begin"),
            end(before, "its end")
        );
    }
    if let Some((least, greatest)) = loss.stamps {
        text += &format!(", stamps {least} to {greatest}");
    }
    text + "\n"
}
