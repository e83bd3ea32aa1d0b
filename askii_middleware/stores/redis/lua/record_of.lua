#!lua flags=no-writes
-- A settled call's record, or nil. ARGV[2]: its id.
-- include: outbox.lua
local place = redis.call('HGET', P .. 'records', ARGV[2])
local partition, seq = string.match(place or '', '^(%d+):(%d+)$')
local entry = partition and find_entry(partition, tonumber(seq))
return entry and entry.record
