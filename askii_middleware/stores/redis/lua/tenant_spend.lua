-- The tenants that spent most. ARGV[2...]: the first hour, the hour after the last, limit. Answers with scopes and
-- negative nano-USD. Whole days are read as such. Nothing is kept of what it writes to sum up.
-- include: start.lua
local first, last, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local today = math.floor(now / 86400)
first, last = math.max(first, (today - 402) * 24), math.min(last, (today + 402) * 24)
local parts = {}
while first < last do
    if first % 24 == 0 and first + 24 <= last then
        parts[#parts + 1] = P .. 't:d' .. whole(first / 24)
        first = first + 24
    else
        parts[#parts + 1] = P .. 't:h' .. whole(first)
        first = first + 1
    end
end
if #parts == 0 or limit <= 0 then
    return {}
end
local sums = parts[1]
if #parts > 1 then
    sums = P .. 't:sums'
    redis.call('ZUNIONSTORE', sums, #parts, unpack(parts))
end
local found = redis.call('ZRANGE', sums, 0, limit - 1, 'WITHSCORES')
if #parts > 1 then
    redis.call('DEL', sums)
end
return found
