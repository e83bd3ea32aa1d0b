#!lua flags=no-writes
-- The version of the stored budgets' forms, and the forms.
-- include: start.lua
return { redis.call('HGET', P .. 'meta', 'forms_version') or '0', redis.call('HKEYS', P .. 'forms') }
