//! Where a folder is that an event names by its handle.
//!
//! File systems are asked by `lookups` alone, never by the reading thread itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OpenHow, openat2};
use sumun_proto::text;

use super::lookups::{Lookups, Of};
use super::mounts::{Mounts, Watch};
use super::{Done, Name, number};
use crate::kernel::handles::{
    DELETE, Entry, Event, FOLDER, FOLDER_OF_HANDLES, FsId, Handle, REFERENCE, RENAME, at_hand,
    path_of,
};

/// Folders whose paths are remembered; with one more all are forgotten.
const FOLDERS_MAX: usize = 4096;
/// Paths that were looked up in one cycle and are remembered until its end; those beyond are looked up again.
const LEADS_MAX: usize = 1024;
/// Folders above each other that have been renamed or removed since, at most.
const DEPTH_MAX: usize = 64;
/// Folders that are asked for at once: one that is slow keeps no more than these from being known.
const ASKED_AT_ONCE: usize = 128;
/// A walk by memory alone fails when a mount changes beside it: it is tried so often.
const TRIES: usize = 4;

/// A folder, wherever it is.
pub(super) type Folder = (FsId, Handle);

/// What a path leads to: the folder, and its path without links, of the same mount.
#[derive(Clone, Debug)]
struct Lead {
    folder: Folder,
    path: String,
}

/// Finds folders.
#[derive(Debug, Default)]
pub(super) struct Places {
    mounts: Arc<Mounts>,
    version: u64,
    /// Until a folder is renamed, anywhere, or a mount changes. As text.
    paths: HashMap<Folder, Rc<str>>,
    /// Where paths led to in this cycle.
    leads: HashMap<String, Option<Lead>>,
    lookups: Lookups,
}

/// While events of one reading are looked at.
pub(super) struct Look {
    /// What was done to folders, by folder: at which event, and the name that it had.
    done: HashMap<Folder, Vec<(usize, Folder, Vec<u8>)>>,
    /// Where folders are now, of this reading.
    now: HashMap<Folder, Option<Rc<str>>>,
}

impl Places {
    /// A cycle begins.
    pub(super) fn begin(&mut self) {
        self.leads.clear();
        self.lookups.begin();
    }

    /// Questions that no file system has answered in time, and that are not asked for the time being.
    pub(super) fn stuck(&self) -> usize {
        self.lookups.stuck()
    }

    /// To look at these events: asks where their folders are.
    pub(super) fn look(&mut self, watch: &Watch, events: &[Event]) -> Look {
        let version = watch.version();
        let mut done: HashMap<Folder, Vec<_>> = HashMap::new();
        let mut shaken = false;
        let of_folders = events.iter().enumerate();
        for (place, event) in of_folders.filter(|(_, event)| event.mask & FOLDER != 0) {
            // What is found now may have been elsewhere.
            shaken |= event.mask & RENAME != 0;
            if let (Some(object), Some(from)) = (&event.object, &event.from) {
                let parent = (event.fs, from.folder.clone());
                let of_folder = done.entry((event.fs, object.clone())).or_default();
                of_folder.push((place, parent, from.name.clone()));
            }
        }
        if shaken || version != self.version {
            self.paths.clear();
            self.version = version;
            self.mounts = watch.mounts();
        }
        let mut look = Look {
            done,
            now: HashMap::new(),
        };
        let mut asked: HashSet<Folder> = HashSet::new();
        for (place, event) in events.iter().enumerate() {
            for entry in [&event.from, &event.to].into_iter().flatten() {
                let top = look.top(&(event.fs, entry.folder.clone()), place);
                asked.extend(top.map(|(folder, _)| folder));
            }
        }
        self.find(&mut look, asked);
        if !shaken {
            for (folder, path) in &look.now {
                if self.paths.len() == FOLDERS_MAX {
                    self.paths.clear();
                }
                if let Some(path) = path {
                    self.paths.insert(folder.clone(), Rc::clone(path));
                }
            }
        }
        look
    }

