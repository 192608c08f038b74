-- Some pages as they are kept, and their limits, in the order of the names that were asked for.
local pages = {}
for i, name in ipairs(message.names) do
  pages[i] = redis.call('HMGET', page_key(name), 'p', 'l')
end
return pages
