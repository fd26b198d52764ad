//! Renames and removals as fanotify tells of them: what a thread really did, whatever its call named, where the kernel has no
//! decision points.
//!
//! An event is queued in the call, so before the record of its return is written: what was read after the end of the ring was
//! looked up has the events of all records up to there. But it does not say of which call it is. The order of a thread's events does not, either:
//! calls on file systems that are not watched have none, a rename of a file onto itself has none, what a file system does by itself has one too many, and two
//! events of a thread about the same names and object are one as long as nobody has read them. So a record is
//! only taken for that of an event whose names are those that the call named, and what is left over on both sides is told as what it is: the record with
//! the caller's word, and the event as something that the thread did by a call of which it is not known what it named. From where something is left over, the
//! thread's further records may be taken for each other's, and are marked, until as many records as events have been left over.
//!
//! A restart loses the events that nobody has read: the records stand alone then, with the caller's word.

mod lookups;
mod mounts;
mod places;

use std::borrow::Cow;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use sumun_abi::event::file::{NAMES_DIRECTORY, NAMES_OBJECT};
use sumun_abi::event::process::Actor;
use sumun_abi::record::{FLAW_RACY, FLAW_TRUNCATED};
use sumun_proto::text;
use sumun_proto::v1::{Event, File, Kind, Source};

use self::mounts::{Mounts, Watch};
use self::places::{Folder, Places, joined};
use crate::kernel::handles::{self, DELETE, FOLDER, Group, OVERFLOW, RENAME};

/// Events that wait for their records, at most: those beyond wait in the kernel, which counts them (`fs.fanotify.max_queued_events`).
const HELD_MAX: usize = 8192;
/// And so many bytes of them.
const HELD_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that are read at once; the longest event has some seven hundred.
const BUFFER: usize = 64 * 1024;
/// Renames of folders that the others of a reading are compared with, at most.
const MOVED: usize = 64;
/// Events of a thread that a record is compared with, at most.
const COMPARED: usize = 64;
/// An event whose record has not come for so long is told alone, once all records up to then have been read. A call can
/// take longer from one to the other, when a large file has to be given up; its record then has the caller's word.
const LATE_NS: u64 = 250_000_000;
/// A thread of which nothing is heard for so long begins anew.
const IDLE_NS: u64 = 1_000_000_000;
/// Threads in doubt that are remembered at most; with more, nothing is certain for as long as doubts last.
const THREADS_MAX: usize = 8192;
/// A thread's number is not another's so soon: numbers are given in turn, and there are 32,768 of them where nobody has set it otherwise.
pub const IN_TURN_NS: u64 = 50_000_000;
/// However far the records have been read.
const LOST_NS: u64 = 10_000_000_000;
/// Unclaimed records of a thread by which what an overlay does below is known, at most.
const SPARE: usize = 64;
/// How long the first marks are waited for.
const MARKED_WITHIN: Duration = Duration::from_millis(500);

/// Counters since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that say what the kernel told.
    pub confirmed: u64,
    /// Records of renames and removals with the caller's word.
    pub unconfirmed: u64,
    /// Events that no record named.
    pub alone: u64,
    /// Events that are of what an overlay does below for a call.
    pub inner: u64,
    /// Times that more waited than the kernel keeps.
    pub overflows: u64,
}

/// What fanotify tells of renames and removals, until it is known of which records it is.
#[derive(Debug, Default)]
pub struct Changes {
    source: Option<(Arc<Group>, Watch)>,
    /// Of these events there are records.
    asked: u64,
    places: Places,
    /// There while file systems are watched.
    buffer: Vec<u8>,
    threads: HashMap<u32, Thread>,
    /// Read while those before were looked at.
    later: Vec<handles::Event>,
    held: usize,
    bytes: usize,
    /// Overflows that have not been written yet.
    overflowed: u64,
    /// From when on something is missing, which has not been written yet.
    missing: Option<u64>,
    /// More waits than is held.
    behind: bool,
    /// When the last reading began that left nothing.
    complete_ns: u64,
    /// When more threads than can be remembered were in doubt last.
    crowded_ns: Option<u64>,
    /// Number of the last event that was told alone.
    last_alone: u64,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Thread {
    done: VecDeque<Done>,
    /// Of those, the first that may still be a record's.
    next: usize,
    known: Known,
    /// As it was at the begin of the cycle.
    kept: Known,
    /// When the newest of its events had been read.
    read_ns: u64,
    /// The reading after which it was last looked for who it is.
    asked_ns: u64,
    /// Records that no event was of: names that they have, as numbers, and what an overlay may have done below for them.
    spare: VecDeque<[u64; 2]>,
}

/// What a thread's records have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    doubt: Doubt,
    /// When it was last heard of.
    active_ns: u64,
    /// Who made its last call, and when.
    last: Option<(Actor, u64)>,
}

