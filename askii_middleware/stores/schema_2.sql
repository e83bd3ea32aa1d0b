-- Version 2: open calls that go on elsewhere, in some provider's hands.

CREATE TABLE operations (
    call_id TEXT PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    until_s REAL NOT NULL,
    payload BLOB NOT NULL
);

CREATE INDEX operations_until ON operations (until_s);

-- Holds for them in place of the workers that began them, and never dies.
INSERT INTO workers VALUES ('~elsewhere', 9007199254740991, NULL);
