-- The ledger on PostgreSQL, version 1: money. Amounts are integer nano-USD, times Unix seconds.
--
-- Whoever changes rows of `counters` or `credits` first locks each counter's row of worker '' (lock_counters), so what
-- a decision has read stays as it is until it is committed. All lists are sorted before they are locked.

-- A hold counts only while its worker's heartbeat lasts. A buried worker never comes back to life.
CREATE TABLE workers (
    worker text COLLATE "C" PRIMARY KEY,
    alive_until_s double precision NOT NULL,
    buried_s double precision
) WITH (fillfactor = 20);

-- Holds for operations in place of the workers that began them, and never dies.
INSERT INTO workers VALUES ('~elsewhere', 'infinity', NULL);

-- What is spent (worker '') and what each worker's open calls hold in sum, side by side, so that one short range
-- answers "spent and held" however many calls are open.
-- Invariant: a worker's row is the sum over its rows in `holds` that are in state 'held' and name this counter. (Rows
-- are pruned 8 days after their window, whatever is open then.)
-- No index holds an amount, and pages keep room: an update stays on its page and touches no index.
CREATE TABLE counters (
    counter text COLLATE "C" NOT NULL,
    worker text COLLATE "C" NOT NULL,
    nano_usd bigint NOT NULL CHECK (nano_usd BETWEEN -9007199254740991 AND 9007199254740991),
    end_s bigint NOT NULL,
    PRIMARY KEY (counter, worker),
    CHECK (worker = '' OR nano_usd >= 0)
) WITH (fillfactor = 40);

CREATE INDEX counters_end ON counters (end_s);

-- Calls that are admitted and not settled. A settled call's row is gone: its record is what remains of it.
CREATE TABLE holds (
    call_id text COLLATE "C" PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('held', 'expired', 'lost', 'released')),
    until_s double precision NOT NULL, -- in state 'held' the deadline, else how long the row is remembered
    worker text COLLATE "C" NOT NULL,
    nano_usd bigint NOT NULL,
    counters text[] NOT NULL,
    ends bigint[] NOT NULL,            -- of the counters' windows
    candidate integer NOT NULL,
    admitted_at_s double precision NOT NULL,
    sequence bigint NOT NULL DEFAULT 0, -- of the last extension that was answered
    answer json NOT NULL,              -- the Admission, for a repeated reserve
    about bytea NOT NULL               -- JSON of identity and model, for the audit of lost calls
) WITH (fillfactor = 80);

CREATE INDEX holds_until ON holds (state, until_s);

-- Which values have counters of their own beside a shared one, numbered from 1 without gaps.
CREATE TABLE seats (
    shared text COLLATE "C" NOT NULL,
    counter text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    end_s bigint NOT NULL,
    PRIMARY KEY (shared, counter),
    UNIQUE (shared, number)
);

CREATE INDEX seats_end ON seats (end_s);

-- Open calls that go on elsewhere, in some provider's hands.
CREATE TABLE operations (
    call_id text COLLATE "C" PRIMARY KEY,
    key text COLLATE "C" NOT NULL UNIQUE,
    tenant text NOT NULL,
    until_s double precision NOT NULL,
    payload bytea NOT NULL
);

CREATE INDEX operations_until ON operations (until_s, call_id);

-- What workers may admit by themselves. Granted and not used counts as held, whether or not the holder lives.
CREATE TABLE credits (
    counter text COLLATE "C" NOT NULL,
    holder text COLLATE "C" NOT NULL,
    granted bigint NOT NULL,
    used bigint NOT NULL,
    end_s bigint NOT NULL,
    PRIMARY KEY (counter, holder),
    CHECK (used >= 0 AND granted >= used)
) WITH (fillfactor = 40);

CREATE INDEX credits_end ON credits (end_s);

-- The last draw of each holder that was answered.
CREATE TABLE draws (
    holder text COLLATE "C" PRIMARY KEY,
    sequence bigint NOT NULL
) WITH (fillfactor = 40);

-- What is not billed yet of each subscription: whole coins that are owed to it (never above 0), and a fraction.
CREATE TABLE carries (
    subscription text COLLATE "C" PRIMARY KEY,
    coins numeric NOT NULL CHECK (coins <= 0),
    pico_coins bigint NOT NULL CHECK (pico_coins BETWEEN 0 AND 999999999999)
) WITH (fillfactor = 40);

-- A counter with the limit that rules it for one call, and what stands on it.
CREATE TYPE budget_line AS (
    item integer,                      -- the request of a batch
    cand integer,                      -- the candidate, from 0
    place bigint,                      -- ascends in the order of the call's matches
    counter text,                      -- NULL: no window that was sent holds the present moment
    scope text,
    period text,
    lim bigint,
    soft boolean,
    above bigint,
    end_s bigint,
    crowd text,
    crowd_scope text,
    most bigint,
    watches jsonb,
    is_new boolean,                    -- the value takes a seat beside `crowd`
    spent bigint,
    held bigint
);
