//! The rules on a call that is held: whether it is denied.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::stat::{fstat, major, minor};
use sumun_abi::event::process::CAPS_UNKNOWN;
use sumun_abi::record::{FLAW_DELETED, FLAW_LOST, FLAW_TRUNCATED};
use sumun_policy::Verdict;
use sumun_proto::v1::{Batch, Event, File, Image, Kind, Source, Workload};
use sumun_proto::{Host, View, text};

use super::aside::Aside;
use super::opener::{Asked, Opener, asked};
use super::wire::{self, Call, Cgroups, Decision, Held};
use crate::enforce::guard::{self, DELETED};
use crate::enrich::workload::of_path;
use crate::kernel::fanotify;
use crate::kernel::known::known;
use crate::pipeline::clock::boot_ns;
use crate::pipeline::policies::wall_ns;

/// A file in the eyes of stat(2).
pub(super) type Id = (u64, u64);

/// All that is asked of a call.
pub(super) struct Judge {
    rules: Vec<Held>,
    host: Host,
    /// Who reads of which cgroup a thread is; or why that cannot be told.
    cgroups: Result<Aside, String>,
    /// The agent: it is never made to wait for itself.
    agent: u32,
    /// The agent's program, when the agent's user runs it: another can run it with a library of its own.
    program: Option<Id>,
}

/// Whose the one that waits is.
#[derive(Default)]
struct Whose {
    /// As the path of its cgroup tells; `None`: not known.
    workload: Option<Workload>,
    /// Its cgroup's answers to the questions of the rules; `None`: nothing is known.
    answers: Option<[u64; 2]>,
    /// Why nothing is known.
    why: Option<&'static str>,
}

/// A file that is being opened.
struct Object {
    id: Id,
    mode: u32,
    /// What it may be called; the first is how the call reached it. Empty if that cannot be read.
    paths: Vec<Vec<u8>>,
    flaws: u32,
    /// As the first of the paths.
    reached: bool,
}

impl Judge {
    pub(super) fn new(
        rules: Vec<Held>,
        host: Host,
        cgroups: Result<Aside, String>,
        agent: u32,
    ) -> Self {
        let own = known("/proc/self/exe");
        Self {
            rules,
            host,
            cgroups,
            agent,
            program: own.ok().map(|file| file.id),
        }
    }

