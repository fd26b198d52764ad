//! Rows that are not in the lake yet, by log segment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sumun_lake::facts::cost;
use sumun_lake::{Family, RowSet};

use crate::store::facts::HostFacts;
use crate::store::snapshot::HostScope;

/// What one tenant has in one segment.
#[derive(Clone, Debug, Default)]
pub(super) struct TenantRows {
    /// By `Family as usize`.
    pub(super) tables: [Vec<Arc<RowSet>>; Family::ALL.len()],
    pub(super) scopes: Vec<Arc<HostScope>>,
    pub(super) facts: Vec<HostFacts>,
}

/// One segment of the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    pub(super) tenants: HashMap<Arc<str>, TenantRows>,
    /// When it was first tried to be sealed, ns since the Unix epoch; 0 = never.
    pub(super) sealed_ns: i64,
    bytes: usize,
}

/// All segments that are not sealed.
#[derive(Debug, Default)]
pub(super) struct Memory {
    segments: BTreeMap<u64, Segment>,
    bytes: usize,
}

impl Memory {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a segment before this one is held.
    pub(super) fn older_than(&self, segment: u64) -> bool {
        self.segments.range(..segment).next().is_some()
    }

    pub(super) fn add(
        &mut self,
        segment: u64,
        tenant: &Arc<str>,
        sets: Vec<Arc<RowSet>>,
        scopes: Vec<Arc<HostScope>>,
        facts: Vec<HostFacts>,
    ) {
        let segment = self.segments.entry(segment).or_default();
        let rows = segment.tenants.entry(Arc::clone(tenant)).or_default();
        for set in sets {
            segment.bytes += set.bytes();
            self.bytes += set.bytes();
            rows.tables[set.family() as usize].push(set);
        }
        rows.scopes.extend(scopes);
        for told in &facts {
            let bytes = cost(&told.facts);
            segment.bytes += bytes;
            self.bytes += bytes;
        }
        rows.facts.extend(facts);
    }

    /// The segment's rows; it keeps them until [`Memory::remove`].
    pub(super) fn begin_seal(&mut self, segment: u64, now_ns: i64) -> Segment {
        let segment = self.segments.entry(segment).or_default();
        if segment.sealed_ns == 0 {
            segment.sealed_ns = now_ns;
        }
        segment.clone()
    }

    pub(super) fn remove(&mut self, segment: u64) {
        if let Some(segment) = self.segments.remove(&segment) {
            self.bytes -= segment.bytes;
        }
    }

    /// A tenant's rows, oldest segment first.
    pub(super) fn of(&self, tenant: &str) -> impl Iterator<Item = &TenantRows> {
        self.segments
            .values()
            .filter_map(move |segment| segment.tenants.get(tenant))
    }
}
