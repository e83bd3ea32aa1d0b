-- Store a budget. ARGV[2...]: key, form, JSON.
-- include: budgets.lua
change(ARGV[2], ARGV[3], ARGV[4])
