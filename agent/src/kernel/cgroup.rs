//! The hierarchy whose cgroups records name: its number in the kernel, where it is mounted, and
//! what is in it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sumun_proto::text;

/// Most cgroups that a walk reads; the rest are counted.
pub const WALK_MAX: usize = 100_000;
/// Deepest cgroup that is walked to: paths of the kernel's tracepoints are cut long before.
const DEPTH_MAX: usize = 128;

/// Inode number of the root of a hierarchy (kernfs gives out 1 first, fs/kernfs/dir.c `kernfs_create_root`); what a
/// cgroup namespace shows as its root is another one.
pub(super) const ROOT_INO: u64 = 1;

/// The v1 controller whose hierarchy names a process's cgroup: pids, else memory; on hosts where these are on v2 it is the unified
/// one. A v2 that is mounted beside v1 controllers is often empty.
#[must_use]
pub fn controller() -> &'static str {
    let text = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let on_v1 = |controller: &str| {
        text.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some(controller) && words.next().is_some_and(|id| id != "0")
        })
    };
    let mut known = ["pids", "memory"].into_iter();
    known.find(|known| on_v1(known)).unwrap_or("unified")
}

/// The kernel's number (`cgroup_root.hierarchy_id`) of the hierarchy of a v1 controller, or of `unified`.
///
/// # Errors
/// `/proc` does not name it.
pub fn hierarchy(controller: &str) -> io::Result<u32> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    number_in(&text, controller).ok_or_else(|| {
        io::Error::other(format!(
            "/proc/self/cgroup has no hierarchy of {controller}"
        ))
    })
}

/// The number of a hierarchy in `/proc/PID/cgroup`: lines of number, controllers and path.
fn number_in(text: &str, controller: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, _) = rest.split_once(':')?;
        let found = match controller {
            "unified" => controllers.is_empty(),
            _ => controllers.split(',').any(|known| known == controller),
        };
        found.then(|| number.parse().ok())?
    })
}

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Cgroups that were told of.
    pub cgroups: usize,
    /// Folders that were not entered, or not wholly read: beyond the bounds, or the kernel said no. One that was removed
    /// meanwhile is none of them.
    pub left_out: usize,
}

/// Tells id and path of every cgroup of the hierarchy, parents first and those of one depth together: what the host makes is nowhere deep,
/// and nobody's cgroups below keep it from being told. `unread` is called with the path of each that was left out.
///
/// # Errors
/// The hierarchy is not mounted with its root in this mount namespace.
pub fn walk(
    controller: &str,
    mut each: impl FnMut(u64, &str),
    mut unread: impl FnMut(&str),
) -> io::Result<Walked> {
    Ok(walk_from(mount(controller)?, &mut each, &mut unread))
}

fn walk_from(
    root: PathBuf,
    each: &mut impl FnMut(u64, &str),
    unread: &mut impl FnMut(&str),
) -> Walked {
    let mut walked = Walked::default();
    // Never more than there may be cgroups.
    let mut open = VecDeque::from([(root, String::from("/"), 0_usize)]);
    let mut left_out = |path: &str| {
        walked.left_out += 1;
        unread(path);
    };
    let mut cgroups = 0;
    while let Some((folder, path, depth)) = open.pop_front() {
        let metadata = match fs::symlink_metadata(&folder) {
            Ok(metadata) => metadata,
            Err(error) => {
                if !is_gone(&error) {
                    left_out(&path);
                }
                continue;
            }
        };
        if depth > DEPTH_MAX {
            left_out(&path);
            continue;
        }
        // On kernels of 64 bits the inode's number is the whole id (`kernfs_ino`, include/linux/kernfs.h).
        each(metadata.ino(), &path);
        cgroups += 1;
        let below = fs::read_dir(&folder).and_then(|entries| below(&path, entries));
        match below {
            Ok(below) => {
                for (place, path) in below {
                    match cgroups + open.len() < WALK_MAX {
                        true => open.push_back((place, path, depth + 1)),
                        false => left_out(&path),
                    }
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => left_out(&path),
        }
    }
    walked.cgroups = cgroups;
    walked
}

/// The folders in one, with their paths in the hierarchy.
fn below(path: &str, entries: fs::ReadDir) -> io::Result<Vec<(PathBuf, String)>> {
    let mut below = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Of kernfs the kind stands in the entry itself.
        if entry.file_type()?.is_dir() {
            let name = text::from_bytes(entry.file_name().as_bytes());
            let path = match path {
                "/" => format!("/{name}"),
                _ => format!("{path}/{name}"),
            };
            below.push((entry.path(), path));
        }
    }
    Ok(below)
}

/// What kernfs says of a cgroup that was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Where the hierarchy is mounted with its root: a mount of a part of it, as in a container, tells of that part only.
fn mount(controller: &str) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    mounts_in(&text, controller)
        .into_iter()
        .find(|path| is_root(path))
        .ok_or_else(|| {
            io::Error::other(format!(
                "the cgroup hierarchy of {controller} is not mounted with its root here"
            ))
        })
}

/// The hierarchy in which systemd keeps its units where controllers are on v1.
const SYSTEMD: &str = "name=systemd";
/// Services that are looked at, and told.
const SERVICES_MAX: usize = 1_000;

/// Services that run and have no cgroup in the hierarchy of a v1 controller, so that what they do is taken for that of the cgroup above:
/// without `TasksAccounting` (the default before systemd 228) systemd makes none there for what is neither limited nor counted.
#[must_use]
pub fn services_apart(controller: &str) -> Vec<String> {
    match (mount(SYSTEMD), mount(controller)) {
        (Ok(systemd), Ok(named)) if controller != "unified" => apart(&systemd, &named),
        _ => Vec::new(),
    }
}

