//! What the three logs (write-ahead log, change log, hints) have in common: numbered frames in segments.

mod frame;
mod inspect;
mod record_log;
mod segment;

pub(crate) use frame::FRAME_HEADER_SIZE;
#[cfg(test)]
pub(crate) use frame::FRAME_LAYOUT;
pub(crate) use frame::{Frame, begin_frame, finish_frame};
#[cfg(feature = "fuzzing")]
pub(crate) use frame::{decode_frame, proves_durable};
pub(crate) use inspect::{LogExtent, LogItem, reason, walk_log};
pub(crate) use record_log::{LogOptions, LogReader, LogSegment, Mark, RecordLog};
pub(crate) use segment::SEGMENT_HEADER_SIZE;
pub(crate) use segment::{LogKind, Segment, list_segments, remove_durably, write_failed};
#[cfg(test)]
pub(crate) use segment::{SEGMENT_LAYOUT, encode_segment_header};
