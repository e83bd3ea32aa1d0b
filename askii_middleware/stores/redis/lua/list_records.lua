-- List records among their tenants' newest, as a copy of a ledger has them. ARGV[2...]: four for each: tenant, partition, place,
-- number; of each tenant in order.
-- include: record.lua
for n = 2, #ARGV, 4 do
    list_record(unpack(ARGV, n, n + 3))
end
