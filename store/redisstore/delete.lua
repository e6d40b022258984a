-- Delete that replicas have to confirm. Deleting what is absent is no write, and WAIT would confirm nothing: neither this
-- call nor one before it, whose confirmation failed. So there is always a write.
if redis.call('DEL', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], '', 'PX', 1)
  redis.call('DEL', KEYS[1])
end
return 0
