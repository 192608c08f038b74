-- The names of all pages, and the state of the books; the silent are taken off first.
expire()
local opens_at = opening()
return cmsgpack.pack({
  redis.call('SMEMBERS', PAGES), tonumber(redis.call('HGET', META, 'epoch') or 0), now >= opens_at, now,
})
