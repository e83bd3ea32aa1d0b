#!lua flags=no-writes
-- The operation with the key ARGV[2], or nothing.
-- include: start.lua
-- include: operations.lua
local call_id = redis.call('HGET', P .. 'op_keys', ARGV[2])
return call_id and find_operation(call_id)
