-- The key with which the sidecars of the pool prove that they belong to it.
-- Arguments: ARGV[2], a new key, used if there is none. Result: the key in force. Each call renews its expiry.
-- Atomic: two sidecars that find no key would each use their own.
local key = redis.call('GET', KEY_OF_PEERS) or ARGV[2]
redis.call('SET', KEY_OF_PEERS, key, 'PX', KEEP_MS)
return key
