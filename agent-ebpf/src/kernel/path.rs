//! Walks a path from the kernel's own objects: from the dentry up to the root
//! of its mount, on from where that is mounted, to the root of the mount namespace.

use core::{
    mem::size_of,
    ptr::{self, addr_of_mut},
};

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
};
use sumun_abi::{
    event::file::Known,
    record::{
        ARGS_MAX, FLAW_DELETED, FLAW_LOST, FLAW_PARTIAL, FLAW_RACY, FLAW_TRUNCATED,
        FLAW_UNREACHABLE, LEVELS, PATH_DEPTH_MAX, PATH_MAX, RECORD_MAX, SOURCE_CALLER, SOURCE_COPY,
        SOURCE_OBJECT, Span,
    },
    slot::{self, symbol},
};

use super::{Block, Object, address_of, field, get, opaque, task::Task};
use crate::{
    maps::{KNOWN, OPENED, Walker},
    run::scratch,
};

/// A walked path: where it starts in `Scratch::walk` (it ends at `PATH_MAX`),
/// its flaws, and the length of its last component.
#[derive(Clone, Copy)]
pub(crate) struct Walked(pub(crate) u64);

impl Walked {
    /// There was nothing to walk.
    pub(crate) const LOST: Walked = Walked(PATH_MAX as u64 | (FLAW_LOST as u64) << 16);

    #[inline(always)]
    fn new(start: u64, flaws: u8, name: u64) -> Walked {
        Walked(start | u64::from(flaws) << 16 | name << 24)
    }

    #[inline(always)]
    pub(crate) fn start(self) -> u64 {
        self.0 & 0xffff
    }

    #[inline(always)]
    pub(crate) fn flaws(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    pub(crate) fn name_len(self) -> u64 {
        self.0 >> 24 & 0xff
    }
}

/// The kernel's count of renames; odd while one is under way. 0 if it cannot be
/// read: then the walk is done twice and compared.
#[inline(always)]
fn renames() -> u32 {
    sequence(symbol::RENAME_LOCK)
}

/// Where a sequence lock has come; 0 if it cannot be read.
#[inline(always)]
fn sequence(index: usize) -> u32 {
    Object::cast(address_of(index), slot::TYPE_SEQCOUNT).get(slot::SEQCOUNT_SEQUENCE)
}

/// What the cached verdicts on directories depend on besides `FLUSH`.
#[inline(always)]
pub(crate) fn changes() -> u64 {
    u64::from(renames()) << 32 | u64::from(sequence(symbol::MOUNT_LOCK))
}

#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(23)
}

