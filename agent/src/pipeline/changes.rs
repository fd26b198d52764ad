//! Renames and removals that fanotify tells of and that no record names: what io_uring's workers do, and what was done under another
//! name than the call said when its record was made.
//!
//! They are a stream of user space, as calls that were held are (`denied`).

use std::io::{self, Read as _};
use std::sync::atomic::Ordering;

use sumun_abi::event::file::ACCESS_PATH;
use sumun_abi::event::process::Actor;
use sumun_abi::record::Header;
use sumun_policy::plan::{KindPlan, Plan};
use sumun_proto::v1::{Gap, Kind};

use super::clock::boot_ns;
use super::core::Core;
use super::integrity;
use crate::enrich::changes::{Alone, By, Changes, Counts, IN_TURN_NS, Stranger};
use crate::kernel::stat::Stat;
use crate::kernel::{PointStatus, StreamId, folder, handles};
use crate::receive::record::Body;
use crate::status::Counters;

/// A tick of `/proc`, at most.
const TICK_NS: u64 = 10_000_000;
/// Threads that are looked for in one cycle, at most: who the others are is not known.
const MET_MAX: usize = 256;
/// User and group of a process that nobody knows: as the kernel has it, none, and not root's.
const NOBODY: u32 = u32::MAX;

/// The stream.
const STREAM: StreamId = StreamId {
    ring: 2,
    cpu: 0,
    level: 1,
};

/// Whether fanotify is asked what was renamed and removed, and what was said of that.
#[derive(Debug)]
pub(super) struct Asked {
    /// Why it does not tell here.
    able: Result<(), String>,
    /// Why it could not be begun when rules asked last.
    failed: Option<String>,
    /// What the rules ask for that are in force, and those that are to be.
    kinds: Vec<Kind>,
    next: Vec<Kind>,
    /// What was published last.
    version: u64,
    said: Result<String, String>,
}

impl Asked {
    /// Tries it, if it is `wanted`.
    pub(super) fn new(wanted: bool) -> Self {
        let able = match wanted {
            true => handles::try_out(),
            false => Err("switched off (fanotify in agent.toml)".to_owned()),
        };
        Self {
            said: able.clone().map(|()| String::new()),
            able,
            failed: None,
            kinds: Vec::new(),
            next: Vec::new(),
            version: 0,
        }
    }

    /// File systems are watched from before rules ask for renames or removals that no decision point sees; what the rules before
    /// ask for goes on.
    pub(super) fn begin(&mut self, changes: &mut Changes, points: &[PointStatus], plan: &Plan) {
        let is_asked = |kind: &Kind| {
            let mut points = points.iter();
            let seen = points.any(|point| point.kind == *kind && point.reason.is_none());
            !seen && *plan.kind(*kind) != KindPlan::None
        };
        let kinds = [Kind::Rename, Kind::Unlink].into_iter().filter(is_asked);
        self.next = kinds.filter(|_| self.able.is_ok()).collect();
        self.failed = None;
        if self.next.is_empty() {
            return;
        }
        let both = [&self.kinds[..], &self.next].concat();
        if let Err(why) = changes.set(&both) {
            tracing::warn!(
                why,
                "renames and removals have the caller's word: fanotify does not tell of them"
            );
            self.failed = Some(why);
            self.next.clear();
        }
    }

    /// The rules are in force, or they were not `taken` and those before are. What has been told is still a record's.
    pub(super) fn end(&mut self, changes: &mut Changes, taken: bool) {
        let next = std::mem::take(&mut self.next);
        if taken {
            self.kinds = next;
        }
        // What has begun only takes other kinds.
        let _ = changes.set(&self.kinds);
    }

    /// What is not watched, in a few words, or why nothing is: to be published.
    pub(super) fn tell(&mut self, changes: &Changes) -> Result<String, String> {
        self.version = changes.version();
        self.said = self.standing(changes);
        self.said.clone()
    }

    fn standing(&self, changes: &Changes) -> Result<String, String> {
        self.able.clone()?;
        match &self.failed {
            Some(why) => Err(why.clone()),
            None => changes.left_out(),
        }
    }

