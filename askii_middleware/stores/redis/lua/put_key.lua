-- Store or replace a key. ARGV[2...]: id, digest, row. Answers with 1, or 0 if another key has this digest. Invariant:
-- `key_ids` leads from each key's digest, and from no other, to its row in `keys`.
-- include: start.lua
local id, digest, row = ARGV[2], ARGV[3], ARGV[4]
local taken = redis.call('HGET', P .. 'key_ids', digest)
if taken and taken ~= id then
    return 0
end
local known = redis.call('HGET', P .. 'keys', id)
if known then
    redis.call('HDEL', P .. 'key_ids', cjson.decode(known).sha256)
end
redis.call('HSET', P .. 'keys', id, row)
redis.call('HSET', P .. 'key_ids', digest, id)
return 1
