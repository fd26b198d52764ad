//! Was what a query asks for collected, on each host, all the time?

use std::collections::BTreeMap;
use std::sync::Arc;

use sumun_lake::engine::Range;
use sumun_policy::ir::{Expr, Operand};
use sumun_policy::plan::tells_failures;
use sumun_policy::{Predicate, alternatives, covers};
use sumun_proto::FieldId;
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::{Kind, Scope, ScopeRule, ScopeSummary};

use crate::query::completeness::brief;
use crate::store::HostScope;

/// What a kind was collected as, in a part of time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    from: i64,
    to: i64,
    mode: Mode,
    reason: String,
}

/// The scopes of one host, parsed once for each distinct predicate.
pub(super) struct HostScopes<'a> {
    by_kind: BTreeMap<i32, Vec<&'a HostScope>>,
    first: Option<i64>,
}

impl<'a> HostScopes<'a> {
    /// Of all scopes of a tenant, in the order of their times.
    pub(super) fn of(scopes: &'a [Arc<HostScope>], host: &str) -> Self {
        let mut by_kind: BTreeMap<i32, Vec<&HostScope>> = BTreeMap::new();
        let mut first = None;
        for scope in scopes.iter().filter(|scope| scope.host == host) {
            first.get_or_insert(scope.from_ns);
            by_kind.entry(scope.scope.kind).or_default().push(scope);
        }
        HostScopes { by_kind, first }
    }

    /// When anything was collected for the first time.
    pub(super) fn first(&self) -> Option<i64> {
        self.first
    }

    /// Where in the range the query's rows of these kinds were not all collected.
    pub(super) fn missing(
        &self,
        host: &str,
        kinds: &[Kind],
        range: Range,
        coverage: &mut Coverage<'_>,
    ) -> Vec<ScopeSummary> {
        let mut missing = Vec::new();
        for kind in kinds {
            let name = kind_name(*kind);
            for stretch in self.stretches(*kind, range, coverage) {
                let mode = match stretch.mode {
                    Mode::Filtered => "filtered",
                    _ => "none",
                };
                missing.push(ScopeSummary {
                    host: host.to_owned(),
                    kind: name.to_owned(),
                    mode: mode.to_owned(),
                    reason: stretch.reason,
                    from_ns: stretch.from,
                    to_ns: stretch.to,
                });
            }
        }
        missing
    }

    fn stretches(&self, kind: Kind, range: Range, coverage: &mut Coverage<'_>) -> Vec<Stretch> {
        let name = kind_name(kind);
        let none: &[&HostScope] = &[];
        let scopes = self.by_kind.get(&kind.into()).map_or(none, Vec::as_slice);
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut add = |from: i64, to: i64, mode: Mode, reason: String| {
            let (from, to) = (from.max(range.since), to.min(range.until));
            if from >= to {
                return;
            }
            // A reload that changes nothing for this query is no boundary.
            match stretches.last_mut() {
                Some(last) if last.to == from && last.mode == mode && last.reason == reason => {
                    last.to = to;
                }
                _ => stretches.push(Stretch {
                    from,
                    to,
                    mode,
                    reason,
                }),
            }
        };
        let begins = scopes.first().map_or(i64::MAX, |scope| scope.from_ns);
        let before = match begins {
            i64::MAX => format!("{name}: nothing is known of what was collected"),
            begins => format!("{name}: not collected before {}", brief(begins)),
        };
        add(range.since, begins, Mode::None, before);
        for (at, scope) in scopes.iter().enumerate() {
            let to = scopes.get(at + 1).map_or(i64::MAX, |next| next.from_ns);
            let why = match scope.scope.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            match scope.scope.mode() {
                Mode::All if !coverage.asks_for_failures(kind) => {}
                Mode::All if coverage.covered(&scope.scope) => {}
                Mode::All => {
                    let reason = format!("{name}: of calls that failed, what rules ask for{why}");
                    add(scope.from_ns, to, Mode::Filtered, reason);
                }
                Mode::Filtered if coverage.covered(&scope.scope) => {}
                Mode::Filtered => {
                    add(
                        scope.from_ns,
                        to,
                        Mode::Filtered,
                        format!("{name}: filtered{why}"),
                    );
                }
                Mode::None | Mode::Unspecified => {
                    add(
                        scope.from_ns,
                        to,
                        Mode::None,
                        format!("{name}: not collected{why}"),
                    );
                }
            }
        }
        stretches
    }
}

