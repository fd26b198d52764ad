//! What a call's return tells alone: the object behind a descriptor, and of names the caller's word, marked as that. Nothing is missing.
#![expect(
    unsafe_code,
    reason = "descriptors that change under the call are what is tested"
)]

use std::{
    ffi::CString,
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::Path,
};

use nix::unistd::{UnlinkatFlags, unlinkat};
use sumun_abi::record::{FLAW_LOST, FLAW_RACY, SOURCE_CALLER, SOURCE_OBJECT};
use sumun_policy::plan::Plan;
use sumun_proto::v1::{Kind, Source};

use super::{Folders, Sides, beside, exchange, goes_on};
use crate::{
    bench::{self, Bench},
    points::{below, folder, identity, of, opens, set, told},
};

#[test]
fn a_rewritten_name_of_an_open_misleads_nobody() {
    let Some(mut bench) = bench::take("misleading-open") else {
        return;
    };
    super::rewritten_opens(&mut bench);
}

/// So many renames and removals by this process are told, each as its own word.
#[track_caller]
fn all_by_their_word(bench: &mut Bench, below: &Path, done: &[Kind]) {
    let found = told(&bench.settle(), below);
    for (_, event) in &found {
        let file = of(event);
        assert_eq!(
            (file.source(), file.dev, file.ino),
            (Source::Caller, 0, 0),
            "{file:?}"
        );
    }
    bench.nothing_else_missing("sys_exit", done.len() - found.len());
    if found.len() == done.len() {
        let found: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(found, done);
    }
}

#[test]
fn a_rewritten_name_of_a_rename_or_removal_misleads_nobody() {
    let Some(mut bench) = bench::take("misleading-names") else {
        return;
    };
    bench.ask(&[Kind::Rename, Kind::Unlink]);
    let sides = Sides::new();
    let to = CString::new(sides.dir.join("to").to_str().unwrap()).unwrap();
    let (mut done, mut won) = (Vec::new(), 0);
    beside(
        || sides.turn(),
        || {
            while goes_on(done.len(), 4000, won > 0) {
                for side in 0..2 {
                    if !sides.file(side).exists() {
                        fs::write(sides.file(side), "").unwrap();
                    }
                }
                let (kind, call) = match done.len() % 2 {
                    0 => (Kind::Unlink, sides.call(|name| name.unlink())),
                    _ => (Kind::Rename, sides.call(|name| name.rename(&to))),
                };
                call.result.unwrap();
                let gone = usize::from(sides.file(0).exists());
                assert!(sides.file(1 - gone).exists() && !sides.file(gone).exists());
                won += usize::from(call.is_won(gone));
                done.push(kind);
            }
        },
    );
    eprintln!("{won} of {} races won", done.len());
    assert!(won > 0, "no race was won: not exercised");
    all_by_their_word(&mut bench, &sides.dir, &done);
}

#[test]
fn a_swapped_parent_misleads_nobody() {
    let Some(mut bench) = bench::take("misleading-parent") else {
        return;
    };
    bench.ask(&[Kind::Unlink]);
    let folders = Folders::new();
    let [p, q] = ["p", "q"].map(|name| folders.dir.join(name));
    let (mut side, mut met, mut done) = (0, [0; 2], Vec::new());
    beside(
        || exchange(&p, &q),
        || {
            while goes_on(done.len(), 2000, met.iter().all(|count| *count > 0)) {
                // Which folder it was, their descriptors know.
                let files = [0, 1].map(|side: usize| {
                    File::create(format!(
                        "/proc/self/fd/{}/f",
                        folders.each[side].as_raw_fd()
                    ))
                    .unwrap()
                });
                fs::remove_file(p.join("f")).unwrap();
                let links = files
                    .map(|file| std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap()));
                assert_eq!(links[0] + links[1], 1);
                met[usize::from(links[1] == 0)] += 1;
                done.push(Kind::Unlink);
            }
        },
    );
    eprintln!("{met:?} of both folders");
    assert!(met.iter().all(|count| *count > 0), "not exercised");
    all_by_their_word(&mut bench, &folders.dir, &done);
    // And behind a descriptor.
    let (mut met, mut done) = ([0; 2], Vec::new());
    beside(
        || {
            side ^= 1;
            folders.turn(side);
        },
        || {
            while goes_on(done.len(), 2000, met.iter().all(|count| *count > 0)) {
                for side in 0..2 {
                    if !folders.file(side).exists() {
                        fs::write(folders.file(side), "").unwrap();
                    }
                }
                unlinkat(&folders.base, "f", UnlinkatFlags::NoRemoveDir).unwrap();
                met[usize::from(folders.file(0).exists())] += 1;
                done.push(Kind::Unlink);
            }
        },
    );
    eprintln!("{met:?} behind the descriptor");
    assert!(met.iter().all(|count| *count > 0), "not exercised");
    all_by_their_word(&mut bench, &folders.dir, &done);
}

