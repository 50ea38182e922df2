//! QUIC as Starling uses it, for clients and nodes: TLS, the endpoint, frames. `PROTOCOL.md` is the document.
//!
//! Architecture invariant: nobody else knows quinn's settings, and nothing here knows what a frame's body means.

pub mod endpoint;
pub mod frame;
pub mod outbox;
pub mod tls;

pub use endpoint::{KeptKeys, TransportOptions, bind, client_config, server_config};
pub use frame::{
    FRAME_SIZE_MAX, Frame, FrameDecoder, FrameError, FrameKind, FrameReader, HEADER_SIZE,
    LargeFrame, LargeFrameBudget, SHARED_FRAME_SIZE_MAX, encode_frame, write_frame,
};
pub use outbox::{OUTBOX_SIZE_DEFAULT, Outbox, PushError};
pub use tls::{Credentials, PeerIdentity, TlsError, TlsFiles, negotiated_protocol};
