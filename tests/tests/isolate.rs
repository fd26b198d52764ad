//! A rule that isolates: what the policy, the agent, the collector and the wire say of it. Only sockets of a cgroup of the test's own are
//! cut off, in network namespaces of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::text;
use sumun_tests::clock::unix_ns;
use sumun_tests::container::has;
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;
use sumun_tests::raw;
use sumun_tests::wire::{Cgroup, THERE, Wire};

/// What does not come by then was kept back.
const SHORT: Duration = Duration::from_millis(400);
/// The longest that anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A process in the cgroup and at one end of the wire, with a connection to each port, which sends a byte to the port whose line it reads.
struct Talker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const TALKER: &str = r#"
use IO::Socket::INET;
$| = 1;
my %to;
for my $port (@ARGV) {
    my ($host, $number) = split /:/, $port;
    $to{$number} = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $number, Proto => "tcp") or die "$port: $!";
}
my $own = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 0, Listen => 5, Proto => "tcp") or die $!;
print "ready\n";
while (my $line = <STDIN>) {
    chomp $line;
    if ($line eq "loopback") {
        my $out = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $own->sockport, Proto => "tcp", Timeout => 5);
        print $out ? "ok\n" : "no: $!\n";
    } else {
        print defined(syswrite($to{$line}, "x")) ? "ok\n" : "no: $!\n";
    }
}
"#;

impl Talker {
    fn start(wire: &Wire, cgroup: &Cgroup, ports: &[u16]) -> Self {
        let procs = cgroup.procs();
        let ends: Vec<String> = ports.iter().map(|port| format!("{THERE}:{port}")).collect();
        let mut child = wire.here.run(move || {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", r#"echo $$ > "$0" && exec perl -e "$@""#])
                .arg(&procs)
                .arg(TALKER)
                .args(&ends)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            command.spawn().expect("a shell can be started")
        });
        let mut this = Self {
            input: child.stdin.take().expect("its input"),
            output: BufReader::new(child.stdout.take().expect("its output")),
            child,
        };
        assert_eq!(this.line(), "ready");
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.input, "{word}").expect("it reads");
        assert_eq!(self.line(), "ok", "{word}");
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other end of one of its connections.
struct Peer {
    port: u16,
    stream: TcpStream,
}

impl Peer {
    fn comes(&mut self, within: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(within))
            .expect("a timeout");
        self.stream.read_exact(&mut [0]).is_ok()
    }
}

fn policy(version: u32, mode: &str, lasts: &str) -> String {
    format!(
        r#"
[policy]
name = "breach"
version = {version}
mode = "{mode}"

[[rule]]
id = "cut-off"
title = "A tool of attackers was executed"
on = ["exec"]
when = 'proc.exe.name == "sumun-attack-tool"'
effect = "isolate"
{lasts}
severity = "critical"
"#
    )
}

struct Fleet<'a> {
    ctl: Ctl,
    agent: &'a mut Agent,
    tool: &'a Path,
}