fn apart(systemd: &Path, named: &Path) -> Vec<String> {
    const SLICE: &str = "system.slice";
    let services = fs::read_dir(systemd.join(SLICE)).into_iter().flatten();
    let services = services.flatten().take(SERVICES_MAX);
    let names = services.filter_map(|entry| entry.file_name().into_string().ok());
    let mut apart: Vec<String> = names
        .filter(|name| name.ends_with(".service"))
        .filter(|name| {
            let runs = fs::read(systemd.join(SLICE).join(name).join("cgroup.procs"));
            runs.is_ok_and(|pids| !pids.is_empty()) && !named.join(SLICE).join(name).is_dir()
        })
        .collect();
    apart.sort_unstable();
    apart
}

fn is_root(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir() && metadata.ino() == ROOT_INO)
}

/// Mount points of a hierarchy in a `/proc/PID/mountinfo`.
pub(super) fn mounts_in(text: &str, controller: &str) -> Vec<PathBuf> {
    let mounted = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (filesystem, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        let matches = match controller {
            "unified" => filesystem == "cgroup2",
            _ => filesystem == "cgroup" && options.split(',').any(|option| option == controller),
        };
        let path = place.split(' ').nth(4)?;
        matches.then(|| PathBuf::from(unescape(path).into_owned()))
    };
    text.lines().filter_map(mounted).collect()
}

/// Blanks and the like stand as `\\040` in mountinfo.
fn unescape(path: &str) -> std::borrow::Cow<'_, str> {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut path = std::borrow::Cow::Borrowed(path);
    for (escape, meant) in escapes {
        if path.contains(escape) {
            path = path.replace(escape, meant).into();
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_read_is_counted_and_one_that_is_gone_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["a/inner", "b/inner", "c"] {
            fs::create_dir_all(dir.path().join(name)).expect("a folder");
        }
        let (mut seen, mut unread) = (Vec::new(), Vec::new());
        let mut see = |_, path: &str| {
            seen.push(path.to_owned());
            let place = dir.path().join(&path[1..]);
            match path {
                // It has another shape by the time that it is read.
                "/a" => {
                    fs::remove_dir_all(&place).expect("a folder");
                    fs::write(&place, "").expect("a file");
                }
                "/b" => fs::remove_dir_all(&place).expect("a folder"),
                _ => {}
            }
        };
        let walked = walk_from(dir.path().to_owned(), &mut see, &mut |path| {
            unread.push(path.to_owned());
        });
        seen.sort_unstable();
        assert_eq!(seen, ["/", "/a", "/b", "/c"]);
        assert_eq!(unread, ["/a"]);
        let (cgroups, left_out) = (4, 1);
        assert_eq!(walked, Walked { cgroups, left_out });
    }

    #[test]
    fn what_is_deep_neither_comes_before_what_is_not_nor_hides_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = "d/".repeat(DEPTH_MAX + 2);
        fs::create_dir_all(dir.path().join("a").join(&deep)).expect("folders");
        fs::create_dir_all(dir.path().join("z/unit")).expect("folders");
        let (mut seen, mut unread) = (Vec::new(), Vec::new());
        let walked = walk_from(
            dir.path().to_owned(),
            &mut |_, path| seen.push(path.to_owned()),
            &mut |path| unread.push(path.to_owned()),
        );
        assert_eq!(walked.left_out, 1);
        assert_eq!(unread.len(), 1);
        assert!(unread[0].starts_with("/a/d/"));
        let unit = seen.iter().position(|path| path == "/z/unit");
        assert!(unit.is_some_and(|at| at <= 5), "{unit:?}");
    }

    #[test]
    fn services_that_systemd_keeps_to_itself_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let (systemd, pids) = (dir.path().join("systemd"), dir.path().join("pids"));
        let make = |hierarchy: &Path, name: &str, inside: &str| {
            let folder = hierarchy.join("system.slice").join(name);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("cgroup.procs"), inside).expect("a file");
        };
        assert!(apart(&systemd, &pids).is_empty());
        make(&systemd, "both.service", "7\n");
        make(&pids, "both.service", "7\n");
        make(&systemd, "ended.service", "");
        make(&systemd, "b.mount", "8\n");
        assert!(apart(&systemd, &pids).is_empty());
        make(&systemd, "sshd.service", "9\n");
        make(&systemd, "cron.service", "10\n");
        assert_eq!(apart(&systemd, &pids), ["cron.service", "sshd.service"]);
    }

    #[test]
    fn a_hierarchy_is_found_by_its_controller() {
        let text = "12:pids:/a\n4:cpu,cpuacct:/\n1:name=systemd:/x:y\n0::/unified\n";
        assert_eq!(number_in(text, "pids"), Some(12));
        assert_eq!(number_in(text, "cpuacct"), Some(4));
        assert_eq!(number_in(text, "unified"), Some(0));
        assert_eq!(number_in(text, "memory"), None);
    }

    #[test]
    fn mounts_are_found_by_file_system_and_controller() {
        let text = "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                    31 25 0:27 / /sys/fs/cgroup/my\\040pids rw shared:9 - cgroup cgroup rw,pids\n\
                    32 25 0:28 /docker/x /elsewhere rw master:1 - cgroup cgroup rw,pids\n";
        assert_eq!(
            mounts_in(text, "unified"),
            [Path::new("/sys/fs/cgroup/unified")]
        );
        assert_eq!(
            mounts_in(text, "pids"),
            [Path::new("/sys/fs/cgroup/my pids"), Path::new("/elsewhere")]
        );
        assert!(mounts_in(text, "memory").is_empty());
    }
}
