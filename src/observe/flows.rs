//! Connections one by one, asked for over the status API: `/v1/flows`, once or as they come and go.
//!
//! A list is one walk through connection tracking ([`super::walks`]), named by the controller between two batches. With `follow=true`
//! the answer is a line of JSON per event ([`FlowEvent`]), for as long as somebody reads: a thread of its own listens to the kernel ([`Follower`]) and
//! has the controller name what it has not named within a second. When the reader is gone, the thread ends within [`ATTENTION`] and with it the subscription, so
//! that nothing listens while nobody looks. A reader who is too slow is told that lines were lost, and gets the next ones.
//!
//! Memory: what the follower knows, and [`BUFFERED`] batches of lines. At most [`FOLLOWERS`] follow at a time.
//!
//! Proven by `tests/e2e/flows.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::{Bytes, Frame};
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, warn};

use super::desk::{Busy, Desk};
use super::http::{Answer, answer};
use super::walks::{Shared, WalkError, Walks};
use crate::conntrack::{Destination, Flow};
use crate::forward::Register;
use crate::kernel::conntrack::{ConntrackError, Follower, News, accounting, tells, timestamps};
use crate::model::{Family, Protocol};
use crate::status::flows::teller::Teller;
use crate::status::flows::{FlowEvent, FlowFilter, FlowList, FlowSettings, FlowWord, Named, Pair, name, pairs, views};
use crate::status::query::{self, Parameters, QueryError};
use crate::status::{CHUNK, VERSION};

/// Connections told in one answer, unless asked otherwise, and at most.
const TOLD: usize = 10_000;
const MOST_TOLD: usize = 1_000_000;

/// Connections looked at to find those, where it takes names to know.
const LOOKED_AT: usize = 200_000;

/// Of one Service that the page shows, so many times as many as it shows are looked at.
const LOOKED_AT_FOR_PAGE: usize = 10;

/// How long a follower may go on after its reader has gone.
const ATTENTION: Duration = Duration::from_millis(200);

/// How soon what waits for the forwarder is looked at again.
const SOON: Duration = Duration::from_millis(10);

/// After so long without news an empty line says that we are there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Batches of lines that wait for their reader.
const BUFFERED: usize = 256;

/// Who follows at a time.
const FOLLOWERS: usize = 16;

/// Answers about connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Flows {
    desk: Desk,
    register: Register,
    walks: Walks,
    /// What the page was told.
    shared: Shared<Asked, Arc<FlowList>>,
    followers: Arc<AtomicUsize>,
}

/// Somebody follows.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

/// Why nobody can follow.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    /// Too many do.
    #[error("{FOLLOWERS} follow already")]
    Many,
    /// The system refuses.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// No thread.
    #[error("no thread to follow with: {0}")]
    Thread(std::io::Error),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) filter: FlowFilter,
    /// How many connections at most.
    pub(super) most: usize,
}

// === impl Asked ===

impl Asked {
    /// From the parameters of a query.
    pub(super) fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let number = |text: &str| text.parse().ok().filter(|most| (1..=MOST_TOLD).contains(most));
        let most = query::read(parameters, "most", "not a number from 1 to 1000000", number)?;
        Ok(Self { filter: FlowFilter::of(parameters)?, most: most.unwrap_or(TOLD) })
    }
}

// === impl Flows ===

impl Flows {
    pub(super) fn new(desk: Desk, register: Register, walks: Walks) -> Self {
        Self { desk, register, walks, shared: Shared::default(), followers: Arc::default() }
    }

