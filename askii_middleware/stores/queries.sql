-- Every statement of the SQLite ledger. `-- name:` begins one; sqlite_sql.py reads them. A statement runs alone only
-- where its method says so; all others run inside the transaction that BEGIN IMMEDIATE opened.

-- Admission -----------------------------------------------------------------------------------------------------------

-- name: look
-- All that a reserve asks before it looks at money.
SELECT
    (SELECT value FROM meta WHERE name = 'forms_version'),
    (SELECT alive_until_s FROM workers WHERE worker = ?1 AND buried_s IS NULL),
    (SELECT answer FROM holds WHERE call_id = ?2),
    EXISTS (SELECT 1 FROM records WHERE call_id = ?2),
    EXISTS (SELECT 1 FROM holds WHERE state = 'held' AND until_s <= ?3)

-- name: settled
SELECT candidate, admitted_at_s, record FROM records WHERE call_id = ?

-- name: terms
SELECT key, limit_nano_usd, limit_coins, zone, enabled, soft, alert_at_ppm, max_values FROM budgets WHERE key = ?

-- name: terms_of
SELECT budgets.key, limit_nano_usd, limit_coins, zone, enabled, soft, alert_at_ppm, max_values
FROM json_each(?) AS asked CROSS JOIN budgets ON budgets.key = asked.value

-- name: amounts
-- Spent, and held: by workers that live, and all credit.
SELECT
    coalesce(sum(nano_usd) FILTER (WHERE worker = ''), 0),
    coalesce(sum(nano_usd) FILTER (WHERE worker <> ''), 0)
        + coalesce((SELECT sum(granted - used) FROM credits WHERE credits.counter = ?1), 0)
FROM counters
WHERE counter = ?1 AND (worker = '' OR EXISTS (
    SELECT 1 FROM workers
    WHERE workers.worker = counters.worker AND alive_until_s > ?2
))

-- name: amounts_of
-- The same for many counters.
SELECT
    asked.value,
    coalesce(sum(nano_usd) FILTER (WHERE worker = ''), 0),
    coalesce(sum(nano_usd) FILTER (WHERE worker <> ''), 0)
        + coalesce((SELECT sum(granted - used) FROM credits WHERE credits.counter = asked.value), 0)
FROM json_each(?1) AS asked LEFT JOIN counters ON counters.counter = asked.value AND (
    worker = '' OR EXISTS (SELECT 1 FROM workers WHERE workers.worker = counters.worker AND alive_until_s > ?2)
)
GROUP BY asked.key

-- name: lapsed
-- Holds that a living worker let run past their deadline: `amounts` still counts them. Those of dead workers wait for
-- their burial.
SELECT call_id, worker, nano_usd, counters FROM holds JOIN workers USING (worker)
WHERE state = 'held' AND until_s <= ?1 AND alive_until_s > ?1

-- name: crowding
-- Whether a value's counter (?2) is its own beside a shared one (?1), and how many values have one. What is spent on it
-- keeps it, too: it may be older than the budget.
SELECT
    EXISTS (SELECT 1 FROM seats WHERE shared = ?1 AND counter = ?2)
        OR EXISTS (SELECT 1 FROM counters WHERE counter = ?2 AND worker = '' AND nano_usd <> 0),
    coalesce((SELECT max(number) FROM seats WHERE shared = ?1), 0)

-- name: seat
INSERT OR IGNORE INTO seats (shared, counter, number, end_s)
VALUES (?1, ?2, 1 + coalesce((SELECT max(number) FROM seats WHERE shared = ?1), 0), ?3)

-- name: hold
SELECT state, until_s, worker, nano_usd, counters, candidate, admitted_at_s, sequence, (
    SELECT alive_until_s FROM workers WHERE workers.worker = holds.worker
) FROM holds WHERE call_id = ?

-- name: some_lapsed
SELECT EXISTS (SELECT 1 FROM holds WHERE state = 'held' AND until_s <= ?)

-- name: extend
UPDATE holds SET nano_usd = ?2, sequence = ?3 WHERE call_id = ?1

-- name: place
INSERT INTO holds (call_id, state, until_s, worker, nano_usd, counters, candidate, admitted_at_s, answer, about)
VALUES (?, 'held', ?, ?, ?, ?, ?, ?, ?, ?)

-- name: fade
UPDATE holds SET state = ?2, until_s = ?3 WHERE call_id = ?1

