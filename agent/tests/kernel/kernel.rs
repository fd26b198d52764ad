//! Modules, BPF programs, mounts and roots, other kernels and io_uring, on the running kernel.
#![expect(
    unsafe_code,
    reason = "calls that the standard library keeps away from are what is tested"
)]

use std::{ffi::CString, fs, os::fd::AsRawFd, path::Path, ptr};

use crate::bench::{self, Seen};
use libc::{c_long, syscall};
use sumun_abi::event::{
    file::CALL_COMPAT,
    kernel::{KERNEL_CALLER, Module, Mount, Program, signature},
};
use sumun_agent::{kernel::syscalls, receive::record::Body};
use sumun_proto::v1::Kind;

fn own<'a, T>(seen: &'a [Seen], of: impl Fn(&'a Seen) -> Option<T>) -> Vec<T> {
    let pid = std::process::id();
    let own = seen.iter().filter(|record| record.actor().pid == pid);
    own.filter_map(of).collect()
}

fn text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// `struct` of BPF_PROG_LOAD in `union bpf_attr`, as far as it is needed.
#[repr(C, align(8))]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    rest: [u8; 64],
}

fn load(instructions: &[u64]) -> c_long {
    let mut name = [0; 16];
    name[..10].copy_from_slice(b"sumun_test");
    let license = CString::new("GPL").unwrap();
    let load = Load {
        kind: 1,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
        rest: [0; 64],
    };
    // SAFETY: the attributes and what they point to live as long as the call.
    unsafe { syscall(libc::SYS_bpf, 5, &raw const load, 72) }
}

#[test]
fn bpf_programs_are_told_by_the_kernels_object() {
    let Some(mut bench) = bench::take("bpf") else {
        return;
    };
    bench.ask(&[Kind::Bpf]);
    // r0 = 0; exit.
    let fd = load(&[0xb7, 0x95]);
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // exit alone: r0 has no value.
    assert_eq!(load(&[0x95]), -1);
    let seen = bench.settle();
    // SAFETY: ours, and not used any more.
    unsafe { libc::close(fd as i32) };
    let programs: Vec<Program> = own(&seen, |record| match record.body {
        Body::Program(Kind::Bpf, program) => Some(program),
        _ => None,
    });
    let [good, bad] = &programs[..] else {
        panic!("{programs:?}")
    };
    for program in [good, bad] {
        assert_eq!((program.command, program.kind), (5, 1));
        assert_eq!(&program.name[..11], b"sumun_test\0");
    }
    assert_eq!((good.result, good.flags), (0, 0));
    assert_ne!(good.id, 0);
    assert!(good.instructions >= 2);
    assert!(bad.result < 0, "{bad:?}");
    assert_eq!((bad.flags, bad.id), (KERNEL_CALLER, 0));
}

fn mounts(seen: &[Seen]) -> Vec<(Kind, Mount, [String; 5])> {
    own(seen, |record| match record.body {
        Body::Mount(kind, mount) => Some((
            kind,
            mount,
            [
                mount.source_base,
                mount.source,
                mount.base,
                mount.target,
                mount.fs,
            ]
            .map(|span| record.text(span)),
        )),
        _ => None,
    })
}

