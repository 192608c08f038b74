-- The stored scale hint, the time of storing, and the time now; the first two are nil if no hint is stored.
local kept = redis.call('HMGET', prefix .. ':scale', 'content', 'at')
return {kept[1], kept[2], exact(now)}
