//! Prometheus metrics on a loopback address.
//!
//! Nothing is counted twice: a scrape reads [`Status`]. The server speaks HTTP/1.1, one
//! request a connection, for `GET /metrics` and nothing else.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use sumun_policy::report;
use sumun_proto::catalogue::{kind_name, lane_name};
use sumun_proto::v1::{Door, LoadedPolicies, LoadedRule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::warn;

use super::{Connection, LANES, LaneProgress, Status};
use crate::enforce::deny;
use crate::enforce::verdict::{MODES, OUTCOMES};
use crate::kernel::KillStatus;
use crate::pipeline::policies;

/// Longest time a scrape may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest request head.
const HEAD_MAX: usize = 8 * 1024;
/// Scrapes at a time; more wait in the kernel's backlog.
const SCRAPES: usize = 4;
/// Rules of which a series says what is done for them; of more than that their number alone is told.
const RULES_MAX: usize = 1000;

/// Listens, and answers until the future is dropped. The address is the one
/// that was bound, which matters for port 0.
///
/// # Errors
/// What the system says when the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    status: Arc<Status>,
) -> io::Result<(SocketAddr, impl Future<Output = ()> + Send + use<>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let mut registry = Registry::with_prefix("sumun_agent");
    registry.register_collector(Box::new(Scrape(status)));
    let registry = Arc::new(registry);
    let scrapes = Arc::new(Semaphore::new(SCRAPES));
    let server = async move {
        loop {
            let Ok(permit) = scrapes.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let registry = registry.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        // A scraper that went away or dawdles is its own problem.
                        let _ = tokio::time::timeout(PATIENCE, answer(stream, &registry)).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "failed to accept on the metrics address");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    Ok((bound, server))
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if head.starts_with(b"GET /metrics ") || head.starts_with(b"GET /metrics?")
    {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, registry) {
            Ok(()) => ("200 OK", text),
            Err(fmt::Error) => ("500 Internal Server Error", String::new()),
        }
    } else {
        ("404 Not Found", "metrics are at /metrics\n".to_owned())
    };
    let response = format!(
        "HTTP/1.1 {status}\r\n\
         Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Debug)]
struct Scrape(Arc<Status>);

/// One metric without labels of its own, of each lane, or of each loss.
struct Metrics<'a>(DescriptorEncoder<'a>);

impl Metrics<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: i64) -> fmt::Result {
        let metric = ConstGauge::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// A series for each that has come about, so that the many that cannot do not stand there.
    fn verdicts<const M: usize, const O: usize>(
        &mut self,
        (name, help): (&str, &str),
        modes: &[&str; M],
        outcomes: &[&str; O],
        counters: &[[AtomicU64; O]; M],
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (mode, counts) in modes.iter().zip(counters) {
            for (outcome, count) in outcomes.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("mode", *mode), ("outcome", *outcome)];
                    ConstCounter::new(count).encode(encoder.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    /// How each kind is seen and denied: a series of the value 1 for each, so that there are as many as kinds.
    fn kinds(&mut self, doors: &[Door]) -> fmt::Result {
        let help = "How each kind of event is seen on this host; none: it is not";
        let mut encoder = self
            .0
            .encode_descriptor("kind_rung", help, None, MetricType::Gauge)?;
        for door in doors {
            let labels = [
                ("kind", kind_name(door.kind())),
                ("rung", door.rung.as_str()),
            ];
            ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
        }
        let help = "What makes calls of each kind that can be denied fail on this host; none: nothing does";
        let mut encoder = self
            .0
            .encode_descriptor("kind_door", help, None, MetricType::Gauge)?;
        for door in doors.iter().filter(|door| !door.deny.is_empty()) {
            let labels = [
                ("kind", kind_name(door.kind())),
                ("door", door.deny.as_str()),
            ];
            ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// How the kernel kills, as it was tried on children of the agent's own.
    fn kills(&mut self, kills: &[KillStatus]) -> fmt::Result {
        let help = "The kernel kills so on this host, as it was tried; 0: rules that do are carried out late; none: it could not be tried";
        let mut encoder = self
            .0
            .encode_descriptor("kill_works", help, None, MetricType::Gauge)?;
        for kill in kills.iter().filter(|kill| kill.is_known()) {
            let works = ConstGauge::new(i64::from(kill.available));
            works.encode(encoder.encode_family(&[("mode", kill.mode)])?)?;
        }
        Ok(())
    }

    /// What is asked for of each rule, and the least of what is done for it; of [`RULES_MAX`] rules, those first that are to stop something.
    fn rules(&mut self, loaded: &LoadedPolicies) -> fmt::Result {
        let all = || {
            loaded.policies.iter().flat_map(|policy| {
                let name = policy
                    .policy
                    .as_ref()
                    .map_or("", |named| named.name.as_str());
                policy
                    .rules
                    .iter()
                    .map(move |rule| (name, policy.mode.as_str(), rule))
            })
        };
        let stops = |rule: &LoadedRule| !matches!(rule.effect.as_str(), "record" | "alert");
        let (first, rest): (Vec<_>, Vec<_>) = all().partition(|(_, _, rule)| stops(rule));
        let help = "Loaded rules, by what their policy asks for and the least of what this host does for them";
        let mut encoder = self
            .0
            .encode_descriptor("rule_mode", help, None, MetricType::Gauge)?;
        for (policy, requested, rule) in first.iter().chain(&rest).take(RULES_MAX) {
            let labels = [
                ("policy", *policy),
                ("rule", rule.id.as_str()),
                ("effect", rule.effect.as_str()),
                ("requested", requested),
                ("effective", report::weakest(rule).0),
            ];
            ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
        }
        let left_out = all().count().saturating_sub(RULES_MAX);
        self.gauge(
            "rules_left_out",
            "Loaded rules beyond those that rule_mode tells of",
            None,
            i64::try_from(left_out).unwrap_or(i64::MAX),
        )
    }

    fn dropped(&mut self, lanes: &[LaneProgress; 3]) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(
            "spool_dropped_events",
            "Events given up because the spool was full",
            None,
            MetricType::Counter,
        )?;
        for (lane, progress) in LANES.iter().zip(lanes) {
            let counter = ConstCounter::new(progress.dropped_events);
            counter.encode(encoder.encode_family(&[("lane", lane_name(*lane))])?)?;
        }
        Ok(())
    }

    fn of_lanes(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        lanes: &[LaneProgress; 3],
        value: fn(&LaneProgress) -> u64,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (lane, progress) in LANES.iter().zip(lanes) {
            let gauge = ConstGauge::new(signed(value(progress)));
            gauge.encode(encoder.encode_family(&[("lane", lane_name(*lane))])?)?;
        }
        Ok(())
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &*self.0;
        let mut metrics = Metrics(encoder);
        let counters = &status.counters;
        for (name, help, counter) in [
            (
                "ring_records",
                "Records read from the rings",
                &counters.records,
            ),
            (
                "ring_undecodable",
                "Records that could not be decoded",
                &counters.undecodable,
            ),
            ("events", "Events written to the spool", &counters.events),
            ("alerts", "Alerts written to the spool", &counters.alerts),
            (
                "folded_alerts",
                "Alerts that were counted instead, beyond the rate of their rule",
                &counters.folded,
            ),
            (
                "excepted_alerts",
                "Alerts that an exception kept from being raised",
                &counters.excepted,
            ),
            (
                "cgroups_left_out",
                "Cgroups that were not taken because there were too many",
                &counters.cgroups_left_out,
            ),
            (
                "events_without_workload",
                "Events whose cgroup was not known, those that no rule wanted included",
                &counters.cgroups_unknown,
            ),
            (
                "runtime_known_containers",
                "Containers that a runtime told of",
                &counters.runtime_known,
            ),
            (
                "runtime_unknown_containers",
                "Containers that no runtime knew",
                &counters.runtime_unknown,
            ),
            (
                "runtime_failed_questions",
                "Questions to a container runtime that it did not answer",
                &counters.runtime_failed,
            ),
            (
                "runtime_refused_questions",
                "Of them those about one container, while it answers of others",
                &counters.runtime_refused,
            ),
            (
                "runtime_dropped_questions",
                "Containers that were not asked about, because too many waited",
                &counters.runtime_dropped,
            ),
            (
                "workloads_named",
                "Workloads that their runtime has named, of those whose making was seen",
                &counters.workloads_named,
            ),
            (
                "workloads_named_milliseconds",
                "Time from the making of their cgroups until then, together",
                &counters.workloads_named_ms,
            ),
            (
                "scopes_left_out",
                "Cgroups whose workload the kernel was not told, for want of room: rules that ask for it are judged late there",
                &counters.scopes_left_out,
            ),
            ("gaps", "Gap records written to the spool", &counters.gaps),
            (
                "evicted_names",
                "Names of addresses that were forgotten, while they held, for want of room",
                &counters.names_evicted,
            ),
            (
                "decision_points_full",
                "Calls that decision points had no room to keep, and that were recorded with the caller's word",
                &counters.points_full,
            ),
            (
                "changes_confirmed",
                "Renames and removals that are told as the kernel did them, by fanotify",
                &counters.changes_confirmed,
            ),
            (
                "changes_unconfirmed",
                "Renames and removals with the caller's word, while fanotify was asked",
                &counters.changes_unconfirmed,
            ),
            (
                "changes_alone",
                "Renames and removals that fanotify told of and no call had named",
                &counters.changes_alone,
            ),
            (
                "changes_inner",
                "Events of fanotify that are of what an overlay does below for a call",
                &counters.changes_inner,
            ),
            (
                "changes_overflows",
                "Times that more of what fanotify tells waited than the kernel keeps",
                &counters.changes_overflows,
            ),
            (
                "evicted_writers",
                "Files of which it was forgotten who wrote them, for want of room",
                &counters.writers_evicted,
            ),
            (
                "failed_writers",
                "Files of which it could not be remembered who wrote them",
                &counters.writers_failed,
            ),
            (
                "sent_batches",
                "Batches sent, repeats included",
                &counters.sent_batches,
            ),
            (
                "sent_bytes",
                "Bytes of batches sent, repeats included",
                &counters.sent_bytes,
            ),
            (
                "acknowledged_batches",
                "Batches that the collector has on disk",
                &counters.acked_batches,
            ),
            (
                "rejected_batches",
                "Batches that the collector refused for good",
                &counters.rejected_batches,
            ),
            (
                "connects",
                "Connections to the collector that came about",
                &counters.connects,
            ),
            (
                "held_calls",
                "Opens and executions that were held for rules that deny",
                &counters.held_calls,
            ),
            (
                "held_overflows",
                "Times that more of them waited than the kernel keeps, and went on",
                &counters.held_overflows,
            ),
            (
                "holder_restarts",
                "Processes that held calls and ended without being told to",
                &counters.holder_restarts,
            ),
            (
                "certificate_renewals",
                "Certificates renewed",
                &counters.renewals,
            ),
        ] {
            metrics.counter(name, help, counter.load(Ordering::Relaxed))?;
        }
        let help = "Events on which a rule that kills matched, by effective mode and outcome";
        metrics.verdicts(("kills", help), &MODES, &OUTCOMES, &counters.kills)?;
        let help = "Events on which a rule that denies matched, by effective mode and outcome";
        metrics.verdicts(
            ("denials", help),
            &deny::MODES,
            &deny::OUTCOMES,
            &counters.denials,
        )?;
        for (name, help, counter) in [
            (
                "workloads_pending",
                "Containers that no runtime has named yet, but may",
                &counters.workloads_pending,
            ),
            (
                "workloads_named_longest_milliseconds",
                "Longest time from the making of a cgroup until its workload was named",
                &counters.workloads_named_longest_ms,
            ),
            (
                "scopes",
                "Cgroups whose workload the kernel was told, for rules that ask for it",
                &counters.scopes,
            ),
        ] {
            metrics.gauge(name, help, None, signed(counter.load(Ordering::Relaxed)))?;
        }
        metrics.counter(
            "pipeline_turns",
            "Rounds of the pipeline",
            status.progress.turns(),
        )?;
        let lanes = status.lanes();
        metrics.of_lanes(
            "spool_batches",
            "Batches not yet acknowledged",
            None,
            &lanes,
            |lane| lane.spooled_batches,
        )?;
        metrics.of_lanes(
            "spool_events",
            "Events not yet acknowledged",
            None,
            &lanes,
            |lane| lane.spooled_events,
        )?;
        let bytes = Some(&Unit::Bytes);
        metrics.of_lanes(
            "spool",
            "Bodies not yet acknowledged",
            bytes,
            &lanes,
            |lane| lane.spooled_bytes,
        )?;
        metrics.of_lanes("spool_disk", "Files of the spool", bytes, &lanes, |lane| {
            lane.disk_bytes
        })?;
        metrics.dropped(&lanes)?;
        let losses = status.progress.losses();
        let mut encoder = metrics.0.encode_descriptor(
            "ring_lost",
            "Records lost between the kernel and the agent",
            None,
            MetricType::Counter,
        )?;
        for loss in &losses {
            let labels = [
                (
                    "ring",
                    if loss.ring == 0 { "life" } else { "bulk" }.to_owned(),
                ),
                ("cpu", loss.cpu.to_string()),
                ("level", loss.level.to_string()),
                ("reason", loss.reason.clone()),
            ];
            ConstCounter::new(loss.count).encode(encoder.encode_family(&labels)?)?;
        }
        let parts = status.parts();
        let connected = parts.connection == Connection::Connected;
        metrics.gauge(
            "connected",
            "Both streams to the collector are open",
            None,
            connected.into(),
        )?;
        metrics.gauge(
            "attached",
            "All hooks are attached",
            None,
            status.progress.attached().into(),
        )?;
        let isolation = parts.isolation.as_ref();
        metrics.gauge(
            "isolated",
            "The host is cut off from the network for a rule",
            None,
            isolation.is_some().into(),
        )?;
        metrics.gauge(
            "isolation_dropped_packets",
            "Packets that were kept back since the host was cut off",
            None,
            isolation.map_or(0, |now| signed(now.dropped_sent + now.dropped_received)),
        )?;
        let troubled = !status.trouble_text().is_empty();
        metrics.gauge(
            "trouble",
            "Something cannot do its work",
            None,
            troubled.into(),
        )?;
        metrics.gauge(
            "certificate_expiry_timestamp",
            "When the certificate expires, Unix time",
            Some(&Unit::Seconds),
            parts.certificate_expires,
        )?;
        let mut encoder = metrics.0.encode_descriptor(
            "policy",
            "Loaded policies, by their number of rules",
            None,
            MetricType::Gauge,
        )?;
        for policy in &parts.policies.policies {
            let named = policy.policy.clone().unwrap_or_default();
            let labels = [
                ("name", named.name),
                ("version", named.version.to_string()),
                ("hash", named.sha256),
            ];
            let rules = i64::try_from(policy.rules.len()).unwrap_or(i64::MAX);
            ConstGauge::new(rules).encode(encoder.encode_family(&labels)?)?;
        }
        metrics.kinds(&parts.doors)?;
        metrics.kills(&parts.kills)?;
        metrics.rules(&parts.policies)?;
        metrics.gauge(
            "policy_errors",
            "Policy files with faults",
            None,
            i64::try_from(parts.policies.refused.len()).unwrap_or(i64::MAX),
        )?;
        let expired = report::expired(&parts.policies, policies::wall_ns());
        metrics.gauge(
            "expired_exceptions",
            "Exceptions of loaded rules that have expired",
            None,
            i64::try_from(expired).unwrap_or(i64::MAX),
        )?;
        let mut encoder =
            metrics
                .0
                .encode_descriptor("build", "Version", None, MetricType::Gauge)?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Counters;
    use crate::status::Run;
    use sumun_proto::v1::{EffectiveMode, Kind, Lane, LoadedPolicy, Loss, PolicyRef};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn a_scrape_shows_what_was_counted() {
        let status = Arc::new(Status::new(Run::default()));
        Counters::add(&status.counters.events, 42);
        Counters::add(&status.counters.kills[2][0], 3);
        let mode = |kind: Kind, mode: &str| EffectiveMode {
            kind: kind.into(),
            mode: mode.to_owned(),
            ..EffectiveMode::default()
        };
        let rule = |id: usize, effect: &str, kinds| LoadedRule {
            id: format!("r{id}"),
            effect: effect.to_owned(),
            kinds,
            ..LoadedRule::default()
        };
        let mut rules: Vec<_> = (1..=RULES_MAX)
            .map(|id| rule(id, "alert", vec![mode(Kind::Exec, "alert")]))
            .collect();
        // One kind of it is not denied here: that is what the rule is worth.
        let kinds = vec![mode(Kind::Connect, "deny"), mode(Kind::Open, "alert")];
        rules.push(rule(0, "deny", kinds));
        status.set_policies(LoadedPolicies {
            policies: vec![LoadedPolicy {
                policy: Some(PolicyRef {
                    name: "gate".into(),
                    ..PolicyRef::default()
                }),
                mode: "enforce".into(),
                rules,
                ..LoadedPolicy::default()
            }],
            ..LoadedPolicies::default()
        });
        status.update(|parts| {
            parts.kills = vec![KillStatus {
                mode: "kill-after",
                available: false,
                reason: None,
            }];
            parts.doors = vec![Door {
                kind: Kind::Open.into(),
                rung: "fentry".into(),
                deny: "fanotify".into(),
                ..Door::default()
            }];
        });
        status.progress.written(Lane::Life, 1, 3, 5);
        status.progress.set_losses(vec![Loss {
            ring: 1,
            cpu: 2,
            level: 0,
            reason: "ring_full".into(),
            count: 5,
        }]);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, server) = serve(loopback, status).await.expect("listen");
        let server = tokio::spawn(server);
        let answer = get(address, "/metrics").await;
        for wanted in [
            "HTTP/1.1 200 OK\r\n",
            "\nsumun_agent_events_total 42\n",
            "\nsumun_agent_kills_total{mode=\"kill-late\",outcome=\"killed\"} 3\n",
            "\nsumun_agent_kind_rung{kind=\"open\",rung=\"fentry\"} 1\n",
            "\nsumun_agent_kind_door{kind=\"open\",door=\"fanotify\"} 1\n",
            "\nsumun_agent_rule_mode{policy=\"gate\",rule=\"r0\",effect=\"deny\",requested=\"enforce\",effective=\"alert\"} 1\n",
            "\nsumun_agent_kill_works{mode=\"kill-after\"} 0\n",
            "\nsumun_agent_rules_left_out 1\n",
            "\nsumun_agent_spool_bytes{lane=\"life\"} 0\n",
            "\nsumun_agent_spool_dropped_events_total{lane=\"bulk\"} 0\n",
            "\nsumun_agent_ring_lost_total{ring=\"bulk\",cpu=\"2\",level=\"0\",reason=\"ring_full\"} 5\n",
            "\nsumun_agent_connected 0\n",
            "\n# EOF\n",
        ] {
            assert!(answer.contains(wanted), "{wanted:?} is not in\n{answer}");
        }
        assert_eq!(answer.matches("sumun_agent_rule_mode{").count(), RULES_MAX);
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}
