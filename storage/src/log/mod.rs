//! What the three logs (write-ahead log, change log, hints) have in common: numbered records, batched in frames, in
//! segments.

mod frame;
mod inspect;
mod log_write;
mod past_damage;
mod reader;
mod record_log;
mod recover;
mod segment;

#[cfg(test)]
pub(crate) use frame::FRAME_LAYOUT;
pub(crate) use frame::{
    FRAME_HEADER_SIZE, FRAME_RECORDS_TARGET, FrameHead, FrameRef, Record, encode_frame,
};
#[cfg(feature = "fuzzing")]
pub(crate) use frame::{decode_frame, find_proof};
pub(crate) use inspect::{LogExtent, LogItem, reason, walk_log};
pub(crate) use log_write::LogWrite;
pub(crate) use past_damage::PastDamage;
pub(crate) use reader::LogReader;
pub(crate) use record_log::{LogOptions, LogSegment, Mark, RecordLog};
pub(crate) use recover::{Recovered, recover};
pub(crate) use segment::{
    LogKind, Segment, SegmentHead, list_segments, parse_segment_name, remove_durably, spare_path,
    write_failed,
};
#[cfg(test)]
pub(crate) use segment::{SEGMENT_LAYOUT, encode_segment_header};
