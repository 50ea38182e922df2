//! [`Keyspace`]: reads and writes of one keyspace, each a builder that is awaited.
//!
//! Invariants:
//!
//! - What can be refused without a node is refused here, with the code that a node would give.
//! - A page is one request: it is repeated whole, and nothing of a page is handed out twice.
//!
//! ```no_run
//! # async fn example(client: starling_client::Client) -> Result<(), starling_client::ClientError> {
//! use starling_client::Level;
//!
//! let orders = client.keyspace("orders");
//! orders.put("order/7", "paid").level(Level::All).await?;
//! let order = orders.get("order/7").await?.expect("it was written");
//! assert_eq!(order.payload, "paid");
//! let mut scan = orders.scan("order/").pages();
//! while let Some(rows) = scan.next().await? {
//!     for row in rows {
//!         println!("{:?}", row.key);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use starling_clock::{NodeId, Stamp};

use crate::call::{Call, Target};
use crate::client::Client;
use crate::codec::{Blob, Text};
use crate::error::ClientError;
use crate::event::{Row, Version, Written};
use crate::wire::{
    Action, Cursor, Durability, ErrorCode, KEY_SIZE_MAX, Level, PAGE_ROWS_MAX, PAYLOAD_SIZE_LIMIT,
    Request, RequestId, Response, WireError,
};

/// Rows or versions a page unless it is told.
const PAGE_SIZE_DEFAULT: u32 = 1000;

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, ClientError>> + Send>>;

/// A keyspace of a cluster. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Keyspace {
    client: Client,
    name: Text,
}

/// What every call may be told.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    level: Option<Level>,
    timeout: Option<Duration>,
    coordinator: Option<NodeId>,
}

/// The settings that all builders share.
macro_rules! shared_options {
    () => {
        /// How many home replicas must answer; the keyspace's own level unless it is told.
        pub fn level(mut self, level: Level) -> Self {
            self.options.level = Some(level);
            self
        }

        /// How long to wait, all attempts together; for pages, for each. The client's `request_timeout` unless it is told.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.options.timeout = Some(timeout);
            self
        }

        /// Sends to this node and no other, whoever the key's home replicas are. For tests and tools.
        pub fn coordinator(mut self, node: NodeId) -> Self {
            self.options.coordinator = Some(node);
            self
        }
    };
}

impl Keyspace {
    pub(crate) fn new(client: Client, name: String) -> Self {
        Self { client, name: Text(name) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives `key` a payload.
    pub fn put(&self, key: impl Into<Bytes>, payload: impl Into<Bytes>) -> Write {
        self.write(key.into(), Action::Put, payload.into())
    }

    /// Removes `key`; that it was removed stays in its history.
    pub fn delete(&self, key: impl Into<Bytes>) -> Write {
        self.write(key.into(), Action::Delete, Bytes::new())
    }

    fn write(&self, key: Bytes, action: Action, payload: Bytes) -> Write {
        let request = Request::Write {
            keyspace: self.name.clone(),
            key: key.into(),
            action,
            payload: payload.into(),
            level: None,
            durability: None,
        };
        let keyspace = self.clone();
        Write { keyspace, request, durability: None, repeating: None, options: Options::default() }
    }

    /// Reads the newest version of `key`.
    pub fn get(&self, key: impl Into<Bytes>) -> Get {
        let keyspace = self.clone();
        let options = Options::default();
        Get { keyspace, key: key.into().into(), at: None, with_deletes: false, options }
    }

    /// Reads the versions of `key` in order of their stamps, deletes included.
    pub fn history(&self, key: impl Into<Bytes>) -> History {
        History {
            keyspace: self.clone(),
            key: key.into().into(),
            from: Stamp::ZERO,
            to: Stamp::MAX,
            descending: false,
            page_size: PAGE_SIZE_DEFAULT,
            options: Options::default(),
        }
    }

    /// Reads the live keys that begin with `prefix`, in the order (partition, key); an empty prefix: all.
    pub fn scan(&self, prefix: impl Into<Bytes>) -> Scan {
        Scan {
            keyspace: self.clone(),
            prefix: prefix.into().into(),
            cursor: None,
            page_size: PAGE_SIZE_DEFAULT,
            options: Options::default(),
        }
    }

    /// Refuses what no node would take.
    fn check_key(key: &Blob) -> Result<(), ClientError> {
        if key.is_empty() {
            return refuse(ErrorCode::KeyEmpty, "the key is empty: a key has 1 to 4096 bytes");
        }
        if key.len() > KEY_SIZE_MAX {
            let problem = format!(
                "the key has {} bytes, the limit is {KEY_SIZE_MAX}: use a shorter key, or its hash",
                key.len()
            );
            return refuse(ErrorCode::KeyTooLarge, problem);
        }
        Ok(())
    }

    fn call<'a>(
        &'a self,
        request: &'a Request,
        key: Option<&'a [u8]>,
        options: Options,
    ) -> Call<'a> {
        let target = match (options.coordinator, key) {
            (Some(node), _) => Target::Node(node),
            (None, Some(key)) => Target::Key(&self.name, key),
            (None, None) => Target::Any,
        };
        self.client.inner.call(request, target).timeout(options.timeout)
    }
}

