//! Counts the requests that a client of the API server makes: a layer around its HTTP service.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::header::DATE;
use hyper::{Request, Response};
use tower::Service;

use crate::observe::contact;

/// An HTTP service whose requests are counted and timed, until the head of the answer.
#[derive(Clone, Debug)]
pub struct CountRequests<S> {
    inner: S,
    host: Arc<str>,
}

// === impl CountRequests ===

impl<S> CountRequests<S> {
    /// Counts the requests of `inner`, which all go to this `host` (and port).
    pub fn new(inner: S, host: &str) -> Self {
        Self { inner, host: host.into() }
    }
}

fn date<A>(answer: &Response<A>) -> Option<&str> {
    answer.headers().get(DATE)?.to_str().ok()
}

impl<S, B, A> Service<Request<B>> for CountRequests<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (method, host, begin) = (request.method().clone(), self.host.clone(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            contact::note(&host, answer.as_ref().map(date).map_err(ToString::to_string));
            super::api_request(method.as_str(), &host, code, begin.elapsed());
            answer
        })
    }
}
