-- Keys. Invariant: `digests` has those of all keys, the present and the former, and nothing else.

-- False, and nothing changed: another key has one of these digests.
CREATE OR REPLACE FUNCTION put_key(p_id text, p_tenant text, p_digests json, p_key json) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- First, so that two writers of one key come one after the other.
    INSERT INTO keys VALUES (p_id, p_tenant, p_key)
    ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, key = excluded.key;
    DELETE FROM digests WHERE id = p_id;
    INSERT INTO digests SELECT value COLLATE "C", p_id FROM json_array_elements_text(p_digests) AS value ORDER BY 1;
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END
$$;

-- Those after an id. Without a tenant: of all; without a limit: all.
CREATE OR REPLACE FUNCTION keys_after(p_tenant text, p_after text, p_limit bigint) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    IF p_tenant IS NULL THEN
        RETURN (SELECT coalesce(json_agg(key ORDER BY id), '[]') FROM (
            SELECT id, key FROM keys WHERE id > p_after ORDER BY id LIMIT p_limit
        ) AS found);
    END IF;
    RETURN (SELECT coalesce(json_agg(key ORDER BY id), '[]') FROM (
        SELECT id, key FROM keys WHERE tenant = p_tenant AND id > p_after ORDER BY id LIMIT p_limit
    ) AS found);
END
$$;

CREATE OR REPLACE FUNCTION key_of(p_id text) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT key FROM keys WHERE id = p_id
$$;

CREATE OR REPLACE FUNCTION find_key(p_sha256 text) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT key FROM digests JOIN keys USING (id) WHERE sha256 = p_sha256
$$;
