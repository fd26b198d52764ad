use super::*;
use crate::kernel::handles::{DELETE, Handle};

fn name(path: &str) -> Name {
    let handle = Handle {
        kind: 1,
        bytes: path.as_bytes().into(),
    };
    Name {
        path: Some(path.to_owned()),
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        folder: ([0; 8], handle),
    }
}

fn done(from: &str, to: Option<&str>, read_ns: u64) -> Done {
    Done {
        mask: if to.is_some() { RENAME } else { DELETE },
        from: name(from),
        to: to.map(name),
        dev: 8,
        ino: 5,
        unsteady: false,
        since_ns: 0,
        read_ns,
        found: None,
        number: 0,
        state: State::Waits,
    }
}

const TID: u32 = 7;

fn with(all: Vec<Done>) -> Changes {
    let mut changes = Changes {
        held: all.len(),
        ..Changes::default()
    };
    let thread = changes.threads.entry(TID).or_default();
    thread.read_ns = all.iter().map(|done| done.read_ns).max().unwrap_or(0);
    thread.done = all.into();
    changes
}

fn record(kind: Kind, path: &str, new_path: Option<&str>) -> Event {
    Event {
        kind: kind.into(),
        tid: TID,
        file: Some(File {
            path: Some(path.to_owned()),
            new_path: new_path.map(str::to_owned),
            source: Source::Caller.into(),
            flaws: u32::from(FLAW_RACY),
            ..File::default()
        }),
        ..Event::default()
    }
}

/// How it is known what a record tells.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Sure,
    Racy,
    Caller,
}

fn confirm(changes: &mut Changes, mut event: Event, boot_ns: u64) -> Said {
    let actor = Actor {
        tid: TID,
        ..Actor::default()
    };
    let before = event.clone();
    changes.confirm(&mut event, &actor, boot_ns, true);
    let file = event.file.as_ref().expect("a file");
    if file.source() == Source::Object {
        assert_eq!((file.dev, file.ino), (8, 5));
        return match file.flaws {
            0 => Said::Sure,
            _ => Said::Racy,
        };
    }
    assert_eq!(event, before);
    Said::Caller
}

fn alone(changes: &mut Changes, through_ns: u64, now_ns: u64) -> Vec<String> {
    let alone = changes.alone(through_ns, 0, now_ns);
    let path = |one: Alone| one.event.file.and_then(|file| file.path);
    alone.into_iter().filter_map(path).collect()
}

#[test]
fn what_the_call_named_and_did_is_one() {
    let mut changes = with(vec![
        done("/d/a", None, 10),
        done("/d/b", Some("/e/c"), 10),
        done("/d/x", Some("/d/y"), 10),
        done("/d/y", Some("/d/x"), 10),
    ]);
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d//./a", None), 5),
        Said::Sure
    );
    assert_eq!(
        confirm(&mut changes, record(Kind::Rename, "/d/b", Some("/e/c")), 6),
        Said::Sure
    );
    let mut exchange = record(Kind::Rename, "/d/x", Some("/d/y"));
    exchange.file.as_mut().expect("a file").call_flags = libc::RENAME_EXCHANGE;
    assert_eq!(confirm(&mut changes, exchange, 7), Said::Sure);
    assert_eq!(alone(&mut changes, u64::MAX / 2, u64::MAX / 2), [""; 0]);
    changes.written(12);
    assert_eq!(
        (changes.held, changes.bytes, changes.threads.len()),
        (0, 0, 0)
    );
}

