-- include: start.lua
-- Keys. Invariants: `keys` has each by its id, `key_ids` leads from their digests, the present and the former, and from no
-- others, to their ids; `key_order` has all ids in order, and `key_order:<tenant>` those of a tenant.
local function forget_key(id)
    local known = redis.call('HGET', P .. 'keys', id)
    if not known then
        return 0
    end
    local row = cjson.decode(known)
    redis.call('HDEL', P .. 'key_ids', row.sha256)
    if type(row.former_sha256) == 'string' then
        redis.call('HDEL', P .. 'key_ids', row.former_sha256)
    end
    redis.call('HDEL', P .. 'keys', id)
    redis.call('ZREM', P .. 'key_order', id)
    redis.call('ZREM', P .. 'key_order:' .. row.tenant, id)
    return 1
end
