-- From a request to the lines of its candidates. The client has resolved the budgets (stores/plans.py); here the clock
-- picks the window, and values that crowd get their places.

-- The lines of one request, each match by itself and without amounts.
-- `windows`: {"period|zone": [[start, end], ...]}, `matches`: [[plan line, ...], ...], `candidates`: [[hold, least,
-- [index of a match, ...]], ...].
CREATE OR REPLACE FUNCTION lines_at(p_item integer, p_request jsonb, p_now_s double precision) RETURNS SETOF budget_line
LANGUAGE sql STABLE AS $$
    SELECT p_item, (cand.number - 1)::integer, match.number * 100000 + plan.number,
        (plan.value ->> 0) || span.start_s, plan.value ->> 2, plan.value ->> 3, (plan.value ->> 4)::bigint,
        (plan.value ->> 5)::boolean, (plan.value ->> 6)::bigint, span.end_s, (plan.value -> 8 ->> 0) || span.start_s,
        plan.value -> 8 ->> 1, (plan.value -> 8 ->> 2)::bigint, plan.value -> 7, false, NULL::bigint, NULL::bigint
    FROM jsonb_array_elements(p_request -> 'candidates') WITH ORDINALITY AS cand (value, number)
    CROSS JOIN jsonb_array_elements(cand.value -> 2) WITH ORDINALITY AS match (value, number)
    CROSS JOIN jsonb_array_elements(p_request -> 'matches' -> (match.value::integer))
        WITH ORDINALITY AS plan (value, number)
    LEFT JOIN LATERAL (
        SELECT (pair ->> 0)::bigint AS start_s, (pair ->> 1)::bigint AS end_s
        FROM jsonb_array_elements(p_request -> 'windows' -> (plan.value ->> 1)) AS pair
        WHERE (pair ->> 0)::bigint <= p_now_s AND (pair ->> 1)::bigint > p_now_s LIMIT 1
    ) AS span ON true
$$;

-- How many values have counters of their own beside a shared one; NULL if that of this value is one of them. What is
-- spent on it keeps it, too: it may be older than the budget.
CREATE OR REPLACE FUNCTION crowding(p_shared text, p_own text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT max(number) FROM seats WHERE shared = p_shared), 0)
    WHERE NOT EXISTS (SELECT FROM seats WHERE shared = p_shared AND counter = p_own)
        AND NOT EXISTS (SELECT FROM counters WHERE counter = p_own AND worker = '' AND nano_usd <> 0)
$$;

