//! Random predicates and random events, made from a string of bytes so that
//! a failing case shrinks.
#![allow(dead_code, reason = "each test uses its part")]

mod families;

use proptest::test_runner::TestError;
use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_WRITE, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE,
    OPEN_CREATED, OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN,
};
use sumun_abi::record::{FLAW_DELETED, FLAW_LOST, FLAW_RACY, FLAW_TRUNCATED};
use sumun_proto::v1::{Batch, Event, Exit, File, Image, Kind, Network, Source, Writer};
use sumun_proto::{Host, View};

/// Choices read from bytes; zeros when they run out.
pub(crate) struct Dice<'a> {
    bytes: &'a [u8],
}

impl<'a> Dice<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *first
    }

    /// A number below `sides`, at most 256.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.byte() as usize % sides
    }

    pub(crate) fn chance(&mut self, of_16: usize) -> bool {
        self.roll(16) >= 16 - of_16
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.roll(items.len())]
    }
}

pub(crate) const PATHS: &[&str] = &[
    "/bin/sh",
    "/etc/passwd",
    "/etc/ssh/sshd_config",
    "/usr/bin/bash",
    "/tmp/a",
    "/tmp/\\xff\\\\b",
    "/usr/sbin/sh",
    "/한/글",
    "/",
    "/Tmp/Bin/SH",
    "/etc/cron.d/a",
    "/usr/lib/x/sh",
];
const NAMES: &[&str] = &["sh", "bash", "passwd", "글", "", "\\xff\\\\b", "a", "SH"];
const PARTS: &[&str] = &[
    "/etc/",
    "/tmp/",
    "/",
    "",
    "sh",
    "a",
    "\\",
    "\\xf",
    "/usr/",
    "/etc/pass",
    "글",
    "/sh",
    "/bash",
    "-c",
    "ss",
    "SH",
    "/Bin",
];
const ARGS: &[&str] = &["-c", "sh", "/tmp/a", "", "\\xff", "-C"];
/// Components of globs.
const GLOBS: &[&str] = &[
    "**",
    "*",
    "",
    "etc",
    "tmp",
    "?in",
    "[a-t]*",
    "[!e]*",
    "{sh,bash,SH}",
    "{usr/,}bin",
    "*[hw]d",
    "\\x*",
    "?",
    "[^a-y]",
    "T?p",
    "*.d",
    "sh",
    "글",
    "[-A-Z]*",
];
const ADDRESSES: &[&[u8]] = &[
    &[10, 0, 0, 1],
    &[192, 168, 1, 2],
    &[8, 8, 8, 8],
    &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];
const ADDRESS_TEXTS: &[&str] = &["10.0.0.1", "192.168.1.2", "8.8.8.8", "2001:db8::1", "::1"];
const NETS: &[&str] = &[
    "10.0.0.0/8",
    "0.0.0.0/0",
    "192.168.1.2/32",
    "2001:db8::/32",
    "::/0",
    "10.1.0.0/16",
];
const PORTS: &[u32] = &[0, 22, 80, 443, 1024, 65535];
const NUMBERS: &[i64] = &[0, 1, 2, 22, 80, 443, 1000, 1024, 65535, -1, 70000];

/// Fields by type, so that predicates are well-typed.
const TEXTS: &[&str] = &[
    "file.path",
    "proc.exe.name",
    "proc.exe.path",
    "file.name",
    "proc.cwd",
    "file.new_path",
    "file.source",
    "kind",
    "net.proto",
    "proc.parent.exe.path",
    "proc.parent.exe.name",
    "proc.args[0]",
    "proc.args[1]",
    "call",
    "file.xattr",
    "target.exe.path",
    "target.exe.name",
    "ptrace.request",
    "module.name",
    "module.params",
    "bpf.prog.type",
    "bpf.prog.name",
    "mount.source",
    "mount.target",
    "mount.type",
    "net.dst.path",
    "net.dst.name",
    "socket.family",
    "socket.type",
    "dns.question.name",
    "dns.question.type",
    "dns.rcode",
    "proc.exe.written_by",
];
const INTS: &[&str] = &[
    "net.dst.port",
    "net.src.port",
    "proc.uid",
    "proc.pid",
    "proc.auid",
    "exit.code",
    "exit.signal",
    "result",
    "file.mode",
    "size(proc.args)",
    "size(file.path)",
    "proc.parent.pid",
    "boot_ns",
    "file.new_mode",
    "file.new_uid",
    "priv.old.uid",
    "priv.new.euid",
    "priv.old.cap_effective",
    "target.pid",
    "target.fd",
    "mem.len",
    "bpf.prog.id",
    "net.folded",
    "socket.protocol",
    "proc.exe.age",
    "proc.exe.written_by_exec_id",
];
const BOOLS: &[&str] = &[
    "file.access.read",
    "file.access.write",
    "file.access.append",
    "file.create",
    "file.trunc",
    "net.dst.private",
    "proc.exe.deleted",
    "proc.exe.in_image",
    "proc.exe.setid",
    "proc.exe.written_by_lineage",
    "file.deleted",
    "file.in_image",
    "file.new_setuid",
    "file.new_exec",
    "dns.response",
];
const LISTS: &[&str] = &[
    "proc.args",
    "file.flaws",
    "proc.exe.flaws",
    "net.flaws",
    "priv.cap_gained",
    "ns.types",
    "mem.prot",
    "mount.flags",
    "target.exe.flaws",
    "dns.answers",
    "dns.flaws",
];