/// Whether a query stays within what recorded rules let through.
pub(super) struct Coverage<'a> {
    query: &'a Predicate,
    /// What it asks of each kind.
    asked: BTreeMap<i32, Vec<Asked>>,
}

/// One of the alternatives of a query.
struct Asked {
    predicate: Predicate,
    /// By canonical text of the rule's predicate.
    known: BTreeMap<String, bool>,
}

impl<'a> Coverage<'a> {
    pub(super) fn new(query: &'a Predicate) -> Self {
        Coverage {
            query,
            asked: BTreeMap::new(),
        }
    }

    fn asked(&mut self, kind: Kind) -> &mut Vec<Asked> {
        self.asked.entry(kind.into()).or_insert_with(|| {
            let all = alternatives(self.query, kind);
            let asked = all.into_iter().map(|predicate| Asked {
                predicate,
                known: BTreeMap::new(),
            });
            asked.collect()
        })
    }

    /// True when each of what the query asks of the kind is within one of the rules.
    fn covered(&mut self, scope: &Scope) -> bool {
        let mut asked = self.asked(scope.kind()).iter_mut();
        asked.all(|one| scope.rules.iter().any(|rule| one.is_within(rule)))
    }

    /// True when it asks how calls of the kind ended, of which those that failed are told where rules ask for them.
    fn asks_for_failures(&mut self, kind: Kind) -> bool {
        tells_failures(kind)
            && self
                .asked(kind)
                .iter()
                .any(|one| one.predicate.fields().contains(&FieldId::Result))
    }
}

impl Asked {
    /// True when it asks only for events that this rule has matched: all of those are stored.
    fn names(&self, rule: &ScopeRule) -> bool {
        self.predicate.conjuncts().iter().any(|part| {
            matches!(part, Expr::ListHas { list: FieldId::Rules, value: Operand::Str(name) }
                if name.split_once('/') == Some((&rule.policy, &rule.rule)))
        })
    }

    fn is_within(&mut self, rule: &ScopeRule) -> bool {
        if self.names(rule) {
            return true;
        }
        if let Some(known) = self.known.get(&rule.predicate) {
            return *known;
        }
        // A predicate of a newer agent may not parse here: not covered.
        let within = Predicate::parse_canonical(&rule.predicate)
            .is_ok_and(|recorded| covers(&self.predicate, &recorded));
        self.known.insert(rule.predicate.clone(), within);
        within
    }
}

#[cfg(test)]
mod tests {
    use sumun_policy::Lists;

    use super::*;

    fn scope(from_ns: i64, kind: Kind, mode: Mode, predicate: &str) -> Arc<HostScope> {
        let rules = match predicate {
            "" => Vec::new(),
            text => vec![ScopeRule {
                predicate: text.into(),
                ..ScopeRule::default()
            }],
        };
        Arc::new(HostScope {
            host: "h".into(),
            from_ns,
            scope: Scope {
                kind: kind.into(),
                mode: mode.into(),
                rules,
                ..Scope::default()
            },
        })
    }

    fn missing(scopes: &[Arc<HostScope>], query: &str, since: i64) -> Vec<(String, i64, i64)> {
        let query = Predicate::parse(query, &Lists::new()).expect("a predicate");
        let range = Range { since, until: 1000 };
        HostScopes::of(scopes, "h")
            .missing("h", &[Kind::Open], range, &mut Coverage::new(&query))
            .into_iter()
            .map(|summary| (summary.mode, summary.from_ns, summary.to_ns))
            .collect()
    }

    #[test]
    fn a_query_within_a_rule_is_covered_and_a_wider_one_is_not() {
        let rule = "file.path.startsWith(\"/srv/\")";
        let scopes = [
            scope(100, Kind::Open, Mode::None, ""),
            scope(200, Kind::Open, Mode::Filtered, rule),
            // A reload of the same policy.
            scope(300, Kind::Open, Mode::Filtered, rule),
        ];
        let within = "kind == \"open\" && file.path.startsWith(\"/srv/www/\")";
        assert_eq!(missing(&scopes, within, 250), []);
        assert_eq!(
            missing(&scopes, within, 50),
            [("none".into(), 50, 100), ("none".into(), 100, 200)],
            "before the first word, and while nothing was collected"
        );
        assert_eq!(
            missing(&scopes, "file.path.startsWith(\"/\")", 250),
            [("filtered".into(), 250, 1000)]
        );
    }

