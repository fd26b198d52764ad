//! Policy files: what is taken, and where each fault is.

use sumun_proto::v1::scope::Mode as ScopeMode;
use sumun_proto::v1::{Kind, Severity};

use crate::file::{Effect, FileCheck, Mode, Rate, check_file, check_files, loaded};
use crate::ir::Predicate;
use crate::plan::{KindPlan, Plan, scopes};

const WEB: &str = r#"
[policy]
name = "web-tier"
version = 3
mode = "enforce"

[lists]
web_servers = ["nginx", "httpd"]
shells = ["sh", "bash"]
ports = [22, 443]

[[rule]]
id = "web-server-shell"
title = "A web server started a shell"
on = ["exec"]
when = '''
proc.exe.name in lists.shells
  && proc.ancestors.exists(a, a.exe.name in lists.web_servers)
'''
severity = "critical"
attack = ["T1505.003", "T1059"]

[[rule]]
id = "opens"
on = ["open", "close_write"]
when = 'file.path.startsWith("/etc/")'
effect = "record"
"#;

fn errors(text: &str) -> String {
    let check = check_file("p.toml", text);
    assert_eq!(check.policy.is_some(), check.errors.is_empty());
    assert!(!check.errors.is_empty(), "taken: {text}");
    check.to_string()
}

fn errors_tell(text: &str, expected: &str) {
    let errors = errors(text);
    assert!(errors.contains(expected), "{errors}");
}

fn taken(text: &str) -> FileCheck {
    let check = check_file("p.toml", text);
    assert!(check.errors.is_empty(), "{check}");
    check
}

/// A file whose one rule has these lines.
fn rule(lines: &str) -> String {
    format!("[policy]\nname = \"p\"\n\n[[rule]]\nid = \"r\"\n{lines}\n")
}

#[test]
fn a_policy_is_read_whole() {
    let check = taken(WEB);
    assert!(check.warnings.is_empty(), "{check}");
    let policy = check.policy.expect("taken");
    assert_eq!((policy.name.as_str(), policy.version), ("web-tier", 3));
    assert_eq!(policy.mode, Mode::Enforce);
    assert_eq!(policy.lists.len(), 3);
    let [shell, opens] = &policy.rules[..] else {
        panic!("two rules");
    };
    assert_eq!(shell.title, "A web server started a shell");
    assert_eq!(shell.kinds, [Kind::Exec]);
    assert_eq!(shell.effect, Effect::Alert);
    assert_eq!(shell.severity, Severity::Critical);
    assert_eq!(shell.attack, ["T1505.003", "T1059"]);
    assert_eq!(
        shell.predicate.to_string(),
        r#"proc.exe.name in ["bash", "sh"] && proc.ancestors.exists(x, x.exe.name in ["httpd", "nginx"])"#
    );
    assert_eq!(opens.kinds, [Kind::Open, Kind::CloseWrite]);
    assert_eq!(
        (opens.effect, opens.severity),
        (Effect::Record, Severity::Medium)
    );
}

#[test]
fn a_rule_without_when_matches_everything_and_says_what_it_costs() {
    let check = taken(&rule("on = [\"open\", \"exec\"]"));
    assert_eq!(check.warnings.len(), 1, "{check}");
    assert!(
        check.to_string().starts_with(
            "p.toml:4:1: warning: every open is sent to user space: the rule has no condition"
        ),
        "{check}"
    );
    let policy = check.policy.expect("taken");
    assert_eq!(policy.rules[0].predicate, Predicate::everything());
}

