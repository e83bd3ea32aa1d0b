-- Version 5: the outbox in partitions of tenants. `partition_of` is a function of Python that the migration brings.

-- The place of a record among those of its partition: from 1, in the order of settlement, without gaps.
ALTER TABLE records ADD COLUMN partition INTEGER NOT NULL DEFAULT -1;
ALTER TABLE records ADD COLUMN place INTEGER NOT NULL DEFAULT 0;

UPDATE records SET partition = partition_of(tenant);
UPDATE records SET place = placed.place FROM (
    SELECT seq, row_number() OVER (PARTITION BY partition ORDER BY seq) AS place FROM records
) AS placed WHERE placed.seq = records.seq;

CREATE UNIQUE INDEX records_place ON records (partition, place);

ALTER TABLE sinks RENAME TO old_sinks;
ALTER TABLE aside RENAME TO old_aside;
DROP INDEX aside_due;

-- A sink has a row for each partition.
CREATE TABLE sinks (
    sink TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,   -- every record of the partition up to this place is delivered or set aside
    token INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until_s REAL NOT NULL DEFAULT 0,
    retry_at_s REAL NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (sink, partition)
) WITHOUT ROWID;

-- Among whom a sink's partitions are shared.
CREATE TABLE askers (
    sink TEXT NOT NULL,
    owner TEXT NOT NULL,
    until_s REAL NOT NULL,       -- when the owner does not count any more
    PRIMARY KEY (sink, owner)
) WITHOUT ROWID;

-- Records that left the order of first deliveries, so that they hold nothing back: due again, dead, or delivered
-- beyond a position that still waits for an earlier record.
CREATE TABLE aside (
    sink TEXT NOT NULL,
    partition INTEGER NOT NULL,
    place INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('again', 'dead', 'delivered')),
    due_s REAL NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT NOT NULL,
    first_attempt_s REAL NOT NULL,
    last_attempt_s REAL NOT NULL,
    PRIMARY KEY (sink, partition, place)
) WITHOUT ROWID;

CREATE INDEX aside_due ON aside (sink, state, due_s);

-- A lease of the earlier version ends here: the next owner's token is a new one.
WITH RECURSIVE partitions (partition) AS (
    SELECT 0 UNION ALL SELECT partition + 1 FROM partitions WHERE partition < 15
)
INSERT INTO sinks (sink, partition, position, token, retry_at_s, failures)
SELECT
    sink,
    partitions.partition,
    (SELECT count(*) FROM records WHERE records.partition = partitions.partition AND seq <= old_sinks.position),
    token,
    retry_at_s,
    failures
FROM old_sinks CROSS JOIN partitions;

INSERT INTO aside
SELECT sink, partition, place, state, due_s, attempts, reason, first_attempt_s, last_attempt_s
FROM old_aside JOIN records USING (seq);

DROP TABLE old_sinks;
DROP TABLE old_aside;
