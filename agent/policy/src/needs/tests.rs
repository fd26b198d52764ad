//! What is found of predicates as people write them.

use super::*;
use crate::check::Lists;

/// The needs of each branch, the most selective first, as text.
fn found(predicate: &str, kind: Kind) -> Vec<Vec<String>> {
    let predicate = Predicate::parse(predicate, &Lists::new()).expect("a predicate");
    let ask = |ask: &Ask| {
        let lowered = if ask.source.lowered { "lower " } else { "" };
        let keys: Vec<String> = ask.keys.iter().map(key).collect();
        format!("{lowered}{:?}: {}", ask.source.read, keys.join(" | "))
    };
    let need = |need: &Need| need.asks.iter().map(ask).collect::<Vec<_>>().join(" or ");
    needs(&predicate, kind)
        .iter()
        .map(|branch| branch.iter().map(need).collect())
        .collect()
}

fn key(key: &Key) -> String {
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    match key {
        Key::Text(whole) => text(whole),
        Key::Start(start) => format!("{}..", text(start)),
        Key::Part(part) => format!("..{}..", text(part)),
        Key::Range(first, last) => format!("{first} to {last}"),
        Key::Net(first, length) => format!("{first}/{length}"),
    }
}

#[test]
fn the_most_selective_need_comes_first() {
    for (predicate, kind, expected) in [
        (
            r#"proc.exe.name in ["sh", "bash"] && file.path == "/etc/shadow" && proc.uid != 0"#,
            Kind::Open,
            &[
                "Field(FilePath): /etc/shadow",
                "Field(ProcExeName): bash | sh",
            ][..],
        ),
        (
            r#"file.path.endsWith("/id_rsa") && !file.access.write"#,
            Kind::Open,
            &["Field(FileName): id_rsa"],
        ),
        (
            r#"file.path.glob("/home/*/.ssh/{id_rsa,id_dsa}")"#,
            Kind::Open,
            &[
                "Field(FileName): id_rsa | id_dsa",
                "Field(FilePath): ../.ssh/id_rsa.. | ../.ssh/id_dsa..",
                "Field(FilePath): /home/.. | /home/..",
            ],
        ),
        (
            r#"net.dst.port >= 6660 && net.dst.port < 6670 && !cidr("10.0.0.0/8").containsIP(net.dst.ip)"#,
            Kind::Connect,
            &["Field(NetDstPort): 6660 to 6669"],
        ),
        (
            r#"net.dst.ip == "192.0.2.1" || net.dst.ip == "192.0.2.2""#,
            Kind::Connect,
            &["Address(NetDstIp): 192.0.2.1/32 | 192.0.2.2/32"],
        ),
        (
            r#"proc.ancestors.exists(a, a.exe.name == "nginx" && a.pid > 5)"#,
            Kind::Exec,
            &["Ancestors(ProcExeName): nginx"],
        ),
        (
            r#"proc.args.exists(x, x.lowerAscii().contains("/dev/tcp/"))"#,
            Kind::Exec,
            &["lower Items(ProcArgs): ../dev/tcp/.."],
        ),
        (
            // If it is not known what the arguments are, the name does not matter.
            r#"proc.args.exists(x, x != "-q" && proc.exe.name == "nc")"#,
            Kind::Exec,
            &["Field(ProcExeName): nc or Items(ProcArgs): "],
        ),
        (
            r#"proc.exe.path.matches("^/(opt|srv)/[a-z]+/run")"#,
            Kind::Exec,
            &["Field(ProcExePath): /opt/.. | /srv/.."],
        ),
        (
            r#"proc.args[0].matches("[a-z]+minerd?")"#,
            Kind::Exec,
            &["Item(ProcArgs, 0): ..miner.."],
        ),
    ] {
        assert_eq!(found(predicate, kind), [expected], "{predicate}");
    }
}

#[test]
fn alternatives_are_branches() {
    assert_eq!(
        found(
            r#"(file.path.startsWith("/etc/") && proc.exe.name == "vi") || file.name == "shadow" || file.path == "/x""#,
            Kind::Open
        ),
        [
            vec!["Field(ProcExeName): vi", "Field(FilePath): /etc/.."],
            vec!["Field(FilePath): /x"],
            vec!["Field(FileName): shadow"],
        ]
    );
    // What an event of the kind never has, and what says nothing.
    for (predicate, kind) in [
        (r#"file.path == "/x" || net.dst.port == 5"#, Kind::Exec),
        (r#"kind == "open""#, Kind::Exec),
        ("false", Kind::Exec),
    ] {
        assert_eq!(found(predicate, kind), Vec::<Vec<String>>::new());
    }
    for (predicate, kind) in [
        ("true", Kind::Exec),
        (r#"proc.exe.name != "sh" || proc.uid == 0"#, Kind::Exec),
        (r#"!(file.path == "/x")"#, Kind::Open),
        ("proc.uid >= 1000", Kind::Exec),
        (r#"file.path.startsWith("/")"#, Kind::Open),
        (r#"proc.ancestors.all(a, a.exe.name == "sh")"#, Kind::Exec),
    ] {
        assert_eq!(
            found(predicate, kind),
            [Vec::<String>::new()],
            "{predicate}"
        );
    }
    assert_eq!(
        found(r#"!proc.ancestors.all(a, a.exe.name != "sh")"#, Kind::Exec),
        [["Ancestors(ProcExeName): sh"]]
    );
}

#[test]
fn branches_stay_few() {
    let product: Vec<String> = (0..8)
        .map(|number| format!(r#"(proc.exe.name == "a{number}" || file.path == "/b{number}")"#))
        .collect();
    let branches = found(&product.join(" && "), Kind::Open);
    assert!(branches.len() <= BRANCHES_MAX, "{}", branches.len());
    assert!(branches.iter().all(|branch| !branch.is_empty()));
}
