-- Drop a sink with all that waits for it. ARGV[2]: its name. Answers with 1, or 0 if there was none.
-- include: outbox.lua
local sink = ARGV[2]
if redis.call('SREM', P .. 'sinks', sink) == 0 then
    return 0
end
redis.call('UNLINK', P .. 'k:' .. sink, P .. 'y:' .. sink, P .. 'x:' .. sink, P .. 'xd:' .. sink)
for partition = 0, PARTITIONS - 1 do
    redis.call('UNLINK', P .. 'xa:' .. sink .. ':' .. partition, P .. 'xh:' .. sink .. ':' .. partition)
end
return 1
