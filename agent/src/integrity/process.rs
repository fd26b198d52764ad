//! Processes that the kernel has told of and that `/proc` does not show.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::Process;

/// After so many processes the thread sleeps a little: nobody is to notice it.
const AT_ONCE: usize = 64;
/// And so long.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest time for one look at all of them.
const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a list of mounts that are read: some 40,000 mounts.
const MOUNTS_MAX: u64 = 8 << 20;

/// The initial pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL: &str = "pid:[4026531836]";

/// What is wrong with a process's folder in `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// A mount lies over it, here or in the mount namespace of the first process.
    Covered,
    /// It can be opened, but the list of `/proc` leaves it out.
    Unlisted,
    /// There is none.
    Missing,
    /// It is another process's, or of another file system.
    Other,
}

impl Wrong {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Covered => "a mount lies over its folder in /proc",
            Self::Unlisted => "the list of /proc leaves it out",
            Self::Missing => "it has no folder in /proc",
            Self::Other => "its folder in /proc is not its own",
        }
    }
}

/// Those of `processes` that `/proc` does not show as they are. They were alive before it is read: one that ends
/// meanwhile is among those that are missing.
///
/// # Errors
/// `/proc` does not show all processes to the agent, or they are too many to be looked at in time.
pub fn look(processes: &[Process]) -> Result<Vec<(Process, Wrong)>, String> {
    let found = seen(processes)?;
    if found.len() > processes.len() / 2 {
        return Err(format!(
            "/proc does not show {} of {} processes: it is not the host's, or the kernel hides most of them",
            found.len(),
            processes.len()
        ));
    }
    Ok(found)
}

/// The same of a few of which it is known that they live.
pub(super) fn seen(processes: &[Process]) -> Result<Vec<(Process, Wrong)>, String> {
    let said = |error: io::Error| format!("/proc cannot be read: {error}");
    let namespace = fs::read_link("/proc/self/ns/pid").map_err(said)?;
    if namespace != Path::new(INITIAL) {
        return Err("the agent is not in the host's pid namespace".into());
    }
    let own = mounts("/proc/self/mountinfo").map_err(said)?;
    if hides(&own) {
        return Err("the agent's /proc is mounted with hidepid".into());
    }
    // In a mount namespace of its own the agent does not see what lies over the host's.
    let first = mounts("/proc/1/mountinfo").unwrap_or_default();
    let covered: HashSet<u32> = covered(&own).chain(covered(&first)).collect();
    let device = fs::metadata("/proc").map_err(said)?.dev();
    let mut listed = HashSet::new();
    for entry in fs::read_dir("/proc").map_err(said)? {
        let name = entry.map_err(said)?.file_name();
        listed.extend(name.to_str().and_then(number));
    }
    let begun = Instant::now();
    let mut found = Vec::new();
    for (count, process) in processes.iter().enumerate() {
        if count % AT_ONCE == AT_ONCE - 1 {
            thread::sleep(PAUSE);
            if begun.elapsed() > WITHIN {
                return Err(format!(
                    "only {count} of {} processes could be looked at in {} seconds",
                    processes.len(),
                    WITHIN.as_secs()
                ));
            }
        }
        let wrong = match shown(process.pid, device) {
            _ if covered.contains(&process.pid) => Some(Wrong::Covered),
            None if !listed.contains(&process.pid) => Some(Wrong::Unlisted),
            wrong => wrong,
        };
        found.extend(wrong.map(|wrong| (*process, wrong)));
    }
    Ok(found)
}

/// What a process's folder says; `None` if that is itself, or nobody may know.
fn shown(pid: u32, device: u64) -> Option<Wrong> {
    let file = match File::open(format!("/proc/{pid}/stat")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        Err(_) => return Some(Wrong::Missing),
    };
    let mut start = Vec::new();
    // The process may end between the two.
    if file.metadata().is_ok_and(|data| data.dev() != device) {
        return Some(Wrong::Other);
    }
    if file.take(16).read_to_end(&mut start).is_err() {
        return Some(Wrong::Missing);
    }
    (!start.starts_with(format!("{pid} (").as_bytes())).then_some(Wrong::Other)
}

fn mounts(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(MOUNTS_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A name of digits alone, as `/proc` writes them.
fn number(name: &str) -> Option<u32> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
    digits.then(|| name.parse().ok()).flatten()
}

/// The processes over whose folders something is mounted: proc_pid_mountinfo(5), of which the fifth word is the place.
fn covered(mountinfo: &str) -> impl Iterator<Item = u32> {
    mountinfo.lines().filter_map(|line| {
        let place = line.split(' ').nth(4)?.strip_prefix("/proc/")?;
        number(place.split('/').next()?)
    })
}

/// True if `/proc` does not show everybody's processes to everybody.
fn hides(mountinfo: &str) -> bool {
    // The last one lies over the others.
    let mut of_proc = mountinfo
        .lines()
        .rev()
        .filter(|line| line.split(' ').nth(4) == Some("/proc"));
    of_proc.next().is_some_and(|line| {
        line.rsplit(' ')
            .next()
            .unwrap_or_default()
            .split(',')
            .filter_map(|option| option.strip_prefix("hidepid="))
            .any(|hidden| hidden != "0" && hidden != "off")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
23 28 0:21 / /proc rw,nosuid - proc proc rw
71 23 0:40 /empty /proc/4242 rw - tmpfs tmpfs rw
72 23 0:40 /a\\040b /proc/17/exe rw - tmpfs tmpfs rw
73 23 0:40 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
74 23 0:40 / /proc/017 rw - tmpfs /proc/99 rw
75 23 0:40 / /mnt/proc/5 rw - tmpfs tmpfs rw
";

    #[test]
    fn mounts_over_processes_are_found() {
        assert_eq!(covered(MOUNTS).collect::<Vec<_>>(), [4242, 17]);
        assert!(!hides(MOUNTS));
        assert!(hides(
            "1 2 0:3 / /proc rw - proc proc rw,hidepid=invisible\n"
        ));
        assert!(hides("1 2 0:3 / /proc rw - proc proc rw,gid=4,hidepid=2\n"));
        assert!(!hides(
            "1 2 0:3 / /proc rw - proc proc rw,hidepid=2\n2 1 0:4 / /proc rw - proc proc rw,hidepid=off\n"
        ));
    }

    #[test]
    fn arbitrary_lists_of_mounts_never_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let _ = (covered(&text).count(), hides(&text));
        });
    }

    #[test]
    fn who_runs_is_shown_and_who_has_ended_is_not() {
        let me = std::process::id();
        let mut child = std::process::Command::new("/bin/true")
            .spawn()
            .expect("a child");
        child.wait().expect("its end");
        let process = |pid| Process { pid, start_ns: 1 };
        let all = [process(1), process(me), process(child.id())];
        match look(&all) {
            Ok(found) => assert_eq!(found, [(all[2], Wrong::Missing)]),
            Err(reason) => {
                eprintln!("SKIPPED who_runs_is_shown_and_who_has_ended_is_not: {reason}")
            }
        }
    }
}
