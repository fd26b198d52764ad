//! UDP, Unix sockets, raw sockets, DNS with the names of connections, and opens that fail: from the call to the answer of a search.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sumun_tests::check::{int, list, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Answer;
use sumun_tests::host::{Agent, Collector, Turn, scratch};

/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
[policy]
name = "talk"
version = 1

[[rule]]
id = "talk"
on = ["connect_udp", "connect_unix", "socket", "dns"]
when = 'proc.exe.name.startsWith("perl")'
effect = "record"

[[rule]]
id = "by-name"
title = "A connection to a name"
on = ["connect", "connect_udp"]
when = 'net.dst.name == "resolved.test"'

[[rule]]
id = "no-directory"
on = ["open"]
when = 'result == -20 && file.name == "below"'
effect = "record"

[[rule]]
id = "opened"
on = ["open"]
when = 'file.name == "below"'
"#;

/// A server that answers one question with an address of loopback, and a process that asks it and connects there.
fn work(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"set -e
cd {dir}
exec perl -MSocket -MIO::Socket::INET -MIO::Socket::UNIX -e '
    my $dns = IO::Socket::INET->new(LocalAddr => "127.0.53.2", LocalPort => 53, Proto => "udp") or die "dns: $!";
    my $tcp = IO::Socket::INET->new(LocalAddr => "127.0.0.77", LocalPort => 0, Listen => 1, Proto => "tcp") or die "tcp: $!";
    my $child = fork;
    if (!$child) {{
        my $from = recv($dns, my $asked, 512, 0) or die $!;
        my $answer = pack("a2 n5", substr($asked, 0, 2), 0x8180, 1, 1, 0, 0) . substr($asked, 12)
            . pack("n3 N n C4", 0xc00c, 1, 1, 60, 4, 127, 0, 0, 77);
        send($dns, $answer, 0, $from) or die $!;
        exit 0;
    }}
    my $client = IO::Socket::INET->new(Proto => "udp") or die $!;
    my $question = pack("n6", 7, 0x0100, 1, 0, 0, 0) . "\x08Resolved\x04test\0" . pack("n2", 1, 1);
    send($client, $question, 0, pack_sockaddr_in(53, inet_aton("127.0.53.2"))) or die $!;
    recv($client, my $told, 512, 0); length $told > 12 or die $!;
    waitpid $child, 0;
    my $connection = IO::Socket::INET->new(PeerAddr => "127.0.0.77", PeerPort => $tcp->sockport, Proto => "tcp") or die "connect: $!";
    send($client, "x", 0, pack_sockaddr_in(9, inet_aton("127.0.0.77"))) or die $!;
    my $listener = IO::Socket::UNIX->new(Local => "socket", Listen => 1) or die $!;
    symlink "socket", "link" or die $!;
    my $unix = IO::Socket::UNIX->new(Peer => "link") or die $!;
    socket(my $raw, AF_INET, SOCK_RAW, 1) or die $!;
    open(my $file, ">", "file") or die $!;
    open(my $none, "<", "file/below") and die;
'
"#
    )
}

#[test]
fn whom_a_process_talks_to_is_stored() {
    let Some(turn) = Turn::take("whom_a_process_talks_to") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch
        .path()
        .canonicalize()
        .expect("a directory")
        .join("work");
    std::fs::create_dir(&dir).expect("a directory");
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("talk", POLICY)]).expect("an agent");
    let since = unix_ns();
    let output = Command::new("/bin/sh")
        .args(["-c", &work(&dir)])
        .output()
        .expect("a shell can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let until = unix_ns();
    let ctl = collector.ctl();
    let ask = |filter: &str| -> Vec<Value> {
        let filter = format!(r#"{filter} && proc.exe.name.startsWith("perl")"#);
        let answer: Answer = ctl
            .complete_events(since, until, &filter, LIMIT)
            .unwrap_or_else(|error| panic!("{filter}: {error:#}"));
        answer.rows
    };

    let dns = ask(r#"kind == "dns" && dns.question.name == "resolved.test""#);
    let [question, answer] = dns.as_slice() else {
        panic!("{dns:?}")
    };
    assert_eq!(text(question, "dns.rcode"), "");
    assert_eq!(text(question, "net.dst.ip"), "127.0.53.2");
    assert_eq!(text(answer, "dns.rcode"), "noerror");
    assert_eq!(text(answer, "dns.question.type"), "A");
    assert_eq!(list(answer, "dns.answers"), ["127.0.0.77"]);
    // The answer came in while any process ran, and is that of the one that asked.
    assert_eq!(int(answer, "proc.pid"), int(question, "proc.pid"));

    let udp = ask(r#"kind == "connect_udp" && net.dst.ip == "127.0.0.77""#);
    assert_eq!(udp.len(), 1, "{udp:?}");
    assert_eq!(int(&udp[0], "net.dst.port"), Some(9));
    assert_eq!(text(&udp[0], "net.proto"), "udp");
    assert_eq!(text(&udp[0], "net.source"), "copy");
    assert_eq!(text(&udp[0], "net.dst.name"), "resolved.test");
    assert_eq!(list(&udp[0], "rules"), ["talk/talk", "talk/by-name"]);

    let unix = ask(r#"kind == "connect_unix""#);
    let path = format!("{}/socket", dir.display());
    assert_eq!(unix.len(), 1, "{unix:?}");
    assert_eq!(text(&unix[0], "net.dst.path"), path);
    assert_eq!(text(&unix[0], "net.source"), "object");

    let raw = ask(r#"kind == "socket" && socket.type == "raw""#);
    assert_eq!(raw.len(), 1, "{raw:?}");
    assert_eq!(text(&raw[0], "socket.family"), "inet");
    assert_eq!(int(&raw[0], "socket.protocol"), Some(1));

    let failed = ctl
        .complete_events(
            since,
            until,
            r#"kind == "open" && result == -20 && file.name == "below""#,
            LIMIT,
        )
        .expect("a complete answer");
    let mine: Vec<_> = failed
        .rows
        .iter()
        .filter(|row| text(row, "file.path").starts_with(&format!("{}/", dir.display())))
        .collect();
    assert_eq!(mine.len(), 1, "{:?}", failed.rows);
    assert_eq!(text(mine[0], "file.source"), "caller");
    // A rule that does not read the result is about opens that succeeded.
    assert_eq!(list(mine[0], "rules"), ["talk/no-directory"]);

    let alerts = ctl
        .complete_alerts(since, until, r#"rule.id == "by-name""#, LIMIT)
        .expect("a complete answer");
    let mut kinds: Vec<_> = alerts.rows.iter().map(|row| text(row, "kind")).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["connect", "connect_udp"], "{:?}", alerts.rows);
    for row in &alerts.rows {
        assert_eq!(text(row, "net.dst.ip"), "127.0.0.77");
    }
    agent.stop().expect("the agent stops when told to");
}
