//! Connections of clients: requests on the one shared stream, large ones on streams of their own, subscriptions each on its own.
//!
//! Invariants:
//!
//! - What is not a request of the protocol gets a typed error with its id; what is not a frame ends the connection.
//! - Nothing is read from a client that has too much unanswered, does not read its answers, or while storage is behind.
//! - An item of a subscription is taken from the core only when QUIC has taken the one before: its flow control is the back-pressure.

use std::time::Duration;

use starling_client::codec;
use starling_client::transport::{
    FrameError, FrameKind, FrameReader, LargeFrame, Outbox, SHARED_FRAME_SIZE_MAX, write_frame,
};
use starling_client::wire::{
    ChangesItem, ChangesRequest, ErrorCode, Header, Request, Response, WireError,
};

use super::close_code::CloseCode;
use super::driver::Driver;
use super::tasks::Tasks;
use crate::core::types::{ConnectionId, Input, SubscriptionId};

/// A large request, or the question of a subscription, that takes longer ends the connection: it would hold memory that others need.
const FRAME_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a client that gets no more answers has to close its connection, so that it can read those under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client's connection ended.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("frame of kind {0:?} where it does not belong")]
    UnexpectedKind(FrameKind),
    #[error("a large frame did not arrive in time")]
    FrameTimeout,
}

impl ClientError {
    fn close_code(&self) -> CloseCode {
        match self {
            Self::Connection(_) | Self::Frame(FrameError::Read(_)) => CloseCode::Done,
            Self::Frame(_) | Self::UnexpectedKind(_) | Self::FrameTimeout => CloseCode::Protocol,
        }
    }
}

/// Serves a client's connection to its end.
pub(super) async fn serve(driver: Driver, connection: quinn::Connection) {
    let id = ConnectionId(driver.name());
    let address = connection.remote_address();
    tracing::debug!(%address, connection = id.0, "client connected");
    let mut tasks = Tasks::new();
    let ended = serve_streams(&driver, id, &connection, &mut tasks).await;
    driver.remove_client(id);
    match ended {
        Ok(()) => CloseCode::Done.close(&connection),
        Err(error) => {
            tracing::debug!(%address, connection = id.0, %error, "client's connection ended");
            error.close_code().close_with(&connection, &error.to_string());
        }
    }
}

async fn serve_streams(
    driver: &Driver,
    id: ConnectionId,
    connection: &quinn::Connection,
    tasks: &mut Tasks,
) -> Result<(), ClientError> {
    let (send, receive) = connection.accept_bi().await?;
    let outbox = Outbox::spawn(connection.clone(), send, driver.config().client_queue_bytes);
    driver.add_client(id, connection.clone(), outbox);
    tokio::select! {
        biased;
        ended = requests(driver, id, FrameReader::shared(receive)) => ended?,
        ended = large_requests(driver, id, connection) => ended?,
        ended = subscriptions(driver, connection, tasks) => ended?,
    }
    // No more answers are taken: those under way still leave.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.closed()).await;
    Ok(())
}

async fn requests(
    driver: &Driver,
    id: ConnectionId,
    mut reader: FrameReader,
) -> Result<(), ClientError> {
    while reader.read().await? {
        let mut inputs = Vec::new();
        let ended = loop {
            match reader.next_frame() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) if frame.kind == FrameKind::Request => {
                    inputs.push((frame.id, decode(frame.body)));
                }
                Ok(Some(frame)) => break Err(ClientError::UnexpectedKind(frame.kind)),
                Err(error) => break Err(error.into()),
            }
        };
        feed(driver, id, inputs);
        ended?;
        if !driver.client_room(id).await {
            return Ok(());
        }
    }
    // The client has asked all it wanted; it closes the connection when it has its answers.
    std::future::pending().await
}

async fn large_requests(
    driver: &Driver,
    id: ConnectionId,
    connection: &quinn::Connection,
) -> Result<(), ClientError> {
    while driver.client_room(id).await {
        let mut stream = connection.accept_uni().await?;
        let read = LargeFrame::read(&mut stream, &driver.config().client_budget);
        let large = tokio::time::timeout(FRAME_TIMEOUT, read)
            .await
            .map_err(|_| ClientError::FrameTimeout)??;
        let frame = large.frame();
        if frame.kind != FrameKind::Request {
            return Err(ClientError::UnexpectedKind(frame.kind));
        }
        feed(driver, id, vec![(frame.id, decode(frame.body))]);
    }
    Ok(())
}

