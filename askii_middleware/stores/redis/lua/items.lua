-- All values of a kind, names and values in turn. ARGV[2]: kind.
-- include: values.lua
return redis.call('HGETALL', P .. 'items:' .. ARGV[2])
