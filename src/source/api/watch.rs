//! One kind of object, followed for as long as the process lives.
//!
//! A watch is always about to do one of three things: list by watching (a streaming list, which goes over into following), list
//! by pages, or follow from the version it has reached. Each is an attempt that ends well or with a [`Failure`], and the
//! failure says what the next attempt has to be. There is no state besides the version reached, the way of listing, and the
//! [`Ledger`] of what the receiver was told.
//!
//! `kube::runtime::watcher` has the same three steps but hides which one it is in, and that is what the rest depends on: it
//! reopens a watch that ends at once as fast as the server allows, keeps asking for a version that was answered with HTTP 410,
//! has one idle time for everything, and drops an event it cannot decode without a name. So the steps are here, on kube's
//! client and its requests.
//!
//! Time limits: an answer must begin, and a page must go on, within [`Timing::response`]; initial events may pause for
//! [`Timing::initial_silence`]; a watch is over when its `timeoutSeconds` and [`Timing::slack`] have passed, whatever the
//! connection says.
//!
//! Proven by `tests/source_api.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures::AsyncBufRead;
use futures::io::{AsyncBufReadExt, Lines};
use futures::stream::StreamExt;
use hyper::Uri;
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info};

use super::access::Access;
use super::decode::{self, Decoded};
use super::ledger::{Ledger, Watched, key_of};
use super::limit::Limiter;
use super::trouble::{Backoff, Failure, Trouble};
use super::{Change, Timing};

/// What a bookmark carries that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// So many streaming lists may end before their end before we try the other way.
const CUT_SHORT: u32 = 3;

/// Which objects of a kind are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) labels: Option<&'static str>,
    pub(super) fields: Option<String>,
}

/// Follows one kind.
pub(super) struct Watch<K> {
    access: Arc<Access>,
    limiter: Option<Arc<Limiter>>,
    timing: Timing,
    selection: Selection,
    client: Option<Client>,
    ledger: Ledger,
    way: Way,
    /// Streaming lists in a row that ended before their end.
    cut_short: u32,
    /// The version reached; none means that everything has to be listed.
    version: Option<String>,
    /// Whether there was a complete listing.
    listed: bool,
    trouble: Trouble,
    backoff: Backoff,
    objects: std::marker::PhantomData<fn() -> K>,
}

/// How to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By watching, until the server says no.
    Streaming,
    /// By pages, because a streaming list fell silent. When the pages fail as well, it was not the server's age.
    Doubting,
    /// By pages.
    Pages,
}

/// The lines of an open watch.
type Events = Lines<std::pin::Pin<Box<dyn AsyncBufRead + Send>>>;

// === impl Watch ===

impl<K: Watched> Watch<K> {
    pub(super) fn new(
        access: Arc<Access>,
        limiter: Option<Arc<Limiter>>,
        timing: Timing,
        selection: Selection,
        way: Way,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        Self {
            access,
            limiter,
            selection,
            client: None,
            ledger: Ledger::new(K::KIND, changes),
            way,
            cut_short: 0,
            version: None,
            listed: false,
            trouble: Trouble::none(K::KIND),
            backoff: Backoff::new(&timing),
            timing,
            objects: std::marker::PhantomData,
        }
    }

    /// Runs until the receiver is gone.
    pub(super) async fn run(mut self) {
        loop {
            match self.attempt().await {
                Ok(()) => {}
                Err(Failure::Closed) => return,
                Err(failure) => self.recover(failure).await,
            }
        }
    }

