-- include: start.lua
-- Add to fields of a hash that were read: names, what they had, and how much more. A sum that a Lua number may not hold
-- is left to the server, whose own is exact to 2^63.
local function add_up(key, names, known, more)
    local fresh = { key }
    for n, name in ipairs(names) do
        local before = tonumber(known[n]) or 0
        local after = before + more[n]
        if before > MAX or before < -MAX or after > MAX or after < -MAX then
            redis.call('HINCRBY', key, name, whole(more[n]))
        else
            fresh[#fresh + 1] = name
            fresh[#fresh + 1] = whole(after)
        end
    end
    if fresh[2] then
        redis.call('HSET', unpack(fresh))
    end
end
