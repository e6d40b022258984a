-- Merge. ARGV[4] is the caller's base with its changes laid over it, encoded; ARGV[5] and on are the names of the
-- changed fields. Their values are in ARGV[4]; a name that is not there was removed.
-- Returns the stored record if it is another than ARGV[4].
local head, why = live()
if not head then return why end
local mine = ARGV[4]
if sub(head, 2, 9) == ARGV[1] then
  redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
  return DONE
end

local old = redis.call('GETRANGE', KEYS[1], 0, -1)
local fields = 36 + struct.unpack('>I2', old, 34)
if #old < fields - 1 then return CORRUPT end
local user = sub(old, 34, fields - 1)
if sub(old, 10, 17) ~= sub(mine, 10, 17) or user ~= sub(mine, 34, fields - 1) then
  return CONFLICT
end

local changed = {}
for i = 5, #ARGV do changed[ARGV[i]] = true end
local parts = {''} -- room for the header

-- take appends the changed fields of blob to parts, or the others. It reports whether the fields were well-formed.
local function take(blob, wanted)
  local run, at = fields, fields -- neighbours that are taken are copied together
  while at <= #blob do
    if at + 5 > #blob then return false end
    local a, b = byte(blob, at, at + 1)
    local value = at + 6 + a * 256 + b
    if value - 1 > #blob then return false end
    local c, d, e, f = byte(blob, value - 4, value - 1)
    local stop = value + ((c * 256 + d) * 256 + e) * 256 + f
    if stop - 1 > #blob then return false end
    if (changed[sub(blob, at + 2, value - 5)] or false) ~= wanted then
      if run < at then parts[#parts + 1] = sub(blob, run, at - 1) end
      run = stop
    end
    at = stop
  end
  if run < at then parts[#parts + 1] = sub(blob, run) end
  return true
end
if not take(old, false) or not take(mine, true) then return CORRUPT end

local revision, stored = sub(mine, 2, 9), sub(old, 2, 9)
if not larger(REVISION, revision, stored) then
  local high, low = struct.unpack(REVISION, stored)
  low = low + 1
  if low == 4294967296 then high, low = high + 1, 0 end
  if high == 4294967296 then return CORRUPT end -- no writer gets here: there is no larger revision
  revision = struct.pack(REVISION, high, low)
end
local seen = sub(old, 18, 25)
if larger(TIME, sub(mine, 18, 25), seen) then seen = sub(mine, 18, 25) end
local expires, life = sub(old, 26, 33), {'KEEPTTL'}
if larger(TIME, sub(mine, 26, 33), expires) then
  expires, life = sub(mine, 26, 33), {'PX', ARGV[3]}
end
parts[1] = sub(old, 1, 1) .. revision .. sub(old, 10, 17) .. seen .. expires .. user
local blob = table.concat(parts)
redis.call('SET', KEYS[1], blob, unpack(life))
return blob
