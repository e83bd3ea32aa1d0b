-- Admission. Invariant: between what was read of a counter and the commit of the hold, nobody else changes it; limits
-- are those of the moment after the last counter was locked.

CREATE OR REPLACE FUNCTION refusal(p_kind text, p_message text) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_array(p_kind, p_message)
$$;

-- Like `admission.decide`: an Admission, on lines that have their amounts.
CREATE OR REPLACE FUNCTION decide(p_lines budget_line[], p_candidates jsonb, p_now_s double precision) RETURNS json
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_order integer[] := ARRAY(SELECT generate_series(0, jsonb_array_length(p_candidates) - 1));
    v_cand integer;
    v_hold bigint;
    v_least bigint;
    v_granted bigint;
    v_judged integer := 0;
    v_reason text := 'spent';
BEGIN
    IF cardinality(v_order) > 1
        AND EXISTS (SELECT FROM unnest(p_lines) AS l WHERE l.cand = 0 AND taken(l) > l.above AND NOT l.soft)
    THEN
        v_order := v_order[2:] || 0;
    END IF;
    FOREACH v_cand IN ARRAY v_order LOOP
        v_granted := fitting(
            p_lines, v_cand, (p_candidates -> v_cand ->> 0)::bigint, (p_candidates -> v_cand ->> 1)::bigint
        );
        IF v_granted IS NOT NULL THEN
            RETURN json_build_object(
                'candidate', v_cand, 'admitted_at_s', p_now_s, 'hold_nano_usd', v_granted,
                'states', states(p_lines, v_cand)
            );
        END IF;
    END LOOP;
    FOREACH v_cand IN ARRAY v_order LOOP
        v_hold := (p_candidates -> v_cand ->> 0)::bigint;
        v_least := (p_candidates -> v_cand ->> 1)::bigint;
        IF NOT is_spent(p_lines, v_cand, v_hold, v_least) THEN
            v_reason := 'held';
            v_judged := v_cand;
            EXIT;
        END IF;
    END LOOP;
    v_hold := (p_candidates -> v_judged ->> 0)::bigint;
    v_least := (p_candidates -> v_judged ->> 1)::bigint;
    RETURN json_build_object(
        'candidate', NULL, 'admitted_at_s', p_now_s, 'states', states(p_lines, 0), 'reason', v_reason,
        'deciding', deciding(p_lines, v_judged, v_hold, v_least, v_reason)
    );
END
$$;

CREATE OR REPLACE FUNCTION states(p_lines budget_line[], p_cand integer) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(json_agg(state_of(l) ORDER BY l.place), '[]') FROM unnest(p_lines) AS l WHERE l.cand = p_cand
$$;

-- One request, whose counters are locked: [NULL, Admission], or [kind, message] of what was wrong.
CREATE OR REPLACE FUNCTION reserve_one(
    p_request jsonb, p_about text, p_lines budget_line[], p_forms bigint, p_budgets bigint, p_now_s double precision
) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    v_call text := p_request ->> 'call_id';
    v_worker text := p_request ->> 'worker';
    v_candidates jsonb := p_request -> 'candidates';
    v_lines budget_line[] := p_lines;
    v_answer json;
    v_cand integer;
    v_hold bigint;
    v_counters text[];
    v_ends bigint[];
    v_full text;
BEGIN
    SELECT answer INTO v_answer FROM holds WHERE call_id = v_call;
    IF v_answer IS NULL THEN
        SELECT json_build_object('candidate', candidate, 'admitted_at_s', admitted_at_s) INTO v_answer
        FROM records WHERE call_id = v_call;
    END IF;
    IF v_answer IS NOT NULL THEN
        RETURN json_build_array(NULL, v_answer);
    END IF;
    IF (p_request ->> 'forms')::bigint <> p_forms THEN
        RETURN refusal('forms', format('budget forms are at version %s, not %s', p_forms, p_request ->> 'forms'));
    END IF;
    IF NOT is_alive(v_worker, p_now_s) THEN
        RETURN refusal('worker', format('worker %L has no live heartbeat: send one before holding', v_worker));
    END IF;
    IF (p_request ->> 'budgets')::bigint <> p_budgets THEN
        RETURN refusal('stale', 'budgets');
    END IF;
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE counter IS NULL) THEN
        RETURN refusal('forms', format('a window that was not sent holds the store''s time %s', p_now_s));
    END IF;
    IF EXISTS (
        SELECT FROM jsonb_array_elements(v_candidates) AS c WHERE (c ->> 0)::bigint NOT BETWEEN 0 AND 9007199254740991
    ) THEN
        RETURN refusal('unwritable', 'a hold is below 0 or beyond 9007199254740991, which is all a counter can hold');
    END IF;
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE crowd IS NOT NULL) THEN
        v_lines := seated(v_lines);
    END IF;
    v_lines := merged(v_lines, p_now_s, p_request ->> 'replaces');

    v_answer := decide(v_lines, v_candidates, p_now_s);
    v_cand := (v_answer ->> 'candidate')::integer;
    IF (p_request ->> 'shadow')::boolean THEN
        v_cand := 0;
        v_answer := json_build_object(
            'candidate', 0, 'admitted_at_s', p_now_s, 'states', states(v_lines, 0),
            'hold_nano_usd', v_candidates -> 0 -> 0, 'shadow', v_answer
        );
    END IF;
    IF v_cand IS NULL THEN
        RETURN json_build_array(NULL, v_answer);
    END IF;
    v_hold := (v_answer ->> 'hold_nano_usd')::bigint;
    SELECT coalesce(array_agg(counter ORDER BY place), '{}'), coalesce(array_agg(end_s ORDER BY place), '{}'),
        min(counter) FILTER (WHERE spent + held + v_hold > 9007199254740991)
    INTO v_counters, v_ends, v_full FROM unnest(v_lines) WHERE cand = v_cand;
    IF v_full IS NOT NULL THEN
        RETURN refusal('unwritable', format('%s: it would pass 9007199254740991, which is all a counter can hold', v_full));
    END IF;

    IF p_request ->> 'replaces' IS NOT NULL THEN
        PERFORM drop_hold(p_request ->> 'replaces', p_now_s);
    END IF;
    INSERT INTO holds (
        call_id, state, until_s, worker, nano_usd, counters, ends, candidate, admitted_at_s, answer, about
    ) VALUES (
        v_call, 'held', p_now_s + (p_request ->> 'deadline_s')::double precision, v_worker, v_hold, v_counters, v_ends,
        v_cand, p_now_s, v_answer, convert_to(p_about, 'UTF8')
    );
    PERFORM add_held(v_counters, v_ends, v_worker, v_hold);
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE is_new AND cand = v_cand) THEN
        PERFORM seat(ARRAY(SELECT l FROM unnest(v_lines) AS l WHERE l.cand = v_cand));
    END IF;
    RETURN json_build_array(NULL, v_answer);
