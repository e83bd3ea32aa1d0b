-- include: outbox.lua

-- The last entry of a partition that every sink has passed.
local function passed_by(sinks, partition)
    local passed = last_of(partition)
    for _, sink in ipairs(sinks) do
        passed = math.min(passed, tonumber(redis.call('HGET', P .. 'k:' .. sink, 'p' .. partition)))
    end
    return passed
end

-- Forget a partition's entries up to a place that were settled before a moment, at most so many. How many. What is set
-- aside has a copy of its own.
local function trim(partition, through, before_s, most)
    local count, after = 0, nil
    -- Mostly the first one is too young.
    for _, step in ipairs({ 1, most - 1 }) do
        local from = after and whole(after) .. '-0' or '-'
        for _, raw in ipairs(step > 0 and redis.call('XRANGE', P .. 'o:' .. partition, from, '+', 'COUNT', step) or {}) do
            local entry = entry_of(raw, partition)
            if entry.seq > through or entry.at_s > before_s then
                break
            end
            redis.call('HDEL', P .. 'records', entry.call_id)
            count, after = count + 1, entry.seq + 1
        end
        if not after then
            return 0
        end
    end
    redis.call('XTRIM', P .. 'o:' .. partition, 'MINID', whole(after) .. '-0')
    return count
end
