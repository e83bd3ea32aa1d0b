-- Give new channels their places behind the last alert. ARGV[2...]: names.
-- include: start.lua
for n = 2, #ARGV do
    if redis.call('SADD', P .. 'channels', ARGV[n]) == 1 then
        local last = redis.call('HGET', P .. 'meta', 'alert_seq') or '0'
        redis.call('HSET', P .. 'n:' .. ARGV[n], 'p', last, 'u', now_text, 't', '0')
    end
end
