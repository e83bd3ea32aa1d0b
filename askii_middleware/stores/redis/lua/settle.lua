#!lua
-- Replace holds by their charges and write records, aggregates, carries, alerts and outbox entries.
--
-- Invariants: a call is settled once, and its marker (`d:<call>`) comes with its charge; of each settlement all checks
-- come before its first write, so one that cannot be written changes nothing and keeps no other from being written; what
-- was held before is charged where it was held.
--
-- ARGV[2] and all further ones: call, moment of admission, cost, version of the budgets, subscription, whole coins (in
-- decimal), 10^-12 coin, tenant, partition, hour, aggregates, record, plans or nil, windows or nil, credit (holder,
-- counters) or nil. Answers for each, in order, up to the first that asks for more: { 'ok', coins, whether late } |
-- { 'done', marker } | { 'unwritable', why } | { 'stale' } | { 'plans' } | { 'window' }; after the last three nothing
-- more is settled.
-- include: holds.lua
-- include: operations.lua
-- include: lines.lua
-- include: coins.lua
-- include: credits.lua
-- include: digest.lua
-- include: record.lua
local MARKER_TTL_S = 90000
local PAUSES = { stale = true, plans = true, window = true }
local present_version = tonumber(redis.call('HGET', P .. 'meta', 'budgets_version')) or 0

-- The alerts of a charge to these lines: id, end of the window, JSON without its number.
local function crossings(lines, spent, cost)
    local found = {}
    for _, line in ipairs(cost > 0 and lines or {}) do
        local before = spent[line.counter]
        local after = before + cost
        for _, watch in ipairs(line.watches or {}) do
            local budget, limit = watch[1], whole(watch[2])
            for _, share in ipairs(watch[3]) do
                if before < share[2] and share[2] <= after then
                    local ppm = whole(share[1])
                    local id = string.sub(sha256(line.counter .. '|' .. ppm .. '|' .. limit), 1, 32)
                    local text = '{"id":"' .. id .. '","budget":' .. cjson.encode(budget)
                        .. ',"scope":' .. cjson.encode(line.scope) .. ',"period":' .. cjson.encode(line.period)
                        .. ',"share_ppm":' .. ppm .. ',"limit_nano_usd":' .. limit
                        .. ',"spent_nano_usd":' .. whole(after) .. ',"at_s":' .. now_text
                        .. ',"resets_at_s":' .. whole(line.end_s) .. '}'
                    found[#found + 1] = { id, line.end_s, text }
                end
            end
        end
    end
    return found
end

local function settle(packed)
    local call_id, admitted_at, cost, budgets_version, subscription, coins, pico, tenant, partition, hour, rows, record,
        plans, windows, credit = unpack(packed, 1, 15)
    local hold = find_hold(call_id)
    if not hold then
        local done = redis.call('GET', P .. 'd:' .. call_id)
        if done then
            return { 'done', done }
        end
    end
    if budgets_version ~= present_version then
        return { 'stale' }
    end
    local counters, lines, is_late, candidate = nil, {}, false, '0'
    if hold or credit then
        counters = hold and hold.counters or credit[2]
        lines = plans and standing_lines(plans, counters) or {}
    elseif not plans then
        return { 'plans' }
    else
        lines = new_lines(plans, picker(windows, admitted_at), spent_only)
        if not lines then
            return { 'window' }
        end
        counters = {}
        for n, line in ipairs(lines) do
            counters[n] = { line.counter, line.end_s }
        end
    end
    local admitted_text = seconds(admitted_at)
    if hold then
        is_late, candidate, admitted_text = not is_live(hold), hold.candidate, hold.admitted_at
    end
    if math.abs(cost) > MAX then
        return { 'unwritable', 'a charge' }
    end
    local spent, is_new = {}, {}
    for _, counter in ipairs(counters) do
        local found = redis.call('HMGET', P .. 'c:' .. counter[1], 's', 'e')
        local before = tonumber(found[1]) or 0
        if math.abs(before + cost) > MAX then
            return { 'unwritable', counter[1] }
        end
        spent[counter[1]] = before
        is_new[counter[1]] = not found[2]
    end
    local unsummable = check_aggregates(P, hour, rows)
    if unsummable then
        return { 'unwritable', unsummable }
    end
    local rest
    coins, rest = carry(redis.call('HGET', P .. 'carries', subscription), coins, pico)

    add_aggregates(P, hour, rows)
    write_alerts(P, crossings(lines, spent, cost))
    redis.call('HSET', P .. 'carries', subscription, rest)
    for _, counter in ipairs(counters) do
        if is_new[counter[1]] then
            begin(counter[1], counter[2])
        end
        redis.call('HINCRBY', P .. 'c:' .. counter[1], 's', whole(cost))
        if credit and not hold then
            use_credit(counter[1], credit[1], cost)
        end
    end
    if hold then
        drop(hold)
    else
        seat(lines)
    end
    if not hold or hold.goes_on then
        forget_operation(call_id)
    end
    record = string.sub(record, 1, -2) .. ',"late":' .. tostring(is_late) .. ',"askii_coins":' .. coins .. '}'
    append_record(P, now, call_id, tenant, partition, record)
    local late = is_late and '1' or '0'
    local marker = table.concat({ coins, late, candidate, admitted_text }, ' ')
    redis.call('SET', P .. 'd:' .. call_id, marker, 'EX', MARKER_TTL_S)
    return { 'ok', coins, late }
end

local answers = {}
for n = 2, #ARGV do
    local answer = settle(cmsgpack.unpack(ARGV[n]))
    answers[#answers + 1] = answer
    if PAUSES[answer[1]] then
        break
    end
end
return answers
