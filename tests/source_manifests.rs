//! A manifest source on real directories: what happens to files comes out as changes.
//!
//! Each test owns a temporary directory and one running source. [`Live`] replays the changes into a map, as the model would, and waits
//! for the map to look as it should. Nothing here needs root, except that root is not stopped by file modes: the test of an
//! unreadable file uses something root cannot read either.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman::source::manifests::{ManifestSource, Problem};
use pointsman::source::object::Service;
use pointsman::source::{Change, Kind, Object, ObjectKey};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A rescan that no test lives to see.
const NEVER: Duration = Duration::from_secs(3600);
/// A rescan that a test need not wait for.
const OFTEN: Duration = Duration::from_millis(20);
/// Far more than anything takes.
const LONG: Duration = Duration::from_secs(10);
/// Long enough for a wrong change to show up, short enough for a test.
const MOMENT: Duration = Duration::from_millis(300);

/// A running source and what it said so far.
struct Live {
    changes: mpsc::Receiver<Change>,
    problems: mpsc::UnboundedReceiver<Problem>,
    image: BTreeMap<(Kind, ObjectKey), Object>,
    /// Everything after the first sync, as text.
    log: Vec<String>,
    _stop: DropGuard,
}

/// A Service whose cluster address ends in `version`.
fn service(name: &str, version: u8) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.0.0.{version}\n")
}

/// Writes next to the file and renames over it, as editors do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new~");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A mounted ConfigMap's next revision: a new directory, `..data` swapped to it, the old directory removed.
fn publish(dir: &Path, revision: u8, files: &[(&str, String)]) {
    let payload = dir.join(format!("..rev{revision}"));
    fs::create_dir(&payload).unwrap();
    for (name, text) in files {
        fs::write(payload.join(name), text).unwrap();
    }
    symlink(payload.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
    let old = fs::read_link(dir.join("..data")).ok();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    for (name, _) in files {
        if !dir.join(name).exists() {
            symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
        }
    }
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_symlink() && !entry.exists() {
            fs::remove_file(entry).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old)).unwrap();
    }
}

// === impl Live ===

impl Live {
    /// Starts a source and waits for its first listing. It does not rescan: what it sees, inotify has told it.
    async fn start(dir: &Path) -> Self {
        Live::start_with(dir, NEVER).await
    }

    async fn start_with(dir: &Path, rescan: Duration) -> Self {
        let (sender, changes) = mpsc::channel(4);
        let (reports, problems) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let source = ManifestSource::new(dir, "n1").unwrap().rescan_every(rescan).report_to(reports);
        tokio::spawn(source.run(sender, stop.clone()));
        let mut live = Live { changes, problems, image: BTreeMap::new(), log: Vec::new(), _stop: stop.drop_guard() };
        let mut synced = Vec::new();
        while synced.len() < 4 {
            match timeout(LONG, live.changes.recv()).await.expect("synced").expect("running") {
                Change::Synced(kind) => synced.push(kind),
                change => live.take(change),
            }
        }
        assert_eq!(synced, [Kind::Node, Kind::ServiceCIDR, Kind::EndpointSlice, Kind::Service]);
        live.log.clear();
        live
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Apply(object) => {
                self.log.push(format!("+{}", object.key().name));
                self.image.insert((object.kind(), object.key()), object);
            }
            Change::Delete(kind, key) => {
                self.log.push(format!("-{}", key.name));
                self.image.remove(&(kind, key)).expect("deleted what was there");
            }
            Change::Synced(kind) => panic!("{} synced twice", kind.name()),
        }
    }

    /// `name=version` of each Service, sorted.
    fn services(&self) -> String {
        let tell = |service: &Service| {
            let address = service.spec.cluster_ip.as_deref().unwrap_or("?.?");
            format!("{}={}", service.metadata.name.as_deref().unwrap(), address.rsplit('.').next().unwrap())
        };
        let services = self.image.values().filter_map(|object| match object {
            Object::Service(service) => Some(tell(service)),
            _ => None,
        });
        services.collect::<Vec<_>>().join(" ")
    }

    /// Waits until the Services are these.
    async fn until(&mut self, expected: &str) {
        while self.services() != expected {
            let change = timeout(LONG, self.changes.recv()).await;
            let change = change.unwrap_or_else(|_| panic!("{:?} instead of {expected:?}", self.services()));
            self.take(change.expect("running"));
        }
    }

    /// Nothing is said for a moment.
    async fn quiet(&mut self) {
        if let Ok(change) = timeout(MOMENT, self.changes.recv()).await {
            panic!("unexpected {change:?}");
        }
    }

    /// The next problem, as the user reads it.
    async fn problem(&mut self) -> String {
        timeout(LONG, self.problems.recv()).await.expect("a problem").expect("running").to_string()
    }

    fn no_problem(&mut self) {
        if let Ok(problem) = self.problems.try_recv() {
            panic!("unexpected: {problem}");
        }
    }
}

