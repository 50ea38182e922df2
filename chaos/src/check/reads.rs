//! G3: where R+W>N a read returns a version at least as new as every write acked before the read began, and as what an earlier
//! quorum read returned. Before and after are those of the true time: stamps are what is on trial.
//!
//! Not judged, because the contract does not promise it:
//!
//! - Writes at ANY count for no replica, so that they are never behind a read's quorum (G3: "no ANY writes").
//! - A write of which a home replica may have lost its copy within the contract (`losses.rs`): it is acked by fewer than W
//!   from then on, and G1 promises only that it survives, not that R replicas without repair still meet it.
//! - What a delete hides, if the delete wins: that is G10's (`resurrection.rs`). A scan leaves a deleted key out; a get shows the
//!   delete itself, and nothing only if it may be gone with proof ([`Facts::may_be_hidden`]).
//! - Reads as of a stamp at which the keyspace's retention may have dropped what there was ([`Facts::may_be_dropped`]).
//!
//! A read as of a stamp shows nothing newer.

use starling_clock::Stamp;
use starling_storage::Action;

use super::facts::{Acked, KeyOf, OfKey, ReadOf, Told};
use super::losses::Loss;
use super::{Facts, Guarantee, REPORTED_MAX, Violation};
use crate::history::Ask;

/// Something that a later read must not fall behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Established {
    /// The operation that proves it: a write or an earlier read.
    pub(super) index: usize,
    /// When that was answered.
    pub(super) to_us: u64,
    /// How many home replicas have it.
    pub(super) count: u8,
    pub(super) stamp: Stamp,
    pub(super) action: Action,
    loss: Loss,
}

/// A read that shows something older than what was established before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) read: ReadOf,
    pub(super) before: Established,
}

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, of_key) in &facts.keys {
        violations.extend(of_key.reads.iter().find_map(|read| too_new(facts, *key, read)));
        for stale in stale_reads(facts, *key, of_key) {
            if stale.before.action == Action::Delete {
                continue;
            }
            violations.push(violation(facts, Guarantee::Read, *key, &stale));
        }
        if REPORTED_MAX <= violations.len() {
            break;
        }
    }
    violations
}

pub(super) fn violation(
    facts: &Facts<'_>,
    guarantee: Guarantee,
    (_, key): KeyOf<'_>,
    stale: &Stale,
) -> Violation {
    let Stale { read, before } = stale;
    let told = match read.told {
        Told::Newest(stamp, _) => stamp.to_string(),
        Told::Nothing => "nothing".to_owned(),
        Told::NotLive => "no row".to_owned(),
    };
    let what = format!(
        "a read of {} shows {told}, though {} was known to {} home replicas before it began",
        key.escape_ascii(),
        before.stamp,
        before.count,
    );
    let evidence = vec![facts.line(before.index), facts.line(read.index)];
    Violation { guarantee, at_us: read.to_us, what, evidence }
}

/// A read as of a stamp that shows a later event.
fn too_new(facts: &Facts<'_>, (_, key): KeyOf<'_>, read: &ReadOf) -> Option<Violation> {
    let (Some(at), Told::Newest(told, _)) = (read.at, read.told) else { return None };
    let what = format!("a read of {} as of {at} shows {told}", key.escape_ascii());
    let evidence = vec![facts.line(read.index)];
    (at < told).then_some(Violation {
        guarantee: Guarantee::Read,
        at_us: read.to_us,
        what,
        evidence,
    })
}

