-- Touch. ARGV[4] is bytes 2-33 of the new header.
local head, why = live()
if not head then return why end
if sub(head, 2, 9) ~= ARGV[1] then return CONFLICT end
redis.call('SETRANGE', KEYS[1], 1, ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return DONE
