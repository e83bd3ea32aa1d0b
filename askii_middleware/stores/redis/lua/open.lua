-- Bring the ledger's schema up to date. ARGV[2]: the version this release knows. Answers with the ledger's version.
-- include: start.lua
redis.call('HSETNX', P .. 'meta', 'schema', ARGV[2])
return redis.call('HGET', P .. 'meta', 'schema')
