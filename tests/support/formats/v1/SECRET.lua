-- The secret that the sidecars of the pool share.
-- Arguments: ARGV[2], a new secret, used if there is none. Result: the secret in force. Each call renews its expiry.
-- Atomic: two sidecars that find no secret would each use their own.
local secret = redis.call('GET', SECRET) or ARGV[2]
redis.call('SET', SECRET, secret, 'PX', KEEP_MS)
return secret
