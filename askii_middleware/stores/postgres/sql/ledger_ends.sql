-- Ends of a hold other than its settlement, and calls that go on elsewhere.

-- Release a hold whose call and counters are locked. One that is released already stays as it is.
CREATE OR REPLACE FUNCTION drop_hold(p_call text, p_now_s double precision) RETURNS void
LANGUAGE sql AS $$
    SELECT lift(holds) FROM holds WHERE call_id = p_call;
    UPDATE holds SET state = 'released', until_s = p_now_s + 86400 WHERE call_id = p_call AND state <> 'released';
    DELETE FROM operations WHERE call_id = p_call;
$$;

CREATE OR REPLACE FUNCTION release(p_now_s double precision, p_call text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_hold holds;
BEGIN
    PERFORM lock_calls(ARRAY[p_call]);
    SELECT * INTO v_hold FROM holds WHERE call_id = p_call FOR UPDATE;
    IF v_hold.state = 'held' THEN
        PERFORM lock_counters(v_hold.counters, v_hold.ends);
    END IF;
    PERFORM drop_hold(p_call, now_or(p_now_s));
END
$$;

-- False: the key is another call's.
CREATE OR REPLACE FUNCTION defer(
    p_now_s double precision, p_call text, p_key text, p_tenant text, p_until_s double precision, p_payload bytea
) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_hold holds;
    v_now_s double precision;
BEGIN
    PERFORM lock_calls(ARRAY[p_call]);
    SELECT * INTO v_hold FROM holds WHERE call_id = p_call FOR UPDATE;
    IF v_hold.state = 'released'
        OR v_hold.call_id IS NULL AND EXISTS (SELECT FROM records WHERE call_id = p_call)
        OR EXISTS (SELECT FROM operations WHERE call_id = p_call)
    THEN
        RETURN true;
    END IF;
    INSERT INTO operations (call_id, key, tenant, until_s, payload)
    VALUES (p_call, p_key, p_tenant, p_until_s, p_payload) ON CONFLICT (key) DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_hold.state = 'held' THEN
        PERFORM lock_counters(v_hold.counters, v_hold.ends);
        v_now_s := now_or(p_now_s);
        PERFORM lift(v_hold);
        IF is_live(v_hold, v_now_s) THEN
            PERFORM add_held(v_hold.counters, v_hold.ends, '~elsewhere', v_hold.nano_usd);
            UPDATE holds SET worker = '~elsewhere', until_s = p_until_s + 3600 WHERE call_id = p_call;
        ELSE
            UPDATE holds SET state = 'expired', until_s = v_now_s + 8 * 86400 WHERE call_id = p_call;
        END IF;
    END IF;
    RETURN true;
END
$$;

-- Payloads travel in base64, which JSON can hold.
CREATE OR REPLACE FUNCTION operation_row(p_row operations) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_object(
        'key', p_row.key, 'call_id', p_row.call_id, 'tenant', p_row.tenant, 'until_s', p_row.until_s,
        'payload', translate(encode(p_row.payload, 'base64'), E'\n', '')
    )
$$;

CREATE OR REPLACE FUNCTION operation(p_key text) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT operation_row(operations) FROM operations WHERE key = p_key
$$;

CREATE OR REPLACE FUNCTION overdue(p_now_s double precision, p_limit bigint) RETURNS json
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(operation_row(due) ORDER BY until_s, call_id), '[]') FROM (
        SELECT * FROM operations WHERE until_s <= (SELECT now_or(p_now_s)) ORDER BY until_s, call_id LIMIT p_limit
    ) AS due
$$;
