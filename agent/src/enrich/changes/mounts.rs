//! Which file systems tell of renames and removals: a thread that follows the mounts, so that whoever reads events never waits
//! for one. Nothing of them but the root is kept open, so that they can be unmounted.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OpenHow, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use sumun_proto::text;

use super::places::again;
use crate::enrich::host;
use crate::kernel::handles::{FOLDER_OF_HANDLES, FsId, Group, Handle, REFERENCE, at_hand, fs_of};

/// File systems that are watched at most; those beyond are named as not watched.
const PLACES_MAX: usize = 512;
/// Between two looks at the mounts: at least the first, and, up to the second, so many times what the last one took, so that it costs little where many come and go.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
const PAUSE_TIMES: u32 = 20;
/// The thread looks so often whether it is to end.
const LOOK_MS: u16 = 250;
/// Types without a device of their own whose files lie on this host.
const HERE: [&str; 7] = [
    "rootfs", "tmpfs", "ramfs", "devtmpfs", "overlay", "bcachefs", "zfs",
];
/// With a device behind them, and answered by a program or by locks of other hosts all the same.
const OF_OTHERS: [&str; 3] = ["fuseblk", "gfs2", "ocfs2"];
/// Types in which the kernel shows itself: nobody keeps files there.
const OF_KERNEL: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// A look at the mounts that lasts longer is told.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// After what failed in passing the next look comes so soon, and so often.
const SOON: Duration = Duration::from_secs(1);
const SOON_TIMES: u32 = 10;
/// When it cannot be looked at all, it is tried again after this; twice as long each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where a file system is found, and how its handles are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub fs: FsId,
    /// Number of the mount.
    pub mount: i32,
    /// Device of its superblock, as records have it.
    pub dev: u32,
    pub point: Vec<u8>,
    /// What of a handle is the inode's number, if that is known.
    pub numbers: Option<Numbers>,
}

/// What of a handle is the inode's number: it is the file system's own business, so each is tried on its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    kind: i32,
    len: usize,
    at: usize,
    wide: bool,
}

impl Numbers {
    /// As most have it (ext4, f2fs: `generic_encode_ino32_fh`), as tmpfs, as XFS with wide numbers, as btrfs.
    const KNOWN: [Self; 4] = [
        Self::new(1, 8, 0, false),
        Self::new(1, 12, 4, true),
        Self::new(0x81, 12, 0, true),
        Self::new(0x4d, 20, 0, true),
    ];

    const fn new(kind: i32, len: usize, at: usize, wide: bool) -> Self {
        Self {
            kind,
            len,
            at,
            wide,
        }
    }

    /// The one that finds this number in this handle.
    fn find(handle: &Handle, ino: u64) -> Option<Self> {
        let mut known = Self::KNOWN.into_iter();
        known.find(|numbers| numbers.of(handle) == Some(ino))
    }

    /// The number in a handle.
    pub(super) fn of(self, handle: &Handle) -> Option<u64> {
        if (handle.kind, handle.bytes.len()) != (self.kind, self.len) {
            return None;
        }
        let rest = handle.bytes.get(self.at..)?;
        match self.wide {
            true => rest.first_chunk().copied().map(u64::from_ne_bytes),
            false => Some(u32::from_ne_bytes(*rest.first_chunk()?).into()),
        }
    }
}

/// The mounts, as they were looked at last.
#[derive(Clone, Debug, Default)]
pub(super) struct Mounts {
    pub places: Vec<Place>,
    /// File systems of places by the numbers of all mounts that show them.
    pub ids: HashMap<i32, FsId>,
    /// The root of the host's files, which nobody unmounts.
    pub root: Option<Arc<OwnedFd>>,
    /// What overlays write into, as text: what is done there for a container is not its call.
    pub inner: Vec<String>,
    /// What is not watched, and why not.
    pub left_out: Vec<String>,
    /// Why they cannot be looked at any more.
    pub failed: Option<String>,
    /// Something failed in passing.
    pub again: bool,
}

