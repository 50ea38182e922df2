//! [`Call`]: one request until it is answered, whatever becomes of nodes and connections on the way.
//!
//! Invariants (GUARANTEES G2):
//!
//! - All attempts carry the same request id. An attempt that follows one whose fate is unknown counts it in
//!   `attempt`, so that the coordinator looks for the event before it makes another.
//! - A request that changes something and may have left is never told as "nothing happened".
//! - Nothing outlives the deadline; between attempts there is a pause that doubles, with chance in it.
//! - A write of which it is known that nothing happened is not sent once more with less time left than an answer takes: that would
//!   only make its fate unknown.

use std::time::Duration;

use starling_clock::NodeId;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::client::Inner;
use crate::connection::{NoAnswer, NodeConnection};
use crate::error::ClientError;
use crate::routing::{Routing, Standing};
use crate::time::{self, Deadline};
use crate::transport::TlsError;
use crate::wire::{ErrorCode, ErrorKind, Header, Request, RequestId, Response, WireError};

/// The pause before the second attempt, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Whom to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A home replica of this key of this keyspace, or else any node.
    Key(&'a str, &'a [u8]),
    /// Any node.
    Any,
    /// This node and no other.
    Node(NodeId),
}

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    client: &'a Inner,
    request: &'a Request,
    target: Target<'a>,
    id: RequestId,
    timeout: Duration,
    changes_something: bool,
    /// Attempts whose fate is unknown.
    unknown: u8,
    attempts: u32,
    /// The longest that an answer was waited for.
    slowest: Duration,
    /// Nodes that did not help, since the last round.
    tried: Vec<NodeId>,
    /// Who was asked last.
    asked: Option<NodeId>,
    problem: String,
    last: Option<WireError>,
}

/// What an attempt came to.
enum Outcome {
    Answer(Response),
    /// It did not reach the node.
    NotSent(String),
    /// It may have reached the node.
    NoAnswer(String),
    /// Time is up.
    TimeUp {
        sent: bool,
    },
}

impl<'a> Call<'a> {
    pub(crate) fn new(client: &'a Inner, request: &'a Request, target: Target<'a>) -> Self {
        Self {
            client,
            request,
            target,
            id: client.next_request(),
            timeout: client.config.request_timeout,
            changes_something: false,
            unknown: 0,
            attempts: 0,
            slowest: Duration::ZERO,
            tried: Vec::new(),
            asked: None,
            problem: String::new(),
            last: None,
        }
    }

    /// An attempt that gets no answer may have changed something.
    pub(crate) fn changes_something(mut self) -> Self {
        self.changes_something = true;
        self
    }

