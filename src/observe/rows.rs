//! The rows of all frontends: what `pointsman list` shows of a large cluster while the controller still looks at the rest of it.
//!
//! A *piece* is what the controller looks at in one go. While one is written out, which happens where the connection is served, the
//! controller makes the next ones. Whoever reads has nothing to do but to pass on what comes: as JSON the list would be written, read and
//! written again, and take three times as long. Nothing is worked out ahead of a reader who does not read, but for [`AHEAD`] pieces.
//!
//! Invariants: rows are those of [`crate::status::rows`], in the order of `/v1/list`; no row begins with a brace, but when the controller has no time the last line
//! is `{"error": "..."}`, and what came before it is not all.
//!
//! Proven by `tests/e2e/status.rs` and, without a controller, below; timed by `bench status`.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::{Bytes, Frame};
use serde::Serialize;

use super::desk::{Busy, Desk};
use super::http::{Answer, answer};
use crate::model::{Protocol, ServiceKey};
use crate::status::rows::EndpointRows;
use crate::status::{self, ListedFrontend, Sums};

/// Pieces that are asked for before they are wanted.
const AHEAD: usize = 3;

/// Bytes of a frontend with ten endpoints, about.
const ROWS: usize = 768;

/// Connections, and what has to be known to count those by node ports.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) census: Arc<Sums>,
    /// See [`status::crossed`].
    pub(super) crossed: Arc<[(Protocol, SocketAddr)]>,
}

/// What is said instead of more rows.
#[derive(Serialize)]
struct Broken {
    error: String,
}

/// All frontends of these Services, cut into pieces.
pub(super) fn rows(
    desk: Desk,
    pieces: impl Iterator<Item = Vec<ServiceKey>> + Send + 'static,
    counted: Counted,
) -> Answer {
    let ask = move |keys: Vec<ServiceKey>| {
        let desk = desk.clone();
        async move {
            let look = move |key: &ServiceKey, glance: &super::desk::Glance<'_>| status::list(glance.engine, key);
            desk.ask(move |glance| keys.iter().flat_map(|key| look(key, &glance)).collect::<Vec<_>>()).await
        }
    };
    let asked = stream::iter(pieces).map(ask).buffered(AHEAD);
    // After the first that failed there is nothing more to say.
    let until_failed = asked.scan(false, |failed, piece| {
        let told = (!*failed).then_some(piece);
        *failed |= told.as_ref().is_some_and(Result::is_err);
        ready(told)
    });
    let frames = until_failed.map(move |piece| Ok(Frame::data(written(piece, &counted))));
    let mut answer = answer(StatusCode::OK, "text/plain; charset=utf-8", Bytes::new());
    *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
    answer
}

fn written(piece: Result<Vec<ListedFrontend>, Busy>, counted: &Counted) -> Bytes {
    let mut text = Vec::new();
    match piece {
        Ok(frontends) => {
            text.reserve(frontends.len() * ROWS);
            let mut rows = EndpointRows::default();
            // Writing to memory does not fail, here and below.
            let mut write = |one: &ListedFrontend| one.write(&mut text, &mut rows, &counted.census, &counted.crossed);
            drop(frontends.iter().try_for_each(&mut write));
        }
        Err(busy) => {
            drop(serde_json::to_writer(&mut text, &Broken { error: busy.to_string() }));
            text.push(b'\n');
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::desk::desk;

    /// The answer of a desk that nobody serves: one line, whatever was asked for.
    #[tokio::test]
    async fn without_a_controller_the_last_line_says_so() {
        let (desk, questions) = desk();
        drop(questions);
        let pieces = (0..9).map(|number| vec![ServiceKey::new("shop", &format!("s{number}"))]);
        let counted = Counted { census: Arc::default(), crossed: Arc::default() };
        let body = rows(desk, pieces, counted).into_body().collect().await.expect("a body").to_bytes();
        let text = std::str::from_utf8(&body).expect("text");
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(line["error"], Busy.to_string());
    }
}
