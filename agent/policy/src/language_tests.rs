//! What the language takes, what it refuses, and how it says so.

use crate::check::Lists;
use crate::ir::{Predicate, Set};
use crate::limits;

fn lists() -> Lists {
    Lists::from([
        (
            "shells".to_owned(),
            Set::Str(vec!["bash".to_owned(), "sh".to_owned()]),
        ),
        ("ports".to_owned(), Set::Int(vec![22, 443])),
        ("none".to_owned(), Set::Str(Vec::new())),
    ])
}

fn canonical(text: &str) -> String {
    match Predicate::parse(text, &lists()) {
        Ok(predicate) => predicate.to_string(),
        Err(problems) => panic!("{text}: {problems:?}"),
    }
}

/// All faults as `line:column: message`, joined by newlines.
fn faults(text: &str) -> String {
    match Predicate::parse(text, &lists()) {
        Ok(predicate) => panic!("{text} was taken as {predicate}"),
        Err(problems) => {
            assert!(!problems.is_empty());
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }
    }
}

#[test]
fn canonical_texts() {
    for (text, expected) in [
        ("true", "true"),
        ("proc.pid==1", "proc.pid == 1"),
        ("1 < proc.pid", "proc.pid > 1"),
        ("-1 != proc.pid", "proc.pid != -1"),
        ("proc.pid == 0x10", "proc.pid == 16"),
        ("file.create", "file.create"),
        ("file.create == false", "!file.create"),
        ("true != file.create", "!file.create"),
        ("!!file.create", "file.create"),
        ("!(!(proc.pid == 1))", "proc.pid == 1"),
        (
            "proc.pid == 1 && (proc.uid == 0 && proc.gid == 0)",
            "proc.pid == 1 && proc.uid == 0 && proc.gid == 0",
        ),
        (
            "(proc.pid == 1 || proc.uid == 0) && proc.gid == 0",
            "(proc.pid == 1 || proc.uid == 0) && proc.gid == 0",
        ),
        (
            "!(proc.pid == 1 || proc.uid == 0)",
            "!(proc.pid == 1 || proc.uid == 0)",
        ),
        ("true && proc.pid == 1 && 1 == 1", "proc.pid == 1"),
        (
            "proc.exe.name in lists.shells",
            r#"proc.exe.name in ["bash", "sh"]"#,
        ),
        (
            "proc.exe.name in ['b', \"a\", 'b']",
            r#"proc.exe.name in ["a", "b"]"#,
        ),
        ("net.dst.port in lists.ports", "net.dst.port in [22, 443]"),
        ("net.dst.port in lists.none", "net.dst.port in []"),
        ("'bash' in lists.shells", "true"),
        ("'-c' in proc.args", r#""-c" in proc.args"#),
        ("proc.args[0] == 'x'", r#"proc.args[0] == "x""#),
        (
            "'CAP_SYS_ADMIN' in proc.cap_effective && !('cap_bpf' in priv.old.cap_permitted)",
            r#""cap_sys_admin" in proc.cap_effective && !("cap_bpf" in priv.old.cap_permitted)"#,
        ),
        // One of a newer kernel.
        ("63 in proc.cap_effective", "63 in proc.cap_effective"),
        (
            "21 in proc.cap_effective",
            r#""cap_sys_admin" in proc.cap_effective"#,
        ),
        (
            "['CAP_BPF', 'CAP_PERFMON'].all(c, c in proc.cap_effective)",
            r#""cap_bpf" in proc.cap_effective && "cap_perfmon" in proc.cap_effective"#,
        ),
        ("proc.args.size() > 2", "size(proc.args) > 2"),
        ("size(proc.args[1]) == 3", "size(proc.args[1]) == 3"),
        (
            "proc.args.exists(a, a.startsWith('-'))",
            r#"proc.args.exists(x, x.startsWith("-"))"#,
        ),
        (
            "proc.ancestors.all(p, p.exe.name != 'sshd' && p.pid > 1)",
            r#"proc.ancestors.all(x, x.exe.name != "sshd" && x.pid > 1)"#,
        ),
        (
            "lists.shells.exists(s, proc.exe.path.endsWith(s))",
            r#"proc.exe.path.endsWith("bash") || proc.exe.path.endsWith("sh")"#,
        ),
        (
            "['a', 'b'].all(s, proc.args.exists(x, x.contains(s)))",
            r#"proc.args.exists(x, x.contains("a")) && proc.args.exists(x, x.contains("b"))"#,
        ),
        ("lists.none.all(s, proc.exe.name == s)", "true"),
        ("has(proc.exe.path)", "has(proc.exe.path)"),
        ("!has(proc.args)", "!has(proc.args)"),
        (
            "proc.ancestors.exists(a, has(a.exe.path))",
            "proc.ancestors.exists(x, has(x.exe.path))",
        ),
        (
            "cidr('10.1.2.3/8').containsIP(net.dst.ip)",
            r#"cidr("10.0.0.0/8").containsIP(net.dst.ip)"#,
        ),
        (
            "time > timestamp('2026-01-02T03:04:05+01:00')",
            r#"time > timestamp("2026-01-02T02:04:05Z")"#,
        ),
        (r"proc.cwd == r'\xff'", r#"proc.cwd == "\\xff""#),
        (r#"proc.cwd == "a\n\"\t""#, r#"proc.cwd == "a\n\"\t""#),
        ("proc.cwd == '''a'b'''", r#"proc.cwd == "a'b""#),
        ("proc.cwd == '한\\u0007'", r#"proc.cwd == "한\u0007""#),
        ("proc.uid != proc.euid", "proc.uid != proc.euid"),
        (
            "proc.cap_effective == -9223372036854775808",
            "proc.cap_effective == -9223372036854775808",
        ),
        (
            "proc.pid == 1 // the first\n && proc.uid == 0",
            "proc.pid == 1 && proc.uid == 0",
        ),
        (
            "file.path.glob('/etc/*.d/**')",
            r#"file.path.glob("/etc/*.d/**")"#,
        ),
        (
            r"file.path.glob(r'/tmp/\xff?')",
            r#"file.path.glob("/tmp/\\xff?")"#,
        ),
        (
            "file.path.glob('/etc/pass[w]d')",
            r#"file.path == "/etc/passwd""#,
        ),
        (
            "file.path.glob('/etc/{b,a,b}')",
            r#"file.path in ["/etc/a", "/etc/b"]"#,
        ),
        (
            "file.path.glob('/etc/**')",
            r#"file.path.startsWith("/etc/")"#,
        ),
        (
            "lists.shells.exists(s, proc.args.exists(a, a.glob(s)))",
            r#"proc.args.exists(x, x == "bash") || proc.args.exists(x, x == "sh")"#,
        ),
        (
            "['/a/*', '/b/?'].exists(g, file.path.lowerAscii().glob(g))",
            r#"file.path.lowerAscii().glob("/a/*") || file.path.lowerAscii().glob("/b/?")"#,
        ),
        (
            "'x' == proc.exe.name.lowerAscii().lowerAscii()",
            r#"proc.exe.name.lowerAscii() == "x""#,
        ),
        (
            "proc.exe.name.lowerAscii() in lists.shells",
            r#"proc.exe.name.lowerAscii() in ["bash", "sh"]"#,
        ),
        (
            "['SH'].exists(s, proc.exe.name.lowerAscii() != s.lowerAscii())",
            r#"proc.exe.name.lowerAscii() != "sh""#,
        ),
        (
            "proc.ancestors.exists(a, a.exe.name.lowerAscii().startsWith('ng'))",
            r#"proc.ancestors.exists(x, x.exe.name.lowerAscii().startsWith("ng"))"#,
        ),
        (
            "proc.args[0].lowerAscii().matches('(?i)ABC|[^A-Z]É')",
            r#"proc.args[0].lowerAscii().matches("(?i)ABC|[^A-Z]É")"#,
        ),
        ("size(file.path.lowerAscii()) == 3", "size(file.path) == 3"),
        (
            "proc.exe.name.lowerAscii() == file.name.lowerAscii()",
            "proc.exe.name.lowerAscii() == file.name.lowerAscii()",
        ),
        (
            "proc.cwd.matches('^/(tmp|var)/[0-9]+$')",
            r#"proc.cwd.matches("^/(tmp|var)/[0-9]+$")"#,
        ),
    ] {
        let written = canonical(text);
        assert_eq!(written, expected, "{text}");
        let again = Predicate::parse_canonical(&written).expect("canonical text parses");
        assert_eq!(again.to_string(), expected, "{text}");
    }
}

#[test]
fn faults_have_a_place_and_a_remedy() {
    for (text, expected) in [
        (
            "proc.exe.nmae == 'sh'",
            "1:1: unknown field proc.exe.nmae (did you mean proc.exe.name?)",
        ),
        (
            "proc.uid == 0 &&\n  fil.path == 'x'",
            "2:3: unknown field fil.path (did you mean file.path?)",
        ),
        (
            "proc.exe == 'sh'",
            "1:1: proc.exe is a group of fields: write proc.exe.path, proc.exe.name",
        ),
        ("proc.pid.x == 1", "1:1: proc.pid has no member x"),
        ("proc.pid == 'x'", "proc.pid is int, but \"x\" is string"),
        ("proc.pid == '1'", "write the number without quotes"),
        (
            "proc.pid",
            "1:1: proc.pid is int, but a condition is needed here",
        ),
        (
            "'CAP_SYS_ADMN' in proc.cap_effective",
            "1:1: unknown capability \"CAP_SYS_ADMN\" (did you mean cap_sys_admin?): there are cap_chown, cap_dac_override",
        ),
        (
            "'SYS_ADMIN' in proc.cap_permitted",
            "cap_checkpoint_restore",
        ),
        (
            "64 in proc.cap_effective",
            "1:1: 64 is no capability: they count from 0 to 63",
        ),
        (
            "proc.exe.name in proc.cap_effective",
            "proc.cap_effective holds capabilities: write one by its name",
        ),
        ("'cap_bpf' in proc.uid", "proc.uid (int) is no list"),
        (
            "proc.args",
            "1:1: proc.args is a list, but a condition is needed here",
        ),
        (
            "proc.args == 'x'",
            "the list proc.args is compared as a whole",
        ),
        ("proc.pid == 1u", "1:13: all integers are int"),
        ("proc.pid == 1.5", "1:13: numbers are integers"),
        ("proc.cwd == null", "1:13: there is no null"),
        ("proc.cwd == b'x'", "1:13: there are no byte strings"),
        ("proc.pid + 1 == 2", "there is no arithmetic"),
        (
            "proc.pid == 1 ? true : false",
            "? : is not part of predicates",
        ),
        (
            "proc.exe.name.startWith('x')",
            "1:15: unknown member function startWith (did you mean startsWith?)",
        ),
        (
            "startsWith(proc.cwd, 'x')",
            "1:1: startsWith is a member function",
        ),
        ("proc.cwd.startsWith()", "wrong number of arguments"),
        (
            "proc.cwd.startsWith(proc.exe.path)",
            "it has to be a string literal",
        ),
        ("proc.pid.startsWith('x')", "startsWith is for strings"),
        (
            "proc.cwd.matches('(')",
            "1:18: not a regular expression: unclosed group",
        ),
        (
            "proc.cwd.matches('(\\\\pL{50}){50}')",
            "the regular expression is too large",
        ),
        (
            "file.path.glob('/etc/[a')",
            "1:16: the [ at character 6 is not closed",
        ),
        (
            "file.path.glob('/etc/a**')",
            "1:16: ** is a whole component",
        ),
        (
            "proc.pid.glob('1*')",
            "1:1: proc.pid is int: glob is for strings",
        ),
        (
            "file.path.glob(proc.exe.path)",
            "the argument of glob is proc.exe.path, but it has to be a string literal",
        ),
        ("file.path.glob()", "wrong number of arguments: glob"),
        (
            "file.path.globs('/x')",
            "unknown member function globs (did you mean glob?)",
        ),
        ("kind.glob('{open,opne}')", "is no kind of event"),
        (
            "proc.exe.name.lowerAscii() == 'SH'",
            "1:31: proc.exe.name.lowerAscii() has no upper-case letters, so \"SH\" with S in it never matches",
        ),
        (
            "proc.exe.name.lowerAscii() != 'sH'",
            "write it in lower case",
        ),
        (
            "proc.exe.name.lowerAscii() in ['sh', 'Zsh']",
            "1:31: proc.exe.name.lowerAscii() has no upper-case letters, so \"Zsh\"",
        ),
        (
            "proc.cwd.lowerAscii().startsWith('/Users/')",
            "1:34: proc.cwd.lowerAscii() has no upper-case letters",
        ),
        (
            "proc.cwd.lowerAscii().matches('a|b(C)?')",
            "1:31: proc.cwd.lowerAscii() has no upper-case letters, so a regular expression with C",
        ),
        (
            "proc.cwd.lowerAscii().matches('[A-Z]')",
            "so a regular expression with A",
        ),
        (
            "proc.cwd.lowerAscii().glob('/{a,B}/*')",
            "so a glob with B in it never matches",
        ),
        (
            "proc.pid.lowerAscii() == 'a'",
            "1:1: proc.pid is int: lowerAscii is for strings",
        ),
        (
            "proc.cwd.lowerAscii('x') == 'a'",
            "wrong number of arguments: lowerAscii()",
        ),
        (
            "lowerAscii(proc.cwd) == 'a'",
            "1:1: lowerAscii is a member function",
        ),
        (
            "net.dst.ip.lowerAscii() == '::1'",
            "net.dst.ip has no upper-case letters: take lowerAscii() out",
        ),
        ("has(proc.cwd.lowerAscii())", "not a predicate"),
        (
            "proc.exe.name in lists.shell",
            "unknown list lists.shell (did you mean shells?)",
        ),
        (
            "proc.pid in lists.shells",
            "proc.pid is int, but the list holds strings",
        ),
        ("proc.pid in [1, 'a']", "the list mixes strings and ints"),
        (
            "proc.pid in proc.uid",
            "is no list: in needs one at its right",
        ),
        (
            "proc.ancestors.exists(a, a.exe.nam == 'x')",
            "an item of proc.ancestors has no field exe.nam (did you mean exe.name?)",
        ),
        (
            "proc.args.exists(proc, proc == 'x')",
            "proc is the name of a field",
        ),
        (
            "proc.args.exists(a, proc.args.exists(b, a == b))",
            "only one is taken",
        ),
        ("proc.args.map(a, a)", "only exists and all go over lists"),
        (
            "proc.args.exists_one(a, a == 'x')",
            "only exists and all go over lists",
        ),
        (
            "cidr('10.0.0.0').containsIP(net.dst.ip)",
            "1:6: \"10.0.0.0\" is no network",
        ),
        (
            "cidr('10.0.0.0/8').containsIP(proc.cwd)",
            "proc.cwd is no address",
        ),
        (
            "cidr('::ffff:10.0.0.0/104').containsIP(net.dst.ip)",
            "write the IPv4 network",
        ),
        ("net.dst.ip == '10.0.0.0/8'", "is no address"),
        (
            "net.dst.ip == '2001:DB8::1'",
            "holds this address as \"2001:db8::1\"",
        ),
        (
            "kind == 'opne'",
            "\"opne\" is no kind of event (did you mean open?)",
        ),
        ("time > '2026-01-01'", "write timestamp"),
        ("time > timestamp('soon')", "1:18: not a time"),
        ("file.create < true", "conditions have no order"),
        ("has(proc.exe)", "proc.exe is a group of fields"),
        ("{'a': 1}.a == 1", "only fields have members"),
        ("", "1:1: the predicate is empty"),
        ("proc.pid ==", "not a predicate"),
        ("proc.pid = 1", "not a predicate"),
        ("proc.pid == 1)", "not a predicate"),
        ("proc.cwd == 'x", "not a predicate"),
        ("proc.cwd == '한글' && )", "1:21: not a predicate"),
        (
            "proc.cwd == '한글' && proc.pidd == 1",
            "1:21: unknown field proc.pidd (did you mean proc.pid?)",
        ),
    ] {
        let found = faults(text);
        assert!(
            found.contains(expected),
            "{text}\n  gives {found}\n  not   {expected}"
        );
    }
}

#[test]
fn every_fault_is_told_in_one_run() {
    let found = faults("proc.pidd == 1 && proc.uid == 'x' || has(fil.path)");
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn hostile_texts_end_in_an_error() {
    let deep = [
        "(".repeat(2000) + "true" + &")".repeat(2000),
        "!".repeat(4000) + "true",
        "-".repeat(4000) + "1",
        format!("a{}", ".b".repeat(2000)),
        format!("true{}", " && true".repeat(500)),
        format!("1{}", "+1".repeat(2000)),
        format!("true{}", "?true:true".repeat(400)),
        format!("proc.args{}", "[0]".repeat(1000)),
        "[".repeat(4000),
        "{".repeat(4000),
        "f(".repeat(2000),
        "proc.cwd == '".to_owned() + &"x".repeat(5000) + "'",
    ];
    for text in deep {
        faults(&text);
    }
    let unfolding = "[1,2,3,4,5,6,7,8,9,10,11].exists(a, [1,2,3,4,5,6,7,8,9,10,11].exists(b, \
                     [1,2,3,4,5,6,7,8,9,10,11].exists(c, proc.pid == a && proc.uid == b && proc.gid == c)))";
    assert!(faults(unfolding).contains("unfold to more than"));
}

#[test]
fn texts_at_the_limits_are_taken() {
    let nested = "(".repeat(limits::NESTING_MAX) + "true" + &")".repeat(limits::NESTING_MAX);
    assert_eq!(canonical(&nested), "true");
    let logic = format!("proc.pid == 1{}", " && proc.pid == 1".repeat(200));
    assert_eq!(canonical(&logic).matches("&&").count(), 200);
    let large: Vec<String> = (0..4000).map(|n| format!("name{n}")).collect();
    let lists = Lists::from([("large".to_owned(), Set::Str(large))]);
    let predicate = Predicate::parse("proc.exe.name in lists.large", &lists).expect("fits");
    let again = Predicate::parse_canonical(&predicate.to_string()).expect("parses");
    assert!(
        again == predicate,
        "the canonical text of a long list differs"
    );
    let globs = (0..1000).map(|n| format!("/{n}/*")).collect();
    let lists = Lists::from([("globs".to_owned(), Set::Str(globs))]);
    let text = "lists.globs.exists(g, file.path.glob(g))";
    let predicate = Predicate::parse(text, &lists).expect("fits");
    let again = Predicate::parse_canonical(&predicate.to_string()).expect("parses");
    assert!(
        again == predicate,
        "the canonical text of a long list differs"
    );
    let text = "lists.globs.exists(g, file.path.glob(g) && proc.uid == 0 && proc.gid == 0)";
    let problems = Predicate::parse(text, &lists).expect_err("too much");
    assert!(
        problems[0]
            .message
            .contains("with its lists filled in, there are too many &&"),
        "{problems:?}"
    );
    let larger: Vec<String> = (0..9000).map(|n| format!("name{n}")).collect();
    let lists = Lists::from([("larger".to_owned(), Set::Str(larger))]);
    let problems = Predicate::parse("proc.exe.name in lists.larger", &lists).expect_err("too long");
    assert!(problems[0].message.contains("with its lists filled in"));
}
