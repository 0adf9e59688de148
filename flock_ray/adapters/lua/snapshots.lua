#!lua
-- Replace snapshots of slots; one older than what is stored was late and is ignored.
-- KEYS: head, snapshots. ARGV: token, then slot, lsn and '<lsn>:<sealed>' of each.
local head = redis.call('HMGET', KEYS[1], 't', 'l')
if not head[2] then return {'LOST'} end
if head[1] ~= ARGV[1] then return {'STALE'} end
for i = 2, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if not known or tonumber(string.match(known, '^%d+') or 0) <= tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
  end
end
return {'OK'}
