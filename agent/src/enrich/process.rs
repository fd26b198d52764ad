//! The process tree: every program image that a record may still name, with its ancestry.
//!
//! Kept exact by fork, exec and exit records, bootstrapped by the task iterator
//! after the hooks are attached (so nothing falls between the two) and, after a
//! restart, by the images of batches still in the spool. The key is the kernel's own name of an image
//! (pid, start time, image count), so a reused pid is another process, and a
//! record that is read late still finds the image that made it.
//!
//! Memory is bounded. A process that has exited stays until the bulk ring has been
//! read beyond its exit, and as long as a descendant names it; while a rule asks who wrote an executable, [`WRITERS_MAX`] of them
//! longer. Chains are cut at [`DEPTH_MAX`] ancestors. Above [`Limits::bytes`] those go first, then the arguments of the
//! longest-known images are dropped (marked truncated) and then exited images;
//! both are counted. Living processes are never forgotten: the kernel bounds their number (`pid_max`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use sumun_abi::event::process::{Actor, Namespaces};
use sumun_abi::record::{FLAW_PARTIAL, FLAW_TRUNCATED};
use sumun_proto::identity::exec_id;

use super::writer::Writer;
use crate::kernel::Kin;
use crate::privacy::Redactor;

/// Ancestors kept for one process; a longer chain is cut and marked as going on unseen.
pub const DEPTH_MAX: u32 = 64;
/// How often all images are looked through for who is of a lineage: a process made for another one's child is found in a turn of its own.
const LINEAGE_TURNS: usize = 8;

/// Images that are kept after their end while a rule asks who wrote an executable; of those that ended before them it is unknown.
/// A few MiB, within the tree's limit.
pub const WRITERS_MAX: usize = 8192;

/// The longest clock tick of `/proc`, ns.
const TICK_MAX_NS: u64 = 10_000_000;
/// Half of what an `exec_id` counts.
const NEVER_BEGAN: u64 = 1 << 19;

/// Flaw of arguments that were dropped to keep within the memory limit.
pub(crate) const DROPPED: u32 = (FLAW_TRUNCATED | FLAW_PARTIAL) as u32;

/// The kernel's name of a program image on one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// Thread group id, initial pid namespace.
    pub pid: u32,
    /// Start of the process, ns since boot.
    pub start_ns: u64,
    /// `self_exec_id`.
    pub image: u64,
}

impl ImageKey {
    /// The process whose image it is.
    #[must_use]
    pub fn process(&self) -> Kin {
        Kin {
            pid: self.pid,
            start_ns: self.start_ns,
        }
    }

    /// The image an actor was.
    #[must_use]
    pub fn of(actor: &Actor) -> Self {
        Self {
            pid: actor.pid,
            start_ns: actor.start_ns,
            image: actor.image,
        }
    }
}

/// What an exec set and a fork inherits.
#[derive(Debug, Default)]
pub struct Program {
    /// Path of the executable, catalogue form.
    pub exe_path: String,
    /// `FLAW_*` of it.
    pub exe_flaws: u32,
    /// Device of the executable.
    pub exe_dev: u32,
    /// Inode of the executable.
    pub exe_ino: u64,
    /// It came with the image that the root of the process's mount namespace is of; `None` = that is no image.
    pub in_image: Option<bool>,
    /// It runs with more than its caller's real ids have; `None` = its exec was not seen.
    pub setid: Option<bool>,
    /// What was executed, if the executable is what runs it: its path as the caller gave it, in `cwd` if that was relative.
    pub script: String,
    /// Its inode's change time, ns since the Unix epoch; 0 = not known.
    pub exe_changed_ns: u64,
    /// Arguments.
    pub args: Vec<String>,
    /// `FLAW_*` of them.
    pub args_flaws: u32,
    /// Bytes they had in all.
    pub args_total: u64,
    /// Working directory at exec.
    pub cwd: String,
    /// `FLAW_*` of it.
    pub cwd_flaws: u32,
    /// Login user, `None` = nobody logged in.
    pub auid: Option<u32>,
    /// Session leader's pid, 0 = not known.
    pub session: u32,
    /// Controlling terminal, as below `/dev`; empty = none.
    pub tty: String,
    /// Capabilities: effective, permitted, inheritable.
    pub caps: [u64; 3],
    /// Found by the task iterator or restored, not seen at its exec.
    pub bootstrapped: bool,
    /// Has no user memory.
    pub kernel_thread: bool,
    /// Who wrote the executable; empty if that was not watched, or nobody did.
    pub writer: OnceCell<Writer>,
    pub(crate) charge: Option<Charge>,
    pub(crate) told: OnceCell<Option<Told>>,
}

/// Arguments as they leave the host, where they have secrets.
#[derive(Debug)]
pub(crate) struct Told {
    args: Vec<String>,
    _charge: Option<Charge>,
}

/// Bytes counted for as long as their holder lives, wherever it is held.
#[derive(Debug)]
pub(crate) struct Charge {
    total: Rc<Cell<usize>>,
    bytes: usize,
}

impl Charge {
    fn new(total: &Rc<Cell<usize>>, bytes: usize) -> Self {
        total.set(total.get() + bytes);
        Self {
            total: Rc::clone(total),
            bytes,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.set(self.total.get().saturating_sub(self.bytes));
    }
}

impl Program {
    /// False for a process that was found without its memory, on its way out.
    fn is_known(&self) -> bool {
        !self.bootstrapped || self.kernel_thread || !self.exe_path.is_empty()
    }

