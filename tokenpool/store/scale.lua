-- The scale hint as it was stored, when that was, and the time now; the hint is missing where none is stored.
local kept = redis.call('HMGET', prefix .. ':scale', 'content', 'at')
return {kept[1], kept[2], exact(now)}
