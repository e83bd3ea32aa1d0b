-- What is forgotten: old rows, and what says whose something was. Invariants: the sums of `totals` stay as they were; no
-- record is changed or goes that a sink has not got, and none goes within the time that answers repeated settlements.

-- Up to where every sink has come in a partition.
CREATE OR REPLACE FUNCTION passed(p_partition integer) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT least(last, (SELECT min(position) FROM places WHERE places.partition = p_partition))
    FROM partitions WHERE partition = p_partition
$$;

-- Drop records that were settled before a moment, but no partition's newest. How many. Numbers ascend as time does, so of
-- each partition only the first ones are looked at: as many as may go, and those set aside, which stay.
CREATE OR REPLACE FUNCTION prune_records(
    p_before_s double precision, p_kept_s double precision, p_limit bigint, p_now_s double precision
) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_before_s double precision := least(p_before_s, now_or(p_now_s) - p_kept_s);
    v_left bigint := p_limit;
    v_partition integer;
    v_through bigint;
    v_count bigint;
    v_cost numeric;
BEGIN
    FOR v_partition, v_through IN SELECT partition, least(passed(partition), last - 1) FROM partitions ORDER BY 1 LOOP
        WITH head AS (
            SELECT n, seq, settled_at_s FROM records WHERE partition = v_partition AND seq <= v_through ORDER BY seq
            LIMIT v_left + (SELECT count(*) FROM aside WHERE partition = v_partition)
            FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM records WHERE n IN (
                SELECT n FROM head WHERE settled_at_s < v_before_s AND NOT EXISTS (
                    SELECT FROM aside WHERE aside.partition = v_partition AND aside.seq = head.seq
                ) ORDER BY seq LIMIT v_left
            ) RETURNING cost_of(record) AS cost
        ) SELECT count(*), coalesce(sum(cost), 0) INTO v_count, v_cost FROM gone;
        IF v_count > 0 THEN
            UPDATE pruned SET records = records + v_count, records_nano_usd = records_nano_usd + v_cost;
            v_left := v_left - v_count;
        END IF;
    END LOOP;
    RETURN p_limit - v_left;
END
$$;

-- Drop aggregates of hours before this one. How many.
CREATE OR REPLACE FUNCTION prune_aggregates(p_hour bigint, p_limit bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_count bigint;
    v_calls numeric;
    v_cost numeric;
BEGIN
    WITH gone AS (
        DELETE FROM aggregates WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM aggregates WHERE hour < p_hour LIMIT p_limit FOR UPDATE SKIP LOCKED
        )) RETURNING prefix, requests, cost_nano_usd
    ) SELECT count(*), coalesce(sum(requests) FILTER (WHERE prefix = 'tenant='), 0),
        coalesce(sum(cost_nano_usd) FILTER (WHERE prefix = 'tenant='), 0)
    INTO v_count, v_calls, v_cost FROM gone;
    IF v_calls <> 0 OR v_cost <> 0 THEN
        UPDATE pruned SET calls = calls + v_calls, cost_nano_usd = cost_nano_usd + v_cost;
    END IF;
    RETURN v_count;
END
$$;

-- A sink that has not got one of a tenant's records up to a number, be it for good; NULL: none.
CREATE OR REPLACE FUNCTION waits_for(p_tenant text, p_through bigint) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT min(sink) FROM (
        SELECT sink FROM places WHERE EXISTS (
            SELECT FROM records WHERE partition = places.partition AND seq > places.position AND tenant = p_tenant
                AND n <= p_through AND NOT EXISTS (
                    SELECT FROM aside
                    WHERE sink = places.sink AND aside.partition = places.partition AND aside.seq = records.seq
                )
        )
        UNION ALL
        SELECT sink FROM aside JOIN records USING (partition, seq)
        WHERE state <> 'delivered' AND tenant = p_tenant AND n <= p_through
    ) AS found
$$;

-- [[number, record], ...]: some of a tenant's records up to a number, to be made anonymous.
CREATE OR REPLACE FUNCTION records_of(p_tenant text, p_through bigint, p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(json_build_array(n, convert_from(record, 'UTF8')::json) ORDER BY n), '[]') FROM (
        SELECT n, record FROM records WHERE tenant = p_tenant AND n <= p_through ORDER BY n LIMIT p_limit
    ) AS found
$$;

-- Write records anew, as [[number, text], ...], under another tenant.
CREATE OR REPLACE FUNCTION rename_records(p_tenant text, p_records json) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM records WHERE n IN (SELECT (value ->> 0)::bigint FROM json_array_elements(p_records))
    ORDER BY n FOR UPDATE;
    UPDATE records SET tenant = p_tenant, record = convert_to(value ->> 1, 'UTF8')
    FROM json_array_elements(p_records) WHERE n = (value ->> 0)::bigint;
END
$$;

-- Drop some aggregates of a scope, adding them to those of `p_to` unless that is NULL. How many.
CREATE OR REPLACE FUNCTION move_aggregates(p_scope text, p_to text, p_limit bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_hours bigint[] := ARRAY(SELECT DISTINCT hour FROM (
        SELECT hour FROM aggregates WHERE scope = p_scope ORDER BY hour LIMIT p_limit
    ) AS found);
    v_count bigint;
BEGIN
    PERFORM FROM aggregates WHERE scope IN (p_scope, p_to) AND hour = ANY (v_hours)
    ORDER BY hour, scope, model, provider FOR UPDATE;  -- as settlements lock them
    WITH gone AS (
        DELETE FROM aggregates WHERE scope = p_scope AND hour = ANY (v_hours) RETURNING aggregates.*
    ), moved AS (
        INSERT INTO aggregates AS known
        SELECT p_to, hour, model, provider, requests, input_tokens, output_tokens, cost_nano_usd FROM gone
        WHERE p_to IS NOT NULL ORDER BY hour, model, provider
        ON CONFLICT (scope, hour, model, provider) DO UPDATE SET
            requests = known.requests + excluded.requests,
            input_tokens = known.input_tokens + excluded.input_tokens,
            output_tokens = known.output_tokens + excluded.output_tokens,
            cost_nano_usd = known.cost_nano_usd + excluded.cost_nano_usd
    ) SELECT count(*) INTO v_count FROM gone;
    RETURN v_count;
END
$$;

-- Some scopes that are a prefix and one value, in no order.
CREATE OR REPLACE FUNCTION scopes_of(p_prefix text, p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(DISTINCT scope), '[]') FROM (
        SELECT scope FROM aggregates WHERE prefix = p_prefix LIMIT p_limit
    ) AS found
$$;

-- [[number, scope], ...] of alerts after a number.
CREATE OR REPLACE FUNCTION alert_scopes(p_after bigint, p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(json_build_array(seq, alert ->> 'scope') ORDER BY seq), '[]') FROM (
        SELECT seq, alert FROM alerts WHERE seq > p_after ORDER BY seq LIMIT p_limit
    ) AS found
$$;

CREATE OR REPLACE FUNCTION drop_alerts(p_numbers json) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    DELETE FROM alerts WHERE seq IN (SELECT value::bigint FROM json_array_elements_text(p_numbers) AS value)
$$;
