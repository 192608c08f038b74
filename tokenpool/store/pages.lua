-- Some pages as they are kept, in the order of the names that were asked for.
local pages = {}
for i, name in ipairs(message.names) do
  pages[i] = redis.call('HGET', page_key(name), 'p') or ''
end
return pages
