//! The kernel plan lets through whatever a rule matches or cannot decide, and
//! `covers` is right whenever it says yes.

#[path = "common/mod.rs"]
mod common;
#[path = "common/kernel.rs"]
mod kernel;

use common::{Case, Dice, KINDS};
use kernel::{passes, policy};
use proptest::prelude::*;
use sumun_abi::event::file::ACCESS_WRITE;
use sumun_policy::plan::{CLAUSES_MAX, Clause, KindPlan, Ports, is_life};
use sumun_policy::{Lists, Matcher, Plan, Predicate, Verdict, alternatives, covers};
use sumun_proto::v1::Kind;

/// What the documentation of a clause promises of its lists.
fn well_formed(plan: &KindPlan) {
    let KindPlan::Clauses(clauses) = plan else {
        return;
    };
    assert!((1..=CLAUSES_MAX).contains(&clauses.len()));
    for clause in clauses {
        assert!(!clause.is_everything());
        for list in [
            &clause.path_prefixes,
            &clause.path_exact,
            &clause.exe_names,
            &clause.exe_paths,
        ]
        .into_iter()
        .flatten()
        {
            assert!(!list.is_empty() && list.is_sorted());
        }
        for list in [&clause.src_ports, &clause.dst_ports].into_iter().flatten() {
            assert!(!list.is_empty());
            assert!(list.iter().all(|ports| ports.first <= ports.last));
            assert!(list.windows(2).all(|two| two[0].last < two[1].first));
        }
    }
}

fn case(bytes: &[u8]) -> Case {
    let mut dice = Dice::new(bytes);
    let kind = dice.pick(KINDS);
    common::event(&mut dice, kind, true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_loses_nothing(
        shape in proptest::collection::vec(any::<u8>(), 0..160),
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), 8),
    ) {
        let when = common::predicate(&mut Dice::new(&shape), 4);
        let policy = policy(&when, KINDS);
        let matcher = Matcher::compile(&policy.rules[0].predicate);
        let (plan, _) = Plan::build(std::slice::from_ref(&policy));
        for (_, kind) in &plan.kinds {
            well_formed(kind);
        }
        for bytes in &events {
            let case = case(bytes);
            let view = case.view();
            if matcher.matches(&view) != Verdict::NoMatch {
                let kind = plan.kind(view.kind());
                prop_assert!(passes(kind, &view), "{} on {:?} by {:?}", when, case, kind);
            }
        }
    }

    #[test]
    fn covered_queries_match_only_what_was_recorded(
        query in proptest::collection::vec(any::<u8>(), 0..60),
        recorded in proptest::collection::vec(any::<u8>(), 0..30),
        related in any::<bool>(),
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), 8),
    ) {
        let recorded = common::predicate(&mut Dice::new(&recorded), 1);
        let mut query = common::predicate(&mut Dice::new(&query), 2);
        if related {
            query = format!("{recorded} && {query}");
        }
        let parse = |text: &str| Predicate::parse(text, &Lists::new()).expect("well-typed");
        let (wanted, known) = (parse(&query), parse(&recorded));
        if related && wanted != Predicate::parse("false", &Lists::new()).expect("constant") {
            prop_assert!(covers(&wanted, &known), "{} narrows {}", query, recorded);
        }
        if covers(&wanted, &known) {
            let (wanted, known) = (Matcher::compile(&wanted), Matcher::compile(&known));
            for bytes in &events {
                let case = case(bytes);
                match wanted.matches(&case.view()) {
                    Verdict::Match => prop_assert_eq!(known.matches(&case.view()), Verdict::Match, "{} in {} on {:?}", query, recorded, case),
                    // Of a cut path a suffix or glob may know by the name that it is another one.
                    Verdict::Undecided if recorded.contains("endsWith") || recorded.contains("glob") => {}
                    Verdict::Undecided => prop_assert_ne!(known.matches(&case.view()), Verdict::NoMatch, "{} in {} on {:?}", query, recorded, case),
                    Verdict::NoMatch => {}
                }
            }
        }
    }

    #[test]
    fn the_alternatives_of_a_kind_match_what_the_query_matches(
        query in proptest::collection::vec(any::<u8>(), 0..80),
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), 8),
    ) {
        let query = common::predicate(&mut Dice::new(&query), 3);
        let query = Predicate::parse(&query, &Lists::new()).expect("well-typed");
        let whole = Matcher::compile(&query);
        for bytes in &events {
            let case = case(bytes);
            let view = case.view();
            let all: Vec<_> = alternatives(&query, view.kind())
                .iter()
                .map(|one| Matcher::compile(one).matches(&view))
                .collect();
            let is_matched = whole.matches(&view) == Verdict::Match;
            prop_assert_eq!(all.contains(&Verdict::Match), is_matched, "{:?} on {:?}: {:?}", query, case, all);
        }
    }
}

