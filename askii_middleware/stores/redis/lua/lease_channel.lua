-- Take, renew or give back the right to deliver to a channel. ARGV[2...]: channel, owner, ttl_s. Answers with the token,
-- 0 where the lease is another's or was given back, nil where there is no such channel.
-- include: start.lua
local key, owner, ttl_s = P .. 'n:' .. ARGV[2], ARGV[3], tonumber(ARGV[4])
local until_s, token, holder = unpack(redis.call('HMGET', key, 'u', 't', 'o'))
if not token then
    return false
end
if holder ~= owner then
    if ttl_s <= 0 or (holder and tonumber(until_s) > now) then
        return 0
    end
    token = redis.call('HINCRBY', key, 't', 1)
end
redis.call('HSET', key, 'u', seconds(now + ttl_s), 'o', owner)
return ttl_s > 0 and tonumber(token) or 0
