#!lua
-- One micro-batch. Every check stands before the first write: Redis does not undo a script.
-- KEYS: head, journal, keys of the commands. ARGV: token, lsn, checksum of the frame,
-- first and last feed position (0 for none), commands in msgpack, entries of the audit log before it ('' for no log).
local head = redis.call('HMGET', KEYS[1], 't', 'l', 'q', 'b')
if not head[2] then return {'LOST'} end
if head[1] ~= ARGV[1] then return {'STALE'} end
local last, lsn = tonumber(head[2]), tonumber(ARGV[2])
if lsn <= last then
  if lsn <= tonumber(head[4]) then return {'FOREIGN', last} end
  local found = redis.call('XRANGE', KEYS[2], lsn .. '-0', lsn .. '-0')
  if found[1] and string.sub(found[1][2][2], 1, 4) ~= ARGV[3] then return {'FOREIGN', last} end
  return {'OK'}
end
if lsn ~= last + 1 then return {'GAP', last} end
local first_position = tonumber(ARGV[4])
if first_position > 0 and first_position <= tonumber(head[3]) then return {'POSITION', tonumber(head[3])} end
if ARGV[7] ~= '' then
  local audit = redis.call('HMGET', KEYS[1], 'an', 'ah')
  if (audit[1] or '0') ~= ARGV[7] then return {'AUDIT', audit[1] or '0', audit[2] or ''} end
end
for _, command in ipairs(cmsgpack.unpack(ARGV[6])) do
  redis.call(command[1], KEYS[command[2]], unpack(command, 3))
end
redis.call('HSET', KEYS[1], 'l', ARGV[2])
if first_position > 0 then redis.call('HSET', KEYS[1], 'q', ARGV[5]) end
return {'OK'}
