//! Asking the daemon: one request per connection over its Unix socket, answered at once or line by line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
pub(super) use hyper::Method;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime;

/// How long an answer may take; the daemon itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// After so long without a word somebody who is followed is said to be silent; the daemon gives a sign of life every 5 s.
const SILENCE: Duration = Duration::from_secs(15);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon runs here: nobody listens on {} (--socket names another)", .0.display())]
    NoDaemon(PathBuf),
    /// We may not ask.
    #[error("only root may ask the daemon on {}: try sudo", .0.display())]
    Forbidden(PathBuf),
    /// The conversation failed.
    #[error("asking the daemon on {} for {path}: {error}", .socket.display())]
    Failed {
        /// Whom we asked.
        socket: PathBuf,
        /// For what.
        path: String,
        /// What went wrong.
        error: String,
    },
    /// It would not answer that.
    #[error("the daemon says: {0}")]
    Refused(String),
}

/// What is heard of a daemon that is followed.
#[derive(Debug)]
pub(super) enum Heard<T> {
    /// It says something.
    Line(T),
    /// It has given no sign of life for so long that it hangs, or the machine does. Said once.
    Silence,
    /// After that: it is there again.
    Again,
}

/// Why reading line by line ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    /// No rows came, or not all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What came could not be passed on.
    #[error(transparent)]
    Write(#[from] io::Error),
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

/// The answer to a question.
///
/// # Errors
/// Nobody listens, we may not ask, or the answer is not one.
pub fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    send(socket, Method::GET, path)
}

/// The answer to a question, or to an order.
pub(super) fn send<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, ClientError> {
    let failed = |error: String| ClientError::Failed { socket: socket.to_owned(), path: path.to_owned(), error };
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(error.to_string()))?;
    let talking = async { tokio::time::timeout(PATIENCE, talk(socket, method, path)).await };
    let answer = runtime.block_on(talking);
    let (status, body) = match answer {
        Err(_) => return Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))),
        Ok(Err(talk)) => return Err(talk.into_error(socket, path)),
        Ok(Ok(answer)) => answer,
    };
    match status {
        200 => serde_json::from_slice(&body).map_err(|error| failed(format!("an answer that is none: {error}"))),
        status => Err(refusal(socket, path, status, &body)),
    }
}

fn refusal(socket: &Path, path: &str, status: u16, body: &[u8]) -> ClientError {
    let (socket, path) = (socket.to_owned(), path.to_owned());
    match serde_json::from_slice::<ErrorBody>(body) {
        _ if status == 403 => ClientError::Forbidden(socket),
        Ok(body) => ClientError::Refused(body.error),
        Err(_) => ClientError::Failed { socket, path, error: format!("status {status}") },
    }
}

/// An answer that comes line by line.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    rest: Vec<u8>,
    silent: bool,
    driver: tokio::task::JoinHandle<Result<(), hyper::Error>>,
    /// For errors.
    socket: PathBuf,
    path: String,
}

/// Asks for what happens from now on. Within a tokio runtime.
///
/// # Errors
/// As [`ask`].
pub async fn follow(socket: &Path, path: &str) -> Result<Stream, ClientError> {
    let failed = |error: String| ClientError::Failed { socket: socket.to_owned(), path: path.to_owned(), error };
    let (answer, driver) = match tokio::time::timeout(PATIENCE, open(socket, Method::GET, path)).await {
        Err(_) => return Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))),
        Ok(Err(talk)) => return Err(talk.into_error(socket, path)),
        Ok(Ok(sent)) => sent,
    };
    let status = answer.status().as_u16();
    let body = answer.into_body();
    if status == 200 {
        return Ok(Stream {
            body,
            rest: Vec::new(),
            silent: false,
            driver,
            socket: socket.to_owned(),
            path: path.to_owned(),
        });
    }
    let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
    driver.abort();
    Err(refusal(socket, path, status, &body))
}

