-- Drop what a scope came to on a day. ARGV[2...]: scope, day, and the scope it is added to, or nothing. Answers with the
-- number of rows there were.
-- include: start.lua
-- include: sums.lua
return take_day(ARGV[2], ARGV[3], ARGV[4])