-- name: drop
DELETE FROM holds WHERE call_id = ?

-- name: add
-- A charge or a hold. The CHECK refuses what would leave a counter's range.
INSERT INTO counters (counter, worker, nano_usd, end_s) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd

-- name: take
-- The end of a hold. Its row is there by the invariant of `counters`, or was pruned long after its window.
UPDATE counters SET nano_usd = nano_usd - ?3 WHERE counter = ?1 AND worker = ?2

-- name: is_known
SELECT EXISTS (SELECT 1 FROM holds WHERE call_id = ?1) OR EXISTS (SELECT 1 FROM records WHERE call_id = ?1)

-- Credit --------------------------------------------------------------------------------------------------------------

-- name: drawing
SELECT
    (SELECT value FROM meta WHERE name = 'forms_version'),
    (SELECT value FROM meta WHERE name = 'budgets_version'),
    (SELECT alive_until_s FROM workers WHERE worker = ?1 AND buried_s IS NULL),
    (SELECT drawn FROM workers WHERE worker = ?1)

-- name: drew
UPDATE workers SET drawn = ?2 WHERE worker = ?1

-- name: credit
SELECT granted, used FROM credits WHERE counter = ? AND holder = ?

-- name: give_credit
INSERT INTO credits (counter, holder, granted, end_s) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET granted = granted + excluded.granted

-- name: take_credit
-- So much, or what is left: what was used stays covered.
UPDATE credits SET granted = granted - min(?3, granted - used) WHERE counter = ?1 AND holder = ?2

-- name: use_credit
UPDATE credits SET used = used + max(min(?3, granted - used), 0) WHERE counter = ?1 AND holder = ?2

-- name: credits
SELECT counter, holder, granted, used, EXISTS (
    SELECT 1 FROM workers WHERE worker = holder AND alive_until_s > ? AND buried_s IS NULL
) FROM credits WHERE granted > used ORDER BY counter, holder

-- name: reclaim
DELETE FROM credits WHERE counter = ? AND holder = ?

-- Operations ----------------------------------------------------------------------------------------------------------

-- name: defer
INSERT INTO operations (call_id, key, tenant, until_s, payload) VALUES (?, ?, ?, ?, ?)

-- name: is_deferred
SELECT EXISTS (SELECT 1 FROM operations WHERE call_id = ?1), EXISTS (SELECT 1 FROM operations WHERE key = ?2)

-- name: move
UPDATE holds SET worker = ?2, until_s = ?3 WHERE call_id = ?1

-- name: operation
SELECT key, call_id, tenant, until_s, payload FROM operations WHERE key = ?

-- name: overdue
SELECT key, call_id, tenant, until_s, payload FROM operations WHERE until_s <= ? ORDER BY until_s, call_id LIMIT ?

-- name: forget
DELETE FROM operations WHERE call_id = ?

-- Settlement ----------------------------------------------------------------------------------------------------------

-- name: some_alert
SELECT EXISTS (SELECT 1 FROM budgets WHERE alert_at_ppm IS NOT NULL)

-- name: spent
SELECT nano_usd FROM counters WHERE counter = ? AND worker = ''

-- name: carried
SELECT coins, pico_coins FROM carries WHERE subscription = ?

-- name: carry
INSERT INTO carries (subscription, coins, pico_coins) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET coins = excluded.coins, pico_coins = excluded.pico_coins

-- name: aggregate
INSERT INTO aggregates VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests,
    input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens,
    cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd

-- name: record
INSERT INTO records (call_id, tenant, candidate, admitted_at_s, record, partition, place, settled_s)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1 + coalesce((SELECT max(place) FROM records WHERE partition = ?6), 0), ?7)

-- Workers and upkeep --------------------------------------------------------------------------------------------------

-- name: worker
SELECT alive_until_s, buried_s FROM workers WHERE worker = ?

-- name: beat
INSERT INTO workers (worker, alive_until_s) VALUES (?, ?)
ON CONFLICT DO UPDATE SET alive_until_s = excluded.alive_until_s

-- name: dead
SELECT worker FROM workers WHERE alive_until_s <= ? AND buried_s IS NULL

-- name: bury
-- Together with the next two: a buried worker has no row in state 'held' and holds nothing on any counter.
UPDATE workers SET buried_s = ?2 WHERE worker = ?1

-- name: lose
-- Through the index on state: settled calls are not here, so this walks the open calls only.
UPDATE holds SET state = 'lost', until_s = ?2 WHERE state IN ('held', 'expired') AND worker = ?1

