//! Long lists mean what short ones do, in the matcher and in the kernel's filter, and keep
//! their bounds.

#[path = "common/mod.rs"]
mod common;
#[path = "common/kernel.rs"]
mod kernel;

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Instant;

use common::{Dice, KINDS};
use kernel::passes;
use proptest::prelude::*;
use sumun_policy::doors::Doors;
use sumun_policy::ir::Set;
use sumun_policy::list::{BYTES_MAX, ITEMS_MAX, List, TOTAL_MAX};
use sumun_policy::plan::{SCOPE_BYTES, scopes};
use sumun_policy::verdict::VerdictPlan;
use sumun_policy::{
    FileCheck, Lists, Matcher, PARTS_MAX, Plan, Predicate, Verdict, check_file, check_files, covers,
};
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::{Batch, Event, File, Image, Kind};
use sumun_proto::{Host, View};

/// A policy with one list and one rule.
fn policy(name: &str, items: &str, on: &str, when: &str, rest: &str) -> String {
    format!(
        "[policy]\nname = \"{name}\"\nmode = \"enforce\"\n[lists]\nlong = [{items}]\n[[rule]]\nid = \"r\"\non = [{on}]\nwhen = '{when}'\n{rest}"
    )
}

fn quoted<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut all = String::new();
    for item in items {
        let _ = write!(all, "'{item}', ");
    }
    all
}

fn list(check: &FileCheck) -> &List {
    let policy = check.policy.as_ref().unwrap_or_else(|| panic!("{check}"));
    policy.large_lists().next().expect("a long list")
}

/// A list in both forms: some items that events have, and in the long one many that none has.
struct Both {
    short: String,
    lists: Lists,
}

