//! What the kernel kills is what the matcher matches: the plan's own model against the
//! matcher, on random rules with exceptions and random execs, opens, closes, connects and accepts.

#[path = "common/mod.rs"]
mod common;

use std::cell::Cell;
use std::io::Write as _;

use common::{Case, Dice};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sumun_abi::event::file::{OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN};
use sumun_abi::event::network::CONN_LOST;
use sumun_abi::record::{FLAW_LOST, FLAW_PARTIAL, FLAW_TRUNCATED};
use sumun_policy::doors::Doors;
use sumun_policy::verdict::scope::{Question, is_of_scope};
use sumun_policy::verdict::{
    AFTER, Atom, End, Id, NO_IMAGE, Outcome, RESULT_ZERO, Texts, VerdictPlan,
};
use sumun_policy::{CheckedPolicy, Matcher, Rule, Verdict, check_file};
use sumun_proto::v1::{Cloud, Facts, Image, Kind, Workload};
use sumun_proto::view::{UNKNOWN_TEXT, ip_from};
use sumun_proto::{View, text};

/// Rules of each set that is loaded together.
const RULES: usize = 3;
/// Events for each set.
const EVENTS: usize = 64;
const SETS: u32 = 2500;

/// Texts of paths, also with bytes that are not UTF-8 and without any folder.
const PATHS: &[&str] = &[
    "/bin/sh",
    "/usr/bin/bash",
    "/tmp/a",
    "/tmp/\\xff\\\\b",
    "/usr/sbin/sh",
    "/한/글",
    "/tmp/\\xed\\x95",
    "/usr/lib/x/sh",
    "sh",
    "a",
];
const NAMES: &[&str] = &[
    "sh",
    "bash",
    "글",
    "\\xff\\\\b",
    "a",
    "SH",
    "\\x61",
    "\\q",
    "한",
];
const STARTS: &[&str] = &[
    "/usr/",
    "/tmp/",
    "/usr/sbin/s",
    "/한",
    "/tmp/\\xff",
    "/tmp/\\\\",
    "/bin/sh",
    "s",
    "/",
    "",
    "/tmp/\\x",
    "/usr/lib/",
    // The first byte of a character.
    "/\\xed",
];
const GLOBS: &[&str] = &[
    "/usr/**",
    "/{usr,tmp}/**",
    "/{bin/sh,tmp/**}",
    "**/sh",
    "**/{sh,a}",
    "/bin/{sh,bash}",
    "/usr/*/sh",
    "**/s*",
];

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\"))
}

fn listed(dice: &mut Dice<'_>, items: &[&str]) -> String {
    let items: Vec<String> = (0..1 + dice.roll(3))
        .map(|_| quoted(dice.pick(items)))
        .collect();
    format!("[{}]", items.join(", "))
}

/// A condition on the path and name of a process or ancestor.
fn exe(dice: &mut Dice<'_>, of: &str) -> String {
    match dice.roll(9) {
        0 => format!("{of}.exe.name == {}", quoted(dice.pick(NAMES))),
        1 => format!("{of}.exe.name in {}", listed(dice, NAMES)),
        2 => format!("{of}.exe.path in {}", listed(dice, PATHS)),
        3 => format!("{of}.exe.path == {}", quoted(dice.pick(PATHS))),
        4 | 5 => format!("{of}.exe.path.startsWith({})", quoted(dice.pick(STARTS))),
        6 => format!("{of}.exe.path.glob({})", quoted(dice.pick(GLOBS))),
        7 => format!(
            "{of}.exe.path.endsWith({})",
            quoted(dice.pick(&["/sh", "/a", "sh", "/글", "/"]))
        ),
        _ => format!("{of}.exe.name != {}", quoted(dice.pick(NAMES))),
    }
}