-- name: unhold
DELETE FROM counters WHERE worker = ?

-- name: prune_holds
DELETE FROM holds WHERE call_id IN (
    SELECT call_id FROM holds WHERE state IN ('expired', 'lost', 'released') AND until_s <= ? LIMIT 500
)

-- name: prune_operations
DELETE FROM operations WHERE call_id IN (SELECT call_id FROM operations WHERE until_s <= ? LIMIT 500)

-- name: prune_counters
DELETE FROM counters WHERE (counter, worker) IN (SELECT counter, worker FROM counters WHERE end_s <= ? LIMIT 500)

-- name: prune_credits
DELETE FROM credits WHERE (counter, holder) IN (SELECT counter, holder FROM credits WHERE end_s <= ? LIMIT 500)

-- name: prune_seats
DELETE FROM seats WHERE (shared, counter) IN (SELECT shared, counter FROM seats WHERE end_s <= ? LIMIT 500)

-- name: prune_alerts
-- Those that every channel in use is done with.
DELETE FROM alerts WHERE seq IN (
    SELECT seq FROM alerts WHERE end_s <= ?1 AND NOT EXISTS (
        SELECT 1 FROM channels WHERE position < alerts.seq AND lease_until_s > ?2
    ) LIMIT 500
)

-- name: prune_workers
DELETE FROM workers WHERE worker IN (SELECT worker FROM workers WHERE buried_s <= ? LIMIT 500)

-- name: touch
UPDATE meta SET value = value + 1 WHERE name = 'touched'

-- Budgets and keys ----------------------------------------------------------------------------------------------------

-- name: forms_version
SELECT value FROM meta WHERE name = 'forms_version'

-- name: forms
SELECT DISTINCT shape, period, zone FROM budgets ORDER BY shape, period, zone

-- name: has_form
SELECT EXISTS (SELECT 1 FROM budgets WHERE shape = ? AND period = ? AND zone = ?)

-- name: form_of
SELECT shape, period, zone FROM budgets WHERE key = ?

-- name: edited
UPDATE meta SET value = value + 1 WHERE name = 'budgets_version'

-- name: new_forms
UPDATE meta SET value = value + 1 WHERE name = 'forms_version'

-- name: set_budget
INSERT OR REPLACE INTO budgets (
    key, shape, period, zone, limit_nano_usd, limit_coins, enabled, soft, max_values, alert_at_ppm, budget
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: remove_budget
DELETE FROM budgets WHERE key = ?

-- name: budgets
SELECT budget FROM budgets
WHERE key > ?1 AND instr(substr(key, 1, length(key) - length(period) - 1), ?2) > 0 ORDER BY key LIMIT ?3

-- name: budgets_of
SELECT budget FROM budgets WHERE key IN (SELECT value FROM json_each(?))

-- name: budget_keys
SELECT key FROM budgets

-- name: put_key
INSERT INTO keys VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, row = excluded.row

-- name: keys
SELECT row FROM keys WHERE id > ? ORDER BY id LIMIT ?

-- name: keys_of
SELECT row FROM keys WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?

-- name: key
SELECT row FROM keys WHERE id = ?

-- name: find_key
SELECT row FROM digests JOIN keys USING (id) WHERE sha256 = ?

-- name: digest_taken
SELECT EXISTS (SELECT 1 FROM digests WHERE sha256 = ? AND id <> ?)

-- name: put_digest
INSERT INTO digests VALUES (?, ?)

-- name: drop_digests
DELETE FROM digests WHERE id = ?

-- Items ---------------------------------------------------------------------------------------------------------------

-- name: drop_items
-- Those whose time is up.
DELETE FROM items WHERE kind = ? AND until_s <= ?

-- name: put_item
INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)

-- name: new_item
INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?)

-- name: remove_item
DELETE FROM items WHERE kind = ? AND name = ?

-- name: items
SELECT name, value FROM items WHERE kind = ? AND (until_s IS NULL OR until_s > ?) ORDER BY name

-- name: items_changed
INSERT INTO item_versions VALUES (?, ?) ON CONFLICT DO UPDATE SET version = version + excluded.version

-- name: item_versions
-- The end of a value's time is a change, too.
SELECT kind, version + (SELECT count(*) FROM items WHERE items.kind = item_versions.kind AND until_s <= ?)
FROM item_versions