#[test]
fn mounts_and_roots_are_told() {
    let Some(mut bench) = bench::take("mounts") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    for name in ["new", "bound"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    bench.ask(&[Kind::Mount, Kind::Umount, Kind::PivotRoot, Kind::Chroot]);
    let place = dir.clone();
    // All of it ends with the thread and its mount namespace. What it has that not every kernel has: mount_setattr, from 5.12.
    let sets_attributes = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = ptr::null::<libc::c_char>();
        let (root, new, bound) = (
            text(Path::new("/")),
            text(&place.join("new")),
            text(&place.join("bound")),
        );
        let tmpfs = CString::new("tmpfs").unwrap();
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: valid strings, or none where none is needed.
        unsafe {
            assert_eq!(
                libc::mount(none, root.as_ptr(), none, flags, ptr::null()),
                0
            );
            let flags = libc::MS_NOSUID | libc::MS_NODEV;
            let word = CString::new("word").unwrap();
            assert_eq!(
                libc::mount(
                    word.as_ptr(),
                    new.as_ptr(),
                    tmpfs.as_ptr(),
                    flags,
                    ptr::null()
                ),
                0
            );
            assert_eq!(libc::chdir(text(&place).as_ptr()), 0);
            let relative = CString::new("new").unwrap();
            assert_eq!(
                libc::mount(
                    relative.as_ptr(),
                    bound.as_ptr(),
                    none,
                    libc::MS_BIND,
                    ptr::null()
                ),
                0
            );
            // MOUNT_ATTR_RDONLY, of the mount itself.
            let (attributes, recursive) = ([1_u64, 0, 0, 0], 0x8000);
            let sets_attributes = syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                bound.as_ptr(),
                recursive,
                attributes.as_ptr(),
                size_of_val(&attributes),
            ) == 0;
            let why = std::io::Error::last_os_error();
            assert!(
                sets_attributes || why.raw_os_error() == Some(libc::ENOSYS),
                "{why}"
            );
            let there = libc::open(text(&place).as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            let picked = syscall(libc::SYS_fspick, there, relative.as_ptr(), 1);
            assert!(picked >= 0, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::close(picked as i32), 0);
            assert_eq!(libc::close(there), 0);
            assert_eq!(libc::umount2(bound.as_ptr(), libc::MNT_DETACH), 0);
            assert_eq!(libc::mkdir(text(&place.join("new/old")).as_ptr(), 0o700), 0);
            let old = text(&place.join("new/old"));
            assert_eq!(syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()), 0);
            let old = CString::new("/old").unwrap();
            assert_eq!(libc::chroot(old.as_ptr()), 0);
            // An attempt that fails is nothing.
            let absent = CString::new("/absent").unwrap();
            assert_eq!(libc::chroot(absent.as_ptr()), -1);
            sets_attributes
        }
    })
    .join()
    .unwrap();
    let seen = bench.settle();
    let found = mounts(&seen);
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let here = dir.to_str().unwrap();
    let short: Vec<_> = found
        .iter()
        .map(|(kind, mount, texts)| {
            let [source_base, source, base, target, fs] = texts.each_ref().map(String::as_str);
            (
                *kind,
                mount.call_flags,
                source_base,
                source,
                base,
                target,
                fs,
            )
        })
        .collect();
    let (new, bound, old) = (path("new"), path("bound"), path("new/old"));
    let cwd = std::env::current_dir().unwrap();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    let bind = libc::MS_BIND;
    let detach = libc::MNT_DETACH as u64;
    let mut wanted = vec![
        (Kind::Mount, private, "", "", "", "/", ""),
        (
            Kind::Mount,
            flags,
            cwd.to_str().unwrap(),
            "word",
            "",
            new.as_str(),
            "tmpfs",
        ),
        (Kind::Mount, bind, here, "new", "", bound.as_str(), ""),
        (Kind::Mount, 0x8000, "", "", "", bound.as_str(), ""),
        (Kind::Mount, 1, "", "", here, "new", ""),
        (Kind::Umount, detach, "", "", "", bound.as_str(), ""),
        (Kind::PivotRoot, 0, "", old.as_str(), "", new.as_str(), ""),
        (Kind::Chroot, 0, "", "", "", "/old", ""),
    ];
    if !sets_attributes {
        eprintln!("SKIPPED mount_setattr: this kernel has no such call");
        wanted.remove(3);
    }
    assert_eq!(short, wanted);
}

/// A module of this kernel that does nothing by itself, where the guests have it.
const MODULE: &str = "/lib/modules/dummy.ko";
/// What ends a module with a signature (`MODULE_SIG_STRING`, include/linux/module_signature.h).
const SIGNED: &[u8] = b"~Module signature appended~\n";

