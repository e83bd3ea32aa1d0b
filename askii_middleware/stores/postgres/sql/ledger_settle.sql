-- Settlement. Invariant: charge, end of the hold, carry, aggregates, alerts and record are written together or not at
-- all, and one call is settled once.

-- What the settlement of a call without a hold stands on: `lines` are those of plans.plan_settled.
CREATE OR REPLACE FUNCTION settled_lines(p_item integer, p_lines jsonb) RETURNS budget_line[]
LANGUAGE sql STABLE AS $$
    SELECT array_agg(ROW(
        p_item, 0, number, value ->> 0, value ->> 2, value ->> 3, NULL, false, NULL, (value ->> 1)::bigint,
        value -> 5 ->> 0, value -> 5 ->> 1, (value -> 5 ->> 2)::bigint, value -> 4, false, NULL, NULL
    )::budget_line ORDER BY number)
    FROM jsonb_array_elements(p_lines) WITH ORDINALITY AS plan (value, number)
$$;

-- The lines of a call that stands on counters already. A value stays where it was: on its own or on the shared one.
CREATE OR REPLACE FUNCTION settled_standing(p_lines budget_line[], p_counters text[]) RETURNS budget_line[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(ROW(
        item, cand, place, CASE WHEN own THEN counter ELSE crowd END, CASE WHEN own THEN scope ELSE crowd_scope END,
        period, lim, soft, above, end_s, NULL, NULL, NULL, watches, false, NULL, NULL
    )::budget_line ORDER BY place)
    FROM (SELECT *, counter = ANY (p_counters) AS own FROM unnest(p_lines)) AS line
    WHERE own OR crowd = ANY (p_counters)
$$;

-- The alerts of a charge, in order; what is spent is that before it.
CREATE OR REPLACE FUNCTION crossings(p_lines budget_line[], p_cost bigint, p_now_s double precision) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'id', left(encode(sha256(convert_to(
            concat_ws('|', l.counter, share.value ->> 0, watch.value ->> 1), 'UTF8')), 'hex'), 32),
        'budget', watch.value ->> 0, 'scope', l.scope, 'period', l.period,
        'share_ppm', (share.value ->> 0)::bigint, 'limit_nano_usd', (watch.value ->> 1)::bigint,
        'spent_nano_usd', l.nano_usd + p_cost, 'at_s', p_now_s, 'resets_at_s', l.end_s
    ) ORDER BY l.first, l.place, watch.number, share.number), '[]')
    FROM (
        SELECT *, min(place) OVER (PARTITION BY counter) AS first
        FROM unnest(p_lines) JOIN (SELECT counter, nano_usd FROM counters WHERE worker = '') AS c USING (counter)
    ) AS l
    CROSS JOIN jsonb_array_elements(l.watches) WITH ORDINALITY AS watch (value, number)
    CROSS JOIN jsonb_array_elements(watch.value -> 2) WITH ORDINALITY AS share (value, number)
    WHERE p_cost > 0 AND l.nano_usd < (share.value ->> 1)::bigint AND l.nano_usd + p_cost >= (share.value ->> 1)::bigint
$$;

-- Bill whole coins and carry the rest, like `rules.carry`. The subscription's row is locked.
CREATE OR REPLACE FUNCTION carry(p_subscription text, p_coins numeric, p_pico_coins bigint) RETURNS numeric
LANGUAGE plpgsql AS $$
DECLARE
    v_coins numeric;
    v_pico bigint;
    v_rest bigint;
BEGIN
    SELECT coins, pico_coins + p_pico_coins INTO v_coins, v_pico FROM carries WHERE subscription = p_subscription;
    v_rest := mod(mod(v_pico, 1000000000000) + 1000000000000, 1000000000000);
    v_coins := v_coins + p_coins + (v_pico - v_rest) / 1000000000000;
    UPDATE carries SET coins = least(v_coins, 0), pico_coins = v_rest WHERE subscription = p_subscription;
    RETURN greatest(v_coins, 0);
END
$$;

-- Everything of one settlement but aggregates, alerts and record, which the caller writes in the order of locks:
-- {"answer": [coins, late, duplicate]}, with "record", "candidate", "at", "alerts" if it is new; or {"refused": why}.
CREATE OR REPLACE FUNCTION settle_one(p_item jsonb, p_lines budget_line[], p_now_s double precision) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    v_call text := p_item ->> 'call_id';
    v_cost numeric := (p_item ->> 'cost')::numeric;
    v_hold holds;
    v_lines budget_line[];
    v_counters text[];
    v_ends bigint[];
    v_late boolean := false;
    v_candidate integer := 0;
    v_at double precision := (p_item ->> 'at')::double precision;
    v_coins numeric;
    v_alerts jsonb;
    v_done jsonb;
