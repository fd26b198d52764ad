//! Processes that the kernel has told of and that `/proc` does not show.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::Process;
use crate::kernel::folder;

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
    /// It is another process's.
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

/// What a look has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those that `/proc` does not show as they are.
    pub wrong: Vec<(Process, Wrong)>,
    /// Something is mounted over the host's `/proc`.
    pub over: bool,
    /// What else could not be looked at, and why.
    pub unknown: Option<String>,
}

/// Looks for each of `processes`. They were alive before: one that ends meanwhile is among those that are missing. What lies
/// over a folder is never asked ([`folder::open`]).
///
/// # Errors
/// `/proc` does not show all processes to the agent, or they are too many to be looked at in time.
pub fn look(processes: &[Process]) -> Result<Seen, String> {
    let said = |error: io::Error| format!("/proc cannot be read: {error}");
    in_host()?;
    let kind = fstatfs(folder::root().map_err(said)?).map_err(|errno| said(errno.into()))?;
    if kind.filesystem_type() != PROC_SUPER_MAGIC {
        return Err("what is mounted on /proc is not the kernel's".into());
    }
    let mut seen = Seen::default();
    let mut mounts_of = |pid, whose| {
        mounts(pid).unwrap_or_else(|error| {
            seen.unknown = Some(format!("what is mounted {whose} is not known: {error}"));
            String::new()
        })
    };
    let own = mounts_of(std::process::id(), "where the agent is");
    // In a mount namespace of its own the agent does not see what lies over the host's.
    let first = mounts_of(1, "on the host");
    // It hides nothing from whoever may trace everybody.
    if hides(&own) && !sees_all().map_err(said)? {
        return Err(
            "the agent's /proc is mounted with hidepid, and it has no CAP_SYS_PTRACE".into(),
        );
    }
    seen.over = over(&first);
    let covered: HashSet<u32> = covered(&own).chain(covered(&first)).collect();
    // Whoever does not see these two sees another host's.
    for pid in [1, std::process::id()] {
        if !covered.contains(&pid) && matches!(shown(pid), Ok(Some(Wrong::Missing | Wrong::Other)))
        {
            return Err(format!(
                "/proc does not show process {pid}: it is not the host's"
            ));
        }
    }
    let mut listed = HashSet::new();
    for entry in fs::read_dir("/proc").map_err(said)? {
        let name = entry.map_err(said)?.file_name();
        listed.extend(name.to_str().and_then(number));
    }
    let begun = Instant::now();
    let mut failed: Option<(usize, io::Error)> = None;
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
        if covered.contains(&process.pid) {
            seen.wrong.push((*process, Wrong::Covered));
            continue;
        }
        let wrong = match shown(process.pid) {
            Ok(None) if !listed.contains(&process.pid) => Some(Wrong::Unlisted),
            Ok(wrong) => wrong,
            Err(error) => {
                let (count, error) = failed.take().unwrap_or((0, error));
                failed = Some((count + 1, error));
                None
            }
        };
        seen.wrong.extend(wrong.map(|wrong| (*process, wrong)));
    }
    if let Some((count, error)) = failed {
        seen.unknown = Some(format!("{count} processes could not be looked at: {error}"));
    }
    Ok(seen)
}

/// Fails if the agent is not in the host's pid namespace, which it never leaves.
fn in_host() -> Result<(), String> {
    static NAMESPACE: OnceLock<PathBuf> = OnceLock::new();
    let namespace = match NAMESPACE.get() {
        Some(namespace) => namespace,
        None => {
            let link = fs::read_link("/proc/self/ns/pid");
            let link = link.map_err(|error| format!("/proc cannot be read: {error}"))?;
            NAMESPACE.get_or_init(|| link)
        }
    };
    match namespace == Path::new(INITIAL) {
        true => Ok(()),
        false => Err("the agent is not in the host's pid namespace".into()),
    }
}

/// What a process's folder says; `None` if that is itself.
///
/// # Errors
/// It cannot be told.
fn shown(pid: u32) -> io::Result<Option<Wrong>> {
    let mut start = Vec::new();
    let read = folder::open(pid, "stat").and_then(|file| file.take(16).read_to_end(&mut start));
    match read {
        Ok(_) => {
            let own = start.starts_with(format!("{pid} (").as_bytes());
            Ok((!own).then_some(Wrong::Other))
        }
        Err(error) if folder::is_covered(&error) => Ok(Some(Wrong::Covered)),
        Err(error) if folder::is_gone(&error) => Ok(Some(Wrong::Missing)),
        Err(error) => Err(error),
    }
}

/// True if `/proc` hides nobody from the agent: it has `CAP_SYS_PTRACE` (include/uapi/linux/capability.h).
fn sees_all() -> io::Result<bool> {
    const SYS_PTRACE: u32 = 19;
    let mut status = String::new();
    folder::open(std::process::id(), "status")?.read_to_string(&mut status)?;
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|word| u64::from_str_radix(word.trim(), 16).ok());
    Ok(effective.is_some_and(|bits| bits & 1 << SYS_PTRACE != 0))
}

/// The list of mounts where a process is.
fn mounts(pid: u32) -> io::Result<String> {
    let mut text = Vec::new();
    let list = folder::open(pid, "mountinfo")?;
    list.take(MOUNTS_MAX).read_to_end(&mut text)?;
    if text.len() as u64 == MOUNTS_MAX {
        let long = format!("the list has more than {MOUNTS_MAX} bytes");
        return Err(io::Error::other(long));
    }
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

/// True if something is mounted over `/proc`: what lies below is in the list, too.
fn over(mountinfo: &str) -> bool {
    let places = mountinfo.lines().map(|line| line.split(' ').nth(4));
    places.filter(|place| *place == Some("/proc")).count() > 1
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
        assert!(!hides(MOUNTS) && !over(MOUNTS));
        assert!(over(&format!(
            "{MOUNTS}76 23 0:41 / /proc ro - fuse.copy copy rw\n"
        )));
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
        let gone = process(child.id());
        let all = [process(1), process(me), gone, gone, gone];
        match look(&all) {
            // Also if most of them are missing.
            Ok(seen) => {
                assert_eq!(seen.wrong, [(all[2], Wrong::Missing); 3]);
                assert_eq!(seen.unknown, None);
            }
            Err(reason) => {
                eprintln!("SKIPPED who_runs_is_shown_and_who_has_ended_is_not: {reason}")
            }
        }
    }
}