    /// True if that is something else than what was told last.
    pub(super) fn is_news(&mut self, changes: &Changes) -> bool {
        let version = changes.version();
        if version == self.version {
            return false;
        }
        self.version = version;
        self.standing(changes) != self.said
    }
}

/// The rung of renames and removals where no decision point sees them, and why it is not better.
pub(super) fn rung(told: &Result<String, String>, reasons: &mut Vec<String>) -> &'static str {
    match told {
        Ok(left_out) => {
            let left_out = Some(left_out).filter(|left_out| !left_out.is_empty());
            reasons.extend(left_out.map(|left_out| format!("fanotify: not of {left_out}")));
            "fanotify"
        }
        Err(why) => {
            reasons.push(format!("fanotify: {why}"));
            "tracepoint"
        }
    }
}

/// For the status.
pub(super) fn count(counts: Counts, counters: &Counters) {
    for (counter, count) in [
        (&counters.changes_confirmed, counts.confirmed),
        (&counters.changes_unconfirmed, counts.unconfirmed),
        (&counters.changes_alone, counts.alone),
        (&counters.changes_inner, counts.inner),
        (&counters.changes_overflows, counts.overflows),
    ] {
        counter.store(count, Ordering::Relaxed);
    }
}

/// What is known of the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Up to here everything was said to be complete; an event is never older.
    pub told_ns: u64,
    /// Up to here all records have been read.
    pub read_ns: u64,
    pub now_ns: u64,
    /// The rules that it is judged by.
    pub generation: u32,
}

impl Core {
    /// After the records of a cycle have been read: adds what is known to be alone to the lanes, and that some is missing.
    pub(super) fn changed(&mut self, strangers: &[Stranger], moment: Moment) {
        self.meet(strangers);
        let alone = self
            .changes
            .alone(moment.read_ns, moment.told_ns, moment.now_ns);
        for one in alone {
            self.alone(one, moment.generation);
        }
        if let Some(missing_ns) = self.changes.missing() {
            tracing::warn!(
                "more renames and removals waited than the kernel keeps (fs.fanotify.max_queued_events) or the agent holds: they have the caller's word"
            );
            self.counts.gaps += 1;
            self.bulk.gap(Gap {
                reason: "overflow".into(),
                count: None,
                from_boot_ns: missing_ns.min(moment.told_ns),
                to_boot_ns: moment.now_ns,
                detail: "what fanotify told of renames and removals: their records have the caller's word, and what has no record is not told".into(),
                ..Gap::default()
            });
        }
    }

    fn alone(&mut self, Alone { event, by, inner }: Alone, generation: u32) {
        let (actor, certain) = match by {
            By::Record(actor) => (actor, true),
            By::Found(actor) => (actor, false),
            By::Unknown => (unknown(event.tid), false),
        };
        let mut contained = || {
            let workload = self.workloads.of(actor.cgroup_id);
            workload.is_some_and(|workload| !workload.told.container_id.is_empty())
        };
        if inner && contained() {
            self.changes.was_inner();
            return;
        }
        let node = match by {
            // Nobody lives under this number.
            By::Unknown => self.tree.exit(&actor),
            _ => self.tree.find(&actor),
        };
        let header = Header {
            len: 0,
            kind: 0,
            ring: STREAM.ring,
            level: STREAM.level,
            cpu: STREAM.cpu,
            generation,
            seq: event.boot_ns,
            boot_ns: event.boot_ns,
        };
        self.emit(event, &node, (&actor, certain), &header, None);
    }