    /// The arguments as they leave the host, if they have secrets. They are looked through once.
    pub fn told(&self, redactor: &Redactor) -> Option<&[String]> {
        let told = self.told.get_or_init(|| {
            let cut = self.args_flaws & u32::from(FLAW_TRUNCATED | FLAW_PARTIAL) != 0;
            let args = redactor.redact(&self.args, cut)?;
            let bytes = args.iter().map(|arg| size_of::<String>() + arg.capacity());
            let charge = self.charge.as_ref();
            Some(Told {
                _charge: charge.map(|charge| Charge::new(&charge.total, bytes.sum())),
                args,
            })
        });
        told.as_ref().map(|told| told.args.as_slice())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.exe_path.capacity()
            + self.cwd.capacity()
            + self.script.capacity()
            + self.tty.capacity()
            + self
                .args
                .iter()
                .map(|arg| size_of::<String>() + arg.capacity())
                .sum::<usize>()
    }
}

/// Which login an image is of.
#[derive(Clone, Debug, Default)]
struct CameFrom {
    peer: Option<Rc<SocketAddr>>,
    /// As it was found of the image itself, or told before a restart: with no peer it is of no login, whatever it descends from.
    /// Else it is as inherited, and without a peer what it descends from may tell.
    certain: bool,
}

/// One image of one process.
#[derive(Debug)]
pub struct Node {
    /// Its key.
    pub key: ImageKey,
    /// `proc.exec_id`.
    pub exec_id: u64,
    /// Parent's pid as at fork and its `exec_id`; 0 = none or not known.
    named_parent: Cell<(u32, u64)>,
    /// `None`: no record of the image was seen.
    pub program: RefCell<Option<Rc<Program>>>,
    /// Namespaces at fork or exec.
    pub ns: Namespaces,
    /// Real and effective ids when the image began: uid, gid, euid, egid.
    pub ids: [u32; 4],
    /// Cgroup id and hierarchy when the image began.
    pub cgroup: (u64, u32),
    came_from: RefCell<CameFrom>,
    parent: RefCell<Option<Rc<Node>>>,
    /// Where it was made by another one than its parent is (`CLONE_PARENT`): by whom.
    maker: Cell<Option<Kin>>,
    /// Where the chain was cut above it: the nearest ancestor that lived then.
    beyond: Cell<Option<Kin>>,
    depth: Cell<u32>,
    alive: Cell<bool>,
    /// Only the task iterator has told of it: what a record says counts more.
    found: Cell<bool>,
    _charge: Charge,
}

impl Node {
    /// Parent's pid as at fork; 0 = none or not known.
    #[must_use]
    pub fn parent_pid(&self) -> u32 {
        self.named_parent.get().0
    }

    /// Parent's `exec_id`; 0 = none or not known.
    #[must_use]
    pub fn parent_exec_id(&self) -> u64 {
        self.named_parent.get().1
    }

    /// True while only the task iterator has told of it: its parent is that of now, not of its fork.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.found.get()
    }

    /// The parent's image, if it is known.
    #[must_use]
    pub fn parent(&self) -> Option<Rc<Node>> {
        self.parent.borrow().clone()
    }

    /// The program, if it is known.
    #[must_use]
    pub fn program(&self) -> Option<Rc<Program>> {
        self.program.borrow().clone()
    }

    /// Where the login came from that it is of; the last one, if several.
    #[must_use]
    pub fn login(&self) -> Option<SocketAddr> {
        self.came_from_where().map(|peer| *peer)
    }

    fn came_from_where(&self) -> Option<Rc<SocketAddr>> {
        let told = |node: &Self| {
            let came_from = node.came_from.borrow();
            let ends = came_from.certain || came_from.peer.is_some();
            ends.then(|| came_from.peer.clone())
        };
        if let Some(own) = told(self) {
            return own;
        }
        let mut above = self.parent();
        while let Some(node) = above {
            if let Some(peer) = told(&node) {
                return peer;
            }
            above = node.parent();
        }
        None
    }

    /// It, and all that descends from it, is of a login from there, or of none. What is certain already stays.
    pub fn came_from(&self, peer: Option<SocketAddr>) {
        let mut came_from = self.came_from.borrow_mut();
        if !came_from.certain {
            *came_from = CameFrom {
                peer: peer.map(Rc::new),
                certain: true,
            };
        }
    }

    /// It is of the same login as another image: noted, since the images between them may be given up before it is.
    fn came_with(&self, other: Option<&Self>) {
        if let Some(peer) = other.and_then(Self::came_from_where) {
            let mut came_from = self.came_from.borrow_mut();
            if !came_from.certain {
                came_from.peer = Some(peer);
            }
        }
    }

    /// Its own program was only found running, or not at all, and the other was told by a record.
    fn knows_less_than(&self, other: &Program) -> bool {
        let own = self.program.borrow();
        own.as_ref()
            .is_none_or(|own| own.bootstrapped && !other.bootstrapped)
    }
}

/// Bounds of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of programs (paths and arguments) and nodes.
    pub bytes: usize,
}

/// Counters of the tree, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Images known.
    pub images: usize,
    /// Estimated bytes.
    pub bytes: usize,
    /// Images whose arguments were dropped for memory.
    pub args_dropped: u64,
    /// Exited images forgotten early for memory.
    pub evicted: u64,
    /// Records that named an image of which nothing was known.
    pub unknown: u64,
}

