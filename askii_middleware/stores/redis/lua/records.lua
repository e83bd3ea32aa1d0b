#!lua flags=no-writes
-- Records in the order of settlement. ARGV[2...]: after which number, limit. Answers with numbers and records.
-- include: outbox.lua
local after, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local starts = {}
for partition = 0, PARTITIONS - 1 do
    local first = redis.call('XRANGE', P .. 'o:' .. partition, '-', '+', 'COUNT', 1)
    if first[1] then
        -- The last entry that is not wanted: numbers ascend with the places in a partition, some of which may be empty.
        local low, high = entry_of(first[1], partition).seq - 1, last_of(partition)
        while low < high do
            local middle = math.ceil((low + high) / 2)
            local found = redis.call('XRANGE', P .. 'o:' .. partition, whole(middle), '+', 'COUNT', 1)[1]
            local entry = found and entry_of(found, partition)
            if entry and entry.number <= after then
                low = entry.seq
            else
                high = middle - 1
            end
        end
        starts[partition] = low
    end
end
local found = {}
for _, entry in ipairs(merged(starts, limit)) do
    found[#found + 1] = entry.number
    found[#found + 1] = entry.record
end
return found