/// Something of a thread was left over: which of its events are of which records is not certain, until as many records as events
/// were left over, so that the rest are as many, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Doubt {
    there: bool,
    records: u64,
    events: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    Claimed,
    Alone,
}

/// Something that a thread did.
#[derive(Debug)]
struct Done {
    mask: u64,
    from: Name,
    to: Option<Name>,
    dev: u32,
    ino: u64,
    /// Folders on the way were renamed at about the same time.
    unsteady: bool,
    /// It was done after this time.
    since_ns: u64,
    /// When it had been read.
    read_ns: u64,
    /// Who had the number of its thread just after, if somebody was found.
    found: Option<Actor>,
    /// Its number, once it was told alone: the same whenever it is told.
    number: u64,
    state: State,
}

#[derive(Clone, Debug)]
struct Name {
    /// The whole path, as text, if it is known.
    path: Option<String>,
    name: String,
    folder: Folder,
}

/// Something that no record names.
#[derive(Debug)]
pub struct Alone {
    /// With its file alone filled in, and its time, which is its number, too.
    pub event: Event,
    /// Who did it.
    pub by: By,
    /// It is what an overlay does below for a call on what it shows, if its thread is in a container.
    pub inner: bool,
}

/// Who did something.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// The thread of this record, made at about the same time.
    Record(Actor),
    /// Whoever had its number just after.
    Found(Actor),
    /// Nobody knows.
    Unknown,
}

/// A thread that did something and has made no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its number.
    pub tid: u32,
    /// It did so after this time.
    pub since_ns: u64,
}

impl Changes {
    /// Watches file systems for renames, removals, both, or neither. What has been read stays until it is told.
    ///
    /// # Errors
    /// It cannot be begun.
    pub fn set(&mut self, kinds: &[Kind]) -> Result<(), String> {
        self.asked = kinds.iter().fold(0, |asked, kind| match kind {
            Kind::Rename => asked | RENAME,
            _ => asked | DELETE,
        });
        if kinds.is_empty() {
            self.source = None;
            self.buffer = Vec::new();
            return Ok(());
        }
        if self.source.is_some() {
            return Ok(());
        }
        let group = Group::new().map_err(|errno| format!("fanotify_init: {errno}"))?;
        let group = Arc::new(group);
        let watch = Watch::start(Arc::clone(&group), MARKED_WITHIN)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        // Of the group before.
        self.later = Vec::new();
        (self.behind, self.complete_ns) = (false, 0);
        self.places = Places::default();
        self.buffer = vec![0; BUFFER];
        self.source = Some((group, watch));
        Ok(())
    }

