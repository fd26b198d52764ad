//! What the kernel judges alone, what it leaves to the agent and why.

use super::*;
use crate::doors::Doors;
use crate::file::check_file;

/// A policy of rules that kill on execs, each with exceptions: (predicate, expiry).
fn policy(mode: &str, rules: &[(&str, &[(&str, &str)])]) -> CheckedPolicy {
    policy_on("exec", mode, rules)
}

fn policy_on(on: &str, mode: &str, rules: &[(&str, &[(&str, &str)])]) -> CheckedPolicy {
    let mut file = format!("[policy]\nname = \"p\"\nmode = {mode:?}\n");
    for (number, (when, exceptions)) in rules.iter().enumerate() {
        file.push_str(&format!(
            "[[rule]]\nid = \"r{number}\"\non = [{on:?}]\neffect = \"kill\"\nforce = true\nwhen = '''\n{when}'''\n"
        ));
        for (number, (when, expires)) in exceptions.iter().enumerate() {
            file.push_str(&format!(
                "[[rule.exception]]\nname = \"e{number}\"\nowner = \"o\"\nwhen = '''\n{when}'''\n{expires}\n"
            ));
        }
    }
    let check = check_file("p.toml", &file);
    assert!(check.errors.is_empty(), "{file}\n{check}");
    check.policy.expect("no errors")
}

/// The clauses of one rule in words, or the reason why there are none.
fn told(when: &str, exceptions: &[(&str, &str)]) -> String {
    told_on("exec", when, exceptions)
}

fn told_on(on: &str, when: &str, exceptions: &[(&str, &str)]) -> String {
    let policy = policy_on(on, "enforce", &[(when, exceptions)]);
    let (plan, late) = VerdictPlan::build(&[policy], &Doors::default(), 0);
    if let [late] = &late[..] {
        assert_eq!(plan, VerdictPlan::default());
        return late.reason.clone();
    }
    let atoms = |word: u64, sign: &str| {
        let set = (0..plan.atoms.len()).filter(|number| word >> number & 1 == 1);
        set.map(|number| format!("{sign}{}", atom(&plan.atoms[number])))
            .collect::<Vec<_>>()
    };
    let mut clauses: Vec<String> = plan
        .clauses
        .iter()
        .map(|clause| [atoms(clause.need, ""), atoms(clause.forbid, "!")].concat())
        .map(|mut parts| {
            parts.sort();
            parts.join(" ")
        })
        .collect();
    clauses.sort();
    clauses.join(" | ")
}

fn atom(atom: &Atom) -> String {
    let list = |of: &[Vec<u8>]| {
        let texts = of.iter().map(|text| String::from_utf8_lossy(text));
        texts.collect::<Vec<_>>().join(",")
    };
    let texts = |texts: &Texts| {
        [
            ("", &texts.names),
            ("=", &texts.paths),
            ("^", &texts.prefixes),
        ]
        .iter()
        .filter(|(_, of)| !of.is_empty())
        .map(|(sign, of)| format!("{sign}{}", list(of)))
        .collect::<Vec<_>>()
        .join(";")
    };
    match atom {
        Atom::Exe(of) => format!("exe({})", texts(of)),
        Atom::Ancestor(of) => format!("anc({})", texts(of)),
        Atom::File(of) => format!("file({})", texts(of)),
        Atom::To(of) => format!("to({})", texts(of)),
        Atom::Setting(of) => format!("setting({})", texts(of)),
        Atom::Value(of) => format!("value({})", texts(of)),
        Atom::Flag(bit) => format!("flag({bit})"),
        Atom::Scope(scope) if scope.presumed => format!("scope?({})", scope.asked),
        Atom::Scope(scope) => format!("scope({})", scope.asked),
        Atom::Net { end, nets } => {
            let nets = nets.iter().map(|(net, bits)| format!("{net}/{bits}"));
            format!("{end:?}({})", nets.collect::<Vec<_>>().join(","))
        }
        Atom::Number { id, range } if range.1 == u32::MAX => format!("{id:?}({}..)", range.0),
        Atom::Number { id, range } => format!("{id:?}({}..{})", range.0, range.1),
    }
}

