#!lua flags=no-writes
-- The lines that bind each of several calls with these matches, now. Changes nothing.
--
-- ARGV[2]: version of the budgets, windows, plans, and for each call the numbers of its plans. Answers with the packed
-- states of each call, or { what is wrong, ... }.
-- include: holds.lua
-- include: lines.lua
-- include: decide.lua
local budgets_version, windows, plans, asked = unpack(cmsgpack.unpack(ARGV[2]))
if budgets_version ~= (tonumber(redis.call('HGET', P .. 'meta', 'budgets_version')) or 0) then
    return { 'stale' }
end
local read, pick, answers = reader(lapsed_holds()), picker(windows, now), {}
for n, numbers in ipairs(asked) do
    local own = {}
    for place, number in ipairs(numbers) do
        own[place] = plans[number]
    end
    local lines = new_lines(own, pick, read)
    if not lines then
        return { 'window', now_text }
    end
    answers[n] = all_told(look(lines, read))
end
return cmsgpack.pack(answers)