    /// File systems are watched.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.source.is_some()
    }

    /// What is not watched, in a few words; empty if everything is that could be.
    ///
    /// # Errors
    /// Nothing is watched, and why.
    pub fn left_out(&self) -> Result<String, String> {
        let Some((_, watch)) = &self.source else {
            return Ok(String::new());
        };
        let (looked, late) = (watch.version() > 0, watch.is_late());
        standing(&watch.mounts(), looked, late, self.places.stuck())
    }

    /// Another number when something else is watched than before.
    #[must_use]
    pub fn version(&self) -> u64 {
        let watched = self.source.as_ref().map(|(_, watch)| {
            let late = u64::from(watch.is_late());
            watch.version() << 8 | (self.places.stuck() as u64) << 1 | late
        });
        watched.unwrap_or(0)
    }

    /// Counters.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes what waits, after the end of the ring was looked up. `now` tells the time. Of file systems it waits for nobody but by `lookups`. Says which threads
    /// did something of which there is no record yet.
    pub fn read(&mut self, now: impl Fn() -> u64) -> Vec<Stranger> {
        self.places.begin();
        let Some((group, watch)) = &self.source else {
            return Vec::new();
        };
        let begun_ns = now();
        let (mut events, mut bytes) = (std::mem::take(&mut self.later), 0);
        let mut emptied = false;
        while self.held + events.len() < HELD_MAX && self.bytes + bytes < HELD_BYTES {
            match group.read(&mut self.buffer, |event| events.push(event)) {
                Ok(0) => {
                    emptied = true;
                    break;
                }
                Ok(read) => bytes += read,
                Err(errno) => {
                    tracing::warn!(%errno, "events of renames and removals cannot be read");
                    self.overflowed += 1;
                    self.missing.get_or_insert(self.complete_ns);
                    emptied = true;
                    break;
                }
            }
        }
        // Some of the records up to now have the caller's word, since their events are still to be read: told at the begin and, with all of
        // it, at the end.
        let since_ns = self.complete_ns;
        let overflowed = events.iter().filter(|event| event.mask & OVERFLOW != 0);
        let overflowed = overflowed.count() as u64;
        self.overflowed += overflowed;
        if overflowed > 0 || self.behind == emptied {
            self.missing.get_or_insert(since_ns);
        }
        self.behind = !emptied;
        if emptied {
            self.complete_ns = begun_ns;
        }
        if events.is_empty() {
            return Vec::new();
        }
        let read_ns = now();
        let mut look = self.places.look(watch, &events);
        let mut found = Vec::with_capacity(events.len());
        for (place, event) in events.iter().enumerate() {
            let name = |entry: &handles::Entry| {
                let folder = (event.fs, entry.folder.clone());
                let name = text::from_bytes(&entry.name);
                let path = look.path(&folder, place);
                Name {
                    path: path.map(|path| joined(&path, &name)),
                    name,
                    folder,
                }
            };
            let from = event.from.as_ref().map(name);
            found.push(from.map(|from| (from, event.to.as_ref().map(name))));
        }
        let mut moved = Moved::of(&events, &found);
        // What was renamed while it was looked up may have been elsewhere at the call.
        let later = &mut self.later;
        let read = group.read(&mut self.buffer, |event| later.push(event));
        moved.anywhere |= read.is_err() || read.is_ok_and(|read| read + 1024 > BUFFER);
        let folders = RENAME | FOLDER;
        let folders: Vec<_> = later
            .iter()
            .filter(|event| event.mask & folders == folders)
            .cloned()
            .collect();
        self.places.look_again(&mut look, &folders);
        for event in &folders {
            let path = |entry: &Option<handles::Entry>| {
                let entry = entry.as_ref()?;
                look.path_now(event.fs, entry)
            };
            moved.add(path(&event.from), path(&event.to));
        }
        let mut strangers = Vec::new();
        for (event, names) in events.iter().zip(found) {
            // Renames of folders are told in any case, for the paths.
            let Some((from, to)) = names.filter(|_| event.mask & self.asked != 0) else {
                continue;
            };
            let (dev, ino) = self.places.object(event);
            let done = Done {
                mask: event.mask,
                dev,
                ino,
                unsteady: moved.is_on_the_way(&from)
                    || to.as_ref().is_some_and(|to| moved.is_on_the_way(to)),
                from,
                to,
                since_ns,
                read_ns,
                found: None,
                number: 0,
                state: State::Waits,
            };
            self.held += 1;
            self.bytes += done.size();
            let thread = self.threads.entry(event.tid).or_default();
            thread.known.active_ns = read_ns;
            thread.read_ns = read_ns;
            if thread.asked_ns != read_ns && thread.made(&done).is_none() {
                // Once for all of its events of this reading.
                thread.asked_ns = read_ns;
                let tid = event.tid;
                strangers.push(Stranger { tid, since_ns });
            }
            thread.done.push_back(done);
        }
        strangers
    }

    /// Whether there is still no record of that thread by which it is known, and something that it did waits for one.
    #[must_use]
    pub fn is_strange(&self, tid: u32) -> bool {
        self.threads.get(&tid).is_some_and(|thread| {
            let last = thread.done.back();
            last.is_some_and(|done| done.state == State::Waits && thread.made(done).is_none())
        })
    }

    /// Who a stranger is, of the last reading: what it did before may have been done by another one.
    pub fn met(&mut self, tid: u32, actor: Actor) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            let read_ns = thread.read_ns;
            let all = thread.done.iter_mut().rev();
            for done in all.take_while(|done| done.read_ns == read_ns) {
                done.found = Some(actor);
            }
        }
    }

    /// A record of a rename or removal: takes the kernel's word for it, if there is one. Without reserve only if its process sees the files `as_host`:
    /// else the same path may be another one's.
    pub fn confirm(&mut self, event: &mut Event, actor: &Actor, boot_ns: u64, as_host: bool) {
        if self.source.is_none() && self.threads.is_empty() {
            return;
        }
        let kind = event.kind();
        let Some(file) = event.file.as_mut() else {
            return;
        };
        if file.flags & NAMES_OBJECT != 0 {
            return;
        }
        let forgotten = |at_ns| boot_ns < at_ns + IDLE_NS;
        let crowded = self.threads.len() >= THREADS_MAX || self.crowded_ns.is_some_and(forgotten);
        let confirmed = match self.threads.entry(actor.tid) {
            Entry::Vacant(_) if crowded || self.source.is_none() => false,
            entry => {
                let thread = entry.or_default();
                thread.known.doubt.there |= crowded;
                thread.known.active_ns = thread.known.active_ns.max(boot_ns);
                thread.known.last = Some((*actor, boot_ns));
                let claimed = thread.claim(kind, file, as_host, &mut self.places);
                if !claimed {
                    thread.known.doubt.records += 1;
                    thread.known.doubt.there = true;
                    thread.left_over(file);
                }
                claimed
            }
        };
        match confirmed {
            true => self.counts.confirmed += 1,
            false => self.counts.unconfirmed += 1,
        }
    }

    /// What no record named, and none will: a later event of its thread was claimed, or its thread made a later call, or it is late.
    /// Everything up to `through_ns` has been read, and up to `told_ns` it was said to be complete.
    pub fn alone(&mut self, through_ns: u64, told_ns: u64, now_ns: u64) -> Vec<Alone> {
        let mut over = Vec::new();
        for (tid, thread) in &self.threads {
            let last_ns = thread.known.last.map_or(0, |(_, boot_ns)| boot_ns);
            let claimed = thread
                .done
                .iter()
                .rposition(|done| done.state == State::Claimed);
            for (place, done) in thread.done.iter().enumerate() {
                let is_over = claimed.is_some_and(|claimed| place < claimed)
                    || last_ns >= done.read_ns
                    || done.read_ns + LATE_NS <= through_ns
                    || done.read_ns + LOST_NS <= now_ns;
                if done.state == State::Waits && is_over {
                    // Those that were told in a cycle that was not written come first, as they did then.
                    let number = if done.number == 0 {
                        u64::MAX
                    } else {
                        done.number
                    };
                    over.push((number, done.read_ns, *tid, place));
                }
            }
        }
        over.sort_unstable();
        let mut alone = Vec::with_capacity(over.len());
        for (_, _, tid, place) in over {
            let Some(thread) = self.threads.get_mut(&tid) else {
                continue;
            };
            let made = thread.done.get(place).and_then(|done| thread.made(done));
            let Some(done) = thread.done.get_mut(place) else {
                continue;
            };
            done.state = State::Alone;
            thread.known.doubt.events += 1;
            thread.known.doubt.there = true;
            if done.number == 0 {
                let after = self.last_alone.max(told_ns) + 1;
                done.number = done.read_ns.max(after);
                self.last_alone = done.number;
            }
            let inner = self.places.is_below(done, &thread.spare, made.is_some());
            let by = match (made, done.found) {
                (Some(actor), _) => By::Record(actor),
                (None, Some(actor)) => By::Found(actor),
                (None, None) => By::Unknown,
            };
            let event = done.event(tid);
            alone.push(Alone { event, by, inner });
        }
        self.counts.alone += alone.len() as u64;
        alone
    }

    /// One that was to be told alone is of what an overlay does below for a call.
    pub fn was_inner(&mut self) {
        self.counts.alone = self.counts.alone.saturating_sub(1);
        self.counts.inner += 1;
    }

    /// Whether a path lies in what an overlay writes into.
    #[must_use]
    pub fn is_inner(&self, path: &str) -> bool {
        self.places.is_inner(path)
    }

    /// From when on something is missing, if that has not been written yet: more waited than the kernel keeps, or than is held.
    #[must_use]
    pub fn missing(&self) -> Option<u64> {
        self.missing
    }

    /// What was claimed and told is in the spool.
    pub fn written(&mut self, now_ns: u64) {
        self.counts.overflows += std::mem::take(&mut self.overflowed);
        self.missing = None;
        let (mut held, mut bytes, behind) = (0, 0, self.behind);
        let (mut doubtful, crowded_ns) = (0, &mut self.crowded_ns);
        self.threads.retain(|_, thread| {
            thread.done.retain(|done| done.state == State::Waits);
            if thread.done.is_empty() {
                thread.spare.clear();
            }
            if thread.is_even(behind) {
                thread.known.doubt = Doubt::default();
            }
            (thread.next, thread.kept) = (0, thread.known);
            held += thread.done.len();
            bytes += thread.done.iter().map(Done::size).sum::<usize>();
            let idle = thread.known.active_ns + IDLE_NS <= now_ns;
            if !thread.done.is_empty() {
                return true;
            }
            if !thread.known.doubt.there || idle {
                return false;
            }
            doubtful += 1;
            if doubtful > THREADS_MAX {
                *crowded_ns = Some(now_ns);
            }
            doubtful <= THREADS_MAX
        });
        (self.held, self.bytes) = (held, bytes);
    }

    /// Nothing of this cycle counts: its records will be read again.
    pub fn undo(&mut self) {
        for thread in self.threads.values_mut() {
            (thread.next, thread.known) = (0, thread.kept);
            thread.spare.clear();
            for done in &mut thread.done {
                done.state = State::Waits;
            }
        }
    }
}

