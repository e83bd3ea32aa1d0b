#!lua flags=no-writes
-- What has changed since a version. ARGV[2]: the version. Answers with the newest version, then keys and budgets, an
-- empty one where it was removed; all of them if the version asked for is one the ledger does not know (it lost edits).
-- include: start.lua
local newest = redis.call('HGET', P .. 'meta', 'budgets_version') or '0'
local since = tonumber(ARGV[2])
if since > tonumber(newest) then
    since = -1
end
local found = { newest }
for _, key in ipairs(redis.call('ZRANGEBYSCORE', P .. 'budget_versions', '(' .. whole(since), '+inf')) do
    found[#found + 1] = key
    found[#found + 1] = redis.call('HGET', P .. 'budgets', key) or ''
end
return found