#[test]
fn narrowing_is_seen() {
    let parse = |text: &str| Predicate::parse(text, &Lists::new()).expect("well-typed");
    for (query, recorded, expected) in [
        (
            "file.path.startsWith('/etc/ssh/')",
            "file.path.startsWith('/etc/')",
            true,
        ),
        (
            "file.path.startsWith('/etc/')",
            "file.path.startsWith('/etc/ssh/')",
            false,
        ),
        (
            "file.path == '/etc/passwd' && proc.uid == 0",
            "file.path.startsWith('/etc/')",
            true,
        ),
        (
            "proc.exe.name == 'sh'",
            "proc.exe.name in ['bash', 'sh']",
            true,
        ),
        (
            "proc.exe.name in ['sh', 'zsh']",
            "proc.exe.name in ['bash', 'sh']",
            false,
        ),
        (
            "proc.exe.name in ['sh']",
            "proc.exe.name in ['bash', 'sh']",
            true,
        ),
        (
            "proc.exe.name == 'sh' || proc.exe.name == 'bash'",
            "proc.exe.name in ['bash', 'sh']",
            true,
        ),
        ("net.dst.port == 22", "net.dst.port < 1024", true),
        (
            "net.dst.port >= 22 && net.dst.port < 100",
            "net.dst.port < 1024",
            true,
        ),
        ("net.dst.port > 22", "net.dst.port < 1024", false),
        (
            "net.dst.ip == '10.1.2.3'",
            "cidr('10.0.0.0/8').containsIP(net.dst.ip)",
            true,
        ),
        (
            "cidr('10.1.0.0/16').containsIP(net.dst.ip)",
            "cidr('10.0.0.0/8').containsIP(net.dst.ip)",
            true,
        ),
        (
            "cidr('10.0.0.0/8').containsIP(net.dst.ip)",
            "cidr('10.1.0.0/16').containsIP(net.dst.ip)",
            false,
        ),
        ("proc.uid == 0", "true", true),
        ("true", "proc.uid == 0", false),
        (
            "file.path == '/a' && file.create",
            "file.create && file.path.startsWith('/')",
            true,
        ),
        (
            "file.create",
            "file.create && file.path.startsWith('/')",
            false,
        ),
        (
            "proc.exe.path.endsWith('/bin/sh')",
            "proc.exe.path.endsWith('sh')",
            true,
        ),
        (
            "proc.exe.path.endsWith('/bin/sh')",
            "proc.exe.path.contains('bin')",
            true,
        ),
        (
            "file.path == '/etc/cron.d/x'",
            "file.path.glob('/etc/*.d/*')",
            true,
        ),
        (
            "file.path in ['/etc/cron.d/x', '/etc/x']",
            "file.path.glob('/etc/*.d/*')",
            false,
        ),
        (
            "file.path.glob('/etc/*.d/*')",
            "file.path.startsWith('/etc/')",
            true,
        ),
        (
            "file.path.glob('/{etc,opt}/*.d/*')",
            "file.path.startsWith('/etc/')",
            false,
        ),
        ("file.path.glob('/{a,b*}')", "has(file.path)", true),
        (
            "file.path.glob('/etc/*.d/*')",
            "file.path.glob('/etc/*.d/**')",
            false,
        ),
        (
            "proc.exe.name == 'SH'",
            "proc.exe.name.lowerAscii() in ['bash', 'sh']",
            true,
        ),
        (
            "proc.exe.name.lowerAscii() == 'sh'",
            "proc.exe.name == 'sh'",
            false,
        ),
        (
            "proc.exe.name.lowerAscii() == 'sh'",
            "proc.exe.name.lowerAscii().startsWith('s') && has(proc.exe.name)",
            true,
        ),
        (
            "file.path.glob('/Etc/*')",
            "file.path.lowerAscii().startsWith('/etc/')",
            true,
        ),
    ] {
        assert_eq!(
            covers(&parse(query), &parse(recorded)),
            expected,
            "{query} in {recorded}"
        );
    }
}