/// A condition on the file.
fn file(dice: &mut Dice<'_>) -> String {
    match dice.roll(11) {
        0 => format!("file.name == {}", quoted(dice.pick(NAMES))),
        1 => format!("file.name in {}", listed(dice, NAMES)),
        2 => format!("file.path in {}", listed(dice, PATHS)),
        3 => format!("file.path != {}", quoted(dice.pick(PATHS))),
        4 => format!("file.path.startsWith({})", quoted(dice.pick(STARTS))),
        5 => format!("file.path.glob({})", quoted(dice.pick(GLOBS))),
        6 => format!(
            "file.path.endsWith({})",
            quoted(dice.pick(&["/sh", "/a", "sh", "/글", "/"]))
        ),
        7 => format!("file.name != {}", quoted(dice.pick(NAMES))),
        _ => dice
            .pick(&[
                "file.access.read",
                "file.access.write",
                "file.access.append == false",
                "file.create",
                "file.trunc",
                "!file.trunc",
                "file.in_image",
                "!file.in_image",
                "file.deleted",
                "!file.deleted",
            ])
            .to_owned(),
    }
}

/// A condition on the connection.
fn net(dice: &mut Dice<'_>) -> String {
    let end = dice.pick(&["src", "dst"]);
    let addresses = ["10.0.0.1", "8.8.8.8", "2001:db8::1", "::1"];
    match dice.roll(9) {
        0 => format!("net.{end}.ip == '{}'", dice.pick(&addresses)),
        1 => format!("net.{end}.ip in {}", listed(dice, &addresses)),
        2 => format!("net.{end}.ip != '{}'", dice.pick(&addresses)),
        3 => {
            let nets = [
                "10.0.0.0/8",
                "0.0.0.0/0",
                "::/0",
                "2001:db8::/33",
                "8.8.8.8/32",
            ];
            format!("cidr('{}').containsIP(net.{end}.ip)", dice.pick(&nets))
        }
        4 => format!("net.{end}.private"),
        5 => {
            let protocols = ["tcp", "mptcp", "udp"];
            match dice.roll(3) {
                0 => format!("net.proto == '{}'", dice.pick(&protocols)),
                1 => format!("net.proto != '{}'", dice.pick(&protocols)),
                _ => format!("net.proto in {}", listed(dice, &protocols)),
            }
        }
        6 => {
            let numbers = ["0", "-1", "-111", "9999999999", "-9999999999"];
            let op = dice.pick(&["==", "!=", "<", "<=", ">", ">="]);
            match dice.chance(5) {
                true => format!(
                    "result in [{}, {}]",
                    dice.pick(&numbers),
                    dice.pick(&numbers)
                ),
                false => format!("result {op} {}", dice.pick(&numbers)),
            }
        }
        _ => {
            let numbers = ["0", "22", "80", "443", "1024", "65535", "65536", "-1"];
            let op = dice.pick(&["==", "!=", "<", "<=", ">", ">="]);
            match dice.chance(5) {
                true => format!(
                    "net.{end}.port in [{}, {}]",
                    dice.pick(&numbers),
                    dice.pick(&numbers)
                ),
                false => format!("net.{end}.port {op} {}", dice.pick(&numbers)),
            }
        }
    }
}

fn ancestors(dice: &mut Dice<'_>) -> String {
    let mut body = exe(dice, "a");
    if dice.chance(6) {
        body = format!(
            "{body} {} {}",
            dice.pick(&["||", "||", "&&"]),
            exe(dice, "a")
        );
    }
    match dice.chance(5) {
        true => format!("proc.ancestors.all(a, !({body}))"),
        false => format!("proc.ancestors.exists(a, {body})"),
    }
}

fn number(dice: &mut Dice<'_>) -> String {
    if dice.chance(4) {
        return dice.pick(CAPABILITIES).to_owned();
    }
    let field = dice.pick(&["proc.uid", "proc.gid", "proc.euid", "proc.egid"]);
    let ids = ["0", "1", "7", "1000", "4294967295", "4294967296", "-1"];
    if dice.chance(6) {
        let items: Vec<&str> = (0..dice.roll(4)).map(|_| dice.pick(&ids)).collect();
        return format!("{field} in [{}]", items.join(", "));
    }
    let op = dice.pick(&["==", "!=", "<", "<=", ">", ">="]);
    format!("{field} {op} {}", dice.pick(&ids))
}

