//! The socket in the file system by which `pointsman` asks the daemon.
//!
//! Its directory is made for root alone if it is not there (one that is there stays as it is), and so is the socket, before it has its name: there is no
//! moment at which somebody else could connect. A socket that nobody listens on any more was left by a process that is dead, and is
//! replaced; one that answers is somebody's, and what is no socket is nobody's business: both stay, and opening it is tried again, for ever.
//!
//! Proven by the tests below and by `tests/e2e/status.rs`.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};

use super::http::{Handler, Limits, REBIND, Server};

/// A socket that is served, or will be.
#[derive(Debug)]
pub(super) struct StatusSocket(JoinHandle<()>);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it.
    #[error("{}: another process serves it", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else.
    #[error("{}: there is something that is no socket", path.display())]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {action} {}: {reason}", path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
}

/// Opens a socket for root alone.
///
/// # Errors
/// As the type says; nothing is left then.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let refused = |action, path: &Path| {
        let path = path.to_owned();
        move |reason| SocketError::Refused { action, path, reason }
    };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(refused("make", directory))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(refused("look at", path)(error)),
        Ok(there) if !there.file_type().is_socket() => return Err(SocketError::NoSocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(refused("try", path)(error)),
            Ok(_) => return Err(SocketError::Taken { path: path.to_owned() }),
        },
    }
    // It gets its name when nobody else can connect any more.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    drop(fs::remove_file(&beside));
    let open = || {
        let listener = UnixListener::bind(&beside).map_err(refused("open", path))?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600)).map_err(refused("set the mode of", path))?;
        listener.set_nonblocking(true).map_err(refused("open", path))?;
        fs::rename(&beside, path).map_err(refused("name", path))?;
        Ok(listener)
    };
    open().inspect_err(|_| drop(fs::remove_file(&beside)))
}

// === impl StatusSocket ===

impl StatusSocket {
    /// Serves, as soon as the socket can be had.
    pub(super) fn start(path: PathBuf, limits: Limits, handler: Handler) -> Self {
        Self(tokio::spawn(async move {
            let mut said = false;
            let listener = loop {
                match bind(&path) {
                    Ok(listener) => break listener,
                    Err(error) if !said => {
                        said = true;
                        warn!(%error, retry_in = ?REBIND, "`pointsman` cannot ask this process; Services are served all the same");
                    }
                    Err(_) => {}
                }
                sleep(REBIND).await;
            };
            info!(path = %path.display(), "`pointsman` may ask");
            let _server = Server::on_socket(listener, limits, handler);
            std::future::pending::<()>().await;
        }))
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_dead_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/pointsman.sock");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let first = bind(&path).expect("free");
        assert_eq!((mode(path.parent().expect("a parent")), mode(&path)), (0o700, 0o600));
        assert!(matches!(bind(&path), Err(SocketError::Taken { .. })));
        drop(first);
        let again = bind(&path).expect("nobody listens any more");
        UnixStream::connect(&path).expect("served");
        let file = directory.path().join("file");
        fs::write(&file, "precious").expect("written");
        assert!(matches!(bind(&file), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read(&file).expect("there"), b"precious");
        let below = file.join("pointsman.sock");
        assert!(matches!(bind(&below), Err(SocketError::Refused { .. })));
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 2, "nothing is left");
        drop(again);
    }

    #[test]
    fn a_directory_that_is_there_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("ours");
        let _listener = bind(&directory.path().join("s")).expect("free");
        assert_eq!(fs::metadata(directory.path()).expect("there").permissions().mode() & 0o777, 0o755);
    }
}
