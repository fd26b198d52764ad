//! Events of fanotify(7) about names: which thread has renamed or removed what in which folder, by handles of the folders
//! and not by what was said in the call. Nobody waits for whoever reads them. Linux 5.17, and later releases of some older series: `FAN_RENAME`, `FAN_REPORT_TARGET_FID`;
//! needs CAP_SYS_ADMIN, and CAP_DAC_READ_SEARCH to open what a handle leads to.
//!
//! Events of older kernels do not name the object. Two of one thread about the same name are one there, whatever
//! happened between them, so they do not say how often something was done; they are not used.

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// A name now stands elsewhere, or in another's place.
pub const RENAME: u64 = libc::FAN_RENAME;
/// A name was removed.
pub const DELETE: u64 = libc::FAN_DELETE;
/// With one of these: the name of a folder.
pub const FOLDER: u64 = libc::FAN_ONDIR;
/// More events waited than the kernel keeps (`fs.fanotify.max_queued_events`): what came then is not told.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// Bytes of the longest handle, `MAX_HANDLE_SZ` of `include/linux/exportfs.h`.
const HANDLE_MAX: usize = 128;
/// `struct fanotify_event_metadata`, `struct fanotify_event_info_header` with an fsid, `struct file_handle` without its bytes.
const EVENT: usize = size_of::<libc::fanotify_event_metadata>();
const INFO: usize = 12;
const HANDLE: usize = 8;
/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the first namespace of processes, whose numbers records have.
pub(crate) const FIRST_PIDS: u64 = 0xefff_fffc;

/// A file system, as `statfs` names it.
pub type FsId = [u8; 8];

/// What names a file for as long as it exists, whatever its path. Its bytes mean something to its file system alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// How the bytes are to be read (`enum fid_type`).
    pub kind: i32,
    /// At most 128.
    pub bytes: Arc<[u8]>,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The folder.
    pub folder: Handle,
    /// One component.
    pub name: Vec<u8>,
}

/// Something was renamed or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Bits of the constants above.
    pub mask: u64,
    /// The thread, in the pid namespace of whoever reads.
    pub tid: u32,
    /// Where.
    pub fs: FsId,
    /// The name that is gone.
    pub from: Option<Entry>,
    /// Of a rename, the one in its place.
    pub to: Option<Entry>,
    /// What had the name.
    pub object: Option<Handle>,
}

/// File systems that are watched, and the events that wait, which the kernel bounds.
#[derive(Debug)]
pub struct Group(OwnedFd);

impl Group {
    /// One that watches nothing.
    ///
    /// # Errors
    /// `EINVAL` where the kernel has not learnt it, `EPERM` without CAP_SYS_ADMIN.
    #[expect(unsafe_code, reason = "fanotify_init has no safe wrapper here")]
    pub fn new() -> nix::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_TID
            | libc::FAN_REPORT_DFID_NAME_TARGET;
        let files = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE).cast_unsigned();
        // SAFETY: integers only.
        let fd = Errno::result(unsafe { libc::fanotify_init(flags, files) })?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// From now on, events of the whole file system that this lies on. Twice is as good as once.
    ///
    /// # Errors
    /// What fanotify_mark(2) says: `EOPNOTSUPP`, `ENODEV`, `EXDEV` where its files have no handles or it has no number.
    #[expect(unsafe_code, reason = "fanotify_mark has no safe wrapper here")]
    pub fn mark(&self, place: BorrowedFd<'_>) -> nix::Result<()> {
        // SAFETY: two descriptors that are held; a null path stands for the second.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                RENAME | DELETE | FOLDER,
                place.as_raw_fd(),
                std::ptr::null(),
            )
        };
        Errno::result(result).map(drop)
    }

    /// The next events, as many as fit; none when none waits.
    ///
    /// # Errors
    /// What read(2) says; `EPROTO` for what has another form.
    pub fn read(&self, buffer: &mut [u8], mut each: impl FnMut(Event)) -> nix::Result<usize> {
        let len = match nix::unistd::read(&self.0, buffer) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
            Err(errno) => return Err(errno),
        };
        let mut rest = buffer.get(..len).unwrap_or_default();
        while !rest.is_empty() {
            let event;
            (event, rest) = parse(rest).ok_or(Errno::EPROTO)?;
            each(event);
        }
        Ok(len)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