/// The path of an open that a decision point saw, as if it were walked now.
#[inline(always)]
pub(crate) fn recall(level: u32) -> Walked {
    Walked(sumun_recall(level))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_recall(level: u32) -> u64 {
    let lost = Walked::LOST.0;
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let Some(value) = OPENED.get_ptr(&Task::current().tid()) else {
        return lost;
    };
    let known: *const Known = value.cast();
    // SAFETY: a live map value that only this thread's calls write.
    let (span, name_len) = unsafe { ((*known).path, (*known).name_len) };
    // All of it: the verifier does not add up a place and a length.
    // SAFETY: constant lengths inside both; the helper never faults.
    unsafe {
        bpf_probe_read_kernel(
            addr_of_mut!((*scratch).walk).cast(),
            PATH_MAX as u32,
            value.cast::<u8>().add(size_of::<Known>()).cast(),
        );
    }
    let start = (PATH_MAX as u64).wrapping_sub(u64::from(span.len));
    Walked::new(start, span.flaws, u64::from(name_len)).0
}

/// Writes the path that was just walked behind what is known of an open, where `recall` looks for it.
#[inline(always)]
pub(crate) fn retain(level: u32, walked: Walked) {
    let Some(scratch) = scratch(level) else {
        return;
    };
    // SAFETY: the scratch is this run's.
    let known: *mut Known = unsafe { addr_of_mut!((*scratch).record) }.cast();
    let len = (PATH_MAX as u64).wrapping_sub(walked.start());
    // SAFETY: the scratch is this run's; constant lengths inside both, and the helper never faults.
    unsafe {
        addr_of_mut!((*known).name_len).write(walked.name_len() as u16);
        Text::at(size_of::<Known>(), len, SOURCE_OBJECT)
            .store(addr_of_mut!((*known).path), walked.flaws());
        bpf_probe_read_kernel(
            known.add(1).cast(),
            PATH_MAX as u32,
            addr_of_mut!((*scratch).walk).cast(),
        );
    }
}

/// Walks; the text is left in `Scratch::walk`.
#[inline(always)]
pub(crate) fn walk(level: u32, dentry: u64, mnt: u64) -> Walked {
    Walked(sumun_walk(level, dentry, mnt))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_walk(level: u32, dentry: u64, mnt: u64) -> u64 {
    let lost = Walked::LOST.0;
    if level >= LEVELS || dentry == 0 || mnt == 0 {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    // SAFETY: a live map value that this run owns.
    let state = unsafe { addr_of_mut!((*scratch).walker) };
    let before = renames();
    let mut flaws = u64::from(FLAW_TRUNCATED);
    if get::<u64>(dentry, slot::DENTRY_HASHED) == 0
        && get::<u64>(dentry, slot::DENTRY_PARENT) != dentry
    {
        flaws |= u64::from(FLAW_DELETED);
    }
    // SAFETY: fields of this run's scratch; volatile, so that they stay there.
    unsafe {
        addr_of_mut!((*state).at).write_volatile(PATH_MAX as u64);
        addr_of_mut!((*state).name_len).write_volatile(0);
        addr_of_mut!((*state).hash).write_volatile(0);
        addr_of_mut!((*state).flaws).write_volatile(flaws);
        addr_of_mut!((*state).here).write_volatile(dentry);
        addr_of_mut!((*state).mnt).write_volatile(mnt);
        addr_of_mut!((*state).root).write_volatile(get(mnt, slot::VFSMOUNT_ROOT));
    }
    let mut turn = 0;
    while turn < PATH_DEPTH_MAX / STEPS {
        turn += 1;
        if sumun_climb(level) != 0 {
            break;
        }
    }
    // SAFETY: as above.
    let (mut at, name_len, hash, mut flaws) = unsafe {
        (
            addr_of_mut!((*state).at).read_volatile(),
            addr_of_mut!((*state).name_len).read_volatile(),
            addr_of_mut!((*state).hash).read_volatile(),
            addr_of_mut!((*state).flaws).read_volatile() as u8,
        )
    };
    if at == PATH_MAX as u64 && flaws & FLAW_LOST == 0 {
        at -= 1;
        // SAFETY: a constant place inside.
        unsafe {
            let text: *mut u8 = addr_of_mut!((*scratch).walk).cast();
            ptr::write_volatile(text.add(PATH_MAX - 1), b'/');
        };
    }
    if address_of(symbol::RENAME_LOCK) != 0 {
        if before & 1 != 0 || renames() != before {
            flaws |= FLAW_RACY;
        }
    } else if flaws & FLAW_TRUNCATED == 0 && sumun_chain(level, dentry, mnt) != hash {
        flaws |= FLAW_RACY;
    }
    Walked::new(at, flaws, name_len).0
}

/// Steps of a walk that one call of `sumun_climb` takes.
const STEPS: u32 = 4;
const _: () = assert!(PATH_DEPTH_MAX.is_multiple_of(STEPS));

/// Goes on with the walk of this level by a few steps; 1 if it has come to its end. The verifier looks at a global function once,
/// however often it is called: in one loop each step was looked at by itself, in every program that walks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_climb(level: u32) -> u64 {
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    // SAFETY: a live map value that this run owns.
    let (text, state): (*mut u8, _) = unsafe {
        (
            addr_of_mut!((*scratch).walk).cast(),
            addr_of_mut!((*scratch).walker),
        )
    };
    // SAFETY: as above.
    let (mut here, mut vfsmount, mut root) = unsafe {
        (
            addr_of_mut!((*state).here).read_volatile(),
            addr_of_mut!((*state).mnt).read_volatile(),
            addr_of_mut!((*state).root).read_volatile(),
        )
    };
    let mut step = 0;
    while step < STEPS {
        step += 1;
        if here == root {
            let mount = vfsmount.wrapping_sub(u64::from(super::value(slot::MOUNT_MNT)));
            let above: u64 = get(mount, slot::MOUNT_PARENT);
            if above == mount || above == 0 {
                // An unmounted tree has no namespace, an internal one an error pointer.
                let namespace: u64 = get(mount, slot::MOUNT_NS);
                let reachable = namespace != 0 && namespace < -4095i64 as u64;
                finish(state, if reachable { 0 } else { FLAW_UNREACHABLE });
                return 1;
            }
            here = get(mount, slot::MOUNT_MOUNTPOINT);
            vfsmount = field(above, slot::MOUNT_MNT);
            root = get(vfsmount, slot::VFSMOUNT_ROOT);
            remember(state, mount, 0);
            continue;
        }
        // SAFETY: a field of this run's scratch.
        let block = Block::read(here, unsafe { addr_of_mut!((*scratch).step) });
        let parent: u64 = block.get(slot::DENTRY_PARENT);
        let name: u64 = block.get(slot::DENTRY_NAME);
        let len = u64::from(block.get::<u32>(slot::DENTRY_NAME_LEN)) & 0xff;
        // SAFETY: as above.
        let at = unsafe { addr_of_mut!((*state).at).read_volatile() };
        if at < len + 1 {
            return 1;
        }
        let at = at - len;
        let place = opaque(at) & (PATH_MAX as u64 - 1);
        // SAFETY: place < 4096 and len < 256, and `walk` is 4096 + 256 bytes long.
        let failed = unsafe {
            bpf_probe_read_kernel(
                text.add(place as usize).cast(),
                (opaque(len) & 0xff) as u32,
                name as *const _,
            )
        };
        if failed != 0 {
            finish(state, FLAW_LOST);
            return 1;
        }
        remember(state, here, name);
        // SAFETY: as above.
        unsafe {
            if addr_of_mut!((*state).name_len).read_volatile() == 0 {
                addr_of_mut!((*state).name_len).write_volatile(len);
            }
        }
        if here == parent {
            // A name without a tree: a pipe, a memfd, an anonymous inode.
            // SAFETY: as above.
            unsafe { addr_of_mut!((*state).at).write_volatile(at) };
            finish(state, FLAW_UNREACHABLE);
            return 1;
        }
        let at = at.wrapping_sub(1);
        let place = opaque(at) & (PATH_MAX as u64 - 1);
        // SAFETY: place < 4096; the state as above.
        unsafe {
            ptr::write_volatile(text.add(place as usize), b'/');
            addr_of_mut!((*state).at).write_volatile(at);
        }
        here = parent;
    }
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*state).here).write_volatile(here);
        addr_of_mut!((*state).mnt).write_volatile(vfsmount);
        addr_of_mut!((*state).root).write_volatile(root);
    }
    0
}