#[test]
fn a_record_is_never_taken_for_something_else() {
    let others = [
        record(Kind::Unlink, "/d/b", None),
        record(Kind::Unlink, "/e/a", None),
        record(Kind::Rename, "/d/a", Some("/d/b")),
        record(Kind::Unlink, "/d/../d/a", None),
    ];
    for other in others {
        let mut changes = with(vec![done("/d/a", None, 10)]);
        assert_eq!(confirm(&mut changes, other, 5), Said::Caller);
        // The thread may be in a call whose record is still to come.
        assert_eq!(alone(&mut changes, 9, 11), [""; 0]);
        assert_eq!(
            confirm(&mut changes, record(Kind::Unlink, "/d/a", None), 12),
            Said::Racy
        );
    }
    let mut folder = done("/d/a", None, 10);
    folder.mask |= FOLDER;
    let mut changes = with(vec![folder]);
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/a", None), 5),
        Said::Caller
    );
}

#[test]
fn one_event_is_of_one_record() {
    // Two of a thread about the same are one, as long as nobody has read them.
    let mut changes = with(vec![done("/d/a", None, 10), done("/e/a", None, 10)]);
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/a", None), 5),
        Said::Sure
    );
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/a", None), 6),
        Said::Caller
    );
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/e/a", None), 7),
        Said::Racy
    );
    // Until as many events were left over as records, …
    changes.written(12);
    assert!(changes.threads[&TID].known.doubt.there);
    changes.threads.get_mut(&TID).expect("kept").done = [done("/x", None, 10)].into();
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/y", None), 8),
        Said::Caller
    );
    assert_eq!(alone(&mut changes, 10 + LATE_NS, 13), ["/x"]);
    changes.written(13);
    assert!(changes.threads[&TID].known.doubt.there);
    // … or nothing was heard of it for a while.
    changes.written(13 + IDLE_NS);
    assert_eq!(changes.threads.len(), 0);
}

/// A record that was taken for the next one's event shifts all behind it, across cycles: they stay marked until it is made up for.
#[test]
fn what_is_shifted_stays_marked() {
    let unlink = |name: &str| record(Kind::Unlink, name, None);
    let more = |changes: &mut Changes, names: &[&str]| {
        let all = names.iter().map(|name| done(name, None, 10));
        changes.threads.entry(TID).or_default().done.extend(all);
    };
    // The first did /b and said /a; the second, that did /a, comes in the next cycle.
    let mut changes = with(vec![done("/b", None, 10), done("/a", None, 10)]);
    assert_eq!(confirm(&mut changes, unlink("/a"), 5), Said::Racy);
    assert_eq!(alone(&mut changes, 0, 11), ["/b"]);
    changes.written(11);
    more(&mut changes, &["/a", "/b"]);
    assert_eq!(confirm(&mut changes, unlink("/a"), 6), Said::Racy);
    changes.written(11);
    // This one finds that it is not its own.
    assert_eq!(confirm(&mut changes, unlink("/a"), 7), Said::Caller);
    changes.written(11);
    assert_eq!(confirm(&mut changes, unlink("/b"), 8), Said::Sure);
}

#[test]
fn where_one_is_left_out_the_next_may_be_anothers() {
    let mut changes = with(vec![
        done("/d/b", None, 10),
        done("/d/a", None, 10),
        done("/d/a", None, 10),
        done("/d/b", None, 10),
    ]);
    let unlink = |name: &str| record(Kind::Unlink, name, None);
    // The first call's name was rewritten to that of the second.
    assert_eq!(confirm(&mut changes, unlink("/d/a"), 5), Said::Racy);
    assert_eq!(confirm(&mut changes, unlink("/d/a"), 6), Said::Racy);
    assert_eq!(confirm(&mut changes, unlink("/d/a"), 7), Said::Caller);
    // What was passed over is not taken up again.
    assert_eq!(confirm(&mut changes, unlink("/d/b"), 8), Said::Racy);
    assert_eq!(alone(&mut changes, 0, 11), ["/d/b"]);
}

