//! The format, held against FORMAT.md and against hostile bytes.

use std::fmt::Write;
use std::sync::Arc;

use proptest::prelude::*;
use starling_clock::{HybridTime, NodeId, Stamp};

use super::message::{self, Header, Message};
use super::push_pull::{self, Direction, PushPull};
use super::rumour::{REGISTER_INLINE_SIZE_MAX, Rumour};
use super::{DecodeError, RegisterView, StateView, VERSION, describe};
use crate::limits::{
    DATAGRAM_SIZE_MAX, EXTRA_SIZE_MAX, INCARNATION_MAX, MEMBERS_MAX, PULL_NAMES_MAX,
    PUSH_PULL_SIZE_MAX, REGISTER_NAME_SIZE_MAX, REGISTER_VALUE_SIZE_MAX, REGISTERS_MAX,
    SOFTWARE_SIZE_MAX, ZONE_SIZE_MAX,
};
use crate::{Member, NodeState, Register, Status};

const FORMAT: &str = include_str!("../../FORMAT.md");

/// The body rows of the table in the section, cell by cell.
fn table(section: &str) -> Vec<Vec<&'static str>> {
    let text = FORMAT.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Where a field begins and how long it is, by the table with offsets of a section.
fn place(section: &str, field: &str) -> std::ops::Range<usize> {
    let row = table(section).into_iter().find(|row| row[2] == field).unwrap();
    let (offset, size): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
    offset..offset + size
}

fn state() -> NodeState {
    NodeState {
        address: "10.0.0.2:7000".parse().unwrap(),
        zone: "a".into(),
        weight: 3,
        software: "0.1".into(),
        protocol: 1,
        epoch: 5,
        ring_digest: 0x0102_0304_0506_0708,
        load: 9,
        extra: b"hi".to_vec(),
    }
}

fn register() -> Register {
    let stamp = Stamp::new(HybridTime::new(1_000, 2), NodeId(1));
    Register { name: "k".into(), stamp, value: b"v".to_vec() }
}

fn header() -> Header {
    Header { sender: NodeId(1), incarnation: 4 }
}

fn example_datagram() -> Vec<u8> {
    let mut bytes = message::encode(header(), Message::ProbeFor { sequence: 7, target: NodeId(2) });
    let (node, by) = (NodeId(3), NodeId(1));
    let doubt = Rumour::Doubt { node, status: Status::Suspect, incarnation: 6, by };
    assert!(message::push_rumour(&mut bytes, &doubt));
    assert!(message::push_rumour(&mut bytes, &Rumour::Register(RegisterView::of(&register()))));
    bytes
}

fn example_answer() -> Vec<u8> {
    let member = Member {
        node: NodeId(2),
        status: Status::Dead,
        incarnation: 9,
        state_incarnation: 8,
        state: Arc::new(state()),
    };
    let (members, registers) = ([member], [register()]);
    push_pull::encode_knowledge(Direction::Answer, header(), 0, members.iter(), registers.iter())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(24) {
        text += "   ";
        for byte in line {
            write!(text, " {byte:02x}").unwrap();
        }
        text += "\n";
    }
    text
}

#[test]
fn format_md_examples_are_real() {
    for (title, bytes) in [("probe-for", example_datagram()), ("answer", example_answer())] {
        let text = hex(&bytes);
        assert!(FORMAT.contains(&text), "{title}: {}\n\n{text}", describe(&bytes).unwrap());
        assert!(FORMAT.contains(&describe(&bytes).unwrap()), "{}", describe(&bytes).unwrap());
    }
}

#[test]
fn format_md_offsets_are_where_the_fields_are() {
    let bytes = example_datagram();
    assert_eq!(bytes[place("Datagram", "version")], [VERSION]);
    assert_eq!(bytes[place("Datagram", "kind")], [3]);
    assert_eq!(bytes[place("Datagram", "count")], [2]);
    assert_eq!(bytes[place("Datagram", "sender")], 1_u64.to_le_bytes());
    assert_eq!(bytes[place("Datagram", "incarnation")], 4_u64.to_le_bytes());
    assert_eq!(bytes[place("Datagram", "sequence")], 7_u32.to_le_bytes());
    assert_eq!(bytes[place("Datagram", "target")], 2_u64.to_le_bytes());
    assert_eq!(place("Datagram", "target").end, message::SIZE_MAX);

    let bytes = example_answer();
    assert_eq!(bytes[place("Push-pull", "version")], [VERSION]);
    assert_eq!(bytes[place("Push-pull", "kind")], [17]);
    assert_eq!(bytes[place("Push-pull", "sender")], 1_u64.to_le_bytes());
    assert_eq!(bytes[place("Push-pull", "incarnation")], 4_u64.to_le_bytes());
    assert_eq!(bytes[place("Push-pull", "count")], 1_u32.to_le_bytes());
    let member = &bytes[place("Push-pull", "count").end..];
    assert_eq!(member[place("Member", "node")], 2_u64.to_le_bytes());
    assert_eq!(member[place("Member", "status")], [3]);
    assert_eq!(member[place("Member", "incarnation")], 9_u64.to_le_bytes());
    assert_eq!(member[place("Member", "state incarnation")], 8_u64.to_le_bytes());
}

