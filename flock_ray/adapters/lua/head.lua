#!lua flags=allow-oom
-- See that the head of a shard is there, or make it.
-- KEYS: head. ARGV: format, incarnation of the board, 'make' or 'check'.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then
  if ARGV[3] ~= 'make' then return {'LOST'} end
  redis.call('HSET', KEYS[1], 'v', ARGV[1], 'i', ARGV[2], 'e', 0, 't', '', 'l', 0, 'q', 0, 'f', 0, 'b', 0)
elseif kind ~= 'hash' or redis.call('HGET', KEYS[1], 'i') ~= ARGV[2] then
  return {'FOREIGN'}
end
return {'OK'}