/// Wherever it stands: in the selector, the condition or an exception.
#[test]
fn what_is_asked_of_workloads_is_one_question() {
    for (when, exceptions, expected) in [
        (
            "'app=cart' in k8s.labels && proc.exe.name == 'nc' && k8s.namespace == 'shop'",
            &[][..],
            "exe(nc) scope(\"app=cart\" in k8s.labels && k8s.namespace == \"shop\")",
        ),
        (
            "proc.exe.name == 'nc' && (unit == 'a' || container.image.matches('x') || proc.uid == 0)",
            &[],
            "Uid(0..0) exe(nc) | exe(nc) scope(unit == \"a\" || container.image.matches(\"x\"))",
        ),
        // What is absent is neither, so this is another question than the one without the negation.
        (
            "proc.exe.name == 'nc' && !(k8s.namespace.startsWith('shop'))",
            &[],
            "exe(nc) scope(!k8s.namespace.startsWith(\"shop\"))",
        ),
        (
            "proc.exe.name == 'nc'",
            &[("k8s.namespace == 'kube-system' && cloud.region == 'r'", "")],
            "!scope(k8s.namespace == \"kube-system\" && cloud.region == \"r\") exe(nc)",
        ),
        // Of two things at once only the agent knows both.
        (
            "unit == proc.exe.name",
            &[],
            "only the agent can judge unit == proc.exe.name",
        ),
    ] {
        assert_eq!(told(when, exceptions), expected, "{when}");
    }
}

#[test]
fn a_selector_is_a_question_that_all_rules_share() {
    for (pending, expected) in [("alert", "scope("), ("inside", "scope?(")] {
        let rule = |id: &str, when: &str| {
            format!(
                "[[rule]]\nid = {id:?}\non = [\"exec\", \"connect\"]\neffect = \"kill\"\nwhen = '''{when}'''\n"
            )
        };
        let file = format!(
            "[policy]\nname = \"p\"\nmode = \"enforce\"\n[selector]\npending = {pending:?}\nk8s = {{ labels = {{ app = \"cart\" }} }}\n{}{}",
            rule("a", "proc.exe.name == 'nc'"),
            rule("b", "proc.exe.name == 'ncat' || proc.uid == 7"),
        );
        let check = check_file("p.toml", &file);
        assert!(check.errors.is_empty(), "{check}");
        let policies = [check.policy.expect("no errors")];
        let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
        assert_eq!(late, []);
        let scopes: Vec<usize> = (0..plan.atoms.len())
            .filter(|number| matches!(plan.atoms[*number], Atom::Scope(_)))
            .collect();
        let [scope] = scopes[..] else {
            panic!("{plan:?}");
        };
        assert!(atom(&plan.atoms[scope]).starts_with(expected), "{plan:?}");
        assert!(
            plan.clauses
                .iter()
                .all(|clause| clause.need >> scope & 1 == 1)
        );
        // It is said what holds while nobody knows.
        let reasons: Vec<String> = crate::explain::explain(&policies, 0)
            .into_iter()
            .map(|row| row.reason)
            .collect();
        let says = format!("(selector.pending = {pending:?})");
        assert!(
            reasons.iter().all(|reason| reason.contains(&says)),
            "{reasons:?}"
        );
    }
}

