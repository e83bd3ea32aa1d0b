#!lua flags=no-writes
-- How many entries wait for each sink. Answers with names and numbers.
-- include: outbox.lua
local found = {}
for _, sink in ipairs(redis.call('SMEMBERS', P .. 'sinks')) do
    local places, waiting = find_sink(sink), 0
    for partition = 0, PARTITIONS - 1 do
        local of = sink .. ':' .. partition
        waiting = waiting + last_of(partition) - places['p' .. partition]
        waiting = waiting - redis.call('SCARD', P .. 'xh:' .. of) + redis.call('ZCARD', P .. 'xa:' .. of)
    end
    found[#found + 1] = sink
    found[#found + 1] = waiting
end
return found
