-- All alerts up to a number are done with. ARGV[2...]: channel, token, number. Answers with 1, 0 where the token is void,
-- nil where there is no such channel. Invariant: a position never goes back, nor beyond the last alert.
-- include: start.lua
local key, through = P .. 'n:' .. ARGV[2], tonumber(ARGV[4])
local position, token = unpack(redis.call('HMGET', key, 'p', 't'))
if not position then
    return false
end
if token ~= ARGV[3] then
    return 0
end
local last = tonumber(redis.call('HGET', P .. 'meta', 'alert_seq')) or 0
redis.call('HSET', key, 'p', whole(math.max(tonumber(position), math.min(through, last))))
return 1
