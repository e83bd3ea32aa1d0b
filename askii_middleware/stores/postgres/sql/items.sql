-- Named values. Invariant: a kind's version plus the number of its values whose time is up changes with every change of
-- what can be read of the kind, also by the passing of time, and never comes back to what it was.

CREATE OR REPLACE FUNCTION put_item(
    p_kind text, p_name text, p_value bytea, p_until_s double precision, p_only_new boolean, p_now_s double precision
) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    v_over bigint;
    v_known boolean;
BEGIN
    -- Writers of a kind one after the other.
    INSERT INTO item_kinds VALUES (p_kind, 0) ON CONFLICT DO NOTHING;
    PERFORM FROM item_kinds WHERE kind = p_kind FOR UPDATE;
    WITH over AS (DELETE FROM items WHERE kind = p_kind AND until_s <= now_or(p_now_s) RETURNING 1)
    SELECT count(*) INTO v_over FROM over;
    v_known := EXISTS (SELECT FROM items WHERE kind = p_kind AND name = p_name);
    IF p_value IS NULL AND NOT v_known OR p_value IS NOT NULL AND p_only_new AND v_known THEN
        UPDATE item_kinds SET version = version + v_over WHERE kind = p_kind AND v_over > 0;
        RETURN false;
    END IF;
    IF p_value IS NULL THEN
        DELETE FROM items WHERE kind = p_kind AND name = p_name;
    ELSE
        INSERT INTO items VALUES (p_kind, p_name, p_value, p_until_s)
        ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, until_s = excluded.until_s;
    END IF;
    UPDATE item_kinds SET version = version + v_over + 1 WHERE kind = p_kind;
    RETURN true;
END
$$;

-- [[name, value in base 64], ...]
CREATE OR REPLACE FUNCTION items_of(p_kind text, p_now_s double precision) RETURNS json
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(
        json_agg(json_build_array(name, translate(encode(value, 'base64'), E'\n', '')) ORDER BY name), '[]'
    ) FROM items WHERE kind = p_kind AND (until_s IS NULL OR until_s > now_or(p_now_s))
$$;

CREATE OR REPLACE FUNCTION item_versions(p_now_s double precision) RETURNS json
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(json_object_agg(kind, version + (
        SELECT count(*) FROM items WHERE items.kind = item_kinds.kind AND until_s <= now_or(p_now_s)
    )), '{}') FROM item_kinds
$$;