#[test]
fn what_the_kernel_judges() {
    for (when, expected) in [
        ("proc.exe.name == 'nc'", "exe(nc)"),
        ("proc.exe.name != 'nc'", "!exe(nc)"),
        ("!(proc.exe.path in ['/b', '/a'])", "!exe(=/a,/b)"),
        ("proc.exe.path.startsWith('/tmp/')", "exe(^/tmp/)"),
        ("proc.exe.path.glob('/tmp/**')", "exe(^/tmp/)"),
        // What a shorter prefix includes is left out.
        (
            "proc.exe.path.glob('/{tmp,tmp/x,dev/shm}/**') || proc.exe.path == '/tmp/a' || proc.exe.name == 'nc'",
            "exe(nc;^/dev/shm/,/tmp/)",
        ),
        (
            "proc.exe.path.glob('/{bin/nc,tmp/**}')",
            "exe(=/bin/nc;^/tmp/)",
        ),
        // A path that is the bare name does not end so.
        ("proc.exe.path.endsWith('/nc')", "!exe(=nc) exe(nc)"),
        ("!proc.exe.path.endsWith('/nc')", "!exe(nc) | exe(=nc)"),
        (
            "proc.exe.path.glob('**/{nc,ncat}')",
            "!exe(=nc,ncat) exe(nc,ncat) | exe(=nc,ncat)",
        ),
        // A byte that is no text, and a backslash, are what they stand for.
        (r"proc.exe.name == r'a\\b'", r"exe(a\b)"),
        (r"proc.exe.path == r'/\xff'", "exe(=/\u{fffd})"),
        (
            "proc.ancestors.exists(a, a.exe.name == 'sshd' || a.exe.path.startsWith('/opt/'))",
            "anc(sshd;^/opt/)",
        ),
        (
            "!proc.ancestors.exists(a, a.exe.name in ['x', 'y'])",
            "!anc(x,y)",
        ),
        ("proc.ancestors.all(a, a.exe.name != 'sshd')", "!anc(sshd)"),
        (
            "proc.ancestors.all(a, a.exe.name != 'x' && !(a.exe.path == '/y'))",
            "!anc(x;=/y)",
        ),
        ("proc.uid == 0", "Uid(0..0)"),
        ("proc.gid != 0", "!Gid(0..0)"),
        ("proc.euid in [0, 1, 2, 7]", "!Euid(3..6) !Euid(8..)"),
        ("!(proc.egid in [3, 5])", "!Egid(3..3) !Egid(5..5)"),
        ("1000 <= proc.uid && proc.uid < 2000", "Uid(1000..1999)"),
        ("proc.uid > 4294967294", "!Uid(0..4294967294)"),
        ("proc.uid == 4294967295", "!Uid(0..4294967294)"),
        (
            "'CAP_SYS_ADMIN' in proc.cap_effective",
            "Capability(21)(1..1)",
        ),
        (
            "!('cap_net_raw' in proc.cap_effective) && proc.exe.name == 'nc'",
            "!Capability(13)(1..1) exe(nc)",
        ),
        (
            "['CAP_BPF', 'CAP_PERFMON'].exists(c, c in proc.cap_effective)",
            "Capability(38)(1..1) | Capability(39)(1..1)",
        ),
        (
            "'CAP_SYS_ADMIN' in proc.cap_permitted",
            "only the agent can judge \"cap_sys_admin\" in proc.cap_permitted (of capabilities, it knows those that are effective at the event)",
        ),
        // Never, and always.
        ("proc.uid == 4294967296", ""),
        ("proc.uid < 0 || proc.uid == -1 || proc.uid in [-1]", ""),
        ("proc.exe.name == 'nc' && proc.uid >= 0", "exe(nc)"),
        ("proc.exe.name == 'nc' && proc.uid != -1", "exe(nc)"),
        ("proc.exe.name == 'nc' && kind == 'exec'", "exe(nc)"),
        ("proc.exe.name == 'nc' && kind != 'exec'", ""),
        // What is never true leaves the rest to be judged, whatever stands beside it.
        (
            "kind == 'fork' && proc.args[0] == 'x' || proc.uid == 0",
            "Uid(0..0)",
        ),
        (
            "(proc.exe.name == 'a' || proc.uid == 0) && !(proc.exe.name == 'a')",
            "!exe(a) Uid(0..0)",
        ),
        (
            "(proc.exe.name == 'a' || proc.uid == 0) && (proc.exe.name == 'b' || proc.gid == 0)",
            "Gid(0..0) Uid(0..0) | Gid(0..0) exe(a) | Uid(0..0) exe(b) | exe(a) exe(b)",
        ),
        (
            "proc.uid == 0 || proc.uid == 0 && proc.exe.name == 'a'",
            "Uid(0..0)",
        ),
    ] {
        assert_eq!(told(when, &[]), expected, "{when}");
    }
    // Fields that an exec never has are errors: neither true nor, under `!`, false.
    let mut both = policy("enforce", &[("proc.exe.name == 'a'", &[])]);
    for (when, clauses) in [
        ("file.path == '/x' || proc.uid == 0", 1),
        ("!(file.path == '/x')", 0),
        ("has(file.path)", 0),
        ("!has(file.path)", 1),
    ] {
        both.rules[0].predicate = crate::Predicate::parse(when, &crate::Lists::new()).expect(when);
        let (plan, late) = VerdictPlan::build(std::slice::from_ref(&both), &Doors::default(), 0);
        assert_eq!((plan.clauses.len(), late.len()), (clauses, 0), "{when}");
    }
}