/// A condition on a list, the items that count, and what fills the list up.
type ListTest = (&'static str, &'static [&'static str], fn(usize) -> String);

/// Conditions with `{}` for the list.
const TESTS: [ListTest; 8] = [
    (
        "file.path in {}",
        &["/etc/passwd", "/tmp/a", "/tmp/\\xff\\\\b", "/한/글", "/"],
        |n| format!("/filling/{}/{n}/of/a/list", n % 50),
    ),
    (
        "proc.exe.path in {}",
        &["/bin/sh", "/usr/sbin/sh", "/Tmp/Bin/SH"],
        |n| format!("/filling/{}/{n}/of/a/list", n % 50),
    ),
    ("proc.exe.name in {}", &["sh", "글", "\\xff\\\\b"], |n| {
        format!("filling-of-a-list-{n}")
    }),
    (
        "proc.exe.path.lowerAscii() in {}",
        &["/tmp/bin/sh", "/bin/sh"],
        |n| format!("/filling/{n}/of/a/list"),
    ),
    (
        "net.dst.ip in {}",
        &["10.0.0.1", "2001:db8::1", "::1"],
        |n| format!("11.{}.{}.{}", n / 256, n % 256, (n * 7) % 256),
    ),
    ("net.dst.port in {}", &["22", "1024", "-1"], |n| {
        (n + 30_000).to_string()
    }),
    ("proc.args.exists(i, i in {})", &["-c", "", "\\xff"], |n| {
        format!("--filling-of-a-list={n}")
    }),
    (
        "proc.ancestors.all(a, a.exe.name in {})",
        &["sh", "bash"],
        |n| format!("filling-of-a-list-{n}"),
    ),
];

/// Of each test a list that the kernel's filter takes item by item, and one of which it does not.
static LISTS: LazyLock<Vec<Vec<Both>>> = LazyLock::new(|| {
    let both = |items: &[&str], filling: fn(usize) -> String, count: usize| {
        let all: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        let long = all.iter().cloned().chain((0..count).map(filling));
        let numbers = items[0] == "22";
        let written = match numbers {
            true => long.collect::<Vec<_>>().join(", "),
            false => quoted(long),
        };
        let text = format!("[policy]\nname = \"p\"\n[lists]\nlong = [{written}]\n");
        let check = check_file("p.toml", &text);
        assert!(list(&check).len() >= count, "{:?}", list(&check));
        let short = match numbers {
            true => format!("[{}]", all.join(", ")),
            false => format!(
                "[{}]",
                quoted(all.iter().map(|item| item.replace('\\', "\\\\")))
            ),
        };
        Both {
            short,
            lists: check.policy.expect("a policy").lists,
        }
    };
    TESTS
        .iter()
        .map(|(_, items, filling)| {
            [3_000, 9_000]
                .map(|count| both(items, *filling, count))
                .into()
        })
        .collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_long_list_means_what_a_short_one_does(
        shape in proptest::collection::vec(any::<u8>(), 0..60),
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), 16),
    ) {
        let mut dice = Dice::new(&shape);
        let test = dice.roll(TESTS.len());
        let both = &LISTS[test][dice.roll(2)];
        let (list_test, not) = (TESTS[test].0, dice.pick(&["", "", "!"]));
        let how = dice.pick(&["L", "L && P", "P && L", "L || P", "!(P || L)", "(L || P) && P"]);
        let rest = common::predicate(&mut dice, 1);
        let text = |list: &str| {
            let condition = format!("{not}({})", list_test.replace("{}", list));
            how.replace('P', "%").replace('L', &condition).replace('%', &rest)
        };
        let long = Predicate::parse(&text("lists.long"), &both.lists);
        let long = long.unwrap_or_else(|problems| panic!("{}: {problems:?}", text("lists.long")));
        let short = Predicate::parse(&text(&both.short), &Lists::new());
        let short = short.unwrap_or_else(|problems| panic!("{}: {problems:?}", text(&both.short)));
        let canonical = long.to_string();
        prop_assert!(canonical.len() < 2000, "{}", canonical);
        let again = Predicate::parse_canonical(&canonical);
        prop_assert_eq!(again.as_ref(), Ok(&long), "{}", &canonical);
        let by_hash = Matcher::compile(&long);
        let without_items = Matcher::compile(&again.expect("it was parsed"));
        let one_by_one = Matcher::compile(&short);
        let asked = kernel_plan(&long);
        for bytes in &events {
            let mut dice = Dice::new(bytes);
            let kind = dice.pick(KINDS);
            let case = common::event(&mut dice, kind, true);
            let verdict = by_hash.matches(&case.view());
            prop_assert_eq!(verdict, one_by_one.matches(&case.view()), "{} on {:?}", &canonical, &case);
            // Who knows only the hash decides nothing else.
            let guessed = without_items.matches(&case.view());
            prop_assert!(guessed == verdict || guessed == Verdict::Undecided, "{} on {:?}", &canonical, &case);
            if verdict != Verdict::NoMatch {
                prop_assert!(passes(asked.kind(kind), &case.view()), "{} on {:?}", &canonical, &case);
            }
        }
    }
}

/// The filter of a rule with this predicate on every kind.
fn kernel_plan(predicate: &Predicate) -> Plan {
    let mut policy = kernel::policy("true", KINDS);
    policy.rules[0].predicate = predicate.clone();
    Plan::build(std::slice::from_ref(&policy)).0
}

#[test]
fn a_hundred_thousand_paths_are_looked_up_and_stated() {
    let path = |n: usize| format!("/srv/indicators/{:02}/sample-{n:06}.bin", n % 97);
    let text = policy(
        "ioc",
        &quoted((0..ITEMS_MAX).map(path)),
        "\"open\", \"exec\"",
        "has(file.path) && file.path in lists.long || proc.exe.path in lists.long",
        "effect = \"kill\"\n",
    );
    let begun = Instant::now();
    let check = check_file("ioc.toml", &text);
    let took = begun.elapsed();
    let list = list(&check);
    println!(
        "{} bytes of file, {} items, {} bytes in the matcher, read in {took:?}",
        text.len(),
        list.len(),
        list.bytes()
    );
    assert_eq!(list.len(), ITEMS_MAX);
    // The texts, where each ends, and a table that is not half full at worst.
    assert!(
        list.bytes() < ITEMS_MAX * (path(0).len() + 4 + 12),
        "{}",
        list.bytes()
    );
    assert!(check.errors.is_empty(), "{check}");
    let said = check.to_string();
    assert!(
        said.contains("ioc.toml:9:8: warning: every open is sent to user space: lists.long has 100000 items, and it takes a list of at most 4096"),
        "{said}"
    );

    let policies = [check.policy.expect("no errors")];
    let rule = &policies[0].rules[0];
    let matcher = Matcher::compile(&rule.predicate);
    let host = Host {
        id: "h".into(),
        name: "h".into(),
    };
    let batch = Batch {
        images: vec![Image {
            seen: true,
            exe_path: "/usr/bin/cat".into(),
            ..Image::default()
        }],
        ..Batch::default()
    };
    let opened = |path: &str| {
        let event = Event {
            kind: Kind::Open.into(),
            image: 1,
            file: Some(File {
                path: Some(path.to_owned()),
                ..File::default()
            }),
            ..Event::default()
        };
        let view = View {
            host: &host,
            batch: &batch,
            event: &event,
            alert: None,
        };
        match matcher.matches(&view) {
            Verdict::Match => true,
            Verdict::NoMatch => false,
            Verdict::Undecided => panic!("{path} is known"),
        }
    };
    for n in (0..ITEMS_MAX).step_by(997).chain([ITEMS_MAX - 1]) {
        assert!(opened(&path(n)), "{n}");
        assert!(!opened(&format!("{}x", path(n))), "{n}");
        assert!(!opened(&path(n)[1..]), "{n}");
    }
    assert!(!opened(&path(ITEMS_MAX)));

    // Too many for the kernel to judge, on either kind, which is said.
    let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
    assert_eq!((plan.clauses.len(), late.len()), (0, 2));
    let says = |kind: Kind, why: &str| {
        let found = late.iter().find(|late| late.kind == kind);
        let reason = &found.expect("late on each kind").reason;
        assert!(reason.contains(why), "{reason}");
    };
    says(Kind::Exec, "longer than the 8,192 items");
    says(Kind::Open, "only the agent can judge has(file.path)");
    let open = scopes(&policies)
        .into_iter()
        .find(|scope| scope.kind() == Kind::Open);
    let recorded = &open.expect("a scope of each kind").rules[0].predicate;
    assert!(recorded.len() < 400, "{recorded}");
    let recorded = Predicate::parse_canonical(recorded).expect("it parses");
    assert!(covers(&rule.predicate, &recorded));
    let one = Predicate::parse(&format!("file.path == '{}'", path(5)), &Lists::new());
    let one = one.expect("a predicate");
    assert!(covers(
        &one,
        &Predicate::parse("file.path in lists.long", &policies[0].lists).expect("a predicate")
    ));
    assert!(!covers(&one, &recorded), "of a hash nothing is read off");
}

#[test]
fn what_is_too_long_is_refused_with_its_place() {
    let refused = |text: &str| {
        let check = check_file("big.toml", text);
        assert!(check.policy.is_none() && check.errors.len() == 1, "{check}");
        check.to_string()
    };
    let numbers = |count: usize| (0..count).fold(String::new(), |all, n| all + &format!("{n},"));
    let when = "net.dst.port in lists.long";
    let text = policy("p", &numbers(ITEMS_MAX + 1), "\"connect\"", when, "");
    assert_eq!(
        refused(&text),
        "big.toml:5:8: error: the list long has 100001 items, at most 100000 are taken: make it two lists, and write x in lists.A || x in lists.B"
    );
    let check = check_file(
        "big.toml",
        &policy("p", &numbers(ITEMS_MAX), "\"connect\"", when, ""),
    );
    assert_eq!(list(&check).len(), ITEMS_MAX);

    let wide = quoted((0..BYTES_MAX / 1000 + 1).map(|n| format!("{n:01000}")));
    let text = policy("p", &wide, "\"exec\"", "proc.cwd in lists.long", "");
    let said = refused(&text);
    assert!(
        said.starts_with(
            "big.toml:5:8: error: the items of the list long have more than 8388608 bytes"
        ),
        "{said}"
    );

    let said = refused(&policy(
        "p",
        &"1,".repeat(PARTS_MAX),
        "\"exec\"",
        "true",
        "",
    ));
    assert!(said.contains("more than 500000 values and keys"), "{said}");
    let said = refused(&"#".repeat(17 * 1024 * 1024));
    assert!(said.contains("more than 16777216 bytes"), "{said}");

    // Where a long list can stand, and where it cannot.
    let items = quoted((0..2000).map(|n| format!("/a/path/{n}")));
    let said = refused(&policy(
        "p",
        &items,
        "\"open\"",
        "lists.long.exists(d, file.path.startsWith(d))",
        "",
    ));
    assert!(
        said.contains("big.toml:9:9: error: lists.long has 2000 items, too many to unfold"),
        "{said}"
    );
    let nets = quoted((0..1000).map(|n| format!("203.0.{}.{}/30", n / 64, n % 64 * 4)));
    let within = "lists.long.exists(n, cidr(n).containsIP(net.dst.ip))";
    let check = check_file("ok.toml", &policy("p", &nets, "\"connect\"", within, ""));
    assert_eq!(list(&check).len(), 1000);
    let rule = &check.policy.as_ref().expect("no errors").rules[0];
    assert!(rule.predicate.to_string().starts_with("cidr("));
    let said = refused(&policy(
        "p",
        &items,
        "\"open\"",
        "net.dst.port in lists.long",
        "",
    ));
    assert!(
        said.contains("net.dst.port is int, and lists.long holds none"),
        "{said}"
    );
    let said = refused(&policy(
        "p",
        &items,
        "\"connect\"",
        "net.dst.ip in lists.long",
        "",
    ));
    assert!(said.contains("\"/a/path/0\" is no address"), "{said}");
    let said = refused(&policy(
        "p",
        &items.replace("/a/", "/A/"),
        "\"exec\"",
        "proc.exe.path.lowerAscii() in lists.long",
        "",
    ));
    assert!(
        said.contains("never matches: write it in lower case"),
        "{said}"
    );
    let said = refused(&policy(
        "p",
        &items,
        "\"exec\"",
        r#"proc.cwd in lists["long#00"]"#,
        "",
    ));
    assert!(said.contains("write lists.NAME"), "{said}");
    let check = check_file(
        "ok.toml",
        &policy(
            "p",
            &items,
            "\"open\"",
            r#""/a/path/7" in lists.long && file.path == "/x""#,
            "",
        ),
    );
    let rule = &check.policy.expect("no errors").rules[0];
    assert_eq!(rule.predicate.to_string(), "file.path == \"/x\"");
}

#[test]
fn the_lists_of_a_host_are_bounded_together() {
    let of = |n: usize| {
        let items = quoted((0..7000).map(|item| format!("{n}{item:01100}")));
        policy(
            &format!("p{n}"),
            &items,
            "\"exec\"",
            "proc.cwd in lists.long",
            "",
        )
    };
    let files: Vec<(String, String)> = (0..6).map(|n| (format!("{n}.toml"), of(n))).collect();
    let checks = check_files(
        files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str())),
    );
    let taken: usize = checks
        .iter()
        .filter_map(|check| check.policy.as_ref())
        .flat_map(|policy| policy.large_lists())
        .map(List::bytes)
        .sum();
    assert!(taken <= TOTAL_MAX, "{taken}");
    let good: Vec<bool> = checks.iter().map(|check| check.policy.is_some()).collect();
    assert_eq!(good, [true, true, true, true, false, false]);
    let said = checks[4].to_string();
    assert!(
        said.starts_with("4.toml:4:1: error: the lists take ")
            && said.contains("at most 33554432 are taken on a host"),
        "{said}"
    );
}

