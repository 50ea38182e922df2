//! All that a storage holds, as JSON lines: what a release wrote is compared with what a later one reads.

use std::fmt::Write as _;

use starling_clock::{NodeId, Stamp};
use starling_storage::{Disk, Error, Event, Order, Storage};

/// Targets of hints that are looked at.
pub(crate) const TARGETS: [NodeId; 2] = [NodeId(7), NodeId(9)];
/// Partitions that are looked at.
pub(crate) const PARTITIONS: u32 = 4;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn event_fields(event: &Event) -> String {
    let Event { partition, keyspace, key, stamp, request, action, payload } = event;
    format!(
        r#""partition":{partition},"keyspace":{},"key":"{}","stamp":"{stamp}","request":[{},{}],"action":"{action:?}","payload":"{}""#,
        keyspace.0,
        hex(key),
        request.client,
        request.sequence,
        hex(payload)
    )
}

/// One line for each event of the tree, each change, each hint, each named value, and some ways to read them.
pub(crate) fn lines<D: Disk>(storage: &Storage<D>) -> Result<Vec<String>, Error> {
    let view = storage.view();
    let mut lines = Vec::new();
    for partition in 0..PARTITIONS {
        let events = view.partition_events(partition, None, usize::MAX, usize::MAX)?.events;
        for event in &events {
            lines.push(format!("{{\"event\":{{{}}}}}", event_fields(event)));
        }
        let digest = view.digest(partition)?;
        lines.push(format!(
            r#"{{"digest":{partition},"events":{},"hash":"{:016x}"}}"#,
            digest.events, digest.hash
        ));
        for pair in
            events.chunk_by(|left, right| left.key == right.key && left.keyspace == right.keyspace)
        {
            let event = &pair[0];
            let newest = view.get(partition, event.keyspace, &event.key, Stamp::MAX)?;
            assert_eq!(newest.as_ref(), Some(event), "the newest comes first");
            let (from, to) = (Stamp::ZERO, Stamp::MAX);
            let order = Order::Descending;
            let versions = view
                .versions(
                    partition,
                    event.keyspace,
                    &event.key,
                    from,
                    to,
                    order,
                    usize::MAX,
                    usize::MAX,
                )?
                .events;
            assert_eq!(versions, pair, "versions are those of the partition");
        }
    }
    let (first, end) = storage.change_range();
    lines.push(format!(r#"{{"changes":[{first},{end}]}}"#));
    for change in view.changes(first, usize::MAX, usize::MAX)? {
        let previous = change.previous.map_or("null".to_owned(), |stamp| format!("\"{stamp}\""));
        lines.push(format!(
            r#"{{"change":{},"provenance":"{:?}","previous":{previous},"event":{{{}}}}}"#,
            change.sequence,
            change.provenance,
            event_fields(&change.event)
        ));
    }
    for target in TARGETS {
        for (number, event) in storage.hints(target, 0, usize::MAX)?.hints {
            lines.push(format!(
                r#"{{"hint":{number},"target":{},"event":{{{}}}}}"#,
                target.0,
                event_fields(&event)
            ));
        }
    }
    for (name, value) in storage.metas("") {
        lines.push(format!(r#"{{"value":"{name}","is":"{}"}}"#, hex(&value)));
    }
    Ok(lines)
}