/// The walk came to its end, with these flaws.
#[inline(always)]
fn finish(state: *mut Walker, flaws: u8) {
    // SAFETY: callers pass the state in their scratch.
    unsafe {
        let place = addr_of_mut!((*state).flaws);
        place.write_volatile(place.read_volatile() & !u64::from(FLAW_TRUNCATED) | u64::from(flaws));
    }
}

/// The walk passed these objects.
#[inline(always)]
fn remember(state: *mut Walker, object: u64, name: u64) {
    // SAFETY: callers pass the state in their scratch.
    unsafe {
        let place = addr_of_mut!((*state).hash);
        place.write_volatile(mix(mix(place.read_volatile(), object), name));
    }
}

/// The same way up without the text: two equal walks mean that no rename
/// came between them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_chain(level: u32, dentry: u64, mnt: u64) -> u64 {
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    // SAFETY: a live map value that this run owns; its caller has read the state.
    let state = unsafe { addr_of_mut!((*scratch).walker) };
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*state).hash).write_volatile(0);
        addr_of_mut!((*state).here).write_volatile(dentry);
        addr_of_mut!((*state).mnt).write_volatile(mnt);
        addr_of_mut!((*state).root).write_volatile(get(mnt, slot::VFSMOUNT_ROOT));
    }
    let mut turn = 0;
    while turn < PATH_DEPTH_MAX / STEPS {
        turn += 1;
        if sumun_links(level) != 0 {
            break;
        }
    }
    // SAFETY: as above.
    unsafe { addr_of_mut!((*state).hash).read_volatile() }
}