    /// The folders of events that came while these were looked at, as they are now.
    pub(super) fn look_again(&mut self, look: &mut Look, events: &[Event]) {
        let entries = events.iter().flat_map(|event| {
            let entries = [&event.from, &event.to].into_iter().flatten();
            entries.map(|entry| (event.fs, entry.folder.clone()))
        });
        let asked = entries.filter(|folder| !look.now.contains_key(folder));
        let asked = asked.collect();
        self.find(look, asked);
    }

    fn find(&mut self, look: &mut Look, asked: HashSet<Folder>) {
        let mut unknown: HashMap<FsId, Vec<Handle>> = HashMap::new();
        for folder in asked {
            match self.paths.get(&folder) {
                Some(path) => {
                    look.now.insert(folder, Some(Rc::clone(path)));
                }
                None => unknown.entry(folder.0).or_default().push(folder.1),
            }
        }
        for (fs, handles) in unknown {
            for handles in handles.chunks(ASKED_AT_ONCE) {
                let (mounts, own) = (Arc::clone(&self.mounts), handles.to_vec());
                let found = self
                    .lookups
                    .ask(Of::FileSystem(fs), move || paths(&mounts, fs, &own));
                let found = found.unwrap_or_default();
                let found = found.into_iter().map(|path| path.map(Rc::from));
                let found = found.chain(std::iter::repeat(None));
                look.now
                    .extend(handles.iter().map(|handle| (fs, handle.clone())).zip(found));
            }
        }
    }

    /// Device and inode of what an event names, in that order; zeroes if they are not known.
    pub(super) fn object(&self, event: &Event) -> (u32, u64) {
        let found = self.mounts.places.iter().find(|place| place.fs == event.fs);
        let ino = found.and_then(|place| place.numbers?.of(event.object.as_ref()?));
        match (found, ino) {
            (Some(place), Some(ino)) => (place.dev, ino),
            _ => (0, 0),
        }
    }

    /// Where a path of the host's leads to that folder now, as far as the kernel has it in memory: the path without
    /// links, of the same mount.
    pub(super) fn leads(&mut self, path: &str, folder: &Folder) -> Option<String> {
        if !self.leads.contains_key(path) {
            let (mounts, own) = (Arc::clone(&self.mounts), path.to_owned());
            let lead = self.lookups.ask(Of::Path, move || lead(&mounts, &own));
            if self.leads.len() == LEADS_MAX {
                self.leads.clear();
            }
            self.leads.insert(path.to_owned(), lead.flatten());
        }
        let lead = self.leads.get(path)?.as_ref()?;
        (lead.folder == *folder).then(|| lead.path.clone())
    }

    /// Whether this is what an overlay does below, for a call on what it shows, or by itself. By a thread of which there is no record (`recorded`) it is
    /// that only if nobody asked for it: what overlays name themselves in their own folder is removed, or folders come from there, when they are copied up. A
    /// whiteout comes from there, too, and may be all that tells of a removal. `spare` are names of its calls of which no event was.
    pub(super) fn is_below(&self, done: &Done, spare: &VecDeque<[u64; 2]>, recorded: bool) -> bool {
        let path = |name: &Name| name.path.as_deref().is_some_and(|path| self.is_inner(path));
        if !path(&done.from) {
            return false;
        }
        let own = |name: &Name| name.name.starts_with('#');
        if own(&done.from) && (done.mask & DELETE != 0 || done.mask & FOLDER != 0) {
            return true;
        }
        let names = [Some(&done.from), done.to.as_ref()].into_iter().flatten();
        let mut numbers = names.map(|name| number(&name.name));
        recorded && numbers.any(|one| spare.iter().any(|names| names.contains(&one)))
    }

    /// As if overlays wrote into these.
    #[cfg(test)]
    pub(super) fn inside(&mut self, inner: &[&str]) {
        self.mounts = Arc::new(Mounts {
            inner: inner.iter().map(|path| (*path).to_owned()).collect(),
            ..Mounts::default()
        });
    }

    /// Whether a path lies in what an overlay writes into.
    pub(super) fn is_inner(&self, path: &str) -> bool {
        self.mounts
            .inner
            .iter()
            .any(|inner| path.starts_with(inner.as_str()))
    }
}

