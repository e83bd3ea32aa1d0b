#!lua flags=allow-oom
-- Drop old rows before their time. ARGV[2...]: the moment (or nothing) before which records were settled that go, for how
-- long all are kept, the day (or nothing) before which aggregates go, at most how many rows. Answers with how many. Sums of
-- a day go all together.
-- include: trim.lua
-- include: sums.lua
local before_s, kept_s, before_day, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local count = 0

-- Whether there is no room for a scope's rows of a day. Otherwise they go.
local function full(scope, day)
    local rows = 0
    for _, field in ipairs(redis.call('HKEYS', P .. 'a:' .. day .. ':' .. scope)) do
        rows = rows + (string.sub(field, 1, 1) == 'h' and 1 or 0)
    end
    if count > 0 and count + rows > limit or count >= limit then
        return true
    end
    count = count + take_day(scope, day, '')
    return false
end

local function prune_day(day)
    for _, prefix in ipairs(redis.call('SMEMBERS', P .. 'tp:' .. day)) do
        for _, scope in ipairs(redis.call('ZRANGE', P .. 't:d' .. day .. ':' .. prefix, 0, -1)) do
            if full(scope, day) then
                return true
            end
        end
        redis.call('SREM', P .. 'tp:' .. day, prefix)
    end
    for partition = 0, PARTITIONS - 1 do
        if full('global/' .. partition, day) then
            return true
        end
    end
    return false
end

if before_s then
    before_s = math.min(before_s, now - kept_s) - 0.000001 -- before it, not at it: times have microseconds
    local sinks = redis.call('SMEMBERS', P .. 'sinks')
    for partition = 0, PARTITIONS - 1 do
        local through = math.min(passed_by(sinks, partition), last_of(partition) - 1)
        count = count + (count < limit and trim(partition, through, before_s, limit - count) or 0)
    end
end
if before_day then
    for day = math.floor(now / 86400) - 402, before_day - 1 do
        if prune_day(whole(day)) then
            break
        end
    end
end
return count
