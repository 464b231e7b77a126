//! One network namespace as a value: made, entered, and gone when dropped.
//!
//! A namespace lives as long as something refers to it. A *named* one is referred to by a bind mount at `/run/netns/NAME`, which is
//! the convention of iproute2, so that `ip netns exec NAME` and `nsenter --net=/run/netns/NAME` enter it; an *anonymous* one only
//! by the file descriptor in the value. Dropping takes both away.
//!
//! iproute2 mounts `/run/netns` over itself, once, so that mount namespaces share what is mounted there. Names mounted before that
//! would be covered, and could not be removed any more; so whoever makes the first name here does the same before, in the same way.
//!
//! `setns(2)` moves one thread, not the process. So everything that runs inside does so on a thread made for it:
//! [`Namespace::run`] for a closure, [`Namespace::thread`] for a worker that stays, [`Namespace::spawn`] for a child process (which
//! inherits the namespace of the thread that forks it). A socket belongs for good to the namespace in which it was created, so it
//! may be handed out and used anywhere.
//!
//! Proven by `tests/lab.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::LabError;
use super::rtnetlink::Rtnl;

/// Where named namespaces are mounted.
pub const NETNS_DIR: &str = "/run/netns";

/// The calling thread's network namespace, as a file.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// A network namespace; see the module.
#[derive(Debug)]
pub struct Namespace {
    name: Option<String>,
    file: File,
}

impl Namespace {
    /// Makes a namespace that others can enter by its name. Loopback is down, as the kernel makes it; see [`Namespace::prepare`].
    ///
    /// # Errors
    /// Without root, and when the name is taken.
    pub fn named(name: &str) -> Result<Self, LabError> {
        let path = mount_point(name);
        let failed = |source| LabError::new("make network namespace", name, source);
        share_names().map_err(failed)?;
        File::create_new(&path).map_err(failed)?;
        let made = on_new_namespace(|own| {
            mount(Some(OWN_NETNS), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(own)
        });
        match made {
            Ok(file) => Ok(Self { name: Some(name.to_owned()), file }),
            Err(source) => {
                let _ = fs::remove_file(&path);
                Err(failed(source))
            }
        }
    }

    /// Makes a namespace that nobody else can find.
    ///
    /// # Errors
    /// Without root.
    pub fn anonymous() -> Result<Self, LabError> {
        let file =
            on_new_namespace(Ok).map_err(|source| LabError::new("make network namespace", "(anonymous)", source))?;
        Ok(Self { name: None, file })
    }

    /// Name under `/run/netns`, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Runs a closure inside, on a thread of its own, and waits for it. A panic in there goes on here.
    ///
    /// # Panics
    /// If the namespace cannot be entered: whoever could make it can, unless root was given up in between.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name(self.thread_name()).spawn_scoped(scope, || {
                self.enter();
                work()
            });
            match inside.expect("a thread").join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread that stays inside, for work that must not pay for entering each time.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<T>> {
        let inside = Self { name: None, file: self.file.try_clone()? };
        thread::Builder::new().name(self.thread_name()).spawn(move || {
            inside.enter();
            drop(inside);
            work()
        })
    }

    /// Starts a child process inside.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }

    /// A routing socket that works on this namespace from wherever it is used.
    ///
    /// # Errors
    /// When the system gives no more sockets.
    pub fn rtnl(&self) -> Result<Rtnl, LabError> {
        self.run(Rtnl::open)
    }

    /// Sets kernel parameters inside: pairs of a path below `/proc/sys/net` and a value.
    ///
    /// # Errors
    /// Names the first parameter that could not be written.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(Path::new("/proc/sys/net").join(key), value)
                    .map_err(|source| LabError::new("set kernel parameter", format!("net/{key} = {value}"), source))?;
            }
            Ok(())
        })
    }

    /// Brings loopback up and turns off duplicate address detection, so that IPv6 addresses can be used at once.
    ///
    /// # Errors
    /// Names what could not be done.
    pub fn prepare(&self) -> Result<(), LabError> {
        if super::has_ipv6() {
            self.sysctls(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")])?;
        }
        self.rtnl()?.set_up("lo")
    }

    fn enter(&self) {
        if let Err(errno) = setns(&self.file, CloneFlags::CLONE_NEWNET) {
            panic!("cannot enter network namespace {}: {errno}", self.thread_name());
        }
    }

    fn thread_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "netns".to_owned())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Errors have nobody to go to here; what stays is found by the next start (`leftovers`).
        if let Some(name) = &self.name {
            let _ = unmount(name);
        }
    }
}

/// Where the namespace of this name is mounted.
pub(super) fn mount_point(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Takes a name away; the namespace goes when nothing else refers to it.
pub(super) fn unmount(name: &str) -> io::Result<()> {
    let path = mount_point(name);
    loop {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Somebody may have mounted on it again.
            Ok(()) => {}
            // Not a mount point any more, or never: its maker died between creating the file and mounting on it.
            Err(Errno::EINVAL) => return fs::remove_file(&path),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Makes the directory of names a mount of its own that is shared with other mount namespaces, unless it is one: as `ip netns add`
/// does, under the same lock, because two that do it at once would cover each other's names.
fn share_names() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    let directory = File::open(NETNS_DIR)?;
    directory.lock()?;
    let none = None::<&str>;
    let share = || mount(none, NETNS_DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(NETNS_DIR), NETNS_DIR, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

/// Makes a namespace on a thread that ends afterwards, and hands its file to `keep` on that thread.
fn on_new_namespace(keep: impl FnOnce(File) -> io::Result<File> + Send) -> io::Result<File> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            keep(File::open(OWN_NETNS)?)
        });
        inside.join().expect("making a namespace does not panic")
    })
}
