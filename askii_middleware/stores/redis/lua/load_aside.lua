-- Set entries aside for a sink, as a copy of a ledger has them. ARGV[2]: sink; then eight for each: partition, place,
-- state, when it is due, attempts, reason, first and last attempt. Their records are in the streams already.
-- include: outbox.lua
local sink = ARGV[2]
for n = 3, #ARGV, 8 do
    local partition, seq, state, due, attempts, reason, first_s, last_s = unpack(ARGV, n, n + 7)
    local place = tonumber(redis.call('HGET', P .. 'k:' .. sink, 'p' .. partition))
    if tonumber(seq) > place then
        redis.call('SADD', P .. 'xh:' .. sink .. ':' .. partition, seq)
    end
    if state ~= 'delivered' then
        local aside = find_entry(tonumber(partition), tonumber(seq))
        aside.attempts, aside.reason, aside.first_s, aside.last_s = tonumber(attempts), reason, first_s, last_s
        redis.call('HSET', P .. 'x:' .. sink, partition .. ':' .. seq, cmsgpack.pack(aside))
        local list = state == 'dead' and 'xd:' .. sink or 'xa:' .. sink .. ':' .. partition
        redis.call('ZADD', P .. list, due, member_of(aside.number, tonumber(partition), tonumber(seq)))
    end
end