fn refuse<T>(code: ErrorCode, problem: impl Into<String>) -> Result<T, ClientError> {
    Err(ClientError::Refused(WireError::new(code, problem)))
}

fn check_page_size(size: u32) -> Result<(), ClientError> {
    if (1..=PAGE_ROWS_MAX).contains(&size) {
        Ok(())
    } else {
        refuse(ErrorCode::OutOfBounds, format!("a page of {size} is not from 1 to {PAGE_ROWS_MAX}"))
    }
}

/// A put or a delete; await it, or its [`Write::send`].
#[derive(Clone, Debug)]
#[must_use = "nothing is written until it is awaited"]
pub struct Write {
    keyspace: Keyspace,
    request: Request,
    durability: Option<Durability>,
    repeating: Option<RequestId>,
    options: Options,
}

impl Write {
    shared_options!();

    /// When a replica counts; the keyspace's own durability unless it is told.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Repeats an earlier write of the same key and payload that ended as [`ClientError::Unknown`]: if the
    /// earlier one happened, there is still one event (GUARANTEES G2).
    pub fn repeating(mut self, request: RequestId) -> Self {
        self.repeating = Some(request);
        self
    }

    /// Writes.
    ///
    /// # Errors
    /// [`ClientError`], whose kind says whether it may have happened.
    pub async fn send(mut self) -> Result<Written, ClientError> {
        let Request::Write { key, payload, level, durability, .. } = &mut self.request else {
            unreachable!("the constructor makes a write");
        };
        Keyspace::check_key(key)?;
        if payload.len() > PAYLOAD_SIZE_LIMIT {
            let problem = format!(
                "the payload has {} bytes, none may have over {PAYLOAD_SIZE_LIMIT}: split it",
                payload.len()
            );
            return refuse(ErrorCode::PayloadTooLarge, problem);
        }
        *level = self.options.level;
        *durability = self.durability;
        let key = key.0.clone();
        let mut call = self
            .keyspace
            .call(&self.request, Some(&key), self.options)
            .changes_something()
            .repeating(self.repeating);
        match call.run().await? {
            Response::Written { stamp, superseded, acks } => {
                let (request, attempts) = (call.id(), call.attempts());
                Ok(Written { stamp: stamp.0, superseded, acks, request, attempts })
            }
            other => Err(call.misfit(&other)),
        }
    }
}

impl IntoFuture for Write {
    type Output = Result<Written, ClientError>;
    type IntoFuture = Boxed<Written>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// A read of one key; await it, or its [`Get::send`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is awaited"]
pub struct Get {
    keyspace: Keyspace,
    key: Blob,
    at: Option<Stamp>,
    with_deletes: bool,
    options: Options,
}

impl Get {
    shared_options!();

