-- include: start.lua
-- What a settlement leaves: its record, its sums, and the alerts it set off.
--
-- Invariants. A partition's stream `o:<p>` holds entries `<seq>-0` whose numbers have no gaps, but for those a copy of the
-- ledger leaves where entries were set aside for longer than others are kept; meta `o<p>` is its last one, meta `seq` the
-- number of all records ever written, and meta `records_nano_usd` the sum of what they say they cost. `records` leads
-- from a call to its entry, for as long as that is kept. Meta `calls` and `cost_nano_usd` sum up all aggregates of tenants
-- ever written, also those that have expired. Sums beyond MAX are left to HINCRBY, which is exact up to 2^63.
local AGGREGATES_S = 400 * 86400
local MOST_SUMMED = 4611686018427387904 -- half of what HINCRBY holds

-- What rows of aggregates (scope, `<hour>:<length of model>:<model><provider>`, requests, input tokens, output tokens,
-- nano-USD; no two of the same names) come to, for `write_aggregates`; or nil and the scope whose sums nothing can hold. Changes nothing.
local function sum_up(hour, day, rows)
    local sums = { calls = 0, cost = 0 }
    for n, row in ipairs(rows) do
        local scope, place, key = row[1], row[2], P .. 'a:' .. day .. ':' .. row[1]
        local fields = { 'r' .. place, 'i' .. place, 'o' .. place, 'c' .. place }
        local known, after, is_exact = redis.call('HMGET', key, unpack(fields)), {}, true
        for kind = 1, 4 do
            local more, before = row[kind + 2], tonumber(known[kind]) or 0
            local sum = before + more
            if more > MAX or more < -MAX or sum > MOST_SUMMED or sum < -MOST_SUMMED then
                return nil, scope
            end
            is_exact = is_exact and before <= MAX and before >= -MAX and sum <= MAX and sum >= -MAX
            after[kind] = sum
        end
        local is_tenant = string.sub(scope, 1, 7) == 'tenant=' and not string.find(scope, ',', 1, true)
        if is_tenant then
            sums.calls, sums.cost = sums.calls + row[3], sums.cost + row[6]
        end
        sums[n] = { key, fields, is_exact and after, not known[1], is_tenant }
    end
    return sums
end

local function write_aggregates(hour, day, rows, sums)
    for n, row in ipairs(rows) do
        local scope = row[1]
        local key, fields, after, is_new, is_tenant = unpack(sums[n])
        if after then
            redis.call(
                'HSET', key, fields[1], whole(after[1]), fields[2], whole(after[2]),
                fields[3], whole(after[3]), fields[4], whole(after[4])
            )
        else
            for kind, field in ipairs(fields) do
                redis.call('HINCRBY', key, field, whole(row[kind + 2]))
            end
        end
        local of_hour, of_day = P .. 't:h' .. hour, P .. 't:d' .. day
        if is_tenant then
            -- Negative, so that the highest come first and equal ones by name.
            local less = whole(-row[6])
            redis.call('ZINCRBY', of_hour, less, scope)
            redis.call('ZINCRBY', of_day, less, scope)
        end
        if is_new then
            local ttl = whole(math.max((day + 1) * 86400 - now, 0) + AGGREGATES_S)
            local days = P .. 'ad:' .. scope
            redis.call('ZADD', days, day, day)
            redis.call('ZREMRANGEBYSCORE', days, '-inf', '(' .. whole(now / 86400 - 402))
            for _, name in ipairs({ key, days, is_tenant and of_hour or nil, is_tenant and of_day or nil }) do
                redis.call('EXPIRE', name, ttl)
            end
        end
    end
end

-- Write a record, which comes complete, with what it says it cost, and count what `sums` comes to. `last` is what stood
-- in meta: `o<p>`, `seq`, `calls`, `cost_nano_usd` and `records_nano_usd`.
local function write_record(call_id, tenant, partition, record, cost, sums, last)
    local meta, place, number = P .. 'meta', whole((tonumber(last[1]) or 0) + 1), whole((tonumber(last[2]) or 0) + 1)
    local calls, charged, told = tonumber(last[3]) or 0, tonumber(last[4]) or 0, tonumber(last[5]) or 0
    local most = math.max(math.abs(charged), math.abs(told)) + math.max(math.abs(sums.cost), math.abs(cost))
    if most <= MAX then
        redis.call(
            'HSET', meta, 'o' .. partition, place, 'seq', number, 'calls', whole(calls + sums.calls),
            'cost_nano_usd', whole(charged + sums.cost), 'records_nano_usd', whole(told + cost)
        )
    else
        redis.call('HSET', meta, 'o' .. partition, place, 'seq', number)
        redis.call('HINCRBY', meta, 'calls', whole(sums.calls))
        redis.call('HINCRBY', meta, 'cost_nano_usd', whole(sums.cost))
        redis.call('HINCRBY', meta, 'records_nano_usd', whole(cost))
    end
    redis.call(
        'XADD', P .. 'o:' .. partition, place .. '-0',
        'c', call_id, 't', tenant, 'r', record, 'n', number, 's', now_text
    )
    redis.call('HSET', P .. 'records', call_id, partition .. ':' .. place)
end
