-- Make a sink's dead letters due now. ARGV[2]: sink. Answers with their number, or nil where there is no such sink.
-- include: outbox.lua
local sink = ARGV[2]
if not find_sink(sink) then
    return false
end
local dead = redis.call('ZRANGE', P .. 'xd:' .. sink, 0, -1)
for _, member in ipairs(dead) do
    local partition = string.match(member, '^%d+:(%d+):')
    redis.call('ZADD', P .. 'xa:' .. sink .. ':' .. partition, now_text, member)
end
redis.call('DEL', P .. 'xd:' .. sink)
return #dead
