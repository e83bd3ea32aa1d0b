-- Forget a budget. ARGV[2]: key. Answers with 1, or 0 if there was none.
-- include: budgets.lua
return change(ARGV[2], nil, nil) and 1 or 0