    /// What is asked of other kinds says nothing of this one, and what one rule has not let through, another may have.
    #[test]
    fn each_alternative_is_covered_by_a_rule_of_its_kind() {
        let rule = |predicate: &str| ScopeRule {
            predicate: predicate.into(),
            ..ScopeRule::default()
        };
        let mut filtered = scope(100, Kind::Open, Mode::Filtered, "true");
        let rules = [
            "file.path.startsWith(\"/srv/\")",
            "file.path == \"/etc/shadow\" && proc.uid == 7",
        ];
        let known = Arc::get_mut(&mut filtered).expect("nobody else has it");
        known.scope.rules = rules.map(rule).to_vec();
        let is_covered =
            |query: &str| missing(std::slice::from_ref(&filtered), query, 100).is_empty();
        let (srv, shadow) = (
            "file.path.startsWith(\"/srv/www/\")",
            "file.path == \"/etc/shadow\"",
        );
        for covered in [
            format!("kind == \"open\" && {srv} || kind == \"connect\" && net.dst.port == 53"),
            format!("{srv} || net.dst.port == 53"),
            format!("{srv} || {shadow} && proc.uid == 7"),
            format!("proc.uid == 7 && ({srv} || {shadow})"),
            format!("host.name == \"h\" && (kind == \"open\" && {srv} || kind == \"exec\")"),
        ] {
            assert!(is_covered(&covered), "{covered}");
        }
        for wider in [
            format!("kind == \"open\" || kind == \"connect\" && {srv}"),
            format!("{srv} || {shadow}"),
            format!("proc.uid == 8 && ({srv} || {shadow})"),
            format!("!({srv} || proc.uid == 53)"),
            "kind != \"exec\" && proc.uid == 7".to_owned(),
        ] {
            assert!(!is_covered(&wider), "{wider}");
        }
    }

    /// Where everything of a kind is recorded, of calls that failed only what rules ask for is.
    #[test]
    fn calls_that_failed_are_covered_by_rules_that_ask_for_them() {
        let mut all = scope(100, Kind::Open, Mode::All, "result == -13");
        let query = |scopes: &Arc<HostScope>, query: &str| {
            missing(std::slice::from_ref(scopes), query, 100).is_empty()
        };
        assert!(query(&all, "file.path == \"/x\""));
        assert!(query(&all, "file.path == \"/x\" && result == -13"));
        assert!(!query(&all, "result == -1"));
        Arc::get_mut(&mut all)
            .expect("nobody else has it")
            .scope
            .rules = Vec::new();
        assert!(query(&all, "file.path == \"/x\""));
        assert!(!query(&all, "result == -13"));
    }

    /// Of a list that the record has only the hash of, no item is known; what its rule matched is stored.
    #[test]
    fn a_long_list_is_covered_by_the_name_of_its_rule_only() {
        let hash = "0123456789abcdef".repeat(4);
        let rule = |name: &str, predicate: &str| ScopeRule {
            policy: "ioc".into(),
            rule: name.into(),
            predicate: predicate.into(),
        };
        let mut known = scope(100, Kind::Open, Mode::Filtered, "true");
        let scope = Arc::get_mut(&mut known).expect("nobody else has it");
        scope.scope.rules = vec![
            rule(
                "paths",
                &format!("file.path in lists[\"bad#{hash}\"] || proc.uid == 7"),
            ),
            rule("long", ""),
        ];
        let scopes = [known];
        let no = [("filtered".to_owned(), 200, 1000)];
        for query in [
            "file.path == \"/bad\"",
            "file.path in [\"/bad\"]",
            "\"ioc/other\" in rules",
            "\"ioc/paths\" in rules || \"ioc/other\" in rules",
            "!(\"ioc/paths\" in rules)",
            "\"ioc/paths\" in proc.args",
            "\"ioc/paths/x\" in rules",
            "true",
        ] {
            assert_eq!(missing(&scopes, query, 200), no, "{query}");
        }
        for query in [
            "\"ioc/paths\" in rules",
            "kind == \"open\" && \"ioc/long\" in rules && proc.uid == 0",
            "\"ioc/paths\" in rules || \"ioc/long\" in rules",
            "file.path == \"/x\" && proc.uid == 7",
        ] {
            assert_eq!(missing(&scopes, query, 200), [], "{query}");
        }
        // Not where the rule was not loaded.
        assert_eq!(
            missing(&scopes, "\"ioc/long\" in rules", 50),
            [("none".to_owned(), 50, 100)]
        );
    }

    #[test]
    fn everything_covers_everything() {
        let scopes = [scope(100, Kind::Open, Mode::All, "")];
        assert_eq!(missing(&scopes, "true", 100), []);
        assert_eq!(missing(&[], "true", 100), [("none".into(), 100, 1000)]);
    }
}
