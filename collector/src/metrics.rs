//! What the collector counts, as Prometheus reads it: `sumun_collector_*`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// All metrics. Everything that is refused, dropped or retried has one.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open connections.
    pub connections: Gauge,
    /// Connections refused because there are too many.
    pub connections_refused: Counter,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: Counter,
    /// Open forward streams.
    pub streams: Gauge,
    /// Batches made durable.
    pub batches: Counter,
    /// Bytes of their bodies.
    pub batch_bytes: Counter,
    /// Rows in them: events, alerts and gaps.
    pub rows: Counter,
    /// Deliveries that were here already.
    pub repeats: Counter,
    /// Deliveries refused for good.
    pub rejects: Counter,
    /// Deliveries refused because numbers before them are missing.
    pub holes: Counter,
    /// Agents enrolled.
    pub enrolments: Counter,
    /// Enrolments refused.
    pub enrolments_refused: Counter,
    /// Requests with no or a wrong admin token.
    pub admins_refused: Counter,
    /// Groups synced to the log.
    pub syncs: Counter,
    /// From the first append of a group to its being durable.
    pub sync_seconds: Histogram,
    /// Failed writes and syncs of the log.
    pub log_errors: Counter,
    /// 1 while the log can be written.
    pub log_writable: Gauge,
    /// Records that were acknowledged and cannot be read any more.
    pub log_lost_records: Counter,
    /// Segments written to the lake.
    pub seals: Counter,
    /// Failed tries to write a segment to the lake.
    pub seal_errors: Counter,
    /// Workloads and hosts whose names and labels went, by age or by size.
    pub facts_forgotten: Counter,
    /// Bytes of deliveries that wait to be durable.
    pub buffered_bytes: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// End of the server certificate, Unix seconds.
    pub certificate_expires: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sumun_collector");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let connections_refused = counter("connections_refused", "Connections over the limit");
        let handshakes_failed = counter("handshakes_failed", "Failed TLS handshakes");
        let batches = counter("batches", "Batches made durable");
        let batch_bytes = counter("batch_bytes", "Bytes of batches made durable");
        let rows = counter("rows", "Events, alerts and gaps made durable");
        let repeats = counter("repeats", "Deliveries that were here already");
        let rejects = counter("rejects", "Deliveries refused for good");
        let holes = counter("holes", "Deliveries with a number too high");
        let enrolments = counter("enrolments", "Agents enrolled");
        let enrolments_refused = counter("enrolments_refused", "Enrolments refused");
        let admins_refused = counter("admins_refused", "Requests without a good admin token");
        let syncs = counter("log_syncs", "Groups synced to the log");
        let log_errors = counter("log_errors", "Failed writes and syncs of the log");
        let log_lost_records = counter(
            "log_lost_records",
            "Acknowledged records that damage of the log has lost",
        );
        let seals = counter("seals", "Log segments written to the lake");
        let seal_errors = counter("seal_errors", "Failed tries to write a segment to the lake");
        let facts_forgotten = counter(
            "facts_forgotten",
            "Workloads and hosts whose names went, by age or by size",
        );
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let streams = Gauge::default();
        registry.register("streams", "Open forward streams", streams.clone());
        let log_writable = Gauge::default();
        log_writable.set(1);
        registry.register(
            "log_writable",
            "1 while the log can be written",
            log_writable.clone(),
        );
        let sync_seconds = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        registry.register_with_unit(
            "log_sync",
            "Time to make a group durable",
            Unit::Seconds,
            sync_seconds.clone(),
        );
        let buffered_bytes = Gauge::default();
        registry.register(
            "buffered_bytes",
            "Bytes of deliveries that wait to be durable",
            buffered_bytes.clone(),
        );
        let certificate_expires = Gauge::default();
        registry.register(
            "certificate_expires_timestamp_seconds",
            "End of the server certificate",
            certificate_expires.clone(),
        );
        Metrics {
            registry,
            connections,
            connections_refused,
            handshakes_failed,
            streams,
            batches,
            batch_bytes,
            rows,
            repeats,
            rejects,
            holes,
            enrolments,
            enrolments_refused,
            admins_refused,
            syncs,
            sync_seconds,
            log_errors,
            log_writable,
            log_lost_records,
            seals,
            seal_errors,
            facts_forgotten,
            buffered_bytes,
            certificate_expires,
        }
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
