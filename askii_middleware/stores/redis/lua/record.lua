-- include: start.lua
-- include: sums.lua
-- What a settlement leaves: its record, its sums, and the alerts it set off.
--
-- Invariants. A partition's stream `o:<p>` holds entries `<seq>-0` whose numbers have no gaps, but for those a copy of the
-- ledger leaves where entries were set aside for longer than others are kept; meta `o<p>` is its last one, meta `seq` the
-- number of all records ever written, and meta `records_nano_usd` the sum of what they say they cost. `records` leads
-- from a call to its entry, for as long as that is kept. Meta `calls` and `cost_nano_usd` sum up all aggregates of tenants
-- ever written, also those that have expired. Sums beyond MAX are left to HINCRBY, which is exact up to 2^63. `l:<tenant>`
-- leads to the newest records.
local MOST_SUMMED = 4611686018427387904 -- half of what other engines hold
local HALF = 4503599627370495 -- of two such numbers, each and their sum are exact
local LISTED, LISTED_S = 100, 8 * 86400

-- Four amounts in decimal with those of a row added, or nil where nothing could hold them.
local function added(text, row)
    if not text then
        text = '0 0 0 0'
    end
    local one, two, three, four = string.match(text, '^(%S+) (%S+) (%S+) (%S+)$')
    local a, b, c, d = one + row[3], two + row[4], three + row[5], four + row[6]
    if
        row.is_small and a <= HALF and b <= HALF and c <= HALF and d <= HALF
        and a >= -HALF and b >= -HALF and c >= -HALF and d >= -HALF
    then
        return string.format('%.0f %.0f %.0f %.0f', a, b, c, d)
    end
    local known, sums = { one, two, three, four }, { a, b, c, d }
    for kind = 1, 4 do
        local more = row[kind + 2]
        if more > MAX or more < -MAX or sums[kind] > MOST_SUMMED or sums[kind] < -MOST_SUMMED then
            return nil
        end
        known[kind] = sum_of(known[kind], whole(more), 0)
    end
    return table.concat(known, ' ')
end

-- What rows of aggregates (scope, place, requests, input tokens, output tokens, nano-USD; no two of the same scope and
-- place) come to, for `write_aggregates`; or nil and the scope whose sums nothing can hold. Changes nothing.
local function sum_up(hour, day, rows)
    local sums = { calls = 0, cost = 0 }
    for n, row in ipairs(rows) do
        local scope, place = row[1], row[2]
        row.is_small = true
        for kind = 3, 6 do
            row.is_small = row.is_small and row[kind] <= HALF and row[kind] >= -HALF
        end
        local key, of_hour, of_quarter, of_day = P .. 'a:' .. day .. ':' .. scope, fields_of(hour, place)
        local known = redis.call('HMGET', key, of_hour, of_quarter, of_day)
        local hours, quarters, days = added(known[1], row), added(known[2], row), added(known[3], row)
        if not hours or not quarters or not days then
            return nil, scope
        end
        local prefix = prefix_of(scope)
        if prefix == TENANTS then
            sums.calls, sums.cost = sums.calls + row[3], sums.cost + row[6]
        end
        sums[n] = {
            prefix, not known[1], not known[3], 'HSET', key, of_hour, hours, of_quarter, quarters, of_day, days,
        }
    end
    return sums
end

local function write_aggregates(hour, day, rows, sums)
    for n, row in ipairs(rows) do
        local sum = sums[n]
        redis.call(unpack(sum, 4, 11))
        rank(row[1], sum[1], hour, day, row[6])
        if sum[2] then
            enter(row[1], sum[1], hour, day, row[2], sum[3])
        end
    end
end

-- A tenant's newest records, by partition, place and number. A longer list than is promised is cut now and then.
local function list_record(tenant, partition, place, number)
    local key = P .. 'l:' .. tenant
    if redis.call('LPUSH', key, partition .. ':' .. place .. ':' .. number) > 2 * LISTED then
        redis.call('LTRIM', key, 0, LISTED - 1)
    end
    redis.call('EXPIRE', key, LISTED_S)
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
    list_record(tenant, partition, place, number)
end
