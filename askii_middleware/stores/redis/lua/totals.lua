#!lua flags=no-writes
-- Calls, their cost, records, their cost, what is held, lost holds.
-- include: holds.lua
local found = redis.call('HMGET', P .. 'meta', 'calls', 'cost_nano_usd', 'seq', 'records_nano_usd')
local held, lost = held_and_lost()
return { found[1] or '0', found[2] or '0', found[3] or '0', found[4] or '0', held, whole(lost) }