#[test]
fn format_md_lists_of_fields_add_up() {
    // A state and a register are as long as the sizes in their tables, with the contents in place of `n`.
    let sum = |section: &str, contents: &[usize]| {
        let mut contents = contents.iter();
        let sizes = table(section).into_iter().map(|row| row[1].to_owned());
        let size = |text: String| text.parse().unwrap_or_else(|_| *contents.next().unwrap());
        sizes.map(size).sum::<usize>()
    };
    let mut bytes = Vec::new();
    StateView::of(&state()).encode(&mut bytes);
    assert_eq!(sum("State", &[4, 1, 3, 2]), bytes.len());
    assert_eq!(sum("Register", &[1, 1]), RegisterView::of(&register()).encoded_size());

    let doubts = table("Rumour").into_iter().filter(|row| row[1] == "25");
    let kinds: Vec<&str> = doubts.map(|row| row[0]).collect();
    assert_eq!(kinds, ["2", "3", "4"]);
    for number in 2..=4 {
        let status = Status::from_number(number).unwrap();
        let (node, by) = (NodeId(1), NodeId(2));
        let mut bytes = Vec::new();
        Rumour::Doubt { node, status, incarnation: 1, by }.encode(&mut bytes);
        assert_eq!((bytes[0], bytes.len()), (number, 25));
    }
}