/// Goes on by a few steps, as `sumun_climb`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_links(level: u32) -> u64 {
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    // SAFETY: a live map value that this run owns.
    let state = unsafe { addr_of_mut!((*scratch).walker) };
    // SAFETY: as above.
    let (mut here, mut vfsmount, mut root) = unsafe {
        (
            addr_of_mut!((*state).here).read_volatile(),
            addr_of_mut!((*state).mnt).read_volatile(),
            addr_of_mut!((*state).root).read_volatile(),
        )
    };
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let parent: u64 = get(here, slot::DENTRY_PARENT);
        if here == root {
            let mount = vfsmount.wrapping_sub(u64::from(super::value(slot::MOUNT_MNT)));
            let above: u64 = get(mount, slot::MOUNT_PARENT);
            if above == mount || above == 0 {
                return 1;
            }
            here = get(mount, slot::MOUNT_MOUNTPOINT);
            vfsmount = field(above, slot::MOUNT_MNT);
            root = get(vfsmount, slot::VFSMOUNT_ROOT);
            remember(state, mount, 0);
            continue;
        }
        remember(state, here, get(here, slot::DENTRY_NAME));
        if here == parent {
            return 1;
        }
        here = parent;
    }
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*state).here).write_volatile(here);
        addr_of_mut!((*state).mnt).write_volatile(vfsmount);
        addr_of_mut!((*state).root).write_volatile(root);
    }
    0
}

/// A span as one word: the compiler would otherwise call `memset` to write it.
#[derive(Clone, Copy)]
pub(crate) struct Text(u64);

impl Text {
    /// Says nothing.
    pub(crate) const NONE: Text = Text(0);

    /// Bytes that stand in the record already, of a source (`SOURCE_*`).
    #[inline(always)]
    pub(crate) fn at(offset: usize, len: u64, source: u8) -> Text {
        Text(offset as u64 & 0xffff | (len & 0xffff) << 16 | u64::from(source) << 32)
    }

    /// The same of a name that is not there yet: that its entry is not hashed is no flaw.
    #[inline(always)]
    pub(crate) fn to_be(self) -> Text {
        Text(self.0 & !(u64::from(FLAW_DELETED) << 40))
    }

    /// Writes the span; `more` flaws are added.
    #[inline(always)]
    pub(crate) fn store(self, out: *mut Span, more: u8) {
        const { assert!(size_of::<Span>() == size_of::<u64>()) };
        // SAFETY: callers pass a field of their record, which is made of such words.
        unsafe {
            out.cast::<u64>()
                .write_volatile(self.0 | u64::from(more) << 40)
        };
    }
}

/// Tail of a record: where the next bytes go.
#[derive(Clone, Copy)]
pub(crate) struct Tail {
    level: u32,
    at: u32,
}

impl Tail {
    /// The tail after a fixed part.
    #[inline(always)]
    pub(crate) fn after<T>(level: u32) -> Tail {
        Tail {
            level,
            at: size_of::<T>() as u32,
        }
    }

    /// Length of the record so far.
    /// The same from where another function has come with it.
    #[inline(always)]
    pub(crate) fn from(level: u32, at: u32) -> Tail {
        Tail { level, at }
    }

    #[inline(always)]
    pub(crate) fn end(self) -> u32 {
        self.at
    }

    #[inline(always)]
    fn took(&mut self, span: u64) -> Text {
        self.at = (span & 0xffff) as u32 + (span >> 16 & 0xffff) as u32;
        Text(span)
    }