#[test]
fn costs_are_told_with_their_reason() {
    for (lines, expected) in [
        (
            "on = [\"open\"]\nwhen = 'proc.uid == 0'",
            "p.toml:7:8: warning: every open is sent to user space: no condition",
        ),
        (
            "on = [\"connect\"]\nwhen = 'net.dst.ip.startsWith(\"10.\")'",
            "every connect is sent",
        ),
        (
            "on = [\"rename\"]\nwhen = 'file.path == \"/x\"'",
            "every rename is sent and stored: its path is the caller's word",
        ),
        (
            "on = [\"unlink\"]\nwhen = 'file.path == \"/x\"'",
            "every unlink is sent",
        ),
        (
            "on = [\"open\"]\nwhen = 'file.path.glob(\"**/id_rsa*\")'",
            "7:8: warning: every open is sent to user space: the glob \"**/id_rsa*\" begins with a wildcard; it judges",
        ),
        (
            "on = [\"open\"]\nwhen = 'file.path.glob(\"/etc/*\") || file.path.glob(\"**/x\")'",
            "every open is sent to user space: the glob \"**/x\" begins with a wildcard",
        ),
        (
            "on = [\"connect\"]\nwhen = 'proc.exe.path.glob(\"/usr/**/n?\")'",
            "every connect is sent to user space: the last name in the glob \"/usr/**/n?\" has a wildcard",
        ),
        (
            "on = [\"open\"]\nwhen = 'proc.exe.name.lowerAscii() == \"sh\"'",
            "every open is sent to user space: proc.exe.name.lowerAscii() is known in the agent only",
        ),
        (
            "on = [\"open\"]\nwhen = '''\nfile.create &&\n  file.path.glob(\"/etc/passwd\")'''",
            "9:18: warning: the glob \"/etc/passwd\" has no wildcard: write file.path == \"/etc/passwd\"",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.name.glob(\"{nc,ncat}\")'",
            "has no wildcard but braces: write proc.exe.name in [",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.path.glob(\"**\")'",
            "matches every value that is there: write has(proc.exe.path)",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.path.glob(\"*.sh\")'",
            "stands for the whole path, which starts with /: write **/ in front",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.path.glob(\"/opt/*/\")'",
            "ends in /, which no path below the root does: write /opt/*/** for everything below",
        ),
        (
            "on = [\"connect\"]\nwhen = 'net.dst.port == 1 && net.dst.ip.glob(\"10.*\")'",
            "7:46: warning: a glob of an address is judged as text: write cidr(\"…\").containsIP(net.dst.ip)",
        ),
        (
            "on = [\"open\", \"connect\"]\nwhen = 'net.dst.port == 22'",
            "the rule can never match on open: take the kind out",
        ),
        (
            "on = [\"open\", \"rename\"]\nwhen = 'file.access.write && file.path == \"/x\"'",
            "the rule can never match on rename: take the kind out",
        ),
        (
            "on = [\"exec\", \"exit\"]\nwhen = 'exit.code == 1'",
            "the rule can never match on exec: take the kind out",
        ),
    ] {
        let check = taken(&rule(lines));
        assert!(check.to_string().contains(expected), "{lines}\n{check}");
    }
    for lines in [
        "on = [\"exec\", \"fork\", \"exit\"]",
        "on = [\"open\"]\nwhen = 'proc.exe.path == \"/x\"'",
        "on = [\"open\"]\nwhen = 'file.create'",
        "on = [\"open\"]\nwhen = 'file.path.glob(\"/etc/*.d/**\")'",
        "on = [\"open\"]\nwhen = 'file.create && file.path.glob(\"**/authorized_keys\")'",
        "on = [\"connect\"]\nwhen = 'proc.exe.path.glob(\"/usr/**/nc\")'",
        "on = [\"exec\"]\nwhen = 'proc.exe.name.lowerAscii() in [\"xmrig\"]'",
        "on = [\"accept\"]\nwhen = 'net.dst.port != 22'",
    ] {
        assert!(taken(&rule(lines)).warnings.is_empty(), "{lines}");
    }
}

#[test]
fn faults_have_their_place_in_the_file() {
    for (text, expected) in [
        ("", "p.toml:1:1: error: the table [policy] is missing"),
        (
            "[policy]\n",
            "p.toml:1:1: error: name is missing in [policy]",
        ),
        (
            "[policy]\nname = 3",
            "p.toml:2:8: error: name is integer, but it has to be a string",
        ),
        ("[policy]\nname = \"a b\"", "has to be one word"),
        (
            "[policy]\nname = \"a\"\nversion = 0",
            "p.toml:3:11: error: version has to be a whole number from 1 on",
        ),
        (
            "[policy]\nname = \"a\"\nversion = -9999999999999999999999",
            "version has to be",
        ),
        (
            "[policy]\nname = \"a\"\nmode = \"enforced\"",
            "unknown mode \"enforced\" (did you mean enforce?)",
        ),
        (
            "[policy]\nnmae = \"a\"",
            "p.toml:2:1: error: unknown key \"nmae\" in [policy] (did you mean name?)",
        ),
        (
            "[policy]\nname = \"a\"\n[selector]\nunit = []",
            "p.toml:4:8: error: unit has 0 values",
        ),
        (
            "[policy]\nname = \"a\"\n[[sequence]]\nid = \"x\"",
            "sequence is not yet supported",
        ),
        (
            "[policy]\nname = \"a\"\n[[threshold]]\nid = \"x\"",
            "threshold is not yet supported",
        ),
        (
            "[policy]\nname = \"a\"\n[profile.exec]\ndefault = \"deny\"",
            "profile is not yet supported",
        ),
        (
            "[policy]\nname = \"a\"\n[rules]\n",
            "unknown key \"rules\" at the top of a policy (did you mean rule?)",
        ),
        (
            "[policy]\nname = \"a\"\n[rule]\nid = \"x\"",
            "rule is no list: write [[rule]]",
        ),
        (
            "[policy]\nname = \"a\"\nname = \"b\"",
            "p.toml:3:1: error: duplicate key",
        ),
        ("[policy\nname", "p.toml:1:8: error: "),
        (
            "[policy]\nname = \"a\"\n[lists]\nx = [1, \"a\"]",
            "x: the list mixes strings and ints",
        ),
        (
            "[policy]\nname = \"a\"\n[lists]\nx = [1.5]",
            "p.toml:4:6: error: an item of x is float",
        ),
        (
            "[policy]\nname = \"a\"\n[lists]\nx-y = [1]",
            "\"x-y\" is no list name",
        ),
        (
            "[policy]\nname = \"a\"\n[lists]\nx = 1",
            "x is integer, but it has to be an array",
        ),
    ] {
        let found = errors(text);
        assert!(
            found.contains(expected),
            "{text}\n  gives {found}\n  not   {expected}"
        );
    }
    for (lines, expected) in [
        ("", "p.toml:4:1: error: on is missing in [[rule]]"),
        ("on = []", "p.toml:6:6: error: on is empty"),
        ("on = \"exec\"", "on is string, but it has to be an array"),
        (
            "on = [\"exce\"]",
            "p.toml:6:7: error: unknown on \"exce\" (did you mean exec?)",
        ),
        (
            "on = [\"exec\"]\neffect = \"capture\"",
            "p.toml:7:10: error: effect \"capture\" is not yet supported",
        ),
        (
            "on = [\"exec\"]\neffect = \"quarantine\"",
            "effect \"quarantine\" is not yet",
        ),
        (
            "on = [\"exec\"]\neffect = \"alrt\"",
            "unknown effect \"alrt\" (did you mean alert?)",
        ),
        (
            "on = [\"exec\"]\nseverity = \"hihg\"",
            "unknown severity \"hihg\" (did you mean high?)",
        ),
        (
            "on = [\"exec\"]\nattack = [\"1059\"]",
            "p.toml:7:11: error: not a technique",
        ),
        (
            "on = [\"exec\"]\nrate = \"10 a minute\"",
            "p.toml:7:8: error: rate \"10 a minute\" is not understood: write how many alerts in which time, like \"10/1m\"",
        ),
        ("on = [\"exec\"]\nrate = 10", "rate is integer"),
        (
            "on = [\"exec\"]\n[[rule.exception]]\nname = \"x\"",
            "p.toml:7:1: error: owner is missing in [[rule.exception]]",
        ),
        (
            "on = [\"exec\"]\n[[rule.exception]]\nname = \"x\"\nowner = \"o\"",
            "p.toml:7:1: error: when is missing in [[rule.exception]]",
        ),
        (
            "on = [\"exec\"]\n[[rule.exception]]\nowner = \"o\"\nwhen = 'true'",
            "name is missing in [[rule.exception]]",
        ),
        (
            "on = [\"exec\"]\n[[rule.exception]]\nname = \" \"\nowner = \"o\"\nwhen = 'true'",
            "p.toml:8:8: error: name has to be some words on one line",
        ),
        (
            "on = [\"exec\"]\nexception = 1",
            "p.toml:7:13: error: exception is no list: write [[rule.exception]]",
        ),
        (
            "on = [\"exec\"]\nwhne = 'true'",
            "unknown key \"whne\" in [[rule]] (did you mean when?)",
        ),
        (
            "on = [\"exec\"]\nwhen = 1",
            "when is integer, but it has to be a string",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.pidd == 1'",
            "p.toml:7:9: error: unknown field proc.pidd (did you mean proc.pid?)",
        ),
        (
            "on = [\"exec\"]\nwhen = \"proc.cwd == \\\"\\u00e9\\\" && x\"",
            "p.toml:7:35: error: unknown field x",
        ),
        (
            "on = [\"exec\"]\nwhen = '''\ntrue\n && x'''",
            "p.toml:9:5: error: unknown field x",
        ),
        (
            "on = [\"exec\"]\nwhen = '''\r\ntrue\r\n && x'''",
            "p.toml:9:5: error: unknown field x",
        ),
        (
            "on = [\"exec\"]\nwhen = \"\"\"\ntrue \\\n   && x\"\"\"",
            "p.toml:9:7: error: unknown field x",
        ),
        (
            "on = [\"exec\"]\nwhen = 'file.path == \"/x\"'",
            "p.toml:7:9: error: file.path is never present on exec: it is on open, close_write, rename, unlink, chmod, chown, truncate, link, symlink, setxattr, map_exec, memfd_create, map_wx, module_load",
        ),
        (
            "on = [\"exec\"]\nwhen = 'true && rule.id == \"x\"'",
            "p.toml:7:17: error: rule.id is never present on exec: it belongs to no kind",
        ),
        (
            "on = [\"exec\"]\nwhen = '\"p/r\" in rules'",
            "p.toml:7:18: error: rules is known only after the rules have been judged",
        ),
        (
            "on = [\"exec\"]\nwhen = 'verdict.outcome == \"killed\"'",
            "p.toml:7:9: error: verdict.outcome is known only after the rules have been judged",
        ),
        ("on = [\"exec\"]\nwhen = ''", "the predicate is empty"),
    ] {
        let found = errors(&rule(lines));
        assert!(
            found.contains(expected),
            "{lines}\n  gives {found}\n  not   {expected}"
        );
    }
}

#[test]
fn a_rate_is_alerts_in_a_time() {
    let rate = |count, seconds: u64| {
        Some(Rate {
            count,
            window_ns: seconds * 1_000_000_000,
        })
    };
    for (text, expected) in [
        ("10/1m", rate(10, 60)),
        ("1/30s", rate(1, 30)),
        ("1000000/24h", rate(1_000_000, 86_400)),
        ("0/1m", None),
        ("1000001/1m", None),
        ("10/25h", None),
        ("10/0s", None),
        ("10/m", None),
        ("10/1", None),
        ("10/1d", None),
        ("+10/1m", None),
        ("10/+1m", None),
        (" 10/1m", None),
        ("10/1m/1m", None),
        ("10/99999999999999999999m", None),
        ("10/18446744073709551615h", None),
        ("", None),
    ] {
        assert_eq!(Rate::parse(text), expected, "{text}");
    }
    let check = taken(&rule("on = [\"exec\"]\nrate = \"10/1m\""));
    assert_eq!(check.policy.expect("taken").rules[0].rate, rate(10, 60));
    assert!(check.warnings.is_empty());
    let check = taken(&rule(
        "on = [\"exec\"]\nrate = \"10/1m\"\neffect = \"record\"",
    ));
    assert!(
        check
            .to_string()
            .contains("p.toml:7:8: warning: a rule with the effect record raises no alert")
    );
}

/// The lines of a rule on exec with an exception, whose `expires` is given.
fn excepting(expires: &str) -> String {
    rule(&format!(
        "on = [\"exec\"]\nwhen = 'proc.exe.name == \"sh\"'\n[[rule.exception]]\nname = \"health check\"\n\
         when = 'proc.args[0] == \"health\"'\nowner = \"sre@customer\"\n{expires}"
    ))
}

#[test]
fn an_exception_is_read_with_the_end_of_its_day() {
    let ns = |text: &str| crate::time::parse(text).expect("a time");
    for (expires, expected) in [
        ("", None),
        ("expires = 2027-01-31", Some(ns("2027-02-01T00:00:00Z"))),
        ("expires = 2027-12-31", Some(ns("2028-01-01T00:00:00Z"))),
        (
            "expires = 2027-01-31T18:00:00.5+09:00",
            Some(ns("2027-01-31T09:00:00.5Z")),
        ),
        ("expires = 9000-01-01", Some(i64::MAX)),
    ] {
        let check = taken(&excepting(expires));
        assert!(check.warnings.is_empty(), "{check}");
        let policy = check.policy.expect("taken");
        let [exception] = &policy.rules[0].exceptions[..] else {
            panic!("one exception");
        };
        assert_eq!(exception.name, "health check");
        assert_eq!(exception.owner, "sre@customer");
        assert_eq!(
            exception.predicate.to_string(),
            "proc.args[0] == \"health\""
        );
        assert_eq!(exception.expires_ns, expected, "{expires}");
    }
    for (expires, expected) in [
        (
            "expires = \"2027-01-31\"",
            "p.toml:12:11: error: expires is string: write a date without quotes",
        ),
        (
            "expires = 2027-01-31T18:00:00",
            "p.toml:12:11: error: expires has no offset from UTC",
        ),
        ("expires = 18:00:00", "expires has no date"),
        ("expries = 2027-01-31", "did you mean expires?"),
        (
            "[[rule.exception]]\nname = \"health check\"\nwhen = 'proc.uid == 0'\nowner = \"o\"",
            "p.toml:13:8: error: the rule has two exceptions \"health check\"",
        ),
        (
            "[[rule.exception]]\nname = \"b\"\nwhen = 'file.path == \"/x\"'\nowner = \"o\"",
            "p.toml:14:9: error: file.path is never present on exec",
        ),
    ] {
        let found = errors(&excepting(expires));
        assert!(found.contains(expected), "{expires}\n{found}");
    }
}

#[test]
fn an_expired_exception_is_a_warning_with_its_place() {
    let policy = taken(&excepting("expires = 2027-01-31"))
        .policy
        .expect("taken");
    let at = |text: &str| {
        let now = crate::time::parse(text).expect("a time");
        let warnings = policy.expiry_warnings(now);
        let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        said.join("\n")
    };
    assert_eq!(at("2027-01-17T23:59:59Z"), "");
    let near = at("2027-01-18T00:00:00Z");
    assert!(
        near.starts_with(
            "12:11: the exception \"health check\" of rule \"r\" expires at 2027-02-01T00:00:00Z"
        ),
        "{near}"
    );
    assert!(at("2027-01-31T23:59:59Z").contains("expires at"));
    let over = at("2027-02-01T00:00:00Z");
    assert!(
        over.contains(
            "expired at 2027-02-01T00:00:00Z: it no longer applies; let sre@customer renew it"
        ),
        "{over}"
    );
}

#[test]
fn an_exception_that_does_nothing_or_everything_is_warned_of() {
    let exception = |effect: &str, when: &str| {
        taken(&rule(&format!(
            "on = [\"exec\", \"open\"]\nwhen = 'kind == \"exec\" || file.path == \"/x\"'\neffect = \"{effect}\"\n\
             [[rule.exception]]\nname = \"e\"\nowner = \"o\"\nwhen = '{when}'"
        )))
        .to_string()
    };
    assert_eq!(exception("alert", "proc.uid == 0"), "");
    assert!(
        exception("alert", "true")
            .contains("p.toml:12:8: warning: the exception lets everything pass")
    );
    assert!(
        exception("alert", "file.path == \"/x\"")
            .contains("p.toml:12:8: warning: the exception can never hold on exec")
    );
    assert!(exception("record", "proc.uid == 0").contains("only mark the event"));
}

#[test]
fn an_exception_never_narrows_what_is_collected() {
    let plain = rule("on = [\"open\"]\nwhen = 'file.path.startsWith(\"/etc/\")'");
    let excepting = format!(
        "{plain}[[rule.exception]]\nname = \"e\"\nowner = \"o\"\nwhen = 'file.path == \"/etc/mtab\"'\n"
    );
    let [one, other] = [plain, excepting].map(|text| [taken(&text).policy.expect("taken")]);
    assert_eq!(other[0].rules[0].exceptions.len(), 1);
    assert_eq!(Plan::build(&one), Plan::build(&other));
    assert_eq!(scopes(&one), scopes(&other));
}

#[test]
fn all_faults_are_told_and_ids_are_unique() {
    let found = errors(
        "[policy]\nname = \"a\"\nx = 1\n[[rule]]\nid = \"r\"\non = [\"exec\"]\nwhen = 'a && b'\n[[rule]]\nid = \"r\"\non = [\"y\"]",
    );
    assert_eq!(found.lines().count(), 4, "{found}");
    let twice = rule("on = [\"exec\"]") + "[[rule]]\nid = \"r\"\non = [\"exec\"]\n";
    assert!(errors(&twice).contains("p.toml:8:6: error: the rule id \"r\" is used twice"));
}

#[test]
fn a_bad_file_does_not_touch_the_good_ones() {
    let good = rule("on = [\"exec\"]");
    let other = good.replace("name = \"p\"", "name = \"q\"");
    let checks = check_files([
        ("a.toml", good.as_str()),
        ("b.toml", "[policy"),
        ("c.toml", good.as_str()),
        ("d.toml", other.as_str()),
    ]);
    let loaded: Vec<bool> = checks.iter().map(|check| check.policy.is_some()).collect();
    assert_eq!(loaded, [true, false, false, true]);
    assert!(
        checks[2]
            .to_string()
            .contains("c.toml:2:1: error: the policy name \"p\" is already used by a.toml")
    );
}

#[test]
fn a_file_that_becomes_faulty_keeps_its_policy() {
    let good = rule("on = [\"exec\"]");
    let other = good.replace("name = \"p\"", "name = \"q\"");
    let before = loaded(
        &check_files([("a.toml", good.as_str()), ("b.toml", other.as_str())]),
        &[],
    );
    assert_eq!(before.len(), 2);
    let after = check_files([("a.toml", "[policy"), ("c.toml", "[policy")]);
    let names: Vec<String> = loaded(&after, &before)
        .into_iter()
        .map(|policy| policy.name)
        .collect();
    assert_eq!(names, ["p"], "a keeps, b is gone, c never was");
    let taken_over = check_files([("a.toml", "[policy"), ("c.toml", good.as_str())]);
    let paths: Vec<String> = loaded(&taken_over, &before)
        .into_iter()
        .map(|policy| policy.path)
        .collect();
    assert_eq!(paths, ["c.toml"]);
}

/// The policy that the documentation shows is one, and so are its predicates.
#[test]
fn the_documented_policy_is_taken() {
    const PAGE: &str = include_str!("../../../docs/policy.md");
    let (_, rest) = PAGE
        .split_once("```toml\n")
        .expect("the page shows a policy");
    let (policy, _) = rest.split_once("```").expect("the block ends");
    let check = taken(policy);
    assert!(check.warnings.is_empty(), "{check}");
    assert_eq!(check.policy.expect("taken").rules.len(), 2);
    let found = errors(&policy.replace("proc.exe.name in", "proc.exe.nmae in"));
    assert!(found.contains("unknown field proc.exe.nmae (did you mean proc.exe.name?)"));
}

#[test]
fn scopes_say_what_is_stored() {
    let policies = [taken(WEB).policy.expect("taken")];
    let (plan, _) = Plan::build(&policies);
    let scopes = scopes(&policies);
    assert_eq!(scopes.len(), sumun_proto::catalogue::KINDS.len());
    for scope in &scopes {
        let expected = match scope.kind() {
            Kind::Fork | Kind::Exec | Kind::Exit => ScopeMode::All,
            Kind::Open | Kind::CloseWrite => ScopeMode::Filtered,
            _ => ScopeMode::None,
        };
        assert_eq!(scope.mode(), expected, "{:?}", scope.kind());
        assert_eq!(
            matches!(plan.kind(scope.kind()), KindPlan::None),
            expected == ScopeMode::None
        );
        if expected == ScopeMode::Filtered {
            assert_eq!(scope.rules.len(), 1);
            assert_eq!(scope.rules[0].policy, "web-tier");
            assert_eq!(scope.rules[0].predicate, r#"file.path.startsWith("/etc/")"#);
        }
    }
    let all = [taken(&rule("on = [\"open\", \"rename\"]"))
        .policy
        .expect("taken")];
    let open = &super::scopes(&all)[3];
    assert_eq!((open.kind(), open.mode()), (Kind::Open, ScopeMode::All));
    // A rename's name is the caller's word, so every one is stored.
    let some = [
        taken(&rule("on = [\"rename\"]\nwhen = 'file.path == \"/x\"'"))
            .policy
            .expect("taken"),
    ];
    let rename = &super::scopes(&some)[5];
    assert_eq!(
        (rename.kind(), rename.mode()),
        (Kind::Rename, ScopeMode::All)
    );
}

#[test]
fn what_a_host_needs_is_killed_by_force_only() {
    let kill = |on: &str, when: &str, more: &str| {
        rule(&format!(
            "on = [{on}]\nwhen = '{when}'\neffect = \"kill\"\n{more}"
        ))
    };
    for (when, what) in [
        (
            r#"proc.exe.name == "kubelet""#,
            "the kubelet on exec (/usr/bin/kubelet)",
        ),
        (
            r#"proc.exe.name in ["nc", "containerd"]"#,
            "a container runtime on exec",
        ),
        (
            r#"proc.exe.path.startsWith("/usr/bin/") && proc.uid == 0"#,
            "the agent on exec",
        ),
        (
            r#"proc.exe.path.glob("/usr/sbin/*") || proc.args.exists(a, a == "x")"#,
            "the first process on exec (/usr/sbin/init)",
        ),
        (
            r#"proc.exe.name.matches("^ssh")"#,
            "sshd on exec (/usr/sbin/sshd)",
        ),
        (
            r#"!(proc.exe.name in ["ls", "cat"])"#,
            "the first process on exec",
        ),
    ] {
        errors_tell(
            &kill("\"exec\"", when, ""),
            &format!("the rule would kill {what}"),
        );
        taken(&kill("\"exec\"", when, "force = true"));
    }
    errors_tell(
        &kill("\"connect\"", r#"proc.exe.path == "/usr/sbin/sshd""#, ""),
        "the rule would kill sshd on connect",
    );
    let but = |more: &str| {
        format!(
            "[[rule.exception]]\nname = \"mine\"\nowner = \"me\"\nwhen = 'proc.exe.name == \"kubelet\"'\n{more}"
        )
    };
    let kubelet = r#"proc.exe.path in ["/opt/bin/kubelet", "/opt/bin/miner"]"#;
    taken(&kill("\"exec\"", kubelet, &but("")));
    // When that has expired, it would be killed.
    errors_tell(
        &kill("\"exec\"", kubelet, &but("expires = 2099-01-01")),
        "the rule would kill the kubelet on exec (/opt/bin/kubelet)",
    );
    // What depends on anything else is about what happened.
    for when in [
        r#"proc.exe.path.startsWith("/usr/") && proc.args.exists(a, a == "-x")"#,
        r#"proc.exe.path.startsWith("/usr/") && has(container.id)"#,
        r#"proc.exe.path.startsWith("/usr/") && proc.ancestors.exists(a, a.exe.name == "nginx")"#,
        r#"proc.exe.path.startsWith("/usr/") && proc.uid != 0"#,
        r#"proc.exe.path.startsWith("/opt/app/")"#,
    ] {
        taken(&kill("\"exec\"", when, ""));
    }
}

#[test]
fn a_rule_may_kill_if_it_says_what() {
    let check = taken(&rule(
        "on = [\"exec\", \"fork\", \"connect\"]\nwhen = 'proc.exe.name == \"nc\"'\neffect = \"kill\"\nrate = \"10/1m\"",
    ));
    assert!(check.warnings.is_empty(), "{check}");
    let rules = check.policy.expect("taken").rules;
    assert_eq!((rules[0].effect, rules[0].force), (Effect::Kill, false));

    for (lines, expected) in [
        (
            "on = [\"exec\"]\neffect = \"kill\"",
            "p.toml:4:1: error: the rule would kill on every exec, whatever the process is: write a condition that says which, or force = true if every one is meant",
        ),
        (
            "on = [\"exec\"]\nwhen = 'kind == \"exec\"'\neffect = \"kill\"",
            "p.toml:7:8: error: the rule would kill on every exec",
        ),
        (
            "on = [\"open\", \"exec\"]\nwhen = 'kind == \"exec\" || file.path == \"/x\"'\neffect = \"kill\"",
            "the rule would kill on every exec",
        ),
        (
            "on = [\"exec\"]\nwhen = '!(kind in [\"open\"])'\neffect = \"kill\"\nforce = false",
            "the rule would kill on every exec",
        ),
        (
            "on = [\"connect\"]\nwhen = 'proc.uid >= 0'\neffect = \"kill\"",
            "the rule would kill on every connect",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.uid == 0 || proc.uid != 0'\neffect = \"kill\"",
            "the rule would kill on every exec",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.path.glob(\"/**\")'\neffect = \"kill\"",
            "the rule would kill on every exec",
        ),
        (
            "on = [\"exec\"]\nwhen = 'has(proc.exe.path) && has(proc.pid)'\neffect = \"kill\"",
            "the rule would kill on every exec",
        ),
        (
            "on = [\"open\"]\nwhen = 'file.path.startsWith(\"/\")'\neffect = \"kill\"",
            "the rule would kill on every open",
        ),
        (
            "on = [\"exec\", \"exit\"]\nwhen = 'proc.exe.name == \"nc\"'\neffect = \"kill\"",
            "p.toml:6:6: error: there is nothing to kill on exit",
        ),
        (
            "on = [\"exec\"]\neffect = \"kill\"\nforce = \"yes\"",
            "p.toml:8:9: error: force is string, but it has to be true or false",
        ),
    ] {
        let found = errors(&rule(lines));
        assert!(found.contains(expected), "{lines}\n{found}");
    }

    let check = taken(&rule("on = [\"exec\"]\neffect = \"kill\"\nforce = true"));
    assert!(check.warnings.is_empty(), "{check}");
    assert!(check.policy.expect("taken").rules[0].force);
}

#[test]
fn a_rule_kills_the_process_or_its_lineage_and_says_so() {
    let lines = |whom: &str| {
        format!(
            "on = [\"exec\", \"ptrace\"]\nwhen = 'proc.exe.name == \"nc\"'\neffect = \"kill\"\nkill = \"{whom}\""
        )
    };
    for (whom, lineage) in [("process", false), ("lineage", true)] {
        let enforced = rule(&lines(whom)).replace("\n\n", "\nmode = \"enforce\"\n\n");
        let check = taken(&enforced);
        assert!(check.warnings.is_empty(), "{check}");
        let policy = check.policy.expect("taken");
        assert_eq!(policy.rules[0].lineage, lineage);
        let reasons = crate::explain(&[policy], 0);
        let said = |row: &crate::explain::Explained| {
            row.reason
                .contains("its descendants are killed with it by the agent")
        };
        assert!(
            reasons.iter().all(|row| said(row) == lineage),
            "{reasons:?}"
        );
    }
    let found = errors(&rule(&lines("tree")));
    assert!(found.contains("kill \"tree\""), "{found}");
    let found = taken(&rule("on = [\"exec\"]\nkill = \"lineage\"")).to_string();
    assert!(
        found.contains("p.toml:7:8: warning: kill changes nothing"),
        "{found}"
    );
}

#[test]
fn a_rule_may_isolate_if_it_says_what_and_is_told_what_that_is() {
    let narrow =
        "on = [\"exec\", \"exit\"]\nwhen = 'proc.exe.name == \"nc\"'\neffect = \"isolate\"";
    for (more, lasts) in [("", None), ("\nfor = \"1h\"", Some(3600))] {
        let check = taken(&rule(&format!("{narrow}{more}")));
        let said = check.to_string();
        assert!(said.contains("p.toml:8:10: warning: in enforce the rule cuts the host off"));
        assert!(said.contains("NOT covered: forwarded packets"), "{said}");
        let rule = &check.policy.expect("taken").rules[0];
        assert_eq!(rule.effect, Effect::Isolate);
        assert_eq!(rule.lasts.map(|lasts| lasts.as_secs()), lasts);
    }
    for (lines, expected) in [
        (
            "on = [\"exec\"]\neffect = \"isolate\"".to_owned(),
            "p.toml:4:1: error: the rule would cut the host off on every exec",
        ),
        (
            format!("{narrow}\nfor = \"1s\""),
            "p.toml:9:7: error: for \"1s\" is no time from 10 seconds to 366 days",
        ),
        (
            "on = [\"exec\"]\nfor = \"1h\"".to_owned(),
            "p.toml:7:7: error: for says how long a rule with the effect isolate does so",
        ),
    ] {
        let found = errors(&rule(&lines));
        assert!(found.contains(expected), "{lines}\n{found}");
    }
}

#[test]
fn what_a_rule_that_kills_may_not_be_thought_to_do_is_told() {
    for (lines, expected) in [
        (
            "on = [\"exec\"]\nforce = true",
            "p.toml:7:9: warning: force changes nothing",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.args[0] == \"nc\"'\neffect = \"kill\"",
            "p.toml:7:8: warning: on exec the process is killed late, once the agent has judged the event, and not before it starts: only the agent can judge proc.args[0] == \"nc\"",
        ),
        (
            "on = [\"exec\"]\nwhen = 'proc.exe.name == \"nc\"'\neffect = \"kill\"\n[[rule.exception]]\nname = \"x\"\nowner = \"o\"\nwhen = 'proc.cwd == \"/\"'",
            "p.toml:7:8: warning: on exec the process is killed late, once the agent has judged the event, and not before it starts: only the agent can judge the exception \"x\": proc.cwd == \"/\"",
        ),
    ] {
        let found = taken(&rule(lines)).to_string();
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(found.contains(expected), "{lines}\n{found}");
    }
}
