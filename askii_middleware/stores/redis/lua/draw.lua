#!lua
-- Take and give back credit, and look.
--
-- Invariants: a grant is no more than what is neither spent nor held, all credit included, and counts as held from then
-- on; a sequence number no higher than the holder's last one answered changes nothing; all checks come before the first
-- write.
--
-- ARGV[2]: holder, sequence, version of the forms, version of the budgets, returns (counter, amount), windows, asks (plan,
-- more, share and ceiling in millionths). Answers with moment, version of the budgets and for each ask its lines (state,
-- start, granted, whether the store has to look), packed, or { what is wrong, ... }.
-- include: holds.lua
-- include: lines.lua
-- include: decide.lua
-- include: credits.lua
local PPM = 1000000
local holder, sequence, forms_version, budgets_version, returns, windows, asks = unpack(cmsgpack.unpack(ARGV[2]))

-- A share of an amount in millionths, rounded down: the product itself may be more than a number holds.
local function share_of(amount, ppm)
    local rest = math.fmod(amount, PPM)
    rest = rest < 0 and rest + PPM or rest
    return (amount - rest) / PPM * ppm + math.floor(rest * ppm / PPM)
end

local versions = redis.call('HMGET', P .. 'meta', 'forms_version', 'budgets_version')
if forms_version ~= (tonumber(versions[1]) or 0) then
    return { 'forms', versions[1] or '0' }
end
if not is_alive(holder) then
    return { 'dead' }
end
for _, ask in ipairs(asks) do
    if ask[2] < 0 or ask[2] > MAX then
        return { 'unwritable', 'credit' }
    end
end
for _, given_back in ipairs(returns) do
    if given_back[2] < 0 or given_back[2] > MAX then
        return { 'unwritable', given_back[1] }
    end
end
if budgets_version ~= (tonumber(versions[2]) or 0) then
    return { 'stale' }
end

local pick = picker(windows, now)
local parts, is_crowded = {}, {}
for n, ask in ipairs(asks) do
    parts[n] = new_lines({ ask[1] }, pick, spent_only)
    if not parts[n] then
        return { 'window', now_text }
    end
    for _, part in ipairs(ask[1]) do
        if part[9] then
            is_crowded[new_lines({ { part } }, pick, spent_only)[1].counter] = true
        end
    end
end

local is_new = sequence > (tonumber(redis.call('HGET', P .. 'drawn', holder)) or 0)
if is_new then
    redis.call('HSET', P .. 'drawn', holder, whole(sequence))
    for _, given_back in ipairs(returns) do
        take_credit(given_back[1], holder, given_back[2])
    end
end
local read, answers = reader(lapsed_holds()), {}
for n, lines in ipairs(parts) do
    local _, more, share_ppm, ceiling_ppm = unpack(asks[n])
    answers[n] = {}
    for place, line in ipairs(lines) do
        local amounts = read(line.counter)
        local _, granted = credit_of(line.counter, holder)
        local limit, used = line.limit, taken(amounts[1], amounts[2])
        local needs_store = is_crowded[line.counter] or (limit == 0 and not line.soft)
        if is_new and not needs_store and limit and not line.soft then
            local share = share_of(limit - used, share_ppm)
            local room = share_of(limit, ceiling_ppm) - used
            local grant = math.min(more, share, room, MAX - granted)
            if grant > 0 then
                give_credit(line.counter, line.end_s, holder, grant)
                granted, amounts[2] = granted + grant, amounts[2] + grant
            end
        end
        line.spent, line.held = amounts[1], amounts[2]
        answers[n][place] = { told(line), line.start_s, granted, needs_store or false }
    end
end
return cmsgpack.pack({ now, budgets_version, answers })