/// The thread that follows the mounts; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    mounts: Mutex<Arc<Mounts>>,
    looked: Condvar,
    version: AtomicU64,
    /// When the look began that is under way.
    began: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    /// Begins to watch, and waits a little until it has.
    pub(super) fn start(group: Arc<Group>, patience: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        thread::Builder::new()
            .name("mounts".into())
            .spawn(move || {
                let mut pause = RETRY.0;
                while let Err(why) = follow(&group, &own) {
                    tracing::warn!(
                        why,
                        "the mounts cannot be followed: new ones are not watched for renames and removals"
                    );
                    // What was found before is still watched.
                    own.set(Mounts {
                        failed: Some(why),
                        ..Mounts::clone(&own.get())
                    });
                    own.sleep(pause);
                    pause = RETRY.1.min(pause * 2);
                    if own.is_over() {
                        break;
                    }
                }
            })?;
        {
            let mounts = shared.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            let first = |_: &mut Arc<Mounts>| shared.version.load(Ordering::Relaxed) == 0;
            // However long it takes, it goes on.
            drop(shared.looked.wait_timeout_while(mounts, patience, first));
        }
        Ok(Self { shared })
    }

    /// Goes up with each look that found something else.
    pub(super) fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    pub(super) fn mounts(&self) -> Arc<Mounts> {
        self.shared.get()
    }

    /// The look that is under way lasts longer than it should: some file system keeps it waiting.
    pub(super) fn is_late(&self) -> bool {
        let began = *self
            .shared
            .began
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() > LOOK_MAX)
    }
}

impl Shared {
    fn get(&self) -> Arc<Mounts> {
        let mounts = self.mounts.lock();
        Arc::clone(&mounts.unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, began: Option<Instant>) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Or until it is to end.
    fn sleep(&self, pause: Duration) {
        let begun = Instant::now();
        loop {
            let left = pause.saturating_sub(begun.elapsed());
            if left.is_zero() || self.is_over() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(LOOK_MS.into())));
        }
    }

    fn set(&self, mounts: Mounts) {
        *self.mounts.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(mounts);
        self.version.fetch_add(1, Ordering::Release);
        self.looked.notify_all();
    }
}

/// Looks at the mounts whenever they change, until it is to end.
fn follow(group: &Group, shared: &Shared) -> Result<(), String> {
    host::go_to_files()?;
    let how = OpenHow::new().flags(FOLDER_OF_HANDLES);
    let root = openat2(AT_FDCWD, "/", how).map_err(|errno| format!("cannot open /: {errno}"))?;
    let root = Arc::new(root);
    let path = "/proc/thread-self/mountinfo";
    let failed = |error: io::Error| format!("cannot read {path}: {error}");
    let changes = fs::File::open(path).map_err(failed)?;
    let (mut last, mut soon) = (None, 0);
    while !shared.is_over() {
        let table = fs::read(path).map_err(failed)?;
        // Each time: a mount may have loaded the module of its type.
        let types = types(&fs::read_to_string("/proc/filesystems").unwrap_or_default());
        let begun = Instant::now();
        shared.begin(Some(begun));
        let mut mounts = look(group, &root, &table, &types);
        shared.begin(None);
        let took = begun.elapsed();
        soon = if mounts.again { soon + 1 } else { 0 };
        let looked = Instant::now();
        let told = (
            mounts.places.clone(),
            mounts.inner.clone(),
            mounts.left_out.clone(),
        );
        // Also of mounts that look the same: paths may lead elsewhere.
        mounts.root = Some(Arc::clone(&root));
        if last.as_ref() != Some(&(table.clone(), told.clone())) {
            shared.set(mounts);
            last = Some((table, told));
        }
        shared.sleep(PAUSE.1.min(PAUSE.0.max(took * PAUSE_TIMES)));
        let mut changed = false;
        while !changed && !shared.is_over() {
            if (1..=SOON_TIMES).contains(&soon) && looked.elapsed() >= SOON {
                break;
            }
            let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLPRI)];
            // An interrupted wait is a short one.
            changed = poll(&mut fds, PollTimeout::from(LOOK_MS)).is_ok_and(|ready| ready > 0);
        }
    }
    Ok(())
}

/// Types of file systems whose files lie on devices of this host: looking at one waits for a disk at most.
fn types(text: &str) -> Vec<String> {
    let on_devices = text.lines().filter(|line| !line.starts_with("nodev"));
    on_devices
        .map(|line| line.trim().to_owned())
        .filter(|name| !OF_OTHERS.contains(&name.as_str()))
        .chain(HERE.map(str::to_owned))
        .collect()
}