#[test]
fn what_the_kernel_judges_of_files_and_connections() {
    for (on, when, expected) in [
        ("open", "file.path == '/etc/shadow'", "file(=/etc/shadow)"),
        ("close_write", "file.path in ['/b', '/a']", "file(=/a,/b)"),
        (
            "open",
            "file.path.startsWith('/etc/') && file.access.write",
            "file(^/etc/) flag(2)",
        ),
        (
            "open",
            "file.name != 'x' && !file.create && file.trunc == false",
            "!file(x) !flag(256) !flag(512)",
        ),
        (
            "open",
            "file.path.glob('**/id_rsa') || file.access.read",
            "!file(=id_rsa) file(id_rsa) | file(=id_rsa) | flag(1)",
        ),
        (
            "open",
            "file.path.glob('/{etc,srv/*}')",
            "only the agent can judge file.path.glob(\"/{etc,srv/*}\") (of globs it knows /folder/** and **/name)",
        ),
        (
            "open",
            "file.path == '/x' && !(proc.exe.name == 'dpkg') && proc.uid == 0",
            "!exe(dpkg) Uid(0..0) file(=/x)",
        ),
        // The same words of the file and of the executable are two questions.
        (
            "open",
            "file.path == '/x' || proc.exe.path == '/x'",
            "exe(=/x) | file(=/x)",
        ),
        // A close has no such flags.
        ("connect", "net.dst.port == 22", "DstPort(22..22)"),
        (
            "connect",
            "net.dst.port in [80, 443] && net.proto == 'tcp'",
            "!DstPort(0..79) !DstPort(444..) !DstPort(81..442) Protocol(6..6)",
        ),
        (
            "connect",
            "net.dst.ip == '10.0.0.1' || cidr('10.1.0.0/16').containsIP(net.dst.ip)",
            "Dst(10.0.0.1/32,10.1.0.0/16)",
        ),
        ("accept", "!(net.src.ip in ['::1'])", "!Src(::1/128)"),
        ("connect", "net.dst.private && net.proto == 'sctp'", ""),
        (
            "connect",
            "!net.dst.private && net.proto != 'sctp'",
            "!Dst(10.0.0.0/8,100.64.0.0/10,127.0.0.0/8,169.254.0.0/16,172.16.0.0/12,192.168.0.0/16,::1/128,fc00::/7,fe80::/10)",
        ),
        // Only what was denied has one, and of that the kernel has no record.
        ("open", "result == 0 || file.path == '/x'", "file(=/x)"),
        ("exec", "!(result > -5) && proc.uid == 0", ""),
        ("connect", "result == 0", "Result(2147483648..2147483648)"),
        ("connect", "result < 0", "Result(0..2147483647)"),
        (
            "connect",
            "result in [-111, 0]",
            "!Result(0..2147483536) !Result(2147483538..2147483647) !Result(2147483649..)",
        ),
        // Whatever it is, it has to be there; and what it cannot be is never, also not under `!`.
        ("connect", "result < 0 || result >= 0", "Result(0..)"),
        ("connect", "!(result > 99999999999)", "Result(0..)"),
        ("connect", "result < 0 && result > 0", "!Result(0..)"),
        (
            "connect",
            "net.source == 'object'",
            "only the agent can judge net.source",
        ),
        (
            "open",
            "file.deleted",
            "only the agent can judge file.deleted",
        ),
        (
            "open",
            "file.mode == 33188",
            "only the agent can judge file.mode",
        ),
    ] {
        let said = told_on(on, when, &[]);
        let same = said == expected
            || expected.contains("agent can judge") && said.starts_with(expected)
            || expected.starts_with('(') && said.ends_with(expected);
        assert!(same, "{on}: {when}: {said}");
    }
}

#[test]
fn execs_have_room_first_and_one_clause_stands_for_several_kinds() {
    let files: Vec<String> = (0..64)
        .map(|n| format!("file.path == '/{n}' || proc.exe.name == 'n{n}'"))
        .collect();
    let files: Vec<(&str, &[(&str, &str)])> =
        files.iter().map(|when| (when.as_str(), &[][..])).collect();
    let execs: Vec<(&str, &[(&str, &str)])> = vec![("proc.exe.name == 'a'", &[])];
    let policies = [
        policy_on("open", "enforce", &files),
        policy_on("exec", "enforce", &execs),
    ];
    let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
    assert!(
        late.iter()
            .all(|late| late.kind == Kind::Open && late.rule < 64)
    );
    assert_eq!((plan.atoms.len(), late.len()), (63, 33));
    assert_eq!(plan.clauses.last().map(|clause| clause.rule), Some(64));
    // Names that opens ask for are kept with each process, the one that only the exec asks for is not.
    assert_eq!(plan.kept().count_ones(), 31);

    let mut both = policy("enforce", &execs);
    both.rules[0].kinds = vec![Kind::Exec, Kind::Fork, Kind::Open, Kind::Connect];
    let (plan, late) = VerdictPlan::build(&[both], &Doors::default(), 0);
    assert_eq!(late, []);
    let [clause] = plan.clauses[..] else {
        panic!("one clause, not {plan:?}");
    };
    let kinds = [Kind::Exec, Kind::Open, Kind::Connect].map(kind_bit);
    // All rules of this file say `force`.
    assert_eq!(clause.kinds, kinds.iter().sum::<u32>() | FORCED);
    assert_eq!(plan.kept(), 1);
}

