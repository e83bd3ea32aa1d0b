-- Give new sinks their places at the ends of the partitions. ARGV[2...]: names.
-- include: outbox.lua
for n = 2, #ARGV do
    if redis.call('SADD', P .. 'sinks', ARGV[n]) == 1 then
        for partition = 0, PARTITIONS - 1 do
            redis.call('HSET', P .. 'k:' .. ARGV[n], 'p' .. partition, whole(last_of(partition)))
        end
    end
end
