#!lua flags=no-writes
-- The operations whose time is up, at most ARGV[2], the longest overdue first.
-- include: start.lua
-- include: operations.lua
local found = {}
local due = redis.call('ZRANGEBYSCORE', P .. 'operations', '-inf', now_text, 'LIMIT', 0, ARGV[2])
for n, call_id in ipairs(due) do
    found[n] = find_operation(call_id)
end
return found