const CAPABILITIES: &[&str] = &[
    "'CAP_CHOWN' in proc.cap_effective",
    "!('CAP_CHOWN' in proc.cap_effective)",
    "'cap_sys_admin' in proc.cap_effective",
    "40 in proc.cap_effective",
    "!(63 in proc.cap_effective)",
    "['CAP_BPF', 'CAP_SYS_ADMIN'].exists(c, c in proc.cap_effective)",
    "'CAP_CHOWN' in proc.cap_permitted",
];

/// A condition on whose the process is.
fn workload(dice: &mut Dice<'_>) -> String {
    dice.pick(&[
        "'app=cart' in k8s.labels",
        "!('app=cart' in k8s.labels)",
        "'tier=back' in k8s.labels",
        "k8s.namespace == 'shop'",
        "k8s.namespace != 'shop'",
        "k8s.namespace in ['bank', 'shop']",
        "k8s.pod.name.startsWith('cart-')",
        "container.image.matches('^nginx')",
        "container.name == 'web'",
        "has(container.id)",
        "!has(k8s.pod.uid)",
        "unit == 'a.service'",
        "unit in ['a.service', 'b.service'] || slice == 'system.slice'",
        "container.labels.exists(l, l.startsWith('app='))",
        "host.name == 'sh'",
        "cloud.region == 'here' && k8s.namespace == 'shop'",
        "'role=web' in cloud.tags",
        "login.uid == 1000",
    ])
    .to_owned()
}

fn predicate(dice: &mut Dice<'_>, depth: usize) -> String {
    match dice.roll(if depth == 0 { 20 } else { 31 }) {
        17..=19 => workload(dice),
        9..=12 => file(dice),
        13..=16 => net(dice),
        0..=2 => exe(dice, "proc"),
        3 | 4 => ancestors(dice),
        5 | 6 => number(dice),
        7 => dice
            .pick(&[
                "kind == 'exec'",
                "kind in ['fork', 'open']",
                "kind != 'accept'",
                "file.path == '/x'",
                "has(net.dst.ip)",
            ])
            .to_owned(),
        // Anything, mostly beyond the kernel.
        8 if dice.chance(4) => common::predicate(dice, 0),
        8 => exe(dice, "proc"),
        20..=22 => format!("!({})", predicate(dice, depth - 1)),
        23..=26 => format!(
            "({} && {})",
            predicate(dice, depth - 1),
            predicate(dice, depth - 1)
        ),
        _ => format!(
            "({} || {})",
            predicate(dice, depth - 1),
            predicate(dice, depth - 1)
        ),
    }
}

/// Rules that kill on every kind, so that any field may be read, some with an exception.
fn policy(dice: &mut Dice<'_>) -> CheckedPolicy {
    let mut file = "[policy]\nname = \"p\"\nmode = \"enforce\"\n".to_owned();
    file.push_str(dice.pick(&[
        "",
        "",
        "[selector]\nk8s = { labels = { app = \"cart\" } }\n",
        "[selector]\nk8s = { namespace = [\"shop\"], labels = { app = \"cart\" } }\npending = \"inside\"\n",
        "[selector]\nunit = [\"a.*\"]\npending = \"inside\"\n",
    ]));
    for number in 0..RULES {
        file.push_str(&format!(
            "[[rule]]\nid = \"r{number}\"\non = [\"exec\", \"fork\", \"open\", \"close_write\", \"map_exec\", \"rename\", \"connect\", \"accept\"]\neffect = \"kill\"\nforce = true\nwhen = '''\n{}'''\n",
            predicate(dice, 2)
        ));
        for exception in 0..dice.roll(4).saturating_sub(1) {
            file.push_str(&format!(
                "[[rule.exception]]\nname = \"e{exception}\"\nowner = \"o\"\nwhen = '''\n{}'''\n",
                predicate(dice, 1)
            ));
        }
    }
    let check = check_file("p.toml", &file);
    // A random predicate may read what only other kinds have.
    let errors = check
        .errors
        .iter()
        .filter(|error| !error.message.contains("never present"));
    assert_eq!(errors.count(), 0, "{file}\n{check}");
    check.policy.unwrap_or_else(|| policy(dice))
}

