#!lua
-- The call goes on elsewhere: its hold depends on no worker from now on.
--
-- Invariant: a call has at most one operation and a key belongs to at most one; what is over, or was deferred before,
-- stays as it is; a hold that does not count any more is not revived.
--
-- ARGV[2]: call, key, tenant, when it is overdue, payload. Answers 1, or 0 where another call's operation has the key.
-- include: holds.lua
local call_id, key, tenant, until_s, payload = unpack(cmsgpack.unpack(ARGV[2]))

local hold = find_hold(call_id)
if hold and hold.state == 'released' or redis.call('EXISTS', P .. 'd:' .. call_id, P .. 'op:' .. call_id) > 0 then
    return 1
end
if redis.call('HEXISTS', P .. 'op_keys', key) == 1 then
    return 0
end
local due = seconds(until_s)
redis.call('HSET', P .. 'op:' .. call_id, 'key', key, 'tenant', tenant, 'until', due, 'payload', payload)
redis.call('HSET', P .. 'op_keys', key, call_id)
redis.call('ZADD', P .. 'operations', due, call_id)
if not hold then
    return 1
end
redis.call('HSET', P .. 'h:' .. call_id, 'o', 1)
if hold.state ~= 'held' then
    return 1
end
if not is_live(hold) then
    fade(hold, 'expired')
    return 1
end
lift(hold)
redis.call('SREM', P .. 'w:' .. hold.worker, call_id)
stand(hold.counters, ELSEWHERE, hold.nano_usd)
local deadline = seconds(until_s + OVERDUE_S)
redis.call('HSET', P .. 'h:' .. call_id, 'w', ELSEWHERE, 'u', deadline)
redis.call('ZADD', P .. 'deadlines', deadline, call_id)
return 1
