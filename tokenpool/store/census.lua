-- The names of all pages, and the state of the books; the silent are taken off first.
expire()
opening()
return cmsgpack.pack({
  redis.call('SMEMBERS', PAGES), tonumber(redis.call('HGET', META, 'epoch') or 0),
  is_open and now - tonumber(redis.call('HGET', META, 'heard_at')) <= LIFETIME, now,
  redis.call('HGET', META, 'file_version') or '',
})
