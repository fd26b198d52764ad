//! The BPF filesystem: where rings, maps and links live on when the agent does not.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use sumun_abi::ABI;

use super::{Error, links, links::GivenUp};

/// The pins of one agent.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    /// Links that were removed, by hook; at most one a hook.
    given_up: Mutex<BTreeMap<String, GivenUp>>,
}

impl Pins {
    fn new(root: PathBuf) -> Self {
        Pins {
            root,
            given_up: Mutex::default(),
        }
    }

    /// Opens the pin directory of a layout of the maps; mounts the BPF filesystem if it is not there. Each layout has its own,
    /// so that programs of another stay attached until those of this one are.
    pub(super) fn open(bpffs: &Path, directory: &str, layout: u64) -> Result<Self, Error> {
        mount_bpffs(bpffs)?;
        let root = bpffs.join(directory).join(format!("v{ABI}-{layout:016x}"));
        let pins = Pins::new(root);
        for dir in [pins.root.clone(), pins.links()] {
            fs::create_dir_all(&dir).map_err(Error::file("create", dir))?;
        }
        Ok(pins)
    }

    /// Those of agents with another layout of maps or another ABI.
    pub(super) fn others(&self) -> Result<Vec<Pins>, Error> {
        let all = self.root.parent().map_or_else(|| Ok(Vec::new()), sets)?;
        let others = all.into_iter().filter(|root| *root != self.root);
        Ok(others.map(Pins::new).collect())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// There once its programs are attached and its rules are in force: a set of which that was never so was being made. A
    /// directory, as nothing else can be made here.
    fn whole(&self) -> PathBuf {
        self.root.join("whole")
    }

    /// Its rules are in force from now on.
    pub(super) fn be_whole(&self) -> Result<(), Error> {
        let path = self.whole();
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::file("create", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether its rules have ever been in force.
    pub(super) fn is_whole(&self) -> bool {
        self.whole().is_dir()
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn link(&self, hook: &str) -> PathBuf {
        self.links().join(hook)
    }

    /// Where the attached program itself is pinned, for its counters.
    pub(super) fn door(&self, hook: &str) -> PathBuf {
        self.links().join(format!("{hook}-door"))
    }

    /// Detaches one hook.
    pub(super) fn remove_link(&self, hook: &str) -> Result<(), Error> {
        if let Some(link) = links::give_up(&self.link(hook)) {
            let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
            given_up.insert(hook.to_owned(), link);
        }
        for path in [self.link(hook), self.door(hook)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// To be called before a hook is attached: what was attached for it before is gone when this returns.
    pub(super) fn wait_for_end(&self, hook: &str) {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = given_up.remove(hook) {
            links::wait(link);
        }
    }

    /// Detaches everything, whatever of it fails. The links that the kernel has yet to let go of.
    pub(super) fn remove_links(&self) -> Result<Vec<GivenUp>, Error> {
        let dir = self.links();
        let (mut given_up, mut failed) = (Vec::new(), None);
        // One that was being made or removed when an agent ended has none.
        if !dir.is_dir() {
            return Ok(given_up);
        }
        for entry in fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let path = entry.map_err(Error::file("list", &dir))?.path();
            given_up.extend(links::give_up(&path));
            if let Err(error) = fs::remove_file(&path) {
                failed.get_or_insert(Error::file("remove", path)(error));
            }
        }
        failed.map_or(Ok(given_up), Err)
    }

    /// Removes everything: links first, so that nothing writes into maps that are gone. The links that the kernel has yet to
    /// let go of.
    pub(super) fn clear(&self) -> Result<Vec<GivenUp>, Error> {
        let given_up = self.remove_links()?;
        for entry in fs::read_dir(&self.root).map_err(Error::file("list", &self.root))? {
            let entry = entry.map_err(Error::file("list", &self.root))?;
            let path = entry.path();
            if path == self.links() {
                continue;
            }
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(Error::file("remove", path))?;
        }
        Ok(given_up)
    }

    /// Removes everything and the directories themselves. The links that the kernel has yet to let go of.
    pub(super) fn remove(&self) -> Result<Vec<GivenUp>, Error> {
        let given_up = self.clear()?;
        let parent = self.root.parent().unwrap_or(&self.root);
        for dir in [self.links(), self.root.clone()] {
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", dir)(error));
                }
                _ => {}
            }
        }
        match fs::remove_dir(parent) {
            // Another ABI's pins are there.
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(Error::file("remove", parent)(error))
            }
            _ => Ok(given_up),
        }
    }

    /// Removes the pins that agents of whatever version left, if there are any; true if there were. What was enforced by them is
    /// not any more when this returns.
    pub(super) fn remove_left(bpffs: &Path, directory: &str) -> Result<bool, Error> {
        let sets = sets(&bpffs.join(directory))?;
        let mut given_up = Vec::new();
        for root in &sets {
            given_up.extend(Pins::new(root.clone()).remove()?);
        }
        if !links::wait_for_programs(&given_up) {
            return Err(Error::Held(links::DETACH_DEADLINE));
        }
        Ok(!sets.is_empty())
    }
}

/// The sets of pins in a directory: `v`, the number of an ABI, and from the first version with more than one layout on `-` and which it is.
fn sets(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("list", directory)(error)),
    };
    let mut sets = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix('v'));
        if number.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
            && path.is_dir()
        {
            sets.push(path);
        }
    }
    sets.sort();
    Ok(sets)
}

fn mount_bpffs(at: &Path) -> Result<(), Error> {
    fs::create_dir_all(at).map_err(Error::file("create", at))?;
    let is_bpffs = || statfs(at).map(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs().map_err(|errno| Error::file("look at", at)(errno.into()))? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=700"))
        .map_err(|errno| Error::file("mount the BPF filesystem at", at)(errno.into()))
}
