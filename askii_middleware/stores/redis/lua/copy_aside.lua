#!lua flags=no-writes
-- What is set aside for a sink, for a copy of the ledger. ARGV[2...]: sink, then members of `x:<sink>`. Answers with
-- arrays of partition, place, state, when it is due, attempts, reason, first and last attempt.
-- include: outbox.lua
local sink = ARGV[2]
local found = {}
for n = 3, #ARGV do
    local partition, seq = string.match(ARGV[n], '^(%d+):(%d+)$')
    local aside = cmsgpack.unpack(redis.call('HGET', P .. 'x:' .. sink, ARGV[n]))
    local member = member_of(aside.number, tonumber(partition), tonumber(seq))
    local again = redis.call('ZSCORE', P .. 'xa:' .. sink .. ':' .. partition, member)
    local dead = redis.call('ZSCORE', P .. 'xd:' .. sink, member)
    found[#found + 1] = {
        partition, seq, again and 'again' or 'dead', again or dead, aside.attempts, aside.reason, aside.first_s,
        aside.last_s,
    }
end
return found
