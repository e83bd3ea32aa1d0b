-- Which counters a call stands on and what rules each of them, from the plans its client sent.
--
-- Invariant: a line's counter is its plan's with the start of one window, which is the one that holds the moment asked
-- for, or that of the hold the call has. Values beyond a crowd's bound share one counter, and a value that has its own
-- keeps it.
--
-- A plan's line: counter without its window, name of the window, scope, period, limit, soft, the mark above which
-- fallbacks come first, watches, crowd (counter, scope, most).

local function picker(windows, at)
    local known = {}
    return function(name)
        if known[name] == nil then
            known[name] = false
            for _, span in ipairs(windows[name] or {}) do
                if span[1] <= at and at < span[2] then
                    known[name] = { whole(span[1]), span[2], span[1] }
                    break
                end
            end
        end
        return known[name]
    end
end

local function is_severer(one, other)
    if not one.limit ~= not other.limit then
        return other.limit == nil
    end
    if one.soft ~= other.soft then
        return other.soft
    end
    return (one.limit or 0) < (other.limit or 0)
end

local function joined(one, other)
    if not one or not other then
        return one or other
    end
    local all = {}
    for _, item in ipairs(one) do
        all[#all + 1] = item
    end
    for _, item in ipairs(other) do
        all[#all + 1] = item
    end
    return all
end

-- Each counter once, in the place where it came first; the severest limit rules, and all watches and seats stay.
local function add_line(lines, line)
    local place = lines.at[line.counter]
    if not place then
        lines[#lines + 1] = line
        lines.at[line.counter] = #lines
        return
    end
    local known = lines[place]
    local ruling = is_severer(line, known) and line or known
    ruling.watches, ruling.seats = joined(known.watches, line.watches), joined(known.seats, line.seats)
    lines[place] = ruling
end

local function new_line(plan, counter, scope, end_s)
    return {
        counter = counter,
        scope = scope,
        period = plan[4],
        limit = plan[5],
        soft = plan[6],
        mark = plan[7],
        watches = plan[8],
        end_s = end_s,
    }
end

-- What is spent at each moment, which is all that seats are given by.
local function spent_only(counter)
    return { tonumber(redis.call('HGET', P .. 'c:' .. counter, 's')) or 0 }
end

-- Whether a value has, or with this call gets, a counter of its own beside the shared one.
local function take_seat(lines, line, shared, most, read)
    if redis.call('SISMEMBER', P .. 'p:' .. shared, line.counter) == 1 or read(line.counter)[1] ~= 0 then
        return true
    end
    -- A call with several tags may bring several new values at once.
    local taken = redis.call('SCARD', P .. 'p:' .. shared)
    for _, other in ipairs(lines) do
        for _, seat in ipairs(other.seats or {}) do
            if seat == shared and other.counter ~= line.counter then
                taken = taken + 1
                break
            end
        end
    end
    if taken < most then
        line.seats = { shared }
        return true
    end
    return false
end

-- The lines of a call that is new, or nil where no window holds the moment.
local function new_lines(plans, pick, read)
    local lines = { at = {} }
    for _, plan in ipairs(plans) do
        for _, part in ipairs(plan) do
            local span = pick(part[2])
            if not span then
                return nil
            end
            local line = new_line(part, part[1] .. span[1], part[3], span[2])
            line.start_s = span[3]
            local crowd = part[9]
            if crowd and not take_seat(lines, line, crowd[1] .. span[1], crowd[3], read) then
                line.counter, line.scope = crowd[1] .. span[1], crowd[2]
            end
            add_line(lines, line)
        end
    end
    return lines
end

-- The lines of a call that stands on these counters (key, window end) already. What does not bind it, such as a budget
-- that came later, has no line.
local function standing_lines(plans, counters)
    local standing = {}
    for _, counter in ipairs(counters) do
        standing[string.match(counter[1], '^(.*|)[^|]*$')] = counter
    end
    local lines = { at = {} }
    for _, plan in ipairs(plans) do
        for _, part in ipairs(plan) do
            local counter, scope, crowd = standing[part[1]], part[3], part[9]
            if not counter and crowd then
                counter, scope = standing[crowd[1]], crowd[2]
            end
            if counter then
                add_line(lines, new_line(part, counter[1], scope, counter[2]))
            end
        end
    end
    return lines
end

-- What is spent and held, beside each line.
local function look(lines, read)
    for _, line in ipairs(lines) do
        local amounts = read(line.counter)
        line.spent, line.held = amounts[1], amounts[2]
    end
    return lines
end

-- Write which values have got counters of their own.
local function seat(lines)
    for _, line in ipairs(lines) do
        for _, shared in ipairs(line.seats or {}) do
            begin(shared, line.end_s) -- whose end is theirs
            redis.call('SADD', P .. 'p:' .. shared, line.counter)
        end
    end
end
