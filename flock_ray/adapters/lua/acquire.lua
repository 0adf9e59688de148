#!lua flags=allow-oom
-- Become the writer of a shard. Allowed when memory is full: the new writer must be able to clean up.
-- KEYS: head. ARGV: token of the new writer, incarnation of the board or '', newest format it can read, what the writer says of itself.
local head = redis.call('HMGET', KEYS[1], 'v', 'i', 'e', 'l', 'q', 'f')
if not head[1] or not head[2] then return {'LOST'} end
if tonumber(head[1]) > tonumber(ARGV[3]) then return {'NEWER'} end
if ARGV[2] ~= '' and head[2] ~= ARGV[2] then return {'OTHER'} end
local epoch = tonumber(head[3]) + 1
redis.call('HSET', KEYS[1], 'e', epoch, 't', ARGV[1], 'b', head[4], 'o', epoch .. ' ' .. ARGV[4])
local audit = redis.call('HMGET', KEYS[1], 'an', 'ah')
return {'OK', epoch, tonumber(head[4]), audit[1] or '0', audit[2] or ''}