    /// Some connections. `wants` spares those that cannot be wanted before they have names.
    pub(super) async fn list(
        &self,
        asked: Asked,
        wants: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<FlowList, ListError> {
        let looked_at = if asked.filter.needs_names() { LOOKED_AT.max(asked.most) } else { asked.most };
        Ok(self.look(asked, looked_at, false, wants).await?.0)
    }

    /// The same for the page, of one Service, where whoever asks for the same as others gets the same.
    pub(super) async fn share(
        &self,
        asked: Asked,
        wants: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<Arc<FlowList>, ListError> {
        let looked_at = asked.most * LOOKED_AT_FOR_PAGE;
        let look = async {
            let (list, took) = self.look(asked.clone(), looked_at, true, wants).await?;
            Ok((Arc::new(list), took))
        };
        self.shared.ask(asked.clone(), look).await
    }

    /// A list, and how long the walk took.
    async fn look(
        &self,
        Asked { filter, most }: Asked,
        looked_at: usize,
        rests: bool,
        wants: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<(FlowList, Duration), ListError> {
        let early = filter.clone();
        let (listing, took) =
            self.walks.list(move |flow| early.may_want(flow) && wants(flow), looked_at, rests).await?;
        let carried = self.register.all();
        let names = self.names(pairs(&listing.records, &carried)).await?;
        let mut flows = views(&listing.records, &carried, &names, Timestamp::now());
        flows.retain(|flow| filter.wants(flow));
        let more = listing.more + flows.len().saturating_sub(most);
        flows.truncate(most);
        let (read, partial) = (listing.read, listing.partial);
        Ok((FlowList { version: VERSION.to_owned(), settings: settings(), read, partial, more, flows }, took))
    }

    /// A line for whatever happens, until nobody reads any more.
    pub(super) fn follow(&self, asked: Asked) -> Result<Answer, FollowError> {
        let place = Place::take(&self.followers).ok_or(FollowError::Many)?;
        // Opened here, so that whoever asks hears why it cannot be; in the daemon's network namespace, as all its threads are.
        let follower = Follower::open()?;
        let (lines, read) = mpsc::channel(BUFFERED);
        let (desk, register, handle) = (self.desk.clone(), self.register.clone(), Handle::current());
        let follow = move || {
            let _place = place;
            let mut ask = |pairs: Vec<Pair>| {
                let count = pairs.len();
                let named = handle.block_on(names_of(&desk, pairs));
                named.unwrap_or_else(|_| vec![Named::default(); count])
            };
            run(follower, Teller::new(asked.filter.clone(), register), &asked.filter, &lines, &mut ask);
            debug!("somebody who followed connections has gone");
        };
        thread::Builder::new().name("flows".to_owned()).spawn(follow).map_err(FollowError::Thread)?;
        let frames = stream::unfold(read, |mut read| async move {
            let lines = read.recv().await?;
            Some((Ok(Frame::data(lines)), read))
        });
        let mut answer = answer(StatusCode::OK, "application/x-ndjson", Bytes::new());
        *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
        Ok(answer)
    }

    async fn names(&self, pairs: Vec<Pair>) -> Result<HashMap<Pair, Named>, Busy> {
        let named = names_of(&self.desk, pairs.clone()).await?;
        Ok(pairs.into_iter().zip(named).collect())
    }
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Walk(#[from] WalkError),
}

/// Names, in the order of the pairs.
async fn names_of(desk: &Desk, pairs: Vec<Pair>) -> Result<Vec<Named>, Busy> {
    let mut named = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(CHUNK) {
        let pairs = pairs.to_vec();
        let asked = desk.ask(move |glance| pairs.iter().map(|pair| name(glance.engine, pair)).collect::<Vec<_>>());
        named.extend(asked.await?);
    }
    Ok(named)
}

/// What the kernel is set to tell.
pub fn settings() -> FlowSettings {
    FlowSettings { accounting: accounting(), timestamps: timestamps(), events: tells() }
}

fn run(
    mut follower: Follower,
    mut teller: Teller,
    filter: &FlowFilter,
    lines: &mpsc::Sender<Bytes>,
    ask: &mut dyn FnMut(Vec<Pair>) -> Vec<Named>,
) {
    let begin = FlowEvent { settings: Some(settings()), ..FlowEvent::plain(FlowWord::Begin) };
    let mut ready = vec![begin];
    let mut said = Instant::now();
    let mut missed = false;
    loop {
        let mut text = Vec::new();
        for event in &ready {
            // Writing to memory does not fail, and views are plain data.
            drop(serde_json::to_writer(&mut text, event));
            text.push(b'\n');
        }
        if ready.is_empty() && said.elapsed() > SIGN_OF_LIFE {
            text.push(b'\n');
        }
        if !text.is_empty() {
            said = Instant::now();
            match lines.try_send(text.into()) {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(_)) => missed = true,
            }
        }
        if lines.is_closed() {
            return;
        }
        let wait = if teller.waits() { SOON } else { ATTENTION };
        let (mut happened, mut lost) = (Vec::new(), false);
        let stepped = follower.step(
            wait,
            |flow| filter.may_want(flow),
            |news| match news {
                News::Flow(happening) => happened.push(*happening),
                News::Lost => lost = true,
            },
        );
        if let Err(error) = stepped {
            return warn!(%error, "somebody follows connections no more");
        }
        ready = teller.tell(happened, Instant::now(), ask);
        if lost || (missed && lines.capacity() > 0) {
            missed = false;
            ready.insert(0, FlowEvent::plain(FlowWord::Lost));
        }
    }
}

/// Whether a connection was made to one of these destinations.
pub(super) fn leads_to(destinations: &HashSet<(Protocol, Destination)>, flow: &Flow) -> bool {
    let to = flow.original.destination;
    let by_port = Destination::NodePort(Family::of(to.ip()), to.port());
    [Destination::Address(to), by_port].iter().any(|to| destinations.contains(&(flow.protocol, *to)))
}

// === impl Place ===

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |now| (now < FOLLOWERS).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