impl Look {
    /// The path of a folder when the event at this place of the list came.
    pub(super) fn path(&self, folder: &Folder, place: usize) -> Option<String> {
        let (top, below) = self.top(folder, place)?;
        let mut path = self.now.get(&top)?.as_deref()?.to_owned();
        for name in below.iter().rev() {
            path = joined(&path, "");
            text::push_bytes(&mut path, name);
        }
        Some(path)
    }

    /// The path of what an entry names, its folder being where it is now.
    pub(super) fn path_now(&self, fs: FsId, entry: &Entry) -> Option<String> {
        let folder = self.now.get(&(fs, entry.folder.clone()))?.as_deref()?;
        Some(joined(folder, &text::from_bytes(&entry.name)))
    }

    /// The folder above it of which nothing was done since that event, and the names from there on, the lowest first.
    fn top(&self, folder: &Folder, place: usize) -> Option<(Folder, Vec<&[u8]>)> {
        let mut below = Vec::new();
        let mut at = folder;
        loop {
            let since = self
                .done
                .get(at)
                .and_then(|all| all.iter().find(|(when, ..)| *when > place));
            let Some((_, parent, name)) = since else {
                return Some((at.clone(), below));
            };
            if below.len() == DEPTH_MAX {
                return None;
            }
            below.push(name.as_slice());
            at = parent;
        }
    }
}

/// Where folders of a file system are. Waits for the file system.
fn paths(mounts: &Mounts, fs: FsId, handles: &[Handle]) -> Vec<Option<String>> {
    let none = || vec![None; handles.len()];
    let place = mounts.places.iter().find(|place| place.fs == fs);
    let (Some(place), Some(root)) = (place, &mounts.root) else {
        return none();
    };
    let opened;
    let of = match place.point.as_slice() {
        b"/" => root.as_fd(),
        point => {
            // What lies there now may be another's, whom an open would be told to.
            let open = again(|| at_hand(root.as_fd(), point, REFERENCE)).ok();
            let open = open.filter(|open| {
                Handle::of(open.as_fd()).is_ok_and(|(_, mount)| mount == place.mount)
            });
            let how = OpenHow::new().flags(FOLDER_OF_HANDLES);
            match open.and_then(|open| openat2(&open, ".", how).ok()) {
                Some(open) => opened = open,
                None => return none(),
            }
            opened.as_fd()
        }
    };
    let inside = |path: &[u8]| match place.point.as_slice() {
        b"/" => true,
        // Of a mount that shows a part of a file system, the rest has no path.
        point => path
            .strip_prefix(point)
            .is_some_and(|rest| matches!(rest, [] | [b'/', ..])),
    };
    let one = |handle: &Handle| {
        let open = handle.open(of).ok()?;
        let path = path_of(open.as_fd()).filter(|path| inside(path))?;
        Some(text::from_bytes(&path))
    };
    handles.iter().map(one).collect()
}

/// What a path leads to, if that is on a file system that is watched. May have to wait for whoever answers for what lies there.
fn lead(mounts: &Mounts, path: &str) -> Option<Lead> {
    let (root, path) = (mounts.root.as_ref()?, text::to_bytes(path)?);
    let open = again(|| at_hand(root.as_fd(), &path, REFERENCE)).ok()?;
    let (handle, mount) = Handle::of(open.as_fd()).ok()?;
    let fs = *mounts.ids.get(&mount)?;
    let path = path_of(open.as_fd())?;
    Some(Lead {
        folder: (fs, handle),
        path: text::from_bytes(&path),
    })
}

/// What fails in passing is tried again.
pub(super) fn again<T>(mut open: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    for _ in 1..TRIES {
        match open() {
            Err(Errno::EAGAIN) => {}
            opened => return opened,
        }
    }
    open()
}

/// A name in a folder.
pub(super) fn joined(folder: &str, name: &str) -> String {
    match folder {
        "/" => format!("/{name}"),
        folder => format!("{folder}/{name}"),
    }
}