/// A line of mountinfo: proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: i32,
    parent: i32,
    dev: (u32, u32),
    whole: bool,
    point: Vec<u8>,
    kind: String,
    options: Vec<u8>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let dev = std::str::from_utf8(words.next()?).ok()?;
        let (major, minor) = dev.split_once(':')?;
        let whole = words.next()? == b"/";
        let point = unescaped(words.next()?);
        let mut words = words.skip_while(|word| *word != b"-").skip(1);
        let kind = String::from_utf8_lossy(words.next()?).into_owned();
        let options = words.nth(1)?.to_vec();
        Some(Self {
            id,
            parent,
            dev: (major.parse().ok()?, minor.parse().ok()?),
            whole,
            point,
            kind,
            options,
        })
    }

    fn option(&self, name: &str) -> Option<Vec<u8>> {
        let mut options = self.options.split(|byte| *byte == b',');
        let value = options.find_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(unescaped)
    }

    fn is_written(&self) -> bool {
        !self
            .options
            .split(|byte| *byte == b',')
            .any(|one| one == b"ro")
    }
}

/// Blanks, line ends and backslashes stand there as three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, more)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| more.first_chunk::<3>()).flatten();
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = more.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}

/// Marks the file systems of all mounts. Again at each look: one that is gone may have left its number to another.
fn look(group: &Group, root: &OwnedFd, table: &[u8], types: &[String]) -> Mounts {
    let mut found = Mounts::default();
    let mut known: HashMap<(u32, u32), Option<String>> = HashMap::new();
    let mut all: Vec<_> = table
        .split(|byte| *byte == b'\n')
        .filter_map(Mount::parse)
        .collect();
    for mount in all.iter().filter(|mount| mount.kind == "overlay") {
        let written = ["upperdir", "workdir"].iter();
        let written = written.filter_map(|name| mount.option(name));
        found
            .inner
            .extend(written.map(|path| text::from_bytes(&path) + "/"));
    }
    found.inner.sort_unstable();
    found.inner.dedup();
    // Where all of a file system is to be seen its paths are whole; of two mounts at one place the last is the one that is seen.
    all.reverse();
    all.sort_by_key(|mount| !mount.whole);
    for mount in &all {
        if !mount.is_written() || matches!(known.get(&mount.dev), Some(None)) {
            continue;
        }
        let named =
            |why: &str| format!("{} ({}): {why}", text::from_bytes(&mount.point), mount.kind);
        if !types.contains(&mount.kind) {
            if !OF_KERNEL.contains(&mount.kind.as_str()) {
                let why = named("a program or another host answers for it");
                known.insert(mount.dev, Some(why));
            }
            continue;
        }
        // Nothing of what lies over it is touched, whoever answers for that.
        let hidden = all.iter().any(|other| {
            (other.parent, &other.point) == (mount.id, &mount.point) && other.id != mount.id
        });
        let marked = match found.places.len() < PLACES_MAX {
            _ if hidden => Err("another mount hides it".to_owned()),
            true => mark(group, root, mount, &mut found.again),
            false => Err(format!("more than {PLACES_MAX} are not watched")),
        };
        let why = match marked {
            Ok(place) => {
                found.places.push(place);
                None
            }
            Err(why) => Some(named(&why)),
        };
        known.insert(mount.dev, why);
    }
    found.left_out = known.into_values().flatten().collect();
    found.left_out.extend(separate(&mut found.places));
    found.left_out.sort_unstable();
    let numbers: HashMap<_, _> = found
        .places
        .iter()
        .map(|place| (place.dev, place.fs))
        .collect();
    let ids = all.iter().filter_map(|mount| {
        let fs = numbers.get(&(mount.dev.0 << 20 | mount.dev.1))?;
        Some((mount.id, *fs))
    });
    found.ids = ids.collect();
    found
}

/// Of file systems that have the same number, as a copy of a disk has, nobody can tell which one an event is about: they are told without a path. Says
/// which.
fn separate(places: &mut Vec<Place>) -> Vec<String> {
    let mut times: HashMap<FsId, usize> = HashMap::new();
    for place in places.iter() {
        *times.entry(place.fs).or_default() += 1;
    }
    let mut same = Vec::new();
    places.retain(|place| {
        let alone = times.get(&place.fs) == Some(&1);
        if !alone {
            same.push(format!(
                "{}: another file system has the same number",
                text::from_bytes(&place.point)
            ));
        }
        alone
    });
    same
}

