//! A kernel side with rules that deny, compiled for its doors as an agent does.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use sumun_agent::kernel::{Kernel, KernelConfig, Known, LockPlace, Swapped};
use sumun_policy::{
    CheckedPolicy, Lists, Plan, Predicate, errors::Errors, file::check_file, plan::tells_failures,
    verdict::VerdictPlan,
};
use sumun_proto::{catalogue::kind_name, v1::Kind};

use crate::bench::{self, BESIDE, Bench};

pub(crate) struct Ruled {
    pub(crate) bench: Bench,
    generation: u32,
    dir: tempfile::TempDir,
}

impl Ruled {
    /// Or says why these kinds cannot be denied here.
    pub(crate) fn new(name: &str, kinds: &[Kind]) -> Option<Self> {
        let mut bench = bench::take(name)?;
        if bench.kernel().doors().is_empty() {
            bench.kernel().try_doors().unwrap();
        }
        for kind in kinds {
            let doors = bench.kernel().doors();
            let door = doors.iter().find(|door| door.kind == *kind).unwrap();
            if let Some(reason) = &door.reason {
                eprintln!(
                    "SKIPPED {name}: {} cannot be denied here: {}: {reason}",
                    kind_name(*kind),
                    door.rung
                );
                return None;
            }
        }
        bench.kernel().hold_until(u64::MAX).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Some(Self {
            generation: bench.generation(0),
            bench,
            dir,
        })
    }

    /// The rule that denies on a kind (none on `exit`, which cannot be denied) becomes the only one.
    pub(crate) fn load(&mut self, on: &str, when: &str) {
        self.generation += 1;
        let generation = self.generation;
        load(self.bench.kernel(), on, when, generation, |_| {
            Known::default()
        });
    }

    /// The same with what the kernel is told for it.
    pub(crate) fn load_knowing(
        &mut self,
        on: &str,
        when: &str,
        known: impl FnOnce(&VerdictPlan) -> Known,
    ) {
        self.generation += 1;
        load(self.bench.kernel(), on, when, self.generation, known);
    }

    pub(crate) fn load_into(&self, kernel: &mut Kernel, on: &str, when: &str) {
        load(kernel, on, when, 1, |_| Known::default());
    }

    /// The next agent takes over; its rules are those that are there.
    pub(crate) fn again(&mut self) {
        let mut kernel = Kernel::load(&self.bench.config).unwrap();
        kernel.try_doors().unwrap();
        kernel.attach().unwrap();
        self.bench.kernel = Some(kernel);
    }

    /// A second kernel side, of somebody else.
    pub(crate) fn beside(&self) -> Kernel {
        let config = KernelConfig {
            directory: format!("{}{BESIDE}", self.bench.config.directory),
            lock: LockPlace::File(self.dir.path().join("lock")),
            ..KernelConfig::default()
        };
        let mut kernel = Kernel::load(&config).unwrap();
        kernel.try_doors().unwrap();
        kernel.attach().unwrap();
        kernel.hold_until(u64::MAX).unwrap();
        kernel
    }
}

fn load(
    kernel: &mut Kernel,
    on: &str,
    when: &str,
    generation: u32,
    known: impl FnOnce(&VerdictPlan) -> Known,
) {
    let (effect, when) = match on {
        "exit" => ("alert", String::new()),
        _ => ("deny", format!("when = '''{when}'''")),
    };
    let text = format!(
        "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [{on:?}]\n{when}\neffect = {effect:?}\n"
    );
    load_text(kernel, &text, generation, known);
}

