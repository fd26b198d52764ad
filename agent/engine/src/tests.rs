//! Rules on hand-made events.

use sumun_policy::check_file;
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Event, File, Image, Severity};

use super::*;

const POLICY: &str = r#"
[policy]
name = "web"
version = 3

[[rule]]
id = "shell"
title = "A shell"
on = ["exec"]
when = 'proc.exe.name in ["sh", "bash"]'
severity = "high"
attack = ["T1059"]

[[rule]]
id = "all-execs"
on = ["exec"]
effect = "record"

[[rule]]
id = "etc"
on = ["open"]
when = 'file.path.startsWith("/etc/")'

[[rule]]
id = "root-shell"
on = ["exec", "open"]
when = 'proc.exe.name == "sh" && proc.uid == 0'
"#;

fn engine() -> Engine {
    let check = check_file("web.toml", POLICY);
    assert!(check.errors.is_empty(), "{check}");
    Engine::new(&[check.policy.expect("a policy without errors")])
}

fn batch(kind: Kind, exe: &str, flaws: u32) -> (Batch, Event) {
    let batch = Batch {
        images: vec![Image {
            pid: 7,
            seen: true,
            exe_path: exe.to_owned(),
            exe_flaws: flaws,
            ..Image::default()
        }],
        ..Batch::default()
    };
    let event = Event {
        kind: kind.into(),
        image: 1,
        ..Event::default()
    };
    (batch, event)
}

fn judge(engine: &Engine, batch: &Batch, event: &Event) -> (bool, Vec<Hit>) {
    let host = Host::default();
    let view = View {
        host: &host,
        batch,
        event,
        alert: None,
    };
    let mut hits = Vec::new();
    let stored = engine.evaluate(&view, &mut hits);
    (stored, hits)
}

fn hit(rule: usize, undecided: bool, alert: bool) -> Hit {
    Hit {
        rule,
        undecided,
        alert,
        exception: None,
        kill: None,
        deny: None,
        isolate: None,
        doubt: None,
    }
}

#[test]
fn rules_hit_by_kind_and_condition() {
    let engine = engine();
    let (batch_sh, event) = batch(Kind::Exec, "/bin/sh", 0);
    let (stored, hits) = judge(&engine, &batch_sh, &event);
    assert!(stored);
    assert_eq!(
        hits,
        [
            hit(0, false, true),
            hit(1, false, false),
            hit(3, false, true)
        ]
    );
    let (batch_ls, event) = batch(Kind::Exec, "/bin/ls", 0);
    assert_eq!(judge(&engine, &batch_ls, &event).1, [hit(1, false, false)]);
}

#[test]
fn an_unknown_name_is_undecided() {
    let engine = engine();
    let lost = u32::from(sumun_abi::record::FLAW_LOST);
    let (batch, event) = batch(Kind::Exec, "", lost);
    let (stored, hits) = judge(&engine, &batch, &event);
    assert!(stored);
    assert_eq!(
        hits,
        [hit(0, true, true), hit(1, false, false), hit(3, true, true)]
    );
}

#[test]
fn what_no_rule_asked_for_is_not_stored_unless_it_is_life() {
    let engine = engine();
    let (of_ls, mut event) = batch(Kind::Open, "/bin/ls", 0);
    event.file = Some(File {
        path: Some("/home/x".to_owned()),
        ..File::default()
    });
    assert_eq!(judge(&engine, &of_ls, &event), (false, vec![]));
    event.file = Some(File {
        path: Some("/etc/passwd".to_owned()),
        ..File::default()
    });
    assert_eq!(
        judge(&engine, &of_ls, &event),
        (true, vec![hit(2, false, true)])
    );
    let (of_ls, event) = batch(Kind::Exit, "/bin/ls", 0);
    assert_eq!(judge(&engine, &of_ls, &event), (true, vec![]));
}

#[test]
fn rules_name_themselves() {
    let engine = engine();
    let rule = &engine.rules()[0];
    assert_eq!((rule.policy.as_str(), rule.rule.as_str()), ("web", "shell"));
    assert_eq!(rule.policy_version, 3);
    assert_eq!(rule.severity(), Severity::High);
    assert_eq!(rule.attack, ["T1059"]);
}

const EXCEPTING: &str = r#"
[policy]
name = "web"

[[rule]]
id = "shell"
on = ["exec"]
when = 'proc.exe.name == "sh"'

[[rule.exception]]
name = "old"
when = 'proc.uid == 7'
owner = "ops"
expires = 1970-01-01T00:01:40Z

[[rule.exception]]
name = "root"
when = 'proc.uid == 0 || proc.args[0] == "health"'
owner = "ops"
"#;

/// An exec of sh at a time in seconds since the Unix epoch; the host booted 90 s after it.
fn exec(uid: u32, args: &[&str], at_s: u64) -> (Batch, Event) {
    let (mut batch, mut event) = batch(Kind::Exec, "/bin/sh", 0);
    batch.wall_offset_ns = 90_000_000_000;
    event.boot_ns = at_s * 1_000_000_000 - 90_000_000_000;
    batch.images[0].uid = uid;
    batch.images[0].args = args.iter().map(|arg| (*arg).to_owned()).collect();
    (batch, event)
}