impl Thread {
    /// Who did this, if a record says so: one of about the same time, so that the number was nobody else's in between.
    fn made(&self, done: &Done) -> Option<Actor> {
        let (actor, boot_ns) = self.known.last?;
        let short = done.since_ns + 2 * IN_TURN_NS > done.read_ns;
        let near = (boot_ns + IN_TURN_NS > done.since_ns) && boot_ns < done.read_ns + IN_TURN_NS;
        (short && near).then_some(actor)
    }

    /// Which of its records is of which event is certain from now on: as many of both were left over, or its last record is from after the reading of
    /// its newest event, and none waits, so that nothing of before can be taken for what comes.
    fn is_even(&self, behind: bool) -> bool {
        let doubt = &self.known.doubt;
        let last_ns = self.known.last.map_or(0, |(_, boot_ns)| boot_ns);
        doubt.records == doubt.events
            || !behind && self.done.is_empty() && last_ns > 0 && last_ns >= self.read_ns
    }

    /// No event is of this record; on an overlay what it did is done below.
    fn left_over(&mut self, file: &File) {
        if self.spare.len() == SPARE {
            self.spare.pop_front();
        }
        let last = |path: &Option<String>| {
            let path = plain(path.as_deref()?);
            path.rsplit('/').next().map(number)
        };
        let names = [&file.path, &file.new_path].map(|path| last(path).unwrap_or(0));
        self.spare.push_back(names);
    }
    /// Finds the event of a record, by the names, and takes over what it tells.
    fn claim(&mut self, kind: Kind, file: &mut File, as_host: bool, places: &mut Places) -> bool {
        let waits = |done: &Done| done.state == State::Waits;
        let old = file.path.as_deref().map(plain);
        let new = file.new_path.as_deref().map(plain);
        let (Some(old), new) = (old, new) else {
            return false;
        };
        let removed = file.flags & NAMES_DIRECTORY != 0;
        let fits = |done: &Done| match kind {
            Kind::Rename => done.mask & RENAME != 0 && done.to.is_some() && new.is_some(),
            _ => done.mask & DELETE != 0 && (done.mask & FOLDER != 0) == removed,
        };
        let near = || {
            let all = self.done.iter().enumerate().skip(self.next);
            all.filter(|(_, done)| waits(done))
                .take(COMPARED)
                .filter(|(_, done)| fits(done))
        };
        let of = |name: &Name, path: &str| name.path.as_deref() == Some(path);
        // As it stands; then what its folder leads to now.
        let same = near().find(|(_, done)| {
            let second = (&done.to, &new);
            of(&done.from, &old)
                && matches!(second, (None, _))
                    | matches!(second, (Some(to), Some(new)) if of(to, new))
        });
        let mut paths = None;
        let place = match same {
            Some((place, done)) => {
                paths = Some((
                    done.from.path.clone(),
                    done.to.as_ref().and_then(|to| to.path.clone()),
                ));
                Some(place)
            }
            None => near().find_map(|(place, done)| {
                paths = Some(done.found(&old, new.as_deref(), places)?);
                Some(place)
            }),
        };
        let (Some(place), Some((path, new_path))) = (place, paths) else {
            return false;
        };
        self.known.doubt.there |= self.done.iter().take(place).skip(self.next).any(waits);
        self.next = place + 1;
        let exchange = file.call_flags & libc::RENAME_EXCHANGE != 0;
        let mut unsteady = false;
        let (back_from, back_to) = (new_path.clone(), path.clone());
        if let Some(done) = self.done.get_mut(place) {
            done.state = State::Claimed;
            done.tell(file);
            unsteady = done.unsteady;
        }
        let flaws = match self.known.doubt.there || unsteady || !as_host {
            true => u32::from(FLAW_RACY),
            false => 0,
        };
        (file.path, file.flaws) = (path, flaws);
        if kind == Kind::Rename {
            (file.new_path, file.new_flaws) = (new_path, flaws);
            file.new_source = Source::Object.into();
        }
        // An exchange is told twice, there and back.
        if exchange
            && let Some(back) = self.done.get_mut(place + 1)
            && back.state == State::Waits
            && back.mask & RENAME != 0
            && back.from.path == back_from
            && back.to.as_ref().and_then(|to| to.path.clone()) == back_to
        {
            back.state = State::Claimed;
            self.next = place + 2;
        }
        true
    }
}