/// A policy becomes the only one; the kernel judges all its rules.
pub(crate) fn load_text(
    kernel: &mut Kernel,
    text: &str,
    generation: u32,
    known: impl FnOnce(&VerdictPlan) -> Known,
) {
    let policies = [policy(text)];
    let (verdicts, late) = VerdictPlan::build(&policies, &kernel.deniable(), 0);
    assert_eq!(late, [], "{text}");
    let (mut plan, _) = Plan::build(&policies);
    // Somebody asks for what fails, too: what is denied is told once all the same.
    let predicate = Predicate::parse("result == -1", &Lists::default()).unwrap();
    let kinds = policies[0].rules.iter().flat_map(|rule| &rule.kinds);
    let kinds = kinds.copied().filter(|kind| tells_failures(*kind));
    plan.failures = kinds
        .map(|kind| (kind, Errors::asked(&predicate)))
        .collect();
    let swapped = kernel
        .set_rules(&plan, &verdicts, generation, || known(&verdicts))
        .unwrap();
    assert_eq!(swapped, Swapped::default());
}

fn policy(text: &str) -> CheckedPolicy {
    let check = check_file("p.toml", text);
    check.policy.unwrap_or_else(|| panic!("{:?}", check.errors))
}

/// A socket of MPTCP, if this kernel has it.
#[expect(unsafe_code, reason = "nix knows no such protocol")]
pub(crate) fn mptcp() -> Option<OwnedFd> {
    // SAFETY: numbers only; the descriptor is new.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 262);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

fn returned(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A socket bound to a port as old programs do it: without a family.
#[expect(unsafe_code, reason = "the library has no such address")]
pub(crate) fn bind_without_family(port: u16) -> io::Result<OwnedFd> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_UNSPEC as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    let made = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an address of that length.
    let bound = unsafe {
        libc::bind(
            made.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    returned(bound.into()).map(|()| made)
}

/// Takes hold of a process, and lets it go.
#[expect(unsafe_code, reason = "no crate of ours has the call")]
pub(crate) fn seize(pid: u32) -> io::Result<()> {
    const PTRACE_SEIZE: libc::c_uint = 0x4206;
    // SAFETY: numbers only.
    unsafe {
        let seized = libc::ptrace(PTRACE_SEIZE, pid.cast_signed(), 0, 0);
        let seized = returned(seized);
        libc::ptrace(libc::PTRACE_DETACH, pid.cast_signed(), 0, 0);
        seized
    }
}

/// Memory to write and execute, at once or by changing its protection.
#[expect(unsafe_code, reason = "memory that is given back at once")]
pub(crate) fn map_both(later: bool) -> io::Result<()> {
    let both = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let first = if later { libc::PROT_READ } else { both };
    // SAFETY: new memory that nothing else uses.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            first,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let changed = returned(libc::c_long::from(libc::mprotect(at, 4096, both)));
        libc::munmap(at, 4096);
        changed
    }
}

/// Two files change their names.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let flags = RenameFlags::RENAME_EXCHANGE;
    Ok(renameat2(AT_FDCWD, one, AT_FDCWD, other, flags)?)
}

/// What is mounted there takes no more writes: by the calls that prepare mounts.
#[expect(unsafe_code, reason = "no crate of ours has the calls")]
pub(crate) fn remount_read_only(at: &Path) -> io::Result<()> {
    // include/uapi/linux/mount.h
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    const SET_FLAG: libc::c_uint = 0;
    const RECONFIGURE: libc::c_uint = 7;
    let path = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: a C string and numbers; the descriptor is new.
    let context = unsafe {
        let fd = libc::syscall(
            libc::SYS_fspick,
            libc::AT_FDCWD,
            path.as_ptr(),
            CLOSE_ON_EXEC,
        );
        returned(fd)?;
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
    };
    for (command, key) in [(SET_FLAG, c"ro".as_ptr()), (RECONFIGURE, std::ptr::null())] {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: a descriptor, a C string or none, and numbers.
        returned(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key,
                none,
                0,
            )
        })?;
    }
    Ok(())
}

/// A module from a file.
#[expect(unsafe_code, reason = "no crate has the call")]
pub(crate) fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a descriptor, a C string and a number.
    returned(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) })
}