/// A sibling closes the descriptor that an open is about to return, or puts another file there.
fn swapped(bench: &mut Bench, plan: &Plan, dir: &Path, decoys: &Path) {
    let secret = dir.join("secret");
    fs::write(&secret, "").unwrap();
    let its = identity(&secret);
    let decoy = File::create(decoys.join("decoy")).unwrap();
    let other = identity(&decoys.join("decoy"));
    set(bench, plan);
    let name = CString::new(secret.to_str().unwrap()).unwrap();
    // SAFETY: a valid name; the descriptor is new, and closed at once: the next open gets its number.
    let target = unsafe {
        let target = libc::open(name.as_ptr(), libc::O_RDONLY);
        libc::close(target);
        target
    };
    assert!(target > 2);
    let (mut done, mut won) = (0, 0);
    beside(
        || {
            // SAFETY: numbers that only this test uses meanwhile.
            unsafe {
                libc::dup2(decoy.as_raw_fd(), target);
                libc::close(target);
            }
        },
        || {
            while goes_on(done, 4000, won > 0) {
                // SAFETY: a valid name, a structure to fill, and a number that only this test uses.
                unsafe {
                    let fd = libc::open(name.as_ptr(), libc::O_RDONLY);
                    assert!(fd >= 0);
                    let mut meta: libc::stat = std::mem::zeroed();
                    let there = libc::fstat(fd, &raw mut meta) == 0;
                    won += usize::from(!there || meta.st_ino != its.1);
                    libc::close(fd);
                }
                done += 1;
            }
        },
    );
    let found = opens(&bench.settle(), dir);
    let (mut own, mut lost, mut others) = (0, 0, 0);
    for (path, open) in &found {
        if open.path.flaws & FLAW_LOST != 0 {
            assert_eq!((open.path.source, open.ino), (SOURCE_CALLER, 0));
            assert_eq!(Path::new(path), secret);
            lost += 1;
            continue;
        }
        assert_eq!(open.path.source, SOURCE_OBJECT);
        match (open.dev, open.ino) {
            found if found == its => own += 1,
            found => {
                assert_eq!(found, other, "{open:?}");
                assert_ne!(
                    open.path.flaws & FLAW_RACY,
                    0,
                    "wrong and unmarked: {open:?}"
                );
                others += 1;
            }
        }
    }
    eprintln!(
        "{won} of {done} races won: {own} told as they were, {lost} lost, {others} marked as another"
    );
    assert!(won > 0, "no race was won: not exercised");
    // And the one that found the number.
    assert!(found.len() <= done + 1, "told twice: {}", found.len());
    bench.nothing_else_missing("sys_exit", done + 1 - found.len());
}

#[test]
fn a_descriptor_swapped_for_a_watched_file_misleads_nobody() {
    let Some(mut bench) = bench::take("misleading-within") else {
        return;
    };
    let (_dir, dir) = folder();
    swapped(&mut bench, &below(&dir), &dir, &dir);
}

#[test]
fn a_descriptor_swapped_for_an_unwatched_file_misleads_nobody() {
    let Some(mut bench) = bench::take("misleading-swap") else {
        return;
    };
    let (_dir, dir) = folder();
    let (_elsewhere, elsewhere) = folder();
    swapped(&mut bench, &below(&dir), &dir, &elsewhere);
}
