-- Budgets. Invariants: budgets_version grows with every edit and each edited row carries its number;
-- forms_version grows exactly when the set of (shape, period, zone) of the stored budgets changes. Both follow the clock
-- in milliseconds, so that a version is not used again after a restore that has lost edits.

CREATE OR REPLACE FUNCTION forms() RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT json_build_array(
        (SELECT value FROM meta WHERE name = 'forms_version'),
        (SELECT coalesce(json_agg(json_build_array(shape, period, zone) ORDER BY shape, period, zone), '[]') FROM (
            SELECT DISTINCT shape, period, zone FROM budgets WHERE budget IS NOT NULL
        ) AS found)
    )
$$;

-- [version, [[key, terms or null], ...]]: what has changed since `p_version`, in one snapshot.
CREATE OR REPLACE FUNCTION terms_since(p_version bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT json_build_array(
        (SELECT value FROM meta WHERE name = 'budgets_version'),
        (SELECT coalesce(json_agg(json_build_array(key, terms) ORDER BY version), '[]') FROM budgets
            WHERE version > p_version)
    )
$$;

-- One writer at a time, so that whoever sees a version sees every edit before it.
CREATE OR REPLACE FUNCTION next_version(p_name text) RETURNS bigint
LANGUAGE sql AS $$
    UPDATE meta SET value = greatest(value + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)
    WHERE name = p_name RETURNING value
$$;

CREATE OR REPLACE FUNCTION has_form(p_shape text, p_period text, p_zone text) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT FROM budgets WHERE shape = p_shape AND period = p_period AND zone = p_zone AND budget IS NOT NULL
    )
$$;

CREATE OR REPLACE FUNCTION set_budget(
    p_key text, p_shape text, p_period text, p_zone text, p_terms json, p_budget json
) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_version bigint := next_version('budgets_version');
    v_before budgets;
    v_known boolean := has_form(p_shape, p_period, p_zone);
BEGIN
    SELECT * INTO v_before FROM budgets WHERE key = p_key AND budget IS NOT NULL;
    INSERT INTO budgets VALUES (p_key, v_version, p_shape, p_period, p_zone, p_terms, p_budget)
    ON CONFLICT (key) DO UPDATE SET
        version = excluded.version, shape = excluded.shape, period = excluded.period, zone = excluded.zone,
        terms = excluded.terms, budget = excluded.budget;
    IF NOT v_known OR v_before.key IS NOT NULL AND NOT has_form(v_before.shape, v_before.period, v_before.zone) THEN
        PERFORM next_version('forms_version');
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION remove_budget(p_key text) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_before budgets;
BEGIN
    PERFORM FROM meta WHERE name = 'budgets_version' FOR UPDATE;
    UPDATE budgets SET terms = NULL, budget = NULL WHERE key = p_key AND budget IS NOT NULL
    RETURNING * INTO v_before;
    IF v_before.key IS NULL THEN
        RETURN false;
    END IF;
    UPDATE budgets SET version = next_version('budgets_version') WHERE key = p_key;
    IF NOT has_form(v_before.shape, v_before.period, v_before.zone) THEN
        PERFORM next_version('forms_version');
    END IF;
    RETURN true;
END
$$;

-- Those after a key whose scope has a text in it, by key. Without a limit: all.
CREATE OR REPLACE FUNCTION budgets_after(p_after text, p_limit bigint, p_contains text) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(budget ORDER BY key), '[]') FROM (
        SELECT key, budget FROM budgets
        WHERE budget IS NOT NULL AND key > p_after
            AND strpos(left(key, -1 - length(period)), p_contains) > 0
        ORDER BY key LIMIT p_limit
    ) AS found
$$;

CREATE OR REPLACE FUNCTION budgets_of(p_keys json) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(budget), '[]') FROM budgets
    WHERE budget IS NOT NULL AND key IN (SELECT value FROM json_array_elements_text(p_keys))
$$;