    /// The next step; `Ok` means that the one after it may follow at once.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = self.access.client().map_err(|error| Failure::Transport(error.to_string()))?;
                self.client.insert(client).clone()
            }
        };
        match (self.version.clone(), self.way) {
            (Some(version), _) => self.follow(client, &version).await,
            (None, Way::Streaming) => self.list_by_watching(client).await,
            (None, Way::Doubting | Way::Pages) => self.list_by_pages(client).await,
        }
    }

    /// Draws the conclusions from a failure and waits.
    async fn recover(&mut self, failure: Failure) {
        let kind = K::KIND.name();
        let mut wait = Duration::ZERO;
        match &failure {
            Failure::Refused(reason) => {
                info!(kind, reason, "API server: no streaming lists, using list and watch from now on");
                self.way = Way::Pages;
                return;
            }
            Failure::Doubtful(reason) => {
                debug!(kind, reason, "API server: does it know streaming lists?");
                self.way = Way::Doubting;
                return;
            }
            Failure::Expired(_) | Failure::Garbled(_) => self.version = None,
            Failure::Unauthorized(_) | Failure::Transport(_) => self.client = None,
            Failure::Server(_, after) => wait = after.unwrap_or_default(),
            Failure::Closed => {}
        }
        if self.way == Way::Doubting {
            self.way = Way::Streaming;
        }
        self.trouble.begin(&failure);
        let wait = wait.min(self.backoff.max());
        sleep(self.backoff.delay().max(wait)).await;
    }

    /// Something worked.
    fn well(&mut self) {
        self.trouble.end();
        self.backoff.reset();
    }

    /// A listing is complete as of this version.
    async fn listed(&mut self, version: String) -> Result<(), Failure> {
        self.ledger.settle_listing().await?;
        self.listed = true;
        self.cut_short = 0;
        debug!(kind = K::KIND.name(), version, "API server: listed");
        self.version = Some(version);
        // The next wait is none the shorter for it: a server whose watches expire as soon as they begin would be listed from again and
        // again. Only a watch that lasts shows that all is well.
        self.trouble.end();
        Ok(())
    }

    async fn list_by_pages(&mut self, client: Client) -> Result<(), Failure> {
        self.ledger.begin_listing();
        let mut params = ListParams { limit: Some(self.timing.page_size), ..ListParams::default() };
        params.label_selector = self.selection.labels.map(str::to_owned);
        params.field_selector = self.selection.fields.clone();
        loop {
            let mut request = Request::new(K::url_path(&(), None)).list(&params).map_err(invalid)?;
            // The first listing of a process may come from the server's cache, so that a thousand nodes starting at once do not
            // read etcd a thousand times; kube leaves this out next to a limit. A later one must not go back in time.
            if params.continue_token.is_none() && !self.listed {
                let uri: Result<Uri, _> = format!("{}&resourceVersion=0", request.uri()).parse();
                *request.uri_mut() = uri.map_err(invalid)?;
            }
            let page = decode::page::<K>(&self.read(&client, request).await?).map_err(Failure::Garbled)?;
            for object in page.objects {
                self.ledger.list(object).await?;
            }
            for broken in page.broken {
                self.ledger.broken(broken);
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_some() {
                continue;
            }
            let version = page.metadata.resource_version.filter(|version| !version.is_empty());
            let version = version.ok_or_else(|| Failure::Garbled("a list without a resourceVersion".to_owned()))?;
            if self.way == Way::Doubting {
                info!(kind = K::KIND.name(), "API server: no usable streaming lists, using list and watch from now on");
                self.way = Way::Pages;
            }
            return self.listed(version).await;
        }
    }

    async fn list_by_watching(&mut self, client: Client) -> Result<(), Failure> {
        // As with pages: the first listing takes what the cache has, a later one what is true now.
        let version = if self.listed { "" } else { "0" };
        let (mut events, over) = self.open(client, version, true).await?;
        self.ledger.begin_listing();
        let doubt = |reason: &str| Failure::Doubtful(reason.to_owned());
        let version = loop {
            let Ok(line) = timeout(self.timing.initial_silence, events.next()).await else {
                return Err(doubt("silence instead of the bookmark that ends the initial events"));
            };
            let Some(line) = line else {
                self.cut_short += 1;
                let reason = "the server ended a streaming list before its end".to_owned();
                return Err(if self.cut_short < CUT_SHORT {
                    Failure::Server(reason, None)
                } else {
                    Failure::Doubtful(reason)
                });
            };
            match decode::event::<K>(&line.map_err(broken_off)?) {
                Decoded::Event(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    // A server that means it tells every object once before the bookmark.
                    if !self.ledger.list(object).await? {
                        return Err(doubt("a change among the initial events"));
                    }
                }
                Decoded::Broken(broken) => self.ledger.broken(broken),
                Decoded::Event(WatchEvent::Deleted(_)) | Decoded::Deleted(_) => {
                    return Err(doubt("a deletion among the initial events"));
                }
                Decoded::Event(WatchEvent::Bookmark(bookmark)) => {
                    if bookmark.metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        break bookmark.metadata.resource_version;
                    }
                }
                Decoded::Event(WatchEvent::Error(status)) => return Err(Failure::of_status(&status)),
                Decoded::Cut => return Err(cut()),
                // Pages are decoded item by item, so they get around what an event cannot.
                Decoded::Garbled(reason) => return Err(Failure::Doubtful(reason)),
            }
        };
        self.listed(version).await?;
        self.tell(&mut events, over).await
    }

    async fn follow(&mut self, client: Client, version: &str) -> Result<(), Failure> {
        let (mut events, over) = self.open(client, version, false).await?;
        self.tell(&mut events, over).await
    }

    /// Tells what an open watch says, until it ends.
    async fn tell(&mut self, events: &mut Events, over: Instant) -> Result<(), Failure> {
        let opened = Instant::now();
        let mut heard = None;
        loop {
            let settled = opened + self.timing.settled;
            let unsettled = self.trouble.is_on() || self.backoff.is_raised();
            let limit = if unsettled { settled.min(over) } else { over };
            let line = match timeout_at(limit, events.next()).await {
                Ok(line) => line,
                Err(_) if limit < over => {
                    self.well();
                    continue;
                }
                // It goes on longer than it was asked to, and talks: fine, but not for ever.
                Err(_) if heard.is_some_and(|heard: Instant| heard.elapsed() < self.timing.slack) => return Ok(()),
                Err(_) => return Err(Failure::Transport("a watch fell silent and did not end in time".to_owned())),
            };
            let Some(line) = line else {
                return match heard.is_some() || opened.elapsed() >= self.timing.settled {
                    true => Ok(()),
                    false => Err(Failure::Server("the server ends watches as soon as they begin".to_owned(), None)),
                };
            };
            let event = decode::event::<K>(&line.map_err(broken_off)?);
            heard = Some(Instant::now());
            let reached = match event {
                Decoded::Event(
                    WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object),
                ) if self.is_past(object.meta().resource_version.as_deref()) => {
                    debug!(kind = K::KIND.name(), object = %key_of(object.meta()), "API server: an event from the past is passed over");
                    None
                }
                Decoded::Event(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    let version = object.meta().resource_version.clone();
                    self.ledger.apply(object).await?;
                    version
                }
                Decoded::Event(WatchEvent::Deleted(object)) => {
                    self.ledger.delete(key_of(object.meta())).await?;
                    object.meta().resource_version.clone()
                }
                Decoded::Event(WatchEvent::Bookmark(bookmark)) => Some(bookmark.metadata.resource_version),
                Decoded::Deleted(broken) => {
                    self.ledger.delete(broken.key).await?;
                    Some(broken.version)
                }
                Decoded::Broken(broken) => {
                    let version = broken.version.clone();
                    self.ledger.broken(broken);
                    Some(version)
                }
                Decoded::Event(WatchEvent::Error(status)) => return Err(Failure::of_status(&status)),
                Decoded::Cut => return Err(cut()),
                Decoded::Garbled(reason) => return Err(Failure::Garbled(reason)),
            };
            if let Some(version) = reached.filter(|version| !version.is_empty()) {
                self.version = Some(version);
            }
            self.well();
        }
    }

    /// Whether everything up to this version, and with it what it brings, has been told. Versions of one kind can be compared
    /// (KEP-5504); one that is no number is taken for news.
    fn is_past(&self, version: Option<&str>) -> bool {
        let number = |version: &str| version.parse::<u64>().ok();
        let reached = self.version.as_deref().and_then(number);
        version.and_then(number).zip(reached).is_some_and(|(version, reached)| version < reached)
    }

    /// Opens a watch; the second value is when it has to be over.
    async fn open(&self, client: Client, version: &str, initial_events: bool) -> Result<(Events, Instant), Failure> {
        // Spread like client-go's, so that the nodes of a cluster do not come back all at the same time.
        let seconds = self.timing.watch.mul_f64(1.0 + fastrand::f64()).as_secs().clamp(1, u32::MAX.into());
        let params = WatchParams {
            label_selector: self.selection.labels.map(str::to_owned),
            field_selector: self.selection.fields.clone(),
            timeout: Some(seconds as u32),
            bookmarks: true,
            send_initial_events: initial_events,
        };
        let request = Request::new(K::url_path(&(), None)).watch(&params, version).map_err(invalid)?;
        self.ready().await;
        let reader = self.in_time(client.request_stream(request)).await?;
        let reader = reader.map_err(if initial_events { Failure::of_streaming } else { Failure::of })?;
        debug!(kind = K::KIND.name(), version, initial_events, seconds, "API server: watching");
        let reader: std::pin::Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(reader);
        Ok((reader.lines(), Instant::now() + Duration::from_secs(seconds) + self.timing.slack))
    }

    /// Waits until another request may be made. No time limit counts this.
    async fn ready(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.ready().await;
        }
    }

    /// Reads a whole answer. It may be long, and the line thin, so the time limit is for each part of it.
    async fn read(&self, client: &Client, request: hyper::Request<Vec<u8>>) -> Result<String, Failure> {
        self.ready().await;
        let reader = self.in_time(client.request_stream(request)).await?.map_err(Failure::of)?;
        let mut reader = std::pin::pin!(reader);
        let mut bytes = Vec::new();
        loop {
            let part = self.in_time(reader.fill_buf()).await?.map_err(broken_off)?;
            if part.is_empty() {
                return String::from_utf8(bytes).map_err(|error| Failure::Garbled(error.to_string()));
            }
            bytes.extend_from_slice(part);
            let length = part.len();
            reader.consume_unpin(length);
        }
    }

    /// Whatever must be answered in time.
    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        let limit = self.timing.response;
        let late = |_| Failure::Transport(format!("no answer within {}s", limit.as_secs_f64()));
        timeout(limit, answer).await.map_err(late)
    }
}

/// A request that cannot even be written down.
fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::Server(format!("request: {error}"), None)
}

fn broken_off(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::InvalidData => Failure::Garbled(error.to_string()),
        _ => Failure::Transport(format!("the answer broke off: {}", super::trouble::chain(&error))),
    }
}

fn cut() -> Failure {
    Failure::Transport("the watch broke off in the middle of an event".to_owned())
}
