-- include: holds.lua
-- include: operations.lua
-- include: coins.lua
-- include: record.lua
-- Replace holds by their charges and write records, aggregates, carries and outbox entries.
--
-- Invariants: a call is settled once, and its marker (`d:<call>`) comes with its charge; of each settlement all checks
-- come before its first write, so one that cannot be written changes nothing and keeps no other from being written; what
-- was held before is charged where it was held.
--
-- ARGV[2] and all further ones come in pairs. First, packed: call, moment of admission, cost, version of the budgets,
-- subscription, whole coins (in decimal), 10^-12 coin, tenant, partition, hour, day, aggregates, what the record says it
-- cost, plans, windows, credit (holder, counters, hold), of which each may be nil. Then the record without its last brace.
-- Answers for each, in order, up to the first that asks for more: { 'ok', coins, whether late } | { 'done', marker } |
-- { 'unwritable', why } | { 'stale' } | { 'plans' } | { 'window' }; after the last three nothing more is settled.
local MARKER_TTL_S = 90000

-- The marker of a call that was settled. Where it has expired, all that is left of the call is its record.
local function marker_of(call_id)
    local marker = redis.call('GET', P .. 'd:' .. call_id)
    local place = not marker and redis.call('HGET', P .. 'records', call_id)
    if place then
        local partition, seq = string.match(place, '^(%d+):(%d+)$')
        local id = seq .. '-0'
        local record = redis.call('XRANGE', P .. 'o:' .. partition, id, id)[1][2][6]
        local late, coins = string.match(record, '"late":(%a+),"askii_coins":(-?%d+)}$')
        marker = coins .. (late == 'true' and ' 1' or ' 0') .. ' 0 0'
    end
    return marker
end

-- `rare`: nil where no settlement comes with plans or credit, else functions: `lines` finds out where a call stands,
-- `note` writes what follows from that.
local function settle(packed, record, rare)
    local call_id, admitted_at, cost, budgets_version, subscription, coins, pico, tenant, partition, hour, day, rows,
        told_cost, plans, windows, credit = unpack(packed, 1, 16)
    local hold = find_hold(call_id)
    local done = not hold and marker_of(call_id)
    if done then
        return { 'done', done }
    end
    local last = redis.call(
        'HMGET', P .. 'meta', 'o' .. partition, 'seq', 'calls', 'cost_nano_usd', 'records_nano_usd', 'budgets_version'
    )
    if budgets_version ~= (tonumber(last[6]) or 0) then
        return { 'stale' }
    end
    local counters, lines, is_late, candidate, admitted_text
    if hold then
        counters, is_late, candidate, admitted_text = hold.counters, not is_live(hold), hold.candidate, hold.admitted_at
    elseif not (plans or credit) then
        return { 'plans' }
    else
        is_late, candidate, admitted_text = false, '0', seconds(admitted_at)
    end
    if plans or credit then
        counters, lines = rare.lines(plans, windows, admitted_at, counters or (credit and credit[2]))
        if not counters then
            return { 'window' }
        end
    end
    if cost > MAX or cost < -MAX or told_cost > MAX or told_cost < -MAX then
        return { 'unwritable', 'a charge' }
    end
    local spent, is_new = {}, {}
    for n, counter in ipairs(counters) do
        local found = redis.call('HMGET', P .. 'c:' .. counter[1], 's', 'e')
        local before = tonumber(found[1]) or 0
        if before + cost > MAX or before + cost < -MAX then
            return { 'unwritable', counter[1] }
        end
        spent[n], is_new[n] = before, not found[2]
    end
    local sums, unsummable = sum_up(hour, day, rows)
    if not sums then
        return { 'unwritable', unsummable }
    end
    local rest
    coins, rest = carry(redis.call('HGET', P .. 'carries', subscription), coins, pico)

    write_aggregates(hour, day, rows, sums)
    redis.call('HSET', P .. 'carries', subscription, rest)
    for n, counter in ipairs(counters) do
        if is_new[n] then
            begin(counter[1], counter[2])
        end
        redis.call('HSET', P .. 'c:' .. counter[1], 's', whole(spent[n] + cost))
    end
    if lines then
        rare.note(lines, counters, spent, cost, not hold, credit)
    end
    if hold then
        drop(hold)
    end
    if not hold or hold.goes_on then
        forget_operation(call_id)
    end
    record = record .. (is_late and ',"late":true' or ',"late":false') .. ',"askii_coins":' .. coins .. '}'
    write_record(call_id, tenant, partition, record, told_cost, sums, last)
    local late = is_late and '1' or '0'
    local marker = coins .. ' ' .. late .. ' ' .. candidate .. ' ' .. admitted_text
    redis.call('SET', P .. 'd:' .. call_id, marker, 'EX', MARKER_TTL_S)
    return { 'ok', coins, late }
end

local function settle_all(rare)
    local answers = {}
    for n = 2, #ARGV, 2 do
        local answer = settle(cmsgpack.unpack(ARGV[n]), ARGV[n + 1], rare)
        answers[#answers + 1] = answer
        if answer[1] == 'stale' or answer[1] == 'plans' or answer[1] == 'window' then
            break
        end
    end
    return answers
end