    /// Reads the newest version at or before `stamp`, not the newest of all.
    pub fn at(mut self, stamp: Stamp) -> Self {
        self.at = Some(stamp);
        self
    }

    /// Gives a delete as such, with its stamp, where otherwise there is nothing.
    pub fn with_deletes(mut self) -> Self {
        self.with_deletes = true;
        self
    }

    /// Reads. `None`: the key was never written, or it is deleted.
    ///
    /// # Errors
    /// [`ClientError`]; a read changes nothing.
    pub async fn send(self) -> Result<Option<Version>, ClientError> {
        Keyspace::check_key(&self.key)?;
        let key = self.key.0.clone();
        let request = Request::Get {
            keyspace: self.keyspace.name.clone(),
            key: self.key,
            at: self.at.map(Into::into),
            level: self.options.level,
        };
        let mut call = self.keyspace.call(&request, Some(&key), self.options);
        match call.run().await? {
            Response::Value { version } => Ok(version
                .map(Version::from)
                .filter(|version| self.with_deletes || version.action == Action::Put)),
            other => Err(call.misfit(&other)),
        }
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<Version>, ClientError>;
    type IntoFuture = Boxed<Option<Version>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// A read of a key's versions: page by page with [`History::pages`], or all with [`History::collect`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read until pages are asked for"]
pub struct History {
    keyspace: Keyspace,
    key: Blob,
    from: Stamp,
    to: Stamp,
    descending: bool,
    page_size: u32,
    options: Options,
}

impl History {
    shared_options!();

    /// First stamp wanted.
    pub fn from(mut self, stamp: Stamp) -> Self {
        self.from = stamp;
        self
    }

    /// Last stamp wanted.
    pub fn to(mut self, stamp: Stamp) -> Self {
        self.to = stamp;
        self
    }

    /// Newest first.
    pub fn newest_first(mut self) -> Self {
        self.descending = true;
        self
    }

    /// Versions a page, 1 to [`PAGE_ROWS_MAX`]; 1,000 unless it is told.
    pub fn page_size(mut self, versions: u32) -> Self {
        self.page_size = versions;
        self
    }

    /// Begins to read.
    pub fn pages(self) -> HistoryPages {
        HistoryPages { history: self, done: false }
    }

    /// Reads all.
    ///
    /// # Errors
    /// [`ClientError`] of the first page that fails; a read changes nothing.
    pub async fn collect(self) -> Result<Vec<Version>, ClientError> {
        let mut pages = self.pages();
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.extend(page);
        }
        Ok(all)
    }
}

/// Pages of a [`History`].
#[derive(Clone, Debug)]
pub struct HistoryPages {
    history: History,
    done: bool,
}

impl HistoryPages {
    /// The next page; `None`: there are no more. After an error the same page is asked for again.
    ///
    /// # Errors
    /// [`ClientError`]; a read changes nothing.
    pub async fn next(&mut self) -> Result<Option<Vec<Version>>, ClientError> {
        let history = &self.history;
        check_page_size(history.page_size)?;
        Keyspace::check_key(&history.key)?;
        if self.done || history.from > history.to {
            return Ok(None);
        }
        let request = Request::History {
            keyspace: history.keyspace.name.clone(),
            key: history.key.clone(),
            from: history.from.into(),
            to: history.to.into(),
            descending: history.descending,
            limit: history.page_size,
            level: history.options.level,
        };
        let mut call = history.keyspace.call(&request, Some(&history.key), history.options);
        let (versions, more) = match call.run().await? {
            Response::History { versions, more } => (versions.0, more),
            other => return Err(call.misfit(&other)),
        };
        let Some(last) = versions.last().map(|version| version.stamp.0) else {
            self.done = true;
            return Ok(None);
        };
        // A node that repeats itself would keep us for ever.
        let (from, to) = (history.from, history.to);
        if last < from || last > to {
            let outside = WireError::new(ErrorCode::Malformed, "a version outside of the range");
            return Err(call.misfit(&Response::Error(outside)));
        }
        let next = if history.descending { predecessor(last) } else { successor(last) };
        drop(call);
        match next {
            Some(next) if more && self.history.descending => self.history.to = next,
            Some(next) if more => self.history.from = next,
            _ => self.done = true,
        }
        Ok(Some(versions.into_iter().map(Into::into).collect()))
    }
}

/// The stamp right after; `None` at the end of time.
fn successor(stamp: Stamp) -> Option<Stamp> {
    let number = u128::from_be_bytes(stamp.to_bytes()).checked_add(1)?;
    Stamp::from_bytes(number.to_be_bytes())
}

/// The stamp right before; `None` at the beginning of time.
fn predecessor(stamp: Stamp) -> Option<Stamp> {
    let number = u128::from_be_bytes(stamp.to_bytes()).checked_sub(1)?;
    Stamp::from_bytes(number.to_be_bytes())
}

/// A read of many keys: page by page with [`Scan::pages`], or all with [`Scan::collect`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read until pages are asked for"]
pub struct Scan {
    keyspace: Keyspace,
    prefix: Blob,
    cursor: Option<Cursor>,
    page_size: u32,
    options: Options,
}

impl Scan {
    shared_options!();