#[test]
fn what_only_the_agent_judges_is_left_to_it_with_the_reason() {
    let long = format!("proc.exe.name == '{}'", "a".repeat(255));
    let fits = format!("proc.exe.name == '{}'", "a".repeat(254));
    assert!(told(&fits, &[]).starts_with("exe(aaa"));
    for (when, expected) in [
        (
            "proc.exe.name == 'nc' && proc.args[0] == 'x'",
            "only the agent can judge proc.args[0] == \"x\"",
        ),
        (
            "proc.exe.name == 'nc' || has(proc.auid)",
            "only the agent can judge has(proc.auid)",
        ),
        (
            "proc.exe.name.lowerAscii() == 'nc'",
            "only the agent can judge proc.exe.name.lowerAscii() == \"nc\" (it knows no lower case)",
        ),
        (
            "proc.exe.path.endsWith('bin/nc')",
            "(of how a path ends, it knows a whole last name like \"/sh\")",
        ),
        (
            "proc.exe.path.endsWith('nc')",
            "(of how a path ends, it knows a whole last name like \"/sh\")",
        ),
        ("proc.exe.path.endsWith('/')", "(the text is empty)"),
        ("proc.exe.path.glob('/usr/*/nc')", "(of globs it knows"),
        (
            "proc.exe.path.glob('/{usr/*,bin/nc}')",
            "(of globs it knows",
        ),
        (
            "proc.exe.name.startsWith('n')",
            "(it knows what a path starts with, not a name)",
        ),
        (
            "proc.exe.name.matches('^n')",
            "(it knows names and paths by ==",
        ),
        ("proc.exe.name < 'n'", "(it knows names and paths by =="),
        (
            "proc.exe.name.contains('n')",
            "(it knows names and paths by ==",
        ),
        (
            "proc.exe.path.startsWith('/')",
            "(every path starts with it)",
        ),
        (
            "proc.exe.path.startsWith('')",
            "(every path starts with it)",
        ),
        // Within an escape, part of a character, no text at all, a byte that ends texts.
        (
            r"proc.exe.path.startsWith(r'/a\xf')",
            "(the text ends within a character",
        ),
        (
            r"proc.exe.path.startsWith(r'/a\xff')",
            "(the text ends within a character",
        ),
        (
            r"proc.exe.path.startsWith(r'/a\')",
            "(the text ends within a character",
        ),
        (
            r"proc.exe.name == r'\q'",
            "(the text is one that no bytes have)",
        ),
        (
            r"proc.exe.name in ['a', r'\x41']",
            "(the text is one that no bytes have)",
        ),
        (r"proc.exe.name == r'a\x00'", "(the text has a byte 0)"),
        ("proc.exe.name == ''", "(the text is empty)"),
        ("!(proc.exe.name in [])", "(the list is empty)"),
        (long.as_str(), "(the text has more than 254 bytes)"),
        (
            "proc.exe.name == proc.parent.exe.name",
            "only the agent can judge proc.exe.name == proc.parent.exe.name",
        ),
        (
            "proc.uid != proc.pid",
            "only the agent can judge proc.uid != proc.pid",
        ),
        (
            "proc.ancestors.exists(a, a.pid == 1)",
            "only the agent can judge proc.ancestors.exists(",
        ),
        (
            "proc.ancestors.exists(a, a.exe.name != 'x')",
            "(it knows names and paths by ==",
        ),
        (
            "proc.ancestors.all(a, a.exe.name == 'x')",
            "(it knows names and paths by ==",
        ),
        (
            "proc.ancestors.exists(a, a.exe.name == 'x' && a.exe.path.startsWith('/y/'))",
            "(of an ancestor, it knows conditions joined by ||)",
        ),
        (
            "proc.ancestors.exists(a, a.exe.name == 'x' || proc.exe.name == 'x')",
            "only the agent can judge proc.ancestors.exists(",
        ),
        (
            "proc.ancestors.exists(a, a.exe.path.endsWith('/x'))",
            "(it knows names and paths by ==",
        ),
        (
            "'-c' in proc.args",
            "only the agent can judge \"-c\" in proc.args",
        ),
        (
            "proc.exe.deleted",
            "only the agent can judge proc.exe.deleted",
        ),
    ] {
        let reason = told(when, &[]);
        assert!(
            reason.contains("only the agent can judge"),
            "{when}: {reason}"
        );
        assert!(reason.contains(expected), "{when}: {reason}");
    }
    let many = "proc.args[0] == 'x' || ".repeat(40) + "proc.args[0] == 'y'";
    assert!(told(&many, &[]).len() < 300);
}

