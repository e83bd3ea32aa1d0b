#!lua flags=allow-oom
-- Drop a call's hold and its operation. Invariant: no hold, or one that is over, stays as it is.
--
-- Allowed where memory is full: it adds nothing but a place in a list for one it takes from another, and may free an
-- operation's payload; and money that nobody uses must not stay held because records fill the server.
--
-- ARGV[2]: call.
-- include: holds.lua
-- include: operations.lua
release(ARGV[2])
return 1