    pub(crate) fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout.unwrap_or(self.timeout);
        self
    }

    /// Repeats an earlier call whose fate is unknown.
    pub(crate) fn repeating(mut self, earlier: Option<RequestId>) -> Self {
        if let Some(earlier) = earlier {
            self.id = earlier;
            self.unknown = 1;
        }
        self
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// How often the request was sent.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The node answered something else than was asked.
    pub(crate) fn misfit(&self, response: &Response) -> ClientError {
        let problem = match response {
            Response::Error(error) => format!("error out of place: {error}"),
            _ => "the answer does not fit the request".to_owned(),
        };
        ClientError::Protocol { node: self.asked.unwrap_or_default(), problem }
    }

    /// Runs it to its end. [`Response::Error`] never comes out of it as an answer.
    pub(crate) async fn run(&mut self) -> Result<Response, ClientError> {
        let deadline = Deadline::after(self.timeout);
        let client = self.client;
        let turn = timeout_at(deadline.at(), client.in_flight.acquire());
        let _turn = match turn.await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(ClientError::Closed),
            Err(_) => {
                "too many requests of this client are under way".clone_into(&mut self.problem);
                return Err(self.give_up());
            }
        };
        let mut pause = PAUSE_FIRST;
        loop {
            let outcome = match self.attempt(deadline).await {
                Err(error) if self.unknown > 0 => {
                    self.problem = error.to_string();
                    return Err(self.give_up());
                }
                outcome => outcome?,
            };
            match outcome {
                Outcome::Answer(Response::Error(error)) => self.weigh(error)?,
                Outcome::Answer(response) => return Ok(response),
                Outcome::NotSent(problem) => self.problem = problem,
                Outcome::NoAnswer(problem) => {
                    self.count_unknown();
                    self.problem = problem;
                }
                Outcome::TimeUp { sent } => {
                    if sent {
                        self.count_unknown();
                    }
                    return Err(self.give_up());
                }
            }
            if client.in_flight.is_closed() {
                return Err(if self.unknown > 0 { self.give_up() } else { ClientError::Closed });
            }
            let pause_now = jittered(pause, self.id, self.attempts);
            // Answers are not equally fast: twice the slowest.
            let would_be_unknown = self.changes_something && self.unknown == 0;
            let needed = if would_be_unknown { 2 * self.slowest } else { Duration::ZERO };
            if deadline.remaining() <= pause_now + needed {
                return Err(self.give_up());
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn count_unknown(&mut self) {
        if self.changes_something {
            self.unknown = self.unknown.saturating_add(1);
        }
    }

    /// What a node's error means for the call: an error if it ends it.
    fn weigh(&mut self, error: WireError) -> Result<(), ClientError> {
        match error.kind() {
            // An earlier attempt of unknown fate stays unknown.
            ErrorKind::ChangeRequest if self.unknown == 0 => {
                return Err(ClientError::Refused(error));
            }
            ErrorKind::ChangeRequest => {
                self.problem = error.to_string();
                self.last = Some(error);
                return Err(self.give_up());
            }
            ErrorKind::NothingHappened | ErrorKind::TryElsewhere => {}
            ErrorKind::Unknown => self.count_unknown(),
        }
        if error.code == ErrorCode::WrongEpoch {
            self.client.look_again();
        }
        self.problem = error.to_string();
        self.last = Some(error);
        Ok(())
    }

    fn give_up(&mut self) -> ClientError {
        let timeout = self.timeout;
        let problem = std::mem::take(&mut self.problem);
        let last = self.last.take();
        if self.unknown > 0 {
            ClientError::Unknown { request: self.id, timeout, problem, last }
        } else {
            ClientError::NothingHappened { timeout, problem, last }
        }
    }

    /// The next node to ask, and whether another good one would be left.
    fn choose(&mut self, routing: &Routing) -> Result<NodeId, ClientError> {
        let key = match self.target {
            // A node found through a given address is asked before the cluster is known.
            Target::Node(node) => return Ok(node),
            Target::Key(keyspace, key) => Some((keyspace, key)),
            Target::Any => None,
        };
        let turn = self.client.next_turn();
        let failed = |node| self.client.nodes.is_cooling(node);
        let mut picked = routing.pick(key, turn, &self.tried, failed);
        if picked.is_none() {
            self.tried.clear();
            picked = routing.pick(key, turn, &self.tried, failed);
        }
        let nobody = || ClientError::NoNode("the cluster has no members".to_owned());
        picked.map(|(node, _)| node).ok_or_else(nobody)
    }

    /// Whether asking someone else than `node` promises more.
    fn has_alternative(&self, routing: &Routing, node: NodeId) -> bool {
        let key = match self.target {
            Target::Node(_) => return false,
            Target::Key(keyspace, key) => Some((keyspace, key)),
            Target::Any => None,
        };
        let failed = |other| other == node || self.client.nodes.is_cooling(other);
        let picked = routing.pick(key, 0, &self.tried, failed);
        picked.is_some_and(|(_, standing)| standing == Standing::Good)
    }

    async fn attempt(&mut self, deadline: Deadline) -> Result<Outcome, ClientError> {
        let routing = self.client.routing();
        let node = self.choose(&routing)?;
        self.asked = Some(node);
        let connection = match self.client.nodes.connect(node, deadline).await {
            Ok(connection) => connection,
            Err(error @ ClientError::UnknownNode(_)) if matches!(self.target, Target::Node(_)) => {
                return Err(error);
            }
            Err(error) => {
                self.tried.push(node);
                self.client.look_again();
                return Ok(Outcome::NotSent(error.to_string()));
            }
        };
        let header = Header {
            request: self.id,
            attempt: self.unknown,
            timeout_ms: deadline.remaining_ms(),
            epoch: routing.epoch(),
            observed: self.client.observed(),
        };
        self.attempts += 1;
        let asked_at = time::now();
        let outcome = self.wait(&connection, &header, &routing, deadline).await;
        self.slowest = self.slowest.max(asked_at.elapsed());
        if let (Outcome::NotSent(_) | Outcome::NoAnswer(_), Some(reason)) =
            (&outcome, connection.refused_certificate())
        {
            return Err(TlsError::NotAccepted { node, reason }.into());
        }
        match outcome {
            Outcome::Answer(Response::Error(_)) => self.tried.push(node),
            Outcome::Answer(ref response) => self.observe(response),
            Outcome::NotSent(_) | Outcome::NoAnswer(_) => {
                self.tried.push(node);
                self.client.look_again();
            }
            Outcome::TimeUp { .. } => {
                self.problem = format!("node {node} did not answer in time");
            }
        }
        Ok(outcome)
    }

    /// Waits for the answer until time is up, or until the node was silent for long while others are not.
    async fn wait(
        &self,
        connection: &NodeConnection,
        header: &Header,
        routing: &Routing,
        deadline: Deadline,
    ) -> Outcome {
        let node = connection.node();
        let silence = self.client.config.silence_timeout;
        let mut sent = false;
        let ended = 'wait: {
            let mut heard = connection.heard();
            let asking = connection.ask(header, self.request, &mut sent);
            tokio::pin!(asking);
            loop {
                let look_at = deadline.at().min(time::now() + silence);
                tokio::select! {
                    biased;
                    answer = &mut asking => break 'wait Some(answer),
                    () = sleep_until(look_at) => {}
                }
                if deadline.remaining().is_zero() {
                    break 'wait None;
                }
                let before = std::mem::replace(&mut heard, connection.heard());
                if before == heard && self.has_alternative(routing, node) {
                    self.client.nodes.cool(node);
                    break 'wait Some(Err(NoAnswer::Lost));
                }
            }
        };
        match ended {
            Some(Ok(response)) => Outcome::Answer(response),
            Some(Err(NoAnswer::Lost)) if sent => {
                Outcome::NoAnswer(format!("node {node} fell silent or was lost"))
            }
            Some(Err(_)) => Outcome::NotSent(format!("the connection to node {node} is lost")),
            None => Outcome::TimeUp { sent },
        }
    }

    /// Takes note of the hybrid times that an answer shows.
    fn observe(&self, response: &Response) {
        let client = self.client;
        match response {
            Response::Written { stamp, .. } => client.observe(stamp.0.time),
            Response::Value { version } => {
                client.observe_newest(version.iter().map(|version| version.stamp.0));
            }
            Response::History { versions, .. } => {
                client.observe_newest(versions.iter().map(|version| version.stamp.0));
            }
            Response::Page { rows, .. } => {
                client.observe_newest(rows.iter().map(|row| row.version.stamp.0));
            }
            Response::Topology(_)
            | Response::Status(_)
            | Response::KeyspaceCreated { .. }
            | Response::Keyspaces(_)
            | Response::Error(_) => {}
        }
    }
}

/// Between a half and the whole of `pause`: callers that failed together come back apart.
fn jittered(pause: Duration, id: RequestId, attempts: u32) -> Duration {
    let mixed = (id.client ^ id.sequence.rotate_left(32) ^ u64::from(attempts))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let part = u32::try_from(mixed >> 54).expect("10 bits");
    pause / 2 + pause * part / 2048
}
