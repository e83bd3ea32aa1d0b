#!lua flags=no-writes
-- The key with a digest, or nil. ARGV[2]: the digest.
-- include: start.lua
local id = redis.call('HGET', P .. 'key_ids', ARGV[2])
return id and redis.call('HGET', P .. 'keys', id)
