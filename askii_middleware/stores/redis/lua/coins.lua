-- include: start.lua
-- Whole coins, in decimal: at a high rate one call may cost more of them than a number holds.

local function limbs(text)
    local sign, digits = 1, text
    if string.sub(text, 1, 1) == '-' then
        sign, digits = -1, string.sub(text, 2)
    end
    local found = {}
    for last = #digits, 1, -7 do
        found[#found + 1] = sign * tonumber(string.sub(digits, math.max(last - 6, 1), last))
    end
    return found
end

-- The sum of two decimals and a small number.
local function sum_of(one, other, more)
    if #one < 16 and #other < 16 then
        return whole(tonumber(one) + tonumber(other) + more)
    end
    local base, over, sum = 10000000, more, {}
    local first, second = limbs(one), limbs(other)
    for n = 1, math.max(#first, #second) + 1 do
        local limb = (first[n] or 0) + (second[n] or 0) + over
        over = math.floor(limb / base)
        sum[n] = limb - over * base
    end
    local sign = ''
    if over < 0 then
        sign, over = '-', 1
        for n, limb in ipairs(sum) do
            limb = base - 1 - limb + over
            over = limb == base and 1 or 0
            sum[n] = limb - over * base
        end
    end
    local parts = {}
    for n = #sum, 1, -1 do
        parts[#parts + 1] = string.format('%07.0f', sum[n])
    end
    local digits = string.gsub(table.concat(parts), '^0+', '')
    return digits == '' and '0' or sign .. digits
end

-- Whole coins to bill, and the subscription's new carry ('<whole coins> <10^-12 coin>'), as `rules.carry` has it.
-- Invariant: the bills and the carry together are the exact sum of all charges; a bill is never negative, and the
-- carry's whole coins are never positive.
local function carry(carried, coins, pico)
    local held, rest = '0', 0
    if carried then
        held, rest = string.match(carried, '^(%S+) (%S+)$')
        rest = tonumber(rest)
    end
    rest = rest + pico
    local over = math.floor(rest / 1000000000000)
    rest = whole(rest - over * 1000000000000)
    local sum = sum_of(held, coins, over)
    if string.sub(sum, 1, 1) == '-' then
        return '0', sum .. ' ' .. rest
    end
    return sum, '0 ' .. rest
end