/// Numbers whose bits have names.
pub(crate) const CAPABILITY_SETS: &[&str] = &["proc.cap_effective", "proc.cap_permitted"];
const CAPABILITIES: &[&str] = &["cap_chown", "cap_kill", "cap_sys_admin", "cap_bpf"];

pub(crate) const KINDS: &[Kind] = &[
    Kind::Fork,
    Kind::Exec,
    Kind::Exit,
    Kind::Open,
    Kind::CloseWrite,
    Kind::Rename,
    Kind::Unlink,
    Kind::MapExec,
    Kind::Connect,
    Kind::Accept,
    Kind::Chmod,
    Kind::Chown,
    Kind::Link,
    Kind::Setxattr,
    Kind::Listen,
    Kind::Setid,
    Kind::Ptrace,
    Kind::PidfdGetfd,
    Kind::Unshare,
    Kind::MemfdCreate,
    Kind::MapWx,
    Kind::Prctl,
    Kind::Userfaultfd,
    Kind::ModuleLoad,
    Kind::Bpf,
    Kind::Mount,
    Kind::Integrity,
    Kind::ConnectUdp,
    Kind::ConnectUnix,
    Kind::Socket,
    Kind::Dns,
];

/// Fails with what was found, without the bytes that it was made from.
pub(crate) fn passed<T: std::fmt::Debug>(run: Result<(), TestError<T>>) {
    match run {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("given up: {reason}"),
    }
}

/// A batch with one event.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) batch: Batch,
    pub(crate) event: Event,
    pub(crate) host: Host,
}

impl Case {
    pub(crate) fn view(&self) -> View<'_> {
        View {
            host: &self.host,
            batch: &self.batch,
            event: &self.event,
            alert: None,
        }
    }
}

/// A random event. `unknowns` lets things be lost and cut off.
pub(crate) fn event(dice: &mut Dice<'_>, kind: Kind, unknowns: bool) -> Case {
    let mut batch = Batch {
        wall_offset_ns: 1_767_225_600_000_000_000,
        workloads: families::workloads(),
        ..Batch::default()
    };
    for number in 0..dice.roll(4) {
        let parent = u32::try_from(number).unwrap_or(0);
        let mut image = image(dice, parent, unknowns);
        // Which one it is is not known if its cgroup's record was lost.
        if !(unknowns && dice.chance(4)) {
            image.workload = u32::try_from(1 + dice.roll(batch.workloads.len())).unwrap_or(0);
        }
        batch.images.push(image);
    }
    let mut event = Event {
        kind: kind.into(),
        boot_ns: dice.roll(3) as u64,
        image: u32::try_from(batch.images.len()).unwrap_or(0),
        tid: 1,
        ..Event::default()
    };
    match kind {
        Kind::Exit => {
            event.exit = Some(Exit {
                code: dice.pick(&[0, 0x100, 0x7f00, 9, 15]),
            });
        }
        Kind::Open | Kind::CloseWrite | Kind::MapExec | Kind::Rename | Kind::Unlink => {
            event.file = Some(file(dice, kind, unknowns));
        }
        Kind::Connect | Kind::Accept | Kind::Listen => {
            let mut network = network(dice, unknowns);
            if kind == Kind::Listen {
                // There is no other end.
                network.src_ip = Vec::new();
            }
            event.network = Some(network);
        }
        Kind::ConnectUdp | Kind::ConnectUnix | Kind::Socket | Kind::Dns => {
            let network = network(dice, unknowns);
            event.network = Some(families::talk(dice, kind, network, unknowns));
            if kind == Kind::Dns {
                event.dns = Some(families::dns(dice, unknowns));
            }
        }
        Kind::Chmod | Kind::Chown | Kind::Link | Kind::Setxattr => {
            let file = file(dice, kind, unknowns);
            event.file = Some(families::changed(dice, file, unknowns));
            event.call = dice.pick(families::CALLS).to_owned();
        }
        Kind::MemfdCreate | Kind::ModuleLoad => {
            event.file = Some(file(dice, kind, unknowns));
            event.kernel = Some(families::kernel(dice, unknowns));
        }
        Kind::Bpf | Kind::Mount => {
            event.kernel = Some(families::kernel(dice, unknowns));
            event.call = dice.pick(families::CALLS).to_owned();
        }
        // No call leads to it.
        Kind::Integrity => event.kernel = Some(families::kernel(dice, unknowns)),
        Kind::Setid
        | Kind::Ptrace
        | Kind::PidfdGetfd
        | Kind::Unshare
        | Kind::MapWx
        | Kind::Prctl
        | Kind::Userfaultfd => {
            event.privilege = Some(families::privilege(dice, unknowns));
            event.call = dice.pick(families::CALLS).to_owned();
        }
        _ => {}
    }
    Case {
        batch,
        event,
        host: Host {
            id: "host-1".to_owned(),
            name: "sh".to_owned(),
        },
    }
}