/// Passes every row of an answer on, its end included, while the next ones are on their way.
pub(super) fn each_row(
    socket: &Path,
    path: &str,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), RowError> {
    let failed = |error: String| ClientError::Failed { socket: socket.to_owned(), path: path.to_owned(), error };
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(error.to_string()))?;
    runtime.block_on(async {
        let mut stream = follow(socket, path).await?;
        let mut take = |row: &[u8]| {
            if !row.starts_with(b"{") {
                return each(row).map_err(RowError::from);
            }
            // The daemon had to stop.
            Err(RowError::Client(match serde_json::from_slice::<ErrorBody>(row) {
                Ok(body) => ClientError::Refused(body.error),
                Err(error) => failed(format!("a row that is none: {error}")),
            }))
        };
        loop {
            let frame = tokio::time::timeout(PATIENCE, stream.body.frame()).await;
            let frame = frame.map_err(|_| failed(format!("no more within {} s", PATIENCE.as_secs())))?;
            let Some(frame) = frame else { break };
            let bytes = frame.map_err(|error| failed(error.to_string()))?.into_data().unwrap_or_default();
            for row in bytes.split_inclusive(|byte| *byte == b'\n') {
                if !row.ends_with(b"\n") {
                    stream.rest.extend_from_slice(row);
                } else if stream.rest.is_empty() {
                    take(row)?;
                } else {
                    stream.rest.extend_from_slice(row);
                    take(&stream.rest)?;
                    stream.rest.clear();
                }
            }
        }
        match &stream.rest[..] {
            [] => Ok(()),
            // A document: it knows no rows.
            [b'{', ..] => Err(failed("the daemon is of another version".to_owned()).into()),
            _ => Err(failed("it broke off".to_owned()).into()),
        }
    })
}

// === impl Stream ===

impl Stream {
    /// The next line; `None` when there will be no more.
    ///
    /// # Errors
    /// The conversation failed, or a line is none.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Heard<T>>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if line.len() == 1 {
                    continue;
                }
                return match serde_json::from_slice(&line) {
                    Ok(value) => Ok(Some(Heard::Line(value))),
                    Err(error) => Err(self.failed(format!("a line that is none: {error}"))),
                };
            }
            let frame = match self.silent {
                true => self.body.frame().await,
                false => match tokio::time::timeout(SILENCE, self.body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => {
                        self.silent = true;
                        return Ok(Some(Heard::Silence));
                    }
                },
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    self.rest.extend(frame.into_data().unwrap_or_default());
                    if std::mem::take(&mut self.silent) {
                        return Ok(Some(Heard::Again));
                    }
                }
                Some(Err(error)) => return Err(self.failed(error.to_string())),
            }
        }
    }

    fn failed(&self, error: String) -> ClientError {
        ClientError::Failed { socket: self.socket.clone(), path: self.path.clone(), error }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

enum Talk {
    Connect(io::Error),
    Http(hyper::Error),
}

// === impl Talk ===

impl Talk {
    fn into_error(self, socket: &Path, path: &str) -> ClientError {
        let (socket, path) = (socket.to_owned(), path.to_owned());
        match self {
            Talk::Connect(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon(socket),
                io::ErrorKind::PermissionDenied => ClientError::Forbidden(socket),
                _ => ClientError::Failed { socket, path, error: error.to_string() },
            },
            Talk::Http(error) => ClientError::Failed { socket, path, error: error.to_string() },
        }
    }
}

async fn talk(socket: &Path, method: Method, path: &str) -> Result<(u16, Bytes), Talk> {
    let (answer, driver) = open(socket, method, path).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(Talk::Http)?.to_bytes();
    driver.abort();
    Ok((status, body))
}

type Sent = (hyper::Response<Incoming>, tokio::task::JoinHandle<Result<(), hyper::Error>>);

async fn open(socket: &Path, method: Method, path: &str) -> Result<Sent, Talk> {
    let stream = UnixStream::connect(socket).await.map_err(Talk::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Talk::Http)?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(path).header("host", "pointsman");
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Talk::Connect(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    Ok((sender.send_request(request).await.map_err(Talk::Http)?, driver))
}

/// A query of these parameters, those without a value left out.
pub(super) fn query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_there_is_named() {
        let error = ask::<serde_json::Value>(Path::new("/nowhere/at/all.sock"), "/v1/health").expect_err("nobody");
        assert_eq!(
            error.to_string(),
            "no daemon runs here: nobody listens on /nowhere/at/all.sock (--socket names another)"
        );
    }

    #[test]
    fn parameters_are_escaped() {
        assert_eq!(query("/v1/list", &[("search", Some("a b&c=\n")), ("only", None)]), "/v1/list?search=a+b%26c%3D%0A");
        assert_eq!(query("/v1/list", &[("search", None)]), "/v1/list");
    }
}
