-- The ledger on PostgreSQL, version 1: what is read, delivered and set by operators. Amounts are integer nano-USD,
-- times Unix seconds. Names are found through search_path: the whole ledger lies in one schema. What is sorted by is
-- sorted by code points, as everywhere else.

CREATE TABLE meta (
    name text PRIMARY KEY,
    value bigint NOT NULL
) WITH (fillfactor = 50);

INSERT INTO meta VALUES ('forms_version', 0), ('budgets_version', 0), ('touched', 0);

-- Budgets, and what is left of removed ones: rows without a budget, for those who know an earlier version.
-- Invariant: the largest `version` is budgets_version in `meta`, whose row every writer locks first.
CREATE TABLE budgets (
    key text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    shape text COLLATE "C" NOT NULL,
    period text COLLATE "C" NOT NULL,
    zone text COLLATE "C" NOT NULL,
    terms json,                  -- BudgetTerms
    budget json                  -- the whole budget; NULL: removed
);

CREATE INDEX budgets_version ON budgets (version);
CREATE INDEX budgets_form ON budgets (shape, period, zone) WHERE budget IS NOT NULL;

CREATE TABLE keys (
    id text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    key json NOT NULL            -- KeyRow
);

CREATE INDEX keys_tenant ON keys (tenant, id);

-- What opens a key: its digest, and the one before its last rotation. Each opens one key.
CREATE TABLE digests (
    sha256 text COLLATE "C" PRIMARY KEY,
    id text COLLATE "C" NOT NULL
);

CREATE INDEX digests_id ON digests (id);

-- Named values of some kind, and a number for each kind that changes with them.
CREATE TABLE items (
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    until_s double precision,    -- NULL: for ever
    PRIMARY KEY (kind, name)
);

CREATE TABLE item_kinds (
    kind text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL
);

-- Hourly sums. All numbers of a scope lie together, by hour.
CREATE TABLE aggregates (
    scope text COLLATE "C" NOT NULL,
    hour bigint NOT NULL,        -- Unix time / 3600
    model text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    requests bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_nano_usd bigint NOT NULL,
    -- The scope without its last value. Those of `tenant=` together hold every call once.
    prefix text COLLATE "C" NOT NULL
        GENERATED ALWAYS AS (left(scope, 1 + length(scope) - strpos(reverse(scope), '='))) STORED,
    PRIMARY KEY (scope, hour, model, provider)
) WITH (fillfactor = 80);

CREATE INDEX aggregates_prefix ON aggregates (prefix, hour);

-- For pruning: takes next to nothing, because rows lie about in the order of their hours.
CREATE INDEX aggregates_hour ON aggregates USING brin (hour) WITH (pages_per_range = 32, autosummarize = on);

-- What was pruned, so that sums over the whole ledger stay: one row.
CREATE TABLE pruned (
    calls numeric NOT NULL,
    cost_nano_usd numeric NOT NULL,      -- of the aggregates of tenants
    records numeric NOT NULL,
    records_nano_usd numeric NOT NULL    -- as they said themselves
);

INSERT INTO pruned VALUES (0, 0, 0, 0);

-- The ends of the outbox. A settlement locks its tenant's partition until it is committed, so numbers have no gaps and
-- whoever sees one sees all before it.
CREATE TABLE partitions (
    partition integer PRIMARY KEY,
    last bigint NOT NULL
) WITH (fillfactor = 10);

INSERT INTO partitions SELECT generate_series(0, 15), 0;

-- Numbers all records of the ledger, in the order in which their partitions were locked; numbers may be left out.
CREATE SEQUENCE record_numbers;

-- Usage records: at once the account, the marker that a call is settled, and the outbox. Pruned a day after their
-- settlement at the earliest, and when every sink has passed them.
CREATE TABLE records (
    partition integer NOT NULL,
    seq bigint NOT NULL,         -- from 1 and without gaps in its partition
    n bigint NOT NULL UNIQUE,    -- see record_numbers
    call_id text NOT NULL UNIQUE,
    tenant text COLLATE "C" NOT NULL,
    candidate integer NOT NULL,
    admitted_at_s double precision NOT NULL,
    settled_at_s double precision NOT NULL,
    coins numeric NOT NULL,      -- the answer to the settlement, for one that is repeated
    late boolean NOT NULL,
    record bytea NOT NULL,       -- JSON, as it was sent
    PRIMARY KEY (partition, seq)
);

CREATE INDEX records_tenant ON records (tenant, n);

CREATE TABLE sinks (
    sink text COLLATE "C" PRIMARY KEY
);

-- A sink's place in each partition, and who delivers from there.
CREATE TABLE places (
    sink text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    position bigint NOT NULL,    -- every record up to here is delivered or set aside
    token bigint NOT NULL DEFAULT 0,
    owner text,
    until_s double precision NOT NULL DEFAULT 0,
    retry_at_s double precision NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    PRIMARY KEY (sink, partition)
) WITH (fillfactor = 50);

-- Who has asked for leases of a sink, and until when it shares in them.
CREATE TABLE owners (
    sink text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    until_s double precision NOT NULL,
    PRIMARY KEY (sink, owner)
);

-- Records that left the order of first deliveries, so that they hold nothing back: due again, dead, or delivered
-- beyond a position that still waits for an earlier record.
CREATE TABLE aside (
    sink text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    seq bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('again', 'dead', 'delivered')),
    due_s double precision NOT NULL,
    attempts integer NOT NULL,
    reason text NOT NULL,
    first_attempt_s double precision NOT NULL,
    last_attempt_s double precision NOT NULL,
    PRIMARY KEY (sink, partition, seq)
);

CREATE INDEX aside_due ON aside (sink, state, due_s);

-- Written by the settlement that crossed the share, once: `id` names counter, share and limit. The last number stands
-- in `meta`, is locked by whoever writes an alert, and is not used again: channels never miss one.
CREATE TABLE alerts (
    seq bigint PRIMARY KEY,
    id text NOT NULL UNIQUE,
    end_s bigint NOT NULL,
    alert jsonb NOT NULL         -- Alert
);

CREATE INDEX alerts_end ON alerts (end_s);

INSERT INTO meta VALUES ('last_alert', 0);

CREATE TABLE channels (
    channel text PRIMARY KEY,
    position bigint NOT NULL,    -- every alert up to here is done with
    until_s double precision NOT NULL,  -- of its lease; at first when it was registered
    token bigint NOT NULL DEFAULT 0,
    owner text
);