#[tokio::test]
async fn files_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.yaml"), service("a", 1)).unwrap();
    fs::write(path("b.yml"), service("b", 1) + "---\n" + &service("c", 1)).unwrap();
    fs::write(path("d.json"), r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"d"}}"#).unwrap();
    for ignored in [".hidden.yaml", "a.yaml~", "notes.txt", "#a.yaml#"] {
        fs::write(path(ignored), "{").unwrap();
    }
    fs::create_dir(path("sub.yaml")).unwrap();
    fs::write(path("sub.yaml/e.yaml"), service("e", 1)).unwrap();

    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.services(), "a=1 b=1 c=1 d=?");

    fs::write(path("a.yaml"), service("a", 2)).unwrap();
    live.until("a=2 b=1 c=1 d=?").await;

    replace(&path("a.yaml"), &service("a", 3));
    live.until("a=3 b=1 c=1 d=?").await;

    fs::write(path("e.yaml"), service("e", 1)).unwrap();
    live.until("a=3 b=1 c=1 d=? e=1").await;

    fs::remove_file(path("e.yaml")).unwrap();
    live.until("a=3 b=1 c=1 d=?").await;

    live.log.clear();
    fs::write(path("b.yml"), service("c", 1) + "---\n" + &service("b", 2)).unwrap();
    live.until("a=3 b=2 c=1 d=?").await;
    fs::rename(path("b.yml"), path("z.yml")).unwrap();
    fs::write(path("d.json"), "").unwrap();
    live.until("a=3 b=2 c=1").await;
    assert_eq!(live.log, ["+b", "-d"], "only what changed, and nothing for the rename");
    live.quiet().await;
    live.no_problem();
}

#[tokio::test]
async fn edits_of_the_same_size_in_one_clock_tick_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a", 0)).unwrap();
    let mut live = Live::start(dir.path()).await;
    for version in 1..=200 {
        fs::write(&file, service("a", version)).unwrap();
        if version % 10 == 0 {
            live.until(&format!("a={version}")).await;
        }
    }
}

#[tokio::test]
async fn a_file_is_read_when_its_writer_is_done() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, service("a", 1) + "---\n" + &service("b", 1)).unwrap();
    let mut live = Live::start(dir.path()).await;

    // Truncated, half written (and valid so far), finished.
    let mut file = fs::File::create(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    writeln!(file, "{}---", service("a", 2)).unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    write!(file, "{}", service("b", 2)).unwrap();
    drop(file);
    live.until("a=2 b=2").await;
    assert_eq!(live.log, ["+a", "+b"]);

    // Emptied by one, written by the next.
    fs::write(&path, "").unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    fs::write(&path, service("a", 3)).unwrap();
    live.until("a=3").await;
    assert_eq!(live.log[2..], ["-b", "+a"], "the moment of emptiness went by");

    // A writer that never closes does not block for ever.
    let mut file = fs::File::create(&path).unwrap();
    write!(file, "{}", service("a", 4)).unwrap();
    file.flush().unwrap();
    live.until("a=4").await;
}

#[tokio::test]
async fn a_config_map_is_swapped() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), 1, &[("a.yaml", service("a", 1)), ("b.yaml", service("b", 1))]);
    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.services(), "a=1 b=1");

    publish(dir.path(), 2, &[("a.yaml", service("a", 2)), ("b.yaml", service("b", 1))]);
    live.until("a=2 b=1").await;
    assert_eq!(live.log, ["+a"]);

    publish(dir.path(), 3, &[("a.yaml", service("a", 3)), ("c.yaml", service("c", 1))]);
    live.until("a=3 c=1").await;
    live.quiet().await;
    live.no_problem();
}

#[tokio::test]
async fn links_to_files_elsewhere_are_followed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = other.path().join("whatever");
    fs::write(&target, service("a", 1)).unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    symlink(other.path().join("nothing"), dir.path().join("b.yaml")).unwrap();
    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.services(), "a=1");
    fs::write(&target, service("a", 2)).unwrap();
    live.until("a=2").await;
    fs::write(other.path().join("nothing"), service("b", 1)).unwrap();
    live.until("a=2 b=1").await;
    fs::remove_file(&target).unwrap();
    live.until("b=1").await;
    fs::write(&target, service("a", 3)).unwrap();
    live.until("a=3 b=1").await;
    live.no_problem();
}

