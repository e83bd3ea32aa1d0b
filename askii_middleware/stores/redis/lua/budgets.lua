-- include: start.lua
-- Stored budgets.
--
-- Invariants. `forms` counts the budgets of each form, and meta `forms_version` grows exactly when its set of forms
-- changes. `budget_versions` has the version of each budget's last edit, also of those that were removed; meta
-- `budgets_version` is the newest. Both versions follow the clock in milliseconds, so that none is used again after a
-- server has lost the last edits.
local function next_version(name)
    local known = tonumber(redis.call('HGET', P .. 'meta', name)) or 0
    local version = whole(math.max(known + 1, math.floor(now * 1000)))
    redis.call('HSET', P .. 'meta', name, version)
    return version
end

-- A budget comes, in another form, or (nil) goes. Answers with whether there was one.
local function change(key, form, json)
    local before = redis.call('HGET', P .. 'budget_forms', key)
    if not before and not json then
        return false
    end
    local moved = false
    if before ~= form then
        if form and redis.call('HINCRBY', P .. 'forms', form, 1) == 1 then
            moved = true
        end
        if before and redis.call('HINCRBY', P .. 'forms', before, -1) == 0 then
            redis.call('HDEL', P .. 'forms', before)
            moved = true
        end
    end
    if moved then
        next_version('forms_version')
    end
    if json then
        redis.call('HSET', P .. 'budgets', key, json)
        redis.call('HSET', P .. 'budget_forms', key, form)
    else
        redis.call('HDEL', P .. 'budgets', key)
        redis.call('HDEL', P .. 'budget_forms', key)
    end
    redis.call('ZADD', P .. 'budget_versions', next_version('budgets_version'), key)
    return before and true or false
end
