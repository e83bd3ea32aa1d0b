-- Statements of the SQLite ledger that read much, and those that let rows go. See queries.sql.

-- Reading -------------------------------------------------------------------------------------------------------------

-- name: summed_hour
SELECT hour FROM summed

-- name: spend_over
-- ?1: scopes, ?2: days, ?3: hours, as `sqlite_sums.parts_of` has them. Walks the days and hours that exist, and looks
-- the scopes up in each: 4 ms for a year of days of one scope.
WITH RECURSIVE spans (span, first, last) AS (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?2)
), whole (span, last, day) AS (
    SELECT span, last, (SELECT min(day) FROM days WHERE day >= first) FROM spans
    UNION ALL
    SELECT span, last, (SELECT min(day) FROM days WHERE day > whole.day) FROM whole WHERE day < last
), asked (span, sign, first, last, beyond) AS (
    SELECT
        json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?3)
), parts (span, sign, last, beyond, hour) AS (
    SELECT span, sign, last, beyond, (SELECT min(hour) FROM aggregates WHERE hour >= first) FROM asked
    UNION ALL
    SELECT span, sign, last, beyond, (SELECT min(hour) FROM aggregates WHERE hour > parts.hour)
    FROM parts WHERE hour < last
), found AS (
    SELECT span, model, provider, requests, input_tokens, output_tokens, cost_nano_usd, hours
    FROM whole CROSS JOIN days USING (day)
    WHERE day < last AND scope IN (SELECT value FROM json_each(?1))
    UNION ALL
    SELECT
        span, model, provider,
        sign * requests, sign * input_tokens, sign * output_tokens, sign * cost_nano_usd, sign AS hours
    FROM parts CROSS JOIN aggregates USING (hour)
    WHERE hour < last AND scope IN (SELECT value FROM json_each(?1))
        AND (NOT beyond OR (hour, scope, model, provider) > (SELECT hour, scope, model, provider FROM summed))
)
SELECT span, model, provider, sum(requests), sum(input_tokens), sum(output_tokens), sum(cost_nano_usd)
FROM found GROUP BY span, model, provider HAVING sum(hours) > 0 ORDER BY span, model, provider

-- name: top_spend
-- ?1: what the scopes begin with, ?2: the place behind it. They are ASCII. ?3: days, as `runs_of` has them, ?4: hours,
-- ?5: how many.
WITH RECURSIVE runs (days, sign, first, last) AS (
    SELECT
        json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]')
    FROM json_each(?3)
), whole (days, sign, last, number) AS (
    SELECT days, sign, last, (SELECT min(number) FROM standings WHERE days = runs.days AND number >= first) FROM runs
    UNION ALL
    SELECT days, sign, last, (SELECT min(number) FROM standings WHERE days = whole.days AND number > whole.number)
    FROM whole WHERE number < last
), asked (sign, first, last, beyond) AS (
    SELECT
        json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?4)
), parts (sign, last, beyond, hour) AS (
    SELECT sign, last, beyond, (SELECT min(hour) FROM aggregates WHERE hour >= first) FROM asked
    UNION ALL
    SELECT sign, last, beyond, (SELECT min(hour) FROM aggregates WHERE hour > parts.hour) FROM parts WHERE hour < last
), found AS (
    SELECT
        scope, sign * requests AS requests, sign * input_tokens AS input_tokens, sign * output_tokens AS output_tokens,
        sign * cost_nano_usd AS cost_nano_usd, sign * hours AS hours
    FROM whole CROSS JOIN standings USING (days, number)
    WHERE number < last AND prefix = ?1
    UNION ALL
    SELECT scope, sign * requests, sign * input_tokens, sign * output_tokens, sign * cost_nano_usd, sign
    FROM parts CROSS JOIN aggregates USING (hour)
    WHERE hour < last AND scope >= ?1 AND scope < ?1 || char(1114111) AND instr(substr(scope, ?2), ',') = 0
        AND (NOT beyond OR (hour, scope, model, provider) > (SELECT hour, scope, model, provider FROM summed))
)
SELECT scope, sum(requests), sum(input_tokens), sum(output_tokens), sum(cost_nano_usd) AS cost
FROM found GROUP BY scope HAVING sum(hours) > 0 ORDER BY cost DESC, scope LIMIT ?5

-- name: not_summed
-- Rows of hours before ?1 that are in no sum, the oldest first, and how many rows each is.
SELECT hour, scope, model, provider, requests, input_tokens, output_tokens, cost_nano_usd, 1 FROM aggregates
WHERE (hour, scope, model, provider) > (SELECT hour, scope, model, provider FROM summed) AND hour < ?1
ORDER BY hour, scope, model, provider LIMIT ?2

-- name: sum_up
INSERT INTO additions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: summed
UPDATE summed SET hour = ?, scope = ?, model = ?, provider = ?

