//! Is an answer complete, and if not, what is missing where?
//!
//! For each host in the query's scope: the watermark of every lane that was asked
//! for has passed the end of the range, no gap lies in it, and every kind that
//! was asked for was collected. A host is in scope from its first word of what it
//! collects on: before that it was not watched, which is said, but
//! nothing that anyone was promised is missing.

use std::collections::HashMap;

use sumun_lake::engine::{Query, Range};
use sumun_lake::facts::told_fields;
use sumun_lake::{Engine, Family};
use sumun_policy::Predicate;
use sumun_policy::ir::{Expr, Operand, Set};
use sumun_proto::FieldId;
use sumun_proto::catalogue::lane_name;
use sumun_proto::v1::{Completeness, GapSummary, HostCompleteness, Kind, Lane, ScopeSummary};

use crate::query::scope::{Coverage, HostScopes};
use crate::store::Snapshot;
use crate::tenant::registry::AgentStatus;

/// Most gaps and scopes of one answer; an answer with more is incomplete anyway.
const SUMMARIES: usize = 10_000;

/// What a query asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) predicate: Predicate,
    pub(super) range: Range,
    pub(super) lanes: Vec<Lane>,
    /// Kinds of events.
    pub(super) kinds: Vec<Kind>,
    /// Host names and ids that the predicate allows; `None` = all.
    pub(super) names: Option<Vec<String>>,
    pub(super) ids: Option<Vec<String>>,
    /// Whether gaps make the answer incomplete.
    pub(super) gaps: bool,
}

impl Asked {
    pub(super) fn is_about(&self, id: &str, name: &str) -> bool {
        let allows = |allowed: &Option<Vec<String>>, text: &str| {
            allowed
                .as_ref()
                .is_none_or(|allowed| allowed.iter().any(|known| known == text))
        };
        allows(&self.ids, id) && allows(&self.names, name)
    }

    /// Whether rows are chosen by what is told of workloads and hosts.
    fn reads_facts(&self) -> bool {
        let fields = self.predicate.fields();
        told_fields().any(|told| fields.contains(&told))
    }
}

/// What is said of an answer on these hosts.
pub(super) async fn of(
    engine: &Engine,
    asked: &Asked,
    hosts: &[AgentStatus],
    snapshot: &Snapshot,
    truncated: bool,
) -> Result<Completeness, sumun_lake::Error> {
    let mut gaps = if asked.gaps && !hosts.is_empty() {
        gaps_of(engine, asked, hosts, snapshot).await?
    } else {
        HashMap::new()
    };
    let mut coverage = Coverage::new(&asked.predicate);
    let mut whole = Completeness {
        complete: true,
        through_ns: asked.range.until,
        truncated,
        ..Completeness::default()
    };
    for host in hosts {
        let scopes = HostScopes::of(snapshot.scopes(), &host.id);
        let watched = scopes.first().unwrap_or(asked.range.since);
        let range = Range {
            since: asked.range.since.max(watched),
            until: asked.range.until,
        };
        let missing = scopes.missing(&host.name, &asked.kinds, range, &mut coverage);
        let gaps = gaps.remove(&host.id).unwrap_or_default();
        let forgotten = snapshot
            .forgotten(&host.id)
            .filter(|through| range.since < *through);
        let said = host_completeness(asked, host, (watched, forgotten), &gaps, &missing);
        whole.complete &= said.complete;
        whole.through_ns = whole.through_ns.min(said.through_ns);
        whole.hosts.push(said);
        extend(&mut whole.gaps, gaps);
        extend(&mut whole.scope, missing);
    }
    Ok(whole)
}

fn extend<T>(all: &mut Vec<T>, more: Vec<T>) {
    let room = SUMMARIES.saturating_sub(all.len());
    all.extend(more.into_iter().take(room));
}

