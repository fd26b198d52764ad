-- What policies an agent has loaded, as it last said: sumun.v1.LoadedPolicies; empty = it never did.
ALTER TABLE agent ADD COLUMN policies BLOB NOT NULL DEFAULT x'';