#[test]
fn what_is_of_no_image_is_neither_in_it_nor_not() {
    assert_eq!(told("proc.exe.in_image", &[]), "InImage(1..1)");
    assert_eq!(told("!proc.exe.in_image", &[]), "InImage(0..0)");
    let open = told_on("open", "!proc.exe.in_image", &[]);
    assert!(
        open.contains("(the kernel knows it when the program is executed)"),
        "{open}"
    );
}

#[test]
fn an_exception_is_part_of_the_clauses_until_it_expires() {
    let name = "proc.exe.name == 'nc'";
    assert_eq!(told(name, &[("proc.uid == 0", "")]), "!Uid(0..0) exe(nc)");
    assert_eq!(
        told(
            name,
            &[
                ("proc.uid == 0 && proc.gid == 5", ""),
                ("proc.ancestors.exists(a, a.exe.name == 'ci')", "")
            ]
        ),
        "!Gid(5..5) !anc(ci) exe(nc) | !Uid(0..0) !anc(ci) exe(nc)"
    );
    // It lets everything pass: nothing is killed.
    assert_eq!(told(name, &[("kind == 'exec'", "")]), "");
    // One that can never hold lets nothing pass.
    assert_eq!(
        told(name, &[("kind == 'fork' && proc.args[0] == 'x'", "")]),
        "exe(nc)"
    );
    assert_eq!(
        told(name, &[("proc.args[0] == 'x'", "")]),
        "only the agent can judge the exception \"e0\": proc.args[0] == \"x\""
    );
    let expiring = [(
        name,
        &[
            ("proc.uid == 0", "expires = 1970-01-02T00:00:00Z"),
            ("proc.args[0] == 'x'", "expires = 1970-01-03T00:00:00Z"),
        ][..],
    )];
    let policies = [policy("enforce", &expiring)];
    let day = 24 * 60 * 60 * 1_000_000_000_i64;
    for (now, late, next) in [
        (0, true, Some(day)),
        (day, true, Some(2 * day)),
        (2 * day - 1, true, Some(2 * day)),
        (2 * day, false, None),
    ] {
        let (plan, left) = VerdictPlan::build(&policies, &Doors::default(), now);
        assert_eq!(
            (left.len() == 1, plan.clauses.is_empty()),
            (late, late),
            "{now}"
        );
        assert_eq!(next_expiry(&policies, now), next);
    }
}

#[test]
fn rules_are_numbered_over_all_policies_and_only_those_that_kill_in_enforce_are_taken() {
    let rule: (&str, &[(&str, &str)]) = ("proc.exe.name == 'a'", &[]);
    let other: (&str, &[(&str, &str)]) = ("proc.exe.name == 'b' && proc.uid == 0", &[]);
    let mut alert = policy("enforce", &[rule, rule]);
    alert.rules[0].effect = Effect::Alert;
    alert.rules[1].kinds = vec![Kind::Fork];
    let policies = [
        alert,
        policy("observe", &[rule]),
        policy("enforce", &[rule, other, rule]),
    ];
    let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
    assert_eq!(late, []);
    let rules: Vec<usize> = plan.clauses.iter().map(|clause| clause.rule).collect();
    assert_eq!(rules, [3, 4, 5]);
    assert_eq!(plan.atoms.len(), 3, "equal questions are one");
    assert_eq!(plan.clauses[0].need, plan.clauses[2].need);
}

#[test]
fn what_does_not_fit_is_left_to_the_agent_and_what_comes_later_may_fit_again() {
    let rules: Vec<String> = (0..70)
        .map(|n| format!("proc.exe.name == 'n{n}'"))
        .collect();
    let rules: Vec<(&str, &[(&str, &str)])> =
        rules.iter().map(|when| (when.as_str(), &[][..])).collect();
    let (plan, late) = VerdictPlan::build(&[policy("enforce", &rules)], &Doors::default(), 0);
    assert_eq!((plan.atoms.len(), plan.clauses.len()), (64, 64));
    assert_eq!(
        late.iter().map(|late| late.rule).collect::<Vec<_>>(),
        [64, 65, 66, 67, 68, 69]
    );
    assert_eq!(
        late[0].reason,
        "with the rules before it, there would be more than 64 clauses in the kernel"
    );

    // Two questions in each clause: they are used up first.
    let pairs: Vec<String> = (0..40)
        .map(|n| format!("proc.exe.name == 'n{n}' && proc.exe.path == '/n{n}'"))
        .collect();
    let pairs: Vec<(&str, &[(&str, &str)])> =
        pairs.iter().map(|when| (when.as_str(), &[][..])).collect();
    let (plan, late) = VerdictPlan::build(&[policy("enforce", &pairs)], &Doors::default(), 0);
    assert_eq!(
        (plan.atoms.len(), plan.clauses.len(), late.len()),
        (64, 32, 8)
    );
    assert!(
        late[0].reason.contains("more than 64 questions"),
        "{late:?}"
    );

    let ids: Vec<String> = (0..34).map(|n| format!("proc.uid == {}", 2 * n)).collect();
    let mut ids: Vec<(&str, &[(&str, &str)])> =
        ids.iter().map(|when| (when.as_str(), &[][..])).collect();
    ids.push(("proc.exe.name == 'a' && proc.uid == 2", &[]));
    let (plan, late) = VerdictPlan::build(&[policy("enforce", &ids)], &Doors::default(), 0);
    assert_eq!((plan.atoms.len(), late.len()), (33, 2));
    assert!(
        late[0].reason.contains("more than 32 ranges of numbers"),
        "{late:?}"
    );

    // A rule that is too large by itself says so.
    let factor =
        |n: usize| format!("(proc.exe.path == '/{n}' || proc.uid == {n} || proc.gid == {n})");
    let product: Vec<String> = (1..5).map(factor).collect();
    assert_eq!(
        told(&product.join(" && "), &[]),
        "its conditions and exceptions need more than 64 clauses in the kernel"
    );
    let product: Vec<String> = (1..30).map(factor).collect();
    assert!(told(&product.join(" && "), &[]).starts_with("its conditions"));
}

