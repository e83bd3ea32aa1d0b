#!lua
-- Settle calls that have holds and cannot set off an alert, which are nearly all. See settling.lua.
-- include: settling.lua
return settle_all(nil)
