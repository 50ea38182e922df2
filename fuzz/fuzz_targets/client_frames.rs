//! Bytes of a stream, in pieces, and the messages in its frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_client::codec;
use starling_client::transport::{FrameDecoder, FrameKind};
use starling_client::wire::{ChangesItem, ChangesRequest, Request, Response, WireError};

fuzz_target!(|data: &[u8]| {
    let Some((&piece, stream)) = data.split_first() else { return };
    let mut decoder = FrameDecoder::new(64 << 10);
    for piece in stream.chunks(usize::from(piece).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some(frame)) => match frame.kind {
                    FrameKind::Request => drop(codec::decode::<Request>(frame.body)),
                    FrameKind::Response => {
                        drop(codec::decode::<Result<Response, WireError>>(frame.body))
                    }
                    FrameKind::ChangesRequest => drop(codec::decode::<ChangesRequest>(frame.body)),
                    FrameKind::ChangesItem => drop(codec::decode::<ChangesItem>(frame.body)),
                    _ => {}
                },
            }
        }
    }
});
