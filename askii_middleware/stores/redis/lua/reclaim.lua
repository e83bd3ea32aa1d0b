#!lua
-- Take back the credit of workers whose heartbeat has run out. Invariant: a living worker's credit stays.
--
-- ARGV[2]: the scope whose counters to look at, or none for all. Answers with rows as credits_list.lua, as they were.
-- include: holds.lua
-- include: credits.lua
local found = {}
for _, counter in ipairs(redis.call('SMEMBERS', P .. 'credits')) do
    local scope = string.match(counter, '^(.*)|[^|]*|[^|]*|[^|]*$')
    for _, row in ipairs((not ARGV[2] or scope == ARGV[2]) and credits_on(counter) or {}) do
        if row[5] == 0 then
            found[#found + 1] = row
            redis.call('HDEL', P .. 'c:' .. counter, 'g:' .. row[2], 'u:' .. row[2])
            add_left(counter, row[4] - row[3])
        end
    end
end
return found