#[test]
fn an_exception_keeps_the_event_and_drops_the_alert_until_it_expires() {
    let check = check_file("web.toml", EXCEPTING);
    let engine = Engine::new(&[check.policy.expect("a policy without errors")]);
    let one = |(batch, event): (Batch, Event)| {
        let (stored, hits) = judge(&engine, &batch, &event);
        assert!(stored);
        let [hit] = hits[..] else {
            panic!("one hit, not {hits:?}");
        };
        (hit.alert, hit.exception)
    };
    assert_eq!(one(exec(5, &["sh"], 99)), (true, None));
    assert_eq!(one(exec(7, &["sh"], 99)), (false, Some(0)));
    assert_eq!(one(exec(7, &["sh"], 100)), (true, None), "it has expired");
    assert_eq!(one(exec(0, &["sh"], 100)), (false, Some(1)));
    assert_eq!(one(exec(5, &["health"], 100)), (false, Some(1)));
    assert_eq!(engine.exception(0, 1), Some("root"));
    // The argument was lost: it may be the health check or not, so the alert is raised.
    let (mut batch, event) = exec(5, &[], 100);
    batch.images[0].args_flaws = u32::from(sumun_abi::record::FLAW_LOST);
    assert_eq!(one((batch, event)), (true, None));
}

const KILLING: &str = r#"
[policy]
name = "web"
mode = "MODE"

[[rule]]
id = "shell"
on = ["exec"]
when = 'proc.exe.name == "sh"'
effect = "kill"

[[rule.exception]]
name = "health"
when = 'proc.args[0] == "health"'
owner = "ops"

[[rule.exception]]
name = "root"
when = 'proc.uid == 0'
owner = "ops"
"#;

fn killing(mode: &str) -> Engine {
    let check = check_file("web.toml", &KILLING.replace("MODE", mode));
    assert!(check.errors.is_empty(), "{check}");
    Engine::new(&[check.policy.expect("a policy without errors")])
}

#[test]
fn a_rule_that_kills_says_so_with_what_its_policy_asks_for() {
    for (name, mode) in [("enforce", Mode::Enforce), ("observe", Mode::Observe)] {
        let engine = killing(name);
        let (batch, event) = exec(5, &["sh"], 100);
        let (stored, hits) = judge(&engine, &batch, &event);
        let killed = Hit {
            kill: Some(mode),
            ..hit(0, false, true)
        };
        assert!(
            stored && hits == [killed] && killed.is_certain(),
            "{hits:?}"
        );
        let (batch, event) = exec(5, &["ls"], 100);
        let (batch, event) = (
            Batch {
                images: vec![Image {
                    exe_path: "/bin/ls".to_owned(),
                    ..batch.images[0].clone()
                }],
                ..batch
            },
            event,
        );
        assert_eq!(judge(&engine, &batch, &event).1, []);
    }
}

#[test]
fn what_an_exception_lets_pass_is_not_killed_and_a_doubt_is_not_certain() {
    let engine = killing("enforce");
    let one = |(batch, event): (Batch, Event)| {
        let (_, hits) = judge(&engine, &batch, &event);
        let [hit] = hits[..] else {
            panic!("one hit, not {hits:?}");
        };
        hit
    };
    let excepted = one(exec(5, &["health"], 100));
    assert_eq!((excepted.alert, excepted.exception), (false, Some(0)));
    assert_eq!(excepted.kill, None);
    let lost = |uid| {
        let (mut batch, event) = exec(uid, &[], 100);
        batch.images[0].args_flaws = u32::from(sumun_abi::record::FLAW_LOST);
        (batch, event)
    };
    let doubtful = one(lost(5));
    assert!(doubtful.alert && !doubtful.undecided);
    assert_eq!(doubtful.kill, Some(Mode::Enforce));
    assert_eq!((doubtful.exception, doubtful.doubt), (None, Some(0)));
    assert!(!doubtful.is_certain());
    // Another exception is certain: no doubt is left.
    let root = one(lost(0));
    assert_eq!(
        (root.exception, root.doubt, root.kill),
        (Some(1), None, None)
    );
    // The rule itself is undecided.
    let lost = u32::from(sumun_abi::record::FLAW_LOST);
    let (mut unknown, event) = batch(Kind::Exec, "", lost);
    unknown.images[0].uid = 5;
    unknown.images[0].args = vec!["sh".to_owned()];
    let undecided = one((unknown, event));
    assert!(undecided.undecided && undecided.alert && !undecided.is_certain());
    assert_eq!(undecided.kill, Some(Mode::Enforce));
}

#[test]
fn rules_that_read_no_result_are_about_calls_that_succeed() {
    let check = check_file(
        "web.toml",
        r#"
[policy]
name = "web"

[[rule]]
id = "any"
on = ["mount", "open", "ptrace"]

[[rule]]
id = "failed"
on = ["mount", "open", "ptrace"]
when = 'result == -1'
"#,
    );
    assert!(check.errors.is_empty(), "{check}");
    let engine = Engine::new(&[check.policy.expect("a policy without errors")]);
    let hits = |kind, result: Option<i32>, failed| {
        let (batch, mut event) = batch(kind, "/bin/sh", 0);
        (event.result, event.failed) = (result, failed);
        judge(&engine, &batch, &event).1
    };
    for kind in [Kind::Mount, Kind::Open] {
        assert_eq!(hits(kind, None, false), [hit(0, false, true)]);
        assert_eq!(hits(kind, Some(-1), true), [hit(1, false, true)]);
        assert_eq!(hits(kind, Some(-13), true), []);
        // A rule that denies did it: it is not asked again, and what happens to others is not said here.
        let denied = hits(kind, Some(-1), false);
        assert_eq!(denied, [hit(0, false, true), hit(1, false, true)]);
    }
    // Of these every attempt is one.
    let tried = hits(Kind::Ptrace, Some(-1), false);
    assert_eq!(tried, [hit(0, false, true), hit(1, false, true)]);
}
