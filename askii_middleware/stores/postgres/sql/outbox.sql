-- Records on their way to sinks. Invariants: a place's position only grows, and every entry up to it is delivered or
-- stands in `aside`; a token only grows, and only its newest holder writes. Locks: the sink, then its places in order.

CREATE OR REPLACE FUNCTION register_sinks(p_names json) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_name text;
BEGIN
    FOR v_name IN SELECT name FROM json_array_elements_text(p_names) AS name ORDER BY name LOOP
        INSERT INTO sinks VALUES (v_name) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            INSERT INTO places (sink, partition, position) SELECT v_name, partition, last FROM partitions;
        END IF;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION check_sink(p_sink text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM sinks WHERE sink = p_sink) THEN
        RAISE EXCEPTION 'sink % is not registered: call register_sinks first', quote_literal(p_sink)
            USING ERRCODE = 'AS001';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION forget_sink(p_sink text) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM sinks WHERE sink = p_sink FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM places WHERE sink = p_sink ORDER BY partition FOR UPDATE;
    DELETE FROM aside WHERE sink = p_sink;
    DELETE FROM owners WHERE sink = p_sink;
    DELETE FROM places WHERE sink = p_sink;
    DELETE FROM sinks WHERE sink = p_sink;
    RETURN true;
END
$$;

-- [[partition, token, retry_at_s, failures], ...]: what the owner holds from now on. Its share of the partitions is
-- equal to that of all who ask, and the first by name have one more where it does not come out even; of its own and
-- then of the free ones it gets the first.
CREATE OR REPLACE FUNCTION lease_sink(
    p_sink text, p_owner text, p_ttl_s double precision, p_now_s double precision
) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision;
    v_share integer := 0;
    v_hand integer[];
BEGIN
    PERFORM FROM sinks WHERE sink = p_sink FOR UPDATE;
    PERFORM check_sink(p_sink);
    PERFORM FROM places WHERE sink = p_sink ORDER BY partition FOR UPDATE;
    v_now_s := now_or(p_now_s);
    DELETE FROM owners WHERE sink = p_sink AND (until_s <= v_now_s OR owner = p_owner);
    IF p_ttl_s > 0 THEN
        INSERT INTO owners VALUES (p_sink, p_owner, v_now_s + p_ttl_s);
        SELECT 16 / count(*) + (count(*) FILTER (WHERE owner < p_owner) < 16 % count(*))::integer
        INTO v_share FROM owners WHERE sink = p_sink;
    END IF;
    v_hand := ARRAY(
        SELECT partition FROM places WHERE sink = p_sink AND (owner = p_owner OR until_s <= v_now_s)
        ORDER BY owner IS DISTINCT FROM p_owner, partition LIMIT v_share
    );
    UPDATE places SET
        token = token + (owner IS DISTINCT FROM p_owner)::integer, owner = p_owner, until_s = v_now_s + p_ttl_s
    WHERE sink = p_sink AND partition = ANY (v_hand);
    UPDATE places SET until_s = least(until_s, v_now_s)
    WHERE sink = p_sink AND owner = p_owner AND partition <> ALL (v_hand);
    RETURN (
        SELECT coalesce(json_agg(json_build_array(partition, token, retry_at_s, failures) ORDER BY partition), '[]')
        FROM places WHERE sink = p_sink AND partition = ANY (v_hand)
    );
END
$$;

-- [[partition, seq, call_id, tenant, attempts, record], ...]: due again, then new. `n` is the order of settlement.
CREATE OR REPLACE FUNCTION fetch_entries(
    p_sink text, p_partitions json, p_limit bigint, p_now_s double precision
) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision := now_or(p_now_s);
    v_asked integer[] := ARRAY(SELECT value::integer FROM json_array_elements_text(p_partitions));
