-- include: start.lua
-- Named values of some kind. Invariants: `items:<kind>` has what was stored and whose time has not come, `item_ends` the
-- times of those that have one, and `item_versions` grows with every change, the end of a value's time included. It follows
-- the clock as the versions of budgets do.
local function end_of(kind, name)
    return #kind .. ':' .. kind .. name -- `%s` would end at a NUL
end

local function changed(kind)
    local known = tonumber(redis.call('HGET', P .. 'item_versions', kind)) or 0
    redis.call('HSET', P .. 'item_versions', kind, whole(math.max(known + 1, math.floor(now * 1000))))
end

-- What every script on values begins with.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'item_ends', '-inf', now_text)) do
    local length, rest = string.match(member, '^(%d+):(.*)$')
    local kind = string.sub(rest, 1, tonumber(length))
    redis.call('HDEL', P .. 'items:' .. kind, string.sub(rest, tonumber(length) + 1))
    redis.call('ZREM', P .. 'item_ends', member)
    changed(kind)
end
