//! [`NodeConnection`]: one QUIC connection to one node, its requests and their answers.
//!
//! Invariants:
//!
//! - Every question is answered exactly once: by the node, or by the loss of the connection.
//! - A question that its asker has given up is forgotten at once; a late answer to it is dropped.
//! - Three tasks a connection (writer, reader, acceptor of large answers), none a request.
//!
//! It neither repeats nor routes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use quinn::{Connection, RecvStream, SendStream, VarInt};
use starling_clock::NodeId;
use tokio::sync::oneshot;

use crate::codec;
use crate::transport::{
    Frame, FrameKind, FrameReader, LargeFrame, LargeFrameBudget, Outbox, PushError,
};
use crate::wire::{Header, Request, Response};

/// Bytes of requests that wait for the network; more wait for room.
const OUTBOX_SIZE: usize = 4 << 20;

/// Alerts of TLS that are about the peer's certificate (RFC 8446, section 6.2).
const CERTIFICATE_ALERTS: [u8; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The request did not leave.
    NotSent,
    /// The connection was lost after the request may have left.
    Lost,
}

/// A connection to a node, shared by all requests to it.
#[derive(Debug)]
pub(crate) struct NodeConnection {
    node: NodeId,
    quic: Connection,
    outbox: Outbox,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    /// Counts what arrived, so that one who waits can tell a slow node from a silent one.
    heard: AtomicU64,
    /// Why the connection ended, if not by this side: closing it hides that.
    ended: OnceLock<quinn::ConnectionError>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("nothing panics while it holds this lock")
    }
}

/// Questions without an answer, by a number that names slot and generation.
#[derive(Debug, Default)]
struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
    lost: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    asker: Option<oneshot::Sender<Response>>,
}

impl Pending {
    /// A number for a question; `None`: the connection is lost.
    fn insert(&mut self, asker: oneshot::Sender<Response>) -> Option<u64> {
        if self.lost {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("in_flight_max bounds the slots")
        });
        let slot = &mut self.slots[index as usize];
        slot.asker = Some(asker);
        Some(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Whoever waits for the answer to `id`, if one does; from then on the number is nobody's.
    fn take(&mut self, id: u64) -> Option<oneshot::Sender<Response>> {
        let index = u32::try_from(id & u64::from(u32::MAX)).expect("masked");
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let asker = slot.asker.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(asker)
    }

    /// Nobody will be answered any more: dropping an asker's sender tells it.
    fn lose(&mut self) {
        self.lost = true;
        self.slots.clear();
        self.free.clear();
    }
}

/// Forgets the question when its asker goes away.
struct Ticket<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        drop(self.shared.pending().take(self.id));
    }
}

impl NodeConnection {
    /// Opens the request stream of a fresh connection to `node` and starts its tasks.
    pub(crate) async fn start(
        node: NodeId,
        quic: Connection,
        budget: LargeFrameBudget,
    ) -> Result<Self, quinn::ConnectionError> {
        let (send, receive) = quic.open_bi().await?;
        let outbox = Outbox::spawn(quic.clone(), send, OUTBOX_SIZE);
        let shared = Arc::new(Shared::default());
        tokio::spawn(read_answers(shared.clone(), quic.clone(), receive));
        tokio::spawn(accept_large(shared.clone(), quic.clone(), budget));
        Ok(Self { node, quic, outbox, shared })
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Grows with everything that the node sends.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.shared.pending().lost || self.outbox.is_closed()
    }

    /// What the node said if it has turned this client's certificate away. Its handshake has failed then: it has read no request.
    ///
    /// In TLS 1.3 a client's own handshake is done before the node looks at its certificate.
    pub(crate) fn refused_certificate(&self) -> Option<String> {
        let reason = self.shared.ended.get().cloned().or_else(|| self.quic.close_reason());
        let Some(quinn::ConnectionError::ConnectionClosed(close)) = reason else { return None };
        let alerts = CERTIFICATE_ALERTS.map(quinn::TransportErrorCode::crypto);
        alerts.contains(&close.error_code).then(|| close.to_string())
    }

