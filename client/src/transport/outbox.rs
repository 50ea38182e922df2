//! [`Outbox`]: frames that wait for their stream, gathered into one write.
//!
//! Invariants:
//!
//! - Frames are gathered in one buffer while the writer's task sleeps or writes another, and leave in one write when it
//!   runs: under load many to a packet, alone without delay. No timer, no sleep.
//! - No more bytes wait than the bound and one frame: [`Outbox::try_push`] refuses, [`Outbox::push`] waits.
//! - A frame over [`SHARED_FRAME_SIZE_MAX`] leaves on a unidirectional stream of its own; its bytes count until QUIC
//!   has taken them.
//! - After the stream is lost nothing is taken any more, and whoever waits for room is told.
//!
//! It does not know whether the peer got a frame. The writer's task ends when all outboxes of it are dropped.

use std::sync::{Arc, Mutex, MutexGuard};

use quinn::{Connection, SendStream, VarInt};
use tokio::sync::Notify;

use super::frame::{FrameKind, SHARED_FRAME_SIZE_MAX, encode_frame};

/// Bytes that may wait by default.
pub const OUTBOX_SIZE_DEFAULT: usize = 8 << 20;
/// A buffer over this size is not used again.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// Why a frame was not taken. None of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// As many bytes wait as may.
    #[error("the queue of frames is full")]
    Full,
    /// The stream is lost or closed.
    #[error("the stream is closed")]
    Closed,
}

/// Puts frames on a stream. Clones share the stream.
#[derive(Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or an end to it.
    work: Notify,
    /// Bytes were written, or no more will be.
    room: Notify,
    size_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Small frames, one after the other.
    small: Vec<u8>,
    large: Vec<Vec<u8>>,
    /// Bytes of frames that were pushed and that QUIC has not taken.
    waiting: usize,
    /// Handles to this outbox.
    handles: usize,
    /// No more is taken; the rest is still written.
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn written(&self, bytes: usize) {
        let mut state = self.state();
        let was_full = state.waiting >= self.size_max;
        state.waiting -= bytes;
        let has_room = state.waiting < self.size_max;
        drop(state);
        if was_full && has_room {
            self.room.notify_waiters();
        }
    }

    fn close(&self) {
        self.state().closed = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }
}

impl Clone for Outbox {
    fn clone(&self) -> Self {
        self.shared.state().handles += 1;
        Self { shared: self.shared.clone() }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.handles -= 1;
        let last = state.handles == 0;
        drop(state);
        if last {
            self.shared.close();
        }
    }
}

impl Outbox {
    /// An outbox for `stream` of `connection` that lets `size_max` bytes wait; starts its writer's task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(connection: Connection, stream: SendStream, size_max: usize) -> Self {
        let state = Mutex::new(State { handles: 1, ..State::default() });
        let (work, room) = (Notify::new(), Notify::new());
        let shared = Arc::new(Shared { state, work, room, size_max });
        tokio::spawn(write_all(shared.clone(), connection, stream));
        Self { shared }
    }

    /// Takes a frame whose body `write_body` appends, if there is room.
    ///
    /// # Errors
    /// [`PushError`].
    ///
    /// # Panics
    /// If the body is over `MESSAGE_SIZE_MAX`.
    pub fn try_push(
        &self,
        kind: FrameKind,
        id: u64,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), PushError> {
        let mut state = self.shared.state();
        if state.closed {
            return Err(PushError::Closed);
        }
        if state.waiting >= self.shared.size_max {
            return Err(PushError::Full);
        }
        let start = state.small.len();
        let size = encode_frame(kind, id, &mut state.small, write_body);
        if size > SHARED_FRAME_SIZE_MAX {
            let large = if start == 0 {
                std::mem::take(&mut state.small)
            } else {
                state.small.split_off(start)
            };
            state.large.push(large);
            if state.small.capacity() > BUFFER_KEPT_MAX {
                state.small.shrink_to(BUFFER_KEPT_MAX);
            }
        }
        state.waiting += size;
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Takes a frame as soon as there is room.
    ///
    /// # Errors
    /// [`PushError::Closed`].
    ///
    /// # Panics
    /// If the body is over `MESSAGE_SIZE_MAX`.
    pub async fn push(
        &self,
        kind: FrameKind,
        id: u64,
        write_body: impl Fn(&mut Vec<u8>),
    ) -> Result<(), PushError> {
        loop {
            match self.try_push(kind, id, &write_body) {
                Err(PushError::Full) => self.room().await?,
                done => return done,
            }
        }
    }

    /// Waits until there is room. Another may take it first.
    ///
    /// # Errors
    /// [`PushError::Closed`].
    pub async fn room(&self) -> Result<(), PushError> {
        loop {
            let told = self.shared.room.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let state = self.shared.state();
                if state.closed {
                    return Err(PushError::Closed);
                }
                if state.waiting < self.shared.size_max {
                    return Ok(());
                }
            }
            told.await;
        }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.shared.state().waiting
    }

    /// Takes no more; what waits is still written, then the stream is finished.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether nothing is taken any more.
    pub fn is_closed(&self) -> bool {
        self.shared.state().closed
    }
}

/// The writer's task.
async fn write_all(shared: Arc<Shared>, connection: Connection, mut stream: SendStream) {
    let mut small = Vec::new();
    loop {
        let (large, closed) = {
            let mut state = shared.state();
            std::mem::swap(&mut small, &mut state.small);
            (std::mem::take(&mut state.large), state.closed)
        };
        let idle = small.is_empty() && large.is_empty();
        for frame in large {
            tokio::spawn(write_large(shared.clone(), connection.clone(), frame));
        }
        if !small.is_empty() {
            if let Err(error) = stream.write_all(&small).await {
                tracing::debug!(%error, "stream of frames is lost");
                shared.close();
                return;
            }
            shared.written(small.len());
            small.clear();
            if small.capacity() > BUFFER_KEPT_MAX {
                small = Vec::new();
            }
        }
        if idle && closed {
            // An error here says that the stream is finished or lost already.
            let _ = stream.finish();
            return;
        }
        if idle {
            tokio::select! {
                biased;
                () = shared.work.notified() => {}
                _ = connection.closed() => {
                    shared.close();
                    return;
                }
            }
        }
    }
}

/// One large frame's task. As many run as the bound on bytes lets wait.
async fn write_large(shared: Arc<Shared>, connection: Connection, frame: Vec<u8>) {
    let size = frame.len();
    let sent = async {
        let mut stream = connection.open_uni().await?;
        // Small frames go first.
        stream.set_priority(-1)?;
        stream.write_chunk(frame.into()).await?;
        stream.finish()?;
        Ok::<_, quinn::WriteError>(())
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "large frame is lost");
        // Its sender would wait for an answer for ever: all or nothing.
        connection.close(VarInt::from_u32(0), b"");
        shared.close();
    }
    shared.written(size);
}