BEGIN
    PERFORM check_sink(p_sink);
    RETURN (
        WITH due AS (
            SELECT partition, seq, attempts, due_s, n FROM aside JOIN records USING (partition, seq)
            WHERE sink = p_sink AND state = 'again' AND due_s <= v_now_s AND partition = ANY (v_asked)
            ORDER BY due_s, n LIMIT p_limit
        ), fresh AS (
            SELECT place.partition, entry.seq, 0 AS attempts, NULL::double precision AS due_s, entry.n
            FROM places AS place, LATERAL (
                SELECT seq, n FROM records
                WHERE partition = place.partition AND seq > place.position AND NOT EXISTS (
                    SELECT FROM aside
                    WHERE sink = p_sink AND aside.partition = records.partition AND aside.seq = records.seq
                ) ORDER BY seq LIMIT p_limit
            ) AS entry
            WHERE place.sink = p_sink AND place.partition = ANY (v_asked)
            ORDER BY entry.n LIMIT p_limit
        ), found AS (
            -- While there are new ones, those due again get no more than half of the limit.
            SELECT * FROM (
                (SELECT * FROM due ORDER BY due_s, n
                    LIMIT greatest(p_limit - (SELECT count(*) FROM fresh), p_limit / 2))
                UNION ALL (SELECT * FROM fresh)
            ) AS entries
            ORDER BY due_s NULLS LAST, n LIMIT p_limit
        )
        SELECT coalesce(json_agg(json_build_array(
            partition, seq, call_id, tenant, attempts, convert_from(record, 'UTF8')::json
        ) ORDER BY due_s NULLS LAST, found.n), '[]')
        FROM found JOIN records USING (partition, seq)
    );
END
$$;

-- Leases are [[partition, token], ...], outcomes [[partition, seq, result, reason, after_s], ...]. Returns the
-- partitions whose lease is void.
CREATE OR REPLACE FUNCTION acknowledge(
    p_sink text, p_leases json, p_outcomes json, p_retry_at_s double precision, p_failures integer,
    p_now_s double precision
) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_place places;
    v_valid integer[] := '{}';
BEGIN
    PERFORM check_sink(p_sink);
    FOR v_place IN
        SELECT * FROM places WHERE sink = p_sink AND partition IN (
            SELECT (lease ->> 0)::integer FROM json_array_elements(p_leases) AS lease
        ) ORDER BY partition FOR UPDATE
    LOOP
        CONTINUE WHEN v_place.token = 0 OR v_place.token NOT IN (
            SELECT (lease ->> 1)::bigint FROM json_array_elements(p_leases) AS lease
            WHERE (lease ->> 0)::integer = v_place.partition
        );
        v_valid := v_valid || v_place.partition;
        v_place.position := apply_outcomes(v_place, p_outcomes, now_or(p_now_s));
        UPDATE places SET position = v_place.position, retry_at_s = p_retry_at_s, failures = p_failures
        WHERE sink = p_sink AND partition = v_place.partition;
    END LOOP;
    RETURN (SELECT coalesce(json_agg(partition ORDER BY partition), '[]') FROM (
        SELECT DISTINCT (lease ->> 0)::integer AS partition FROM json_array_elements(p_leases) AS lease
    ) AS asked WHERE partition <> ALL (v_valid));
END
$$;

-- One partition's outcomes. Of several for one entry, a delivery counts, else the last; each is an attempt. Returns the
-- new position: the end of the unbroken row of what is delivered or set aside.
CREATE OR REPLACE FUNCTION apply_outcomes(
    p_place places, p_outcomes json, p_now_s double precision
) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_position bigint;
    v_delivered bigint[];
