-- Whether a hold fits its lines, as `admission.py` has it, word for word. Changes nothing.

-- What is spent and held: less than nothing spent, after credits, gives no room beyond the limit. `idle`: as if every
-- running call cost nothing.
local function taken(spent, held, idle)
    return math.max(spent, 0) + (idle and 0 or held)
end

-- As much of a hold as fits all lines, from `least` on (nil: all of it); nil if that does not fit. `idle` as above.
local function fitting(lines, hold, least, idle)
    local granted = hold
    for _, line in ipairs(lines) do
        local limit = line.limit
        if limit and not line.soft then
            if limit == 0 then
                return nil
            end
            if hold ~= 0 then
                local left = limit - taken(line.spent, line.held, idle)
                if left < granted then
                    if not least or left < least then
                        return nil
                    end
                    granted = left
                end
            end
        end
    end
    return granted
end

-- Of the lines that refuse, the one that resets last.
local function deciding(lines, hold, least, idle)
    local found
    for _, line in ipairs(lines) do
        if not fitting({ line }, hold, least, idle) and (not found or line.end_s > found.end_s) then
            found = line
        end
    end
    return found
end

-- For the client: no member is nil, so that every array has all its places.
local function told(line)
    return { line.counter, line.scope, line.period, line.limit or -1, line.spent, line.held, line.end_s, line.soft }
end

local function all_told(lines)
    local states = {}
    for n, line in ipairs(lines) do
        states[n] = told(line)
    end
    return states
end