#[tokio::test]
async fn the_directory_is_a_link_that_is_swapped() {
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name);
    for version in 1..=3 {
        let dir = path(&format!("rev{version}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("a", version)).unwrap();
    }
    fs::write(path("rev1/b.yaml"), service("b", 1)).unwrap();
    symlink("rev1", path("current")).unwrap();
    let mut live = Live::start(&path("current")).await;
    assert_eq!(live.services(), "a=1 b=1");
    let swap = |to: &str| {
        symlink(to, path("next")).unwrap();
        fs::rename(path("next"), path("current")).unwrap();
    };
    swap("rev2");
    live.until("a=2").await;
    // What is behind the link now is what is watched.
    fs::write(path("rev2/a.yaml"), service("a", 9)).unwrap();
    live.until("a=9").await;
    fs::write(path("rev1/a.yaml"), service("a", 8)).unwrap();
    swap("rev3");
    live.until("a=3").await;
    live.no_problem();
}

#[tokio::test]
async fn a_directory_that_is_gone_changes_nothing_until_it_is_back() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
    fs::write(dir.join("b.yaml"), service("b", 1)).unwrap();
    let mut live = Live::start(&dir).await;

    fs::rename(&dir, base.path().join("away")).unwrap();
    let problem = live.problem().await;
    assert!(problem.contains("manifests: cannot list it: No such file"), "{problem}");
    live.quiet().await;
    live.no_problem();

    fs::create_dir(&dir).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::write(dir.join("a.yaml"), service("a", 2)).unwrap();
    fs::write(dir.join("b.yaml"), service("b", 1)).unwrap();
    live.until("a=2 b=1").await;
    assert_eq!(live.log, ["+a"], "no Delete while it was filled");
    let problem = live.problem().await;
    assert!(problem.ends_with("manifests: back again"), "{problem}");

    fs::write(dir.join("b.yaml"), service("b", 2)).unwrap();
    live.until("a=2 b=2").await;
}

#[tokio::test]
async fn the_rescan_finds_what_inotify_does_not_see() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("deep/manifests");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
    symlink("../../later/b", dir.join("b.yaml")).unwrap();
    let mut live = Live::start_with(&dir, OFTEN).await;

    fs::create_dir(base.path().join("later")).unwrap();
    fs::write(base.path().join("later/b"), service("b", 1)).unwrap();
    live.until("a=1 b=1").await;

    fs::remove_dir_all(base.path().join("deep")).unwrap();
    live.problem().await;
    tokio::time::sleep(OFTEN * 3).await;
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("c.yaml"), service("c", 1)).unwrap();
    live.until("c=1").await;
}

#[tokio::test]
async fn bad_content_keeps_the_last_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a", 1)).unwrap();
    fs::write(dir.path().join("b.yaml"), "never: good").unwrap();
    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.problem().await, "b.yaml:1: not a Kubernetes object: kind is missing; nothing of it is used");

    fs::write(&file, service("a", 2) + "  ports:\n  - port: eighty\n").unwrap();
    assert_eq!(
        live.problem().await,
        "a.yaml:8: Service default/a: spec.ports[0].port: invalid i64 at `eighty`; its last good content stays in force"
    );
    // Other files are not held up by it.
    fs::write(dir.path().join("c.yaml"), service("c", 1)).unwrap();
    live.until("a=1 c=1").await;
    live.no_problem();

    // Once per content, not per look.
    fs::File::options().append(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    live.quiet().await;
    live.no_problem();
    fs::write(&file, [0, 159, 146, 150, b'\n', 255]).unwrap();
    assert_eq!(live.problem().await, "a.yaml:1: not UTF-8 text; its last good content stays in force");
    fs::write(&file, "{[\0").unwrap();
    assert!(live.problem().await.starts_with("a.yaml:1: "));

    fs::write(&file, service("a", 3)).unwrap();
    live.until("a=3 c=1").await;
    assert_eq!(live.problem().await, "a.yaml: fine again");
    fs::remove_file(&file).unwrap();
    live.until("c=1").await;
    live.no_problem();
}

#[tokio::test]
async fn what_cannot_be_read_keeps_the_last_good_content() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a", 1)).unwrap();
    let mut live = Live::start(dir.path()).await;

    let huge = dir.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(65 << 20).unwrap();
    fs::rename(&huge, &file).unwrap();
    assert_eq!(
        live.problem().await,
        "a.yaml: cannot read it: it has 65 MiB, a manifest may have 64 MiB; its last good content stays in force"
    );
    fs::remove_file(&file).unwrap();
    live.until("").await;
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(live.problem().await, "a.yaml: cannot read it: it is not a regular file; nothing of it is used");
    replace(&file, &service("a", 2));
    live.until("a=2").await;
    assert_eq!(live.problem().await, "a.yaml: fine again");

    // A link to itself: root is refused as well.
    fs::remove_file(&file).unwrap();
    symlink("a.yaml", &file).unwrap();
    let problem = live.problem().await;
    assert!(problem.starts_with("a.yaml: cannot stat it: Too many levels"), "{problem}");
    live.quiet().await;
    live.no_problem();
    fs::remove_file(&file).unwrap();
    fs::write(&file, service("a", 3)).unwrap();
    live.until("a=3").await;
}