fn image(dice: &mut Dice<'_>, parent: u32, unknowns: bool) -> Image {
    let flaws = flaws(dice, unknowns);
    let seen = !dice.chance(2);
    let parent_pid = u32::from(parent != 0 || unknowns && dice.chance(4));
    Image {
        exec_id: 7,
        // Only these have no parent.
        pid: match parent_pid {
            0 => dice.pick(&[1, 2]),
            _ => dice.pick(&[1, 2, 22, 1000]),
        },
        parent,
        parent_pid,
        seen,
        exe_path: dice.pick(PATHS).to_owned(),
        exe_flaws: flaws,
        args: (0..dice.roll(4))
            .map(|_| dice.pick(ARGS).to_owned())
            .collect(),
        args_flaws: if unknowns && dice.chance(4) {
            FLAW_TRUNCATED.into()
        } else {
            0
        },
        cwd: dice.pick(PATHS).to_owned(),
        setid: dice.chance(8).then_some(dice.chance(3)),
        script: dice.pick(&["", "", "/tmp/sh", "/usr/bin/sh"]).to_owned(),
        tty: dice.pick(&["", "pts/0", "tty1"]).to_owned(),
        in_image: dice.chance(8).then_some(dice.chance(5)).filter(|_| seen),
        writer: dice.chance(6).then(|| Writer {
            exec_id: dice.pick(&[0, 7]),
            path: (!(unknowns && dice.chance(3))).then(|| dice.pick(PATHS).to_owned()),
            lineage: dice.chance(5),
        }),
        exe_changed_ns: dice.pick(&[0, 1_767_225_599_000_000_000, 1_767_225_605_000_000_000]),
        auid: dice.chance(8).then_some(1000),
        kernel_thread: dice.chance(1),
        uid: dice.pick(&[0, 1, 1000]),
        cap_effective: dice
            .chance(12)
            .then(|| dice.pick(&[0, 1, 1 << 21, 1 << 39 | 1, u64::MAX])),
        cap_permitted: dice.pick(&[0, 1 << 5, u64::MAX]),
        ..Image::default()
    }
}

fn flaws(dice: &mut Dice<'_>, unknowns: bool) -> u32 {
    let mut flaws = 0;
    if dice.chance(3) {
        flaws |= FLAW_RACY;
    }
    if dice.chance(3) {
        flaws |= FLAW_DELETED;
    }
    if unknowns && dice.chance(5) {
        flaws |= dice.pick(&[FLAW_LOST, FLAW_TRUNCATED]);
    }
    flaws.into()
}

