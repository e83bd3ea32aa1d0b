#!lua flags=no-writes
-- The entries of a partition that are set aside for some sink and not in the stream any more, for a copy of the ledger.
-- ARGV[2]: partition. Answers with arrays of place, call, tenant, record, number.
-- include: outbox.lua
local partition = tonumber(ARGV[2])
local first = redis.call('XRANGE', P .. 'o:' .. partition, '-', '+', 'COUNT', 1)[1]
first = first and entry_of(first, partition).seq or last_of(partition) + 1
local found, known = {}, {}
for _, sink in ipairs(redis.call('SMEMBERS', P .. 'sinks')) do
    for _, field in ipairs(redis.call('HKEYS', P .. 'x:' .. sink)) do
        local of, seq = string.match(field, '^(%d+):(%d+)$')
        if tonumber(of) == partition and tonumber(seq) < first and not known[seq] then
            known[seq] = true
            local aside = cmsgpack.unpack(redis.call('HGET', P .. 'x:' .. sink, field))
            found[#found + 1] = { tonumber(seq), aside.call_id, aside.tenant, aside.record, whole(aside.number) }
        end
    end
end
table.sort(found, function(one, other)
    return one[1] < other[1]
end)
return found
