#!lua flags=allow-oom
-- Drop the frames up to and including an lsn. Allowed when memory is full: it frees some.
-- KEYS: head, journal. ARGV: token, lsn.
local head = redis.call('HMGET', KEYS[1], 't', 'l', 'f')
if not head[2] then return {'LOST'} end
if head[1] ~= ARGV[1] then return {'STALE'} end
local lsn = math.min(tonumber(ARGV[2]), tonumber(head[2]))
if lsn > tonumber(head[3]) then
  local first = string.format('%.0f', lsn + 1)
  redis.call('XTRIM', KEYS[2], 'MINID', '=', first .. '-0')
  redis.call('HSET', KEYS[1], 'f', string.format('%.0f', lsn))
end
return {'OK'}
