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