BEGIN
    SELECT * INTO v_hold FROM holds WHERE call_id = v_call;
    IF v_hold.call_id IS NULL THEN
        SELECT jsonb_build_object('answer', jsonb_build_array(coins, late, true)) INTO v_done
        FROM records WHERE call_id = v_call;
        IF v_done IS NOT NULL THEN
            RETURN v_done;
        END IF;
    END IF;
    IF v_cost NOT BETWEEN -9007199254740991 AND 9007199254740991 THEN
        RETURN jsonb_build_object('refused', format('a charge of %s nano-USD is more than a counter can hold', v_cost));
    END IF;
    IF v_hold.call_id IS NOT NULL THEN
        v_counters := v_hold.counters;
        v_ends := v_hold.ends;
        v_late := NOT is_live(v_hold, p_now_s);
        v_candidate := v_hold.candidate;
        v_at := v_hold.admitted_at_s;
    ELSIF jsonb_typeof(p_item -> 'credit') = 'object' THEN
        SELECT coalesce(array_agg(value ->> 0), '{}'), coalesce(array_agg((value ->> 1)::bigint), '{}')
        INTO v_counters, v_ends FROM jsonb_array_elements(p_item -> 'credit' -> 'counters');
    END IF;
    IF v_counters IS NULL THEN
        v_lines := CASE WHEN EXISTS (SELECT FROM unnest(p_lines) WHERE crowd IS NOT NULL) THEN seated(p_lines)
            ELSE p_lines END;
        SELECT coalesce(array_agg(counter ORDER BY first), '{}'), coalesce(array_agg(end_s ORDER BY first), '{}')
        INTO v_counters, v_ends
        FROM (SELECT counter, min(place) AS first, min(end_s) AS end_s FROM unnest(v_lines) GROUP BY counter) AS found;
    ELSE
        v_lines := settled_standing(p_lines, v_counters);
    END IF;
    IF EXISTS (
        SELECT FROM counters WHERE counter = ANY (v_counters) AND worker = ''
            AND nano_usd + v_cost NOT BETWEEN -9007199254740991 AND 9007199254740991
    ) THEN
        RETURN jsonb_build_object('refused', 'the charge takes a counter beyond 9007199254740991, which is all it can hold');
    END IF;

    v_alerts := CASE WHEN v_cost > 0 AND EXISTS (SELECT FROM unnest(v_lines) WHERE watches <> '[]')
        THEN crossings(v_lines, v_cost::bigint, p_now_s) ELSE '[]' END;
    PERFORM add_held(v_counters, v_ends, '', v_cost::bigint);
    IF v_hold.call_id IS NOT NULL THEN
        PERFORM lift(v_hold);
        DELETE FROM holds WHERE call_id = v_call;
    ELSIF jsonb_typeof(p_item -> 'credit') = 'object' THEN
        PERFORM use_credit(
            v_counters, p_item -> 'credit' ->> 'holder',
            least(v_cost::bigint, (p_item -> 'credit' ->> 'hold_nano_usd')::bigint)
        );
    ELSE
        PERFORM seat(v_lines);
    END IF;
    DELETE FROM operations WHERE call_id = v_call;
    v_coins := carry(p_item ->> 'subscription', (p_item ->> 'coins')::numeric, (p_item ->> 'pico')::bigint);
    RETURN jsonb_build_object(
        'answer', jsonb_build_array(v_coins, v_late, false), 'candidate', v_candidate, 'at', v_at, 'alerts', v_alerts
    );
END
$$;

