//! What a rule denies by BPF LSM stays as it was, whatever the call names: judged by what stands in the files.

use std::{
    fs,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, symlink},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use sumun_abi::event::kind;
use sumun_proto::v1::Kind;

use super::{Folders, Sides, beside, goes_on};
use crate::{deny_lsm::denied, points::identity, rules::Ruled};

fn exact(path: &Path) -> String {
    format!(r#"file.path == "{}""#, path.display())
}

/// How the calls ended.
#[derive(Debug, Default)]
struct Counts {
    denied: usize,
    done: usize,
    won: usize,
}

impl Counts {
    fn tries(&self) -> usize {
        self.denied + self.done
    }

    fn is_shown(&self) -> bool {
        self.denied > 0 && self.done > 0
    }

    /// A call that was denied or went on; nothing else is an end of it.
    fn take<T>(&mut self, result: &nix::Result<T>) -> bool {
        match result {
            Ok(_) => self.done += 1,
            Err(errno) => {
                assert_eq!(*errno, Errno::EPERM);
                self.denied += 1;
            }
        }
        result.is_ok()
    }

    /// Both were met, and each call that was denied is told as what it was.
    #[track_caller]
    fn told(&self, ruled: &mut Ruled, of: u16, kept: &Path, its: (u32, u64)) {
        eprintln!("{self:?}");
        assert!(self.is_shown(), "not exercised: {self:?}");
        for (record, asked) in denied(ruled, of, self.denied) {
            assert_eq!(Path::new(&record.text(asked.path)), kept);
            assert_eq!((asked.dev, asked.ino), its);
        }
    }
}

/// Whether both files of a test are there is looked at before each call.
fn renew(path: &Path) {
    if !path.exists() {
        fs::write(path, "content").unwrap();
    }
}

#[test]
fn a_rewritten_name_of_an_open_misleads_nobody() {
    let Some(mut ruled) = Ruled::new("misleading-lsm-open", &[Kind::Open]) else {
        return;
    };
    let sides = Sides::new();
    let kept = sides.file(0);
    let its = identity(&kept);
    ruled.load("open", &format!("{} && file.access.write", exact(&kept)));
    let mut counts = Counts::default();
    beside(
        || sides.turn(),
        || {
            while goes_on(counts.tries(), 3000, counts.is_shown() && counts.won > 0) {
                let open = sides.open(counts.tries(), libc::O_WRONLY | libc::O_TRUNC);
                let went_on = counts.take(&open.result);
                counts.won += usize::from(open.is_won(usize::from(went_on)));
                if let Ok(file) = &open.result {
                    assert_ne!(file.metadata().unwrap().ino(), its.1, "it was opened");
                }
            }
        },
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), "content");
    assert!(counts.won > 0, "no race was won: not exercised");
    counts.told(&mut ruled, kind::OPEN, &kept, its);
}

#[test]
fn a_rewritten_name_of_a_rename_or_removal_misleads_nobody() {
    let kinds = [Kind::Rename, Kind::Unlink];
    let Some(mut ruled) = Ruled::new("misleading-lsm-names", &kinds) else {
        return;
    };
    let sides = Sides::new();
    let (kept, free) = (sides.file(0), sides.file(1));
    let its = identity(&kept);
    let to = std::ffi::CString::new(sides.dir.join("to").to_str().unwrap()).unwrap();
    for (name, of) in [("rename", kind::RENAME), ("unlink", kind::UNLINK)] {
        ruled.load(name, &exact(&kept));
        let mut counts = Counts::default();
        beside(
            || sides.turn(),
            || {
                while goes_on(counts.tries(), 2000, counts.is_shown() && counts.won > 0) {
                    renew(&free);
                    let call = sides.call(|text| match of {
                        kind::RENAME => text.rename(&to),
                        _ => text.unlink(),
                    });
                    let went_on = counts.take(&call.result);
                    counts.won += usize::from(call.is_won(usize::from(went_on)));
                    assert_eq!((identity(&kept), free.exists()), (its, !went_on));
                }
            },
        );
        assert!(counts.won > 0, "no race was won: not exercised");
        counts.told(&mut ruled, of, &kept, its);
    }
}

#[test]
fn a_swapped_parent_misleads_nobody() {
    let kinds = [Kind::Open, Kind::Unlink];
    let Some(mut ruled) = Ruled::new("misleading-lsm-parent", &kinds) else {
        return;
    };
    let folders = Folders::new();
    let (kept, free) = (folders.file(0), folders.file(1));
    let its = identity(&kept);
    let way = folders.dir.join("way");

    // A link on the way leads to one and the other. (Nothing is renamed: a path is not known if anything was while it was walked, and then
    // the call goes on, as it should.)
    ruled.load("unlink", &exact(&kept));
    let mut side = 0;
    let mut turn = || {
        side ^= 1;
        let _ = fs::remove_file(&way);
        symlink(folders.file(side).parent().unwrap(), &way).unwrap();
    };
    turn();
    let mut counts = Counts::default();
    let mut tried = 0;
    beside(turn, || {
        while goes_on(tried, 20_000, counts.is_shown()) {
            tried += 1;
            renew(&free);
            let call = nix::unistd::unlink(&way.join("f"));
            if call == Err(Errno::ENOENT) {
                // There was no link just then.
                continue;
            }
            let went_on = counts.take(&call);
            assert_eq!((identity(&kept), free.exists()), (its, !went_on));
        }
    });
    counts.told(&mut ruled, kind::UNLINK, &kept, its);

    // And so does a descriptor.
    let mut side = 0;
    let mut counts = Counts::default();
    beside(
        || {
            side ^= 1;
            folders.turn(side);
        },
        || {
            while goes_on(counts.tries(), 2000, counts.is_shown()) {
                renew(&free);
                let call = unlinkat(&folders.base, "f", UnlinkatFlags::NoRemoveDir);
                let went_on = counts.take(&call);
                assert_eq!((identity(&kept), free.exists()), (its, !went_on));
            }
        },
    );
    counts.told(&mut ruled, kind::UNLINK, &kept, its);

    renew(&free);
    ruled.load("open", &format!("{} && file.access.write", exact(&kept)));
    let mut counts = Counts::default();
    beside(
        || {
            side ^= 1;
            folders.turn(side);
        },
        || {
            while goes_on(counts.tries(), 2000, counts.is_shown()) {
                let flags = OFlag::O_WRONLY | OFlag::O_TRUNC;
                let open = openat(folders.base.as_fd(), "f", flags, Mode::empty());
                counts.take(&open);
                if let Ok(file) = open {
                    let meta = fs::File::from(file).metadata();
                    assert_ne!(meta.unwrap().ino(), its.1, "it was opened");
                }
            }
        },
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), "content");
    counts.told(&mut ruled, kind::OPEN, &kept, its);
}
