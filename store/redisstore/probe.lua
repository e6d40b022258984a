-- Sent once, by Open: tries every command the store sends on a key that does not exist, in ways that change
-- nothing, and returns the name of the first that the user may not run, or ''.
local commands = {
  {'GET', KEYS[1]}, {'DEL', KEYS[1]}, {'GETRANGE', KEYS[1], 0, 0}, {'SETRANGE', KEYS[1], 0, ''},
  {'PEXPIRE', KEYS[1], 1}, {'SET', KEYS[1], '', 'XX', 'PX', 1},
}
local function denied(message) -- in the words of Redis 7.0, and of those before and after
  return string.find(message, 'The user executing the script can', 1, true) or string.find(message, 'NOPERM', 1, true)
end
for _, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err and denied(reply.err) then return command[1] end
end
return ''