impl Done {
    fn size(&self) -> usize {
        let of = |name: &Name| {
            name.path.as_ref().map_or(0, String::len) + name.name.len() + name.folder.1.bytes.len()
        };
        size_of::<Self>() + of(&self.from) + self.to.as_ref().map_or(0, of)
    }

    /// The paths, if what was named leads to them now.
    fn found(
        &self,
        old: &str,
        new: Option<&str>,
        places: &mut Places,
    ) -> Option<(Option<String>, Option<String>)> {
        let mut one = |name: &Name, path: &str| {
            let (folder, last) = path.rsplit_once('/')?;
            if last != name.name {
                return None;
            }
            let folder = if folder.is_empty() { "/" } else { folder };
            Some(joined(&places.leads(folder, &name.folder)?, last))
        };
        let from = one(&self.from, old)?;
        let to = match (&self.to, new) {
            (Some(to), Some(new)) => Some(one(to, new)?),
            _ => None,
        };
        Some((Some(from), to))
    }

    /// What it tells beside the paths.
    fn tell(&self, file: &mut File) {
        file.source = Source::Object.into();
        if (self.dev, self.ino) != (0, 0) {
            file.flags |= NAMES_OBJECT;
            (file.dev, file.ino) = (self.dev, self.ino);
        }
    }

