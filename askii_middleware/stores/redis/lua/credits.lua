-- Credit in the hands of workers. Invariant: on each counter `g:<holder>` is what that worker was granted and `u:<holder>`
-- what it has used of it, never more; the counter's `k` is the sum of what is left to all of them; `credits` lists every
-- counter with credit that is not used up.

-- What is left to a holder on a counter, and what it was granted.
local function credit_of(counter, holder)
    local found = redis.call('HMGET', P .. 'c:' .. counter, 'g:' .. holder, 'u:' .. holder)
    local granted = tonumber(found[1]) or 0
    return granted - (tonumber(found[2]) or 0), granted
end

local function add_left(counter, nano_usd)
    local left = redis.call('HINCRBY', P .. 'c:' .. counter, 'k', whole(nano_usd))
    if left == 0 then
        redis.call('SREM', P .. 'credits', counter)
    elseif left == nano_usd then
        redis.call('SADD', P .. 'credits', counter)
    end
end

-- Forget what the dead have used up: a counter may have no end, and workers come and go.
local function forget_dead(counter)
    for _, field in ipairs(redis.call('HKEYS', P .. 'c:' .. counter)) do
        local holder = string.match(field, '^g:(.*)$')
        if holder and not is_alive(holder) and credit_of(counter, holder) == 0 then
            redis.call('HDEL', P .. 'c:' .. counter, field, 'u:' .. holder)
        end
    end
end

local function give_credit(counter, end_s, holder, nano_usd)
    begin(counter, end_s)
    if redis.call('HINCRBY', P .. 'c:' .. counter, 'g:' .. holder, whole(nano_usd)) == nano_usd then
        forget_dead(counter) -- as often as somebody comes
    end
    add_left(counter, nano_usd)
end

-- Take back what was granted and is left, or less.
local function take_credit(counter, holder, nano_usd)
    local taken = math.min(nano_usd, (credit_of(counter, holder)))
    if taken > 0 then
        redis.call('HINCRBY', P .. 'c:' .. counter, 'g:' .. holder, whole(-taken))
        add_left(counter, -taken)
    end
end

-- Use up so much, or what is left.
local function use_credit(counter, holder, nano_usd)
    local used = math.min(nano_usd, (credit_of(counter, holder)))
    if used > 0 then
        redis.call('HINCRBY', P .. 'c:' .. counter, 'u:' .. holder, whole(used))
        add_left(counter, -used)
    end
end

-- What is left to anybody on a counter: counter, holder, granted, used, whether the holder lives.
local function credits_on(counter)
    local fields, found = redis.call('HGETALL', P .. 'c:' .. counter), {}
    for n = 1, #fields, 2 do
        local holder = string.match(fields[n], '^g:(.*)$')
        local left, granted = 0, 0
        if holder then
            left, granted = credit_of(counter, holder)
        end
        if left > 0 then
            found[#found + 1] = { counter, holder, whole(granted), whole(granted - left), is_alive(holder) and 1 or 0 }
        end
    end
    return found
end
