-- Kinds and their versions in turn.
-- include: values.lua
return redis.call('HGETALL', P .. 'item_versions')