    /// Looks who did what there is no record of, as soon as the records of the cycle have been read: of a thread that has ended, and of one that may be another
    /// by now, nothing is known.
    fn meet(&mut self, strangers: &[Stranger]) {
        let strange = |stranger: &&Stranger| self.changes.is_strange(stranger.tid);
        let strangers: Vec<_> = strangers.iter().filter(strange).take(MET_MAX).collect();
        for Stranger { tid, since_ns } in strangers {
            let Ok(Some((pid, stat))) = found(*tid, *since_ns, || boot_ns().ok()) else {
                continue;
            };
            // Without a record of its process there is no more to be said.
            let Some(node) = self.tree.at_tick(pid, stat.start_ns(), None) else {
                continue;
            };
            let actor = Actor {
                tid: *tid,
                ..integrity::actor(&node)
            };
            self.changes.met(*tid, actor);
        }
    }
}

/// Whether this is how the agent finds folders: by opening them, without reading. Of its own process that is nobody's event: it would make one for each folder
/// in which others change names.
pub(super) fn is_look(body: &Body) -> bool {
    match body {
        Body::Open(open) => {
            open.flags & ACCESS_PATH != 0 || open.mode & libc::S_IFMT == libc::S_IFDIR
        }
        Body::FailedOpen(open) => open.flags & ACCESS_PATH != 0,
        _ => false,
    }
}

fn unknown(tid: u32) -> Actor {
    Actor {
        tid,
        uid: NOBODY,
        gid: NOBODY,
        euid: NOBODY,
        egid: NOBODY,
        ..Actor::default()
    }
}

/// The process of the thread that had this number and did something after `since_ns`, if it is still there: it has been there since before, or its
/// number cannot have been given again since.
fn found(
    tid: u32,
    since_ns: u64,
    now: impl Fn() -> Option<u64>,
) -> io::Result<Option<(u32, Stat)>> {
    let mut status = Vec::new();
    folder::open(tid, "status")?.read_to_end(&mut status)?;
    let mut lines = status.split(|byte| *byte == b'\n');
    let pid = lines
        .find_map(|line| line.strip_prefix(b"Tgid:"))
        .and_then(|word| std::str::from_utf8(word).ok()?.trim().parse::<u32>().ok());
    let Some(pid) = pid else {
        return Ok(None);
    };
    let (Some(thread), Some(process)) = (Stat::of_thread(pid, tid)?, Stat::of(pid)?) else {
        return Ok(None);
    };
    // Its start is rounded down to the tick.
    let before = thread.start_ns() + TICK_NS < since_ns;
    let in_turn = now().is_some_and(|now_ns| now_ns < since_ns + IN_TURN_NS);
    Ok((before || in_turn).then_some((pid, process)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use nix::unistd::gettid;

    use super::*;

    /// Of a thread that began long ago, of one that began since then, and of one that is gone.
    #[test]
    fn a_thread_is_known_if_it_was_there_before_or_nobody_can_have_its_number() {
        let own = gettid().as_raw().cast_unsigned();
        let pid = std::process::id();
        let begun = boot_ns().expect("the time");
        let (told, tid) = sync_channel(1);
        let (end, wait) = sync_channel::<()>(0);
        let other = thread::spawn(move || {
            told.send(gettid().as_raw().cast_unsigned()).expect("heard");
            let _ = wait.recv();
        });
        let tid = tid.recv().expect("a thread");
        let late = || Some(begun + IN_TURN_NS);
        let of = |tid, since_ns, now: &dyn Fn() -> Option<u64>| {
            let found = found(tid, since_ns, now).expect("it is there");
            found.map(|(pid, _)| pid)
        };
        // Old process, new thread: what was done before it began was another's.
        assert_eq!(of(tid, begun, &late), None);
        assert_eq!(of(tid, begun, &|| Some(begun)), Some(pid));
        let since = boot_ns().expect("the time") + 10 * TICK_NS;
        assert_eq!(of(tid, since, &|| Some(since + IN_TURN_NS)), Some(pid));
        assert_eq!(of(own, since, &|| Some(since + IN_TURN_NS)), Some(pid));
        drop(end);
        other.join().expect("it ends");
        let mut gone = found(tid, since, || Some(since));
        // What has been joined may still be on its way out.
        for _ in 0..100 {
            if gone.is_err() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(10));
            gone = found(tid, since, || Some(since));
        }
        assert!(!matches!(gone, Ok(Some(_))));
    }
}