    /// What there is to tell of a call; `None` if no rule is about it. `named` are the paths by which rules name a file, `cgroups` what is
    /// known of these.
    pub(super) fn judge(
        &self,
        cgroups: &Cgroups,
        (mask, tid): (u64, u32),
        file: impl AsFd,
        named: impl Fn(Id) -> Vec<Vec<u8>>,
    ) -> Option<Call> {
        let kind = match mask & fanotify::EXEC != 0 {
            true => Kind::Exec,
            false => Kind::Open,
        };
        let object = Object::of(file, named)?;
        let about = |rule: &&Held| {
            let named = object.paths.iter().any(|path| rule.names.contain(path));
            rule.kind == kind && (named || !object.reached)
        };
        if !self.rules.iter().any(|rule| about(&rule)) {
            return None;
        }
        let mut call = Call {
            decision: Decision::Failed,
            reason: String::new(),
            rules: Vec::new(),
            kind: kind.into(),
            boot_ns: boot_ns().unwrap_or(0),
            pid: tid,
            tid,
            start_ns: 0,
            exe: None,
            ids: [0; 4],
            cap_effective: CAPS_UNKNOWN,
            path: object.reached.then(|| text::from_bytes(&object.paths[0])),
            flaws: object.flaws,
            flags: 0,
            dev: device(object.id.0),
            ino: object.id.1,
            mode: object.mode,
        };
        if kind == Kind::Open {
            match asked(tid) {
                // The kernel opens a program for its exec: that is judged as such.
                Asked::Exec => return None,
                Asked::Open(flags) => call.flags = flags,
            }
        }
        let opener = match Opener::of(tid) {
            Ok(opener) => opener,
            Err(why) => {
                call.rules = self
                    .rules
                    .iter()
                    .filter(about)
                    .map(|rule| rule.rule)
                    .collect();
                call.reason = format!("who it is could not be told: {why}");
                return Some(call);
            }
        };
        if [self.agent, std::process::id()].contains(&opener.pid) {
            return None;
        }
        call.pid = opener.pid;
        call.start_ns = opener.stat.start_ns();
        call.ids = opener.ids;
        call.cap_effective = opener.cap_effective;
        call.exe.clone_from(&opener.exe);
        let asks = self.rules.iter().filter(about).any(|rule| rule.asks);
        let whose = match asks {
            true => self.whose(tid, cgroups),
            false => Whose::default(),
        };
        let (mut certain, mut doubtful) = (Vec::new(), Vec::new());
        let mut through = None;
        for rule in self.rules.iter().filter(about) {
            let mut whole = Judged::No;
            if object.paths.is_empty() {
                whole = self.one(rule, &call, &whose, None);
            }
            for (index, path) in object.paths.iter().enumerate() {
                let judged = self.one(rule, &call, &whose, Some(path));
                if judged == Judged::Certain && whole != Judged::Certain && index > 0 {
                    through = Some(text::from_bytes(path));
                }
                whole = whole.max(judged);
            }
            match whole {
                Judged::Certain => certain.push(rule.rule),
                Judged::Doubt => doubtful.push(rule.rule),
                Judged::No => {}
            }
        }
        if certain.is_empty() {
            if doubtful.is_empty() {
                return None;
            }
            call.rules = doubtful;
            call.decision = Decision::Undecided;
            call.reason = self.doubt(asks, &whose);
            return Some(call);
        }
        call.rules = certain;
        match self.guarded(&opener, kind, &object) {
            Ok(None) => {
                call.decision = Decision::Denied;
                if let Some(path) = through {
                    call.reason = format!("it is the file that the rule names {path}");
                }
            }
            Ok(Some(Guarded::Silently)) => return None,
            Ok(Some(Guarded::Because(why))) => {
                (call.decision, call.reason) = (Decision::Guarded, why);
            }
            Err(why) => call.reason = why,
        }
        Some(call)
    }

    /// Whose a thread is that waits.
    fn whose(&self, tid: u32, cgroups: &Cgroups) -> Whose {
        let Ok(aside) = &self.cgroups else {
            return Whose::default();
        };
        match aside.read(tid) {
            Ok(path) => Whose {
                answers: wire::answers(cgroups, &path),
                workload: Some(of_path(&path)),
                why: None,
            },
            Err(why) => Whose {
                why: Some(why),
                ..Whose::default()
            },
        }
    }

    /// Why a rule is not certain.
    fn doubt(&self, asks: bool, whose: &Whose) -> String {
        let unknown = "a value that the rule asks for was unknown while the call was held";
        match (&self.cgroups, &whose.workload) {
            _ if !asks => unknown.to_owned(),
            (Err(why), _) => format!("whose the process is cannot be told: {why}"),
            (_, None) => format!(
                "whose the process is could not be told: {}",
                whose.why.unwrap_or("its cgroup is not known")
            ),
            (_, Some(workload)) => format!(
                "{unknown}: perhaps its workload ({}) was not named yet",
                workload.cgroup
            ),
        }
    }

