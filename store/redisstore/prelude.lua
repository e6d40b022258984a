-- Common to all scripts. A record is what driver.Encode writes:
--   version 1 | revision 2-9 | created 10-17 | seen 18-25 | expires 26-33 | user length 34-35 | user | fields
-- (offsets from 1). Lua numbers are doubles and its string order depends on the locale, so 64-bit numbers stay
-- strings: equal ones are equal bytes, and order is decided on two halves of 32 bits, which doubles hold exactly.
--
-- KEYS[1] is the record's key. ARGV[1] is the revision the caller started from, ARGV[2] the caller's clock, both
-- 8 bytes, and ARGV[3] the milliseconds the key is to live, in decimal.
local DONE, MISSING, CONFLICT, VERSION, CORRUPT = 0, 1, 2, 3, 4
local REVISION, TIME = '>I4I4', '>i4I4' -- times are signed
local sub, byte = string.sub, string.byte

local function larger(kind, a, b)
  local ah, al = struct.unpack(kind, a)
  local bh, bl = struct.unpack(kind, b)
  return ah > bh or (ah == bh and al > bl)
end

-- live returns the header of the stored record, or why there is none.
local function live()
  local head = redis.call('GETRANGE', KEYS[1], 0, 34)
  if head == '' then return nil, MISSING end
  if byte(head) ~= 1 then return nil, VERSION end
  if #head < 35 then return nil, CORRUPT end
  if not larger(TIME, sub(head, 26, 33), ARGV[2]) then return nil, MISSING end
  return head
end
