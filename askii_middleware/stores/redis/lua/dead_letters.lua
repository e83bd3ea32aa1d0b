#!lua flags=no-writes
-- What a sink has rejected for good, the longest rejected first. ARGV[2...]: sink, limit. Nil where there is no such
-- sink.
-- include: outbox.lua
local sink, limit = ARGV[2], tonumber(ARGV[3])
if not find_sink(sink) then
    return false
end
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'xd:' .. sink, '-inf', '+inf', 'LIMIT', 0, limit)) do
    local partition, seq = string.match(member, '^%d+:(%d+):(%d+)$')
    local aside = cmsgpack.unpack(redis.call('HGET', P .. 'x:' .. sink, partition .. ':' .. seq))
    found[#found + 1] = {
        tonumber(partition), tonumber(seq), aside.call_id, aside.tenant, aside.reason, aside.attempts,
        aside.first_s, aside.last_s, aside.record,
    }
end
return found