/// All reads of a key that fall behind, one witness each.
pub(super) fn stale_reads(facts: &Facts<'_>, key: KeyOf<'_>, of_key: &OfKey<'_>) -> Vec<Stale> {
    let Some(keyspace) = facts.history.keyspaces.get(key.0) else { return Vec::new() };
    let replication = usize::from(keyspace.replication);
    let established = established(of_key);
    let mut stale = Vec::new();
    // The greatest stamp that so many home replicas have, as of the read in hand.
    let mut floor = vec![Stamp::ZERO; replication + 1];
    let mut next = 0;
    for read in &of_key.reads {
        while let Some(known) = established.get(next).filter(|it| it.to_us <= read.from_us) {
            let count = usize::from(known.count).min(replication);
            floor[count] = floor[count].max(known.stamp);
            next += 1;
        }
        let least = (replication + 1).saturating_sub(usize::from(read.required));
        let behind = |stamp| is_behind(facts, key, of_key, read, stamp);
        // Reads as of a stamp need the exact events; they are few.
        let suspect = read.at.is_some() || floor[least..].iter().copied().any(behind);
        if !suspect {
            continue;
        }
        let witness = established[..next].iter().rev().find(|known| {
            least <= usize::from(known.count)
                && read.at.is_none_or(|at| known.stamp <= at)
                && behind(known.stamp)
                && is_kept(facts, key, known, read)
                && (read.at.is_none() || !facts.may_be_dropped(key, known.stamp, read.to_us))
        });
        if let Some(&before) = witness {
            stale.push(Stale { read: *read, before });
            if REPORTED_MAX <= stale.len() {
                break;
            }
        }
    }
    stale
}

/// No home replica can have lost it within the contract by the end of the read.
fn is_kept(facts: &Facts<'_>, key: KeyOf<'_>, known: &Established, read: &ReadOf) -> bool {
    let Some(partition) = partition_of(facts, known.index) else { return false };
    let loss = Loss { until_us: read.to_us, ..known.loss };
    facts.losses.none(facts.history.homes(key.0, partition), &loss)
}

fn partition_of(facts: &Facts<'_>, index: usize) -> Option<u32> {
    match &facts.history.operations[index].ask {
        Ask::Write { partition, .. }
        | Ask::Get { partition, .. }
        | Ask::Versions { partition, .. } => Some(*partition),
        Ask::Scan { .. } | Ask::Create { .. } => None,
    }
}

/// Whether the read shows less than this stamp.
fn is_behind(
    facts: &Facts<'_>,
    key: KeyOf<'_>,
    of_key: &OfKey<'_>,
    read: &ReadOf,
    stamp: Stamp,
) -> bool {
    let gone = |index: &usize| {
        let partition = partition_of(facts, *index);
        partition.is_some_and(|it| facts.may_be_hidden(key, it, stamp, read.to_us))
    };
    match read.told {
        Told::Newest(told, _) => told < stamp,
        Told::Nothing => Stamp::ZERO < stamp && !of_key.deletes.first().is_some_and(gone),
        Told::NotLive => {
            Stamp::ZERO < stamp && !of_key.deletes.iter().any(|it| hides(facts, *it, read, stamp))
        }
    }
}

/// A delete that a scan may have seen as the newest event: one that was seen at or above the stamp, or was never seen, so that
/// nobody can say what its stamp was.
fn hides(facts: &Facts<'_>, delete: usize, read: &ReadOf, stamp: Stamp) -> bool {
    let delete = &facts.history.operations[delete];
    let mut sightings = facts.sightings(delete.request).peekable();
    delete.from_us <= read.to_us
        && delete.may_have_happened()
        && (sightings.peek().is_none() || sightings.any(|sighting| stamp <= sighting))
}

/// What writes and reads of a key prove, by the time at which they do.
fn established(of_key: &OfKey<'_>) -> Vec<Established> {
    let mut established: Vec<Established> = of_key.acked.iter().map(of_write).collect();
    for read in &of_key.reads {
        let Told::Newest(stamp, action) = read.told else { continue };
        let (index, to_us, count) = (read.index, read.to_us, read.required);
        let loss = Loss {
            stamp,
            from_us: read.from_us,
            acked_us: to_us,
            until_us: u64::MAX,
            required: count,
            // The version may be of a write whose durability was `interval`.
            interval: of_key.interval,
        };
        established.push(Established { index, to_us, count, stamp, action, loss });
    }
    established.sort_by_key(|known| known.to_us);
    established
}

fn of_write(acked: &Acked<'_>) -> Established {
    let Acked { index, to_us, stamp, action, .. } = *acked;
    let loss = acked.loss(u64::MAX);
    Established { index, to_us, count: acked.required, stamp, action, loss }
}

#[cfg(test)]
mod tests {
    use starling_client::wire::{Durability, Level};

    use super::super::testing::{Builder, KEYSPACE, stamp};
    use super::*;
    use crate::history::{IncidentKind, Reply};