/// Those that a process may be in: named, not named yet, and such of which only the pod is.
fn workloads() -> Vec<Workload> {
    let facts = |namespace: &str, label: &str| Facts {
        source: "cri".into(),
        pod_name: "cart-0".into(),
        pod_uid: "22".into(),
        namespace: namespace.into(),
        pod_labels: vec![label.into()],
        ..Facts::default()
    };
    let container = |facts: Option<Facts>| Workload {
        id: 2,
        kind: "container".into(),
        container_id: "c".into(),
        facts,
        ..Workload::default()
    };
    let named = |facts: Facts| Facts {
        container_name: "web".into(),
        image: "nginx:1".into(),
        container_labels: vec!["app=web".into()],
        ..facts
    };
    let mut all = vec![
        container(Some(named(facts("shop", "app=cart")))),
        container(Some(named(facts("bank", "tier=back")))),
        container(None),
        Workload {
            id: 3,
            kind: "unit".into(),
            unit: "a.service".into(),
            slice: "system.slice".into(),
            login_uid: Some(1000),
            ..Workload::default()
        },
    ];
    for workload in [
        container(None),
        container(Some(facts("shop", "app=cart"))),
        container(Some(facts("bank", "tier=back"))),
    ] {
        all.push(Workload {
            pending: true,
            ..workload
        });
    }
    all.push(container(Some(Facts {
        cut: true,
        ..named(facts("shop", "app=cart"))
    })));
    all
}

/// The first of [`workloads`] that are wholly known.
const KNOWN: usize = 4;

/// An event whose images and file have paths of this file's.
fn event(dice: &mut Dice<'_>, unknowns: bool) -> Case {
    let kinds = [
        Kind::Exec,
        Kind::Exec,
        AFTER[0],
        AFTER[1],
        AFTER[2],
        AFTER[3],
        AFTER[4],
    ];
    let kind = dice.pick(&kinds);
    let mut case = common::event(dice, kind, unknowns);
    // What the kernel does not know of these it calls lost: nothing is just not there.
    if let Some(file) = &mut case.event.file {
        match &mut file.path {
            None if unknowns => file.flaws |= u32::from(FLAW_LOST),
            path => *path = Some(dice.pick(PATHS).to_owned()),
        }
    }
    if let Some(network) = &mut case.event.network {
        for ip in [&mut network.src_ip, &mut network.dst_ip] {
            if ip.is_empty() && unknowns {
                network.flags |= u32::from(CONN_LOST);
            } else if ip.is_empty() {
                *ip = vec![10, 0, 0, 1];
            }
        }
        network.result = network.result.map(|_| dice.pick(&[0, 0, -1, -111]));
    }
    if case.batch.images.is_empty() {
        case.batch.images.push(Image {
            seen: true,
            ..Image::default()
        });
        case.event.image = 1;
    }
    case.batch.workloads = workloads();
    case.batch.host = dice.chance(8).then(|| Facts {
        cloud: Some(Cloud {
            region: dice.pick(&["here", "there"]).into(),
            tags: vec!["role=web".into()],
            ..Cloud::default()
        }),
        ..Facts::default()
    });
    for image in &mut case.batch.images {
        let all = if unknowns {
            case.batch.workloads.len()
        } else {
            KNOWN
        };
        // Which one it is is not known if its cgroup's record was lost.
        image.workload = match unknowns && dice.chance(2) {
            true => 0,
            false => u32::try_from(1 + dice.roll(all)).expect("few"),
        };
        dice.pick(PATHS).clone_into(&mut image.exe_path);
        image.seen |= !unknowns || dice.chance(12);
        let id = |dice: &mut Dice<'_>| dice.pick(&[0, 1, 7, 999, 1000, u32::MAX]);
        image.uid = id(dice);
        image.gid = id(dice);
        image.euid = id(dice);
        image.egid = id(dice);
        image.cap_effective = Some(dice.pick(&[0, 1, 1 << 21, 1 << 39, 1 << 40 | 1, !1]));
        if unknowns && dice.chance(2) {
            image.exe_flaws |= u32::from(dice.pick(&[FLAW_TRUNCATED, FLAW_LOST, FLAW_PARTIAL]));
        }
    }
    // The process itself has just been seen to execute something.
    if let Some(own) = case.batch.images.last_mut() {
        own.seen = true;
    }
    case
}