#[test]
fn the_first_clause_that_holds_decides_and_an_unknown_answer_never_kills() {
    let plan = VerdictPlan {
        atoms: ["a", "b", "c"]
            .map(|name| {
                Atom::Exe(Texts {
                    names: vec![name.into()],
                    ..Texts::default()
                })
            })
            .into(),
        clauses: vec![
            VerdictClause {
                rule: 4,
                kinds: kind_bit(Kind::Exec) | kind_bit(Kind::Open),
                need: 0b001,
                forbid: 0b010,
            },
            VerdictClause {
                rule: 7,
                kinds: kind_bit(Kind::Exec),
                need: 0b100,
                forbid: 0,
            },
        ],
    };
    let judge_on = |kind: Kind, answers: [Option<bool>; 3]| {
        plan.judge(kind, |atom| {
            let at = plan.atoms.iter().position(|known| known == atom);
            answers[at.expect("one of the plan's")]
        })
    };
    let judge = |answers| judge_on(Kind::Exec, answers);
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(judge_on(Kind::Open, [yes, no, yes]), Outcome::Kills(4));
    assert_eq!(judge_on(Kind::Open, [yes, None, yes]), Outcome::Undecided);
    assert_eq!(judge_on(Kind::Connect, [yes, no, yes]), Outcome::Nothing);
    assert_eq!(judge([yes, no, yes]), Outcome::Kills(4));
    assert_eq!(judge([yes, None, yes]), Outcome::Kills(7));
    assert_eq!(judge([yes, None, no]), Outcome::Undecided);
    assert_eq!(judge([None, no, no]), Outcome::Undecided);
    assert_eq!(judge([None, yes, no]), Outcome::Nothing);
    assert_eq!(judge([no, None, None]), Outcome::Undecided);
    assert_eq!(judge([no, None, no]), Outcome::Nothing);
    assert_eq!(
        VerdictPlan::default().judge(Kind::Exec, |_| None),
        Outcome::Nothing
    );
}

/// The clauses of a rule that denies, as [`told`], where every kind has a door.
fn denied(on: &str, when: &str) -> String {
    let text = format!(
        "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [{on:?}]\nwhen = \"\"\"{when}\"\"\"\neffect = \"deny\"\nforce = true\n"
    );
    let check = check_file("p.toml", &text);
    let policy = check.policy.unwrap_or_else(|| panic!("{:?}", check.errors));
    let doors = Doors::of_host(DENIABLE.map(|kind| (kind, Ok(()))).to_vec());
    let (plan, late) = VerdictPlan::build(&[policy], &doors, 0);
    if let [late] = &late[..] {
        return late.reason.clone();
    }
    let [clause] = plan.clauses[..] else {
        panic!("one clause, not {:?}", plan.clauses);
    };
    assert_eq!(
        clause.kinds,
        denied_bit(
            DENIABLE
                .into_iter()
                .find(|kind| sumun_proto::catalogue::kind_name(*kind) == on)
                .expect("a kind")
        )
    );
    let atoms = |word: u64, sign: &str| {
        let set = (0..plan.atoms.len()).filter(|number| word >> number & 1 == 1);
        set.map(|number| format!("{sign}{}", atom(&plan.atoms[number])))
            .collect::<Vec<_>>()
    };
    let mut parts = [atoms(clause.need, ""), atoms(clause.forbid, "!")].concat();
    parts.sort();
    parts.join(" ")
}

