-- What every script of the ledger begins with. KEYS[1] is the ledger's prefix, whose hash tag keeps all its keys on one
-- shard; ARGV[1] is the time in Unix seconds, or empty for the server's own. Amounts are whole nano-USD: a Lua number
-- holds them exactly up to MAX, and `whole` is the only way they are written, because `tostring` rounds at 14 digits.
local P = KEYS[1]
local MAX = 9007199254740991
local now_text = ARGV[1]
if now_text == '' then
    local time = redis.call('TIME')
    now_text = time[1] .. '.' .. string.sub('00000' .. time[2], -6)
end
local now = tonumber(now_text)

local function whole(number)
    -- A difference may be -0, which no command takes.
    return number == 0 and '0' or string.format('%.0f', number)
end

local function seconds(number)
    return string.format('%.17g', number)
end
