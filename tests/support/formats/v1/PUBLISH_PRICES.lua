-- Replace the learned prices of a sidecar.
-- Arguments: message.holder, message.most_prices. ARGV[2]: the prices. Result: none.
-- Atomic: the sidecars that wrote longest ago are removed with their prices.
local function forget(holders)
  for _, holder in ipairs(holders) do
    redis.call('ZREM', PRICE_WRITERS, holder)
    redis.call('HDEL', PRICES, holder)
  end
end
redis.call('ZADD', PRICE_WRITERS, exact(now), message.holder)
redis.call('HSET', PRICES, message.holder, ARGV[2])
forget(redis.call('ZRANGEBYSCORE', PRICE_WRITERS, '-inf', exact(now - message.keep)))
forget(redis.call('ZRANGE', PRICE_WRITERS, 0, -message.most_prices - 1))
keep(PRICES, PRICE_WRITERS)