-- Several settlements as one transaction, in this order: for each [coins, late, duplicate] or a message. `null`: the
-- client's copy of the budgets is outdated, nothing was changed.
CREATE OR REPLACE FUNCTION settle(p_now_s double precision, p_budgets bigint, p_items jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_now_s double precision;
    v_calls text[];
    v_lines budget_line[];
    v_counters text[];
    v_ends bigint[];
    v_results jsonb[] := '{}';
    v_item jsonb;
    v_number integer := 0;
    v_hour bigint;
    v_alerts jsonb;
    v_again jsonb;  -- the answer to a call that stands here twice
BEGIN
    PERFORM settling();
    SELECT array_agg(value ->> 'call_id') INTO v_calls FROM jsonb_array_elements(p_items);
    PERFORM lock_calls(v_calls);
    PERFORM FROM holds WHERE call_id = ANY (v_calls) ORDER BY call_id FOR UPDATE;
    v_now_s := now_or(p_now_s);

    SELECT array_agg(l) INTO v_lines
    FROM jsonb_array_elements(p_items) WITH ORDINALITY AS asked (value, number),
        unnest(settled_lines(asked.number::integer, asked.value -> 'lines')) AS l;
    SELECT array_agg(name), array_agg(end_s) INTO v_counters, v_ends FROM (
        SELECT name, end_s FROM holds, unnest(counters, ends) AS hold (name, end_s) WHERE call_id = ANY (v_calls)
        UNION ALL
        SELECT value ->> 0, (value ->> 1)::bigint
        FROM jsonb_array_elements(p_items) AS asked (job), jsonb_array_elements(job -> 'credit' -> 'counters')
        WHERE jsonb_typeof(job -> 'credit') = 'object'
        UNION ALL
        SELECT name, l.end_s
        FROM jsonb_array_elements(p_items) WITH ORDINALITY AS asked (job, number)
        JOIN unnest(v_lines) AS l ON l.item = asked.number
        CROSS JOIN unnest(ARRAY[l.counter, l.crowd]) AS name
        WHERE name IS NOT NULL AND jsonb_typeof(job -> 'credit') = 'null'
            AND NOT EXISTS (SELECT FROM holds WHERE call_id = job ->> 'call_id')
            AND NOT EXISTS (SELECT FROM records WHERE call_id = job ->> 'call_id')
    ) AS needed;
    PERFORM lock_counters(v_counters, v_ends);
    IF p_budgets <> (SELECT value FROM meta WHERE name = 'budgets_version') THEN
        RETURN NULL;
    END IF;
    PERFORM lock_carries(ARRAY(SELECT value ->> 'subscription' FROM jsonb_array_elements(p_items)));

    FOR v_item IN SELECT value FROM jsonb_array_elements(p_items) LOOP
        v_number := v_number + 1;
        v_again := NULL;
        IF array_position(v_calls, v_item ->> 'call_id') < v_number THEN
            SELECT jsonb_build_object('answer', jsonb_set(result -> 'answer', '{2}', 'true')) INTO v_again
            FROM unnest(v_calls, v_results) AS done (call_id, result)
            WHERE call_id = v_item ->> 'call_id' AND result ? 'candidate';
        END IF;
        v_results := v_results || coalesce(v_again, settle_one(
            v_item, ARRAY(SELECT l FROM unnest(v_lines) AS l WHERE l.item = v_number ORDER BY place), v_now_s
        ));
    END LOOP;

    FOR v_hour, v_item IN
        SELECT (job ->> 'hour')::bigint, jsonb_agg(part)
        FROM unnest(v_results) WITH ORDINALITY AS done (result, number)
        JOIN jsonb_array_elements(p_items) WITH ORDINALITY AS asked (job, number) USING (number)
        CROSS JOIN jsonb_array_elements(job -> 'aggregates') AS part
        WHERE result ? 'candidate' GROUP BY 1 ORDER BY 1
    LOOP
        PERFORM add_aggregates(v_hour, v_item);
    END LOOP;
    SELECT jsonb_agg(alert ORDER BY number, place) INTO v_alerts
    FROM unnest(v_results) WITH ORDINALITY AS done (result, number),
        jsonb_array_elements(result -> 'alerts') WITH ORDINALITY AS crossed (alert, place);
    IF v_alerts IS NOT NULL THEN
        PERFORM write_alerts(v_alerts);
    END IF;
    IF v_number > 1 THEN
        PERFORM FROM partitions
        WHERE partition IN (SELECT (job ->> 'partition')::integer FROM jsonb_array_elements(p_items) AS job)
        ORDER BY partition FOR UPDATE;
    END IF;
    PERFORM append_settled(job, result, v_now_s)
    FROM unnest(v_results) WITH ORDINALITY AS done (result, number)
    JOIN jsonb_array_elements(p_items) WITH ORDINALITY AS asked (job, number) USING (number)
    WHERE result ? 'candidate' ORDER BY number;
    RETURN (
        SELECT json_agg(coalesce(result -> 'answer', result -> 'refused') ORDER BY number)
        FROM unnest(v_results) WITH ORDINALITY AS done (result, number)
    );
END
$$;

-- The record ends with the two members that only the store knows, like `rows.complete_record`.
CREATE OR REPLACE FUNCTION append_settled(p_item jsonb, p_result jsonb, p_now_s double precision) RETURNS void
LANGUAGE sql AS $$
    SELECT append_record(
        (p_item ->> 'partition')::integer, p_item ->> 'call_id', p_item ->> 'tenant',
        (p_result ->> 'candidate')::integer, (p_result ->> 'at')::double precision,
        convert_to(
            left(p_item ->> 'record', -1) || ',"late":' || (p_result -> 'answer' ->> 1)
            || ',"askii_coins":' || (p_result -> 'answer' ->> 0) || '}', 'UTF8'
        ),
        (p_result -> 'answer' ->> 0)::numeric, (p_result -> 'answer' ->> 1)::boolean, p_now_s
    )
$$;

CREATE OR REPLACE FUNCTION lock_carries(p_subscriptions text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO carries (subscription, coins, pico_coins)
    SELECT DISTINCT name COLLATE "C", 0, 0 FROM unnest(p_subscriptions) AS name
    WHERE NOT EXISTS (SELECT FROM carries WHERE subscription = name) ORDER BY 1
    ON CONFLICT DO NOTHING;
    PERFORM FROM carries WHERE subscription = ANY (p_subscriptions) ORDER BY subscription FOR UPDATE;
END
$$;
