-- Store or replace a key. ARGV[2...]: id, tenant, row, digests. Answers with 1, or 0 if another key has one of these.
-- include: keys.lua
local id, tenant, row = ARGV[2], ARGV[3], ARGV[4]
for n = 5, #ARGV do
    local taken = redis.call('HGET', P .. 'key_ids', ARGV[n])
    if taken and taken ~= id then
        return 0
    end
end
forget_key(id)
redis.call('HSET', P .. 'keys', id, row)
redis.call('ZADD', P .. 'key_order', 0, id)
redis.call('ZADD', P .. 'key_order:' .. tenant, 0, id)
for n = 5, #ARGV do
    redis.call('HSET', P .. 'key_ids', ARGV[n], id)
end
return 1