    /// Asks, and waits for the answer however long it takes. Dropping the future forgets the question.
    ///
    /// `sent` becomes true when the request may have left.
    pub(crate) async fn ask(
        &self,
        header: &Header,
        request: &Request,
        sent: &mut bool,
    ) -> Result<Response, NoAnswer> {
        let (asker, answer) = oneshot::channel();
        let id = self.shared.pending().insert(asker).ok_or(NoAnswer::NotSent)?;
        let ticket = Ticket { shared: &self.shared, id };
        let body = |out: &mut Vec<u8>| {
            codec::encode(header, out);
            codec::encode(request, out);
        };
        self.outbox
            .push(FrameKind::Request, id, body)
            .await
            .map_err(|(PushError::Closed | PushError::Full)| NoAnswer::NotSent)?;
        *sent = true;
        let answer = answer.await.map_err(|_| NoAnswer::Lost);
        drop(ticket);
        answer
    }

    /// A stream for one exchange.
    pub(crate) async fn open_exchange(
        &self,
    ) -> Result<(SendStream, RecvStream), quinn::ConnectionError> {
        self.quic.open_bi().await
    }
}

impl Drop for NodeConnection {
    fn drop(&mut self) {
        self.quic.close(VarInt::from_u32(0), b"done");
    }
}

/// The reader's task: ends with the connection.
async fn read_answers(shared: Arc<Shared>, quic: Connection, stream: RecvStream) {
    let mut reader = FrameReader::shared(stream);
    let problem = 'lost: loop {
        match reader.read().await {
            Ok(true) => {}
            Ok(false) => break "the node ended the stream".to_owned(),
            Err(error) => break error.to_string(),
        }
        shared.heard.fetch_add(1, Ordering::Relaxed);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    if let Err(problem) = deliver(&shared, frame) {
                        break 'lost problem;
                    }
                }
                Ok(None) => break,
                Err(error) => break 'lost error.to_string(),
            }
        }
    };
    tracing::debug!(%problem, "connection to a node ends");
    if let Some(reason) = quic.close_reason() {
        // This task alone sets it.
        let _ = shared.ended.set(reason);
    }
    shared.pending().lose();
    quic.close(VarInt::from_u32(0), b"");
}

/// The task that takes answers that travel alone; QUIC bounds how many are read at once.
async fn accept_large(shared: Arc<Shared>, quic: Connection, budget: LargeFrameBudget) {
    while let Ok(mut stream) = quic.accept_uni().await {
        let (shared, quic, budget) = (shared.clone(), quic.clone(), budget.clone());
        tokio::spawn(async move {
            let delivered = match LargeFrame::read(&mut stream, &budget).await {
                Ok(large) => deliver(&shared, large.frame()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(problem) = delivered {
                tracing::debug!(%problem, "large answer of a node is lost");
                shared.pending().lose();
                quic.close(VarInt::from_u32(0), b"");
            }
        });
    }
}

fn deliver(shared: &Shared, frame: Frame<'_>) -> Result<(), String> {
    if frame.kind != FrameKind::Response {
        return Err(format!("a {:?} frame came where answers come", frame.kind));
    }
    shared.heard.fetch_add(1, Ordering::Relaxed);
    // An answer that nobody waits for any more is not worth decoding.
    let Some(asker) = shared.pending().take(frame.id) else { return Ok(()) };
    let response = codec::decode(frame.body).map_err(|error| error.to_string())?;
    // The asker may have gone in this instant.
    let _ = asker.send(response);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pending: &mut Pending) -> (u64, oneshot::Receiver<Response>) {
        let (asker, answer) = oneshot::channel();
        (pending.insert(asker).unwrap(), answer)
    }

    #[test]
    fn a_number_is_answered_once() {
        let mut pending = Pending::default();
        let (first, _kept) = ask(&mut pending);
        let (second, _kept) = ask(&mut pending);
        assert_ne!(first, second);
        assert!(pending.take(first).is_some());
        assert!(pending.take(first).is_none());
        let (third, _kept) = ask(&mut pending);
        assert_ne!(first, third, "the slot is used again under another number");
        assert!(pending.take(first).is_none(), "a late answer finds nobody");
        assert!(pending.take(third).is_some());
        assert!(pending.take(u64::MAX).is_none());
    }

    #[test]
    fn loss_tells_all_and_takes_no_more() {
        let mut pending = Pending::default();
        let (_, mut answer) = ask(&mut pending);
        pending.lose();
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(pending.insert(oneshot::channel().0).is_none());
    }
}
