-- Version 6: keys that are rotated and listed by tenant, records by tenant, what was pruned, sums of days.

ALTER TABLE keys RENAME TO old_keys;

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    row BLOB NOT NULL            -- KeyRow as JSON
) WITHOUT ROWID;

CREATE INDEX keys_tenant ON keys (tenant, id);

-- All that opens a key: its present digest, and the one before the last rotation. Each belongs to one key.
CREATE TABLE digests (
    sha256 TEXT PRIMARY KEY,
    id TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX digests_id ON digests (id);

INSERT INTO keys SELECT id, json_extract(CAST(row AS TEXT), '$.tenant'), row FROM old_keys;
INSERT INTO digests SELECT sha256, id FROM old_keys;
DROP TABLE old_keys;

-- When the record was written; NULL in those of earlier versions, which count by their admission.
ALTER TABLE records ADD COLUMN settled_s REAL;

-- A tenant's records in the order of settlement: what an index ends with is `seq`.
CREATE INDEX records_tenant ON records (tenant);

-- What is no longer in `records` and, of tenants, in `aggregates`. From this version on old rows may be deleted, but
-- never the last of a partition: so numbers and places are given out once.
INSERT INTO meta VALUES
    ('pruned_records', 0), ('pruned_records_nano_usd', 0), ('pruned_calls', 0), ('pruned_calls_nano_usd', 0);

-- Of everything there are sums now. Those of earlier hours are the tenants' together; in which part they stand is all one.
INSERT INTO aggregates
SELECT hour, 'global/0', model, provider, sum(requests), sum(input_tokens), sum(output_tokens), sum(cost_nano_usd)
FROM aggregates WHERE scope >= 'tenant=' AND scope < 'tenant>' AND instr(scope, ',') = 0
GROUP BY hour, model, provider;

-- Sums over longer times, for those who read a month or a year. They hold the rows of `aggregates` up to and including
-- the one that `summed` names: upkeep moves it on, a bounded number of rows at a time (sqlite_sums.py). What changes a
-- row behind it changes them in the same transaction, by the triggers below, so they are exact whoever writes.
CREATE TABLE days (
    day INTEGER NOT NULL,        -- Unix time / 86,400
    scope TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_nano_usd INTEGER NOT NULL,
    hours INTEGER NOT NULL,      -- how many rows these are the sums of
    PRIMARY KEY (day, scope, model, provider)
) WITHOUT ROWID;

-- Of all models together, over 1, 4 and 16 days, and by what scopes are but for their last value: for who costs most.
CREATE TABLE standings (
    days INTEGER NOT NULL,
    number INTEGER NOT NULL,     -- Unix time / 86,400 / days
    prefix TEXT NOT NULL,        -- such as `tenant=`
    scope TEXT NOT NULL,
    requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_nano_usd INTEGER NOT NULL,
    hours INTEGER NOT NULL,
    PRIMARY KEY (days, number, prefix, scope)
) WITHOUT ROWID;

CREATE TABLE summed (hour INTEGER, scope TEXT, model TEXT, provider TEXT);

INSERT INTO summed VALUES (-9223372036854775807, '', '', '');

-- What is inserted here is added to the sums; with -1 hours, a row that is gone is taken off.
CREATE VIEW additions AS
SELECT hour, scope, model, provider, requests, input_tokens, output_tokens, cost_nano_usd, 1 AS hours FROM aggregates;

CREATE TRIGGER additions_add INSTEAD OF INSERT ON additions BEGIN
    INSERT INTO days VALUES (
        NEW.hour / 24, NEW.scope, NEW.model, NEW.provider,
        NEW.requests, NEW.input_tokens, NEW.output_tokens, NEW.cost_nano_usd, NEW.hours
    )
    ON CONFLICT DO UPDATE SET
        requests = requests + excluded.requests,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd,
        hours = hours + excluded.hours;
    -- The prefix ends with the last `=`; in values it is quoted.
    INSERT INTO standings
    SELECT
        lengths.days, NEW.hour / 24 / lengths.days, rtrim(NEW.scope, replace(NEW.scope, '=', '')), NEW.scope,
        NEW.requests, NEW.input_tokens, NEW.output_tokens, NEW.cost_nano_usd, NEW.hours
    FROM (SELECT 1 AS days UNION ALL SELECT 4 UNION ALL SELECT 16) AS lengths WHERE true
    ON CONFLICT DO UPDATE SET
        requests = requests + excluded.requests,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd,
        hours = hours + excluded.hours;
END;

CREATE TRIGGER days_emptied AFTER UPDATE ON days WHEN NEW.hours = 0 BEGIN
    DELETE FROM days
    WHERE day = NEW.day AND scope = NEW.scope AND model = NEW.model AND provider = NEW.provider;
END;

CREATE TRIGGER standings_emptied AFTER UPDATE ON standings WHEN NEW.hours = 0 BEGIN
    DELETE FROM standings
    WHERE days = NEW.days AND number = NEW.number AND prefix = NEW.prefix AND scope = NEW.scope;
END;

CREATE TRIGGER aggregates_inserted AFTER INSERT ON aggregates
WHEN NEW.hour <= (SELECT hour FROM summed)
    AND (NEW.hour, NEW.scope, NEW.model, NEW.provider) <= (SELECT hour, scope, model, provider FROM summed)
BEGIN
    INSERT INTO additions VALUES (
        NEW.hour, NEW.scope, NEW.model, NEW.provider,
        NEW.requests, NEW.input_tokens, NEW.output_tokens, NEW.cost_nano_usd, 1
    );
END;

CREATE TRIGGER aggregates_updated AFTER UPDATE ON aggregates
WHEN NEW.hour <= (SELECT hour FROM summed)
    AND (NEW.hour, NEW.scope, NEW.model, NEW.provider) <= (SELECT hour, scope, model, provider FROM summed)
BEGIN
    INSERT INTO additions VALUES (
        NEW.hour, NEW.scope, NEW.model, NEW.provider,
        NEW.requests - OLD.requests, NEW.input_tokens - OLD.input_tokens,
        NEW.output_tokens - OLD.output_tokens, NEW.cost_nano_usd - OLD.cost_nano_usd, 0
    );
END;

CREATE TRIGGER aggregates_deleted AFTER DELETE ON aggregates
WHEN OLD.hour <= (SELECT hour FROM summed)
    AND (OLD.hour, OLD.scope, OLD.model, OLD.provider) <= (SELECT hour, scope, model, provider FROM summed)
BEGIN
    INSERT INTO additions VALUES (
        OLD.hour, OLD.scope, OLD.model, OLD.provider,
        -OLD.requests, -OLD.input_tokens, -OLD.output_tokens, -OLD.cost_nano_usd, -1
    );
END;
