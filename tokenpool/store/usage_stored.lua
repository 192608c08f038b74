-- The usage store has some batches: remove them from the stream, and let their sidecars know.
-- Arguments: message.entries, message.spools and message.numbers of the batches; message.kept_ms. Result: none.
-- Atomic: a batch leaves the stream in the same step as it becomes known as stored.
local STREAM, GROUP = prefix .. ':usage', 'usage'
for place, entry in ipairs(message.entries) do
  redis.pcall('XACK', STREAM, GROUP, entry) -- the group may be gone, after Redis was emptied
  redis.call('XDEL', STREAM, entry)
  local STORED = prefix .. ':usage:stored:' .. message.spools[place]
  redis.call('SADD', STORED, message.numbers[place])
  redis.call('PEXPIRE', STORED, message.kept_ms)
end