/// The kernel's answer, from the bytes.
fn answer(atom: &Atom, view: &View<'_>) -> Option<bool> {
    let own = view.image()?;
    let file = view.event.file.as_ref();
    let network = view.event.network.as_ref();
    match atom {
        Atom::File(texts) => {
            let file = file?;
            let path = file
                .path
                .as_deref()
                .filter(|_| file.flaws & UNKNOWN_TEXT == 0)?;
            Some(holds(texts, &text::to_bytes(path).expect("in form")))
        }
        Atom::To(_) | Atom::Setting(_) | Atom::Value(_) => {
            unreachable!("only rules that deny ask for it")
        }
        Atom::Flag(bit) => {
            let file = file.filter(|file| file.dev != 0 || file.ino != 0)?;
            let unknown = *bit == OPEN_TRUNCATE && file.flags & OPEN_TRUNCATE_UNKNOWN != 0;
            (!unknown).then_some(file.flags & bit != 0)
        }
        Atom::Net { end, nets } => {
            let network = network?;
            let address = ip_from(match end {
                End::Src => &network.src_ip,
                End::Dst => &network.dst_ip,
            })?;
            let mut nets = nets.iter().map(|(net, bits)| IpNet::new(*net, *bits));
            Some(nets.any(|net| net.expect("a network").contains(&address)))
        }
        // The kernel is told what the question answers of the cgroup, with nothing else known of the event.
        Atom::Scope(scope) => {
            let only = sumun_proto::v1::Batch {
                images: vec![Image {
                    workload: own.workload,
                    ..Image::default()
                }],
                workloads: view.batch.workloads.clone(),
                host: view.batch.host.clone(),
                ..Default::default()
            };
            let event = sumun_proto::v1::Event {
                image: 1,
                ..Default::default()
            };
            let cgroup = View {
                batch: &only,
                event: &event,
                ..*view
            };
            let answer = Question::new(scope).answer(&cgroup, |_| true);
            answer.or_else(|| scope.presumed.then_some(true))
        }
        Atom::Exe(texts) => one_of(texts, own),
        Atom::Ancestor(texts) => {
            let answers: Vec<_> = view.ancestors().map(|image| one_of(texts, image)).collect();
            if answers.contains(&Some(true)) {
                return Some(true);
            }
            let all_known = view.ancestors_complete() && !answers.contains(&None);
            all_known.then_some(false)
        }
        Atom::Number { id, range } => {
            let number = match id {
                Id::Uid => own.uid,
                Id::Gid => own.gid,
                Id::Euid => own.euid,
                Id::Egid => own.egid,
                Id::SrcPort => {
                    let network = network.filter(|network| !network.src_ip.is_empty())?;
                    network.src_port
                }
                Id::DstPort => {
                    let network = network.filter(|network| !network.dst_ip.is_empty())?;
                    network.dst_port
                }
                Id::Protocol => network?.protocol,
                Id::Result => network?.result?.cast_unsigned() ^ RESULT_ZERO,
                Id::InImage => own.in_image.map_or(NO_IMAGE, u32::from),
                Id::Capability(number) => {
                    own.cap_effective.map(|set| (set >> number & 1) as u32)?
                }
            };
            Some((range.0..=range.1).contains(&number))
        }
    }
}

fn one_of(texts: &Texts, image: &Image) -> Option<bool> {
    let flaw = |flaws: u8| image.exe_flaws & u32::from(flaws) != 0;
    if !image.seen || flaw(FLAW_LOST | FLAW_PARTIAL) {
        return None;
    }
    let path = text::to_bytes(&image.exe_path).expect("events are in form");
    if is_named(texts, &path) {
        return Some(true);
    }
    if flaw(FLAW_TRUNCATED) && !(texts.paths.is_empty() && texts.prefixes.is_empty()) {
        return None;
    }
    Some(holds(texts, &path))
}

