//! Kernel modules of which one list knows and another does not.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// Of one that was loaded.
pub(super) const GONE: &str =
    "it was loaded and not removed, and neither /proc/modules nor /sys/module has it";

/// What the kernel shows of its modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Names in `/proc/modules`.
    listed: BTreeSet<String>,
    /// Those that are neither being loaded nor removed.
    live: BTreeSet<String>,
    /// Names in `/sys/module`, without what is built in.
    folders: BTreeSet<String>,
}

impl Shown {
    /// Looks. The folders first: a module gets its own after it is listed, and loses it before.
    ///
    /// # Errors
    /// One of the two cannot be read, and the kernel takes modules.
    pub fn look() -> Result<Self, String> {
        let mut folders = BTreeSet::new();
        let unread = |error: io::Error| format!("/sys/module cannot be read: {error}");
        match fs::read_dir("/sys/module") {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(unread)?;
                    // What is built in has no state.
                    if entry
                        .path()
                        .join("initstate")
                        .try_exists()
                        .map_err(unread)?
                        && let Ok(name) = entry.file_name().into_string()
                    {
                        folders.insert(name);
                    }
                }
            }
            Err(error) => return Err(unread(error)),
        }
        match fs::read("/proc/modules") {
            Ok(text) => Self::of(&String::from_utf8_lossy(&text), folders).plausible(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && folders.is_empty() => {
                // A kernel that takes none has nothing to hide.
                match Path::new("/proc/sys/kernel/modules_disabled").exists() {
                    false => Ok(Self::default()),
                    true => Err("there is no /proc/modules, and the kernel takes modules".into()),
                }
            }
            Err(error) => Err(format!("/proc/modules cannot be read: {error}")),
        }
    }

    /// Itself, unless one list shows none of what the other has: that is what hides a list, not a module.
    fn plausible(self) -> Result<Self, String> {
        match (self.live.is_empty(), self.folders.is_empty()) {
            (false, true) => Err("/sys/module shows no module, and /proc/modules does".into()),
            _ => Ok(self),
        }
    }

    /// From the text of `/proc/modules`: name, size, users, who uses it, state, address.
    fn of(text: &str, folders: BTreeSet<String>) -> Self {
        let mut shown = Self {
            folders,
            ..Self::default()
        };
        for line in text.lines() {
            let mut words = line.split(' ');
            let Some(name) = words.next().filter(|name| !name.is_empty()) else {
                continue;
            };
            shown.listed.insert(name.to_owned());
            if words.nth(3) == Some("Live") {
                shown.live.insert(name.to_owned());
            }
        }
        shown
    }

    /// Modules on which the lists do not agree, and in what way. `loaded` are those of which the kernel has told that
    /// they were loaded, and has not told that they were removed.
    #[must_use]
    pub fn hidden(&self, loaded: &BTreeSet<String>) -> Vec<(String, &'static str)> {
        let folder = self.folders.difference(&self.listed);
        let of_folder = folder.map(|name| (name, "/sys/module has it and /proc/modules has not"));
        let live = self.live.difference(&self.folders);
        let of_live = live.map(|name| (name, "/proc/modules has it and /sys/module has not"));
        let gone = loaded
            .iter()
            .filter(|name| !self.listed.contains(*name) && !self.folders.contains(*name));
        let of_gone = gone.map(|name| (name, GONE));
        let all = of_folder.chain(of_live).chain(of_gone);
        all.map(|(name, why)| (name.clone(), why)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn lists_are_compared() {
        let text = "\
ext4 1024000 1 - Live 0xffffffffc0a00000
jbd2 200000 1 ext4, Live 0xffffffffc0900000
coming 4096 1 - Loading 0x0000000000000000
rootless 4096 0 - Live 0x0000000000000000 (OE)

";
        let shown = Shown::of(text, set(&["ext4", "jbd2", "hidden"]));
        let loaded = set(&["ext4", "coming", "vanished", "hidden"]);
        let hidden = shown.hidden(&loaded);
        let names: Vec<_> = hidden.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hidden", "rootless", "vanished"]);
        assert_eq!(Shown::default().hidden(&BTreeSet::new()), []);
        assert_eq!(shown.clone().plausible(), Ok(shown));
        Shown::default()
            .plausible()
            .expect("a kernel without modules");
        Shown::of(text, BTreeSet::new())
            .plausible()
            .expect_err("a /sys that is not to be seen");
    }

    #[test]
    fn arbitrary_lists_never_panic_and_agree_with_themselves() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let shown = Shown::of(&text, BTreeSet::new());
            let same = Shown::of(&text, shown.listed.clone());
            assert_eq!(same.hidden(&shown.listed), []);
        });
    }

    #[test]
    fn this_kernel_hides_none() {
        // What is loaded or removed meanwhile is told by one look alone.
        let looks = [(); 2].map(|()| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            Shown::look().map(|shown| shown.hidden(&BTreeSet::new()))
        });
        match looks {
            [Ok(first), Ok(second)] => {
                let mut both = first.iter().filter(|hidden| second.contains(hidden));
                assert_eq!(both.next(), None);
            }
            [Err(reason), _] | [_, Err(reason)] => {
                eprintln!("SKIPPED this_kernel_hides_none: {reason}")
            }
        }
    }
}