/// All images that a record may still name.
#[derive(Debug)]
pub struct Tree {
    limits: Limits,
    images: HashMap<ImageKey, Rc<Node>>,
    /// Current image of each living process.
    current: Current,
    /// Exited or replaced images, oldest first, with the cycle in which that was read.
    gone: VecDeque<(u64, ImageKey)>,
    /// Those that no record can name any more, but the question who wrote a file; oldest first.
    writers: VecDeque<ImageKey>,
    /// Some rule asks that.
    keeps_writers: bool,
    /// Programs in the order they came, for dropping arguments; dead ones are skipped.
    programs: VecDeque<(std::rc::Weak<Program>, ImageKey)>,
    /// Processes that the task iterator showed before their parents: it goes by pid, and a
    /// parent's may be the higher one. Until [`Tree::join`].
    orphans: Vec<(Rc<Node>, ImageKey)>,
    cycle: u64,
    bytes: Rc<Cell<usize>>,
    stats: TreeStats,
}

/// What an exec record or the task iterator tells of an image.
#[derive(Debug)]
pub struct Began {
    /// The process.
    pub actor: Actor,
    /// Its program.
    pub program: Program,
    /// Its namespaces.
    pub ns: Namespaces,
    /// Its real parent when the record was made; pid 0 = none.
    pub parent: ImageKey,
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            images: HashMap::new(),
            current: HashMap::new(),
            gone: VecDeque::new(),
            writers: VecDeque::new(),
            keeps_writers: false,
            programs: VecDeque::new(),
            orphans: Vec::new(),
            cycle: 0,
            bytes: Rc::new(Cell::new(0)),
            stats: TreeStats::default(),
        }
    }

    /// A process was created: it has the program of the one that called fork, which is not
    /// its parent with `CLONE_PARENT`.
    pub fn fork(
        &mut self,
        child: &Actor,
        caller: ImageKey,
        parent: ImageKey,
        ns: Namespaces,
    ) -> Rc<Node> {
        let key = ImageKey::of(child);
        let parent_node = self.find_or_stub(parent);
        let caller_node = self.find_or_stub(caller);
        let inherited = caller_node.as_ref().and_then(|node| node.program());
        let login = caller_node.or_else(|| parent_node.clone());
        let named = (parent.pid, parent_exec_id_of(parent));
        // The task iterator may have come first, and found the child with another parent,
        // because its own had exited, or with another image.
        let later = self.current.get(&(key.pid, key.start_ns)).copied();
        if let Some(image) = later.filter(|image| *image >= key.image)
            && let Some(found) = self.images.get(&ImageKey { image, ..key })
            && found.found.get()
        {
            descend((found, parent_node.as_ref(), named), &self.current);
        }
        if let Some(known) = self.images.get(&key) {
            if let Some(inherited) = inherited
                && known.knows_less_than(&inherited)
            {
                *known.program.borrow_mut() = Some(inherited);
            }
            known.found.set(false);
            known.came_with(login.as_deref());
            return Rc::clone(known);
        }
        let node = self.insert_with(key, parent_node, named, inherited, child, ns);
        if (caller.pid, caller.start_ns) != (parent.pid, parent.start_ns) {
            node.maker.set(Some(caller.process()));
        }
        node.came_with(login.as_deref());
        if let Some(image) = later.filter(|image| *image > key.image) {
            self.current.insert((key.pid, key.start_ns), image);
            self.retire(&node);
        }
        node
    }

    /// An image began by exec, or was found running. The image before it, if there was one, is gone.
    pub fn began(&mut self, began: Began) -> Rc<Node> {
        let key = ImageKey::of(&began.actor);
        let found = began.program.bootstrapped;
        let program = began
            .program
            .is_known()
            .then(|| self.charged(began.program, key));
        if let Some(known) = self.images.get(&key).cloned() {
            // The task iterator may come after the exec record or before it: the record knows more.
            if let Some(program) = program
                && known.knows_less_than(&program)
            {
                *known.program.borrow_mut() = Some(program);
            }
            known.found.set(known.found.get() && found);
            return known;
        }
        let before = self
            .current
            .get(&(key.pid, key.start_ns))
            .and_then(|image| {
                self.images
                    .get(&ImageKey {
                        image: *image,
                        ..key
                    })
                    .cloned()
            });
        // The parent as at fork, not as it is now: a parent that has exited left the
        // process to another, which is no ancestor of what it did.
        let (parent, named) = match &before {
            Some(before) => (before.parent(), before.named_parent.get()),
            None => (
                self.find_or_stub(began.parent),
                (began.parent.pid, parent_exec_id_of(began.parent)),
            ),
        };
        let node = self.insert_with(key, parent, named, program, &began.actor, began.ns);
        // A parent that was found counts as long as no record tells another.
        let from_record = before.as_ref().is_some_and(|before| !before.found.get());
        node.found.set(found && !from_record);
        if node.found.get() && node.parent().is_none() && began.parent.pid != 0 {
            self.orphans.push((Rc::clone(&node), began.parent));
        }
        if let Some(before) = before {
            node.came_with(Some(&before));
            self.retire(&before);
        }
        node
    }

    /// The process has exited.
    pub fn exit(&mut self, actor: &Actor) -> Rc<Node> {
        let node = self.find(actor);
        self.current.remove(&(actor.pid, actor.start_ns));
        self.retire(&node);
        node
    }

    /// The image that a record names. What is not known is made up from the record
    /// alone: an image without a program.
    pub fn find(&mut self, actor: &Actor) -> Rc<Node> {
        let key = ImageKey::of(actor);
        if let Some(node) = self.images.get(&key) {
            return Rc::clone(node);
        }
        self.stats.unknown += 1;
        // Another image of the same process tells at least the parent.
        let sibling = self
            .current
            .get(&(key.pid, key.start_ns))
            .and_then(|image| {
                self.images
                    .get(&ImageKey {
                        image: *image,
                        ..key
                    })
                    .cloned()
            });
        let (parent, named) = match &sibling {
            Some(sibling) => (sibling.parent(), sibling.named_parent.get()),
            None => (None, (0, 0)),
        };
        let newer = sibling
            .as_ref()
            .is_none_or(|sibling| sibling.key.image < key.image);
        let node = self.insert_with(key, parent, named, None, actor, Namespaces::default());
        if newer {
            if let Some(sibling) = sibling {
                self.retire(&sibling);
            }
        } else if let Some(sibling) = sibling {
            self.current
                .insert((key.pid, key.start_ns), sibling.key.image);
            self.retire(&node);
        }
        node
    }

    /// The image of a process of which `/proc` tells: its start only to the tick. Of several it is the newest with this
    /// executable, else the newest.
    #[must_use]
    pub fn at_tick(&self, pid: u32, start_ns: u64, exe: Option<&str>) -> Option<Rc<Node>> {
        let of_process = self.images.values().filter(|node| {
            node.key.pid == pid && (start_ns..start_ns + TICK_MAX_NS).contains(&node.key.start_ns)
        });
        let has_exe = |node: &&Rc<Node>| {
            let program = node.program.borrow();
            exe.is_some() && program.as_ref().map(|program| program.exe_path.as_str()) == exe
        };
        of_process
            .max_by_key(|node| (node.key.start_ns, has_exe(node), node.key.image))
            .cloned()
    }

    /// An image that its process asked for and did not get: no record names it, and nobody can be its child. Its
    /// number lies far above those of images that began.
    #[must_use]
    pub fn never_began(&self, asked_by: &Node, program: Program, number: u64) -> Rc<Node> {
        let image = asked_by.key.image + NEVER_BEGAN + number % NEVER_BEGAN;
        let key = ImageKey {
            image,
            ..asked_by.key
        };
        Rc::new(Node {
            key,
            exec_id: exec_id(key.pid, key.start_ns, key.image),
            named_parent: Cell::new(asked_by.named_parent.get()),
            program: RefCell::new(Some(Rc::new(program))),
            ns: asked_by.ns,
            ids: asked_by.ids,
            cgroup: asked_by.cgroup,
            came_from: asked_by.came_from.clone(),
            parent: RefCell::new(asked_by.parent()),
            maker: asked_by.maker.clone(),
            beyond: asked_by.beyond.clone(),
            depth: Cell::new(asked_by.depth.get()),
            alive: Cell::new(false),
            found: Cell::new(false),
            _charge: Charge::new(&self.bytes, NODE_BYTES),
        })
    }

    /// Ends a cycle of reading. `bulk_emptied`: the bulk ring was read up to where
    /// it stood before this cycle's life records, so nothing older can come.
    pub fn end_cycle(&mut self, bulk_emptied: bool) {
        if bulk_emptied {
            while let Some((cycle, key)) = self.gone.front().copied() {
                if cycle >= self.cycle {
                    break;
                }
                self.gone.pop_front();
                if self.keeps_writers {
                    self.fade(key);
                    self.writers.push_back(key);
                } else {
                    self.forget(key);
                }
            }
        }
        while self.writers.len() > self.writers_kept() {
            if let Some(key) = self.writers.pop_front() {
                self.forget(key);
            }
        }
        self.cycle += 1;
        self.shrink();
    }

    /// The current image of every process that lives, as far as is known.
    pub fn living(&self) -> impl Iterator<Item = Rc<Node>> {
        self.current.iter().filter_map(|((pid, start_ns), image)| {
            let key = ImageKey {
                pid: *pid,
                start_ns: *start_ns,
                image: *image,
            };
            self.images.get(&key).cloned()
        })
    }

    /// A process with all that descend from it, and those of them that live, as far as is known. Of those that have ended the ones
    /// are in it that records may still name, and ancestors of what lives.
    #[must_use]
    pub fn lineage(&self, root: Kin) -> (HashSet<Kin>, Vec<Kin>) {
        let mut lineage = HashSet::from([root]);
        // Who was made by one that is found later is found in the next turn.
        for _ in 0..LINEAGE_TURNS {
            let known = lineage.len();
            for node in self.images.values() {
                let (mut at, mut way) = (Some(Rc::clone(node)), Vec::new());
                while let Some(node) = at {
                    let own = node.key.process();
                    let besides = [node.maker.get(), node.beyond.get()];
                    let is_of_it = |kin: &Kin| lineage.contains(kin);
                    if is_of_it(&own) || besides.iter().flatten().any(is_of_it) {
                        lineage.extend(way);
                        lineage.insert(own);
                        break;
                    }
                    way.push(own);
                    at = node.parent();
                }
            }
            if lineage.len() == known {
                break;
            }
        }
        let living = lineage.iter().copied();
        let living = living.filter(|kin| self.current.contains_key(&(kin.pid, kin.start_ns)));
        let living = living.collect();
        (lineage, living)
    }

    /// True while no record has told of the end of the process of an image.
    #[must_use]
    pub fn is_alive(&self, node: &Node) -> bool {
        self.current
            .contains_key(&(node.key.pid, node.key.start_ns))
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        TreeStats {
            images: self.images.len(),
            bytes: self.bytes.get(),
            ..self.stats
        }
    }

    /// Restores an image from a batch of before a restart; only what is not known yet.
    /// The image counts as gone until the task iterator or a record names it.
    pub fn restore(
        &mut self,
        actor: &Actor,
        parent: Option<&Rc<Node>>,
        named_parent: (u32, u64),
        program: Option<Program>,
        ns: Namespaces,
    ) -> Rc<Node> {
        let key = ImageKey::of(actor);
        if let Some(known) = self.images.get(&key) {
            return Rc::clone(known);
        }
        let program = program.map(|program| self.charged(program, key));
        self.insert_with(key, parent.cloned(), named_parent, program, actor, ns)
    }

    /// After the task iterator: gives those that it showed before their parents their parents.
    pub fn join(&mut self) {
        let mut orphans = std::mem::take(&mut self.orphans);
        // Parents first, so that each finds its parent's depth.
        orphans.sort_unstable_by_key(|(node, _)| node.key.start_ns);
        for (node, parent) in orphans {
            let known = self.images.get(&parent).cloned();
            // A parent is never younger, so no chain leads back to its start.
            if let Some(parent_node) = known
                && node.found.get()
                && node.parent().is_none()
                && parent.start_ns <= node.key.start_ns
                && parent.pid != node.key.pid
            {
                let named = node.named_parent.get();
                descend((&node, Some(&parent_node), named), &self.current);
            }
        }
    }

    /// After restoring and bootstrapping: what the task iterator did not find is gone.
    pub fn retire_all_but(&mut self, alive: &HashSet<ImageKey>) {
        let dead: Vec<_> = self
            .images
            .values()
            .filter(|node| !alive.contains(&node.key))
            .cloned()
            .collect();
        for node in dead {
            if self.current.get(&(node.key.pid, node.key.start_ns)) == Some(&node.key.image) {
                self.current.remove(&(node.key.pid, node.key.start_ns));
            }
            self.retire(&node);
        }
    }

    fn find_or_stub(&mut self, key: ImageKey) -> Option<Rc<Node>> {
        if key.pid == 0 {
            return None;
        }
        if let Some(node) = self.images.get(&key) {
            return Some(Rc::clone(node));
        }
        // Only known by name: what is made here can be filled by a later bootstrap.
        None
    }

    fn insert_with(
        &mut self,
        key: ImageKey,
        parent: Option<Rc<Node>>,
        named_parent: (u32, u64),
        program: Option<Rc<Program>>,
        actor: &Actor,
        ns: Namespaces,
    ) -> Rc<Node> {
        let depth = parent.as_ref().map_or(0, |parent| parent.depth.get() + 1);
        let node = Rc::new(Node {
            key,
            exec_id: exec_id(key.pid, key.start_ns, key.image),
            named_parent: Cell::new(named_parent),
            program: RefCell::new(program),
            ns,
            ids: [actor.uid, actor.gid, actor.euid, actor.egid],
            cgroup: (actor.cgroup_id, actor.cgroup_hierarchy),
            came_from: RefCell::default(),
            parent: RefCell::new(parent),
            maker: Cell::default(),
            beyond: Cell::default(),
            depth: Cell::new(depth),
            alive: Cell::new(true),
            found: Cell::new(false),
            _charge: Charge::new(&self.bytes, NODE_BYTES),
        });
        if depth >= DEPTH_MAX {
            cut(&node, &self.current);
        }
        self.images.insert(key, Rc::clone(&node));
        self.current.insert((key.pid, key.start_ns), key.image);
        node
    }

    fn retire(&mut self, node: &Rc<Node>) {
        if node.alive.replace(false) {
            self.gone.push_back((self.cycle, node.key));
        }
    }

    fn forget(&mut self, key: ImageKey) {
        self.images.remove(&key);
    }

    /// Whether images are kept after their end, because a rule asks who wrote an executable: [`WRITERS_MAX`] of them.
    pub fn keep_writers(&mut self, keep: bool) {
        self.keeps_writers = keep;
    }

    fn writers_kept(&self) -> usize {
        if self.keeps_writers { WRITERS_MAX } else { 0 }
    }

    /// The image of this name, if it is known.
    #[must_use]
    pub fn known(&self, key: ImageKey) -> Option<Rc<Node>> {
        self.images.get(&key).cloned()
    }

    /// Of an image that has ended, its path is enough, unless another runs the same program.
    fn fade(&self, key: ImageKey) {
        let Some(node) = self.images.get(&key) else {
            return;
        };
        let mut program = node.program.borrow_mut();
        if let Some(own) = program.as_ref()
            && Rc::strong_count(own) == 1
            && !own.args.is_empty()
        {
            *program = Some(Rc::new(self.slim(own)));
        }
    }

    fn charged(&mut self, mut program: Program, key: ImageKey) -> Rc<Program> {
        program.charge = Some(Charge::new(&self.bytes, program.bytes()));
        let program = Rc::new(program);
        self.programs.push_back((Rc::downgrade(&program), key));
        program
    }

    /// Brings the tree under its limit: arguments first, then what has exited.
    fn shrink(&mut self) {
        // Programs nobody holds any more would make the queue grow for ever.
        while self
            .programs
            .front()
            .is_some_and(|(program, _)| program.strong_count() == 0)
        {
            self.programs.pop_front();
        }
        if self.programs.len() > 2 * self.images.len() + 1024 {
            self.programs
                .retain(|(program, _)| program.strong_count() > 0);
        }
        while self.bytes.get() > self.limits.bytes {
            if let Some(key) = self.writers.pop_front() {
                self.forget(key);
            } else if let Some((program, key)) = self.programs.pop_front() {
                self.drop_args(&program, key);
            } else if let Some((_, key)) = self.gone.pop_front() {
                self.stats.evicted += 1;
                self.forget(key);
            } else {
                break;
            }
        }
    }

    fn drop_args(&mut self, program: &std::rc::Weak<Program>, key: ImageKey) {
        let Some(program) = program.upgrade() else {
            return;
        };
        if program.args.is_empty() {
            return;
        }
        let Some(node) = self.images.get(&key) else {
            return;
        };
        let slim = self.slim(&program);
        // Forked children that share it keep the old one until they exec or exit.
        *node.program.borrow_mut() = Some(Rc::new(slim));
        self.stats.args_dropped += 1;
    }

    /// The program without its arguments.
    fn slim(&self, program: &Program) -> Program {
        let mut slim = Program {
            exe_path: program.exe_path.clone(),
            exe_flaws: program.exe_flaws,
            exe_dev: program.exe_dev,
            exe_ino: program.exe_ino,
            in_image: program.in_image,
            setid: program.setid,
            script: program.script.clone(),
            exe_changed_ns: program.exe_changed_ns,
            args: Vec::new(),
            args_flaws: program.args_flaws | DROPPED,
            args_total: program.args_total,
            cwd: program.cwd.clone(),
            cwd_flaws: program.cwd_flaws,
            auid: program.auid,
            session: program.session,
            tty: program.tty.clone(),
            caps: program.caps,
            bootstrapped: program.bootstrapped,
            kernel_thread: program.kernel_thread,
            writer: program.writer.clone(),
            charge: None,
            told: OnceCell::new(),
        };
        slim.charge = Some(Charge::new(&self.bytes, slim.bytes()));
        slim
    }
}

