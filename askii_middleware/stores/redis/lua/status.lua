#!lua flags=no-writes
-- The lines that bind a call with these matches, now. Changes nothing.
--
-- ARGV[2]: version of the budgets, windows, plans. Answers with the packed states, or { what is wrong, ... }.
-- include: holds.lua
-- include: lines.lua
-- include: decide.lua
local budgets_version, windows, plans = unpack(cmsgpack.unpack(ARGV[2]))
if budgets_version ~= (tonumber(redis.call('HGET', P .. 'meta', 'budgets_version')) or 0) then
    return { 'stale' }
end
local read = reader(lapsed_holds())
local lines = new_lines(plans, picker(windows, now), read)
if not lines then
    return { 'window', now_text }
end
return cmsgpack.pack(all_told(look(lines, read)))