/// Plans as people expect them.
#[test]
fn plans_are_as_narrow_as_the_kernel_can_judge() {
    let plan = |when: &str, kind: Kind| {
        let (plan, warnings) = Plan::build(&[policy(when, &[kind])]);
        assert!(warnings.is_empty(), "{warnings:?}");
        plan.kind(kind).clone()
    };
    let bytes = |items: &[&str]| Some(items.iter().map(|item| item.as_bytes().to_vec()).collect());
    assert_eq!(
        plan(
            "file.access.write && file.path.startsWith('/etc/')",
            Kind::Open
        ),
        KindPlan::Clauses(vec![Clause {
            access_any: Some(ACCESS_WRITE),
            path_prefixes: bytes(&["/etc/"]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(
            "['/etc/', '/tmp/a', '/tmp/', '/bin/x'].exists(p, file.path.startsWith(p)) || file.path == '/tmp/b'",
            Kind::Open
        ),
        KindPlan::Clauses(vec![Clause {
            path_prefixes: bytes(&["/bin/x", "/etc/", "/tmp/"]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(
            "proc.exe.name in ['sh', 'bash'] && net.dst.port in [22, 23, 80]",
            Kind::Connect
        ),
        KindPlan::Clauses(vec![Clause {
            exe_names: bytes(&["bash", "sh"]),
            dst_ports: Some(vec![
                Ports {
                    first: 22,
                    last: 23
                },
                Ports {
                    first: 80,
                    last: 80
                }
            ]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(
            "proc.exe.path.endsWith('/true') && !net.dst.private",
            Kind::Connect
        ),
        KindPlan::Clauses(vec![Clause {
            exe_names: bytes(&["true"]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(r"file.path == '/tmp/\\xff'", Kind::Open),
        KindPlan::Clauses(vec![Clause {
            path_exact: Some(vec![b"/tmp/\xff".to_vec()]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(
            "file.path.glob('/{etc/*.d/**,srv/*,etc/ssh/*,root/**,tmp/x}')",
            Kind::Open
        ),
        KindPlan::Clauses(vec![Clause {
            path_prefixes: bytes(&["/etc/", "/root/", "/srv/"]),
            path_exact: bytes(&["/tmp/x"]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan(r"file.path.glob(r'/tmp/\xff\x*')", Kind::Open),
        KindPlan::Clauses(vec![Clause {
            path_prefixes: Some(vec![b"/tmp/\xff".to_vec()]),
            ..Clause::default()
        }])
    );
    assert_eq!(
        plan("proc.exe.path.glob('/usr/**/{nc,ncat}')", Kind::Connect),
        KindPlan::Clauses(vec![Clause {
            exe_names: bytes(&["nc", "ncat"]),
            ..Clause::default()
        }])
    );
    for wide in [
        "file.path.glob('/{etc,**}/x')",
        "file.path.glob('/*/x')",
        "file.path.startsWith('/')",
        "file.path.glob('*/x')",
        "!file.path.glob('/etc/*')",
        "file.path.lowerAscii().glob('/etc/*')",
        "file.path.lowerAscii() == '/etc/x'",
        "proc.exe.path.glob('/usr/**')",
    ] {
        assert_eq!(plan(wide, Kind::Open), KindPlan::All, "{wide}");
    }
    assert_eq!(plan("proc.uid == 0", Kind::Open), KindPlan::All);
    assert_eq!(
        plan("!file.path.startsWith('/etc/')", Kind::Open),
        KindPlan::All
    );
    assert_eq!(plan("file.path == '/x'", Kind::Rename), KindPlan::All);
    assert_eq!(plan("kind == 'accept'", Kind::Connect), KindPlan::None);

    // A rule on two kinds asks of each only what it can have.
    let both = policy(
        "file.path.startsWith('/etc/') || net.dst.port == 22",
        &[Kind::Open, Kind::Connect],
    );
    let (plan, _) = Plan::build(&[both]);
    assert!(matches!(plan.kind(Kind::Open), KindPlan::Clauses(clauses)
        if clauses.len() == 1 && clauses[0].dst_ports.is_none()));
    assert!(
        matches!(plan.kind(Kind::Connect), KindPlan::Clauses(clauses)
        if clauses.len() == 1 && clauses[0].path_prefixes.is_none())
    );
    assert_eq!(plan.kind(Kind::Accept), &KindPlan::None);
    assert!(
        KINDS
            .iter()
            .filter(|kind| is_life(**kind))
            .all(|kind| plan.kind(*kind) == &KindPlan::All)
    );
}

/// Too many clauses become fewer and looser ones, and it is said.
#[test]
fn a_plan_that_is_too_large_is_widened() {
    let rules: Vec<String> = (0..100)
        .map(|n| format!("file.path.startsWith('/data/{n}/') && proc.exe.name == 'n{n}'"))
        .collect();
    let mut first = policy(&rules[0], &[Kind::Open]);
    for rule in &rules[1..] {
        first.rules.extend(policy(rule, &[Kind::Open]).rules);
    }
    let (plan, warnings) = Plan::build(&[first]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let KindPlan::Clauses(clauses) = plan.kind(Kind::Open) else {
        panic!("not filtered at all");
    };
    assert_eq!(clauses.len(), 1);
    assert_eq!(clauses[0].path_prefixes.as_ref().map(Vec::len), Some(100));
}

#[test]
fn kinds_that_are_sent_whole_are_stored_where_a_rule_matches() {
    let policies = [
        policy("priv.new.euid == 0", &[Kind::Setid]),
        policy("file.new_setuid", &[Kind::Chmod]),
        policy("kind == 'capset'", &[Kind::Ptrace]),
    ];
    let (plan, warnings) = Plan::build(&policies);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(plan.kind(Kind::Setid), &KindPlan::All);
    assert_eq!(plan.kind(Kind::Chmod), &KindPlan::All);
    // It can never match.
    assert_eq!(plan.kind(Kind::Ptrace), &KindPlan::None);
    assert_eq!(plan.kind(Kind::Bpf), &KindPlan::None);
    let scopes = sumun_policy::plan::scopes(&policies);
    let mode = |kind: Kind| {
        let scope = scopes.iter().find(|scope| scope.kind() == kind);
        scope.expect("a scope of each kind").mode()
    };
    use sumun_proto::v1::scope::Mode;
    assert_eq!(mode(Kind::Setid), Mode::Filtered);
    // A path that is the caller's word decides about the alert only.
    assert_eq!(mode(Kind::Chmod), Mode::All);
    assert_eq!(mode(Kind::Bpf), Mode::None);
}

#[test]
fn rules_on_failures_alone_ask_for_nothing_that_succeeds() {
    let policies = [
        policy("result == -1 && proc.uid != 0", &[Kind::Mount, Kind::Setid]),
        policy("result < 0 || file.new_setuid", &[Kind::Chmod]),
        policy("result == -1", &[Kind::Rename, Kind::Ptrace]),
    ];
    let (plan, _) = Plan::build(&policies);
    let asked = |kind| [1, 13].map(|error| plan.failures(kind).has(error));
    assert_eq!(asked(Kind::Mount), [true, false]);
    assert_eq!(asked(Kind::Setid), [true, false]);
    assert_eq!(asked(Kind::Chmod), [true, true]);
    assert_eq!(asked(Kind::Rename), [true, false]);
    // Of these there are none, or all are told.
    assert_eq!(asked(Kind::Ptrace), [false, false]);
    assert_eq!(asked(Kind::Open), [false, false]);
    assert_eq!(plan.kind(Kind::Mount), &KindPlan::None);
    assert_eq!(plan.kind(Kind::Setid), &KindPlan::None);
    assert_eq!(plan.kind(Kind::Chmod), &KindPlan::All);
    assert_eq!(plan.kind(Kind::Rename), &KindPlan::None);
    assert_eq!(plan.kind(Kind::Ptrace), &KindPlan::All);
    // Nobody may take the mounts that succeed for collected.
    let scopes = sumun_policy::plan::scopes(&policies);
    let mode = |kind: Kind| {
        let scope = scopes.iter().find(|scope| scope.kind() == kind);
        scope.expect("a scope of each kind").mode()
    };
    use sumun_proto::v1::scope::Mode;
    assert_eq!(mode(Kind::Mount), Mode::Filtered);
    assert_eq!(mode(Kind::Chmod), Mode::All);
    assert_eq!(mode(Kind::Rename), Mode::Filtered);
}
