-- Alerts on their way to channels. Invariant: numbers ascend in the order in which alerts become visible, because
-- whoever writes one holds the lock of the row in `meta` that counts them.

-- Inside a settlement: number and keep those that are new, in their order.
CREATE OR REPLACE FUNCTION write_alerts(p_alerts jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_last bigint;
    v_alert jsonb;
BEGIN
    IF jsonb_array_length(p_alerts) = 0 THEN
        RETURN;
    END IF;
    SELECT value INTO v_last FROM meta WHERE name = 'last_alert' FOR UPDATE;
    FOR v_alert IN SELECT jsonb_array_elements(p_alerts) LOOP
        INSERT INTO alerts VALUES (
            v_last + 1, v_alert ->> 'id', (v_alert ->> 'resets_at_s')::bigint,
            v_alert || jsonb_build_object('seq', v_last + 1)
        ) ON CONFLICT (id) DO NOTHING;
        IF FOUND THEN
            v_last := v_last + 1;
        END IF;
    END LOOP;
    UPDATE meta SET value = v_last WHERE name = 'last_alert' AND value <> v_last;
END
$$;

CREATE OR REPLACE FUNCTION register_channels(p_names json, p_now_s double precision) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO channels (channel, position, until_s)
    SELECT name, (SELECT value FROM meta WHERE meta.name = 'last_alert'), now_or(p_now_s)
    FROM json_array_elements_text(p_names) AS name
    ON CONFLICT DO NOTHING
$$;

-- A channel, locked. Raises StoreError for one that is not registered.
CREATE OR REPLACE FUNCTION find_channel(p_channel text) RETURNS channels
LANGUAGE plpgsql AS $$
DECLARE
    v_channel channels;
BEGIN
    SELECT * INTO v_channel FROM channels WHERE channel = p_channel FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'alert channel % is not registered: call register_channels first', quote_literal(p_channel)
            USING ERRCODE = 'AS001';
    END IF;
    RETURN v_channel;
END
$$;

-- [[0, token, 0, 0]], or [] while someone else holds it.
CREATE OR REPLACE FUNCTION lease_channel(
    p_channel text, p_owner text, p_ttl_s double precision, p_now_s double precision
) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_channel channels := find_channel(p_channel);
    v_now_s double precision := now_or(p_now_s);
    v_token bigint := v_channel.token;
BEGIN
    IF v_channel.owner IS DISTINCT FROM p_owner THEN
        IF p_ttl_s <= 0 OR v_channel.owner IS NOT NULL AND v_channel.until_s > v_now_s THEN
            RETURN '[]';
        END IF;
        v_token := v_token + 1;
    END IF;
    UPDATE channels SET owner = p_owner, token = v_token, until_s = v_now_s + p_ttl_s WHERE channel = p_channel;
    RETURN CASE WHEN p_ttl_s > 0 THEN json_build_array(json_build_array(0, v_token, 0, 0)) ELSE '[]' END;
END
$$;

CREATE OR REPLACE FUNCTION fetch_alerts(p_channel text, p_limit bigint) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_channel channels := find_channel(p_channel);
BEGIN
    RETURN (SELECT coalesce(json_agg(alert ORDER BY seq), '[]') FROM (
        SELECT seq, alert FROM alerts WHERE seq > v_channel.position ORDER BY seq LIMIT p_limit
    ) AS found);
END
$$;

-- A place never goes back, and never beyond what there is.
CREATE OR REPLACE FUNCTION acknowledge_alerts(p_channel text, p_token bigint, p_through_seq bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_channel channels := find_channel(p_channel);
BEGIN
    IF v_channel.token <> p_token THEN
        RETURN false;
    END IF;
    UPDATE channels SET position = greatest(
        position, least(p_through_seq, (SELECT value FROM meta WHERE name = 'last_alert'))
    ) WHERE channel = p_channel;
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION recent_alerts(p_limit bigint) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_agg(alert ORDER BY seq DESC), '[]') FROM (
        SELECT seq, alert FROM alerts ORDER BY seq DESC LIMIT p_limit
    ) AS found
$$;

-- Inside the upkeep: forget a bounded number of what is old enough and done with by every channel in use.
CREATE OR REPLACE FUNCTION prune_reading(p_now_s double precision) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM alerts WHERE seq IN (
        SELECT seq FROM alerts WHERE end_s <= p_now_s - 8 * 86400 AND NOT EXISTS (
            SELECT FROM channels WHERE position < alerts.seq AND until_s > p_now_s - 30 * 86400
        ) LIMIT 500
    )
$$;
