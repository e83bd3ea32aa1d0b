#!lua flags=no-writes
-- What scopes came to in the spans between edges, in hours. ARGV[2]: scopes, edges, packed. Answers, packed, with what was
-- read: for each scope and day the number of the scope, the places, and then arrays of the span it counts for, the span it
-- does not count for (0: none), and the amounts at each place, empty where there are none. Of a day that edges cut up, the
-- longest part is the sum of the day without the other parts, and these are made of quarters and hours, some of which may
-- be taken off as well: so that few fields are read wherever the edges are.
-- include: start.lua
local FEW = 64
local scopes, edges = unpack(cmsgpack.unpack(ARGV[2]))

-- The parts of a day: span (0: none), first hour, hour after the last. `at`: the last edge not after the day's beginning.
local function parts_of(day, at)
    local parts, hour, longest = {}, day * 24, 1
    while hour < (day + 1) * 24 do
        while edges[at + 1] and edges[at + 1] <= hour do
            at = at + 1
        end
        local last = math.min(edges[at + 1] or math.huge, (day + 1) * 24)
        parts[#parts + 1] = { at < #edges and at or 0, hour, last }
        if last - hour > parts[longest][3] - parts[longest][2] then
            longest = #parts
        end
        hour = last
    end
    return parts, longest, at
end

-- One read for all names that begin with `before`, one for each place.
local function named(names, before, places)
    for _, place in ipairs(places) do
        names[#names + 1] = before .. place
    end
end

local function values_of(key, names)
    if #names <= FEW then
        return redis.call('HMGET', key, unpack(names))
    end
    local known, flat, values = {}, redis.call('HGETALL', key), {}
    for n = 1, #flat, 2 do
        known[flat[n]] = flat[n + 1]
    end
    for n, name in ipairs(names) do
        values[n] = known[name] or false
    end
    return values
end

-- Read the hours of a day from one to before another, for one span and not for another.
local function add_hours(reads, names, places, day, from, to, span, other)
    for hour = from, to - 1 do
        named(names, 'h' .. whole(day * 24 + hour) .. ':', places)
        reads[#reads + 1] = { span, other }
    end
end

local function add_part(reads, names, places, day, from, to, span, rest)
    local first, last = math.floor(from / 6 + 0.5), math.floor(to / 6 + 0.5)
    if to - from <= 3 then
        add_hours(reads, names, places, day, from, to, span, rest)
        return
    end
    for quarter = first, last - 1 do
        named(names, 'q' .. quarter .. ':', places)
        reads[#reads + 1] = { span, rest }
    end
    add_hours(reads, names, places, day, from, first * 6, span, rest)
    add_hours(reads, names, places, day, first * 6, from, rest, span)
    add_hours(reads, names, places, day, last * 6, to, span, rest)
    add_hours(reads, names, places, day, to, last * 6, rest, span)
end

local found = {}
for number, scope in ipairs(scopes) do
    local at = 0
    local first, last = whole(math.floor(edges[1] / 24)), whole(math.floor((edges[#edges] - 1) / 24))
    for _, day in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ad:' .. scope, first, last)) do
        local key = P .. 'a:' .. day .. ':' .. scope
        local packed, parts, longest = redis.call('HGET', key, 'p'), nil, nil
        parts, longest, at = parts_of(tonumber(day), at)
        local places, names, reads = packed and cmsgpack.unpack(packed) or {}, {}, {}
        local rest = parts[longest][1]
        if rest > 0 then
            named(names, 'd', places)
            reads[1] = { rest, 0 }
        end
        for n, part in ipairs(parts) do
            if n ~= longest and (part[1] > 0 or rest > 0) then
                add_part(reads, names, places, day, part[2] - day * 24, part[3] - day * 24, part[1], rest)
            end
        end
        if #names > 0 then
            local values, next_one = values_of(key, names), 1
            for _, read in ipairs(reads) do
                for n = 1, #places do
                    read[n + 2] = values[next_one] or ''
                    next_one = next_one + 1
                end
            end
            found[#found + 1] = { number, places, reads }
        end
    end
end
return cmsgpack.pack(found)