    /// Rows a page, 1 to [`PAGE_ROWS_MAX`]; 1,000 unless it is told. A page also ends after about 1 MiB.
    pub fn page_size(mut self, rows: u32) -> Self {
        self.page_size = rows;
        self
    }

    /// Goes on where an earlier scan of the same prefix was ([`ScanPages::cursor`]).
    pub fn resume(mut self, cursor: Cursor) -> Self {
        self.cursor = Some(cursor);
        self
    }

    /// Begins to read.
    pub fn pages(self) -> ScanPages {
        ScanPages { scan: self, done: false }
    }

    /// Reads all.
    ///
    /// # Errors
    /// [`ClientError`] of the first page that fails; a read changes nothing.
    pub async fn collect(self) -> Result<Vec<Row>, ClientError> {
        let mut pages = self.pages();
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.extend(page);
        }
        Ok(all)
    }
}

/// Pages of a [`Scan`].
#[derive(Clone, Debug)]
pub struct ScanPages {
    scan: Scan,
    done: bool,
}

impl ScanPages {
    /// The next page, which may be empty; `None`: there are no more. After an error the same page is asked for again.
    ///
    /// # Errors
    /// [`ClientError`]; a read changes nothing.
    pub async fn next(&mut self) -> Result<Option<Vec<Row>>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let scan = &self.scan;
        check_page_size(scan.page_size)?;
        let request = Request::Scan {
            keyspace: scan.keyspace.name.clone(),
            prefix: scan.prefix.clone(),
            cursor: scan.cursor.clone(),
            limit: scan.page_size,
            level: scan.options.level,
        };
        let mut call = scan.keyspace.call(&request, None, scan.options);
        let (rows, cursor) = match call.run().await? {
            Response::Page { rows, cursor } => (rows.0, cursor),
            other => return Err(call.misfit(&other)),
        };
        if cursor.is_some() && !is_after(cursor.as_ref(), scan.cursor.as_ref()) {
            let back = WireError::new(ErrorCode::Malformed, "the scan does not get on");
            return Err(call.misfit(&Response::Error(back)));
        }
        drop(call);
        self.done = cursor.is_none();
        self.scan.cursor = cursor;
        Ok(Some(rows.into_iter().map(Into::into).collect()))
    }

    /// Where the next page begins; `None` before the first page and after the last.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.scan.cursor.as_ref()
    }
}

fn is_after(cursor: Option<&Cursor>, before: Option<&Cursor>) -> bool {
    let place = |cursor: Option<&Cursor>| cursor.map(|at| (at.partition, at.after.clone()));
    place(cursor) > place(before)
}