-- name: totals
-- Both sides of the account, each from its own rows and what was counted when such rows went.
WITH tenants AS (
    SELECT requests, cost_nano_usd FROM aggregates
    WHERE scope >= 'tenant=' AND scope < 'tenant>' AND instr(scope, ',') = 0
), pruned AS (
    SELECT name, value FROM meta
)
SELECT
    (SELECT coalesce(sum(requests), 0) FROM tenants) + (SELECT value FROM pruned WHERE name = 'pruned_calls'),
    (SELECT coalesce(sum(cost_nano_usd), 0) FROM tenants)
        + (SELECT value FROM pruned WHERE name = 'pruned_calls_nano_usd'),
    (SELECT count(*) FROM records) + (SELECT value FROM pruned WHERE name = 'pruned_records'),
    (SELECT coalesce(sum(json_extract(CAST(record AS TEXT), '$.cost_nano_usd')), 0) FROM records)
        + (SELECT value FROM pruned WHERE name = 'pruned_records_nano_usd'),
    (SELECT coalesce(sum(nano_usd), 0) FROM holds JOIN workers USING (worker)
        WHERE state = 'held' AND until_s > ?1 AND alive_until_s > ?1),
    (SELECT count(*) FROM holds WHERE state = 'lost')

-- name: records
SELECT seq, record FROM records WHERE seq > ? ORDER BY seq LIMIT ?

-- name: latest
SELECT seq, record FROM records WHERE seq < ? ORDER BY seq DESC LIMIT ?

-- name: latest_of
SELECT seq, record FROM records WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?

-- Pruning -------------------------------------------------------------------------------------------------------------

-- name: free_records
-- Of one partition, from its beginning: settled before ?2, passed by every sink, not set aside, and not the last. Numbers
-- ascend as time does, so no more than ?3 are looked at: others who write wait for this.
SELECT seq, coalesce(json_extract(CAST(record AS TEXT), '$.cost_nano_usd'), 0) FROM (
    SELECT seq, coalesce(settled_s, admitted_at_s) AS at_s, record FROM records
    WHERE partition = ?1
        AND place <= coalesce((SELECT min(position) FROM sinks WHERE partition = ?1), 9007199254740991)
        AND place < (SELECT max(place) FROM records WHERE partition = ?1)
        AND NOT EXISTS (SELECT 1 FROM aside WHERE aside.partition = ?1 AND aside.place = records.place)
    ORDER BY place LIMIT ?3
) WHERE at_s < ?2

-- name: drop_record
DELETE FROM records WHERE seq = ?

-- name: old_hours
SELECT hour, scope, model, provider, requests, cost_nano_usd FROM aggregates
WHERE hour < ? ORDER BY hour, scope, model, provider LIMIT ?

-- name: drop_hour
DELETE FROM aggregates WHERE hour = ? AND scope = ? AND model = ? AND provider = ?

-- name: pruned
UPDATE meta SET value = value + ?2 WHERE name = ?1

-- Erasing -------------------------------------------------------------------------------------------------------------

-- name: waits
-- A sink that has not got all records of a tenant (?1), whose partition is ?2, be it for good. Walks what waits there.
SELECT sink FROM sinks CROSS JOIN records INDEXED BY records_place ON records.partition = ?2 AND place > position
WHERE sinks.partition = ?2 AND tenant = ?1 AND NOT EXISTS (
    SELECT 1 FROM aside
    WHERE aside.sink = sinks.sink AND aside.partition = ?2 AND aside.place = records.place AND state = 'delivered'
)
UNION ALL
SELECT sink FROM aside CROSS JOIN records USING (partition, place)
WHERE partition = ?2 AND tenant = ?1 AND state <> 'delivered'
LIMIT 1

-- name: last_of
SELECT max(seq) FROM records WHERE tenant = ?

-- name: some_of
SELECT seq, record FROM records WHERE tenant = ? AND seq <= ? ORDER BY seq LIMIT ?

-- name: rewrite
UPDATE records SET tenant = ?2, record = ?3 WHERE seq = ?1

-- name: next_hours
WITH RECURSIVE hours (hour) AS (
    SELECT min(hour) FROM aggregates WHERE hour > ?1
    UNION ALL
    SELECT (SELECT min(hour) FROM aggregates WHERE hour > hours.hour) FROM hours WHERE hour IS NOT NULL
)
SELECT hour FROM hours WHERE hour IS NOT NULL LIMIT ?2

-- name: hours_named
-- Rows of some hours (?1) whose scope is one of ?2, or begins with ?3.
SELECT aggregates.* FROM json_each(?1) AS asked CROSS JOIN aggregates ON hour = asked.value
WHERE scope IN (SELECT value FROM json_each(?2))
UNION ALL
SELECT aggregates.* FROM json_each(?1) AS asked CROSS JOIN aggregates ON hour = asked.value
WHERE scope >= ?3 AND scope < ?3 || char(1114111)
LIMIT ?4