fn mark(group: &Group, root: &OwnedFd, mount: &Mount, passing: &mut bool) -> Result<Place, String> {
    let call = |name: &'static str| move |errno| format!("{name}: {errno}");
    let found = again(|| at_hand(root.as_fd(), &mount.point, REFERENCE));
    *passing |= matches!(found, Err(Errno::EAGAIN));
    let found = found.map_err(call("it cannot be opened"))?;
    let (own, id) = Handle::of(found.as_fd()).map_err(call("its files have no handles"))?;
    if id != mount.id {
        return Err("another mount hides it".into());
    }
    // Only now: an open is told to whoever answers for it.
    let how = OpenHow::new().flags(FOLDER_OF_HANDLES);
    let open = openat2(&found, ".", how).map_err(call("it cannot be opened"))?;
    let stat = fstat(&open).map_err(call("fstat"))?;
    let dev = (libc::major(stat.st_dev), libc::minor(stat.st_dev));
    // btrfs gives each of its parts a number of its own.
    if dev != mount.dev && mount.kind != "btrfs" {
        return Err("another mount hides it".into());
    }
    let same = own
        .open(open.as_fd())
        .map_err(call("its handles cannot be opened"))?;
    let same = fstat(&same).map_err(call("fstat"))?;
    if (same.st_dev, same.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err("its handles lead elsewhere".into());
    }
    group.mark(open.as_fd()).map_err(call("fanotify_mark"))?;
    Ok(Place {
        fs: fs_of(open.as_fd()).map_err(call("statfs"))?,
        mount: mount.id,
        dev: mount.dev.0 << 20 | mount.dev.1,
        point: mount.point.clone(),
        numbers: Numbers::find(&own, stat.st_ino),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = br"36 35 98:0 /sub /mnt\040a\134b rw,noatime master:1 - overlay none rw,lowerdir=/l,upperdir=/u\040p,workdir=/w";
        let mount = Mount::parse(line).expect("a mount");
        assert_eq!(mount.point, b"/mnt a\\b");
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!(
            (mount.dev, mount.whole, mount.kind.as_str()),
            ((98, 0), false, "overlay")
        );
        assert_eq!(mount.option("upperdir"), Some(b"/u p".to_vec()));
        assert_eq!(mount.option("upper"), None);
        assert!(mount.is_written());
        for bad in [
            &b""[..],
            b"1 2 3",
            b"1 2 a:b / / rw - ext4 x rw",
            b"1 2 8:1 / /",
        ] {
            assert_eq!(Mount::parse(bad), None);
        }
        assert_eq!(unescaped(br"\04"), br"\04");
    }

    #[test]
    fn what_programs_and_other_hosts_answer_for_is_not_looked_at() {
        let found =
            types("nodev\tproc\nnodev\tnfs\nnodev\tfuse\n\text4\n\tfuseblk\n\tgfs2\n\txfs\n");
        for local in ["ext4", "xfs", "tmpfs", "overlay"] {
            assert!(found.iter().any(|name| name == local), "{local}");
        }
        for other in ["proc", "nfs", "fuse", "fuseblk", "gfs2"] {
            assert!(!found.iter().any(|name| name == other), "{other}");
        }
    }

    #[test]
    fn file_systems_with_the_same_number_have_no_place() {
        let place = |fs: u8, point: &str| Place {
            fs: [fs; 8],
            mount: 1,
            dev: fs.into(),
            point: point.into(),
            numbers: None,
        };
        let mut places = vec![place(1, "/"), place(2, "/data"), place(1, "/snap")];
        let same = separate(&mut places);
        assert_eq!(places, [place(2, "/data")]);
        assert_eq!(same.len(), 2);
        assert!(same[0].starts_with("/: ") && same[1].starts_with("/snap: "));
    }

    #[test]
    fn numbers_are_found_in_the_handle_of_the_root() {
        let handle = |bytes: &[u8]| Handle {
            kind: 1,
            bytes: bytes.into(),
        };
        let ext4 = Numbers::find(&handle(&[2, 0, 0, 0, 9, 9, 9, 9]), 2).expect("a layout");
        assert_eq!(ext4.of(&handle(&[7, 1, 0, 0, 1, 2, 3, 4])), Some(0x107));
        let tmpfs = Numbers::find(&handle(&[9, 9, 9, 9, 1, 0, 0, 0, 0, 0, 0, 0]), 1);
        let tmpfs = tmpfs.expect("a layout");
        assert_eq!(
            tmpfs.of(&handle(&[0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0])),
            Some((1 << 32) + 5)
        );
        assert_eq!(tmpfs.of(&handle(&[2, 0, 0, 0, 9, 9, 9, 9])), None);
        assert_eq!(Numbers::find(&handle(&[3, 0, 0, 0, 9, 9, 9, 9]), 2), None);
    }
}
