//! What one query reads.

use std::sync::Arc;

use sumun_lake::{FactTable, Family, LakeFile, RowSet, Source};
use sumun_proto::v1::Scope;

/// What an agent collected of a kind from a time on, until its next word on it.
#[derive(Clone, Debug, PartialEq)]
pub struct HostScope {
    /// `host.id`
    pub host: String,
    /// Wall clock of the host, ns since the Unix epoch.
    pub from_ns: i64,
    /// What it said.
    pub scope: Scope,
}

/// All rows and scopes of a tenant at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    files: [Arc<Vec<Arc<LakeFile>>>; Family::ALL.len()],
    memory: [Vec<Arc<RowSet>>; Family::ALL.len()],
    scopes: Vec<Arc<HostScope>>,
    facts: Arc<FactTable>,
}

impl Snapshot {
    pub(super) fn new(
        files: [Arc<Vec<Arc<LakeFile>>>; Family::ALL.len()],
        memory: [Vec<Arc<RowSet>>; Family::ALL.len()],
        older: &[Arc<HostScope>],
        newest: Vec<Arc<HostScope>>,
        facts: Arc<FactTable>,
    ) -> Self {
        // Stable: of two words for the same time the later one counts.
        let mut scopes: Vec<_> = older.iter().cloned().chain(newest).collect();
        scopes.sort_by_key(|scope| scope.from_ns);
        Snapshot {
            files,
            memory,
            scopes,
            facts,
        }
    }

    /// One table.
    #[must_use]
    pub fn table(&self, family: Family) -> Source {
        Source {
            family,
            files: self.files[family as usize].to_vec(),
            memory: self.memory[family as usize].clone(),
            facts: Arc::clone(&self.facts),
        }
    }

    /// One table, without what cannot hold rows of these hosts; `None` = all.
    #[must_use]
    pub fn table_of(&self, family: Family, hosts: Option<&[String]>) -> Source {
        let mut source = self.table(family);
        if let Some(hosts) = hosts {
            source
                .files
                .retain(|file| file.hosts.iter().any(|host| hosts.contains(host)));
            source.memory.retain(|set| hosts.contains(&set.host().id));
        }
        source
    }

    /// What was collected when, by time.
    #[must_use]
    pub fn scopes(&self) -> &[Arc<HostScope>] {
        &self.scopes
    }

    /// Up to when rows of a host may be of workloads of which nothing is known any more.
    #[must_use]
    pub fn forgotten(&self, host: &str) -> Option<i64> {
        self.facts.forgotten(host)
    }

    /// Number of rows of a table.
    #[must_use]
    pub fn rows(&self, family: Family) -> u64 {
        let files = self.files[family as usize].iter().map(|file| file.rows);
        let memory = self.memory[family as usize]
            .iter()
            .map(|set| set.len() as u64);
        files.sum::<u64>() + memory.sum::<u64>()
    }
}