BEGIN
    WITH outcomes AS (
        SELECT (outcome ->> 1)::bigint AS seq, outcome ->> 2 AS result, outcome ->> 3 AS reason,
            (outcome ->> 4)::double precision AS after_s, place
        FROM json_array_elements(p_outcomes) WITH ORDINALITY AS asked (outcome, place)
        WHERE (outcome ->> 0)::integer = p_place.partition
    ), counted AS (
        SELECT DISTINCT ON (seq) seq, result, reason, after_s, count(*) OVER (PARTITION BY seq) AS attempts,
            bool_or(result = 'delivered') OVER (PARTITION BY seq) AS is_done
        FROM outcomes ORDER BY seq, place DESC
    ), valid AS (
        SELECT counted.*, aside.state IS NOT NULL AS is_known
        FROM counted LEFT JOIN aside
            ON aside.sink = p_place.sink AND aside.partition = p_place.partition AND aside.seq = counted.seq
        WHERE aside.state <> 'delivered' OR aside.state IS NULL AND counted.seq > p_place.position
            AND counted.seq <= (SELECT last FROM partitions WHERE partition = p_place.partition)
    ), put AS (
        INSERT INTO aside AS known
        SELECT p_place.sink, p_place.partition, seq, result, p_now_s + after_s, attempts, reason, p_now_s, p_now_s
        FROM valid WHERE NOT is_done
        ON CONFLICT (sink, partition, seq) DO UPDATE SET
            state = excluded.state, due_s = excluded.due_s, attempts = known.attempts + excluded.attempts,
            reason = excluded.reason, last_attempt_s = excluded.last_attempt_s
    ), taken AS (
        DELETE FROM aside USING valid
        WHERE aside.sink = p_place.sink AND aside.partition = p_place.partition AND aside.seq = valid.seq
            AND valid.is_done
    )
    SELECT coalesce(array_agg(seq) FILTER (WHERE is_done AND seq > p_place.position), '{}')
    INTO v_delivered FROM valid;

    SELECT coalesce(max(seq) FILTER (WHERE seq = p_place.position + place), p_place.position) INTO v_position
    FROM (
        SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM (
            SELECT unnest(v_delivered) AS seq
            UNION
            SELECT seq FROM aside
            WHERE sink = p_place.sink AND partition = p_place.partition AND seq > p_place.position
        ) AS done
    ) AS numbered;

    INSERT INTO aside
    SELECT p_place.sink, p_place.partition, seq, 'delivered', p_now_s, 1, '', p_now_s, p_now_s
    FROM unnest(v_delivered) AS seq WHERE seq > v_position;
    DELETE FROM aside
    WHERE sink = p_place.sink AND partition = p_place.partition AND state = 'delivered' AND seq <= v_position
        AND seq > p_place.position;
    RETURN v_position;
END
$$;

CREATE OR REPLACE FUNCTION pending() RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_object_agg(sink, waiting), '{}') FROM (
        SELECT sink, sum(last - position - (
            SELECT count(*) FROM aside
            WHERE aside.sink = places.sink AND aside.partition = places.partition AND seq > position
        ) + (
            SELECT count(*) FROM aside
            WHERE aside.sink = places.sink AND aside.partition = places.partition AND state = 'again'
        )) AS waiting FROM places JOIN partitions USING (partition) GROUP BY sink
    ) AS found
$$;

-- [[partition, seq, call_id, tenant, reason, attempts, first, last, record], ...]
CREATE OR REPLACE FUNCTION dead_letters(p_sink text, p_limit bigint) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_sink(p_sink);
    RETURN (
        SELECT coalesce(json_agg(json_build_array(
            partition, seq, call_id, tenant, reason, attempts, first_attempt_s, last_attempt_s,
            convert_from(record, 'UTF8')::json
        ) ORDER BY last_attempt_s, n), '[]') FROM (
            SELECT * FROM aside JOIN records USING (partition, seq)
            WHERE sink = p_sink AND state = 'dead' ORDER BY last_attempt_s, n LIMIT p_limit
        ) AS found
    );
END
$$;

CREATE OR REPLACE FUNCTION retry_dead(p_sink text, p_now_s double precision) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_count bigint;
BEGIN
    PERFORM check_sink(p_sink);
    PERFORM FROM places WHERE sink = p_sink ORDER BY partition FOR UPDATE;
    UPDATE aside SET state = 'again', due_s = now_or(p_now_s) WHERE sink = p_sink AND state = 'dead';
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- Who delivers to a sink, as [[partition, owner, until_s, retry_at_s, failures], ...].
CREATE OR REPLACE FUNCTION sink_places(p_sink text) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_sink(p_sink);
    RETURN (
        SELECT json_agg(json_build_array(partition, owner, until_s, retry_at_s, failures) ORDER BY partition)
        FROM places WHERE sink = p_sink
    );
END
$$;
