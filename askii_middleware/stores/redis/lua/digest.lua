-- SHA-256 of a text in lower-case hexadecimal (FIPS 180-4), for the ids of alerts. Servers offer SHA-1 only.
local function sha256(text)
    local ror, xor, band, bnot, shift = bit.ror, bit.bxor, bit.band, bit.bnot, bit.rshift
    local function fraction(number, root)
        return bit.tobit(math.floor(number ^ (1 / root) % 1 * 4294967296))
    end
    local constants, state, number = {}, {}, 2
    while #constants < 64 do
        local is_prime = true
        for divisor = 2, math.floor(math.sqrt(number)) do
            is_prime = is_prime and number % divisor ~= 0
        end
        if is_prime then
            constants[#constants + 1] = fraction(number, 3)
            if #state < 8 then
                state[#state + 1] = fraction(number, 2)
            end
        end
        number = number + 1
    end
    local bits = #text * 8
    text = text .. '\128' .. string.rep('\0', (55 - #text) % 64)
    text = text .. struct.pack('>I4I4', math.floor(bits / 4294967296), bits % 4294967296)
    for from = 1, #text, 64 do
        local words = {}
        for n = 1, 16 do
            words[n] = bit.tobit((struct.unpack('>I4', text, from + n * 4 - 4)))
        end
        for n = 17, 64 do
            local one, two = words[n - 15], words[n - 2]
            local first = xor(ror(one, 7), ror(one, 18), shift(one, 3))
            local second = xor(ror(two, 17), ror(two, 19), shift(two, 10))
            words[n] = bit.tobit(words[n - 16] + first + words[n - 7] + second)
        end
        local a, b, c, d, e, f, g, h = unpack(state)
        for n = 1, 64 do
            local choice = xor(band(e, f), band(bnot(e), g))
            local one = h + xor(ror(e, 6), ror(e, 11), ror(e, 25)) + choice + constants[n] + words[n]
            local two = xor(ror(a, 2), ror(a, 13), ror(a, 22)) + xor(band(a, b), band(a, c), band(b, c))
            h, g, f, e, d, c, b, a = g, f, e, bit.tobit(d + one), c, b, a, bit.tobit(one + two)
        end
        for n, word in ipairs({ a, b, c, d, e, f, g, h }) do
            state[n] = bit.tobit(state[n] + word)
        end
    end
    local parts = {}
    for n, word in ipairs(state) do
        parts[n] = bit.tohex(word)
    end
    return table.concat(parts)
end
