-- Take, renew or give back the right to deliver partitions; the owners that ask share them evenly (`stores/sharing.py`
-- says the same).
--
-- ARGV[2...]: sink, owner, ttl_s. Answers with arrays of partition, token, retry_at_s and failures, or nil where there
-- is no such sink. Invariant: a token belongs to one owner, and ascends.
-- include: outbox.lua
local sink, owner, ttl_s = ARGV[2], ARGV[3], tonumber(ARGV[4])
local places = find_sink(sink)
if not places then
    return false
end
local askers, key = P .. 'y:' .. sink, P .. 'k:' .. sink
redis.call('ZREMRANGEBYSCORE', askers, '-inf', now_text)
local share = 0
if ttl_s > 0 then
    redis.call('ZADD', askers, seconds(now + ttl_s), owner)
    local names = redis.call('ZRANGE', askers, 0, -1)
    table.sort(names)
    local rest = PARTITIONS % #names
    share = (PARTITIONS - rest) / #names + (names[rest] and owner <= names[rest] and 1 or 0)
else
    redis.call('ZREM', askers, owner)
end
local own, free = {}, {}
for partition = 0, PARTITIONS - 1 do
    if places['o' .. partition] == owner then
        own[#own + 1] = partition
    elseif (tonumber(places['u' .. partition]) or 0) <= now then
        free[#free + 1] = partition
    end
end
local hand, count = {}, 0
for _, group in ipairs({ own, free }) do
    for _, partition in ipairs(group) do
        if count < share then
            hand[partition], count = true, count + 1
        end
    end
end
local found = {}
for partition = 0, PARTITIONS - 1 do
    local token, holder = tonumber(places['t' .. partition]) or 0, places['o' .. partition]
    if hand[partition] then
        token = holder == owner and token or token + 1
        redis.call(
            'HSET', key, 't' .. partition, whole(token), 'o' .. partition, owner,
            'u' .. partition, seconds(now + ttl_s)
        )
        found[#found + 1] = { partition, token, places['r' .. partition] or '0', places['f' .. partition] or '0' }
    elseif holder == owner and tonumber(places['u' .. partition]) > now then
        redis.call('HSET', key, 'u' .. partition, now_text)
    end
end
return found
