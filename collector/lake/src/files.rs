//! Where the lake is and how a file comes into it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::object_store::ObjectStore;
use datafusion::object_store::local::LocalFileSystem;

use crate::error::{Error, Result};
use crate::family::Family;

/// One file of the lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LakeFile {
    /// Tenant.
    pub tenant: String,
    /// Table.
    pub family: Family,
    /// Log segment it came from.
    pub segment: u64,
    /// Path below the lake, `/` between components.
    pub path: String,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Earliest time of a row, ns since the Unix epoch; of a gap, its start.
    pub min_time: i64,
    /// Latest time of a row; of a gap, its end.
    pub max_time: i64,
    /// `host.id` of its rows, sorted.
    pub hosts: Vec<String>,
}

/// The place of all files: a folder of this machine. Reading goes through
/// `object_store`, so that a bucket can take its place.
#[derive(Clone, Debug)]
pub struct Lake {
    root: PathBuf,
    store: Arc<dyn ObjectStore>,
}

impl Lake {
    /// Opens the lake at a path or a `file://` URL; the folder is made if it is absent.
    ///
    /// # Errors
    /// [`Error::Location`] for a URL of another scheme, [`Error::Io`].
    pub fn open(url: &str) -> Result<Self> {
        let location = |reason: String| Error::Location {
            url: url.to_owned(),
            reason,
        };
        let path = match url.split_once("://") {
            None => PathBuf::from(url),
            Some(("file", path)) => PathBuf::from(path),
            Some((scheme, _)) => {
                return Err(location(format!(
                    "{scheme}:// is not supported yet, use a folder"
                )));
            }
        };
        fs::create_dir_all(&path).map_err(|e| Error::io("create directory", &path, e))?;
        let root = path
            .canonicalize()
            .map_err(|e| Error::io("open directory", &path, e))?;
        if let Some(parent) = root.parent() {
            sync_dir(parent)?;
        }
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| location(e.to_string()))?;
        Ok(Lake {
            root,
            store: Arc::new(store),
        })
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// For readers.
    #[must_use]
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// The path of a file, below the lake. `day` is `YYYY-MM-DD`.
    ///
    /// # Errors
    /// [`Error::Location`] for a tenant whose name could leave its folder.
    pub fn path(tenant: &str, family: Family, day: &str, segment: u64) -> Result<String> {
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !plain(tenant) || !plain(day) {
            return Err(Error::Location {
                url: format!("tenant={tenant}/day={day}"),
                reason: "only letters, digits, - and _ may stand in a path".into(),
            });
        }
        Ok(format!(
            "tenant={tenant}/family={}/day={day}/{segment:020}.parquet",
            family.name()
        ))
    }

    /// The file's place on this machine.
    #[must_use]
    pub fn local(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, path: &str) -> Result<()> {
        let local = self.local(path);
        match fs::remove_file(&local) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", &local, error)),
        }
    }

    /// Paths of all files below the lake, those being written included.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))?;
            for entry in entries {
                let entry = entry.map_err(|e| Error::io("list", &folder, e))?;
                let path = entry.path();
                let kind = entry
                    .file_type()
                    .map_err(|e| Error::io("look at", &path, e))?;
                if kind.is_dir() {
                    folders.push(path);
                } else if let Ok(below) = path.strip_prefix(&self.root)
                    && let Some(below) = below.to_str()
                {
                    found.push(below.to_owned());
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Makes a file of that path: `fill` writes it under a temporary name; it
    /// gets its own once it is on disk, and the folders that are new are on disk
    /// too when this returns. A file left by a crash is replaced.
    pub(crate) fn create(&self, path: &str, fill: impl FnOnce(&File) -> Result<()>) -> Result<u64> {
        let local = self.local(path);
        let mut folders = Vec::new();
        let mut folder = local.parent();
        while let Some(at) = folder.filter(|at| at.starts_with(&self.root)) {
            folders.push(at.to_path_buf());
            folder = at.parent();
        }
        if let Some(folder) = folders.first() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create directory", folder, e))?;
        }
        let temporary = local.with_extension("parquet.tmp");
        let made = self.fill_and_rename(&temporary, &local, fill);
        if made.is_err() {
            // On a full disk the half-made file is what is in the way.
            let _ = fs::remove_file(&temporary);
        }
        let bytes = made?;
        // `object_store` renames but syncs nothing. Every level: each may be new.
        for folder in &folders {
            sync_dir(folder)?;
        }
        Ok(bytes)
    }

    fn fill_and_rename(
        &self,
        temporary: &Path,
        local: &Path,
        fill: impl FnOnce(&File) -> Result<()>,
    ) -> Result<u64> {
        let file = File::create(temporary).map_err(|e| Error::io("create", temporary, e))?;
        fill(&file)?;
        file.sync_all()
            .map_err(|e| Error::io("sync", temporary, e))?;
        let bytes = file
            .metadata()
            .map_err(|e| Error::io("look at", temporary, e))?
            .len();
        fs::rename(temporary, local).map_err(|e| Error::io("rename", temporary, e))?;
        Ok(bytes)
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("sync directory", path, e))
}
