-- Who belongs to whom, who may do what, and how far each agent's lanes have come.
-- Times are nanoseconds since the Unix epoch; 0 stands for never.

CREATE TABLE tenant (
    name        TEXT PRIMARY KEY NOT NULL,
    created_ns  INTEGER NOT NULL
) STRICT;

-- Tokens are kept as their SHA-256 only.
CREATE TABLE token (
    hash        BLOB PRIMARY KEY NOT NULL,
    purpose     TEXT NOT NULL CHECK (purpose IN ('enroll', 'admin')),
    tenant      TEXT NOT NULL REFERENCES tenant (name),
    name        TEXT NOT NULL,
    uses_left   INTEGER NOT NULL CHECK (uses_left >= 0),  -- enrolment only
    created_ns  INTEGER NOT NULL,
    expires_ns  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE agent (
    id                      TEXT PRIMARY KEY NOT NULL,    -- UUID
    tenant                  TEXT NOT NULL REFERENCES tenant (name),
    name                    TEXT NOT NULL,
    machine_id              TEXT NOT NULL,
    enrolled_ns             INTEGER NOT NULL,
    certificate_expires_ns  INTEGER NOT NULL,
    revoked_ns              INTEGER NOT NULL DEFAULT 0,
    last_seen_ns            INTEGER NOT NULL DEFAULT 0,
    stopped_ns              INTEGER NOT NULL DEFAULT 0,   -- it said goodbye; 0 once it is back
    version                 TEXT NOT NULL DEFAULT '',
    kernel                  TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX agent_tenant ON agent (tenant);

-- How far a lane is delivered: never further than what is durable.
CREATE TABLE agent_lane (
    agent       TEXT NOT NULL REFERENCES agent (id),
    lane        INTEGER NOT NULL,
    boot_id     BLOB NOT NULL,
    boot_ns     INTEGER NOT NULL,
    through_ns  INTEGER NOT NULL,
    PRIMARY KEY (agent, lane)
) STRICT, WITHOUT ROWID;

-- Delivery numbers that were taken, and what was delivered under the last of
-- them. At least as new as the log was when `ingest_log.sealed_through` was
-- set, and never newer than what is durable in the log.
CREATE TABLE ingest_lane (
    agent       TEXT NOT NULL,
    epoch       BLOB NOT NULL,              -- 8 bytes, big-endian
    lane        INTEGER NOT NULL,
    high        INTEGER NOT NULL,           -- highest number taken
    window      BLOB NOT NULL,              -- 17 bytes for each of the last numbers: how it ended, start of its hash
    loss        INTEGER NOT NULL,           -- ingest_loss.id this lane has been reconciled with
    updated_ns  INTEGER NOT NULL,
    PRIMARY KEY (agent, epoch, lane)
) STRICT, WITHOUT ROWID;

-- The one row: everything in the durable log up to here is in the lake.
CREATE TABLE ingest_log (
    only            INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
    sealed_through  INTEGER NOT NULL
) STRICT;
INSERT INTO ingest_log VALUES (1, 0);

-- Damage found in the durable log: acknowledged batches that cannot be read.
CREATE TABLE ingest_loss (
    id          INTEGER PRIMARY KEY NOT NULL,
    from_seq    INTEGER NOT NULL,
    to_seq      INTEGER NOT NULL,
    found_ns    INTEGER NOT NULL,
    UNIQUE (from_seq, to_seq)
) STRICT;

-- Batches that were refused for good, newest 10,000.
CREATE TABLE ingest_error (
    id          INTEGER PRIMARY KEY NOT NULL,
    at_ns       INTEGER NOT NULL,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       BLOB NOT NULL,
    lane        INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    reason      TEXT NOT NULL
) STRICT;
