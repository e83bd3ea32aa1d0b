#!lua flags=no-writes
-- The next alerts for a channel. ARGV[2...]: channel, limit. Nil where there is no such channel.
-- include: start.lua
local position, limit = redis.call('HGET', P .. 'n:' .. ARGV[2], 'p'), tonumber(ARGV[3])
if not position then
    return false
end
return limit > 0 and redis.call('XRANGE', P .. 'alerts', '(' .. position .. '-0', '+', 'COUNT', limit) or {}
