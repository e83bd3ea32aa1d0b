-- Write aggregates as a copy of a ledger has them. ARGV[2...]: seven for each: scope, hour, day, place, amounts, requests and
-- nano-USD once more, which count where the scope is a tenant and nothing else.
-- include: start.lua
-- include: sums.lua
for n = 2, #ARGV, 7 do
    local scope, hour, day, place, amounts, requests, cost = unpack(ARGV, n, n + 6)
    book(scope, hour, day, place, amounts)
    if prefix_of(scope) == TENANTS then
        redis.call('HINCRBY', P .. 'meta', 'calls', requests)
        redis.call('HINCRBY', P .. 'meta', 'cost_nano_usd', cost)
    end
end