    #[test]
    fn reads_that_overlap_writes_may_show_either() {
        let mut builder = Builder::new();
        let old = builder.put("k", 1, 0..10, 100);
        let new = builder.put("k", 1, 20..40, 200);
        builder.get("k", 2, 30..50, Some(old));
        builder.get("k", 2, 35..50, Some(new));
        builder.passes(check);
    }

    #[test]
    fn an_acked_write_is_read() {
        let mut builder = Builder::new();
        let old = builder.put("k", 1, 0..10, 100);
        builder.put("k", 1, 20..40, 200);
        builder.get("k", 2, 40..50, Some(old));
        builder.fails(check, Guarantee::Read, "k shows 100.0@1, though 200.0@1");
    }

    #[test]
    fn true_time_judges_not_stamps() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        // Its stamp is lower although it came later: the first one is read and that is right.
        let first = builder.seen(0, stamp(100, 1));
        builder.put("k", 2, 20..30, 50);
        builder.get("k", 2, 40..50, Some(first));
        builder.passes(check);
    }

    #[test]
    fn what_was_read_stays_read() {
        let mut builder = Builder::new();
        let old = builder.put("k", 1, 0..10, 100);
        let lost = builder.lost_put("k", 1, 20..90);
        let new = builder.seen(lost, stamp(200, 1));
        builder.get("k", 2, 40..50, Some(new));
        builder.get("k", 3, 60..70, Some(old));
        builder.fails(check, Guarantee::Read, "shows 100.0@1");
    }

    #[test]
    fn a_read_of_nothing_and_a_scan_without_the_row_are_stale_too() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.get("k", 2, 40..50, None);
        builder.fails(check, Guarantee::Read, "shows nothing");
        let mut builder = Builder::new();
        let seen = builder.put("k", 1, 0..10, 100);
        builder.put("l", 1, 12..15, 110);
        builder.scan(2, 40..50, vec![("k", seen)]);
        builder.fails(check, Guarantee::Read, "l shows no row");
    }

    #[test]
    fn a_delete_explains_a_missing_row() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        builder.delete("k", 1, 20..30, 200);
        builder.scan(2, 40..50, Vec::new());
        builder.passes(check);
        builder.put("k", 1, 60..70, 300);
        builder.scan(2, 80..90, Vec::new());
        builder.fails(check, Guarantee::Read, "k shows no row, though 300.0@1");
    }

    #[test]
    fn low_levels_promise_nothing() {
        let mut builder = Builder::new();
        builder.put("k", 1, 0..10, 100);
        let ask = Ask::Get { key: "k".into(), partition: 0, at: None, level: Some(Level::One) };
        builder.operation(2, 20..30, ask, Reply::Value(None));
        builder.passes(check);
    }

    #[test]
    fn a_lost_disk_excuses_and_a_crash_does_not() {
        let stale = || {
            let mut builder = Builder::new();
            builder.put("k", 1, 0..10, 100);
            builder.get("k", 2, 40..50, None);
            builder
        };
        let mut crashed = stale();
        crashed.incident(20, 1, IncidentKind::Crashed { power: true });
        crashed.fails(check, Guarantee::Read, "nothing");
        let mut wiped = stale();
        wiped.incident(20, 1, IncidentKind::Wiped);
        wiped.passes(check);
        let mut wiped_later = stale();
        wiped_later.incident(60, 1, IncidentKind::Wiped);
        wiped_later.fails(check, Guarantee::Read, "nothing");
        let mut lazy = stale();
        lazy.incident(20, 1, IncidentKind::Crashed { power: true });
        lazy.history.keyspaces.get_mut(KEYSPACE).unwrap().durability = Durability::Interval;
        lazy.passes(check);
    }

    #[test]
    fn reads_as_of_a_stamp_are_held_to_what_lies_before_it() {
        let mut builder = Builder::new();
        let old = builder.put("k", 1, 0..10, 100);
        builder.put("k", 1, 20..30, 200);
        let get = |at| Ask::Get { key: "k".into(), partition: 0, at: Some(at), level: None };
        builder.operation(2, 40..50, get(stamp(150, 9)), Reply::Value(Some(old.clone())));
        builder.passes(check);
        builder.operation(2, 60..70, get(stamp(250, 9)), Reply::Value(Some(old)));
        builder.fails(check, Guarantee::Read, "200.0@1");
    }
}