/// Estimated bytes of a node with its places in the maps.
const NODE_BYTES: usize = size_of::<Node>() + 2 * size_of::<usize>() + 96;

fn parent_exec_id_of(parent: ImageKey) -> u64 {
    if parent.pid == 0 {
        0
    } else {
        exec_id(parent.pid, parent.start_ns, parent.image)
    }
}

/// The image of each process that lives, by its number and start.
type Current = HashMap<(u32, u64), u64>;

/// Gives a node the parent that its fork had.
fn descend(
    (node, parent, named_parent): (&Rc<Node>, Option<&Rc<Node>>, (u32, u64)),
    current: &Current,
) {
    node.named_parent.set(named_parent);
    let depth = parent.map_or(0, |parent| parent.depth.get() + 1);
    node.depth.set(depth);
    *node.parent.borrow_mut() = parent.cloned();
    if depth >= DEPTH_MAX {
        cut(node, current);
    }
}

/// Cuts the chain above a node at half the bound, so that cutting is rare; the
/// node at the cut keeps its parent's pid, which says that the chain goes on, and whom of those above that live it comes from.
fn cut(node: &Rc<Node>, current: &Current) {
    let mut at = Rc::clone(node);
    let keep = DEPTH_MAX / 2;
    at.depth.set(keep);
    for depth in (0..keep).rev() {
        let Some(next) = at.parent() else { return };
        // Depths are bounds for this chain only; a smaller one elsewhere stays right.
        next.depth.set(next.depth.get().min(depth));
        at = next;
    }
    if at.alive.get() {
        return;
    }
    let lives = |kin: &Kin| current.contains_key(&(kin.pid, kin.start_ns));
    let mut above = at.parent.borrow_mut().take();
    while let Some(node) = above {
        let kin = Some(node.key.process()).filter(lives);
        if let Some(kin) = kin.or_else(|| node.beyond.get()) {
            at.beyond.set(Some(kin));
            break;
        }
        above = node.parent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(pid: u32, start_ns: u64, image: u64) -> Actor {
        Actor {
            pid,
            tid: pid,
            start_ns,
            image,
            ..Actor::default()
        }
    }

    fn program(path: &str) -> Program {
        Program {
            exe_path: path.into(),
            args: vec![path.into(), "x".repeat(1000)],
            ..Program::default()
        }
    }

    fn exec(tree: &mut Tree, who: Actor, parent: ImageKey, path: &str) -> Rc<Node> {
        tree.began(Began {
            actor: who,
            program: program(path),
            ns: Namespaces::default(),
            parent,
        })
    }

    fn forked(tree: &mut Tree, child: Actor, parent: Actor) -> Rc<Node> {
        let parent = ImageKey::of(&parent);
        tree.fork(&child, parent, parent, Namespaces::default())
    }

    #[test]
    fn a_login_is_known_however_many_have_come_and_gone_between() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let peer: SocketAddr = "192.0.2.7:40022".parse().expect("an address");
        let root = ImageKey {
            pid: 1,
            start_ns: 1,
            image: 1,
        };
        let sshd = actor(2, 2, 2);
        exec(&mut tree, sshd, root, "/usr/sbin/sshd").came_from(Some(peer));
        let mut last = sshd;
        for number in 3..3 + 4 * u64::from(DEPTH_MAX) {
            let child = actor(u32::try_from(number).expect("a pid"), number, number);
            forked(&mut tree, child, last);
            tree.exit(&last);
            tree.end_cycle(true);
            last = child;
        }
        tree.end_cycle(true);
        assert_eq!(tree.find(&last).login(), Some(peer));
        // Also of what it executes, and of what was restored without those above.
        let next = Actor {
            image: last.image + 1,
            ..last
        };
        assert_eq!(exec(&mut tree, next, root, "/bin/sh").login(), Some(peer));
        let restored = actor(5000, 5000, 5000);
        let ns = Namespaces::default();
        let node = tree.restore(&restored, None, (1, 1), None, ns);
        node.came_from(Some(peer));
        let next = Actor {
            image: 5001,
            ..restored
        };
        assert_eq!(exec(&mut tree, next, root, "/bin/sh").login(), Some(peer));
    }

    #[test]
    fn a_daemon_of_ssh_is_not_of_the_login_that_has_started_it() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let peer: SocketAddr = "192.0.2.7:40022".parse().expect("an address");
        let root = ImageKey {
            pid: 1,
            start_ns: 1,
            image: 1,
        };
        let (session, daemon) = (actor(2, 2, 2), actor(3, 3, 3));
        exec(&mut tree, session, root, "/usr/lib/ssh/sshd-session").came_from(Some(peer));
        forked(&mut tree, daemon, session);
        let daemon = Actor { image: 4, ..daemon };
        let node = exec(&mut tree, daemon, root, "/usr/sbin/sshd");
        assert_eq!(node.login(), Some(peer));
        // Nobody is at its other end.
        node.came_from(None);
        let child = actor(5, 5, 5);
        assert_eq!(forked(&mut tree, child, daemon).login(), None);
        assert_eq!(node.login(), None);
    }

    fn path(node: &Node) -> String {
        node.program()
            .map(|program| program.exe_path.clone())
            .unwrap_or_default()
    }

    #[test]
    fn a_child_keeps_its_ancestry_when_parents_exec_and_exit() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let init = actor(1, 10, 1);
        exec(
            &mut tree,
            init,
            ImageKey {
                pid: 0,
                start_ns: 0,
                image: 0,
            },
            "/sbin/init",
        );
        let shell = actor(2, 20, 1);
        forked(&mut tree, shell, init);
        let bash = actor(2, 20, 2);
        exec(&mut tree, bash, ImageKey::of(&init), "/bin/bash");
        let child = actor(3, 30, 2);
        forked(&mut tree, child, bash);
        tree.exit(&bash);
        for _ in 0..3 {
            tree.end_cycle(true);
        }
        // The real parent is init by now; the parent at fork stays.
        let ls = actor(3, 30, 3);
        let node = exec(&mut tree, ls, ImageKey::of(&init), "/bin/ls");
        assert_eq!(path(&node), "/bin/ls");
        let parent = node.parent().expect("the parent at fork");
        assert_eq!((path(&parent).as_str(), parent.key.pid), ("/bin/bash", 2));
        assert_eq!(path(&parent.parent().expect("grandparent")), "/sbin/init");
        assert_eq!(node.parent_exec_id(), exec_id(2, 20, 2));
    }

    fn found(tree: &mut Tree, who: Actor, parent: ImageKey, path: &str) -> Rc<Node> {
        tree.began(Began {
            actor: who,
            program: Program {
                exe_path: path.into(),
                bootstrapped: true,
                ..Program::default()
            },
            ns: Namespaces::default(),
            parent,
        })
    }

    /// A new agent looks at what runs before it reads what was recorded while there was none.
    #[test]
    fn what_was_recorded_counts_more_than_what_was_found_first() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let init = actor(1, 10, 1);
        found(&mut tree, init, ImageKey::of(&init), "/sbin/init");
        let shell = actor(2, 20, 2);
        // One is on its way out, without memory; one runs, and its parent is gone.
        let (ls, cat) = (actor(3, 30, 3), actor(4, 40, 3));
        found(&mut tree, ls, ImageKey::of(&shell), "");
        found(&mut tree, cat, ImageKey::of(&init), "/bin/cat");

        exec(&mut tree, shell, ImageKey::of(&init), "/bin/sh");
        for process in [ls, cat] {
            let copy = Actor {
                image: 2,
                ..process
            };
            let child = forked(&mut tree, copy, shell);
            assert_eq!(path(&child), "/bin/sh");
        }
        exec(&mut tree, ls, ImageKey::of(&shell), "/bin/ls");
        exec(&mut tree, cat, ImageKey::of(&shell), "/bin/cat");
        for (process, expected) in [(ls, "/bin/ls"), (cat, "/bin/cat")] {
            let node = tree.find(&process);
            assert_eq!(path(&node), expected);
            let program = node.program().expect("a program");
            assert!(!program.bootstrapped && program.args.len() == 2);
            assert_eq!(path(&node.parent().expect("a parent")), "/bin/sh");
            assert_eq!(node.parent_pid(), 2);
            assert_eq!(node.parent_exec_id(), exec_id(2, 20, 2));
            tree.exit(&process);
        }
        assert_eq!(tree.stats().unknown, 0);
    }

    #[test]
    fn a_parent_with_a_higher_pid_is_found_too() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let (init, shell, child) = (actor(1, 10, 1), actor(900, 20, 2), actor(7, 30, 3));
        // In the order of their pids, as the iterator goes.
        found(&mut tree, init, ImageKey::of(&actor(0, 0, 0)), "/sbin/init");
        let node = found(&mut tree, child, ImageKey::of(&shell), "/bin/ls");
        found(&mut tree, shell, ImageKey::of(&init), "/bin/sh");
        tree.join();
        let parent = node.parent().expect("a parent");
        assert_eq!(path(&parent), "/bin/sh");
        assert_eq!(path(&parent.parent().expect("its parent")), "/sbin/init");
        assert!(tree.orphans.is_empty());
    }

    #[test]
    fn a_sibling_made_with_clone_parent_runs_what_its_maker_runs() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let (init, maker, made) = (actor(1, 10, 1), actor(2, 20, 1), actor(3, 30, 1));
        exec(&mut tree, init, ImageKey::of(&init), "/sbin/init");
        exec(&mut tree, maker, ImageKey::of(&init), "/bin/maker");
        let (caller, parent) = (ImageKey::of(&maker), ImageKey::of(&init));
        let node = tree.fork(&made, caller, parent, Namespaces::default());
        assert_eq!(path(&node), "/bin/maker");
        assert_eq!(path(&node.parent().expect("a parent")), "/sbin/init");
    }

    #[test]
    fn a_late_record_finds_the_image_that_made_it() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let none = ImageKey {
            pid: 0,
            start_ns: 0,
            image: 0,
        };
        let first = actor(5, 50, 1);
        exec(&mut tree, first, none, "/bin/one");
        let second = actor(5, 50, 2);
        exec(&mut tree, second, none, "/bin/two");
        assert_eq!(path(&tree.find(&first)), "/bin/one");
        tree.exit(&second);
        assert_eq!(path(&tree.find(&second)), "/bin/two");
        tree.end_cycle(false);
        tree.end_cycle(false);
        assert_eq!(
            path(&tree.find(&second)),
            "/bin/two",
            "bulk was not read beyond the exit"
        );
        tree.end_cycle(true);
        tree.end_cycle(true);
        assert_eq!(tree.stats().images, 0);
        let reused = actor(5, 99, 1);
        assert_eq!(
            path(&tree.find(&reused)),
            "",
            "a reused pid is another process"
        );
    }

    #[test]
    fn a_chain_of_forks_and_exits_is_bounded() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let mut parent = actor(1, 1, 1);
        exec(
            &mut tree,
            parent,
            ImageKey {
                pid: 0,
                start_ns: 0,
                image: 0,
            },
            "/bin/chain",
        );
        for pid in 2..10_000 {
            let child = actor(pid, u64::from(pid), 1);
            forked(&mut tree, child, parent);
            tree.exit(&parent);
            tree.end_cycle(true);
            parent = child;
        }
        let mut depth = 0;
        let mut node = tree.find(&parent);
        while let Some(next) = node.parent() {
            depth += 1;
            node = next;
        }
        assert!((DEPTH_MAX / 2..=DEPTH_MAX).contains(&depth), "{depth}");
        assert_ne!(node.parent_pid(), 0, "the cut says that the chain goes on");
        assert!(tree.stats().images <= 3);
    }

    #[test]
    fn a_long_chain_and_what_is_made_for_another_stay_of_the_lineage() {
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        let none = ImageKey {
            pid: 0,
            start_ns: 0,
            image: 0,
        };
        let [root, bystander] = [actor(1, 1, 1), actor(2, 2, 1)];
        for who in [root, bystander] {
            exec(&mut tree, who, none, "/bin/one");
        }
        let mut last = root;
        for pid in 3..300 {
            let child = actor(pid, u64::from(pid), 1);
            forked(&mut tree, child, last);
            if last.pid != root.pid {
                tree.exit(&last);
            }
            tree.end_cycle(true);
            last = child;
        }
        let sibling = actor(400, 400, 1);
        let (maker, parent) = (ImageKey::of(&last), ImageKey::of(&bystander));
        tree.fork(&sibling, maker, parent, Namespaces::default());
        let childs = actor(401, 401, 1);
        forked(&mut tree, childs, sibling);
        let process = |actor: &Actor| ImageKey::of(actor).process();
        let (_, mut living) = tree.lineage(process(&root));
        living.sort_unstable_by_key(|kin| kin.pid);
        assert_eq!(
            living,
            [root, last, sibling, childs].map(|who| process(&who))
        );
    }

    #[test]
    fn a_storm_stays_within_its_bytes() {
        let mut tree = Tree::new(Limits { bytes: 256 * 1024 });
        let none = ImageKey {
            pid: 0,
            start_ns: 0,
            image: 0,
        };
        for pid in 1..20_000 {
            let who = actor(pid, u64::from(pid), 1);
            exec(&mut tree, who, none, "/bin/storm");
            tree.exit(&who);
            if pid % 64 == 0 {
                tree.end_cycle(false);
            }
            assert!(
                tree.stats().bytes < 256 * 1024 + 64 * 2048,
                "{:?}",
                tree.stats()
            );
        }
        assert!(tree.stats().args_dropped > 0 && tree.stats().evicted > 0);
    }
}
