-- Add the list of a tenant's newest records to another's. ARGV[2...]: from, to.
-- include: record.lua
local listed = redis.call('LRANGE', P .. 'l:' .. ARGV[2], 0, -1)
for n = #listed, 1, -1 do
    list_record(ARGV[3], string.match(listed[n], '^(%d+):(%d+):(%d+)$'))
end
redis.call('UNLINK', P .. 'l:' .. ARGV[2])