-- Each value in its place. A call with several tags may bring several new values at once.
CREATE OR REPLACE FUNCTION seated(p_lines budget_line[]) RETURNS budget_line[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_line budget_line;
    v_found budget_line[] := '{}';
    v_taken bigint;
BEGIN
    FOR v_line IN SELECT * FROM unnest(p_lines) ORDER BY item, cand, place LOOP
        IF v_line.crowd IS NOT NULL THEN
            v_taken := crowding(v_line.crowd, v_line.counter);
            IF v_taken IS NOT NULL THEN
                v_taken := v_taken + (
                    SELECT count(DISTINCT counter) FROM unnest(v_found)
                    WHERE is_new AND crowd = v_line.crowd AND counter <> v_line.counter
                        AND item = v_line.item AND cand = v_line.cand
                );
                IF v_taken < v_line.most THEN
                    v_line.is_new := true;
                ELSE
                    v_line.counter := v_line.crowd;
                    v_line.scope := v_line.crowd_scope;
                END IF;
            END IF;
        END IF;
        v_found := v_found || v_line;
    END LOOP;
    RETURN v_found;
END
$$;

-- Each counter of a candidate once, under its most severe line (a limit before none, hard before soft, low before
-- high), in the place of its first one, with its amounts.
CREATE OR REPLACE FUNCTION merged(p_lines budget_line[], p_now_s double precision, p_without text) RETURNS budget_line[]
LANGUAGE sql STABLE AS $$
    WITH ruling AS (
        SELECT DISTINCT ON (item, cand, counter) *, min(place) OVER (PARTITION BY item, cand, counter) AS first
        FROM unnest(p_lines) ORDER BY item, cand, counter, lim IS NULL, soft, lim, place
    ), found AS MATERIALIZED (
        SELECT * FROM amounts(ARRAY(SELECT DISTINCT counter FROM ruling), p_now_s, p_without)
    )
    SELECT array_agg(
        ROW(
            item, cand, first, r.counter, scope, period, lim, soft, above, end_s, crowd, crowd_scope, most, NULL,
            is_new, found.spent, found.held
        )::budget_line ORDER BY item, cand, first
    ) FROM ruling r JOIN found ON found.counter = r.counter
$$;

-- A BudgetState.
CREATE OR REPLACE FUNCTION state_of(p_line budget_line) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_object(
        'counter', p_line.counter, 'scope', p_line.scope, 'period', p_line.period, 'limit_nano_usd', p_line.lim,
        'spent_nano_usd', p_line.spent, 'held_nano_usd', p_line.held, 'resets_at_s', p_line.end_s, 'soft', p_line.soft
    )
$$;

-- Write which values have got counters of their own. The shared counters are locked.
CREATE OR REPLACE FUNCTION seat(p_lines budget_line[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_line budget_line;
BEGIN
    FOR v_line IN SELECT * FROM unnest(p_lines) WHERE is_new ORDER BY item, cand, place LOOP
        INSERT INTO seats (shared, counter, number, end_s)
        VALUES (
            v_line.crowd, v_line.counter,
            1 + coalesce((SELECT max(number) FROM seats WHERE shared = v_line.crowd), 0), v_line.end_s
        ) ON CONFLICT (shared, counter) DO NOTHING;
    END LOOP;
END
$$;

-- What is spent and held on a line: less than nothing spent, after credits, gives no room beyond the limit.
CREATE OR REPLACE FUNCTION taken(p_line budget_line) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(p_line.spent, 0) + p_line.held
$$;

-- Whether so much fits one line: a hold of zero needs no room, only a limit that is not 0.
CREATE OR REPLACE FUNCTION refuses(p_line budget_line, p_taken bigint, p_hold bigint, p_least bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT p_line.lim IS NOT NULL AND NOT p_line.soft AND (
        p_line.lim = 0 OR p_hold <> 0 AND p_line.lim - p_taken < p_hold
            AND (p_least IS NULL OR p_line.lim - p_taken < p_least)
    )
$$;

-- As much of a hold as fits all lines of a candidate; NULL if not enough does. Like `admission.fitting`.
CREATE OR REPLACE FUNCTION fitting(p_lines budget_line[], p_cand integer, p_hold bigint, p_least bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN bool_or(refuses(l, taken(l), p_hold, p_least)) THEN NULL
        WHEN p_hold = 0 THEN 0
        ELSE least(p_hold, min(l.lim - taken(l)) FILTER (WHERE NOT l.soft))
    END
    FROM unnest(p_lines) AS l WHERE l.cand = p_cand
$$;

-- Whether it would not fit even if every running call cost nothing.
CREATE OR REPLACE FUNCTION is_spent(p_lines budget_line[], p_cand integer, p_hold bigint, p_least bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(bool_or(refuses(l, greatest(l.spent, 0), p_hold, p_least)), false) FROM unnest(p_lines) AS l
    WHERE l.cand = p_cand
$$;

-- Of the lines that refuse for this reason, the one that resets last.
CREATE OR REPLACE FUNCTION deciding(p_lines budget_line[], p_cand integer, p_hold bigint, p_least bigint, p_reason text)
RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT state_of(l) FROM unnest(p_lines) AS l
    WHERE l.cand = p_cand
        AND refuses(l, CASE p_reason WHEN 'spent' THEN greatest(l.spent, 0) ELSE taken(l) END, p_hold, p_least)
    ORDER BY l.end_s DESC, l.place LIMIT 1
$$;
