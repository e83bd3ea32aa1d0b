-- The scopes with a prefix that cost most. ARGV[2...]: prefix, the first hour, the hour after the last, and how many to
-- leave out and to tell. Answers with scopes, the highest first; some may be among them that have nothing in these hours.
-- Whole days are read as such, and of a day that is mostly wanted what is not is taken off. Nothing is kept of what this
-- writes to sum up.
-- include: start.lua
local prefix, first, last, offset, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local today = math.floor(now / 86400)
first, last = math.max(first, (today - 402) * 24), math.min(last, (today + 402) * 24)
local parts, weights, temporary = {}, {}, {}

local function add(key, weight)
    parts[#parts + 1], weights[#weights + 1] = key, weight
end

local function cost_in(scope, day, from, to)
    local key, sum = P .. 'a:' .. day .. ':' .. scope, nil
    local packed = redis.call('HGET', key, 'p')
    for _, place in ipairs(packed and cmsgpack.unpack(packed) or {}) do
        for hour = from, to - 1 do
            local found = redis.call('HGET', key, 'h' .. whole(hour) .. ':' .. place)
            if found then
                sum = (sum or 0) + tonumber(string.match(found, '(%S+)$'))
            end
        end
    end
    return sum
end

-- Only tenants are ranked by hour; of other scopes, those of the day are looked at.
local function add_hours(day, from, to, weight)
    if prefix == 'tenant=' then
        for hour = from, to - 1 do
            add(P .. 't:h' .. whole(hour), weight)
        end
    elseif from < to then
        local key = P .. 't:sums:' .. #parts
        for _, scope in ipairs(redis.call('ZRANGE', P .. 't:d' .. day .. ':' .. prefix, 0, -1)) do
            local cost = cost_in(scope, day, from, to)
            if cost then
                redis.call('ZADD', key, whole(-cost), scope)
                temporary[key] = true
            end
        end
        add(key, weight)
    end
end

while first < last do
    local day = math.floor(first / 24)
    local from, to = day * 24, (day + 1) * 24
    local stop = math.min(last, to)
    if stop - first > 12 then
        add(P .. 't:d' .. whole(day) .. ':' .. prefix, 1)
        add_hours(whole(day), from, first, -1)
        add_hours(whole(day), stop, to, -1)
    else
        add_hours(whole(day), first, stop, 1)
    end
    first = stop
end
if #parts == 0 or limit <= 0 then
    return {}
end
local sums = parts[1]
if #parts > 1 then
    sums = P .. 't:sums'
    local command = { 'ZUNIONSTORE', sums, #parts }
    for _, key in ipairs(parts) do
        command[#command + 1] = key
    end
    command[#command + 1] = 'WEIGHTS'
    for _, weight in ipairs(weights) do
        command[#command + 1] = weight
    end
    redis.call(unpack(command))
    temporary[sums] = true
end
local found = redis.call('ZRANGE', sums, offset, offset + limit - 1)
for key in pairs(temporary) do
    redis.call('UNLINK', key)
end
return found