END
$$;

-- Several requests as one transaction, in this order: one answer of reserve_one for each.
CREATE OR REPLACE FUNCTION reserve(p_now_s double precision, p_requests jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_now_s double precision;
    v_calls text[];
    v_workers text[];
    v_replaced text[];
    v_lines budget_line[];
    v_counters text[];
    v_ends bigint[];
    v_forms bigint;
    v_budgets bigint;
    v_answers json[] := '{}';
    v_request jsonb;
    v_item integer := 0;
BEGIN
    SELECT array_agg(value ->> 'call_id') || coalesce(
            array_agg(value ->> 'replaces') FILTER (WHERE value ->> 'replaces' IS NOT NULL), '{}'
        ),
        array_agg(DISTINCT value ->> 'worker'),
        array_agg(value ->> 'replaces') FILTER (WHERE value ->> 'replaces' IS NOT NULL)
    INTO v_calls, v_workers, v_replaced FROM jsonb_array_elements(p_requests);
    PERFORM lock_workers(v_workers);
    PERFORM lock_calls(v_calls);
    v_now_s := now_or(p_now_s);

    SELECT array_agg(l) INTO v_lines
    FROM jsonb_array_elements(p_requests) WITH ORDINALITY AS asked (value, number),
        lines_at(asked.number::integer, asked.value, v_now_s) AS l;
    IF v_replaced IS NOT NULL THEN
        PERFORM FROM holds WHERE call_id = ANY (v_replaced) ORDER BY call_id FOR UPDATE;
        SELECT array_agg(name), array_agg(end_s) INTO v_counters, v_ends
        FROM holds, unnest(counters, ends) AS hold (name, end_s) WHERE call_id = ANY (v_replaced);
    END IF;
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE crowd IS NOT NULL) THEN
        SELECT v_counters || array_agg(crowd), v_ends || array_agg(end_s) INTO v_counters, v_ends
        FROM unnest(v_lines) WHERE crowd IS NOT NULL;
        PERFORM lock_counters(array_agg(name), array_agg(end_s))
        FROM unnest(v_counters, v_ends) AS asked (name, end_s) WHERE strpos(name, '=*') > 0;
    END IF;
    -- From here on places only fill up: a value that gets none needs no counter of its own.
    SELECT v_counters || array_agg(counter), v_ends || array_agg(end_s) INTO v_counters, v_ends
    FROM unnest(v_lines)
    WHERE counter IS NOT NULL AND (crowd IS NULL OR coalesce(crowding(crowd, counter) < most, true));
    PERFORM lock_counters(v_counters, v_ends);
    SELECT max(value) FILTER (WHERE name = 'forms_version'), max(value) FILTER (WHERE name = 'budgets_version')
    INTO v_forms, v_budgets FROM meta WHERE name IN ('forms_version', 'budgets_version');

    FOR v_request IN SELECT value FROM jsonb_array_elements(p_requests) LOOP
        v_item := v_item + 1;
        v_answers := v_answers || reserve_one(
            v_request, v_request ->> 'about', ARRAY(SELECT l FROM unnest(v_lines) AS l WHERE l.item = v_item),
            v_forms, v_budgets, v_now_s
        );
    END LOOP;
    -- Whatever a decision left out as past its deadline stays so, also if the clock steps back. `tend` takes it off.
    IF EXISTS (
        SELECT FROM unnest(v_answers) AS answer
        WHERE answer ->> 0 IS NULL AND (answer -> 1 ->> 'admitted_at_s')::double precision = v_now_s
    ) AND EXISTS (SELECT FROM holds WHERE state = 'held' AND until_s > 0 AND until_s <= v_now_s) THEN
        UPDATE holds SET until_s = 0 WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM holds
            WHERE state = 'held' AND until_s > 0 AND until_s <= v_now_s AND is_alive(worker, v_now_s)
            LIMIT 100 FOR UPDATE SKIP LOCKED
        ));
    END IF;
    RETURN array_to_json(v_answers);
END
$$;