    /// An event of its own.
    fn event(&self, tid: u32) -> Event {
        let racy = u32::from(FLAW_RACY);
        // Of what lies where nobody finds it any more, the name alone is known.
        let named = |name: &Name| match &name.path {
            Some(path) => (Some(path.clone()), racy),
            None => (Some(name.name.clone()), racy | u32::from(FLAW_TRUNCATED)),
        };
        let (kind, directory) = match self.mask & DELETE {
            0 => (Kind::Rename, false),
            _ => (Kind::Unlink, self.mask & FOLDER != 0),
        };
        let (path, flaws) = named(&self.from);
        let mut file = File {
            path,
            flaws,
            flags: if directory { NAMES_DIRECTORY } else { 0 },
            ..File::default()
        };
        self.tell(&mut file);
        if let Some(to) = &self.to {
            (file.new_path, file.new_flaws) = named(to);
            file.new_source = Source::Object.into();
        }
        Event {
            kind: kind.into(),
            boot_ns: self.number,
            tid,
            file: Some(file),
            ..Event::default()
        }
    }
}

/// Paths of folders that were renamed, before and after.
struct Moved {
    paths: Vec<String>,
    /// There were more, or it is not known where one was.
    anywhere: bool,
}

impl Moved {
    fn of(events: &[handles::Event], names: &[Option<(Name, Option<Name>)>]) -> Self {
        let mut moved = Self {
            paths: Vec::new(),
            anywhere: false,
        };
        let of_folders = events.iter().zip(names);
        for (_, names) in
            of_folders.filter(|(event, _)| event.mask & FOLDER != 0 && event.mask & RENAME != 0)
        {
            let Some((from, Some(to))) = names else {
                continue;
            };
            moved.add(from.path.clone(), to.path.clone());
        }
        moved
    }