    /// Walks a path and appends it.
    #[inline(always)]
    pub(crate) fn path(&mut self, dentry: u64, mnt: u64) -> Text {
        let walked = walk(self.level, dentry, mnt);
        self.walked(walked)
    }

    /// Appends the path that was just walked.
    #[inline(always)]
    pub(crate) fn walked(&mut self, walked: Walked) -> Text {
        let span = sumun_append(self.level, self.at, walked.0);
        self.took(span)
    }

    /// Appends a string of the caller's memory.
    #[inline(always)]
    pub(crate) fn user_string(&mut self, address: u64) -> Text {
        let span = sumun_user_string(self.level, self.at, address);
        self.took(span)
    }

    /// Appends a string of the kernel's: its copy of what the caller gave.
    #[inline(always)]
    pub(crate) fn kernel_string(&mut self, address: u64) -> Text {
        let span = sumun_kernel_string(self.level, self.at, address);
        self.took(span)
    }

    /// Appends a text that a decision point saw: `path`, or with `to` where it leads.
    #[inline(always)]
    pub(crate) fn known(&mut self, to: bool) -> Text {
        let span = sumun_known(self.level, self.at, u32::from(to));
        self.took(span)
    }

    /// Appends bytes of the kernel's, at most 255.
    #[inline(always)]
    pub(crate) fn kernel_bytes(&mut self, address: u64, len: u64) -> Text {
        let span = sumun_kernel_bytes(self.level, self.at, address, len);
        self.took(span)
    }

    /// Appends arguments, page by page.
    #[inline(always)]
    pub(crate) fn arguments(&mut self, start: u64, end: u64) -> Text {
        let span = sumun_arguments(self.level, self.at, start, end);
        self.took(span)
    }
}

