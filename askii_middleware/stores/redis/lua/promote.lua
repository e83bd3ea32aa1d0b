#!lua
-- Turn credit of a worker into a hold of one of its calls.
--
-- Invariant: on every counter that can refuse, the hold comes out of the credit, so that what is held in all stays the
-- same; all checks come before the first write; a call with a hold or a marker stays as it is.
--
-- ARGV[2]: call, holder, counters (key, window end), hold, life (s), about, packed answer, candidate, moment of admission,
-- counters that owe credit, counters that need none. Answers 1, or { what is wrong, ... }.
-- include: holds.lua
-- include: credits.lua
local call_id, holder, counters, hold, life_s, about, answer, candidate, admitted_at, owed, free =
    unpack(cmsgpack.unpack(ARGV[2]))

-- One command for nearly all calls, which are new.
local is_known = redis.call('EXISTS', P .. 'h:' .. call_id, P .. 'd:' .. call_id, P .. 'op:' .. call_id) > 0
if is_known and redis.call('EXISTS', P .. 'h:' .. call_id, P .. 'd:' .. call_id) > 0 then
    return 1
end
if not is_alive(holder) then
    return { 'dead' }
end
if hold < 0 or hold > MAX then
    return { 'unwritable', 'a hold' }
end
for _, counter in ipairs(owed) do
    local left = credit_of(counter, holder)
    if left < hold then
        return { 'credit', counter, whole(left) }
    end
end
local read = reader(lapsed_holds())
for _, counter in ipairs(free) do
    local amounts = read(counter)
    if amounts[1] + amounts[2] + hold > MAX then
        return { 'unwritable', counter }
    end
end

for _, counter in ipairs(owed) do
    take_credit(counter, holder, hold)
end
stand(counters, holder, hold)
place(call_id, holder, hold, counters, whole(candidate), seconds(admitted_at), now + life_s, answer, about, is_known)
return 1
