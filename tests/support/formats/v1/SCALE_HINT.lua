-- Read the scale hint.
-- Arguments: none. Result: the content, the time of storing, and the time now. The first two are nil if none is stored.
-- Atomic: both times are of one clock, and the age belongs to the content.
local content, at = unpack(redis.call('HMGET', SCALE_HINT, 'content', 'at'))
return {content, at, exact(now)}
