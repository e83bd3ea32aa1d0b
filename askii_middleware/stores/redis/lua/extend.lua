#!lua
-- Raise a call's hold on all its counters, or on none, as far as the present limits of the budgets it stands on have room.
--
-- Invariant: a sequence number no higher than the last one answered changes nothing; a hold that does not count any more
-- stays as it is; all checks come before the first write.
--
-- ARGV[2]: call, version of the budgets, sequence, target, least, plans. Answers with granted, hold, reason and
-- deciding state, packed, or { what is wrong, ... }.
-- include: holds.lua
-- include: lines.lua
-- include: decide.lua
local call_id, budgets_version, sequence, target, least, plans = unpack(cmsgpack.unpack(ARGV[2]))

local function answer(is_granted, hold, reason, line)
    return cmsgpack.pack({ is_granted, hold, reason, line and { told(line) } or {} })
end

local hold = find_hold(call_id)
if not hold or not is_live(hold) then
    return answer(false, 0, 'held')
end
if sequence <= hold.sequence then
    local is_enough = hold.nano_usd >= least
    return answer(is_enough, hold.nano_usd, is_enough and '' or 'held')
end
if target < 0 or target > MAX then
    return { 'unwritable', 'a hold' }
end
if budgets_version ~= (tonumber(redis.call('HGET', P .. 'meta', 'budgets_version')) or 0) then
    return { 'stale' }
end

local read = reader(lapsed_holds())
local more, enough = target - hold.nano_usd, math.min(least, target) - hold.nano_usd
local granted, told_now = 0, nil
if more > 0 then
    local lines = look(standing_lines(plans, hold.counters), read)
    granted = fitting(lines, more, math.max(enough, 0)) or (enough <= 0 and 0 or nil)
    if not granted then
        -- Once every running call costs nothing, this one too: then it needs room for the whole of it.
        local reached = hold.nano_usd + enough
        local line = deciding(lines, reached, nil, true)
        if line then
            told_now = answer(false, hold.nano_usd, 'spent', line)
        else
            told_now = answer(false, hold.nano_usd, 'held', deciding(lines, more, enough))
        end
        granted = 0
    end
end
if granted > 0 then
    for _, counter in ipairs(hold.counters) do
        local amounts = read(counter[1])
        if amounts[1] + amounts[2] + granted > MAX then
            return { 'unwritable', counter[1] }
        end
    end
    stand(hold.counters, hold.worker, granted)
end
local reached = hold.nano_usd + granted
redis.call('HSET', P .. 'h:' .. call_id, 'n', whole(reached), 'q', whole(sequence))
return told_now or answer(true, reached, '')
