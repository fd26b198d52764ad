//! Two network namespaces of a test's own with a wire between them, and a cgroup whose sockets can be cut off: nothing of the host
//! itself is.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace; it is there as long as this is, and what was made in it.
#[derive(Debug)]
pub struct Namespace {
    work: mpsc::SyncSender<Work>,
    tid: i32,
}

impl Namespace {
    fn new() -> io::Result<Self> {
        // Whoever gives it work waits until it is taken, and for what comes of it.
        let (work, todo) = mpsc::sync_channel::<Work>(0);
        let (tell, told) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            let failed = made.is_err();
            if tell.send(made).is_err() || failed {
                return;
            }
            while let Ok(work) = todo.recv() {
                work();
            }
        });
        let tid = told.recv().map_err(io::Error::other)??;
        Ok(Self { work, tid })
    }

    /// Does something in it: sockets and programs that are made there belong to it.
    ///
    /// # Panics
    /// What is done panics.
    pub fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::sync_channel(1);
        let work: Work = Box::new(move || {
            // Nobody listens only if the test has failed.
            let _ = tell.send(what());
        });
        self.work.send(work).expect("its thread is there");
        told.recv().expect("what is done there ends well")
    }

    fn ip(&self, words: &str) -> io::Result<()> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        self.run(move || {
            let mut command = Command::new("ip");
            let output = command.args(&words).stdin(Stdio::null()).output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(io::Error::other(format!(
                    "ip {words:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ))),
            }
        })
    }
}

/// Two namespaces, each with one end of a wire and loopback.
#[derive(Debug)]
pub struct Wire {
    /// One end.
    pub here: Namespace,
    /// The other.
    pub there: Namespace,
}

/// Addresses of the ends.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 203, 113, 1);
/// As above.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 203, 113, 2);
/// As above.
pub const THERE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0x113, 0, 0, 0, 2);

impl Wire {
    /// Lays it.
    ///
    /// # Errors
    /// No rights, no `ip`, or a kernel without veth.
    pub fn new() -> io::Result<Self> {
        let (here, there) = (Namespace::new()?, Namespace::new()?);
        here.ip("link add end0 type veth peer name end1")?;
        here.ip(&format!("link set end1 netns {}", there.tid))?;
        for (end, name, four, six) in [
            (&here, "end0", IpAddr::from(HERE), "fd00:0:0:113::1"),
            (&there, "end1", IpAddr::from(THERE), "fd00:0:0:113::2"),
        ] {
            end.ip(&format!("address add {four}/24 dev {name}"))?;
            end.ip("link set lo up")?;
            end.ip(&format!("link set {name} up"))?;
            // Where there is no IPv6 the tests of it are left out.
            let _ = end.ip(&format!("address add {six}/64 dev {name} nodad"));
        }
        Ok(Self { here, there })
    }
}

/// A cgroup of the unified hierarchy, which is mounted for it.
#[derive(Debug)]
pub struct Cgroup {
    mounted: PathBuf,
    name: String,
}

impl Cgroup {
    /// Makes it; the folder is where the hierarchy is mounted meanwhile.
    ///
    /// # Errors
    /// No rights.
    pub fn new(folder: &Path, name: &str) -> io::Result<Self> {
        let mounted = folder.join("cgroup2");
        fs::create_dir(&mounted)?;
        mount(
            Some("none"),
            &mounted,
            Some("cgroup2"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        let this = Self {
            mounted,
            name: name.to_owned(),
        };
        fs::create_dir(this.mounted.join(&this.name))?;
        Ok(this)
    }

    /// From the root of the hierarchy, with a slash before it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Where a process writes its number to join it.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.mounted.join(&self.name).join("cgroup.procs")
    }

    /// This process joins it, or goes back to the root.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn join(&self, inside: bool) -> io::Result<()> {
        let procs = match inside {
            true => self.procs(),
            false => self.mounted.join("cgroup.procs"),
        };
        fs::write(procs, std::process::id().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is left would be seen by the next test that looks at all cgroups.
        let _ = self.join(false);
        let _ = fs::remove_dir(self.mounted.join(&self.name));
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
    }
}
