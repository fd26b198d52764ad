//! How many rules are looked at. That none is missed is tested on the whole engine.

use std::fmt::Write as _;

use sumun_policy::Lists;
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Event, Image};

use super::*;

fn index(rules: &[String]) -> Index {
    let rules: Vec<Predicate> = rules
        .iter()
        .map(|rule| Predicate::parse(rule, &Lists::new()).expect(rule))
        .collect();
    Index::new((0..).zip(&rules), Kind::Exec)
}

/// An exec with these ancestors, the first process first; their chain ends there or not.
fn candidates(index: &Index, programs: &[&str], complete: bool) -> usize {
    let mut batch = Batch::default();
    for (number, program) in (0..).zip(programs) {
        batch.images.push(Image {
            pid: number + if complete { 1 } else { 100 },
            parent: number,
            seen: true,
            exe_path: format!("/usr/bin/{program}"),
            args: vec!["-c".to_owned(), format!("--name={program}-7")],
            ..Image::default()
        });
    }
    let event = Event {
        kind: Kind::Exec.into(),
        image: u32::try_from(programs.len()).expect("few"),
        ..Event::default()
    };
    let view = View {
        host: &Host::default(),
        batch: &batch,
        event: &event,
        alert: None,
    };
    let mut found = Vec::new();
    index.candidates(&view, |rule| found.push(rule));
    found.sort_unstable();
    found.dedup();
    found.len()
}

#[test]
fn rules_that_share_a_name_are_told_apart_by_the_rest() {
    let mut rules: Vec<String> = (0..500)
        .map(|number| {
            format!(
                r#"proc.exe.name in ["sh", "bash"] && proc.ancestors.exists(a, a.exe.name == "service-{number}")"#
            )
        })
        .collect();
    rules.extend((0..500).map(|number| {
        format!(
            r#"proc.exe.name == "curl" && proc.args.exists(x, x.contains("name=curl-{number}"))"#
        )
    }));
    let index = index(&rules);
    for (programs, complete, expected) in [
        (&["init", "service-7", "bash"][..], true, 1),
        (&["init", "service-7", "service-8", "sh"], true, 2),
        (&["init", "service-x", "sh"], true, 0),
        (&["init", "service-7", "ls"], true, 0),
        // What is above init is not known.
        (&["init", "sh"], false, 500),
        (&["init", "ls"], false, 0),
        (&["init", "curl"], false, 1),
    ] {
        assert_eq!(
            candidates(&index, programs, complete),
            expected,
            "{programs:?}"
        );
    }
}

/// Every name leads to another few of the rules, each of which can be told apart further.
#[test]
fn the_index_stays_in_proportion_to_its_rules() {
    let rules: Vec<String> = (0..600_usize)
        .map(|rule| {
            let mut names = String::new();
            for name in (0..60).filter(|name| (rule * 31 + name * name * 17) % 7 == 0) {
                let _ = write!(names, r#""tool-{name}", "#);
            }
            format!(
                r#"proc.exe.name in [{names}"only-{rule}"] && proc.args.exists(x, x.startsWith("--name=only-{rule}-"))"#
            )
        })
        .collect();
    let written: usize = rules.iter().map(String::len).sum();
    let index = index(&rules);
    assert!(
        index.bytes() < 4 * written,
        "{} bytes for {written} of rules",
        index.bytes()
    );
    assert_eq!(candidates(&index, &["init", "only-3"], true), 1);
    assert_eq!(candidates(&index, &["init", "other"], true), 0);
    // Many rules name one of these, and the arguments tell them apart, down to a few.
    for tool in 0..60 {
        let found = candidates(&index, &["init", &format!("tool-{tool}")], true);
        assert!(found <= 3, "{found} rules for tool-{tool}");
    }
}
