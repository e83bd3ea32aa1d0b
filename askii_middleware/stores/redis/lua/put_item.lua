-- Store or remove a value. ARGV[2...]: kind, name, until_s or '', 1 for only a new one, and unless it is removed, the
-- value. Answers with 1, or 0 where nothing was changed.
-- include: values.lua
local kind, name, until_s, only_new, value = unpack(ARGV, 2, 6)
local key, member = P .. 'items:' .. kind, end_of(kind, name)
if not value then
    if redis.call('HDEL', key, name) == 0 then
        return 0
    end
    redis.call('ZREM', P .. 'item_ends', member)
    changed(kind)
    return 1
end
if only_new == '1' and redis.call('HEXISTS', key, name) == 1 then
    return 0
end
redis.call('HSET', key, name, value)
if until_s == '' then
    redis.call('ZREM', P .. 'item_ends', member)
else
    redis.call('ZADD', P .. 'item_ends', until_s, member)
end
changed(kind)
return 1
