-- Statements of the SQLite ledger about records and alerts on their way. See queries.sql.

-- Outbox --------------------------------------------------------------------------------------------------------------

-- name: record_of
SELECT record FROM records WHERE call_id = ?

-- name: last_places
SELECT value, (SELECT coalesce(max(place), 0) FROM records WHERE partition = value) FROM json_each(?)

-- name: register_sink
INSERT OR IGNORE INTO sinks (sink, partition, position)
VALUES (?1, ?2, (SELECT coalesce(max(place), 0) FROM records WHERE partition = ?2))

-- name: forget_sink
DELETE FROM sinks WHERE sink = ?

-- name: forget_askers
DELETE FROM askers WHERE sink = ?

-- name: forget_aside
DELETE FROM aside WHERE sink = ?

-- name: sink
SELECT partition, position, token, owner, lease_until_s, retry_at_s, failures FROM sinks WHERE sink = ?
ORDER BY partition

-- name: forget_asker
-- This one, and those whose time is over.
DELETE FROM askers WHERE sink = ?1 AND (owner = ?2 OR until_s <= ?3)

-- name: ask
INSERT INTO askers VALUES (?, ?, ?)

-- name: askers
SELECT owner FROM askers WHERE sink = ?

-- name: lease
UPDATE sinks SET owner = ?3, token = ?4, lease_until_s = ?5 WHERE sink = ?1 AND partition = ?2

-- name: give_up
UPDATE sinks SET lease_until_s = min(lease_until_s, ?3) WHERE sink = ?1 AND partition = ?2

-- name: due
SELECT partition, place, call_id, tenant, record, attempts FROM aside JOIN records USING (partition, place)
WHERE sink = ?1 AND state = 'again' AND due_s <= ?3 AND partition IN (SELECT value FROM json_each(?2))
ORDER BY due_s, partition, place LIMIT ?4

-- name: fresh
-- The number in the order of settlement comes first: what runs side by side is merged by it.
SELECT seq, partition, place, call_id, tenant, record FROM records WHERE partition = ? AND place > ? ORDER BY place

-- name: aside_ahead
-- Few: what waits for an earlier record.
SELECT sinks.partition, place, state FROM sinks CROSS JOIN aside USING (sink, partition)
WHERE sink = ? AND place > position

-- name: aside_states
SELECT partition, place, state FROM json_each(?2) AS asked CROSS JOIN aside
WHERE sink = ?1 AND partition = json_extract(asked.value, '$[0]') AND place = json_extract(asked.value, '$[1]')

-- name: put_aside
INSERT INTO aside VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?7)
ON CONFLICT DO UPDATE SET
    state = excluded.state,
    due_s = excluded.due_s,
    attempts = attempts + 1,
    reason = excluded.reason,
    last_attempt_s = excluded.last_attempt_s

-- name: take_back
DELETE FROM aside WHERE sink = ? AND partition = ? AND place = ?

-- name: forget_delivered
DELETE FROM aside WHERE sink = ?1 AND partition = ?2 AND place > ?3 AND place <= ?4 AND state = 'delivered'

-- name: advance
UPDATE sinks SET position = ?3, retry_at_s = ?4, failures = ?5 WHERE sink = ?1 AND partition = ?2

-- name: pending
SELECT sink, sum(
    (SELECT coalesce(max(place), 0) FROM records WHERE records.partition = sinks.partition) - position
    - (SELECT count(*) FROM aside
        WHERE aside.sink = sinks.sink AND aside.partition = sinks.partition AND place > position)
) + (SELECT count(*) FROM aside WHERE aside.sink = sinks.sink AND state = 'again')
FROM sinks GROUP BY sink

-- name: dead_letters
-- What is dead was due for the last time when it was rejected.
SELECT partition, place, call_id, tenant, reason, attempts, first_attempt_s, last_attempt_s, record
FROM aside JOIN records USING (partition, place) WHERE sink = ? AND state = 'dead'
ORDER BY due_s, partition, place LIMIT ?

-- name: retry_dead
UPDATE aside SET state = 'again', due_s = ?2 WHERE sink = ?1 AND state = 'dead'

-- Alerts --------------------------------------------------------------------------------------------------------------

-- name: write_alert
INSERT OR IGNORE INTO alerts (id, end_s, alert) VALUES (?, ?, ?)

-- name: register_channel
INSERT OR IGNORE INTO channels (channel, position, lease_until_s)
VALUES (?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'alerts'), 0), ?)

-- name: channel
SELECT position, token, owner, lease_until_s FROM channels WHERE channel = ?

-- name: lease_channel
UPDATE channels SET owner = ?2, token = ?3, lease_until_s = ?4 WHERE channel = ?1

-- name: alerts_after
SELECT seq, alert FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?

-- name: advance_channel
-- Never back, and never beyond what there is.
UPDATE channels SET position = max(
    position, min(?2, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'alerts'), 0))
) WHERE channel = ?1

-- name: recent_alerts
SELECT seq, alert FROM alerts ORDER BY seq DESC LIMIT ?

-- name: all_alerts
SELECT seq, alert FROM alerts

-- name: drop_alert
DELETE FROM alerts WHERE seq = ?