#[test]
fn modules_that_are_loaded_are_told_with_name_and_signature() {
    let Some(mut bench) = bench::take("module") else {
        return;
    };
    let Ok(image) = fs::read(MODULE) else {
        eprintln!("SKIPPED modules_that_are_loaded…: no {MODULE} of this kernel");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let mut files = vec![(Path::new(MODULE).to_owned(), image.ends_with(SIGNED))];
    if let Some(body) = image.strip_suffix(SIGNED) {
        // Before it stand the signature and what says how long it is, in its last four bytes (`struct module_signature`).
        let len = body.last_chunk::<4>().unwrap();
        let len = u32::from_be_bytes(*len) as usize + 12;
        let stripped = dir.join("stripped.ko");
        fs::write(&stripped, &body[..body.len() - len]).unwrap();
        files.push((stripped, false));
    }
    bench.ask(&[Kind::ModuleLoad, Kind::ModuleUnload]);
    for (path, signed) in files {
        let (file, name) = (fs::File::open(&path).unwrap(), c"dummy");
        let parameters = c"numdummies=0";
        // SAFETY: valid strings.
        let loaded = unsafe {
            syscall(
                libc::SYS_finit_module,
                file.as_raw_fd(),
                parameters.as_ptr(),
                0,
            )
        };
        assert_eq!(loaded, 0, "{path:?}: {}", std::io::Error::last_os_error());
        let taint = fs::read_to_string("/sys/module/dummy/taint").unwrap();
        // SAFETY: a valid string.
        let removed = unsafe { syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        assert_eq!(removed, 0, "{}", std::io::Error::last_os_error());
        let seen = bench.settle();
        let told: Vec<(Kind, Module, String, String)> = own(&seen, |record| match record.body {
            Body::Module(kind, module) => {
                let end = module.name.iter().position(|byte| *byte == 0).unwrap();
                let name = String::from_utf8_lossy(&module.name[..end]).into_owned();
                Some((kind, module, name, record.text(module.path)))
            }
            _ => None,
        });
        let [
            (Kind::ModuleLoad, load, name, from),
            (Kind::ModuleUnload, unload, gone, _),
        ] = &told[..]
        else {
            panic!("{told:?}")
        };
        assert_eq!((load.result, unload.result), (0, 0));
        assert_eq!((name.as_str(), gone.as_str()), ("dummy", "dummy"));
        let path = fs::canonicalize(path).unwrap();
        assert_eq!(from, path.to_str().unwrap());
        // The kernel marks a module whose signature it does not trust, if it looks at signatures at all.
        let wanted = match (load.signature, taint.contains('E')) {
            (signature::UNCHECKED, _) => {
                eprintln!("SKIPPED signatures of modules: this kernel has no CONFIG_MODULE_SIG");
                signature::UNCHECKED
            }
            (_, true) => signature::NONE,
            (_, false) => signature::GOOD,
        };
        assert_eq!(load.signature, wanted, "{path:?}, taint {taint:?}");
        assert!(signed || load.signature != signature::GOOD, "{path:?}");
    }
}

#[test]
fn attempts_to_load_modules_and_kernels_are_told() {
    let Some(mut bench) = bench::take("modules") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap().join("no.ko");
    fs::write(&path, "not a module").unwrap();
    let file = fs::File::open(&path).unwrap();
    bench.ask(&[
        Kind::ModuleLoad,
        Kind::ModuleUnload,
        Kind::KexecLoad,
        Kind::IoUringSetup,
    ]);
    let parameters = CString::new("debug=1").unwrap();
    let name = CString::new("sumun_absent").unwrap();
    let image = [0_u8; 64];
    let mut setup = [0_u32; 30];
    // SAFETY: valid memory; none of them can succeed but io_uring_setup, whose descriptor is closed.
    let uring = unsafe {
        assert_eq!(
            syscall(
                libc::SYS_finit_module,
                file.as_raw_fd(),
                parameters.as_ptr(),
                0
            ),
            -1
        );
        assert_eq!(
            syscall(
                libc::SYS_init_module,
                image.as_ptr(),
                64,
                parameters.as_ptr()
            ),
            -1
        );
        assert_eq!(
            syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK),
            -1
        );
        assert_eq!(syscall(libc::SYS_kexec_load, 0, 99, 0, 0), -1);
        let uring = syscall(libc::SYS_io_uring_setup, 4, setup.as_mut_ptr());
        if uring >= 0 {
            libc::close(uring as i32);
        }
        uring
    };
    let seen = bench.settle();
    let modules = own(&seen, |record| match record.body {
        Body::Module(kind, module) => {
            let call = syscalls::name(module.number, module.flags & CALL_COMPAT != 0).unwrap();
            assert!(module.result < 0, "{module:?}");
            let end = module.name.iter().position(|byte| *byte == 0).unwrap();
            Some((
                kind,
                call,
                record.text(module.path),
                record.text(module.parameters),
                String::from_utf8_lossy(&module.name[..end]).into_owned(),
            ))
        }
        _ => None,
    });
    let word = |text: &str| text.to_owned();
    assert_eq!(
        modules,
        [
            (
                Kind::ModuleLoad,
                "finit_module",
                word(path.to_str().unwrap()),
                word("debug=1"),
                word("")
            ),
            (
                Kind::ModuleLoad,
                "init_module",
                word(""),
                word("debug=1"),
                word("")
            ),
            (
                Kind::ModuleUnload,
                "delete_module",
                word(""),
                word(""),
                word("sumun_absent")
            ),
        ]
    );
    let setups = own(&seen, |record| match record.body {
        Body::Setup(kind, setup) => Some((kind, setup.result < 0, setup.entries)),
        _ => None,
    });
    let mut wanted = vec![(Kind::KexecLoad, true, 0)];
    if uring >= 0 {
        wanted.push((Kind::IoUringSetup, false, 4));
    } else {
        eprintln!("SKIPPED io_uring_setup: this kernel refuses it");
    }
    assert_eq!(setups, wanted);
}