#[test]
fn format_md_states_the_bounds() {
    let text = FORMAT.split_whitespace().collect::<Vec<_>>().join(" ");
    let grouped = |number: usize| {
        let digits = number.to_string();
        let mut groups: Vec<String> = Vec::new();
        for group in digits.as_bytes().rchunks(3).rev() {
            groups.push(String::from_utf8(group.to_vec()).unwrap());
        }
        groups.join(" ")
    };
    for (words, bound) in [
        ("datagrams, at most # bytes", DATAGRAM_SIZE_MAX),
        ("over a stream, at most # bytes", PUSH_PULL_SIZE_MAX),
        ("at most # (2^48)", usize::try_from(INCARNATION_MAX).unwrap()),
        ("kinds 16, 17; at most #)", MEMBERS_MAX),
        ("kind 18; at most #)", PULL_NAMES_MAX),
        ("their count, at most # |", REGISTERS_MAX),
        ("a register of at most # bytes", REGISTER_INLINE_SIZE_MAX),
        ("| zone length | 1 | at most # |", ZONE_SIZE_MAX),
        ("| software length | 1 | at most # |", SOFTWARE_SIZE_MAX),
        ("| extra length | 2 | at most # |", EXTRA_SIZE_MAX),
        ("| name length | 1 | 1 to # |", REGISTER_NAME_SIZE_MAX),
        ("| value length | 2 | at most # |", REGISTER_VALUE_SIZE_MAX),
    ] {
        let words = words.replace('#', &grouped(bound));
        assert!(text.contains(&words), "FORMAT.md does not say: {words}");
    }
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    for bytes in [example_datagram(), example_answer()] {
        assert!(describe(&bytes).is_ok());
        for cut in 0..bytes.len() {
            assert!(describe(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(describe(&longer).is_err());
    }
}

#[test]
fn bounds_are_refused_by_name() {
    let datagram = |at: usize, with: &[u8]| {
        let mut bytes = example_datagram();
        bytes[at..at + with.len()].copy_from_slice(with);
        message::decode(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(datagram(0, &[2]), DecodeError::Version(2));
    assert_eq!(datagram(1, &[9]), DecodeError::Malformed("message kind"));
    assert_eq!(datagram(2, &[255]), DecodeError::Short);
    let over = (INCARNATION_MAX + 1).to_le_bytes();
    assert_eq!(datagram(11, &over), DecodeError::Malformed("incarnation"));
    assert_eq!(datagram(31, &[77]), DecodeError::Malformed("rumour kind"));
    // The register's name: its length, then what it holds.
    assert_eq!(datagram(57, &[0]), DecodeError::Malformed("register name"));
    assert_eq!(datagram(57, &[200]), DecodeError::Malformed("register name"));
    assert_eq!(datagram(58, &[0xff]), DecodeError::Malformed("register name"));
    assert_eq!(datagram(59, &[0xff]), DecodeError::Malformed("stamp"));
    assert_eq!(datagram(75, &[0xff, 0xff]), DecodeError::Malformed("register value"));
    let long = vec![0; DATAGRAM_SIZE_MAX + 1];
    let (size, limit) = (DATAGRAM_SIZE_MAX + 1, DATAGRAM_SIZE_MAX);
    assert_eq!(message::decode(&long).unwrap_err(), DecodeError::TooLong { size, limit });

    let answer = |at: usize, with: &[u8]| {
        let mut bytes = example_answer();
        bytes[at..at + with.len()].copy_from_slice(with);
        push_pull::decode(&bytes).map(|_| ()).unwrap_err()
    };
    // A count of 2^32 - 1, one over the bound, and one within it that the bytes cannot hold.
    assert_eq!(answer(18, &[0xff; 4]), DecodeError::Malformed("count"));
    let over = u32::try_from(MEMBERS_MAX + 1).unwrap().to_le_bytes();
    let within = u32::try_from(MEMBERS_MAX).unwrap().to_le_bytes();
    assert_eq!(answer(18, &over), DecodeError::Malformed("count"));
    assert_eq!(answer(18, &within), DecodeError::Short);
    assert_eq!(answer(30, &[0]), DecodeError::Malformed("status"));
    assert_eq!(answer(30, &[1]), DecodeError::Malformed("state incarnation"));
    assert_eq!(answer(39, &[10]), DecodeError::Malformed("state incarnation"));
    assert_eq!(answer(47, &[5]), DecodeError::Malformed("address family"));
    assert_eq!(answer(54, &[65]), DecodeError::Malformed("zone"));
    assert_eq!(answer(60, &[33]), DecodeError::Malformed("software"));
    let long = vec![VERSION; PUSH_PULL_SIZE_MAX + 1];
    let (size, limit) = (PUSH_PULL_SIZE_MAX + 1, PUSH_PULL_SIZE_MAX);
    assert_eq!(push_pull::decode(&long).unwrap_err(), DecodeError::TooLong { size, limit });
}

#[test]
fn a_pull_names_no_more_than_it_may() {
    let names: Vec<String> = (0..PULL_NAMES_MAX + 9).map(|at| format!("name-{at}")).collect();
    let bytes = push_pull::encode_pull(header(), names.iter().map(String::as_str));
    let (_, PushPull::Pull(decoded)) = push_pull::decode(&bytes).unwrap() else { panic!() };
    assert_eq!(decoded, names[..PULL_NAMES_MAX]);
}

#[test]
fn the_largest_state_rides_with_the_largest_message() {
    let state = NodeState {
        address: "[ff::1]:7000".parse().unwrap(),
        zone: "z".repeat(ZONE_SIZE_MAX),
        software: "s".repeat(SOFTWARE_SIZE_MAX),
        extra: vec![1; EXTRA_SIZE_MAX],
        ..state()
    };
    state.check().unwrap();
    let mut bytes = message::encode(header(), Message::ProbeFor { sequence: 7, target: NodeId(2) });
    let state = StateView::of(&state);
    assert!(message::push_rumour(
        &mut bytes,
        &Rumour::Alive { node: NodeId(2), incarnation: 1, state }
    ));
}

fn any_state() -> impl Strategy<Value = NodeState> {
    let address = (any::<std::net::IpAddr>(), any::<u16>()).prop_map(Into::into);
    let numbers = any::<(u32, u16, u64, u64, u32)>();
    let extra = prop::collection::vec(any::<u8>(), 0..=EXTRA_SIZE_MAX);
    (address, "[a-z]{0,64}", "[0-9.]{0,32}", numbers, extra).prop_map(
        |(address, zone, software, (weight, protocol, epoch, ring_digest, load), extra)| {
            NodeState { address, zone, weight, software, protocol, epoch, ring_digest, load, extra }
        },
    )
}

fn any_stamp() -> impl Strategy<Value = Stamp> {
    let time = (0..=HybridTime::PHYSICAL_MS_MAX, any::<u16>());
    (time, any::<u64>())
        .prop_map(|((ms, logical), node)| Stamp::new(HybridTime::new(ms, logical), NodeId(node)))
}

fn any_register() -> impl Strategy<Value = Register> {
    let value = prop::collection::vec(any::<u8>(), 0..600);
    ("[a-z]{1,128}", any_stamp(), value).prop_map(|(name, stamp, value)| Register {
        name,
        stamp,
        value,
    })
}

fn any_member() -> impl Strategy<Value = Member> {
    let incarnations = (0..=INCARNATION_MAX, 0..=INCARNATION_MAX);
    (any::<u64>(), 1..=4_u8, incarnations, any_state()).prop_map(|(node, status, (a, b), state)| {
        let status = Status::from_number(status).unwrap();
        let incarnation = a.max(b);
        let state_incarnation = if status == Status::Alive { incarnation } else { a.min(b) };
        let state = Arc::new(state);
        Member { node: NodeId(node), status, incarnation, state_incarnation, state }
    })
}

proptest! {
    #[test]
    fn states_and_registers_return(state in any_state(), register in any_register()) {
        prop_assert_eq!(StateView::of(&state).to_state(), state.clone());
        let registers = [register];
        let bytes = push_pull::encode_knowledge(
            Direction::Request, header(), 0, std::iter::empty(), registers.iter());
        let (_, message) = push_pull::decode(&bytes).unwrap();
        let PushPull::Request(knowledge) = message else { panic!() };
        prop_assert_eq!(knowledge.registers[0].to_register(), registers[0].clone());
    }

    #[test]
    fn push_pulls_return(
        members in prop::collection::vec(any_member(), 0..8),
        registers in prop::collection::vec(any_register(), 0..4),
    ) {
        let bytes = push_pull::encode_knowledge(
            Direction::Answer, header(), 0, members.iter(), registers.iter());
        let (decoded, message) = push_pull::decode(&bytes).unwrap();
        prop_assert_eq!(decoded, header());
        let PushPull::Answer(knowledge) = message else { panic!() };
        let views: Vec<_> = members.iter().map(push_pull::MemberView::of).collect();
        prop_assert_eq!(knowledge.members, views);
        prop_assert_eq!(knowledge.registers.len(), registers.len());
    }

    #[test]
    fn datagrams_return(
        kind in 0..5, sequence in any::<u32>(), target in any::<u64>(),
        members in prop::collection::vec(any_member(), 0..8), register in any_register(),
    ) {
        let message = match kind {
            0 => Message::Probe { sequence },
            1 => Message::Ack { sequence },
            2 => Message::ProbeFor { sequence, target: NodeId(target) },
            3 => Message::Nack { sequence },
            _ => Message::Gossip,
        };
        let view = RegisterView::of(&register);
        let mut rumours = vec![
            Rumour::Register(view), Rumour::Notice { name: view.name, stamp: view.stamp }];
        for &Member { node, status, incarnation, ref state, .. } in &members {
            let (state, by) = (StateView::of(state), NodeId(target));
            rumours.push(match status {
                Status::Alive => Rumour::Alive { node, incarnation, state },
                _ => Rumour::Doubt { node, status, incarnation, by },
            });
        }
        let mut bytes = message::encode(header(), message);
        rumours.retain(|rumour| message::push_rumour(&mut bytes, rumour));
        prop_assert!(bytes.len() <= DATAGRAM_SIZE_MAX);
        prop_assert_eq!(message::decode(&bytes), Ok((header(), message, rumours)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = message::decode(&bytes);
        let _ = push_pull::decode(&bytes);
    }

    /// What decodes, encodes to the same bytes: nothing in a message is without a meaning.
    #[test]
    fn mutated_bytes_never_panic_and_mean_what_they_say(
        is_datagram in any::<bool>(), at in any::<prop::sample::Index>(), with in any::<u8>(),
    ) {
        let mut bytes = if is_datagram { example_datagram() } else { example_answer() };
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok((header, message, rumours)) = message::decode(&bytes) {
            let mut again = message::encode(header, message);
            for rumour in &rumours {
                prop_assert!(message::push_rumour(&mut again, rumour));
            }
            prop_assert_eq!(&again, &bytes);
        }
        if let Ok((header, PushPull::Answer(knowledge))) = push_pull::decode(&bytes) {
            let owned = |view: &push_pull::MemberView<'_>| Member {
                node: view.node,
                status: view.status,
                incarnation: view.incarnation,
                state_incarnation: view.state_incarnation,
                state: Arc::new(view.state.to_state()),
            };
            let members: Vec<Member> = knowledge.members.iter().map(owned).collect();
            let registers: Vec<Register> =
                knowledge.registers.iter().map(|view| view.to_register()).collect();
            let again = push_pull::encode_knowledge(
                Direction::Answer, header, 0, members.iter(), registers.iter());
            prop_assert_eq!(&again, &bytes);
        }
    }
}
