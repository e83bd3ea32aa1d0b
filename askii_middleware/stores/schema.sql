-- The ledger, version 1. Amounts are integer nano-USD, times are Unix seconds of the machine's clock.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO meta VALUES ('forms_version', 0), ('touched', 0);

-- What is spent (worker '') and what each worker's open calls hold in sum, side by side, so that one short range
-- answers "spent and held" however many calls are open.
-- Invariant: a worker's row is the sum over its rows in `holds` that are in state 'held' and name this counter. (Rows are
-- pruned 8 days after their window, whatever is open then.)
CREATE TABLE counters (
    counter TEXT NOT NULL,
    worker TEXT NOT NULL,
    nano_usd INTEGER NOT NULL CHECK (nano_usd BETWEEN -9007199254740991 AND 9007199254740991),
    end_s INTEGER NOT NULL,
    PRIMARY KEY (counter, worker),
    CHECK (worker = '' OR nano_usd >= 0)
) WITHOUT ROWID;

CREATE INDEX counters_end ON counters (end_s);

-- Calls that are admitted and not settled. A settled call's row is gone: its record is what remains of it.
CREATE TABLE holds (
    call_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('held', 'expired', 'lost', 'released')),
    until_s REAL NOT NULL,       -- in state 'held' the deadline, else how long the row is remembered
    worker TEXT NOT NULL,
    nano_usd INTEGER NOT NULL,
    counters TEXT NOT NULL,      -- JSON [[counter, end_s], ...]
    candidate INTEGER NOT NULL,
    admitted_at_s REAL NOT NULL,
    answer BLOB NOT NULL,        -- the Admission, for a repeated reserve
    about BLOB NOT NULL          -- JSON of identity and model, for the audit of lost calls
) WITHOUT ROWID;

CREATE INDEX holds_until ON holds (state, until_s);

-- A hold counts only while its worker's heartbeat lasts. A buried worker never comes back to life.
CREATE TABLE workers (
    worker TEXT PRIMARY KEY,
    alive_until_s REAL NOT NULL,
    buried_s REAL
) WITHOUT ROWID;

-- Fractions of coins that are not billed yet, in 10^-12 coin, by external subscription.
CREATE TABLE carries (
    subscription TEXT PRIMARY KEY,
    pico_coins INTEGER NOT NULL CHECK (pico_coins BETWEEN 0 AND 999999999999)
) WITHOUT ROWID;

-- Hourly sums. The hour comes first, so that all writes of an hour meet in the same few pages.
CREATE TABLE aggregates (
    hour INTEGER NOT NULL,       -- Unix time / 3600
    scope TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_nano_usd INTEGER NOT NULL,
    PRIMARY KEY (hour, scope, model, provider)
) WITHOUT ROWID;

-- Usage records: at once the account, the marker that a call is settled, and the outbox. Never deleted, so `seq` has
-- no gaps.
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    call_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    candidate INTEGER NOT NULL,
    admitted_at_s REAL NOT NULL,
    record BLOB NOT NULL
);

CREATE TABLE budgets (
    key TEXT PRIMARY KEY,
    shape TEXT NOT NULL,
    period TEXT NOT NULL,
    zone TEXT NOT NULL,
    limit_nano_usd INTEGER,
    limit_coins TEXT,
    enabled INTEGER NOT NULL,
    budget TEXT NOT NULL         -- the whole budget as JSON
) WITHOUT ROWID;

CREATE INDEX budgets_form ON budgets (shape, period, zone);

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,
    row BLOB NOT NULL            -- KeyRow as JSON
) WITHOUT ROWID;

CREATE TABLE sinks (
    sink TEXT PRIMARY KEY,
    position INTEGER NOT NULL,   -- every record up to here is delivered to this sink or set aside
    token INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until_s REAL NOT NULL DEFAULT 0,
    retry_at_s REAL NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Records that left the order of first deliveries, so that they hold nothing back: due again, dead, or delivered
-- beyond a position that still waits for an earlier record.
CREATE TABLE aside (
    sink TEXT NOT NULL,
    seq INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('again', 'dead', 'delivered')),
    due_s REAL NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT NOT NULL,
    first_attempt_s REAL NOT NULL,
    last_attempt_s REAL NOT NULL,
    PRIMARY KEY (sink, seq)
) WITHOUT ROWID;

CREATE INDEX aside_due ON aside (sink, state, due_s);
