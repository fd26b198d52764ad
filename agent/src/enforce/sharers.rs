//! Processes that share their open files: made by clone with `CLONE_FILES` and without
//! `CLONE_THREAD`. What one of them opened, all have; so they die together.

use std::fs;

use nix::errno::Errno;

use super::guard::{self, How};
use super::kill::{self, Done, Target};
use crate::kernel::SharersSource;
use crate::kernel::pidfd::{PidFd, share_files};
use crate::kernel::stat::Stat;

/// Processes that are compared at most, each in about a microsecond.
const COMPARED_MAX: usize = 65_536;
/// Looks that are taken at most: each finds what the sharers of the one before have made since.
const LOOKS_MAX: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Sharers {
    /// Held, so that none can become another process.
    pub(super) found: Vec<(u32, PidFd)>,
    /// What hinders, for people.
    pub(super) remark: Option<String>,
}

/// Those that share the open files of a process's thread. The first thread stands for each other process.
///
/// All processes are compared rather than the relatives: whoever made a sharer may have ended.
pub(super) fn find(pid: u32, tid: u32) -> Sharers {
    let mut sharers = Sharers::default();
    let Some(anchor) = anchor(pid, tid) else {
        sharers.remark =
            Some("its thread had ended: processes that share its files were not found".into());
        return sharers;
    };
    for _ in 0..LOOKS_MAX {
        let before = sharers.found.len();
        if let Err(remark) = look((pid, anchor), &mut sharers) {
            sharers.remark = Some(remark);
            break;
        }
        if sharers.found.len() == before {
            break;
        }
    }
    sharers
}

/// The thread to compare with: the one that acted, else the first.
fn anchor(pid: u32, tid: u32) -> Option<u32> {
    [tid, pid].into_iter().find(|tid| holds_files(pid, *tid))
}

/// A thread that is not on its way out has its files still.
fn holds_files(pid: u32, tid: u32) -> bool {
    Stat::of_thread(pid, tid).is_ok_and(|stat| stat.is_some_and(|stat| !stat.is_exiting()))
}

/// Those that share the table of a process that the kernel has killed for what it opened. It may be gone by now, so they
/// are found by the table's address, among those that were made to share one; and killed, by their numbers.
///
/// Each look finds what the sharers of the one before have made since.
pub(super) fn kill(pid: u32, table: u64, source: &SharersSource) -> (Vec<u32>, Option<String>) {
    let (mut killed, mut remark) = (Vec::new(), None);
    for _ in 0..LOOKS_MAX {
        let rows = match source.read() {
            Ok(rows) => rows,
            Err(error) => {
                remark = Some(format!(
                    "processes that share its files were not found: the kernel's iterator cannot be read: {error}"
                ));
                break;
            }
        };
        let before = killed.len();
        for row in rows.iter().filter(|row| row.table == table) {
            let Ok(other) = u32::try_from(row.pid) else {
                continue;
            };
            if other == pid || killed.contains(&other) {
                continue;
            }
            let target = Target {
                pid: other,
                tid: other,
                start_ns: row.start_ns,
                with_sharers: false,
                how: How::default(),
            };
            match kill::kill(&target, None) {
                Done::Killed { .. } => killed.push(other),
                Done::Gone => {}
                Done::Guarded(guarded) => {
                    remark = Some(format!("process {other} shares its files: {guarded}"));
                }
                Done::Failed(why) => {
                    remark = Some(format!("process {other} shares its files: {why}"));
                }
            }
        }
        if killed.len() == before {
            break;
        }
    }
    (killed, remark)
}

fn look((pid, anchor): (u32, u32), sharers: &mut Sharers) -> Result<(), String> {
    let processes = fs::read_dir("/proc").map_err(|error| {
        format!("cannot list /proc: {error}; processes that share its files were not found")
    })?;
    let (mut compared, mut refused) = (0, 0_u32);
    for process in processes.flatten() {
        let Some(other) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if other == pid || sharers.found.iter().any(|(known, _)| *known == other) {
            continue;
        }
        compared += 1;
        if compared > COMPARED_MAX {
            return Err(format!(
                "of more than {COMPARED_MAX} processes the rest was not compared"
            ));
        }
        match same(anchor, other)? {
            Some(true) => {}
            Some(false) => continue,
            None => {
                refused += 1;
                continue;
            }
        }
        let Ok(held) = PidFd::open(other) else {
            continue;
        };
        // Again, now that it is held: that it has not ended after says that the number was its own.
        if same(anchor, other)? != Some(true) || held.has_ended().unwrap_or(true) {
            continue;
        }
        // Two that have given up their files look the same.
        if !holds_files(pid, anchor) {
            return Err("its thread has ended while sharers of its files were looked for".into());
        }
        match Stat::of(other).map(|stat| stat.map(|stat| guard::of(other, stat, How::default()))) {
            Ok(Some(Ok(None))) => sharers.found.push((other, held)),
            Ok(Some(Ok(Some(guarded)))) => {
                sharers.remark = Some(format!("process {other} shares its files: {guarded}"));
            }
            Ok(Some(Err(unknown))) => {
                sharers.remark = Some(format!("process {other} shares its files: {unknown}"));
            }
            Ok(None) => {}
            Err(error) => {
                sharers.remark = Some(format!(
                    "process {other} shares its files: cannot read /proc/{other}/stat: {error}"
                ));
            }
        }
    }
    if refused > 0 {
        sharers.remark = Some(format!(
            "its files could not be compared with those of {refused} processes (kcmp: EPERM): give the agent CAP_SYS_PTRACE"
        ));
    }
    Ok(())
}

/// `None`: the agent may not know.
fn same(anchor: u32, other: u32) -> Result<Option<bool>, String> {
    match share_files(anchor, other) {
        Ok(same) => Ok(Some(same)),
        Err(Errno::ESRCH) => Ok(Some(false)),
        Err(Errno::EPERM) => Ok(None),
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => Err(
            "this kernel has no kcmp (CONFIG_KCMP): processes that share its files were not found"
                .into(),
        ),
        Err(errno) => Err(format!(
            "cannot compare the files of {anchor} and {other} (kcmp): {errno}; processes that share its files were not found"
        )),
    }
}
