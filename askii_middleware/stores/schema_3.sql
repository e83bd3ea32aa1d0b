-- Version 3: holds that grow, budgets that report and that bound invented values, alerts.

-- The last extension that was answered.
ALTER TABLE holds ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;

ALTER TABLE budgets ADD COLUMN soft INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budgets ADD COLUMN max_values INTEGER;
ALTER TABLE budgets ADD COLUMN alert_at_ppm TEXT;      -- JSON [share, ...]; NULL: it does not report

-- Lets a settlement see at once that no stored budget reports.
CREATE INDEX budgets_alerting ON budgets (key) WHERE alert_at_ppm IS NOT NULL;

-- What the budgets of earlier versions said already: their shares, and the bound where clients invent the values.
UPDATE budgets SET alert_at_ppm = (
    SELECT json_group_array(ppm) FROM (
        SELECT DISTINCT CAST(round(value * 1000000) AS INTEGER) AS ppm
        FROM json_each(budgets.budget, '$.alert_at') ORDER BY ppm
    )
) WHERE json_array_length(budget, '$.alert_at') > 0;
UPDATE budgets SET max_values = 10000 WHERE key GLOB '*end_user=[*]*' OR key GLOB '*tag=[*]*';

-- Which values have counters of their own beside a shared one, numbered from 1 without gaps.
CREATE TABLE seats (
    shared TEXT NOT NULL,
    counter TEXT NOT NULL,
    number INTEGER NOT NULL,
    end_s INTEGER NOT NULL,
    PRIMARY KEY (shared, counter),
    UNIQUE (shared, number)
) WITHOUT ROWID;

CREATE INDEX seats_end ON seats (end_s);

-- Written by the settlement that crossed the share, once: `id` names counter, share and limit. Numbers are not used
-- again, so that channels never miss one.
CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    end_s INTEGER NOT NULL,
    alert BLOB NOT NULL          -- Alert as JSON, without its number
);

CREATE INDEX alerts_end ON alerts (end_s);

CREATE TABLE channels (
    channel TEXT PRIMARY KEY,
    position INTEGER NOT NULL,   -- every alert up to here is done with
    lease_until_s REAL NOT NULL, -- from its registration on
    token INTEGER NOT NULL DEFAULT 0,
    owner TEXT
) WITHOUT ROWID;
