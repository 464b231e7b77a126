//! What was said by hand, kept for the next process: a file beside the status socket.
//!
//! An endpoint that somebody drained must not serve again because the daemon was upgraded in between. So what stands is written whenever somebody
//! says something, and read at a start; times in it are of the clock on the wall, so what has ended meanwhile has ended. It is under `/run`
//! as a rule, and gone after a reboot, as are the connections that a drain is about. Only what the file says about its owner's wishes is believed:
//! it is read like any other input, and what cannot be read is said and has no effect.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::engine::MOST_OVERRIDES;
use crate::model::ServiceKey;
use crate::policy::Override;
use crate::status::{OverrideList, OverrideView, VERSION};

/// More than so many bytes are nothing that we wrote.
const LARGEST: u64 = 4 << 20;

/// Where it is kept, given the status socket: `pointsman.overrides.json` beside `pointsman.sock`.
pub fn beside(socket: &Path) -> PathBuf {
    socket.with_extension("overrides.json")
}

/// What a predecessor left; nothing, if that cannot be read.
pub fn read(path: &Path) -> Vec<(ServiceKey, Override)> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Ok(there) if there.len() > LARGEST => Err(io::Error::other("it is too large")),
        _ => fs::read_to_string(path),
    };
    let list = text.map_err(|error| error.to_string());
    let list = list.and_then(|text| serde_json::from_str::<OverrideList>(&text).map_err(|error| error.to_string()));
    let list = match list {
        Ok(list) => list.overrides,
        Err(error) => {
            warn!(path = %path.display(), error, "what was said by hand before cannot be read: endpoints that were drained are not");
            return Vec::new();
        }
    };
    let (now, wall) = (Instant::now(), Timestamp::now());
    if !list.is_empty() {
        info!(path = %path.display(), count = list.len(), "what was said by hand before still holds for its time");
    }
    list.iter().take(MOST_OVERRIDES).map(|one| one.restore(now, wall)).collect()
}

/// Leaves this for a successor; nothing needs no file.
///
/// # Errors
/// As the system says; what was there before is there then.
pub fn write(path: &Path, overrides: Vec<OverrideView>) -> io::Result<()> {
    if overrides.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let list = OverrideList { version: VERSION.to_owned(), overrides, warnings: Vec::new() };
    let text = serde_json::to_vec_pretty(&list)?;
    let beside = path.with_extension(format!("new.{}", std::process::id()));
    drop(fs::remove_file(&beside));
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        fs::rename(&beside, path)
    };
    put().inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_nothing_and_what_is_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = beside(&directory.path().join("pointsman.sock"));
        assert!(path.ends_with("pointsman.overrides.json"));
        assert_eq!(read(&path), []);
        for text in ["", "{", "[]", "{\"version\": \"v1\", \"overrides\": [{\"weight\": -1}]}", "\u{0}\u{1}"] {
            fs::write(&path, text).expect("written");
            assert_eq!(read(&path), [], "{text}");
        }
        let now = Timestamp::now();
        let one = OverrideView {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            pod: Some("web-1\u{1b}".to_owned()),
            address: None,
            port: None,
            weight: 0,
            since: now,
            until: now + jiff::SignedDuration::from_hours(1),
            endpoints: Vec::new(),
            without_effect: false,
            warnings: Vec::new(),
        };
        write(&path, vec![one]).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let kept = read(&path);
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].0.to_string(), kept[0].1.is_drain()), ("shop/web".to_owned(), true));
        write(&path, Vec::new()).expect("removed");
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left");
        write(&path, Vec::new()).expect("nothing to remove");
    }
}
