-- include: start.lua
-- What a settlement leaves: its record, its sums, and the alerts it set off.
--
-- Invariants. A partition's stream `o:<p>` holds entries `<seq>-0` whose numbers have no gaps; meta `o<p>` is its last
-- one, meta `seq` the number of all records ever written, and meta `records_nano_usd` the sum of what they say they
-- cost. `records` leads from a call to its entry, for as long as that is kept. Meta `calls` and `cost_nano_usd` sum up
-- all aggregates of tenants ever written, also those that have expired.
local AGGREGATES_S = 400 * 86400
local MOST_SUMMED = 4611686018427387904 -- half of what HINCRBY holds
local COUNTS = { 'r', 'i', 'o', 'c' }

-- The record comes complete. Answers with its number in its partition.
local function append_record(P, now, call_id, tenant, partition, record)
    local meta = P .. 'meta'
    local seq = redis.call('HINCRBY', meta, 'o' .. partition, 1)
    local number = redis.call('HINCRBY', meta, 'seq', 1)
    redis.call(
        'XADD', P .. 'o:' .. partition, whole(seq) .. '-0',
        'c', call_id, 't', tenant, 'r', record, 'n', whole(number), 's', seconds(now)
    )
    redis.call('HSET', P .. 'records', call_id, partition .. ':' .. whole(seq))
    -- The last one is the record's own: metadata comes before it, and text cannot have a bare quote.
    local cost = string.match(record, '.*"cost_nano_usd":(-?%d+)')
    if cost then
        redis.call('HINCRBY', meta, 'records_nano_usd', cost)
    end
    return seq
end

-- `<kind><hour>:<length of model>:<model><provider>`: whatever the names are made of, they can be told apart.
local function aggregate_place(P, hour, row)
    local day = math.floor(hour / 24)
    return P .. 'a:' .. whole(day) .. ':' .. row[1], whole(hour) .. ':' .. #row[2] .. ':' .. row[2] .. row[3], day
end

-- What of these rows no sum can hold, else nil. Changes nothing.
local function check_aggregates(P, hour, rows)
    for _, row in ipairs(rows) do
        local key, place = aggregate_place(P, hour, row)
        for n, kind in ipairs(COUNTS) do
            local more = tonumber(row[n + 3])
            local known = tonumber(redis.call('HGET', key, kind .. place)) or 0
            if math.abs(more) > MAX or math.abs(known + more) > MOST_SUMMED then
                return row[1]
            end
        end
    end
    return nil
end

-- Rows are arrays of scope, model, provider, requests, input tokens, output tokens, nano-USD.
local function add_aggregates(P, hour, rows)
    for _, row in ipairs(rows) do
        local scope = row[1]
        local key, place, day = aggregate_place(P, hour, row)
        local cost = whole(tonumber(row[7]))
        local fresh = redis.call('HEXISTS', key, 'r' .. place) == 0
        for n, kind in ipairs(COUNTS) do
            redis.call('HINCRBY', key, kind .. place, whole(tonumber(row[n + 3])))
        end
        local is_tenant = string.sub(scope, 1, 7) == 'tenant=' and not string.find(scope, ',', 1, true)
        local of_hour, of_day = P .. 't:h' .. whole(hour), P .. 't:d' .. whole(day)
        if is_tenant then
            -- Negative, so that the highest come first and equal ones by name.
            redis.call('ZINCRBY', of_hour, whole(-tonumber(row[7])), scope)
            redis.call('ZINCRBY', of_day, whole(-tonumber(row[7])), scope)
            redis.call('HINCRBY', P .. 'meta', 'calls', whole(tonumber(row[4])))
            redis.call('HINCRBY', P .. 'meta', 'cost_nano_usd', cost)
        end
        if fresh then
            local ttl = whole(math.max((day + 1) * 86400 - now, 0) + AGGREGATES_S)
            local days = P .. 'ad:' .. scope
            redis.call('ZADD', days, whole(day), whole(day))
            redis.call('ZREMRANGEBYSCORE', days, '-inf', '(' .. whole(now / 86400 - 402))
            for _, name in ipairs({ key, days, is_tenant and of_hour, is_tenant and of_day }) do
                if name then
                    redis.call('EXPIRE', name, ttl)
                end
            end
        end
    end
end

-- Alerts are arrays of id, end of the window, and the alert as JSON without its number. Those that are new get one.
local function write_alerts(P, alerts)
    for _, alert in ipairs(alerts) do
        local id = alert[1]
        if redis.call('HSETNX', P .. 'alert_ids', id, '') == 1 then
            local seq = whole(redis.call('HINCRBY', P .. 'meta', 'alert_seq', 1))
            redis.call('XADD', P .. 'alerts', seq .. '-0', 'b', alert[3], 'i', id)
            redis.call('ZADD', P .. 'alert_ends', whole(tonumber(alert[2])), seq)
        end
    end
end
