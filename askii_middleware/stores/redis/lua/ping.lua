-- Prove that the ledger can be written and read.
-- include: start.lua
redis.call('HSET', P .. 'meta', 'touched', now_text)
return redis.call('HGET', P .. 'meta', 'touched')