fn is_named(texts: &Texts, path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(&[]);
    texts.names.iter().any(|known| known == name)
}

fn holds(texts: &Texts, path: &[u8]) -> bool {
    is_named(texts, path)
        || texts.paths.iter().any(|known| known == path)
        || texts.prefixes.iter().any(|prefix| path.starts_with(prefix))
}

/// Everything that the kernel asks for is known: the fields that predicates can read.
fn is_known(view: &View<'_>) -> bool {
    let file = view.event.file.as_ref();
    let network = view.event.network.as_ref();
    let whole = file.is_none_or(|file| {
        let is_object = file.dev != 0 || file.ino != 0;
        let unknown = file.flaws & UNKNOWN_TEXT != 0 || file.flags & OPEN_TRUNCATE_UNKNOWN != 0;
        is_object && file.path.is_some() && !unknown
    }) && network.is_none_or(|network| {
        let addressed = !network.src_ip.is_empty() && !network.dst_ip.is_empty();
        addressed && network.result.is_some()
    });
    let image = view.image();
    let named = image.is_some_and(|image| (1..=KNOWN).contains(&(image.workload as usize)));
    if !whole || !named {
        return false;
    }
    let known = |image: &Image| {
        let flaws = FLAW_TRUNCATED | FLAW_LOST | FLAW_PARTIAL;
        image.seen && image.exe_flaws & u32::from(flaws) == 0
    };
    view.image().is_some_and(known) && view.ancestors().all(known) && view.ancestors_complete()
}

/// A rule as the engine judges it.
struct Alone {
    whole: Matcher,
    presumed: Option<[Matcher; 2]>,
}

impl Alone {
    fn new(rule: &Rule) -> Self {
        let presumed = rule.presumed.as_ref();
        Self {
            whole: Matcher::compile(&rule.predicate),
            presumed: presumed.map(|parts| [&parts.selector, &parts.when].map(Matcher::compile)),
        }
    }

    fn is_presumed(&self, view: &View<'_>) -> bool {
        let selector = self.presumed.as_ref().map(|[selector, _]| selector);
        selector.is_some_and(|selector| selector.matches(view) == Verdict::Undecided)
    }

    fn matches(&self, view: &View<'_>) -> Verdict {
        match &self.presumed {
            Some([_, when]) if self.is_presumed(view) => when.matches(view),
            _ => self.whole.matches(view),
        }
    }
}

