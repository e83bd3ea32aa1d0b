-- The one order in which operations wait for each other, so that they never wait in a circle: workers, calls, holds,
-- counters that values share, other counters, carries, aggregates, alerts, partitions; each kind sorted.
--
-- The functions that clients call for each request keep their plans (force_generic_plan): to plan one anew takes
-- longer than to run it, and all of them go through primary keys.

-- As long as a call is admitted for a worker, the worker is not buried.
CREATE OR REPLACE FUNCTION lock_workers(p_workers text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_key bigint;
BEGIN
    FOR v_key IN SELECT DISTINCT hashtextextended('askii worker ' || name, 0) FROM unnest(p_workers) AS name ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock_shared(v_key);
    END LOOP;
END
$$;

-- One operation at a time on each call, also on those without a row to lock.
CREATE OR REPLACE FUNCTION lock_calls(p_calls text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_key bigint;
BEGIN
    FOR v_key IN SELECT DISTINCT hashtextextended('askii call ' || id, 0) FROM unnest(p_calls) AS id
        WHERE id IS NOT NULL ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(v_key);
    END LOOP;
END
$$;

-- Missing rows are made before any row is locked: who waits for a row that is being made holds nothing yet that its
-- maker could ask for. Shared counters come first, because they decide which others a call needs.
CREATE OR REPLACE FUNCTION lock_counters(p_counters text[], p_ends bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_shared boolean;
BEGIN
    IF coalesce(cardinality(p_counters), 0) = 0 THEN
        RETURN;
    END IF;
    FOREACH v_shared IN ARRAY ARRAY[true, false] LOOP
        CONTINUE WHEN v_shared AND strpos(array_to_string(p_counters, ' '), '=*') = 0;
        INSERT INTO counters (counter, worker, nano_usd, end_s)
        SELECT DISTINCT ON (name COLLATE "C") name, '', 0, end_s
        FROM unnest(p_counters, p_ends) AS asked (name, end_s)
        WHERE (strpos(name, '=*') > 0) = v_shared
            AND NOT EXISTS (SELECT FROM counters WHERE counter = name AND worker = '')
        ORDER BY name COLLATE "C"
        ON CONFLICT DO NOTHING;
        PERFORM FROM counters
        WHERE counter = ANY (p_counters) AND worker = '' AND (strpos(counter, '=*') > 0) = v_shared
        ORDER BY counter FOR UPDATE;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION is_alive(p_worker text, p_now_s double precision) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM workers WHERE worker = p_worker AND alive_until_s > p_now_s AND buried_s IS NULL)
$$;

-- A hold that still counts.
CREATE OR REPLACE FUNCTION is_live(p_hold holds, p_now_s double precision) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT p_hold.state = 'held' AND p_hold.until_s > p_now_s AND is_alive(p_hold.worker, p_now_s)
$$;

-- Spent, and held: by workers that live and as credit. Holds past their deadline do not count, nor does the one of the
-- call `p_without`. The caller holds the counters' locks, or wants no more than a look.
CREATE OR REPLACE FUNCTION amounts(p_counters text[], p_now_s double precision, p_without text)
RETURNS TABLE (counter text, spent bigint, held bigint)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH away AS MATERIALIZED (
        SELECT nano_usd, counters FROM holds JOIN workers USING (worker)
        WHERE state = 'held' AND until_s <= p_now_s AND alive_until_s > p_now_s AND buried_s IS NULL
        UNION ALL
        SELECT nano_usd, counters FROM holds JOIN workers USING (worker)
        WHERE call_id = p_without AND state = 'held' AND until_s > p_now_s AND alive_until_s > p_now_s
            AND buried_s IS NULL
    )
    SELECT asked.name,
        coalesce((SELECT c.nano_usd FROM counters c WHERE c.counter = asked.name AND c.worker = ''), 0),
        (
            coalesce((
                SELECT sum(c.nano_usd) FROM counters c JOIN workers w USING (worker)
                WHERE c.counter = asked.name AND w.alive_until_s > p_now_s AND w.buried_s IS NULL
            ), 0)
            + coalesce((SELECT sum(granted - used) FROM credits WHERE credits.counter = asked.name), 0)
            - coalesce((SELECT sum(away.nano_usd) FROM away WHERE asked.name = ANY (away.counters)), 0)
        )::bigint
    FROM unnest(p_counters) AS asked (name);
END
$$;

-- Change what a worker holds on counters that are locked.
CREATE OR REPLACE FUNCTION add_held(p_counters text[], p_ends bigint[], p_worker text, p_nano_usd bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO counters (counter, worker, nano_usd, end_s)
    SELECT name, p_worker, p_nano_usd, end_s FROM unnest(p_counters, p_ends) AS hold (name, end_s) WHERE p_nano_usd <> 0
    ON CONFLICT (counter, worker) DO UPDATE SET nano_usd = counters.nano_usd + excluded.nano_usd
$$;

-- Take a hold off its counters, which are locked. A row is there by the invariant of `counters`, or was pruned long
-- after its window, or buried with its worker.
CREATE OR REPLACE FUNCTION lift(p_hold holds) RETURNS void
LANGUAGE sql AS $$
    UPDATE counters SET nano_usd = counters.nano_usd - p_hold.nano_usd
    WHERE counter = ANY (p_hold.counters) AND worker = p_hold.worker
        AND p_hold.state = 'held' AND p_hold.nano_usd <> 0
$$;
