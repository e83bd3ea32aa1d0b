#!lua
-- Hold for the first candidate that fits all its budgets, or for none.
--
-- Invariant: nothing lies between the look and the hold, so spent and held pass no limit; every refusal comes before the
-- first write; and a call's first answer is written with its hold, so that a repetition gets it and holds nothing more.
--
-- ARGV[2]: call, worker, version of the forms, version of the budgets, life of the hold (s), call to replace or '',
-- whether in shadow, about, windows, candidates (hold, least, plans). Answers with the packed answer, or { what is
-- wrong, ... }.
-- include: holds.lua
-- include: operations.lua
-- include: lines.lua
-- include: decide.lua
local call_id, worker, forms_version, budgets_version, life_s, replaces, is_shadow, about, windows, candidates =
    unpack(cmsgpack.unpack(ARGV[2]))

-- One command for nearly all calls, which are new.
local is_known = redis.call('EXISTS', P .. 'h:' .. call_id, P .. 'd:' .. call_id, P .. 'op:' .. call_id) > 0
if is_known and redis.call('EXISTS', P .. 'h:' .. call_id, P .. 'd:' .. call_id) > 0 then
    return redis.call('HGET', P .. 'h:' .. call_id, 'r') or { 'done', redis.call('GET', P .. 'd:' .. call_id) }
end
local versions = redis.call('HMGET', P .. 'meta', 'forms_version', 'budgets_version')
if forms_version ~= (tonumber(versions[1]) or 0) then
    return { 'forms', versions[1] or '0' }
end
if not is_alive(worker) then
    return { 'dead' }
end
if budgets_version ~= (tonumber(versions[2]) or 0) then
    return { 'stale' }
end

for _, asked in ipairs(candidates) do
    if asked[1] < 0 or asked[1] > MAX then
        return { 'unwritable', 'a hold' }
    end
end

local lapsed = lapsed_holds()
local away = lapsed
local old = replaces ~= '' and find_hold(replaces)
if old and is_live(old) then
    away = joined(lapsed, { old })
end
local read, pick = reader(away), picker(windows, now)
local order, lines = {}, {}
local function look_at(index)
    if not lines[index] then
        local found = new_lines(candidates[index][3], pick, read)
        lines[index] = found and look(found, read)
    end
    return lines[index]
end

for index = 1, #candidates do
    order[index] = index
end
if #candidates > 1 then
    if not look_at(1) then
        return { 'window', now_text }
    end
    for _, line in ipairs(lines[1]) do
        if line.mark and taken(line.spent, line.held) > line.mark then
            table.remove(order, 1)
            order[#order + 1] = 1
            break
        end
    end
end

-- An answer: candidate (from 0; -1: none), moment, states, reason, deciding state, hold, answer without shadow.
local chosen, answer
for _, index in ipairs(order) do
    local asked = candidates[index]
    if not look_at(index) then
        return { 'window', now_text }
    end
    local granted = fitting(lines[index], asked[1], asked[2])
    if granted then
        chosen = index
        answer = { index - 1, now, all_told(lines[index]), '', {}, granted, {} }
        break
    end
end
if not chosen then
    local reason, judged = 'spent', 1
    for _, index in ipairs(order) do
        if fitting(lines[index], candidates[index][1], candidates[index][2], true) then
            reason, judged = 'held', index
            break
        end
    end
    local line = deciding(lines[judged], candidates[judged][1], candidates[judged][2], reason == 'spent')
    answer = { -1, now, all_told(look_at(1)), reason, { told(line) }, 0, {} }
end
if is_shadow then
    chosen = 1
    answer = { 0, now, all_told(look_at(1)), '', {}, candidates[1][1], { answer } }
end
local hold = answer[6]
if chosen then
    for _, line in ipairs(lines[chosen]) do
        if line.spent + line.held + hold > MAX then
            return { 'unwritable', line.counter }
        end
    end
end

answer = cmsgpack.pack(answer)
for _, passed in ipairs(lapsed) do
    fade(passed, 'expired')
end
if not chosen then
    return answer
end
if replaces ~= '' then
    release(replaces)
end
local counters = {}
for n, line in ipairs(lines[chosen]) do
    counters[n] = { line.counter, line.end_s }
end
stand(counters, worker, hold)
seat(lines[chosen])
place(call_id, worker, hold, counters, chosen - 1, now_text, now + life_s, answer, about, is_known)
return answer