/// 160,000 events with up to three rules each that the kernel judges.
#[test]
fn the_kernel_kills_what_the_matcher_matches() {
    let [
        rules,
        taken,
        execs,
        kills,
        killed_unknown,
        known,
        undecided,
        excepted,
        shadowed,
        files,
        connections,
        scoped,
        presumed,
    ]: [Cell<u64>; 13] = Default::default();
    let one = |count: &Cell<u64>| count.set(count.get() + 1);
    let shapes = proptest::collection::vec(any::<u8>(), 40..160);
    let bytes = proptest::collection::vec(any::<u8>(), 100);
    let events = proptest::collection::vec(bytes, EVENTS);
    let config = ProptestConfig {
        cases: SETS,
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let run = TestRunner::new(config).run(&(shapes, events), |(shape, events)| {
        let policy = policy(&mut Dice::new(&shape));
        let (plan, late) = VerdictPlan::build(std::slice::from_ref(&policy), &Doors::default(), 0);
        let late: Vec<(usize, Kind)> = late.iter().map(|late| (late.rule, late.kind)).collect();
        let pairs = RULES * (1 + AFTER.len());
        rules.set(rules.get() + pairs as u64);
        taken.set(taken.get() + (pairs - late.len()) as u64);
        prop_assert!(plan.clauses.is_sorted_by_key(|clause| clause.rule));
        let matchers: Vec<(Alone, Vec<Matcher>)> = policy
            .rules
            .iter()
            .map(|rule| {
                let exceptions = rule.exceptions.iter();
                let exceptions = exceptions.map(|exception| Matcher::compile(&exception.predicate));
                (Alone::new(rule), exceptions.collect())
            })
            .collect();
        for (number, bytes) in events.iter().enumerate() {
            let case = event(&mut Dice::new(bytes), number % 2 == 0);
            let view = case.view();
            let kind = view.kind();
            let outcome = plan.judge(kind, |atom| answer(atom, &view));
            one(&execs);
            // Of each rule: it matches, and whether an exception does or could.
            let verdicts: Vec<(Verdict, Verdict)> = matchers
                .iter()
                .map(|(rule, exceptions)| {
                    let all = exceptions.iter().map(|exception| exception.matches(&view));
                    let all: Vec<_> = all.collect();
                    let strongest = [Verdict::Match, Verdict::Undecided]
                        .into_iter()
                        .find(|verdict| all.contains(verdict));
                    (rule.matches(&view), strongest.unwrap_or(Verdict::NoMatch))
                })
                .collect();
            let said = format!("{:?}\non {case:?}\n{plan:?}\n{verdicts:?}", policy.rules);
            let by_agent = (0..RULES)
                .filter(|rule| !late.contains(&(*rule, kind)))
                .find(|rule| verdicts[*rule] == (Verdict::Match, Verdict::NoMatch));
            if let Outcome::Kills(rule) = outcome {
                one(&kills);
                let fields = policy.rules[rule].predicate.fields();
                if fields.into_iter().any(is_of_scope) {
                    one(&scoped);
                    if policy.rules[rule].presumed.is_some() && matchers[rule].0.is_presumed(&view)
                    {
                        one(&presumed);
                    }
                }
                prop_assert!(!late.contains(&(rule, kind)), "{}", said);
                match kind {
                    Kind::Open | Kind::CloseWrite | Kind::MapExec => one(&files),
                    Kind::Connect | Kind::Accept => one(&connections),
                    _ => {}
                }
                prop_assert_eq!(
                    verdicts[rule],
                    (Verdict::Match, Verdict::NoMatch),
                    "{}",
                    said
                );
                if rule > 0 {
                    one(&shadowed);
                }
            }
            if is_known(&view) {
                one(&known);
                let by_kernel = match outcome {
                    Outcome::Kills(rule) => Some(rule),
                    Outcome::Nothing => None,
                    Outcome::Undecided => return Err(TestCaseError::fail(said)),
                };
                prop_assert_eq!(by_kernel, by_agent, "{}", said);
                if verdicts.iter().enumerate().any(|(rule, verdict)| {
                    !late.contains(&(rule, kind)) && *verdict == (Verdict::Match, Verdict::Match)
                }) {
                    one(&excepted);
                }
            } else {
                match outcome {
                    Outcome::Kills(_) => one(&killed_unknown),
                    Outcome::Undecided => one(&undecided),
                    // Nothing that the agent would be certain to kill is missed.
                    Outcome::Nothing => prop_assert_eq!(by_agent, None, "{}", said),
                }
            }
        }
        Ok(())
    });
    common::passed(run);
    let counts = [
        rules,
        taken,
        execs,
        kills,
        killed_unknown,
        known,
        undecided,
        excepted,
        shadowed,
        files,
        connections,
        scoped,
        presumed,
    ];
    let [
        rules,
        taken,
        execs,
        kills,
        killed_unknown,
        known,
        undecided,
        excepted,
        shadowed,
        files,
        connections,
        scoped,
        presumed,
    ] = counts.map(Cell::into_inner);
    let _ = writeln!(
        std::io::stderr(),
        "kernel against matcher: {taken} of {rules} rules on a kind taken; {execs} events ({known} wholly known): {kills} killed \
         ({files} at files, {connections} at connections, {scoped} by rules that ask for workloads, {presumed} of them while pending, {killed_unknown} with something unknown, {shadowed} not by the first rule), \
         {undecided} undecided, {excepted} excepted"
    );
    assert!(execs >= 120_000 && taken > rules / 3, "{taken} of {rules}");
    for count in [
        kills,
        known,
        killed_unknown,
        undecided,
        excepted,
        shadowed,
        files,
        connections,
        scoped,
        presumed,
    ] {
        assert!(count > 1000, "{count}");
    }
}
