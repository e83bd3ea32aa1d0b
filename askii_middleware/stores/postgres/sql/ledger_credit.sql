-- Credit in the hands of workers. Invariant: what all workers have not used counts as held, so what is granted on a
-- line is never more than what its limit has left under the counter's lock.

-- Use up so much credit on each counter, or what there is. The counters are locked.
CREATE OR REPLACE FUNCTION use_credit(p_counters text[], p_holder text, p_nano_usd bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE credits SET used = used + greatest(least(p_nano_usd, granted - used), 0)
    WHERE counter = ANY (p_counters) AND holder = p_holder
$$;

CREATE OR REPLACE FUNCTION granted_to(p_counter text, p_holder text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT granted FROM credits WHERE counter = p_counter AND holder = p_holder), 0)
$$;

-- How much credit a line gives to an ask, like `rules.grant`.
CREATE OR REPLACE FUNCTION credit_for(p_line budget_line, p_ask jsonb, p_granted bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_line.lim > 0 AND NOT p_line.soft THEN greatest(0, least(
        (p_ask ->> 0)::bigint,
        floor((p_line.lim - taken(p_line))::numeric * least((p_ask ->> 1)::bigint, 1000000) / 1000000),
        floor(p_line.lim::numeric * least((p_ask ->> 2)::bigint, 1000000) / 1000000) - taken(p_line),
        9007199254740991 - p_granted
    ))::bigint ELSE 0 END
$$;

-- `candidates` of the request are one for each ask, `asks` are [[more, share_ppm, ceiling_ppm], ...], `returns`
-- [[counter, nano_usd], ...]. [NULL, [now, budgets_version, [[CreditLine, ...], ...]]], or [kind, message].
CREATE OR REPLACE FUNCTION draw(p_now_s double precision, p_request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_holder text := p_request ->> 'holder';
    v_budgets bigint;
    v_forms bigint;
    v_now_s double precision;
    v_is_new boolean;
    v_lines budget_line[];
    v_crowded text[];
    v_line budget_line;
    v_more bigint;
    v_needs_store boolean;
    v_answers json[] := '{}';
    v_found json[];
BEGIN
    PERFORM lock_workers(ARRAY[v_holder]);
    PERFORM lock_calls(ARRAY['draws of ' || v_holder]);
    v_now_s := now_or(p_now_s);
    v_lines := ARRAY(SELECT l FROM lines_at(1, p_request, v_now_s) AS l);
    PERFORM lock_counters(array_agg(name), array_agg(end_s)) FROM (
        SELECT counter AS name, end_s FROM unnest(v_lines) WHERE counter IS NOT NULL AND crowd IS NULL
        UNION ALL
        SELECT counter, end_s FROM credits
        WHERE holder = v_holder AND counter IN (SELECT value ->> 0 FROM jsonb_array_elements(p_request -> 'returns'))
    ) AS needed;
    SELECT max(value) FILTER (WHERE name = 'forms_version'), max(value) FILTER (WHERE name = 'budgets_version')
    INTO v_forms, v_budgets FROM meta WHERE name IN ('forms_version', 'budgets_version');
    IF (p_request ->> 'forms')::bigint <> v_forms THEN
        RETURN refusal('forms', format('budget forms are at version %s, not %s', v_forms, p_request ->> 'forms'));
    END IF;
    IF NOT is_alive(v_holder, v_now_s) THEN
        RETURN refusal('worker', format('worker %L has no live heartbeat: send one before holding', v_holder));
    END IF;
    IF (p_request ->> 'budgets')::bigint <> v_budgets THEN
        RETURN refusal('stale', 'budgets');
    END IF;
    IF EXISTS (SELECT FROM unnest(v_lines) WHERE counter IS NULL) THEN
        RETURN refusal('forms', format('a window that was not sent holds the store''s time %s', v_now_s));
    END IF;

    INSERT INTO draws AS known (holder, sequence) VALUES (v_holder, (p_request ->> 'sequence')::bigint)
    ON CONFLICT (holder) DO UPDATE SET sequence = excluded.sequence WHERE known.sequence < excluded.sequence;
    v_is_new := FOUND AND (p_request ->> 'sequence')::bigint > 0;
    IF v_is_new THEN
        FOR v_line.counter, v_more IN
            SELECT value ->> 0, (value ->> 1)::bigint FROM jsonb_array_elements(p_request -> 'returns')
        LOOP
            UPDATE credits SET granted = granted - least(v_more, granted - used)
            WHERE counter = v_line.counter AND holder = v_holder;
        END LOOP;
    END IF;
    v_lines := seated(v_lines);
    v_crowded := ARRAY(SELECT cand || ' ' || counter FROM unnest(v_lines) WHERE crowd IS NOT NULL);
    v_lines := merged(v_lines, v_now_s, NULL);
    FOR v_ask IN 0 .. jsonb_array_length(p_request -> 'candidates') - 1 LOOP
        v_found := '{}';
        FOR v_line IN SELECT * FROM unnest(v_lines) WHERE cand = v_ask ORDER BY place LOOP
            v_needs_store := v_ask || ' ' || v_line.counter = ANY (v_crowded)
                OR coalesce(v_line.lim = 0, false) AND NOT v_line.soft;
            SELECT spent, held INTO v_line.spent, v_line.held FROM amounts(ARRAY[v_line.counter], v_now_s, NULL);
            IF v_is_new AND NOT v_needs_store THEN
                v_more := credit_for(
                    v_line, p_request -> 'asks' -> v_ask, granted_to(v_line.counter, v_holder)
                );
                IF v_more > 0 THEN
                    INSERT INTO credits AS known (counter, holder, granted, used, end_s)
                    VALUES (v_line.counter, v_holder, v_more, 0, v_line.end_s)
                    ON CONFLICT (counter, holder) DO UPDATE SET granted = known.granted + excluded.granted;
                    v_line.held := v_line.held + v_more;
                END IF;
            END IF;
            v_found := v_found || json_build_array(
                state_of(v_line), substring(v_line.counter FROM '[^|]*$')::bigint,
                granted_to(v_line.counter, v_holder), v_needs_store
            );
        END LOOP;
        v_answers := v_answers || array_to_json(v_found);
    END LOOP;
    RETURN json_build_array(NULL, json_build_array(v_now_s, v_budgets, array_to_json(v_answers)));
END
$$;

-- `owed`: counters on which the hold takes as much credit, `free`: those on which it needs none.
CREATE OR REPLACE FUNCTION promote(p_now_s double precision, p_promotion jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_call text := p_promotion ->> 'call_id';
    v_holder text := p_promotion ->> 'holder';
    v_hold bigint := (p_promotion -> 'admission' ->> 'hold_nano_usd')::bigint;
    v_counters text[];
    v_ends bigint[];
    v_owed text[] := ARRAY(SELECT jsonb_array_elements_text(p_promotion -> 'owed'));
    v_now_s double precision;
    v_short text;
BEGIN
    PERFORM lock_workers(ARRAY[v_holder]);
    PERFORM lock_calls(ARRAY[v_call]);
    IF EXISTS (SELECT FROM holds WHERE call_id = v_call) OR EXISTS (SELECT FROM records WHERE call_id = v_call) THEN
        RETURN;
    END IF;
    SELECT coalesce(array_agg(value ->> 0 ORDER BY number), '{}'),
        coalesce(array_agg((value ->> 1)::bigint ORDER BY number), '{}')
    INTO v_counters, v_ends
    FROM jsonb_array_elements(p_promotion -> 'counters') WITH ORDINALITY AS stands (value, number);
    PERFORM lock_counters(v_counters, v_ends);
    v_now_s := now_or(p_now_s);
    IF NOT is_alive(v_holder, v_now_s) THEN
        RAISE EXCEPTION USING ERRCODE = 'AS004',
            MESSAGE = format('worker %L has no live heartbeat: send one before holding', v_holder);
    END IF;
    SELECT format('%s of credit on %s', coalesce(granted - used, 0), name) INTO v_short
    FROM unnest(v_owed) AS name LEFT JOIN credits ON counter = name AND holder = v_holder
    WHERE coalesce(granted - used, 0) < v_hold LIMIT 1;
    IF v_short IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'AS005', MESSAGE = format(
            'call %s: worker %L has %s, and the hold takes %s: draw first, or reserve the call', v_call, v_holder,
            v_short, v_hold
        );
    END IF;
    IF EXISTS (
        SELECT FROM amounts(ARRAY(SELECT jsonb_array_elements_text(p_promotion -> 'free')), v_now_s, NULL)
        WHERE spent + held + v_hold > 9007199254740991
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'AS002',
            MESSAGE = 'the hold takes a counter beyond 9007199254740991, which is all it can hold';
    END IF;

    UPDATE credits SET granted = granted - v_hold WHERE counter = ANY (v_owed) AND holder = v_holder;
    INSERT INTO holds (
        call_id, state, until_s, worker, nano_usd, counters, ends, candidate, admitted_at_s, answer, about
    ) VALUES (
        v_call, 'held', v_now_s + (p_promotion ->> 'deadline_s')::double precision, v_holder, v_hold, v_counters, v_ends,
        (p_promotion -> 'admission' ->> 'candidate')::integer,
        (p_promotion -> 'admission' ->> 'admitted_at_s')::double precision, (p_promotion -> 'admission')::json,
        convert_to(p_promotion ->> 'about', 'UTF8')
    );
    PERFORM add_held(v_counters, v_ends, v_holder, v_hold);
END
$$;

-- CreditRows.
CREATE OR REPLACE FUNCTION credits_all(p_now_s double precision) RETURNS json
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(
        json_build_array(counter, holder, granted, used, is_alive(holder, at)) ORDER BY counter, holder
    ), '[]') FROM credits, now_or(p_now_s) AS at WHERE granted > used
$$;

CREATE OR REPLACE FUNCTION reclaim(p_now_s double precision, p_scope text) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_now_s double precision := now_or(p_now_s);
    v_taken json;
BEGIN
    PERFORM lock_counters(array_agg(counter), array_agg(end_s)) FROM credits
    WHERE NOT is_alive(holder, v_now_s) AND scope_of(counter) = coalesce(p_scope, scope_of(counter));
    WITH taken AS (
        DELETE FROM credits
        WHERE NOT is_alive(holder, v_now_s) AND scope_of(counter) = coalesce(p_scope, scope_of(counter))
            AND granted > used
        RETURNING *
    )
    SELECT json_agg(json_build_array(counter, holder, granted, used, false) ORDER BY counter, holder) INTO v_taken
    FROM taken;
    RETURN coalesce(v_taken, '[]');
END
$$;

-- The scope of a counter's name, which is followed by period, zone and the window's start.
CREATE OR REPLACE FUNCTION scope_of(p_counter text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT substring(p_counter FROM '^(.*)\|[^|]*\|[^|]*\|[^|]*$')
$$;
