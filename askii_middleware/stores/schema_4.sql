-- Version 4: credit, named values, carries that may owe whole coins.

-- What workers have drawn for calls to come, until it is used by settlements or given back. What is left of it counts
-- as held, whether the holder lives or not.
CREATE TABLE credits (
    counter TEXT NOT NULL,
    holder TEXT NOT NULL,
    granted INTEGER NOT NULL CHECK (granted BETWEEN 0 AND 9007199254740991),
    used INTEGER NOT NULL DEFAULT 0,
    end_s INTEGER NOT NULL,
    PRIMARY KEY (counter, holder),
    CHECK (used BETWEEN 0 AND granted)
) WITHOUT ROWID;

CREATE INDEX credits_end ON credits (end_s);

-- The worker's last draw that was answered.
ALTER TABLE workers ADD COLUMN drawn INTEGER NOT NULL DEFAULT 0;

-- Rises with every edit of a budget.
INSERT INTO meta VALUES ('budgets_version', 0);

-- Credits to the customer that no charge has used up yet.
ALTER TABLE carries ADD COLUMN coins INTEGER NOT NULL DEFAULT 0 CHECK (coins <= 0);

CREATE TABLE items (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    until_s REAL,                -- from then on it is as if it was not there
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;

-- How often a kind has changed, without the values whose time is up and that still stand in `items`.
CREATE TABLE item_versions (
    kind TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;
