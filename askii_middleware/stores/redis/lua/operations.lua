-- Calls that go on elsewhere. Invariant: `op:<call>`, `op_keys` (key -> call) and `operations` (call -> when it is
-- overdue) hold the same ones.
local function forget_operation(call_id)
    local key = redis.call('HGET', P .. 'op:' .. call_id, 'key')
    if key then
        redis.call('DEL', P .. 'op:' .. call_id)
        redis.call('HDEL', P .. 'op_keys', key)
        redis.call('ZREM', P .. 'operations', call_id)
    end
end

-- Key, call, tenant, when it is overdue, and what its owner keeps with it.
local function find_operation(call_id)
    local found = redis.call('HMGET', P .. 'op:' .. call_id, 'key', 'tenant', 'until', 'payload')
    return { found[1], call_id, found[2], found[3], found[4] }
end

-- Drop a call's hold, if it has one, and its operation.
local function release(call_id)
    local hold = find_hold(call_id)
    if hold and hold.state ~= 'released' then
        fade(hold, 'released')
    end
    forget_operation(call_id)
end
