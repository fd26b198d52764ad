-- Facts are kept for a time and up to a size: when each was told last, and what became of those that went.
ALTER TABLE workload_facts ADD COLUMN received_ns INTEGER NOT NULL DEFAULT 0;  -- by the collector's clock
ALTER TABLE workload_facts ADD COLUMN told_ns INTEGER NOT NULL DEFAULT 0;      -- by the host's
UPDATE workload_facts SET received_ns = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000,
                          told_ns = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000;
CREATE INDEX workload_facts_oldest ON workload_facts (tenant, received_ns);

-- Up to when rows of a host may be of workloads whose facts went.
CREATE TABLE workload_facts_forgotten (
    tenant      TEXT NOT NULL,
    host        TEXT NOT NULL,              -- agent id
    through_ns  INTEGER NOT NULL,           -- event time
    PRIMARY KEY (tenant, host)
) STRICT, WITHOUT ROWID;
