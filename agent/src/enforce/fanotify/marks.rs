//! The marks that make the kernel hold calls on what rules name, kept up with the files.
//!
//! A file is marked itself, so that another name of it is no way around, and with its folder, so that a file that is put in
//! its place is held from its first open on. Of a folder that rules name as a prefix, it and every folder
//! below it are marked. What has changed is looked for a few times a second: until then, a folder that is new below a
//! prefix is not held, nor is a file that was put into a place whose folder was not there. Marks are not taken
//! back: on what is no longer named they cost a look, and go with the file.
//!
//! Looking may wait for a disk or a program (FUSE) that never answers, and then not even SIGKILL ends it. What waits for an answer is
//! let go when the last descriptor of the group is closed, so the thread that looks has none: its table of descriptors is its own, and it shows what it
//! has found to another thread, which marks it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::statfs::{self, FsType};
use sumun_proto::v1::Kind;

use super::judge::Id;
use super::wire::{Held, Missing};
use crate::kernel::fanotify::{EXEC, Group, OPEN};

/// Folders that are marked at most, below all prefixes together: each takes some 100 bytes of kernel memory.
pub(super) const FOLDERS_MAX: usize = 4096;

/// The paths by which rules name a file: what was found there last.
pub(super) type Named = HashMap<Id, Vec<Vec<u8>>>;

/// The marks of one group.
pub(super) struct Marks {
    marker: Marker,
    wanted: Vec<Wanted>,
    named: Arc<Mutex<Arc<Named>>>,
    /// What lies at each named path, as long as nothing else has taken its place.
    found: BTreeMap<Vec<u8>, Id>,
    /// Marked with these events when it was last changed at that time.
    marked: HashMap<PathBuf, Marked>,
    folders: usize,
}

struct Wanted {
    rule: usize,
    kind: Kind,
    mask: u64,
    files: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
}

struct Marked {
    /// An inode number is used again; the time of its last change then differs.
    version: (Id, i64, i64),
    mask: u64,
    /// Folders in it whose names begin so, if they were asked for and all of them could be marked.
    below: Option<(Vec<u8>, Vec<PathBuf>)>,
}

/// The thread that marks what another has found.
pub(super) struct Marker {
    ask: SyncSender<Ask>,
    told: Receiver<nix::Result<()>>,
}

struct Ask {
    /// In `/proc`, of the descriptor of the one that asks.
    link: CString,
    mask: u64,
    children: bool,
}