#[test]
fn a_folder_that_is_renamed_shakes_what_lies_below_it() {
    let moved = Moved {
        paths: vec!["/d/e/".into()],
        anywhere: false,
    };
    assert!(moved.is_on_the_way(&name("/d/e/f")));
    assert!(!moved.is_on_the_way(&name("/d/ef")));
    let mut unsteady = done("/d/e/f", None, 10);
    unsteady.unsteady = true;
    let mut changes = with(vec![unsteady]);
    let unlink = record(Kind::Unlink, "/d/e/f", None);
    assert_eq!(confirm(&mut changes, unlink, 5), Said::Racy);
}

#[test]
fn what_no_record_names_is_told_alone_and_once() {
    // A later one of its thread has been claimed.
    let all = || vec![done("/d/a", None, 10), done("/d/b", None, 10)];
    let mut changes = with(all());
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/b", None), 5),
        Said::Racy
    );
    assert_eq!(alone(&mut changes, 0, 11), ["/d/a"]);
    assert_eq!(alone(&mut changes, 0, 11), [""; 0]);
    changes.written(12);
    assert_eq!(changes.held, 0);
    // Its thread has made a later call.
    let mut changes = with(all());
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/x", None), 10),
        Said::Caller
    );
    assert_eq!(alone(&mut changes, 0, 11), ["/d/a", "/d/b"]);
    // It is late, as far as records have been read.
    let mut changes = with(all());
    assert_eq!(alone(&mut changes, 9 + LATE_NS, 11 + LATE_NS), [""; 0]);
    assert_eq!(
        alone(&mut changes, 10 + LATE_NS, 11 + LATE_NS),
        ["/d/a", "/d/b"]
    );
    // And however far.
    let mut changes = with(all());
    assert_eq!(alone(&mut changes, 0, 10 + LOST_NS).len(), 2);
}

#[test]
fn a_cycle_that_was_not_written_is_done_again() {
    let mut changes = with(vec![done("/d/a", None, 10), done("/d/b", None, 10)]);
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/b", None), 5),
        Said::Racy
    );
    let numbers = |changes: &mut Changes, through_ns| {
        let alone = changes.alone(through_ns, 3, 11);
        let told = |one: Alone| (one.event.file.and_then(|file| file.path), one.event.boot_ns);
        alone.into_iter().map(told).collect::<Vec<_>>()
    };
    let first = numbers(&mut changes, 0);
    assert_eq!(first, [(Some("/d/a".to_owned()), 10)]);
    changes.undo();
    let thread = &changes.threads[&TID];
    assert!(thread.known.last.is_none() && !thread.known.doubt.there);
    // Whatever else is told then, its number is the same: it is acted on once.
    let mut early = done("/c", None, 10);
    early.state = State::Waits;
    changes.threads.entry(TID - 1).or_default().done = [early].into();
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/d/b", None), 5),
        Said::Racy
    );
    let again = numbers(&mut changes, 10 + LATE_NS);
    assert_eq!(again, [first[0].clone(), (Some("/c".to_owned()), 11)]);
}

/// Once its records have caught up with all of its events, nothing of before can be taken for what comes.
#[test]
fn doubts_end_when_a_thread_has_caught_up() {
    let mut changes = with(vec![done("/d/a", None, 10)]);
    let unlink = |name: &str| record(Kind::Unlink, name, None);
    // On a file system that is not watched, again and again.
    assert_eq!(confirm(&mut changes, unlink("/nfs/a"), 5), Said::Caller);
    assert_eq!(confirm(&mut changes, unlink("/d/a"), 6), Said::Racy);
    changes.written(7);
    assert!(changes.threads[&TID].known.doubt.there);
    assert_eq!(confirm(&mut changes, unlink("/nfs/b"), 12), Said::Caller);
    changes.written(13);
    assert!(!changes.threads.contains_key(&TID));
    // Not while events wait in the kernel that may be of before.
    let mut changes = with(vec![]);
    changes.behind = true;
    assert_eq!(confirm(&mut changes, unlink("/nfs/a"), 12), Said::Caller);
    changes.written(13);
    assert!(changes.threads[&TID].known.doubt.there);
}

