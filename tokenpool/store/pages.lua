-- Some pages as they are kept, and their limits, each in the order of the names that were asked for.
return {redis.call('HMGET', PAGES, unpack(message.names)), redis.call('HMGET', LIMITS, unpack(message.names))}
