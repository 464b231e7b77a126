//! What labs of dead processes left behind, and clearing it.
//!
//! A lab goes away with its value; `kill -9` and a power cut give no chance for that. The namespace's name says which process made it
//! (`PREFIX-PID-ROLE`), so a name whose process is gone is a leftover. Processes that still live inside one (the lab's daemon, a
//! shell that somebody opened there) would keep it alive unseen; they belong to the lab and are ended with it.
//!
//! Proven by `tests/lab.rs` (`a_killed_labs_leftovers_are_cleared_by_the_next_one`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::{NETNS_DIR, mount_point, unmount};

/// A namespace whose maker is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Name below `/run/netns`.
    pub name: String,
    /// The process that made it.
    pub maker: i32,
}

/// The leftovers of labs with this prefix.
pub fn find(prefix: &str) -> Vec<Leftover> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<_> = names
        .filter_map(|name| Some(Leftover { maker: maker(prefix, &name)?, name }))
        .filter(|leftover| kill(Pid::from_raw(leftover.maker), None) == Err(Errno::ESRCH))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Removes the leftovers of labs with this prefix, and says which it removed. What cannot be removed stays for another time.
pub fn clear(prefix: &str) -> Vec<Leftover> {
    let leftovers = find(prefix);
    if leftovers.is_empty() {
        return leftovers;
    }
    let inodes: Vec<_> = leftovers.iter().filter_map(|l| identity(&mount_point(&l.name))).collect();
    let inhabitants = inhabitants(&inodes);
    for pid in &inhabitants {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    let patience = Instant::now() + Duration::from_secs(2);
    while Instant::now() < patience && inhabitants.iter().any(|pid| kill(*pid, None).is_ok()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    leftovers.into_iter().filter(|leftover| unmount(&leftover.name).is_ok()).collect()
}

/// The process id in `PREFIX-PID-ROLE` or `PREFIX-PID.NUMBER-ROLE`.
fn maker(prefix: &str, name: &str) -> Option<i32> {
    let (lab, _role) = name.strip_prefix(prefix)?.strip_prefix('-')?.split_once('-')?;
    let (pid, number) = lab.split_once('.').unwrap_or((lab, "0"));
    number.parse::<u32>().ok()?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

/// Processes whose network namespace is one of these.
fn inhabitants(namespaces: &[(u64, u64)]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            identity(format!("/proc/{pid}/ns/net").as_ref()).is_some_and(|inside| namespaces.contains(&inside))
        })
        .map(Pid::from_raw)
        .collect()
}

/// Device and inode, which is what makes two paths the same namespace.
fn identity(path: &std::path::Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_read_from_names_of_ours_only() {
        for (name, expected) in [
            ("pm-4711-node", Some(4711)),
            ("pm-4711.3-web-1", Some(4711)),
            ("pm-4711", None),
            ("pm-node", None),
            ("pm-4711.x-node", None),
            ("pm-0-node", None),
            ("pm--5-node", None),
            ("pmx-4711-node", None),
            ("cni-1234-5678", None),
        ] {
            assert_eq!(maker("pm", name), expected, "{name}");
        }
    }
}