/// Of more threads in doubt than can be remembered some are forgotten: until all doubts have ended nobody is sure.
#[test]
fn where_too_many_are_in_doubt_nothing_is_certain() {
    let mut changes = Changes::default();
    for tid in 1..THREADS_MAX as u32 + 5 {
        let known = &mut changes.threads.entry(tid).or_default().known;
        known.active_ns = 10;
        known.doubt = Doubt {
            there: true,
            records: 1,
            events: 0,
        };
    }
    changes.written(11);
    assert_eq!(changes.threads.len(), THREADS_MAX);
    for (boot_ns, said) in [(12, Said::Racy), (11 + IDLE_NS, Said::Sure)] {
        changes.threads.clear();
        changes.threads.entry(TID).or_default().done = [done("/d/a", None, 12)].into();
        let unlink = record(Kind::Unlink, "/d/a", None);
        assert_eq!(confirm(&mut changes, unlink, boot_ns), said);
    }
}

/// The same path in another mount namespace may be another file.
#[test]
fn a_path_of_another_mount_namespace_is_not_certain() {
    let mut changes = with(vec![done("/d/a", None, 10)]);
    let mut event = record(Kind::Unlink, "/d/a", None);
    let actor = Actor {
        tid: TID,
        ..Actor::default()
    };
    changes.confirm(&mut event, &actor, 5, false);
    let file = event.file.expect("a file");
    assert_eq!(
        (file.source(), file.flaws),
        (Source::Object, u32::from(FLAW_RACY))
    );
}

/// Of events in what an overlay writes into, those are its own that a call of the thread accounts for; what no call does is told.
#[test]
fn what_an_overlay_does_below_is_known_by_the_call_for_it() {
    let inner = |from: &str, to: Option<&str>, mask: u64, call: Option<&str>| {
        let mut one = done(from, to, 10);
        one.mask |= mask;
        let mut changes = with(vec![one]);
        changes.places.inside(&["/o/diff/", "/o/work/"]);
        if let Some(name) = call {
            let unlink = record(Kind::Unlink, name, None);
            assert_eq!(confirm(&mut changes, unlink, 5), Said::Caller);
        }
        let mut alone = changes.alone(10 + LATE_NS, 0, 11);
        let only = alone.pop().expect("one");
        assert!(alone.is_empty());
        only.inner
    };
    let diff = "/o/diff/app/audit.log";
    assert!(inner(diff, None, 0, Some("/app/audit.log")));
    // By io_uring, or its record was lost.
    assert!(!inner(diff, None, 0, None));
    // A call that named something else does not account for it.
    assert!(!inner(diff, None, 0, Some("/app/other")));
    assert!(!inner("/d/audit.log", None, 0, Some("/app/audit.log")));
    let whiteout = ("/o/work/work/#1a", Some("/o/diff/app/f"));
    assert!(inner(whiteout.0, whiteout.1, 0, Some("/app/f")));
    assert!(!inner(whiteout.0, whiteout.1, 0, None));
    // Nobody asks for these.
    assert!(inner(whiteout.0, whiteout.1, FOLDER, None));
    assert!(inner("/o/work/work/#1a", None, 0, None));
}

