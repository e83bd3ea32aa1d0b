-- include: start.lua
-- Named values of some kind. Invariants: `items:<kind>` has what was stored and whose time has not come, `item_ends` the
-- times of those that have one, and `item_versions` grows with every change, the end of a value's time included.
local function end_of(kind, name)
    return string.format('%d:%s%s', #kind, kind, name)
end

local function changed(kind)
    redis.call('HINCRBY', P .. 'item_versions', kind, 1)
end

-- What every script on values begins with.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'item_ends', '-inf', now_text)) do
    local length, rest = string.match(member, '^(%d+):(.*)$')
    local kind = string.sub(rest, 1, tonumber(length))
    redis.call('HDEL', P .. 'items:' .. kind, string.sub(rest, tonumber(length) + 1))
    redis.call('ZREM', P .. 'item_ends', member)
    changed(kind)
end
