#!lua flags=no-writes
-- Records in the order of settlement. ARGV[2...]: after which number, limit. Answers with numbers and records.
-- include: outbox.lua
local after, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local starts = {}
for partition = 0, PARTITIONS - 1 do
    starts[partition] = place_of(partition, after)
end
local found = {}
for _, entry in ipairs(merged(starts, limit)) do
    found[#found + 1] = entry.number
    found[#found + 1] = entry.record
end
return found
