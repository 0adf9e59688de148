#!lua flags=allow-oom
-- Read the record of a board; make it when nothing is there.
-- KEYS: board. ARGV: format, shards, incarnation.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'hash' then return {'FOREIGN'} end
if kind == 'none' then
  redis.call('HSET', KEYS[1], 'format', 'flock_ray', 'v', ARGV[1], 'n', ARGV[2], 'i', ARGV[3], 'ready', '0')
end
local board = redis.call('HMGET', KEYS[1], 'format', 'v', 'n', 'i', 'ready')
if board[1] ~= 'flock_ray' or not (board[2] and board[3] and board[4] and board[5]) then return {'FOREIGN'} end
return {'OK', board[2], board[3], board[4], board[5]}