#[inline(always)]
fn pack(offset: u32, len: u64, source: u8, flaws: u8) -> u64 {
    u64::from(offset & 0xffff)
        | (len & 0xffff) << 16
        | u64::from(source) << 32
        | u64::from(flaws) << 40
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_append(level: u32, at: u32, walked: u64) -> u64 {
    let walked = Walked(walked);
    let lost = pack(at, 0, SOURCE_OBJECT, walked.flaws() | FLAW_LOST);
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let start = walked.start();
    let place = opaque(u64::from(at));
    if place > (RECORD_MAX - PATH_MAX) as u64 || start > PATH_MAX as u64 {
        return lost;
    }
    let len = opaque(PATH_MAX as u64 - start);
    if len == 0 || len > PATH_MAX as u64 {
        return lost;
    }
    // SAFETY: place + len <= RECORD_MAX; the source lies inside `walk`, and the
    // helper never faults.
    unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        let text: *const u8 = addr_of_mut!((*scratch).walk).cast();
        let start = opaque(start) & 0x1fff;
        bpf_probe_read_kernel(
            record.add(place as usize).cast(),
            len as u32,
            text.wrapping_add(start as usize).cast(),
        );
    }
    pack(at, len, SOURCE_OBJECT, walked.flaws())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_kernel_bytes(level: u32, at: u32, address: u64, len: u64) -> u64 {
    let lost = pack(at, 0, SOURCE_COPY, FLAW_LOST);
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let place = opaque(u64::from(at));
    if place > (RECORD_MAX - PATH_MAX) as u64 || len == 0 || len > 255 {
        return lost;
    }
    // As 5.10 understands a bound.
    let len = opaque(len) & 0xff;
    // SAFETY: place + len <= RECORD_MAX; the helper never faults.
    let failed = unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        bpf_probe_read_kernel(
            record.add(place as usize).cast(),
            len as u32,
            address as *const _,
        )
    };
    if failed != 0 {
        return lost;
    }
    pack(at, len, SOURCE_COPY, 0)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_user_string(level: u32, at: u32, address: u64) -> u64 {
    let lost = pack(at, 0, SOURCE_CALLER, FLAW_LOST);
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let place = opaque(u64::from(at));
    if place > (RECORD_MAX - PATH_MAX) as u64 {
        return lost;
    }
    // SAFETY: place + PATH_MAX <= RECORD_MAX.
    let copied = unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        bpf_probe_read_user_str(
            record.add(place as usize).cast(),
            PATH_MAX as u32,
            address as *const _,
        )
    };
    if copied <= 0 {
        return lost;
    }
    // The final NUL is counted. PATH_MAX bytes are as many as the kernel takes of a path.
    let flaws = if copied as usize == PATH_MAX {
        FLAW_TRUNCATED
    } else {
        0
    };
    pack(at, copied as u64 - 1, SOURCE_CALLER, flaws)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_kernel_string(level: u32, at: u32, address: u64) -> u64 {
    let lost = pack(at, 0, SOURCE_COPY, FLAW_LOST);
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let place = opaque(u64::from(at));
    if place > (RECORD_MAX - PATH_MAX) as u64 {
        return lost;
    }
    // SAFETY: place + PATH_MAX <= RECORD_MAX.
    let copied = unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        bpf_probe_read_kernel_str(
            record.add(place as usize).cast(),
            PATH_MAX as u32,
            address as *const _,
        )
    };
    if copied <= 0 {
        return lost;
    }
    pack(at, copied as u64 - 1, SOURCE_COPY, 0)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_known(level: u32, at: u32, to: u32) -> u64 {
    let lost = pack(at, 0, SOURCE_OBJECT, FLAW_LOST);
    if level >= LEVELS {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let Some(value) = KNOWN.get_ptr(&Task::current().tid()) else {
        return lost;
    };
    let known: *const Known = value.cast();
    // SAFETY: a live map value that only this thread's calls write.
    let span = unsafe {
        if to == 0 {
            (*known).path
        } else {
            (*known).to_path
        }
    };
    let nothing = pack(at, 0, span.source, span.flaws);
    if span.len == 0 {
        return nothing;
    }
    let place = opaque(u64::from(at));
    // Apart from the check for 0: both in one would be of another register.
    let len = opaque(u64::from(span.len));
    if place > (RECORD_MAX - PATH_MAX) as u64 || len > PATH_MAX as u64 {
        return nothing;
    }
    // SAFETY: place + len <= RECORD_MAX; the helper never faults.
    unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        let text = value as u64 + u64::from(span.offset);
        bpf_probe_read_kernel(
            record.add(place as usize).cast(),
            len as u32,
            text as *const _,
        );
    }
    pack(at, len, span.source, span.flaws)
}

/// Pages that `ARGS_MAX` bytes can touch.
const ARGS_PAGES: u64 = (ARGS_MAX / 4096) as u64 + 1;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_arguments(level: u32, at: u32, start: u64, end: u64) -> u64 {
    let lost = pack(at, 0, SOURCE_COPY, FLAW_LOST);
    if level >= LEVELS || start == 0 || end < start {
        return lost;
    }
    let Some(scratch) = scratch(level) else {
        return lost;
    };
    let mut flaws = 0;
    let mut left = end - start;
    if left > ARGS_MAX as u64 {
        left = ARGS_MAX as u64;
        flaws |= FLAW_TRUNCATED;
    }
    let mut len = 0;
    let mut step = 0;
    while step < ARGS_PAGES {
        step += 1;
        if left == 0 {
            break;
        }
        let address = start + len;
        let mut chunk = 4096 - (address & 4095);
        if chunk > left {
            chunk = left;
        }
        let place = opaque(u64::from(at) + len);
        let size = opaque(chunk);
        if place > (RECORD_MAX - 4096) as u64 || size > 4096 {
            flaws |= FLAW_TRUNCATED;
            break;
        }
        // SAFETY: place + size <= RECORD_MAX.
        let failed = unsafe {
            let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
            bpf_probe_read_user(
                record.add(place as usize).cast(),
                size as u32,
                address as *const _,
            )
        };
        if failed != 0 {
            flaws |= FLAW_PARTIAL;
            break;
        }
        len += chunk;
        left -= chunk;
    }
    pack(at, len, SOURCE_COPY, flaws)
}