    fn add(&mut self, from: Option<String>, to: Option<String>) {
        match (from, to) {
            (Some(from), Some(to)) if self.paths.len() < 2 * MOVED => {
                self.paths.extend([from, to].map(|path| joined(&path, "")));
            }
            _ => self.anywhere = true,
        }
    }

    fn is_on_the_way(&self, name: &Name) -> bool {
        let path = name.path.as_deref().unwrap_or_default();
        self.anywhere
            || self
                .paths
                .iter()
                .any(|moved| path.starts_with(moved.as_str()))
    }
}

/// What is not watched, after the first look at the mounts or before; while one lasts too long; and with so many questions that are not answered.
fn standing(mounts: &Mounts, looked: bool, late: bool, stuck: usize) -> Result<String, String> {
    const NAMED: usize = 4;
    if mounts.places.is_empty() {
        return Err(match &mounts.failed {
            Some(why) => why.clone(),
            None if !looked => "the mounts have not been looked at yet".into(),
            None => format!("nothing can be watched: {}", few(&mounts.left_out, NAMED)),
        });
    }
    let mut words = Vec::new();
    if late {
        words.push(
            "what was mounted lately: some file system keeps whoever looks at it waiting"
                .to_owned(),
        );
    }
    words.extend(mounts.failed.clone());
    if stuck > 0 {
        words.push("what does not say in time where its folders are".to_owned());
    }
    if !mounts.left_out.is_empty() {
        words.push(few(&mounts.left_out, NAMED));
    }
    Ok(words.join(", "))
}

/// The first so many, and how many more.
fn few(all: &[String], named: usize) -> String {
    let mut words: Vec<_> = all.iter().take(named).cloned().collect();
    if all.len() > named {
        words.push(format!("and {} more", all.len() - named));
    }
    words.join(", ")
}

/// A name as a number, never 0.
fn number(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish() | 1
}

/// A path without what does not change where it leads: empty and single dots as components, slashes at its end.
fn plain(path: &str) -> Cow<'_, str> {
    let odd =
        path.contains("//") || path.contains("/./") || path.ends_with('/') || path.ends_with("/.");
    if !odd {
        return Cow::Borrowed(path);
    }
    let names = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".");
    Cow::Owned(
        names.fold(String::with_capacity(path.len()), |whole, name| {
            whole + "/" + name
        }),
    )
}

#[cfg(test)]
mod tests;
