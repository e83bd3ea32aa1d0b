#!lua flags=no-writes
-- All credit that is not used up: counter, holder, granted, used, whether the holder lives.
-- include: holds.lua
-- include: credits.lua
local found = {}
for _, counter in ipairs(redis.call('SMEMBERS', P .. 'credits')) do
    for _, row in ipairs(credits_on(counter)) do
        found[#found + 1] = row
    end
end
return found
