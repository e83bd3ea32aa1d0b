-- Extension of a hold, on the counters where it stands and in their windows. What does not bind the hold, such as a
-- budget that came later, does not bind its extension. Invariant: as in ledger_reserve.sql.

-- The plan lines that rule counters of a hold, with amounts. A value stays where its hold is: on its own counter or on
-- the shared one.
CREATE OR REPLACE FUNCTION lines_standing(p_hold holds, p_matches jsonb, p_now_s double precision) RETURNS budget_line[]
LANGUAGE sql STABLE AS $$
    WITH hold AS (
        SELECT name, end_s, left(name, -strpos(reverse(name), '|') + 1) AS prefix
        FROM unnest(p_hold.counters, p_hold.ends) AS stands (name, end_s)
    ), plan AS (
        SELECT value, row_number() OVER (ORDER BY m.number, p.number) AS place
        FROM jsonb_array_elements(p_matches) WITH ORDINALITY AS m (plans, number),
            jsonb_array_elements(m.plans) WITH ORDINALITY AS p (value, number)
    )
    SELECT merged(array_agg(
        ROW(
            1, 0, place, hold.name,
            CASE hold.prefix WHEN value ->> 0 THEN value ->> 2 ELSE value -> 8 ->> 1 END, value ->> 3,
            (value ->> 4)::bigint, (value ->> 5)::boolean, NULL, hold.end_s, NULL, NULL, NULL, NULL, false, NULL, NULL
        )::budget_line
    ), p_now_s, NULL)
    FROM plan JOIN hold ON hold.prefix = CASE
        WHEN EXISTS (SELECT FROM hold AS own WHERE own.prefix = value ->> 0) THEN value ->> 0
        ELSE value -> 8 ->> 0
    END
$$;

-- [NULL, Extension], or [kind, message] of what was wrong.
CREATE OR REPLACE FUNCTION extend(p_now_s double precision, p_request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_call text := p_request ->> 'call_id';
    v_target bigint := (p_request ->> 'target')::bigint;
    v_least bigint := (p_request ->> 'least')::bigint;
    v_now_s double precision;
    v_hold holds;
    v_lines budget_line[];
    v_more bigint;
    v_granted bigint;
    v_reason text;
    v_deciding json;
BEGIN
    PERFORM lock_calls(ARRAY[v_call]);
    SELECT * INTO v_hold FROM holds WHERE call_id = v_call FOR UPDATE;
    v_now_s := now_or(p_now_s);
    IF v_hold.call_id IS NULL OR NOT is_live(v_hold, v_now_s) THEN
        RETURN extension(false, 0, 'held', NULL);
    END IF;
    IF (p_request ->> 'sequence')::bigint <= v_hold.sequence THEN
        RETURN extension(
            v_hold.nano_usd >= v_least, v_hold.nano_usd, CASE WHEN v_hold.nano_usd < v_least THEN 'held' END, NULL
        );
    END IF;
    IF v_target NOT BETWEEN 0 AND 9007199254740991 THEN
        RETURN refusal('unwritable', 'a hold is below 0 or beyond 9007199254740991, which is all a counter can hold');
    END IF;
    PERFORM lock_counters(v_hold.counters, v_hold.ends);
    IF (p_request ->> 'budgets')::bigint <> (SELECT value FROM meta WHERE name = 'budgets_version') THEN
        RETURN refusal('stale', 'budgets');
    END IF;
    v_more := v_target - v_hold.nano_usd;
    v_granted := 0;
    IF v_more > 0 THEN
        v_lines := lines_standing(v_hold, p_request -> 'matches', v_now_s);
        v_least := least(v_least - v_hold.nano_usd, v_more);
        v_granted := fitting(v_lines, 0, v_more, greatest(v_least, 0));
        IF v_granted IS NULL AND v_least <= 0 THEN
            v_granted := 0;  -- what it has is enough
        END IF;
        IF v_granted IS NULL THEN
            -- Once every running call costs nothing, this one too: then it needs room for the whole of it.
            v_reason := CASE WHEN is_spent(v_lines, 0, v_hold.nano_usd + v_least, NULL) THEN 'spent' ELSE 'held' END;
            v_deciding := CASE v_reason
                WHEN 'spent' THEN deciding(v_lines, 0, v_hold.nano_usd + v_least, NULL, v_reason)
                ELSE deciding(v_lines, 0, v_more, v_least, v_reason)
            END;
        ELSIF EXISTS (
            SELECT FROM amounts(v_hold.counters, v_now_s, NULL) WHERE spent + held + v_granted > 9007199254740991
        ) THEN
            RETURN refusal('unwritable', 'it would pass 9007199254740991, which is all a counter can hold');
        END IF;
    END IF;
    UPDATE holds SET nano_usd = nano_usd + coalesce(v_granted, 0), sequence = (p_request ->> 'sequence')::bigint
    WHERE call_id = v_call;
    PERFORM add_held(v_hold.counters, v_hold.ends, v_hold.worker, coalesce(v_granted, 0));
    RETURN extension(v_granted IS NOT NULL, v_hold.nano_usd + coalesce(v_granted, 0), v_reason, v_deciding);
END
$$;

CREATE OR REPLACE FUNCTION extension(p_granted boolean, p_hold bigint, p_reason text, p_deciding json) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_array(NULL, json_build_object(
        'granted', p_granted, 'hold_nano_usd', p_hold, 'reason', p_reason, 'deciding', p_deciding
    ))
$$;
