//! `FORMAT.md` is what the code does: its tables of fields are the code's, its worked bytes are encoded anew, and a
//! table and a manifest written by an earlier build are read.

use super::*;
use crate::tree::manifest::{Edit, RECORD_LAYOUT, TableEntry, encode_header};
use crate::tree::stored::Stored;
use crate::tree::table::formats;

const DOCUMENT: &str = include_str!("../../../FORMAT.md");

/// The part of the document under this heading.
fn section(heading: &str) -> &'static str {
    let start = format!("# {heading}\n");
    let at = DOCUMENT.find(&format!("\n{start}")).map(|at| at + 1);
    let at =
        at.or_else(|| DOCUMENT.starts_with(&start).then_some(0)).expect("the section is there");
    let body = &DOCUMENT[at + start.len()..];
    body.find("\n# ").map_or(body, |end| &body[..end])
}

/// Name, offset and size of each row of the section's table; rows of variable size are left out.
fn rows(section: &str) -> Vec<(String, usize, usize)> {
    let lines = section.lines().filter(|line| line.starts_with('|'));
    lines
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Some((cells[3].to_owned(), cells[1].parse().ok()?, cells[2].parse().ok()?))
        })
        .collect()
}

/// The bytes of the indented lines of a section, one block of lines an example.
fn examples(section: &str) -> Vec<Vec<u8>> {
    let mut examples = vec![Vec::new()];
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(line) => {
                let hex = line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
                examples.last_mut().unwrap().extend(hex.map(|byte| byte.expect("a byte in hex")));
            }
            None => examples.push(Vec::new()),
        }
    }
    examples.retain(|example| !example.is_empty());
    examples
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_example(heading: &str, index: usize, bytes: &[u8]) {
    assert_eq!(hex(&examples(section(heading))[index]), hex(bytes), "example of {heading}");
}

#[test]
fn tables_of_fields_are_those_of_the_code() {
    let stored = &stored::LAYOUT[..];
    let layouts = [
        ("Stored value", stored),
        ("Table block", &formats::BLOCK_LAYOUT),
        ("Table partitions", &formats::PARTITIONS_LAYOUT),
        ("Table footer", &formats::FOOTER_LAYOUT),
        ("Manifest", &RECORD_LAYOUT),
    ];
    for (heading, layout) in layouts {
        let code: Vec<_> =
            layout.iter().map(|&(name, offset, size)| (name.to_owned(), offset, size)).collect();
        assert_eq!(rows(section(heading)), code, "{heading}");
        layout.iter().fold(0, |at, &(name, offset, size)| {
            assert_eq!(at, offset, "no gap, no overlap before {name}");
            offset + size
        });
    }
}

#[test]
fn an_internal_key_is_as_documented() {
    let stamp = Stamp::new(HybridTime::new(1000, 2), NodeId(7));
    let key = internal_key::encode(3, KeyspaceId(0x0102), b"a\0b", stamp);
    assert_example("Internal key", 0, &key);
}

#[test]
fn a_stored_value_is_as_documented() {
    let request = RequestId { client: 9, sequence: 2 };
    let stored = Stored { action: Action::Put, request, payload: Bytes::from_static(b"hi") };
    let stored = stored.borrow();
    assert_example("Stored value", 0, &[&stored.header()[..], stored.payload].concat());
    let short = stored.short_header();
    assert_example("Stored value", 1, &[short.as_bytes(), stored.payload].concat());
}

#[test]
fn a_block_and_its_entries_are_as_documented() {
    let entries = formats::example_entries();
    assert_example("Table entries", 0, &entries);
    assert_example("Table block", 0, &formats::example_block(&entries));
}

#[test]
fn partitions_are_as_documented() {
    assert_example("Table partitions", 0, &formats::example_partitions());
}

#[test]
fn a_footer_is_as_documented() {
    assert_example("Table footer", 0, &formats::example_footer());
}

#[test]
fn a_manifest_is_as_documented() {
    let mut bytes = Vec::new();
    encode_header(&mut bytes);
    Edit { next_table: 1, ..Edit::default() }.encode(1, &mut bytes);
    let added = vec![TableEntry { number: 1, run: 1, size: 400 }];
    let floors = BTreeMap::from([(3, stamp(5))]);
    let edit = Edit { flushed: Lsn(12), next_table: 2, added, floors, ..Edit::default() };
    edit.encode(2, &mut bytes);
    let dropped = BTreeMap::from([(5, Dropped { up_to: Lsn(20), changes: 18 })]);
    let hidden = BTreeSet::from([(1, 5)]);
    let edit = Edit { flushed: Lsn(12), next_table: 2, dropped, hidden, ..Edit::default() };
    edit.encode(3, &mut bytes);
    assert_example("Manifest", 0, &bytes);
}

/// The files of this test are those of format version 1, each written once: they are read for ever.
#[test]
fn files_of_version_1_are_read() {
    let examples = examples(section("Example of a tree"));
    let (trees, []) = examples.as_chunks::<2>() else { panic!("each a manifest and a table") };
    assert_eq!(trees.len(), 2);
    for [manifest, table] in trees {
        let disk = Arc::new(SimDisk::new(1));
        disk.create_dir("tables").unwrap();
        disk.replace("tables/MANIFEST", manifest);
        disk.replace("tables/0000000000000001.table", table);
        let tree = open(&disk);
        assert_eq!(tree.flushed(), Lsn(3));
        let wanted = [delete("a", 2), put("a", 1), put("b", 1)];
        assert_eq!(tree.view().partition_events(0, None, ALL).unwrap().events, wanted);
    }
}

/// What is written today is, byte for byte, what is documented. Should another release of lz4 write other bytes, they
/// are a further example: those of today must still be read.
#[test]
fn a_tree_is_as_documented() {
    let disk = Arc::new(SimDisk::new(1));
    let mut tree = open(&disk);
    for event in [put("a", 1), put("b", 1), delete("a", 2)] {
        tree.insert(&event);
    }
    tree.rotate(Lsn(3));
    settle(&mut tree, 0, &Retentions::default());
    for (index, file) in [(2, "tables/MANIFEST"), (3, "tables/0000000000000001.table")] {
        assert_example("Example of a tree", index, &disk.contents(file).unwrap());
    }
}
