-- Read the learned prices of all sidecars.
-- Arguments: none. Result: the holders, and the prices of each holder.
-- Atomic: a holder and its prices are removed together.
local holders = redis.call('ZRANGEBYSCORE', PRICE_WRITERS, '(' .. exact(now - message.keep), '+inf')
return {holders, fields_of(PRICES, holders)}
