#!lua
-- Settle calls that may have no hold, may come with credit and may set off alerts. See settling.lua.
--
-- Invariants: a call without a hold stands where its plans, or its credit, say; an alert is written once, with the first
-- charge that takes its counter over the share.
-- include: settling.lua
-- include: lines.lua
-- include: credits.lua
-- include: digest.lua

-- The counters (key, window end) of a call and its lines. `standing`: where it stands already. Nil where no window holds
-- the moment.
local function counters_and_lines(plans, windows, admitted_at, standing)
    if standing then
        return standing, plans and standing_lines(plans, standing) or {}
    end
    local lines, counters = new_lines(plans, picker(windows, admitted_at), spent_only), {}
    for n, line in ipairs(lines or {}) do
        counters[n] = { line.counter, line.end_s }
    end
    return lines and counters, lines
end

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

-- Alerts are arrays of id, end of the window, and the alert as JSON without its number. Those that are new get one.
local function write_alerts(alerts)
    for _, alert in ipairs(alerts) do
        local id = alert[1]
        if redis.call('HSETNX', P .. 'alert_ids', id, '') == 1 then
            local seq = whole(redis.call('HINCRBY', P .. 'meta', 'alert_seq', 1))
            redis.call('XADD', P .. 'alerts', seq .. '-0', 'b', alert[3], 'i', id)
            redis.call('ZADD', P .. 'alert_ends', whole(tonumber(alert[2])), seq)
        end
    end
end

local function note(lines, counters, spent, cost, is_unheld, credit)
    local before = {}
    for n, counter in ipairs(counters) do
        before[counter[1]] = spent[n]
        if is_unheld and credit then
            use_credit(counter[1], credit[1], math.min(cost, credit[3]))
        end
    end
    write_alerts(crossings(lines, before, cost))
    if is_unheld then
        seat(lines)
    end
end

return settle_all({ lines = counters_and_lines, note = note })
