#!lua flags=no-writes
-- A scope's aggregates of whole days, as they are stored. ARGV[2...]: scope, first and last day.
-- include: start.lua
local found = {}
for _, day in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ad:' .. ARGV[2], ARGV[3], ARGV[4])) do
    found[#found + 1] = redis.call('HGETALL', P .. 'a:' .. day .. ':' .. ARGV[2])
end
return found