/// A request, or why it is none.
type Decoded = Result<(Header, Request), codec::DecodeError>;

fn decode(body: &[u8]) -> Decoded {
    codec::decode(body)
}

fn feed(driver: &Driver, connection: ConnectionId, requests: Vec<(u64, Decoded)>) {
    driver.requests_begin(connection, requests.len());
    let mut inputs = Vec::with_capacity(requests.len());
    for (id, decoded) in requests {
        match decoded {
            Ok((header, request)) => {
                inputs.push(Input::Request { connection, id, header, request });
            }
            Err(error) => {
                let error = WireError::new(ErrorCode::Malformed, error.to_string());
                driver.answer(connection, id, &Response::Error(error));
            }
        }
    }
    driver.feed_all(inputs);
}

async fn subscriptions(
    driver: &Driver,
    connection: &quinn::Connection,
    tasks: &mut Tasks,
) -> Result<(), ClientError> {
    loop {
        let (send, receive) = connection.accept_bi().await?;
        let subscription = Subscription {
            driver: driver.clone(),
            id: SubscriptionId(driver.name()),
            connection: connection.clone(),
        };
        tasks.spawn(subscription.serve(send, receive));
    }
}

/// One subscription's stream. When it is dropped the core is told that the stream is gone.
struct Subscription {
    driver: Driver,
    id: SubscriptionId,
    connection: quinn::Connection,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.driver.remove_subscription(self.id) {
            self.driver.feed(Input::Unsubscribe { subscription: self.id });
        }
    }
}

impl Subscription {
    async fn serve(self, mut send: quinn::SendStream, receive: quinn::RecvStream) {
        let request = match tokio::time::timeout(FRAME_TIMEOUT, question(receive)).await {
            Ok(Ok(request)) => request,
            Ok(Err(SubscribeError::Malformed(error))) => {
                let error = WireError::new(ErrorCode::Malformed, error.to_string());
                let item = ChangesItem::Error(error);
                // The stream's end says the rest.
                let _ = write_frame(&mut send, FrameKind::ChangesItem, 0, &item).await;
                let _ = send.finish();
                return;
            }
            Ok(Err(SubscribeError::Frame(FrameError::Read(_)))) => return,
            Ok(Err(SubscribeError::Frame(error))) => {
                CloseCode::Protocol.close_with(&self.connection, &error.to_string());
                return;
            }
            Ok(Err(SubscribeError::UnexpectedKind)) | Err(_) => {
                CloseCode::Protocol.close(&self.connection);
                return;
            }
        };
        let mut items = self.driver.add_subscription(self.id);
        self.driver.feed(Input::Subscribe { subscription: self.id, request });
        let stopped = send.stopped();
        tokio::pin!(stopped);
        loop {
            let item = tokio::select! {
                biased;
                item = items.recv() => item,
                _ = &mut stopped => return,
            };
            let Some(item) = item else { return };
            let last = matches!(*item, ChangesItem::End { .. } | ChangesItem::Error(_));
            if write_frame(&mut send, FrameKind::ChangesItem, 0, &*item).await.is_err() {
                return;
            }
            if last {
                let _ = send.finish();
                // The core knows that this was the last: there is nothing left to tell it.
                self.driver.remove_subscription(self.id);
                return;
            }
            self.driver.feed(Input::SubscriptionReady { subscription: self.id });
        }
    }
}

/// Why a stream is no subscription.
enum SubscribeError {
    Frame(FrameError),
    UnexpectedKind,
    Malformed(codec::DecodeError),
}

async fn question(receive: quinn::RecvStream) -> Result<ChangesRequest, SubscribeError> {
    let mut reader = FrameReader::exchange(receive, SHARED_FRAME_SIZE_MAX);
    loop {
        if !reader.read().await.map_err(SubscribeError::Frame)? {
            return Err(SubscribeError::Frame(FrameError::Truncated));
        }
        if let Some(frame) = reader.next_frame().map_err(SubscribeError::Frame)? {
            if frame.kind != FrameKind::ChangesRequest {
                return Err(SubscribeError::UnexpectedKind);
            }
            return codec::decode(frame.body).map_err(SubscribeError::Malformed);
        }
    }
}
