-- include: start.lua
-- How far sinks have come with the records.
--
-- Invariants, for a sink in `sinks` and a partition p. `k:<sink>` has `p<p>`: every entry up to there was delivered or is
-- set aside; `t<p>` the newest token, `o<p>` and `u<p>` the last owner and the end of its lease, `r<p>` and `f<p>` the
-- back-off. `xh:<sink>:<p>` has the entries beyond `p<p>` that were delivered or are set aside. `x:<sink>` keeps those
-- set aside whole, so that streams can be trimmed without them: the ones due again stand in `xa:<sink>:<p>` by the time
-- they are due, the dead ones in `xd:<sink>` by their last attempt. `y:<sink>` has the owners that ask, and until when
-- they count.
local PARTITIONS = 16

local function find_sink(sink)
    if redis.call('SISMEMBER', P .. 'sinks', sink) == 0 then
        return nil
    end
    local found, flat = {}, redis.call('HGETALL', P .. 'k:' .. sink)
    for n = 1, #flat, 2 do
        found[flat[n]] = flat[n + 1]
    end
    return found
end

local function last_of(partition)
    return tonumber(redis.call('HGET', P .. 'meta', 'o' .. partition)) or 0
end

-- Sorts as the number does, and tells the entry.
local function member_of(number, partition, seq)
    return string.format('%016.0f:%d:%.0f', number, partition, seq)
end

local function entry_of(raw, partition)
    local fields = raw[2]
    return {
        partition = partition,
        seq = tonumber(string.match(raw[1], '^%d+')),
        call_id = fields[2],
        tenant = fields[4],
        record = fields[6],
        number = tonumber(fields[8]),
        at_s = tonumber(fields[10]),
    }
end

local function find_entry(partition, seq)
    local id = whole(seq) .. '-0'
    local found = redis.call('XRANGE', P .. 'o:' .. partition, id, id)
    return found[1] and entry_of(found[1], partition)
end

-- The place in a partition of the last entry whose number is at most this one: numbers ascend with the places, some of
-- which may be empty.
local function place_of(partition, number)
    local first = redis.call('XRANGE', P .. 'o:' .. partition, '-', '+', 'COUNT', 1)[1]
    if not first then
        return last_of(partition)
    end
    local low, high = entry_of(first, partition).seq - 1, last_of(partition)
    while low < high do
        local middle = math.ceil((low + high) / 2)
        local found = redis.call('XRANGE', P .. 'o:' .. partition, whole(middle), '+', 'COUNT', 1)[1]
        local entry = found and entry_of(found, partition)
        if entry and entry.number <= number then
            low = entry.seq
        else
            high = middle - 1
        end
    end
    return low
end

-- At most `limit` entries in the order of settlement, of each partition those after `starts[partition]`.
local function merged(starts, limit, skip)
    local queues = {}
    local function head(partition)
        local queue = queues[partition]
        while true do
            queue.at = queue.at + 1
            if queue.at > #queue.found then
                local from = '(' .. whole(queue.after) .. '-0'
                local count = math.min(limit, 64)
                queue.found = redis.call('XRANGE', P .. 'o:' .. partition, from, '+', 'COUNT', count)
                queue.at = 1
                if #queue.found == 0 then
                    queues[partition] = nil
                    return
                end
            end
            queue.entry = entry_of(queue.found[queue.at], partition)
            queue.after = queue.entry.seq
            if not (skip and skip(partition, queue.after)) then
                return
            end
        end
    end
    local found = {}
    if limit > 0 then
        for partition, after in pairs(starts) do
            queues[partition] = { after = after, found = {}, at = 0 }
            head(partition)
        end
    end
    while #found < limit do
        local first
        for partition, queue in pairs(queues) do
            if not first or queue.entry.number < queues[first].entry.number then
                first = partition
            end
        end
        if not first then
            break
        end
        found[#found + 1] = queues[first].entry
        head(first)
    end
    return found
end
