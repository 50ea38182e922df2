//! [`PageBuilder`]: the events of a page, whose keys and small payloads share buffers.
//!
//! Invariants:
//!
//! - An event keeps about [`BUFFER_SIZE`] in memory besides itself, at most.
//! - A large payload is not copied.
//!
//! A page of small events costs an allocation for some hundred events, in place of two for each.

use bytes::Bytes;

use crate::event::{Event, EventRef};

/// Payloads up to this are copied.
pub(super) const SMALL_PAYLOAD_MAX: usize = 2048;
/// A buffer of this size takes no further event.
const BUFFER_SIZE: usize = 16 << 10;

/// See the file's head.
#[derive(Default)]
pub(super) struct PageBuilder {
    events: Vec<Event>,
    buffer: Vec<u8>,
    /// Where key and payload of the last events end in the buffer; their events have none yet.
    ends: Vec<(usize, usize)>,
}

impl PageBuilder {
    /// Appends the event; `payload`: its payload, if that can be shared.
    pub(super) fn push(&mut self, event: EventRef<'_>, payload: Option<Bytes>) {
        self.buffer.extend_from_slice(event.key);
        let key_end = self.buffer.len();
        if payload.is_none() {
            self.buffer.extend_from_slice(event.payload);
        }
        self.ends.push((key_end, self.buffer.len()));
        self.events.push(event.with(Bytes::new(), payload.unwrap_or_default()));
        if BUFFER_SIZE <= self.buffer.len() {
            self.end_buffer();
        }
    }

    /// The events.
    pub(super) fn finish(mut self) -> Vec<Event> {
        self.end_buffer();
        self.events
    }

    fn end_buffer(&mut self) {
        let buffer = Bytes::from(std::mem::take(&mut self.buffer));
        let first = self.events.len() - self.ends.len();
        let mut start = 0;
        for (event, (key_end, end)) in self.events[first..].iter_mut().zip(self.ends.drain(..)) {
            event.key = buffer.slice(start..key_end);
            if key_end < end {
                event.payload = buffer.slice(key_end..end);
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::tests::any_event;

    proptest! {
        #[test]
        fn a_page_is_the_events_that_were_pushed(
            events in prop::collection::vec((any_event(), 0..3_usize, any::<bool>()), 0..60),
        ) {
            let mut page = PageBuilder::default();
            let mut wanted = Vec::new();
            for (mut event, times, share) in events {
                event.payload = event.payload.repeat(1 << (4 * times)).into();
                page.push(event.borrow(), share.then(|| event.payload.clone()));
                wanted.push(event);
            }
            prop_assert_eq!(page.finish(), wanted);
        }
    }
}
