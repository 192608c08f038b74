-- Read the learned prices of all sidecars.
-- Arguments: message.remember_prices. ARGV[2]: a key for the pool's prefix hashes, if it has none.
-- Result: the key, the holders, and the prices of each holder.
-- Atomic: all sidecars must get the same key.
redis.call('SET', PRICE_KEY, ARGV[2], 'NX')
keep(PRICE_KEY)
local holders = redis.call('ZRANGEBYSCORE', PRICE_WRITERS, '(' .. exact(now - message.remember_prices), '+inf')
return {redis.call('GET', PRICE_KEY), holders, fields_of(PRICES, holders)}