/// The first event, and what follows it. Layouts: include/uapi/linux/fanotify.h.
fn parse(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let len = word(bytes, 0)? as usize;
    if len < EVENT || *bytes.get(4)? != libc::FANOTIFY_METADATA_VERSION {
        return None;
    }
    let (whole, rest) = bytes.split_at_checked(len)?;
    let mut event = Event {
        mask: u64::from_ne_bytes(*whole.get(8..)?.first_chunk()?),
        tid: word(whole, 20)?,
        fs: FsId::default(),
        from: None,
        to: None,
        object: None,
    };
    let mut infos = whole.get(EVENT..)?;
    while let Some(kind) = infos.first() {
        let len = usize::from(u16::from_ne_bytes(*infos.get(2..)?.first_chunk()?));
        if len < INFO {
            return None;
        }
        let (info, more) = infos.split_at_checked(len)?;
        infos = more;
        match *kind {
            libc::FAN_EVENT_INFO_TYPE_FID => event.object = Some(handle(info)?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => {
                event.from = Some(entry(info)?);
            }
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => event.to = Some(entry(info)?),
            _ => continue,
        }
        event.fs = *info.get(4..)?.first_chunk()?;
    }
    Some((event, rest))
}

/// The handle of an information, and what follows it.
fn handle(info: &[u8]) -> Option<(Handle, &[u8])> {
    let len = word(info, INFO)? as usize;
    let kind = word(info, INFO + 4)?.cast_signed();
    let (bytes, rest) = info.get(INFO + HANDLE..)?.split_at_checked(len)?;
    let bytes = bytes.into();
    (len <= HANDLE_MAX).then_some((Handle { kind, bytes }, rest))
}

fn entry(info: &[u8]) -> Option<Entry> {
    let (folder, name) = handle(info)?;
    let name = CStr::from_bytes_until_nul(name).ok()?.to_bytes().to_vec();
    Some(Entry { folder, name })
}

impl Handle {
    /// Of what is open, and the number of the mount by which it is, the first of a line of mountinfo. The file system answers from memory.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there are none.
    #[expect(unsafe_code, reason = "name_to_handle_at has no safe wrapper here")]
    pub fn of(file: BorrowedFd<'_>) -> nix::Result<(Self, i32)> {
        let mut raw = Raw::new(&[]);
        let mut mount = 0;
        // SAFETY: a descriptor that is held, an empty path that stands for it, and room for the answer of the length that it says.
        let result = unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                raw.pointer(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::result(result)?;
        let len = (raw.len as usize).min(HANDLE_MAX);
        let own = Self {
            kind: raw.kind,
            bytes: raw.bytes[..len].into(),
        };
        Ok((own, mount))
    }

    /// Opens what it leads to, as a reference; of a file system of which something is open, and not as a reference.
    ///
    /// # Errors
    /// `ESTALE` when it is gone, `EPERM` without CAP_DAC_READ_SEARCH.
    #[expect(unsafe_code, reason = "open_by_handle_at has no safe wrapper here")]
    pub fn open(&self, of: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
        let mut raw = Raw::new(&self.bytes);
        raw.kind = self.kind;
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        // SAFETY: a descriptor that is held, and a handle of the length that it says.
        let fd = Errno::result(unsafe {
            libc::open_by_handle_at(of.as_raw_fd(), raw.pointer(), flags)
        })?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_MAX],
}

impl Raw {
    /// With these bytes; without any, all of the room is offered.
    fn new(bytes: &[u8]) -> Self {
        let mut raw = Self {
            len: HANDLE_MAX as u32,
            kind: 0,
            bytes: [0; HANDLE_MAX],
        };
        if !bytes.is_empty() {
            let len = bytes.len().min(HANDLE_MAX);
            raw.bytes[..len].copy_from_slice(&bytes[..len]);
            raw.len = len as u32;
        }
        raw
    }

    fn pointer(&mut self) -> *mut libc::file_handle {
        std::ptr::from_mut(self).cast()
    }
}

/// The number of the file system that this lies on, as events have it.
///
/// # Errors
/// What fstatfs(2) says.
#[expect(unsafe_code, reason = "no wrapper shows the number")]
pub fn fs_of(file: BorrowedFd<'_>) -> nix::Result<FsId> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a descriptor that is held, and room for the answer.
    Errno::result(unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: plain numbers, for which zeroes are values, too.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: two integers of four bytes, of any value.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, FsId>(stat.f_fsid) })
}

/// To open a folder so that handles of its file system can be opened by it.
pub const FOLDER_OF_HANDLES: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_CLOEXEC);
/// To open something as a reference.
pub const REFERENCE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Opens a path, as a process with this root would find it, walking by what the kernel has in memory alone
/// (`RESOLVE_CACHED`, Linux 5.12). Where it ends somebody may be waited for all the same: the root of a mount of NFS is asked about, and an open that is
/// not as a reference is told to any file system.
///
/// # Errors
/// `EAGAIN` when it would have to be waited for; what openat2(2) says.
pub fn at_hand(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags).resolve(
        ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED),
    );
    openat2(root, path, how)
}

/// The path of what is open; `None` if it has none any more.
#[must_use]
pub fn path_of(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = fs::read_link(link).ok()?.into_os_string().into_vec();
    // A name may end so, too: then it counts as gone, which leads to less being told for certain.
    let whole = path.starts_with(b"/") && !path.ends_with(b" (deleted)");
    whole.then_some(path)
}

/// Whether this host tells of renames and removals by handles, found by trying.
///
/// # Errors
/// Why not.
pub fn try_out() -> Result<(), String> {
    let pids = fs::metadata("/proc/self/ns/pid").map(|meta| meta.ino());
    if pids.is_ok_and(|pids| pids != FIRST_PIDS) {
        return Err("the agent is in a namespace of processes of its own, where threads have other numbers (hostPID)".into());
    }
    // Not every file system has handles and a number: it is enough if one does.
    let mut first = Ok(());
    for place in [
        PathBuf::from("/run"),
        std::env::temp_dir(),
        PathBuf::from("/var/lib/sumun"),
    ] {
        match try_in(&place) {
            Ok(()) => return Ok(()),
            Err(why) => first = first.and(Err(why)),
        }
    }
    first
}

