-- Heartbeats, and what they tidy up on the way.

-- False: its heartbeat had run out.
CREATE OR REPLACE FUNCTION beat(p_now_s double precision, p_worker text, p_ttl_s double precision) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision := now_or(p_now_s);
BEGIN
    INSERT INTO workers AS known (worker, alive_until_s) VALUES (p_worker, v_now_s + p_ttl_s)
    ON CONFLICT (worker) DO UPDATE SET alive_until_s = excluded.alive_until_s
    WHERE known.alive_until_s > v_now_s AND known.buried_s IS NULL;
    RETURN FOUND;
END
$$;

-- Bury a worker whose heartbeat has run out: it has no row in state 'held' any more and holds nothing on any counter.
-- Answers how many holds are lost with it.
CREATE OR REPLACE FUNCTION bury(p_worker text, p_now_s double precision) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_counters text[];
    v_ends bigint[];
    v_lost bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('askii worker ' || p_worker, 0));
    UPDATE workers SET buried_s = p_now_s WHERE worker = p_worker AND alive_until_s <= p_now_s AND buried_s IS NULL;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- Through the index on state: settled calls are not here, so this walks the open calls only.
    PERFORM FROM holds WHERE state IN ('held', 'expired') AND worker = p_worker ORDER BY call_id FOR UPDATE;
    SELECT array_agg(counter), array_agg(end_s) INTO v_counters, v_ends FROM counters WHERE worker = p_worker;
    PERFORM lock_counters(v_counters, v_ends);
    UPDATE holds SET state = 'lost', until_s = p_now_s + 8 * 86400
    WHERE state IN ('held', 'expired') AND worker = p_worker;
    GET DIAGNOSTICS v_lost = ROW_COUNT;
    DELETE FROM counters WHERE counter = ANY (v_counters) AND worker = p_worker;
    DELETE FROM draws WHERE holder = p_worker;
    RETURN v_lost;
END
$$;

-- A name of a worker that wants to be buried.
CREATE OR REPLACE FUNCTION dead_worker(p_now_s double precision) RETURNS text
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT worker FROM workers WHERE alive_until_s <= (SELECT now_or(p_now_s)) AND buried_s IS NULL
    ORDER BY worker LIMIT 1
$$;

CREATE OR REPLACE FUNCTION bury_worker(p_now_s double precision, p_worker text) RETURNS bigint
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT bury(p_worker, now_or(p_now_s))
$$;

-- Write down that holds ran past their deadline, so that nobody has to leave them out any more, and delete a bounded
-- number of rows that nobody asks for. Whoever comes while another does it leaves it to that one.
CREATE OR REPLACE FUNCTION tend(p_now_s double precision) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision := now_or(p_now_s);
    v_old_s double precision := v_now_s - 8 * 86400;
    v_lapsed text[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('askii tend ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    v_lapsed := ARRAY(
        SELECT call_id FROM holds WHERE state = 'held' AND until_s <= v_now_s AND is_alive(worker, v_now_s)
        LIMIT 100 FOR UPDATE SKIP LOCKED
    );
    IF cardinality(v_lapsed) > 0 THEN
        PERFORM lock_counters(array_agg(name), array_agg(end_s))
        FROM holds, unnest(counters, ends) AS hold (name, end_s) WHERE call_id = ANY (v_lapsed);
        PERFORM lift(holds) FROM holds WHERE call_id = ANY (v_lapsed);
        UPDATE holds SET state = 'expired', until_s = v_now_s + 8 * 86400 WHERE call_id = ANY (v_lapsed);
    END IF;
    DELETE FROM holds WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM holds WHERE state IN ('expired', 'lost', 'released') AND until_s <= v_now_s
        LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM operations WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM operations WHERE until_s <= v_old_s LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM credits WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM credits WHERE end_s <= v_old_s LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM counters WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM counters WHERE end_s <= v_old_s LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM seats WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM seats WHERE end_s <= v_old_s LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM workers WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM workers WHERE buried_s <= v_old_s LIMIT 500 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM draws WHERE holder = ANY (ARRAY(
        SELECT holder FROM draws WHERE NOT EXISTS (SELECT FROM workers WHERE worker = holder) LIMIT 500
    ));
    PERFORM prune_reading(v_now_s);
END
$$;

-- [held, lost]: the live holds' amounts, each once for a call, and the number of holds of dead workers.
CREATE OR REPLACE FUNCTION held_totals(p_now_s double precision) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT json_build_array(
        (SELECT coalesce(sum(nano_usd), 0) FROM holds JOIN workers USING (worker)
            WHERE state = 'held' AND until_s > p_now_s AND alive_until_s > p_now_s AND buried_s IS NULL),
        (SELECT count(*) FROM holds WHERE state = 'lost')
    )
$$;

-- The lines of each candidate now: [NULL, [[BudgetState, ...], ...]], [stale], or ["windows", now] where one is missing.
CREATE OR REPLACE FUNCTION status(p_now_s double precision, p_budgets bigint, p_request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision := now_or(p_now_s);
    v_lines budget_line[];
BEGIN
    IF p_budgets <> (SELECT value FROM meta WHERE name = 'budgets_version') THEN
        RETURN refusal('stale', 'budgets');
    END IF;
    v_lines := ARRAY(SELECT l FROM lines_at(1, p_request, v_now_s) AS l);
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE counter IS NULL) THEN
        RETURN json_build_array('windows', v_now_s);
    END IF;
    v_lines := merged(seated(v_lines), v_now_s, NULL);
    RETURN json_build_array(NULL, (
        SELECT coalesce(json_agg(coalesce(found.states, '[]') ORDER BY number), '[]')
        FROM generate_series(0, jsonb_array_length(p_request -> 'candidates') - 1) AS number
        LEFT JOIN (
            SELECT cand, json_agg(state_of(l) ORDER BY l.place) AS states FROM unnest(v_lines) AS l GROUP BY cand
        ) AS found ON found.cand = number
    ));
END
$$;
