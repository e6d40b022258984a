-- Save. ARGV[4] is the encoded record.
local head, why = live()
if not head and why ~= MISSING then return why end
local new = ARGV[1] == string.rep('\0', 8)
if new and head then return CONFLICT end
if not new and not (head and sub(head, 2, 9) == ARGV[1]) then return CONFLICT end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
return DONE