fn file(dice: &mut Dice<'_>, kind: Kind, unknowns: bool) -> File {
    // A rename or unlink is told by name alone.
    let opened = matches!(kind, Kind::Open | Kind::CloseWrite | Kind::MapExec);
    let object = !dice.chance(3) && opened;
    let mut flags = 0;
    for bit in [
        ACCESS_READ,
        ACCESS_WRITE,
        ACCESS_APPEND,
        OPEN_CREATED,
        OPEN_TRUNCATE,
    ] {
        if dice.chance(6) {
            flags |= bit;
        }
    }
    if kind == Kind::MapExec {
        flags = dice.pick(&[0, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE]);
        if dice.chance(6) {
            flags |= FILE_DELETED;
        }
    } else if unknowns && dice.chance(4) {
        flags |= OPEN_TRUNCATE_UNKNOWN;
    }
    let path = (!dice.chance(2)).then(|| dice.pick(PATHS).to_owned());
    let mut flaws = flaws(dice, unknowns);
    if path.is_none() {
        // What is not there was not cut off.
        flaws &= !u32::from(FLAW_TRUNCATED);
    }
    File {
        path,
        source: dice
            .pick(&[Source::None, Source::Object, Source::Caller])
            .into(),
        flaws,
        flags,
        dev: u32::from(object),
        ino: object.into(),
        mode: 0o100_644,
        new_path: (matches!(kind, Kind::Rename | Kind::Link) && !dice.chance(3))
            .then(|| dice.pick(PATHS).to_owned()),
        ..File::default()
    }
}

fn network(dice: &mut Dice<'_>, unknowns: bool) -> Network {
    let lost = unknowns && dice.chance(4);
    let address = |dice: &mut Dice<'_>| {
        if lost || dice.chance(2) {
            Vec::new()
        } else {
            dice.pick(ADDRESSES).to_vec()
        }
    };
    Network {
        src_ip: address(dice),
        dst_ip: address(dice),
        src_port: dice.pick(PORTS),
        dst_port: dice.pick(PORTS),
        protocol: dice.pick(&[6, 262]),
        result: dice.chance(12).then(|| dice.pick(&[0, -1])),
        flags: if lost {
            sumun_abi::event::network::CONN_LOST.into()
        } else {
            0
        },
        ..Network::default()
    }
}

/// The text of a random well-typed predicate.
pub(crate) fn predicate(dice: &mut Dice<'_>, depth: usize) -> String {
    if depth == 0 {
        return atom(dice);
    }
    match dice.roll(8) {
        0 | 1 => {
            let parts: Vec<String> = (0..2 + dice.roll(2))
                .map(|_| predicate(dice, depth - 1))
                .collect();
            format!("({})", parts.join(" && "))
        }
        2 | 3 => {
            let parts: Vec<String> = (0..2 + dice.roll(2))
                .map(|_| predicate(dice, depth - 1))
                .collect();
            format!("({})", parts.join(" || "))
        }
        4 => format!("!({})", predicate(dice, depth - 1)),
        _ => atom(dice),
    }
}

fn atom(dice: &mut Dice<'_>) -> String {
    match dice.roll(16) {
        0 | 1 => text_test(dice, TEXTS),
        2 => {
            let field = dice.pick(TEXTS);
            let (field, lowered) = perhaps_lowered(dice, field);
            format!("{field} in {}", cased(texts(dice, &field), lowered))
        }
        14 | 15 => {
            let field = dice.pick(TEXTS);
            glob_test(dice, field)
        }
        3 => number_test(dice, INTS),
        4 => {
            let items: Vec<String> = (0..dice.roll(4))
                .map(|_| dice.pick(NUMBERS).to_string())
                .collect();
            format!("{} in [{}]", dice.pick(INTS), items.join(", "))
        }
        5 => {
            let field = dice.pick(BOOLS);
            dice.pick(&["", "!", "false == "]).to_owned() + field
        }
        6 => {
            let net = dice.pick(NETS);
            format!(
                "cidr('{net}').containsIP(net.{}.ip)",
                dice.pick(&["src", "dst"])
            )
        }
        7 => {
            let address = dice.pick(ADDRESS_TEXTS);
            format!("net.{}.ip == '{address}'", dice.pick(&["src", "dst"]))
        }
        8 => {
            let field = dice.pick(&[
                "file.path",
                "proc.exe.path",
                "exit.code",
                "net.dst.port",
                "proc.args",
                "file.create",
            ]);
            format!("has({field})")
        }
        9 if dice.chance(6) => {
            let (name, field) = (dice.pick(CAPABILITIES), dice.pick(CAPABILITY_SETS));
            format!("{} in {field}", literal(name))
        }
        9 => {
            let list = dice.pick(LISTS);
            format!("{} in {list}", literal(dice.pick(ARGS)))
        }
        10 => {
            let (list, how) = (dice.pick(LISTS), dice.pick(&["exists", "all"]));
            format!("{list}.{how}(i, {})", text_test(dice, &["i"]))
        }
        11 => {
            let how = dice.pick(&["exists", "all"]);
            let body = match dice.roll(3) {
                0 => text_test(dice, &["a.exe.name", "a.exe.path"]),
                1 => number_test(dice, &["a.pid"]),
                _ => format!(
                    "({} || {})",
                    text_test(dice, &["a.exe.name", "proc.exe.name"]),
                    number_test(dice, &["a.pid", "proc.uid"])
                ),
            };
            format!("proc.ancestors.{how}(a, {body})")
        }
        12 => dice
            .pick(&[
                "proc.uid != proc.pid",
                "proc.exe.name == file.name",
                "time >= timestamp('2026-01-01T00:00:00Z')",
                "proc.parent.exe.name < proc.exe.name",
                "file.create == file.trunc",
                "proc.exe.name.lowerAscii() == file.name.lowerAscii()",
                "proc.args[0].lowerAscii() != proc.exe.path",
                "proc.parent.exe.name.lowerAscii() < 'm'",
                "size(file.path.lowerAscii()) > 6",
                "proc.exe.name.lowerAscii() in proc.args",
                "true",
                "false",
                "1 < 2",
            ])
            .to_owned(),
        _ => {
            let pattern = dice.pick(&["^/(etc|tmp)/", "s.*h$", "", "[0-9]", "글", "(?i)bin/S"]);
            let field = dice.pick(&["file.path", "proc.exe.path", "proc.cwd"]);
            let (field, lowered) = perhaps_lowered(dice, field);
            format!("{field}.matches('{}')", cased(pattern.to_owned(), lowered))
        }
    }
}

