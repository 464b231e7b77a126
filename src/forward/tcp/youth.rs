//! Connections that have only just begun.
//!
//! Many connections are over in a millisecond: connect, ask, be answered, close. What a connection needs only if it stays (keepalives at
//! the server's side, a timer of an hour) takes five system calls, beside the twenty-five or so of such a one. So each begins *young*, and is
//! told when it has lived for [`AGE`]: then it *settles*.
//!
//! Each worker knows its own young ones, and has one task that looks after them all every now and then, while there are any. A young
//! connection stays with its worker's thread, and so does its [`Youth`].
//!
//! Proven by the tests below.

use std::cell::RefCell;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::task::yield_now;
use tokio::time::sleep;

/// Who has lived for so long is young no more; it is told up to as long again later.
pub(super) const AGE: Duration = Duration::from_millis(500);
/// So many are told at once, and then others have their turn: settling takes some ten microseconds.
const TURN: usize = 16;

/// A connection's place among the thread's young ones; dropping it leaves. Never sent to another thread.
#[derive(Debug)]
pub(super) struct Youth(usize);

#[derive(Debug, Default)]
struct Young {
    /// Since when, and who is to be woken; none: it has been.
    all: Slab<Option<(Instant, Waker)>>,
    watched: bool,
}

thread_local! {
    static YOUNG: RefCell<Young> = RefCell::default();
}

// === impl Youth ===

impl Youth {
    /// From now on, for the task that is being polled. Within a runtime of the thread's own.
    pub fn begin(cx: &Context<'_>) -> Self {
        YOUNG.with_borrow_mut(|young| {
            if !young.watched {
                young.watched = true;
                tokio::spawn(watch());
            }
            Self(young.all.insert(Some((Instant::now(), cx.waker().clone()))))
        })
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        YOUNG.with_borrow(|young| young.all[self.0].is_none())
    }
}

impl Drop for Youth {
    fn drop(&mut self) {
        // A thread that is ending has forgotten them all.
        let _ = YOUNG.try_with(|young| young.borrow_mut().all.remove(self.0));
    }
}

/// Wakes who has grown up, until there are no young ones.
async fn watch() {
    loop {
        sleep(AGE).await;
        let now = Instant::now();
        let is_grown = |(since, _): &mut (Instant, Waker)| now.duration_since(*since) >= AGE;
        let grown: Vec<_> = YOUNG.with_borrow_mut(|young| {
            young.all.iter_mut().filter_map(|(_, one)| one.take_if(is_grown)).map(|(_, waker)| waker).collect()
        });
        for some in grown.chunks(TURN) {
            some.iter().for_each(Waker::wake_by_ref);
            yield_now().await;
        }
        let nobody = YOUNG.with_borrow_mut(|young| {
            young.watched = !young.all.is_empty();
            !young.watched
        });
        if nobody {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// Ready when its youth is over.
    async fn live() {
        let mut youth = None;
        poll_fn(|cx| {
            let youth: &Youth = youth.get_or_insert_with(|| Youth::begin(cx));
            if youth.is_over() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn counted() -> (usize, bool) {
        YOUNG.with_borrow(|young| (young.all.len(), young.watched))
    }

    #[tokio::test]
    async fn all_are_told_and_nobody_is_watched_when_there_are_none() {
        for _ in 0..2 {
            let begin = Instant::now();
            let many: Vec<_> = (0..3 * TURN).map(|_| tokio::spawn(live())).collect();
            let short = tokio::spawn(live());
            yield_now().await;
            assert_eq!(counted(), (3 * TURN + 1, true));
            short.abort();
            assert!(short.await.is_err());
            assert_eq!(counted(), (3 * TURN, true), "it was over before");
            for one in many {
                one.await.expect("no panic");
            }
            assert!(begin.elapsed() >= AGE);
            yield_now().await;
            while counted() != (0, false) {
                sleep(AGE / 10).await;
            }
        }
    }
}