    fn one(&self, rule: &Held, call: &Call, whose: &Whose, path: Option<&[u8]>) -> Judged {
        let kind = rule.kind;
        let path = path.map(text::from_bytes);
        let exe = match kind {
            Kind::Exec => path.clone(),
            _ => call.exe.clone(),
        };
        let [uid, gid, euid, egid] = call.ids;
        let lost = u32::from(FLAW_LOST);
        let now_ns = wall_ns();
        let batch = Batch {
            images: vec![Image {
                pid: call.pid,
                start_ns: call.start_ns,
                seen: true,
                exe_flaws: if exe.is_some() { 0 } else { lost },
                exe_path: exe.unwrap_or_default(),
                args_flaws: lost,
                cwd_flaws: lost,
                uid,
                gid,
                euid,
                egid,
                cap_effective: Some(call.cap_effective),
                workload: u32::from(whose.workload.is_some()),
                ..Image::default()
            }],
            workloads: whose.workload.iter().cloned().collect(),
            wall_offset_ns: now_ns.wrapping_sub(call.boot_ns.cast_signed()),
            ..Batch::default()
        };
        let event = Event {
            kind: kind.into(),
            boot_ns: call.boot_ns,
            image: 1,
            tid: call.tid,
            file: (kind == Kind::Open).then(|| File {
                flaws: match path {
                    Some(_) => call.flaws & !u32::from(FLAW_TRUNCATED),
                    None => call.flaws,
                },
                path,
                source: Source::Object.into(),
                flags: call.flags,
                dev: call.dev,
                ino: call.ino,
                mode: call.mode,
                ..File::default()
            }),
            ..Event::default()
        };
        let view = View {
            host: &self.host,
            batch: &batch,
            event: &event,
            alert: None,
        };
        match rule.matches(&view, whose.answers, now_ns) {
            Verdict::NoMatch => Judged::No,
            Verdict::Match => Judged::Certain,
            Verdict::Undecided => Judged::Doubt,
        }
    }

    /// Whether it may not be denied.
    ///
    /// # Errors
    /// That cannot be told; then it is not denied either.
    fn guarded(
        &self,
        opener: &Opener,
        kind: Kind,
        object: &Object,
    ) -> Result<Option<Guarded>, String> {
        let exe = known(&format!("/proc/{}/exe", opener.pid));
        let own_user = opener.ids[0] == nix::unistd::getuid().as_raw();
        if own_user && exe.is_ok_and(|file| Some(file.id) == self.program) {
            return Ok(Some(Guarded::Silently));
        }
        if let Some(guarded) = guard::of_call(opener.pid, opener.stat)? {
            return Ok(Some(Guarded::Because(guarded)));
        }
        if kind == Kind::Exec && object.paths.iter().any(|path| is_loader(path)) {
            return Ok(Some(Guarded::Because(
                "no policy may deny the dynamic loader: the kernel opens it for every program"
                    .into(),
            )));
        }
        Ok(None)
    }
}

/// From the least: what all names of a file together lead to is the most of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Judged {
    No,
    Doubt,
    Certain,
}

enum Guarded {
    /// The agent's own: there is nothing to tell.
    Silently,
    Because(String),
}

impl Object {
    fn of(file: impl AsFd, named: impl Fn(Id) -> Vec<Vec<u8>>) -> Option<Self> {
        let stat = fstat(&file).ok()?;
        #[expect(
            clippy::useless_conversion,
            reason = "the fields' types differ between processors"
        )]
        let (id, links) = (
            (stat.st_dev as u64, stat.st_ino as u64),
            u64::from(stat.st_nlink),
        );
        let link = fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
        let (mut paths, mut flaws) = (Vec::new(), 0);
        match &link {
            Ok(path) => {
                let path = path.as_os_str().as_bytes();
                match path.strip_suffix(DELETED) {
                    None => paths.push(path.to_vec()),
                    Some(stripped) if links == 0 => {
                        flaws |= u32::from(FLAW_DELETED);
                        paths.push(stripped.to_vec());
                    }
                    // A name may end so; or this name of several is gone.
                    Some(stripped) => paths.extend([path.to_vec(), stripped.to_vec()]),
                }
            }
            // Longer than a page.
            Err(_) => flaws |= u32::from(FLAW_TRUNCATED),
        }
        for other in named(id) {
            if !paths.contains(&other) {
                paths.push(other);
            }
        }
        Some(Self {
            id,
            mode: stat.st_mode,
            reached: link.is_ok(),
            paths,
            flaws,
        })
    }
}

/// As the kernel encodes it: include/linux/kdev_t.h.
fn device(dev: u64) -> u32 {
    let number = major(dev) << 20 | minor(dev);
    u32::try_from(number).unwrap_or(0)
}

/// A file called like the loader that dynamic programs name as their interpreter.
fn is_loader(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    ["ld-linux", "ld-musl", "ld.so", "ld64.so", "ld-2."]
        .iter()
        .any(|start| name.starts_with(start.as_bytes()))
}
