#!lua flags=allow-oom
-- Forget what is old enough and done with, a bounded number at a time. Invariant: no record goes that a sink has not
-- passed, and no alert that a channel in use has not acknowledged; what is set aside has a copy of its own.
--
-- Allowed where memory is full: it is what frees it.
-- include: trim.lua
-- include: values.lua
local KEPT_S, UNUSED_S, AT_ONCE = 691200, 2592000, 500

local sinks = redis.call('SMEMBERS', P .. 'sinks')
for partition = 0, PARTITIONS - 1 do
    trim(partition, passed_by(sinks, partition), now - KEPT_S, AT_ONCE)
end

local done = tonumber(redis.call('HGET', P .. 'meta', 'alert_seq')) or 0
for _, channel in ipairs(redis.call('SMEMBERS', P .. 'channels')) do
    local found = redis.call('HMGET', P .. 'n:' .. channel, 'p', 'u')
    if tonumber(found[2]) + UNUSED_S > now then
        done = math.min(done, tonumber(found[1]))
    end
end
local ended = redis.call('ZRANGEBYSCORE', P .. 'alert_ends', '-inf', seconds(now - KEPT_S), 'LIMIT', 0, AT_ONCE)
for _, seq in ipairs(ended) do
    if tonumber(seq) <= done then
        local id = seq .. '-0'
        redis.call('HDEL', P .. 'alert_ids', redis.call('XRANGE', P .. 'alerts', id, id)[1][2][4])
        redis.call('XDEL', P .. 'alerts', id)
        redis.call('ZREM', P .. 'alert_ends', seq)
    end
end
