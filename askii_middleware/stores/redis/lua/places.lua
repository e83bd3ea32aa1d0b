#!lua flags=no-writes
-- Who delivers to a sink, by partition.
--
-- ARGV[2]: sink. Answers with arrays of last owner, end of its lease, retry_at_s and failures, or nil where there is no
-- such sink.
-- include: outbox.lua
local places = find_sink(ARGV[2])
if not places then
    return false
end
local found = {}
for partition = 0, PARTITIONS - 1 do
    local function told(name, default)
        return places[name .. partition] or default
    end
    found[partition + 1] = { told('o', ''), told('u', '0'), told('r', '0'), told('f', '0') }
end
return found
