//! Hostile text: a predicate or a policy ends in an error with a place or in
//! something that can be used; never in a panic or an overflow of the stack.
//!
//! Run for longer with `cargo bolero test` on the target's name.

use std::sync::LazyLock;

use sumun_policy::plan::{KindPlan, scopes};
use sumun_policy::{Lists, Matcher, Plan, Predicate, Problem, check_file, covers};

/// Pieces of predicates; a byte of input chooses one.
const PIECES: &[&str] = &[
    "proc.exe.name",
    "proc.exe.path",
    "proc.args",
    "proc.ancestors",
    "file.path",
    "net.dst.ip",
    "net.dst.port",
    "file.create",
    "proc.pid",
    "time",
    "kind",
    "lists.names",
    "lists.numbers",
    "lists.long",
    "lists.long_numbers",
    "lists[\"",
    "lists[\"long#aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]",
    "proc",
    "x",
    "x.exe.name",
    "'a'",
    "\"/etc/\"",
    "r'\\x'",
    "'''b'''",
    "'\\xff'",
    "1",
    "-1",
    "0x7",
    "9223372036854775808",
    "1u",
    "1.5",
    "null",
    "true",
    "false",
    "b'x'",
    "'open'",
    "'10.0.0.1'",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    ":",
    "?",
    "!",
    "-",
    "+",
    "&&",
    "||",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    " in ",
    "=",
    "&",
    "|",
    "'",
    "\"",
    "`",
    "\\",
    "//",
    "\n",
    " ",
    "한",
    ".startsWith(",
    ".endsWith(",
    ".contains(",
    ".matches(",
    ".glob(",
    ".lowerAscii()",
    "file.path.glob('/a/{b,[!c]}*/**')",
    "'/x/**'",
    "{a,b}",
    "*",
    ".exists(x, ",
    ".all(x, ",
    ".size()",
    "size(",
    "has(",
    "cidr('10.0.0.0/8').containsIP(",
    "timestamp('2026-01-01T00:00:00Z')",
    "proc.args[0] == ",
    "proc.exe.name == 'sh'",
    "net.dst.port in [22, 80]",
    "'-c' in proc.args",
    "proc.args.exists(x, x == 'a')",
    "proc.ancestors.all(x, x.pid > 1)",
    "[1, 2].exists(x, ",
    "file.path in lists.long",
    "!(net.dst.port in lists.long_numbers)",
];

fn soup(bytes: &[u8], pieces: &[&str]) -> String {
    bytes
        .iter()
        .map(|byte| pieces[*byte as usize % pieces.len()])
        .collect()
}

/// Short lists, and two that are too long to be written out.
const LISTS: &str = "names = [\"a\", \"b\"]\nnumbers = [1, 2]\n";

static LONG: LazyLock<String> = LazyLock::new(|| {
    let texts: Vec<String> = (0..2500).map(|n| format!("'/a/{n}'")).collect();
    let numbers: Vec<String> = (0..4000).map(|n| (n * 3).to_string()).collect();
    format!(
        "long = [{}]\nlong_numbers = [{}]\n",
        texts.join(", "),
        numbers.join(", ")
    )
});

static ALL: LazyLock<Lists> = LazyLock::new(|| {
    let text = format!("[policy]\nname = \"p\"\n[lists]\n{LISTS}{}", *LONG);
    let policy = check_file("lists.toml", &text).policy.expect("a policy");
    assert_eq!(policy.large_lists().count(), 2);
    policy.lists
});

fn placed(text: &str, problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason: {text:?}");
    for problem in problems {
        assert!(!problem.message.is_empty());
        assert!(
            text.is_char_boundary(problem.offset),
            "{text:?} {problem:?}"
        );
        let line = text
            .split('\n')
            .nth(problem.line - 1)
            .expect("the line is there");
        assert!(
            problem.column <= line.chars().count() + 1,
            "{text:?} {problem:?}"
        );
    }
}

fn predicate(text: &str) {
    match Predicate::parse_canonical(text) {
        Ok(predicate) => used(text, &predicate),
        Err(problems) => placed(text, &problems),
    }
    match Predicate::parse(text, &ALL) {
        Ok(predicate) => used(text, &predicate),
        Err(problems) => placed(text, &problems),
    }
}