#[tokio::test]
async fn the_first_file_wins_and_the_other_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("x", 1)).unwrap();
    fs::write(dir.path().join("b.yaml"), service("y", 1) + "---\n" + &service("x", 2)).unwrap();
    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.services(), "x=1 y=1");
    assert_eq!(live.problem().await, "b.yaml:8: Service default/x ignored: a.yaml:1 has it already");
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    live.until("x=2 y=1").await;
    assert_eq!(live.log, ["+x"]);
    live.no_problem();
}

#[tokio::test]
async fn lists_foreign_kinds_and_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let node = |name| format!("- {{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}\n");
    let foreign = "- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n";
    let list = |rest: &str| {
        format!("apiVersion: v1\nkind: List\nitems:\n{}{foreign}{foreign}{}{rest}", node("n2"), node("n1"))
    };
    fs::write(dir.path().join("a.yaml"), list("")).unwrap();
    let mut live = Live::start(dir.path()).await;
    assert_eq!(live.problem().await, "a.yaml:5: v1 ConfigMap skipped (2 of them in this file)");
    let keys = |live: &Live| live.image.keys().map(|(kind, key)| format!("{} {key}", kind.name())).collect::<Vec<_>>();
    assert_eq!(keys(&live), ["Node n1"]);

    let slice = "- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, namespace: w}}\n";
    let svc = "- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.0.0.1}}\n";
    fs::write(dir.path().join("a.yaml"), list(&format!("{svc}{slice}"))).unwrap();
    live.until("s=1").await;
    assert_eq!(keys(&live), ["Service default/s", "EndpointSlice w/s", "Node n1"]);
    live.no_problem();
}

/// Whatever is done at whatever pace, the objects end up being those of the files.
#[tokio::test]
async fn a_storm_ends_where_the_files_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = Live::start(dir.path()).await;
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for round in 0..400u64 {
        let file = dir.path().join(format!("f{}.yaml", next(6)));
        let text = || service(&format!("s{}", round % 7), u8::try_from(round % 200).unwrap());
        match next(6) {
            0 => drop(fs::remove_file(&file)),
            1 => drop(fs::rename(&file, dir.path().join(format!("f{}.yaml", next(6))))),
            2 => replace(&file, &text()),
            3 => fs::write(&file, "").unwrap(),
            4 => fs::write(&file, "broken: [").unwrap(),
            _ => fs::write(&file, text()).unwrap(),
        }
        if next(4) == 0 {
            tokio::time::sleep(Duration::from_millis(next(12))).await;
        }
        while let Ok(change) = live.changes.try_recv() {
            live.take(change);
        }
    }
    let mut expected = BTreeMap::new();
    for number in 0..6u8 {
        let name = format!("only{number}");
        replace(&dir.path().join(format!("f{number}.yaml")), &service(&name, number));
        expected.insert(name, number);
    }
    let expected = expected.iter().map(|(name, version)| format!("{name}={version}")).collect::<Vec<_>>().join(" ");
    live.until(&expected).await;
    live.quiet().await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error() {
    let error = ManifestSource::new("/nonexistent/manifests", "n1").unwrap_err();
    assert_eq!(error.dir, PathBuf::from("/nonexistent/manifests"));
    assert!(error.to_string() == "cannot read the manifest directory /nonexistent/manifests", "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = ManifestSource::new(file.path(), "n1").unwrap_err();
    let cause = std::error::Error::source(&error).expect("what listing it answered").to_string();
    assert!(cause.contains("Not a directory"), "{cause}");
}

#[tokio::test]
async fn shutdown_ends_it_even_when_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(dir.path().join(format!("{name}.yaml")), service(name, 1)).unwrap();
    }
    let stop = CancellationToken::new();
    let (sender, receiver) = mpsc::channel(1);
    let task = tokio::spawn(ManifestSource::new(dir.path(), "n1").unwrap().run(sender, stop.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!task.is_finished());
    stop.cancel();
    timeout(LONG, task).await.unwrap().unwrap();

    let (sender, gone) = mpsc::channel(1);
    drop((gone, receiver));
    let source = ManifestSource::new(dir.path(), "n1").unwrap();
    timeout(LONG, source.run(sender, CancellationToken::new())).await.unwrap();
}
