//! A message in words, for logs and transcripts.
//!
//! Invariants:
//!
//! - One message is one line.
//!
//! Nothing reads these words back.

use std::fmt::Write;

use super::message::Message;
use super::push_pull::{Knowledge, PushPull};
use super::rumour::Rumour;
use super::{DecodeError, message, push_pull};

/// What a datagram or a message over a stream says, in one line.
///
/// # Errors
/// [`DecodeError`] if it is neither.
pub fn describe(bytes: &[u8]) -> Result<String, DecodeError> {
    // The kinds of the two are apart, so a message is never both.
    let Ok((header, message)) = push_pull::decode(bytes) else {
        return describe_datagram(bytes);
    };
    let incarnation = header.incarnation;
    Ok(match message {
        PushPull::Request(knowledge) => {
            format!("push-pull (as {incarnation}){}", describe_knowledge(&knowledge))
        }
        PushPull::Answer(knowledge) => {
            format!("answer (as {incarnation}){}", describe_knowledge(&knowledge))
        }
        PushPull::Pull(names) => format!("pull (as {incarnation}) {}", names.join(" ")),
    })
}

fn describe_datagram(bytes: &[u8]) -> Result<String, DecodeError> {
    let (header, message, rumours) = message::decode(bytes)?;
    let mut words = match message {
        Message::Probe { sequence } => format!("probe {sequence:08x}"),
        Message::Ack { sequence } => format!("ack {sequence:08x}"),
        Message::ProbeFor { sequence, target } => format!("probe-for {sequence:08x} {target}"),
        Message::Nack { sequence } => format!("nack {sequence:08x}"),
        Message::Gossip => "gossip".to_owned(),
    };
    // Writing to a string does not fail.
    let _ = write!(words, " (as {})", header.incarnation);
    for rumour in &rumours {
        let _ = match *rumour {
            Rumour::Alive { node, incarnation, .. } => {
                write!(words, " [{node} alive {incarnation}]")
            }
            Rumour::Doubt { node, status, incarnation, by } => {
                write!(words, " [{node} {status} {incarnation} by {by}]")
            }
            Rumour::Register(register) => {
                write!(
                    words,
                    " [{} = {} bytes at {}]",
                    register.name,
                    register.value.len(),
                    register.stamp
                )
            }
            Rumour::Notice { name, stamp } => write!(words, " [{name} at {stamp}]"),
        };
    }
    Ok(words)
}

fn describe_knowledge(knowledge: &Knowledge<'_>) -> String {
    let mut words = String::new();
    for member in &knowledge.members {
        let _ = write!(words, " [{} {} {}]", member.node, member.status, member.incarnation);
    }
    for register in &knowledge.registers {
        let size = register.value.len();
        let _ = write!(words, " [{} = {size} bytes at {}]", register.name, register.stamp);
    }
    words
}
