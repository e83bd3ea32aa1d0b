-- Write what became of entries, in the partitions whose lease is the newest.
--
-- ARGV[2]: sink, back-off, number of failures, leases (partition, token) and outcomes (partition, seq, result, reason,
-- after_s), packed. Answers with the partitions whose lease is void, or nil where there is no such sink. Invariant: a
-- position never goes back, and passes no entry without an outcome.
-- include: outbox.lua
local sink, retry_at_s, failures, leases, outcomes = unpack(cmsgpack.unpack(ARGV[2]))
local places = find_sink(sink)
if not places then
    return false
end
local held, void = {}, {}
for _, lease in ipairs(leases) do
    local partition, token = lease[1], tonumber(places['t' .. lease[1]])
    if token and token > 0 and token == lease[2] then
        held[partition] = { position = tonumber(places['p' .. partition]), last = last_of(partition) }
    end
end
for _, lease in ipairs(leases) do
    if not held[lease[1]] then
        void[#void + 1] = lease[1]
    end
end
local set_aside = P .. 'x:' .. sink

local function apply(partition, seq, result, reason, after_s)
    local place = held[partition]
    local field, ahead = partition .. ':' .. whole(seq), P .. 'xh:' .. sink .. ':' .. partition
    local again, dead = P .. 'xa:' .. sink .. ':' .. partition, P .. 'xd:' .. sink
    local packed = redis.call('HGET', set_aside, field)
    local aside
    if packed then
        aside = cmsgpack.unpack(packed)
        redis.call('ZREM', again, member_of(aside.number, partition, seq))
        redis.call('ZREM', dead, member_of(aside.number, partition, seq))
    elseif seq <= place.position or seq > place.last or redis.call('SADD', ahead, whole(seq)) == 0 then
        return
    end
    if result == 'delivered' then
        redis.call('HDEL', set_aside, field)
        return
    end
    aside = aside or find_entry(partition, seq)
    local member = member_of(aside.number, partition, seq)
    aside.attempts = (aside.attempts or 0) + 1
    aside.reason, aside.last_s, aside.first_s = reason, now_text, aside.first_s or now_text
    redis.call('HSET', set_aside, field, cmsgpack.pack(aside))
    if result == 'dead' then
        redis.call('ZADD', dead, now_text, member)
    else
        redis.call('ZADD', again, seconds(now + after_s), member)
    end
end

for _, outcome in ipairs(outcomes) do
    if held[outcome[1]] then
        apply(unpack(outcome))
    end
end
for partition, place in pairs(held) do
    local ahead, position = P .. 'xh:' .. sink .. ':' .. partition, place.position
    while redis.call('SREM', ahead, whole(position + 1)) == 1 do
        position = position + 1
    end
    redis.call(
        'HSET', P .. 'k:' .. sink, 'p' .. partition, whole(position),
        'r' .. partition, seconds(retry_at_s), 'f' .. partition, whole(failures)
    )
end
return void