#[test]
fn what_can_be_denied_is_known_before_the_call() {
    for (on, when, expected) in [
        ("connect", "net.dst.port == 25", "DstPort(25..25)"),
        (
            "connect",
            "net.proto == 'udp' && net.dst.ip == '1.2.3.4'",
            "Dst(1.2.3.4/32) Protocol(17..17)",
        ),
        ("connect", "net.proto == '132'", "Protocol(132..132)"),
        (
            "sysctl",
            "sysctl.name == 'kernel.core_pattern'",
            "setting(=kernel/core_pattern)",
        ),
        // A dot within a name is written as a slash, as sysctl(8) does.
        (
            "sysctl",
            "sysctl.name.startsWith('net.ipv4.conf.eth0/1.')",
            "setting(^net/ipv4/conf/eth0.1/)",
        ),
        (
            "sysctl",
            "sysctl.value.startsWith('/') && proc.uid == 0",
            "Uid(0..0) value(^/)",
        ),
        (
            "rename",
            "file.path == '/a' || file.path.startsWith('/b/')",
            "file(=/a;^/b/)",
        ),
        ("rename", "file.new_path.startsWith('/etc/')", "to(^/etc/)"),
        ("exec", "proc.exe.name == 'nc'", "exe(nc)"),
        ("ptrace", "target.exe.name == 'sshd'", "file(sshd)"),
        (
            "mount",
            "mount.target.startsWith('/proc/')",
            "file(^/proc/)",
        ),
        ("pivot_root", "mount.target == '/new'", "file(=/new)"),
        ("truncate", "file.path == '/a'", "file(=/a)"),
        (
            "chmod",
            "file.path.startsWith('/etc/') && proc.uid == 0",
            "Uid(0..0) file(^/etc/)",
        ),
        ("chown", "file.name == 'shadow'", "file(shadow)"),
    ] {
        assert_eq!(denied(on, when), expected, "{when}");
    }
    for (on, when, reason) in [
        (
            "connect",
            "result == -1",
            "result is not known before the call is made",
        ),
        (
            "connect",
            "net.src.port == 1",
            "net.src.port is not known before",
        ),
        (
            "connect",
            "'-c' in proc.args",
            "before the call is made, the kernel cannot judge",
        ),
        ("exec", "proc.euid == 0", "proc.euid is not known before"),
        (
            "chmod",
            "file.new_setuid",
            "before the call is made, the kernel cannot judge file.new_setuid",
        ),
        ("open", "file.create", "file.create is not known before"),
        (
            "sysctl",
            "sysctl.name.glob('kernel.*')",
            "it knows ==, in and startsWith",
        ),
    ] {
        let told = denied(on, when);
        assert!(told.contains(reason), "{when}: {told}");
    }
}

#[test]
fn what_no_door_denies_is_not_in_the_plan() {
    let text = "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [\"connect\", \"bind\", \"setxattr\"]\nwhen = \"proc.uid == 7\"\neffect = \"deny\"\n";
    let check = check_file("p.toml", text);
    let policies = [check.policy.expect("a policy")];
    let doors = Doors::of_host(vec![
        (Kind::Connect, Ok(())),
        (Kind::Bind, Err("no root".to_owned())),
    ]);
    let (plan, late) = VerdictPlan::build(&policies, &doors, 0);
    assert_eq!(late, []);
    let kinds: Vec<u32> = plan.clauses.iter().map(|clause| clause.kinds).collect();
    assert_eq!(kinds, [denied_bit(Kind::Connect)]);
    let uid = |_: &Atom| Some(true);
    assert_eq!(plan.judge_before(Kind::Connect, uid), Outcome::Kills(0));
    assert_eq!(
        plan.judge(Kind::Connect, uid),
        Outcome::Nothing,
        "nobody is killed"
    );
    let modes = |doors: &Doors| {
        let of = |kind: &Kind| {
            let rule = (0, &policies[0].rules[0]);
            crate::explain::effective(policies[0].mode, rule, *kind, doors, &[])
        };
        [Kind::Connect, Kind::Bind, Kind::Setxattr].map(|kind| of(&kind))
    };
    let said = modes(&doors).map(|(mode, reason)| format!("{} {reason}", mode.name()));
    assert_eq!(
        said,
        [
            "deny ",
            "alert not denied: no root",
            "alert not denied: nothing can deny setxattr"
        ]
    );
    // Nobody tried: nothing is promised.
    let untried = modes(&Doors::default()).map(|(mode, _)| mode.name());
    assert_eq!(untried, ["alert"; 3]);
}