fn text_test(dice: &mut Dice<'_>, fields: &[&str]) -> String {
    let field = dice.pick(fields);
    let (value, lowered) = perhaps_lowered(dice, field);
    let test = match dice.roll(7) {
        0 => format!(" == {}", fitting(dice, field)),
        1 => format!(" != {}", fitting(dice, field)),
        2 | 3 => format!(".startsWith({})", literal(dice.pick(PARTS))),
        4 => format!(".endsWith({})", literal(dice.pick(PARTS))),
        5 => return glob_test(dice, field),
        _ => format!(".contains({})", literal(dice.pick(PARTS))),
    };
    match lowered {
        // The functions' own names have upper-case letters.
        true => match test.split_once('(') {
            Some((function, literal)) => {
                format!("{value}{function}({}", literal.to_ascii_lowercase())
            }
            None => value + &test.to_ascii_lowercase(),
        },
        false => value + &test,
    }
}

fn glob_test(dice: &mut Dice<'_>, field: &str) -> String {
    // A kind is compared with kinds only.
    let field = if field == "kind" { "proc.cwd" } else { field };
    let (value, lowered) = perhaps_lowered(dice, field);
    let glob = cased(literal(&glob(dice)), lowered);
    format!("{value}.glob({glob})")
}

fn glob(dice: &mut Dice<'_>) -> String {
    let components: Vec<&str> = (0..1 + dice.roll(3)).map(|_| dice.pick(GLOBS)).collect();
    let root = if dice.chance(10) { "/" } else { "" };
    root.to_owned() + &components.join("/")
}

/// The field, at times in lower case; and whether it is.
fn perhaps_lowered(dice: &mut Dice<'_>, field: &str) -> (String, bool) {
    let lowered = field != "kind" && dice.chance(4);
    (
        match lowered {
            true => format!("{field}.lowerAscii()"),
            false => field.to_owned(),
        },
        lowered,
    )
}

/// What a text in lower case is compared with has no upper-case letters either.
fn cased(text: String, lowered: bool) -> String {
    match lowered {
        true => text.to_ascii_lowercase(),
        false => text,
    }
}

fn number_test(dice: &mut Dice<'_>, fields: &[&str]) -> String {
    let op = dice.pick(&["==", "!=", "<", "<=", ">", ">="]);
    let (field, number) = (dice.pick(fields), dice.pick(NUMBERS));
    if dice.chance(4) {
        format!("{number} {op} {field}")
    } else {
        format!("{field} {op} {number}")
    }
}

/// A literal that the field could equal.
fn fitting(dice: &mut Dice<'_>, field: &str) -> String {
    literal(match field {
        "kind" => dice.pick(&["open", "exec", "connect"]),
        "proc.exe.name" | "file.name" | "a.exe.name" | "i" => dice.pick(NAMES),
        _ => dice.pick(PATHS),
    })
}

fn texts(dice: &mut Dice<'_>, field: &str) -> String {
    let items: Vec<String> = (0..dice.roll(4)).map(|_| fitting(dice, field)).collect();
    format!("[{}]", items.join(", "))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\"))
}
