-- include: coins.lua
-- Sums by hour and by day, of each scope, model and provider.
--
-- Invariants. `a:<day>:<scope>` has what a scope came to on a day: requests, input tokens, output tokens and nano-USD, in
-- decimal, in the fields `h<hour>:<place>`, and what these sum up to by six hours (UTC) in `q<0 to 3>:<place>` and for the
-- day in `d<place>`; a place is `<length of model>:<model><provider>`, and `p` lists those of the day. `ad:<scope>` has the days. Of scopes that end in
-- a value, `t:d<day>:<what stands before the value>` has the negative cost on the day (so that the highest come first and
-- equal ones by name), and of those that are a tenant and nothing else `t:h<hour>` has it by hour. `tp:<day>` lists what
-- stands before values. All of it expires.
local AGGREGATES_S = 400 * 86400
local TENANTS = 'tenant='

-- All of a scope but its last value; nil: it does not end in one.
local function prefix_of(scope)
    return string.match(scope, '^(.*=)[^=]*$')
end

-- The first row of a place on a day, or in an hour of it.
local function enter(scope, prefix, hour, day, place, is_first_of_day)
    local ttl = whole(math.max((day + 1) * 86400 - now, 0) + AGGREGATES_S)
    if prefix == TENANTS then
        redis.call('EXPIRE', P .. 't:h' .. hour, ttl)
    end
    if not is_first_of_day then
        return
    end
    local key, days = P .. 'a:' .. day .. ':' .. scope, P .. 'ad:' .. scope
    local places = redis.call('HGET', key, 'p')
    places = places and cmsgpack.unpack(places) or {}
    places[#places + 1] = place
    redis.call('HSET', key, 'p', cmsgpack.pack(places))
    redis.call('EXPIRE', key, ttl)
    redis.call('ZADD', days, day, day)
    redis.call('ZREMRANGEBYSCORE', days, '-inf', '(' .. whole(now / 86400 - 402))
    redis.call('EXPIRE', days, ttl)
    if prefix then
        redis.call('EXPIRE', P .. 't:d' .. day .. ':' .. prefix, ttl)
        redis.call('SADD', P .. 'tp:' .. day, prefix)
        redis.call('EXPIRE', P .. 'tp:' .. day, ttl)
    end
end

local function rank(scope, prefix, hour, day, cost)
    if prefix then
        redis.call('ZINCRBY', P .. 't:d' .. day .. ':' .. prefix, whole(-cost), scope)
    end
    if prefix == TENANTS then
        redis.call('ZINCRBY', P .. 't:h' .. hour, whole(-cost), scope)
    end
end

local function fields_of(hour, place)
    return 'h' .. hour .. ':' .. place, 'q' .. math.floor(hour % 24 / 6) .. ':' .. place, 'd' .. place
end

local function amounts_of(text)
    return { string.match(text, '^(%S+) (%S+) (%S+) (%S+)$') }
end

-- The sum of two such texts, of which the first may be missing.
local function joined_amounts(one, other)
    if not one then
        return other
    end
    one, other = amounts_of(one), amounts_of(other)
    for kind = 1, 4 do
        one[kind] = sum_of(one[kind], other[kind], 0)
    end
    return table.concat(one, ' ')
end

-- Add what a place of a scope came to in an hour, when there is time: a copy of the ledger, or an erasure.
local function book(scope, hour, day, place, amounts)
    local key, prefix = P .. 'a:' .. day .. ':' .. scope, prefix_of(scope)
    local of_hour, of_quarter, of_day = fields_of(hour, place)
    local known = redis.call('HMGET', key, of_hour, of_quarter, of_day)
    redis.call(
        'HSET', key, of_hour, joined_amounts(known[1], amounts), of_quarter, joined_amounts(known[2], amounts),
        of_day, joined_amounts(known[3], amounts)
    )
    rank(scope, prefix, hour, day, tonumber(amounts_of(amounts)[4]))
    if not known[1] then
        enter(scope, prefix, hour, day, place, not known[3])
    end
end

-- Drop what a scope came to on a day, adding it to another scope unless that is empty. How many rows there were.
local function take_day(scope, day, to)
    local key, prefix, count = P .. 'a:' .. day .. ':' .. scope, prefix_of(scope), 0
    local flat = redis.call('HGETALL', key)
    for n = 1, #flat, 2 do
        local hour, place = string.match(flat[n], '^h(%d+):(.*)$')
        if hour then
            count = count + 1
            if to ~= '' then
                book(to, hour, day, place, flat[n + 1])
            end
            if prefix == TENANTS then
                redis.call('ZREM', P .. 't:h' .. hour, scope)
            end
        end
    end
    redis.call('UNLINK', key)
    redis.call('ZREM', P .. 'ad:' .. scope, day)
    if prefix then
        redis.call('ZREM', P .. 't:d' .. day .. ':' .. prefix, scope)
    end
    return count
end
