-- Write a partition's stream anew with some of its records made anonymous, piece by piece: what is in a stream cannot be
-- changed. Invariant: the new one takes the old one's place when it has all of its entries.
--
-- ARGV[2...]: partition, who does it, the place before the first and (empty: there are no more) that of the last of this
-- piece, the tenant to write; then places and records. Answers with 0 where somebody else has begun anew.
-- include: outbox.lua
local partition, owner, after, through, tenant = unpack(ARGV, 2, 6)
local old, new, mark = P .. 'o:' .. partition, P .. 'on:' .. partition, 'n' .. partition
if after == '0' then
    redis.call('UNLINK', new)
    redis.call('HSET', P .. 'meta', mark, owner)
elseif redis.call('HGET', P .. 'meta', mark) ~= owner then
    return 0
end
local changed = {}
for n = 7, #ARGV, 2 do
    changed[ARGV[n] .. '-0'] = ARGV[n + 1]
end
for _, raw in ipairs(redis.call('XRANGE', old, '(' .. after .. '-0', through == '' and '+' or through .. '-0')) do
    local id, fields = raw[1], raw[2]
    if changed[id] then
        fields[4], fields[6] = tenant, changed[id]
    end
    redis.call('XADD', new, id, unpack(fields))
end
redis.call('EXPIRE', new, 3600) -- should nobody go on
if through == '' then
    local first = redis.call('XRANGE', old, '-', '+', 'COUNT', 1)[1]
    if first then
        redis.call('XTRIM', new, 'MINID', first[1]) -- what has gone meanwhile
    else
        redis.call('XTRIM', new, 'MAXLEN', 0)
    end
    redis.call('UNLINK', old)
    redis.call('RENAME', new, old)
    redis.call('PERSIST', old)
    redis.call('HDEL', P .. 'meta', mark)
end
return 1