/// A record of what was collected fits into a batch whatever the rules are, and claims less if
/// it cannot say all.
#[test]
fn a_scope_record_is_bounded() {
    let items = quoted((0..500).map(|n| format!("/a/path/that/is/written/{n}")));
    let mut text = policy("p", &items, "\"open\"", "file.path in lists.long", "");
    for n in 0..200 {
        let _ = write!(
            text,
            "[[rule]]\nid = \"r{n}\"\non = [\"open\"]\nwhen = 'file.path in lists.long && proc.uid == {n}'\n"
        );
    }
    let check = check_file("p.toml", &text);
    let policies = [check
        .policy
        .unwrap_or_else(|| panic!("{}", check.errors[0]))];
    assert!(
        matches!(policies[0].lists["long"], Set::Str(_)),
        "short enough to be written out"
    );
    let scope = scopes(&policies)
        .into_iter()
        .find(|scope| scope.kind() == Kind::Open)
        .expect("a scope of each kind");
    assert_eq!((scope.mode(), scope.rules.len()), (Mode::Filtered, 201));
    let bytes: usize = scope.rules.iter().map(|rule| rule.predicate.len()).sum();
    let unsaid = scope
        .rules
        .iter()
        .filter(|rule| rule.predicate.is_empty())
        .count();
    assert!(bytes <= SCOPE_BYTES && unsaid > 150, "{bytes} {unsaid}");
    assert_eq!(
        scope.reason,
        format!("the predicates of {unsaid} rules are too long for the record")
    );
    assert!(
        Predicate::parse_canonical("").is_err(),
        "nothing is not everything"
    );
}
