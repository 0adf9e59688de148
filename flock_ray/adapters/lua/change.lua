-- Groups of commands, each done only if what its checks ask for is still so.
-- KEYS: head, keys of the commands. ARGV: token, groups in msgpack: {{checks, commands}, ...};
-- a check is {expected reply, command, key, arguments...}; entries of the audit log before it ('' for no log).
local head = redis.call('HMGET', KEYS[1], 't', 'l')
if not head[2] then return {'LOST'} end
if head[1] ~= ARGV[1] then return {'STALE'} end
if ARGV[3] ~= '' then
  local audit = redis.call('HMGET', KEYS[1], 'an', 'ah')
  if (audit[1] or '0') ~= ARGV[3] then return {'AUDIT', audit[1] or '0', audit[2] or ''} end
end
local done = {}
for i, group in ipairs(cmsgpack.unpack(ARGV[2])) do
  local holds = 1
  for _, check in ipairs(group[1]) do
    if tostring(redis.call(check[2], KEYS[check[3]], unpack(check, 4))) ~= check[1] then holds = 0 end
  end
  if holds == 1 then
    for _, command in ipairs(group[2]) do
      redis.call(command[1], KEYS[command[2]], unpack(command, 3))
    end
  end
  done[i] = holds
end
return {'OK', done}
