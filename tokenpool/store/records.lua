-- Read the records and limits of some entitlements.
-- Arguments: message.names, at most 250.
-- Result: two lists, packed records and packed limits, in the order of the names; nil if there is none.
-- Atomic: a limit and its record belong to the same moment.
return {redis.call('HMGET', RECORDS, unpack(message.names)), redis.call('HMGET', LIMITS, unpack(message.names))}
