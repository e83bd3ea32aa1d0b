-- What all parts of the ledger use. Functions that a client calls set search_path to what it was when they were made;
-- those inside are found through theirs.

-- The caller's clock, or the server's own: not the transaction's beginning, which may lie before a wait for a lock.
CREATE OR REPLACE FUNCTION now_or(p_now_s double precision) RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(p_now_s, extract(epoch FROM clock_timestamp())::double precision)
$$;

-- Shows whether the ledger can be written.
CREATE OR REPLACE FUNCTION touch() RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE meta SET value = value + 1 WHERE name = 'touched'
$$;

-- The end of a migration.
CREATE OR REPLACE FUNCTION set_schema(p_version bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO meta VALUES ('schema', p_version) ON CONFLICT (name) DO UPDATE SET value = excluded.value
$$;