impl Fleet<'_> {
    /// What the collector says of the host's isolation.
    fn isolation(&self) -> Value {
        let agents = self.ctl.agents().expect("the agents");
        let [agent] = &agents[..] else {
            panic!("one agent, not {agents:?}");
        };
        agent["isolation"].clone()
    }

    /// Waits until it says so, or not any more.
    fn until(&self, isolated: bool) -> Value {
        let begun = Instant::now();
        loop {
            let now = self.isolation();
            if now.is_null() != isolated {
                return now;
            }
            assert!(begun.elapsed() < LIMIT, "isolated: {now}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Executes the tool; its alert.
    fn attack(&self) -> Value {
        let since = unix_ns();
        let mut command = Command::new(self.tool);
        raw::bind_to_this_thread(&mut command);
        assert!(command.status().expect("it can be executed").success());
        let begun = Instant::now();
        loop {
            let rows = self.ctl.alerts(since, "").expect("the alerts").rows;
            if let [row] = &rows[..] {
                return row.clone();
            }
            assert!(begun.elapsed() < LIMIT, "one alert, not {rows:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Another policy takes the place of the one that is loaded.
    fn load(&mut self, version: i64, text: &str) {
        self.agent.policy("breach", text).expect("written");
        self.agent.reload();
        let begun = Instant::now();
        loop {
            let answer = self.ctl.run(&["policy", "list", "-o", "json"]);
            let rows: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
            let loaded = |row: &Value| row["version"] == version;
            if rows.as_array().is_some_and(|rows| rows.iter().any(loaded)) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "version {version}: {rows}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn said(&self, args: &[&str]) -> String {
        let output = Command::new(programs::path("sumun-agent"))
            .args(args)
            .arg("--config")
            .arg(self.agent.config())
            .output()
            .expect("the agent can be started");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn a_host_is_cut_off_reported_and_let_back() {
    let Some(turn) = Turn::take("a_host_is_cut_off") else {
        return;
    };
    if !has("perl") || !has("ip") {
        println!("SKIPPED a_host_is_cut_off: perl and ip are needed");
        return;
    }
    let wire = match Wire::new() {
        Ok(wire) => wire,
        Err(error) => {
            println!("SKIPPED a_host_is_cut_off: no wire can be laid: {error}");
            return;
        }
    };
    let scratch = scratch();
    let tool = scratch.path().join("sumun-attack-tool");
    fs::copy("/bin/true", &tool).expect("a program");
    let name = format!("sumun-isolate-{}", std::process::id());
    let cgroup = Cgroup::new(scratch.path(), &name).expect("a cgroup");
    let listeners = [(); 2].map(|()| {
        wire.there
            .run(|| TcpListener::bind((THERE, 0)).expect("a port"))
    });
    let ports = listeners
        .each_ref()
        .map(|one| one.local_addr().expect("an address").port());

    let collector = Collector::start().expect("a collector");
    let observe = policy(1, "observe", "");
    let mut agent = Agent::enroll(turn, &collector, &[("breach", &observe)]).expect("an agent");
    let config = fs::read_to_string(agent.config()).expect("its configuration");
    let more = format!(
        "\n[enforce.isolate]\ncgroup = \"{}\"\nallow = [{{ net = \"{THERE}\", protocol = \"tcp\", port = {} }}]\n",
        cgroup.path(),
        ports[0]
    );
    fs::write(agent.config(), config + &more).expect("written");
    agent.run().expect("it runs");
    agent.online(&collector).expect("it is online");
    let mut talker = Talker::start(&wire, &cgroup, &ports);
    let [mut listed, mut other] = [0, 1].map(|place: usize| Peer {
        port: ports[place],
        stream: listeners[place].accept().expect("a connection").0,
    });
    let mut fleet = Fleet {
        ctl: collector.ctl(),
        agent: &mut agent,
        tool: &tool,
    };
    let goes = |talker: &mut Talker, peer: &mut Peer, within| {
        talker.say(&peer.port.to_string());
        peer.comes(within)
    };

    // In observe it is told and not done.
    let alert = fleet.attack();
    assert_eq!(text(&alert, "verdict.outcome"), "would-isolate", "{alert}");
    assert_eq!(text(&alert, "verdict.effective"), "alert", "{alert}");
    assert!(fleet.isolation().is_null());
    assert!(goes(&mut talker, &mut other, LIMIT));

    fleet.load(2, &policy(2, "enforce", ""));
    assert!(fleet.isolation().is_null(), "nothing has matched yet");
    let alert = fleet.attack();
    assert_eq!(text(&alert, "verdict.effective"), "isolate", "{alert}");
    assert_eq!(text(&alert, "verdict.outcome"), "isolated", "{alert}");
    let reason = text(&alert, "verdict.reason");
    assert!(reason.contains("breach/cut-off"), "{reason}");
    assert!(!goes(&mut talker, &mut other, SHORT), "it went on");
    assert!(
        goes(&mut talker, &mut listed, LIMIT),
        "what is allowed stopped"
    );
    talker.say("loopback");
    let first = fleet.until(true);
    assert_eq!(text(&first, "rule"), "breach/cut-off", "{first}");
    let allowed = first["allowed"].to_string();
    let addr = collector.addr().expect("its address");
    let port = addr.rsplit_once(':').expect("a port").1;
    for wanted in [
        format!("127.0.0.1/32 tcp port {port} (collector)"),
        format!("{THERE}/32 tcp port {} (configured)", ports[0]),
        "(DHCP)".to_owned(),
    ] {
        assert!(allowed.contains(&wanted), "{wanted}: {allowed}");
    }
    let id = fleet.agent.id().expect("its id");
    let page = fleet.ctl.run(&["agents", "show", &id]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("ISOLATED since"), "{page}");
    assert!(
        page.contains("not covered: packets that are forwarded"),
        "{page}"
    );
    assert!(fleet.said(&["status"]).contains("ISOLATED since"));

    // Without an agent it stays so, and the next one goes on with it.
    fleet.agent.kill();
    assert!(
        !goes(&mut talker, &mut other, SHORT),
        "it ended with the agent"
    );
    fleet.agent.run().expect("it runs again");
    fleet.agent.online(&collector).expect("it is online");
    assert!(
        !goes(&mut talker, &mut other, SHORT),
        "the next agent ended it"
    );
    let again = fleet.until(true);
    assert_eq!(again["since"], first["since"]);
    let begun = Instant::now();
    while fleet.isolation()["dropped"]["sent"].as_u64() < Some(1) {
        assert!(begun.elapsed() < LIMIT, "nothing was kept back: {again}");
        std::thread::sleep(Duration::from_millis(50));
    }

    // An administrator's word, the end of a time, and that of the rule.
    let said = fleet.said(&["lift"]);
    assert!(said.contains("isolated for breach/cut-off"), "{said}");
    assert!(other.comes(LIMIT), "it is not let back");
    fleet.until(false);
    assert!(fleet.said(&["lift"]).contains("was not isolated"));
    while other.comes(SHORT) {}
    fleet.load(3, &policy(3, "enforce", "for = \"10s\""));
    fleet.attack();
    let now = fleet.until(true);
    assert!(!now["until"].is_null(), "{now}");
    assert!(!goes(&mut talker, &mut other, SHORT));
    fleet.until(false);
    assert!(other.comes(LIMIT), "its time is over");
    while other.comes(SHORT) {}
    fleet.attack();
    fleet.until(true);
    assert!(!goes(&mut talker, &mut other, SHORT));
    fleet.load(4, &policy(4, "observe", ""));
    assert!(other.comes(LIMIT), "no rule asks for it any more");
    fleet.until(false);
    while other.comes(SHORT) {}

    // What is released is not done again by the next agent.
    fleet.load(5, &policy(5, "enforce", ""));
    fleet.attack();
    fleet.until(true);
    let state = fleet.agent.home().join("state/isolation.json");
    assert!(state.exists(), "the next agent would not know");
    fleet.agent.stop().expect("it stops");
    assert!(
        !goes(&mut talker, &mut other, SHORT),
        "it ended with the agent"
    );
    fleet.said(&["release"]);
    assert!(other.comes(LIMIT), "it was released");
    assert!(!state.exists(), "the next agent would isolate again");
}
