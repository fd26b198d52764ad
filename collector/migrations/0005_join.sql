-- What was proved without a token, and the agent that it is bound to.
CREATE TABLE join_binding (
    tenant      TEXT NOT NULL REFERENCES tenant (name),
    method      TEXT NOT NULL,              -- ec2 | kubernetes
    subject     TEXT NOT NULL,              -- the instance, or the node
    entry       TEXT NOT NULL,              -- name of the [[join]] that let it in
    agent       TEXT NOT NULL REFERENCES agent (id),
    key         BLOB NOT NULL,              -- SHA-256 of the agent's public key
    bound_ns    INTEGER NOT NULL,
    used_ns     INTEGER NOT NULL,           -- the last time that it was shown
    PRIMARY KEY (tenant, method, subject)
) STRICT, WITHOUT ROWID;
-- A key is one host's: copies of an image that was made with a key in it are not all the same agent.
CREATE UNIQUE INDEX join_binding_key ON join_binding (tenant, key);

-- Who was enrolled or refused, and what admins did about it; the newest 10,000 refusals of a tenant, and as many others.
CREATE TABLE join_log (
    id          INTEGER PRIMARY KEY NOT NULL,
    at_ns       INTEGER NOT NULL,
    tenant      TEXT NOT NULL,              -- empty: nobody's, as far as could be told
    method      TEXT NOT NULL,              -- token | ec2 | kubernetes
    outcome     TEXT NOT NULL,              -- enrolled | again | refused | forgotten
    subject     TEXT NOT NULL,
    host        TEXT NOT NULL,              -- as it called itself
    address     TEXT NOT NULL,              -- where it came from
    agent       TEXT NOT NULL,
    reason      TEXT NOT NULL,              -- why it was refused
    by          TEXT NOT NULL               -- the admin's token that did it
) STRICT;
CREATE INDEX join_log_tenant ON join_log (tenant, id);
