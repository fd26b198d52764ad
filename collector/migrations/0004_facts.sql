-- What is told of workloads and hosts by others than the kernel: joined to rows when they are read.
CREATE TABLE workload_facts (
    tenant      TEXT NOT NULL,
    host        TEXT NOT NULL,              -- agent id
    boot_id     BLOB NOT NULL,
    workload    INTEGER NOT NULL,           -- id of its cgroup; 0 = the host
    version     INTEGER NOT NULL,           -- a higher one takes the place of a lower
    facts       BLOB NOT NULL,              -- sumun.v1.Facts
    PRIMARY KEY (tenant, host, boot_id, workload)
) STRICT, WITHOUT ROWID;
