#!lua flags=allow-oom
-- Keep a worker's holds alive, bury the workers whose heartbeat has run out, and prune a bounded number of old rows.
--
-- Invariant: a worker that was found dead stays dead, whatever its clock or the server's does: it is in `buried` from
-- then on, and if it has more holds than one call marks as lost, in `workers` with the time 0 until all of them are.
--
-- Allowed where memory is full: it takes next to nothing, and is what frees old rows; and a full server must not make
-- every worker look dead.
--
-- ARGV[2]: worker; ARGV[3]: how long it lives from now (s). Answers 1, or 0 where its heartbeat had run out
-- before, and how many holds were found lost.
-- include: holds.lua
-- include: operations.lua
local LOST_AT_ONCE, PRUNED_AT_ONCE, DAY_S = 2000, 1000, 86400
local worker, ttl_s = ARGV[2], tonumber(ARGV[3])

local function due(list, before_s, most)
    return redis.call('ZRANGEBYSCORE', P .. list, '-inf', seconds(before_s), 'LIMIT', 0, most)
end

local known = tonumber(redis.call('ZSCORE', P .. 'workers', worker))
local is_living = not redis.call('ZSCORE', P .. 'buried', worker) and (not known or known > now)
if is_living then
    redis.call('ZADD', P .. 'workers', seconds(now + ttl_s), worker)
end

local left, lost = LOST_AT_ONCE, 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', now_text)) do
    redis.call('ZADD', P .. 'buried', 'NX', now_text, name)
    local calls = left > 0 and redis.call('SPOP', P .. 'w:' .. name, left) or {}
    for _, call_id in ipairs(calls) do
        local hold = find_hold(call_id)
        if hold and (hold.state == 'held' or hold.state == 'expired') then
            fade(hold, 'lost')
            lost = lost + 1
        end
    end
    left = left - #calls
    redis.call('HDEL', P .. 'drawn', name)
    if left > 0 then
        redis.call('ZREM', P .. 'workers', name)
    else
        redis.call('ZADD', P .. 'workers', 0, name)
    end
end
redis.call('ZREMRANGEBYSCORE', P .. 'buried', '-inf', seconds(now - COUNTER_S))

for _, call_id in ipairs(due('fading', now, PRUNED_AT_ONCE)) do
    local hold = find_hold(call_id)
    if hold then
        drop(hold)
    end
    redis.call('ZREM', P .. 'fading', call_id)
end
for _, call_id in ipairs(due('operations', now - COUNTER_S, PRUNED_AT_ONCE)) do
    forget_operation(call_id)
end
for _, counter in ipairs(due('ending', now, PRUNED_AT_ONCE)) do
    local key = P .. 'c:' .. counter
    if (tonumber(redis.call('HGET', key, 'h')) or 0) ~= 0 then
        redis.call('ZADD', P .. 'ending', seconds(now + DAY_S), counter) -- some call still holds there
    else
        redis.call('DEL', key, P .. 'p:' .. counter)
        redis.call('ZREM', P .. 'ending', counter)
        redis.call('SREM', P .. 'credits', counter)
    end
end
return { is_living and 1 or 0, lost }
