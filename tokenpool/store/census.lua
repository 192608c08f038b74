-- The names of all pages and limits, and the state of the lease store; the silent are taken off first.
expire()
opening()
local names, seen = redis.call('HKEYS', LIMITS), {}
for _, name in ipairs(names) do seen[name] = true end
for _, name in ipairs(redis.call('HKEYS', PAGES)) do
  if not seen[name] then names[#names + 1] = name end
end
return cmsgpack.pack({
  names, tonumber(redis.call('HGET', META, 'epoch') or 0),
  is_open and now - tonumber(redis.call('HGET', META, 'heard_at')) <= LIFETIME, now,
  redis.call('HGET', META, 'file_version') or '',
})