/// Who did it is the thread of its record; else who was found, if anybody was.
#[test]
fn who_did_it_is_not_made_up() {
    let by = |changes: &mut Changes| changes.alone(10 + LATE_NS, 0, 11).pop().expect("one").by;
    let mut changes = with(vec![done("/d/a", None, 10)]);
    assert!(changes.is_strange(TID));
    assert!(matches!(by(&mut changes), By::Unknown));
    let mut changes = with(vec![done("/d/a", None, 10)]);
    let actor = Actor {
        pid: 5,
        tid: TID,
        ..Actor::default()
    };
    changes.met(TID, actor);
    assert!(matches!(by(&mut changes), By::Found(found) if found.pid == 5));
    let mut changes = with(vec![done("/d/a", None, 10)]);
    assert_eq!(
        confirm(&mut changes, record(Kind::Unlink, "/x", None), 5),
        Said::Caller
    );
    assert!(!changes.is_strange(TID));
    assert!(matches!(by(&mut changes), By::Record(_)));
    // A record of long before is of whoever had the number then; so is who was found after an earlier reading.
    let much_later = |since_ns| Done {
        since_ns,
        ..done("/d/b", None, 20 * IN_TURN_NS)
    };
    let mut changes = with(vec![much_later(19 * IN_TURN_NS)]);
    changes.threads.get_mut(&TID).expect("there").known.last = Some((actor, 5));
    assert!(changes.is_strange(TID));
    let last = |changes: &mut Changes| {
        let mut alone = changes.alone(u64::MAX / 2, 0, 11);
        alone.pop().expect("one").by
    };
    assert!(matches!(last(&mut changes), By::Unknown));
    let mut changes = with(vec![done("/d/a", None, 10)]);
    changes.met(TID, actor);
    let thread = changes.threads.get_mut(&TID).expect("there");
    thread.read_ns = 20 * IN_TURN_NS;
    thread.done.push_back(much_later(19 * IN_TURN_NS));
    assert!(matches!(last(&mut changes), By::Unknown));
    // Nor is a record of a reading in which all numbers may have come round.
    let mut changes = with(vec![much_later(0)]);
    changes.threads.get_mut(&TID).expect("there").known.last = Some((actor, 5));
    assert!(matches!(last(&mut changes), By::Unknown));
}

/// The rung is only said to be there while something is watched, and what is wrong is said.
#[test]
fn what_is_not_watched_is_said() {
    let none = Mounts::default();
    let why = standing(&none, false, false, 0).expect_err("nothing yet");
    assert!(why.contains("not been looked at"));
    let left_out: Vec<_> = (0..6).map(|number| format!("/{number}")).collect();
    let all_left_out = Mounts {
        left_out,
        ..Mounts::default()
    };
    let why = standing(&all_left_out, true, false, 0).expect_err("nothing");
    assert!(why.ends_with("/0, /1, /2, /3, and 2 more"), "{why}");
    let failed = Mounts {
        failed: Some("EMFILE".into()),
        ..Mounts::default()
    };
    assert_eq!(standing(&failed, true, false, 0), Err("EMFILE".into()));
    // What was found before is still watched.
    let mut watched = Mounts {
        places: vec![mounts::Place {
            fs: [1; 8],
            mount: 1,
            dev: 1,
            point: b"/".to_vec(),
            numbers: None,
        }],
        ..failed
    };
    assert_eq!(standing(&watched, true, false, 0), Ok("EMFILE".into()));
    watched.failed = None;
    assert_eq!(standing(&watched, true, false, 0), Ok(String::new()));
    for (late, stuck) in [(true, 0), (false, 1)] {
        assert_ne!(standing(&watched, true, late, stuck), Ok(String::new()));
    }
}

#[test]
fn what_lies_nowhere_is_told_by_its_name() {
    let mut gone = done("/d/a", None, 10);
    gone.from.path = None;
    let mut changes = with(vec![gone]);
    let told = changes.alone(0, 0, 10 + LOST_NS);
    let file = told[0].event.file.as_ref().expect("a file");
    assert_eq!(file.path.as_deref(), Some("a"));
    assert_eq!(file.flaws, u32::from(FLAW_RACY | FLAW_TRUNCATED));
}

#[test]
fn paths_are_compared_without_what_leads_nowhere_else() {
    for (path, same) in [
        ("/a/b", "/a/b"),
        ("/a//b/", "/a/b"),
        ("/./a/./b", "/a/b"),
        ("//a", "/a"),
        ("/a/../b", "/a/../b"),
        ("/a.", "/a."),
    ] {
        assert_eq!(plain(path), same);
    }
}
