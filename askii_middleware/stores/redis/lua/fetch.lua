#!lua flags=no-writes
-- The next entries for a sink: those due again first, the longest due first, then new ones in the order of settlement.
-- While there are new ones, those due again get no more than half of the limit.
--
-- ARGV[2...]: sink, limit, partitions. Answers with arrays of partition, seq, call, tenant, record, attempts; nil where
-- there is no such sink.
-- include: outbox.lua
local sink, limit = ARGV[2], tonumber(ARGV[3])
local places = find_sink(sink)
if not places then
    return false
end
local due, starts = {}, {}
for n = 4, #ARGV do
    local partition = ARGV[n]
    starts[partition] = tonumber(places['p' .. partition])
    local key = P .. 'xa:' .. sink .. ':' .. partition
    local found = redis.call('ZRANGEBYSCORE', key, '-inf', now_text, 'WITHSCORES', 'LIMIT', 0, limit)
    for at = 1, #found, 2 do
        due[#due + 1] = { found[at], tonumber(found[at + 1]) }
    end
end
table.sort(due, function(one, other)
    if one[2] ~= other[2] then
        return one[2] < other[2]
    end
    return one[1] < other[1]
end)
local function skip(partition, seq)
    return redis.call('SISMEMBER', P .. 'xh:' .. sink .. ':' .. partition, whole(seq)) == 1
end
local fresh = merged(starts, limit, skip)
local found = {}
for n = 1, math.min(#due, math.max(limit - #fresh, math.floor(limit / 2))) do
    local partition, seq = string.match(due[n][1], '^%d+:(%d+):(%d+)$')
    local aside = cmsgpack.unpack(redis.call('HGET', P .. 'x:' .. sink, partition .. ':' .. seq))
    found[n] = { tonumber(partition), tonumber(seq), aside.call_id, aside.tenant, aside.record, aside.attempts }
end
for n = 1, math.min(#fresh, limit - #found) do
    local entry = fresh[n]
    found[#found + 1] = { tonumber(entry.partition), entry.seq, entry.call_id, entry.tenant, entry.record, 0 }
end
return found