impl Marker {
    /// Starts it.
    ///
    /// # Errors
    /// There cannot be another thread.
    pub(super) fn start(group: Arc<Group>) -> io::Result<Self> {
        // Nothing is kept in them: each question waits for its answer.
        let (ask, asked) = sync_channel::<Ask>(0);
        let (tell, told) = sync_channel(0);
        thread::Builder::new()
            .name("marker".into())
            .spawn(move || {
                for ask in asked {
                    let marked = group.mark(&ask.link, ask.mask, ask.children);
                    if tell.send(marked).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self { ask, told })
    }

    /// Marks a file that the calling thread has open, as [`Group::mark`] says.
    fn mark(&self, file: &File, mask: u64, children: bool) -> nix::Result<()> {
        let thread = nix::unistd::gettid();
        let link = format!("/proc/self/task/{thread}/fd/{}", file.as_raw_fd());
        let link = CString::new(link).map_err(|_| Errno::EINVAL)?;
        let ask = Ask {
            link,
            mask,
            children,
        };
        self.ask.send(ask).map_err(|_| Errno::ESRCH)?;
        self.told.recv().unwrap_or(Err(Errno::ESRCH))
    }
}

impl Marks {
    pub(super) fn new(marker: Marker, rules: &[Held], named: Arc<Mutex<Arc<Named>>>) -> Self {
        let wanted = rules.iter().map(|rule| Wanted {
            rule: rule.rule,
            kind: rule.kind,
            mask: match rule.kind {
                Kind::Exec => EXEC,
                _ => OPEN,
            },
            files: rule.names.files.iter().cloned().collect(),
            prefixes: rule.names.prefixes.iter().cloned().collect(),
        });
        Self {
            marker,
            wanted: wanted.collect(),
            named,
            found: BTreeMap::new(),
            marked: HashMap::new(),
            folders: 0,
        }
    }

    /// Marks what is named and not marked yet, rule by rule; what could not be, and why.
    pub(super) fn renew(&mut self, done: &AtomicUsize) -> Vec<Missing> {
        let mut missing = Vec::new();
        self.folders = 0;
        let wanted = std::mem::take(&mut self.wanted);
        for (index, want) in wanted.iter().enumerate() {
            // One that cannot be marked leaves the others theirs.
            let mut trouble = None;
            for path in &want.files {
                if let Err(why) = self.file(path, want.mask) {
                    trouble.get_or_insert(why);
                }
            }
            for prefix in &want.prefixes {
                if let Err(why) = self.prefix(prefix, want.mask) {
                    trouble.get_or_insert(why);
                }
            }
            if let Some(reason) = trouble {
                missing.push(Missing {
                    rule: want.rule,
                    kind: want.kind.into(),
                    reason,
                });
            }
            done.fetch_max(index + 1, Ordering::Relaxed);
        }
        self.wanted = wanted;
        let mut named = Named::new();
        for (path, id) in &self.found {
            named.entry(*id).or_default().push(path.clone());
        }
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(named);
        // Of what is gone nothing has to be known.
        if self.marked.len() > 4 * FOLDERS_MAX {
            self.marked.clear();
        }
        missing
    }

    fn file(&mut self, path: &[u8], mask: u64) -> Result<(), String> {
        let whole = PathBuf::from(OsStr::from_bytes(path));
        if let Some(folder) = whole.parent() {
            self.folder(folder, mask, None)?;
        }
        let Some(file) = there(&whole, fs::symlink_metadata(&whole))? else {
            // One that was moved away stays named until another takes its place.
            return Ok(());
        };
        if file.is_dir() || file.is_symlink() {
            self.found.remove(path);
            return Err(match file.is_dir() {
                true => format!(
                    "{} is a folder, of which opens are not held: name what is in it, with a slash at the end",
                    whole.display()
                ),
                false => format!(
                    "{} is a symbolic link, and what is opened is the file that it leads to: name that",
                    whole.display()
                ),
            });
        }
        let kind = file.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            return Err(format!("{}{AMONG_DEVICES}", whole.display()));
        }
        self.mark(&whole, &file, mask, false)?;
        self.found.insert(path.to_vec(), (file.dev(), file.ino()));
        Ok(())
    }

    fn prefix(&mut self, prefix: &[u8], mask: u64) -> Result<(), String> {
        let split = prefix.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (folder, start) = (&prefix[..split], &prefix[split + 1..]);
        let folder = match folder {
            b"" => PathBuf::from("/"),
            folder => PathBuf::from(OsStr::from_bytes(folder)),
        };
        let mut rest = vec![(folder, start)];
        let mut trouble = None;
        while let Some((folder, start)) = rest.pop() {
            let room = FOLDERS_MAX.saturating_sub(self.folders + 1 + rest.len());
            match self.folder(&folder, mask, Some((start, room))) {
                Ok(below) => {
                    // No more are remembered than can be marked, however many there are.
                    if below.len() > room {
                        trouble.get_or_insert_with(too_many);
                    }
                    let below = below.into_iter().take(room);
                    rest.extend(below.map(|path| (path, &b""[..])));
                }
                Err(why) => {
                    trouble.get_or_insert(why);
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    /// Marks a folder; the folders in it whose names begin so, if they are asked for, and of more than there is room for
    /// one more.
    fn folder(
        &mut self,
        folder: &Path,
        mask: u64,
        below: Option<(&[u8], usize)>,
    ) -> Result<Vec<PathBuf>, String> {
        let Some(stat) = there(folder, fs::metadata(folder))? else {
            return Ok(Vec::new());
        };
        if !stat.is_dir() {
            return Ok(Vec::new());
        }
        self.folders += 1;
        if self.folders > FOLDERS_MAX {
            return Err(too_many());
        }
        self.mark(folder, &stat, mask, true)?;
        let Some((start, room)) = below else {
            return Ok(Vec::new());
        };
        if let Some(known) = self.marked.get(folder)
            && let Some((known, below)) = &known.below
            && known == start
        {
            return Ok(below.clone());
        }
        let below =
            folders_in(folder, start, room).map_err(|error| failed("read", folder, &error))?;
        if let Some(known) = self.marked.get_mut(folder)
            && below.len() <= room
        {
            known.below = Some((start.to_vec(), below.clone()));
        }
        Ok(below)
    }

    fn mark(
        &mut self,
        path: &Path,
        stat: &Metadata,
        mask: u64,
        children: bool,
    ) -> Result<(), String> {
        let version = ((stat.dev(), stat.ino()), stat.ctime(), stat.ctime_nsec());
        let known = self.marked.get(path);
        if known.is_some_and(|known| known.version == version && known.mask & mask == mask) {
            return Ok(());
        }
        if known.is_none_or(|known| known.version.0.0 != stat.dev()) {
            suits(path, stat)?;
        }
        let follow = if children { 0 } else { libc::O_NOFOLLOW };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | follow)
            .open(path);
        let Some(file) = there(path, file)? else {
            // Gone since it was looked at.
            return Ok(());
        };
        match self.marker.mark(&file, mask, children) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => {
                return Err(format!(
                    "cannot mark {} (fanotify_mark): {errno}",
                    path.display()
                ));
            }
        }
        let both = match known {
            Some(known) if known.version == version => known.mask | mask,
            _ => mask,
        };
        // A change after the look leads to another look, as its time is that of now.
        let below = known.filter(|known| known.version == version);
        let below = below.and_then(|known| known.below.clone());
        self.marked.insert(
            path.to_owned(),
            Marked {
                version,
                mask: both,
                below,
            },
        );
        Ok(())
    }
}

fn too_many() -> String {
    format!(
        "it needs more than {FOLDERS_MAX} folders to be marked, with the rules before it: name fewer"
    )
}

/// Folders in a folder whose names begin so, not those that are links; of more than there is room for one more. Opening a
/// folder asks nobody.
fn folders_in(folder: &Path, start: &[u8], room: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let named = entry.file_name().as_bytes().starts_with(start);
        if named && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            if found.len() > room {
                break;
            }
        }
    }
    Ok(found)
}

/// To hold an open the file is opened once more, and to open a device can be to use it.
const AMONG_DEVICES: &str =
    " is a device or lies among devices, of which opens are not held: looking at one could use it";

/// Files of the kernel are no objects of a rule, and holding them could hold whoever answers. So could files of
/// FUSE: to hold an open the file is opened once more, and whether that ends is up to a program.
fn suits(path: &Path, stat: &Metadata) -> Result<(), String> {
    let devices =
        path.starts_with("/dev") && fs::metadata("/dev").is_ok_and(|dev| dev.dev() == stat.dev());
    if devices {
        return Err(format!("{}{AMONG_DEVICES}", path.display()));
    }
    let of_kernel = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::BPF_FS_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
        statfs::SECURITYFS_MAGIC,
        FsType(libc::NSFS_MAGIC as _),
    ];
    let kind = statfs::statfs(path).map_err(|errno| {
        format!(
            "cannot ask for the file system of {} (statfs): {errno}",
            path.display()
        )
    })?;
    let kind = kind.filesystem_type();
    if kind == statfs::FUSE_SUPER_MAGIC {
        return Err(format!(
            "{} lies on a file system of a program (FUSE), of which opens are not held: it could hold up whoever answers",
            path.display()
        ));
    }
    match of_kernel.contains(&kind) {
        true => Err(format!(
            "{} lies on a file system of the kernel's own, of which opens are not held",
            path.display()
        )),
        false => Ok(()),
    }
}

fn there<T>(path: &Path, looked: io::Result<T>) -> Result<Option<T>, String> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("look at", path, &error)),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}
