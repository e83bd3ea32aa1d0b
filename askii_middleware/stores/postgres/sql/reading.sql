-- Sums and records.

-- Inside a settlement: rows [[scope, model, provider, requests, input tokens, output tokens, nano-USD], ...], in one
-- order for everybody, so that nobody waits for a row of someone who waits for one of his.
CREATE OR REPLACE FUNCTION add_aggregates(p_hour bigint, p_rows jsonb) RETURNS void
LANGUAGE plpgsql AS $$  -- which keeps its plans
BEGIN
    INSERT INTO aggregates AS known
    SELECT
        (row ->> 0) COLLATE "C", p_hour, row ->> 1, row ->> 2,
        sum((row ->> 3)::numeric)::bigint, sum((row ->> 4)::numeric)::bigint,
        sum((row ->> 5)::numeric)::bigint, sum((row ->> 6)::numeric)::bigint
    FROM jsonb_array_elements(p_rows) AS row
    GROUP BY 1, 3, 4 ORDER BY 1, 3, 4
    ON CONFLICT (scope, hour, model, provider) DO UPDATE SET
        requests = known.requests + excluded.requests,
        input_tokens = known.input_tokens + excluded.input_tokens,
        output_tokens = known.output_tokens + excluded.output_tokens,
        cost_nano_usd = known.cost_nano_usd + excluded.cost_nano_usd;
END
$$;

-- Inside a settlement, before its first lock: from here to its commit it may give out a number of a record.
-- `settled_through` waits for all that are in this state, so nobody may enter it while others wait for his locks.
CREATE OR REPLACE FUNCTION settling() RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock_shared(hashtext(current_schema()), 1)
$$;

-- The end of a settlement. The partition stays locked until it is committed; what is read here decides nothing more.
CREATE OR REPLACE FUNCTION append_record(
    p_partition integer, p_call_id text, p_tenant text, p_candidate integer, p_admitted_at_s double precision,
    p_record bytea, p_coins numeric, p_late boolean, p_now_s double precision
) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_seq bigint;
BEGIN
    UPDATE partitions SET last = last + 1 WHERE partition = p_partition RETURNING last INTO STRICT v_seq;
    INSERT INTO records VALUES (
        p_partition, v_seq, nextval('record_numbers'), p_call_id, p_tenant, p_candidate, p_admitted_at_s, p_now_s,
        p_coins, p_late, p_record
    );
    RETURN v_seq;
END
$$;

-- The number up to which all records are to be seen.
CREATE OR REPLACE FUNCTION settled_through() RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 1);
    RETURN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM record_numbers);
END
$$;

-- [[number, record], ...], records as they were sent.
CREATE OR REPLACE FUNCTION records_between(p_after bigint, p_through bigint, p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(json_build_array(n, convert_from(record, 'UTF8')::json) ORDER BY n), '[]') FROM (
        SELECT n, record FROM records WHERE n > p_after AND n <= p_through ORDER BY n LIMIT p_limit
    ) AS found
$$;

CREATE OR REPLACE FUNCTION record_of(p_call_id text) RETURNS bytea
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT record FROM records WHERE call_id = p_call_id
$$;

-- [[span, model, provider, requests, input tokens, output tokens, nano-USD], ...] of several scopes together. Span n, from
-- 1, has the hours from edge n on and before the next one; edges ascend.
CREATE OR REPLACE FUNCTION spend_over(p_scopes json, p_edges json) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    v_scopes text[] := ARRAY(SELECT json_array_elements_text(p_scopes));
    v_edges bigint[] := ARRAY(SELECT json_array_elements_text(p_edges)::bigint);
BEGIN
    RETURN (
        SELECT coalesce(json_agg(json_build_array(
            span, model, provider, requests, input_tokens, output_tokens, cost_nano_usd
        ) ORDER BY span, model, provider), '[]') FROM (
            SELECT width_bucket(hour, v_edges) AS span, model, provider, sum(requests) AS requests,
                sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
                sum(cost_nano_usd) AS cost_nano_usd
            FROM aggregates
            WHERE scope = ANY (v_scopes) AND hour >= v_edges[1] AND hour < v_edges[cardinality(v_edges)]
            GROUP BY 1, model, provider
        ) AS found
    );
END
$$;

-- [[scope, requests, input tokens, output tokens, nano-USD], ...], the highest first.
CREATE OR REPLACE FUNCTION top_spend(p_prefix text, p_first bigint, p_last bigint, p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(json_build_array(scope, requests, input_tokens, output_tokens, cost)
        ORDER BY cost DESC, scope), '[]') FROM (
        SELECT scope, sum(requests) AS requests, sum(input_tokens) AS input_tokens,
            sum(output_tokens) AS output_tokens, sum(cost_nano_usd) AS cost
        FROM aggregates WHERE prefix = p_prefix AND hour >= p_first AND hour < p_last
        GROUP BY scope ORDER BY cost DESC, scope LIMIT p_limit
    ) AS found
$$;

-- [[number, record], ...], the newest first, of those before a number. Without a tenant: of all.
CREATE OR REPLACE FUNCTION latest(p_tenant text, p_before bigint, p_limit bigint) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    IF p_tenant IS NULL THEN
        RETURN (SELECT coalesce(json_agg(json_build_array(n, convert_from(record, 'UTF8')::json) ORDER BY n DESC), '[]')
            FROM (SELECT n, record FROM records WHERE n < p_before ORDER BY n DESC LIMIT p_limit) AS found);
    END IF;
    RETURN (SELECT coalesce(json_agg(json_build_array(n, convert_from(record, 'UTF8')::json) ORDER BY n DESC), '[]') FROM (
        SELECT n, record FROM records WHERE tenant = p_tenant AND n < p_before ORDER BY n DESC LIMIT p_limit
    ) AS found);
END
$$;

-- What a record says it cost. Escapes that no text of the server can hold, such as \u0000, are taken out before it
-- looks: they stand in other members' texts.
CREATE OR REPLACE FUNCTION cost_of(p_record bytea) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce((
        CASE WHEN strpos(text, '\u') = 0 THEN text::json
        ELSE regexp_replace(replace(text, '\\', ''), '\\u[0-9a-fA-F]{4}', '', 'g')::json
        END ->> 'cost_nano_usd'
    )::numeric, 0) FROM convert_from(p_record, 'UTF8') AS text
$$;

-- Both sides of the account, each from its own rows, and from the sums of those that were pruned.
CREATE OR REPLACE FUNCTION totals(p_now_s double precision) RETURNS json
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT json_build_array(
        tenants.calls + pruned.calls, tenants.cost + pruned.cost_nano_usd, kept.records + pruned.records,
        kept.cost + pruned.records_nano_usd, held -> 0, held -> 1
    ) FROM pruned,
        (SELECT coalesce(sum(requests), 0) AS calls, coalesce(sum(cost_nano_usd), 0) AS cost FROM aggregates
            WHERE prefix = 'tenant=') AS tenants,
        (SELECT count(*) AS records, coalesce(sum(cost_of(record)), 0) AS cost FROM records) AS kept,
        held_totals(now_or(p_now_s)) AS held
$$;
