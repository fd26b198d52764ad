-- What the lake holds, and what was collected when. Times are nanoseconds since the Unix epoch.

-- One row for each file; a file without a row is not part of the lake.
CREATE TABLE lake_file (
    tenant      TEXT NOT NULL,
    family      TEXT NOT NULL,
    segment     INTEGER NOT NULL,           -- log segment it was made from
    path        TEXT NOT NULL UNIQUE,       -- below the lake
    rows        INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    min_ns      INTEGER NOT NULL,           -- event time
    max_ns      INTEGER NOT NULL,
    hosts       TEXT NOT NULL,              -- ids, separated by spaces
    PRIMARY KEY (tenant, family, segment)
) STRICT, WITHOUT ROWID;

-- What an agent collected of a kind from a time on, until its next row of that kind.
CREATE TABLE scope (
    id          INTEGER PRIMARY KEY NOT NULL,
    segment     INTEGER NOT NULL,           -- log segment it came in
    tenant      TEXT NOT NULL,
    host        TEXT NOT NULL,              -- agent id
    from_ns     INTEGER NOT NULL,
    scope       BLOB NOT NULL               -- sumun.v1.Scope
) STRICT;
CREATE INDEX scope_tenant ON scope (tenant, host, from_ns);
