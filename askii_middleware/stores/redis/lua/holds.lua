-- include: start.lua
-- Counters, holds and the heartbeats of workers.
--
-- Invariants. `c:<counter>`: `h` is the sum of `h:<worker>` over all workers, and each of these the sum of that worker's
-- holds in state `held` on this counter; `k` is the sum of all credit that is granted and not used. `deadlines` has every
-- hold in state `held`, with its deadline; `fading` every other one, with the end of its memory; `lost` those in state
-- `lost`; `w:<worker>` the holds that end with it. A counter is in `ending` for as long as it exists, and so is a shared
-- counter with places (`p:<counter>`): keys expire by themselves only long after these lists have dropped them.
local MARKER_S, COUNTER_S, OVERDUE_S = 86400, 691200, 3600
local ELSEWHERE = '~elsewhere' -- holds for operations, sends no heartbeats and never dies
local FOREVER_S = 100000000000

local alive_until = {}
local function is_alive(worker)
    if worker == ELSEWHERE then
        return true
    end
    local until_s = alive_until[worker]
    if not until_s then
        until_s = tonumber(redis.call('ZSCORE', P .. 'workers', worker)) or 0
        alive_until[worker] = until_s
    end
    return until_s > now
end

local function find_hold(call_id)
    local found = redis.call('HMGET', P .. 'h:' .. call_id, 's', 'u', 'w', 'n', 'c', 'k', 'a', 'q', 'o')
    if not found[1] then
        return nil
    end
    return {
        id = call_id,
        state = found[1],
        until_s = tonumber(found[2]),
        worker = found[3],
        nano_usd = tonumber(found[4]),
        counters = cmsgpack.unpack(found[5]),
        candidate = found[6],
        admitted_at = found[7],
        sequence = tonumber(found[8]),
        goes_on = found[9] and true, -- it has, had, or may have an operation
    }
end

local function is_live(hold)
    return hold.state == 'held' and hold.until_s > now and is_alive(hold.worker)
end

-- The holds that a living worker let run past their deadline.
local function lapsed_holds()
    local found = {}
    for _, call_id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', now_text)) do
        local hold = find_hold(call_id)
        if hold and is_alive(hold.worker) then
            found[#found + 1] = hold
        end
    end
    return found
end

-- Reads counters as if the holds in `away` were not there: an array of spent, held, and whether there is such a
-- counter. The holds of dead workers that are not buried yet do not count.
local function reader(away)
    local dead, gone, known = redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', now_text), {}, {}
    for n, worker in ipairs(dead) do
        dead[n] = 'h:' .. worker
    end
    for _, hold in ipairs(away) do
        for _, counter in ipairs(hold.counters) do
            gone[counter[1]] = (gone[counter[1]] or 0) + hold.nano_usd
        end
    end
    return function(counter)
        local amounts = known[counter]
        if not amounts then
            local found = redis.call('HMGET', P .. 'c:' .. counter, 's', 'h', 'k', 'e', unpack(dead))
            local held = (tonumber(found[2]) or 0) + (tonumber(found[3]) or 0) - (gone[counter] or 0)
            for n = 5, #dead + 4 do
                held = held - (tonumber(found[n]) or 0)
            end
            amounts = { tonumber(found[1]) or 0, held, found[4] }
            known[counter] = amounts
        end
        return amounts
    end
end

-- From now on there is this counter. The memory it takes is bounded twice: heartbeats prune it by the ledger's clock,
-- and where no worker lives any more it expires.
local function begin(counter, end_s)
    local key = P .. 'c:' .. counter
    if redis.call('HSETNX', key, 'e', whole(end_s)) == 1 then
        redis.call('ZADD', P .. 'ending', whole(end_s + COUNTER_S), counter)
        if end_s < FOREVER_S then
            local ttl_ms = math.max(end_s - now, 0) * 1000 + COUNTER_S * 1000
            redis.call('PEXPIRE', key, whole(ttl_ms))
        end
    end
end

-- Hold so much more on these counters.
local function stand(counters, worker, nano_usd)
    if nano_usd == 0 then
        return
    end
    local more, field = whole(nano_usd), 'h:' .. worker
    for _, counter in ipairs(counters) do
        local key = P .. 'c:' .. counter[1]
        if redis.call('HINCRBY', key, field, more) == nano_usd then
            begin(counter[1], counter[2])
        end
        redis.call('HINCRBY', key, 'h', more)
    end
end

-- Take a hold off its counters, if it still stands there.
local function lift(hold)
    if hold.state ~= 'held' or hold.nano_usd == 0 then
        return
    end
    local less, field = whole(-hold.nano_usd), 'h:' .. hold.worker
    for _, counter in ipairs(hold.counters) do
        local key = P .. 'c:' .. counter[1]
        local left = redis.call('HINCRBY', key, field, less)
        if left <= 0 then
            redis.call('HDEL', key, field)
        end
        if left >= 0 then -- else the counter had ended before its hold
            redis.call('HINCRBY', key, 'h', less)
        end
    end
end

-- Write a new hold, whose amount stands on its counters already. `answer` is what its call was told; `goes_on`: it was
-- deferred before it had a hold.
local function place(call_id, worker, nano_usd, counters, candidate, admitted_at, until_s, answer, about, goes_on)
    local deadline = seconds(until_s)
    local key = P .. 'h:' .. call_id
    local packed = cmsgpack.pack(counters)
    redis.call(
        'HSET', key, 's', 'held', 'u', deadline, 'w', worker, 'n', whole(nano_usd), 'c', packed,
        'k', candidate, 'a', admitted_at, 'q', '0', 'r', answer, 'b', about
    )
    if goes_on then
        redis.call('HSET', key, 'o', 1)
    end
    redis.call('ZADD', P .. 'deadlines', deadline, call_id)
    redis.call('SADD', P .. 'w:' .. worker, call_id)
end

-- A hold counts no more, but stays known. To be asked only for one that is not released already.
local function fade(hold, state)
    lift(hold)
    if hold.state == 'held' then
        redis.call('ZREM', P .. 'deadlines', hold.id)
    end
    local until_s = seconds(now + (state == 'released' and MARKER_S or COUNTER_S))
    redis.call('HSET', P .. 'h:' .. hold.id, 's', state, 'u', until_s)
    redis.call('ZADD', P .. 'fading', until_s, hold.id)
    if state == 'lost' then
        redis.call('SADD', P .. 'lost', hold.id)
    elseif hold.state == 'lost' then
        redis.call('SREM', P .. 'lost', hold.id)
    end
    if state == 'released' then
        redis.call('SREM', P .. 'w:' .. hold.worker, hold.id)
    end
end

-- Nothing is left of a hold, wherever it stood.
local function drop(hold)
    lift(hold)
    redis.call('DEL', P .. 'h:' .. hold.id)
    redis.call('SREM', P .. 'w:' .. hold.worker, hold.id)
    redis.call('ZREM', P .. (hold.state == 'held' and 'deadlines' or 'fading'), hold.id)
    if hold.state == 'lost' then
        redis.call('SREM', P .. 'lost', hold.id)
    end
end
