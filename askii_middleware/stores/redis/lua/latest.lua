#!lua flags=no-writes
-- The newest records, the newest first. ARGV[2...]: limit, the number they come before (empty: all), and a tenant, or
-- nothing. Answers with numbers and records.
-- include: outbox.lua
local limit, before, tenant = tonumber(ARGV[2]), tonumber(ARGV[3]) or math.huge, ARGV[4]

local function of_tenant()
    local listed, found = {}, {}
    for _, text in ipairs(redis.call('LRANGE', P .. 'l:' .. tenant, 0, -1)) do
        local partition, seq, number = string.match(text, '^(%d+):(%d+):(%d+)$')
        if tonumber(number) < before then
            listed[#listed + 1] = { tonumber(number), partition, tonumber(seq) }
        end
    end
    table.sort(listed, function(one, other)
        return one[1] > other[1]
    end)
    for n = 1, #listed do
        if #found >= limit then
            break
        end
        found[#found + 1] = find_entry(listed[n][2], listed[n][3]) or nil
    end
    return found
end

local function of_all()
    local heads, found = {}, {}
    local function turn(partition, from)
        local raw = from > 0 and redis.call('XREVRANGE', P .. 'o:' .. partition, whole(from) .. '-0', '-', 'COUNT', 1)[1]
        heads[partition] = raw and entry_of(raw, partition)
    end
    for partition = 0, PARTITIONS - 1 do
        turn(partition, before < math.huge and place_of(partition, before - 1) or last_of(partition))
    end
    while #found < limit do
        local newest
        for _, head in pairs(heads) do
            if head and (not newest or head.number > newest.number) then
                newest = head
            end
        end
        if not newest then
            break
        end
        found[#found + 1] = newest
        turn(newest.partition, newest.seq - 1)
    end
    return found
end

local answer = {}
for _, entry in ipairs(tenant and of_tenant() or of_all()) do
    answer[#answer + 1] = entry.number
    answer[#answer + 1] = entry.record
end
return answer