fn used(text: &str, predicate: &Predicate) {
    let canonical = predicate.to_string();
    assert_eq!(
        Predicate::parse_canonical(&canonical).as_ref(),
        Ok(predicate),
        "{text:?}"
    );
    assert!(covers(predicate, predicate), "{canonical}");
    let _ = Matcher::compile(predicate);
}

#[test]
fn predicates() {
    bolero::check!()
        .with_iterations(3000)
        .with_max_len(300)
        .for_each(|bytes: &[u8]| {
            predicate(&String::from_utf8_lossy(bytes));
            predicate(&soup(bytes, PIECES));
            // Long chains and deep nests of one piece.
            if let [first, second, ..] = bytes {
                let piece = PIECES[*first as usize % PIECES.len()];
                predicate(&piece.repeat(*second as usize * 4));
            }
        });
}

/// Pieces of policy files.
const LINES: &[&str] = &[
    "[policy]\n",
    "name = \"p\"\n",
    "version = 2\n",
    "mode = \"observe\"\n",
    "[lists]\n",
    "names = [\"a\"]\n",
    "numbers = [1, 2]\n",
    "[[rule]]\n",
    "id = \"r\"\n",
    "id = \"s\"\n",
    "on = [\"exec\"]\n",
    "on = [\"open\", \"connect\"]\n",
    "on = [\"rename\"]\n",
    "on = []\n",
    "when = 'proc.exe.name in lists.names'\n",
    "when = 'file.path.startsWith(\"/etc/\")'\n",
    "when = '''\nproc.pid == 1\n&& nope'''\n",
    "when = \"proc.cwd == \\\"\\u00e9\\\" && nope\"\n",
    "when = \"\"\"\\\n  x \"\"\"\n",
    "when = 'net.dst.port == 22 || proc.uid == 0'\n",
    "effect = \"record\"\n",
    "effect = \"kill\"\n",
    "severity = \"high\"\n",
    "attack = [\"T1059\"]\n",
    "[selector]\n",
    "rate = \"10/1m\"\n",
    "[[rule.exception]]\n",
    "x.y.z = {a = 1}\n",
    "= ",
    "\"",
    "'''",
    "[",
    "]",
    "{",
    "}",
    "#",
    "\r\n",
    "한 = 1\n",
    "[a.b]\n",
    "on = 3\n",
    "title = \"\\uD800\"\n",
];

fn policy(text: &str) {
    let check = check_file("fuzz.toml", text);
    assert_eq!(check.policy.is_some(), check.errors.is_empty());
    if !check.errors.is_empty() {
        placed(text, &check.errors);
    }
    if !check.warnings.is_empty() {
        placed(text, &check.warnings);
    }
    let Some(policy) = check.policy else {
        return;
    };
    let (plan, _) = Plan::build(std::slice::from_ref(&policy));
    for scope in scopes(std::slice::from_ref(&policy)) {
        for rule in &scope.rules {
            // One that is too long for the record is not in it.
            if !rule.predicate.is_empty() {
                Predicate::parse_canonical(&rule.predicate).expect("scope records parse");
            }
            assert_ne!(plan.kinds.len(), 0);
        }
        if scope.rules.is_empty() && scope.mode() == sumun_proto::v1::scope::Mode::None {
            assert_eq!(plan.kind(scope.kind()), &KindPlan::None);
        }
    }
}

#[test]
fn policies() {
    bolero::check!()
        .with_iterations(3000)
        .with_max_len(300)
        .for_each(|bytes: &[u8]| {
            policy(&String::from_utf8_lossy(bytes));
            policy(&soup(bytes, LINES));
            let whole = "[policy]\nname = \"p\"\n[lists]\nnames = [\"a\"]\nnumbers = [1]\n[[rule]]\nid = \"r\"\n";
            policy(&(whole.to_owned() + &soup(bytes, LINES)));
            let when = soup(bytes, PIECES);
            policy(&format!("{whole}on = [\"exec\", \"open\", \"connect\"]\nwhen = {when:?}\n"));
            // A long list takes longer to read: not every time.
            if bytes.first().is_some_and(|first| first % 8 == 0) {
                let whole = whole.replacen("names", &format!("{}names", *LONG), 1);
                policy(&format!("{whole}on = [\"exec\", \"open\", \"connect\"]\neffect = \"kill\"\nforce = true\nwhen = {when:?}\n"));
            }
        });
}
