#!lua flags=no-writes
-- Calls, their cost, records, their cost, what is held, lost holds.
-- include: holds.lua
-- The sum of what live holds come to, in decimal because it may be more than a number holds, and how many were lost.
local function held_and_lost()
    local billions, units, billion = 0, 0, 1000000000
    for _, call_id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '(' .. now_text, '+inf')) do
        local found = redis.call('HMGET', P .. 'h:' .. call_id, 'w', 'n')
        if is_alive(found[1]) then
            local rest = math.fmod(found[2], billion)
            billions, units = billions + (found[2] - rest) / billion, units + rest
        end
    end
    local rest = math.fmod(units, billion)
    billions = billions + (units - rest) / billion
    local held = billions == 0 and whole(rest) or whole(billions) .. string.format('%09.0f', rest)
    return held, redis.call('SCARD', P .. 'lost')
end

local found = redis.call('HMGET', P .. 'meta', 'calls', 'cost_nano_usd', 'seq', 'records_nano_usd')
local held, lost = held_and_lost()
return { found[1] or '0', found[2] or '0', found[3] or '0', found[4] or '0', held, whole(lost) }