fn host_completeness(
    asked: &Asked,
    host: &AgentStatus,
    (watched, forgotten): (i64, Option<i64>),
    gaps: &[GapSummary],
    missing: &[ScopeSummary],
) -> HostCompleteness {
    let until = asked.range.until;
    let lanes = || asked.lanes.iter().filter_map(|lane| host.lane(*lane));
    let through = lanes().map(|lane| lane.through_ns).min().unwrap_or(until);
    let mut reasons = Vec::new();
    if through < until {
        let spooled: u64 = lanes().map(|lane| lane.spooled_events).sum();
        let state = match host.state.reason() {
            "" => "not delivered yet",
            reason => reason,
        };
        let mut reason = match through {
            ..=0 => format!("no data yet, {state}"),
            through => format!("data to {}, then {state}", brief(through)),
        };
        if spooled > 0 {
            reason.push_str(&format!(", {spooled} spooled"));
        }
        reasons.push(reason);
    }
    if !host.trouble.is_empty() && through < until {
        reasons.push(host.trouble.clone());
    }
    if !gaps.is_empty() {
        reasons.push(gap_words(gaps));
    }
    for summary in missing.iter().take(SUMMARIES) {
        let reason = &summary.reason;
        if !reasons.contains(reason) {
            reasons.push(reason.clone());
        }
    }
    // Rows that are found have no names then; rows that are asked for by such names are not found.
    let told = |through| {
        format!(
            "names of workloads and hosts are not kept of all before {}",
            brief(through)
        )
    };
    if asked.reads_facts() {
        reasons.extend(forgotten.map(told));
    }
    let complete = reasons.is_empty();
    if !asked.reads_facts() {
        reasons.extend(forgotten.map(told));
    }
    if watched > asked.range.since {
        reasons.push(format!("watched since {}", brief(watched)));
    }
    HostCompleteness {
        id: host.id.clone(),
        name: host.name.clone(),
        complete,
        through_ns: through.min(until),
        state: host.state.name().to_owned(),
        reason: reasons.join("; "),
    }
}

fn gap_words(gaps: &[GapSummary]) -> String {
    let from = gaps.iter().map(|gap| gap.from_ns).min().unwrap_or(0);
    let to = gaps.iter().map(|gap| gap.to_ns).max().unwrap_or(0);
    let count: Option<u64> = gaps
        .iter()
        .try_fold(0u64, |sum, gap| sum.checked_add(gap.count?));
    let what = match gaps {
        [_] => "gap".to_owned(),
        more => format!("{} gaps", more.len()),
    };
    let missing = match count {
        Some(count) => format!("{count} missing"),
        None => "an unknown number missing".to_owned(),
    };
    format!("{what} {} to {}, {missing}", brief(from), brief(to))
}

/// Gaps in the range and in the lanes that were asked for, by host id.
async fn gaps_of(
    engine: &Engine,
    asked: &Asked,
    hosts: &[AgentStatus],
    snapshot: &Snapshot,
) -> Result<HashMap<String, Vec<GapSummary>>, sumun_lake::Error> {
    let lanes = asked.lanes.iter().map(|lane| lane_name(*lane).to_owned());
    let mut parts = vec![one_of(FieldId::GapLane, lanes.collect())];
    if asked.ids.is_some() || asked.names.is_some() {
        let ids = hosts.iter().map(|host| host.id.clone()).collect();
        parts.push(one_of(FieldId::HostId, ids));
    }
    let query = Query {
        source: snapshot.table_of(Family::Gap, asked.ids.as_deref()),
        range: asked.range,
        filter: sumun_lake::scan::exact(&Expr::And(parts), Family::Gap)?,
    };
    let names: HashMap<&str, &str> = hosts
        .iter()
        .map(|host| (host.id.as_str(), host.name.as_str()))
        .collect();
    let mut by_host: HashMap<String, Vec<GapSummary>> = HashMap::new();
    for gap in engine.gaps(&query, SUMMARIES).await? {
        let Some(name) = names.get(gap.host.as_str()) else {
            continue;
        };
        by_host.entry(gap.host).or_default().push(GapSummary {
            host: (*name).to_owned(),
            lane: gap.lane,
            reason: gap.reason,
            count: gap.count,
            from_ns: gap.from,
            to_ns: gap.to,
        });
    }
    Ok(by_host)
}

fn one_of(field: FieldId, mut texts: Vec<String>) -> Expr {
    texts.sort_unstable();
    texts.dedup();
    Expr::In {
        value: Operand::Field(field),
        set: Set::Str(texts),
    }
}

/// A time for people: UTC, to the second.
pub(super) fn brief(ns: i64) -> String {
    let text = sumun_lake::json::time_text(ns);
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}