fn try_in(place: &Path) -> Result<(), String> {
    let group = Group::new().map_err(|errno| {
        format!("the kernel does not tell folder, name and object together (fanotify_init): {errno}; that needs Linux 5.17, or a later release of an older series, and CAP_SYS_ADMIN")
    })?;
    super::tries::names(place, |folder, calls| {
        let open = openat2(AT_FDCWD, folder, OpenHow::new().flags(FOLDER_OF_HANDLES));
        let open = open.map_err(|errno| format!("cannot open {}: {errno}", folder.display()))?;
        let (own, _) = Handle::of(open.as_fd()).map_err(|errno| {
            format!(
                "{} has no handle (name_to_handle_at): {errno}",
                folder.display()
            )
        })?;
        let opened = own.open(open.as_fd()).map_err(|errno| {
            format!(
                "cannot open by a handle (open_by_handle_at): {errno}; it needs CAP_DAC_READ_SEARCH"
            )
        })?;
        if path_of(opened.as_fd()) != path_of(open.as_fd()) {
            return Err("a handle led to another folder".into());
        }
        group
            .mark(open.as_fd())
            .map_err(|errno| format!("cannot watch a file system (fanotify_mark): {errno}"))?;
        calls()?;
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let mut seen = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        let read = |errno| format!("cannot read events (fanotify): {errno}");
        while group
            .read(&mut buffer, |event| seen.push(event))
            .map_err(read)?
            > 0
        {}
        let names = |entry: &Option<Entry>| {
            let entry = entry.as_ref().filter(|entry| entry.folder == own)?;
            Some(entry.name.clone())
        };
        let own: Vec<_> = seen
            .iter()
            .filter(|event| event.tid == tid && event.object.is_some())
            .map(|event| (event.mask, names(&event.from), names(&event.to)))
            .collect();
        let name = |name: &str| Some(name.as_bytes().to_vec());
        let expected = [
            (RENAME, name("a"), name("b")),
            (DELETE, name("b"), None),
            (DELETE | FOLDER, name("d"), None),
        ];
        match own == expected {
            true => Ok(()),
            false => Err("the agent's own calls were told otherwise".into()),
        }
    })
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: u8, tail: &[u8]) -> Vec<u8> {
        let len = u16::try_from(INFO + tail.len()).expect("short");
        let mut bytes = vec![kind, 0];
        bytes.extend(len.to_ne_bytes());
        bytes.extend(*b"fs-ident");
        bytes.extend(tail);
        bytes
    }

    fn tail(len: u32, handle: &[u8], name: &[u8]) -> Vec<u8> {
        [&len.to_ne_bytes()[..], &1_i32.to_ne_bytes(), handle, name].concat()
    }

    fn event(infos: &[u8]) -> Vec<u8> {
        let len = u32::try_from(EVENT + infos.len()).expect("short");
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(DELETE.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(77_u32.to_ne_bytes());
        bytes.extend(infos);
        bytes
    }

    #[test]
    fn an_event_is_read_whole_or_not_at_all() {
        let infos = [
            info(
                libc::FAN_EVENT_INFO_TYPE_DFID_NAME,
                &tail(4, b"diry", b"na\nme\0\0"),
            ),
            info(99, b"what comes later"),
            info(libc::FAN_EVENT_INFO_TYPE_FID, &tail(8, b"objectid", b"")),
        ]
        .concat();
        let bytes = event(&infos);
        let (read, rest) = parse(&bytes).expect("an event");
        assert!(rest.is_empty());
        let entry = read.from.expect("a name");
        assert_eq!(entry.name, b"na\nme");
        assert_eq!(&*entry.folder.bytes, b"diry");
        assert_eq!((read.tid, read.mask, read.fs), (77, DELETE, *b"fs-ident"));
        assert_eq!(read.object.map(|object| object.bytes.len()), Some(8));
        for cut in 1..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "{cut}");
        }
        // A handle that says more than there is, a name without an end, an information without a length.
        let longer = info(libc::FAN_EVENT_INFO_TYPE_FID, &tail(9, b"objectid", b""));
        let endless = info(
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME,
            &tail(4, b"diry", b"name"),
        );
        for bad in [longer, endless, vec![1, 0, 0, 0]] {
            assert_eq!(parse(&event(&bad)), None);
        }
    }

    #[test]
    fn this_host_tells_of_the_agents_own_calls() {
        match try_out() {
            Ok(()) => {}
            // What the host does not have; where it has it, it has to tell what was done.
            Err(why)
                if [
                    "namespace of processes",
                    "fanotify_init",
                    "has no handle",
                    "EPERM",
                ]
                .iter()
                .any(|lacks| why.contains(lacks)) =>
            {
                println!("SKIPPED: {why}");
            }
            Err(why) => panic!("{why}"),
        }
    }
}
