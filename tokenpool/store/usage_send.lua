-- Add batches of usage records to the stream of the pool, and read which batches the usage store has.
-- Arguments: message.spool, the id of the sidecar's process; message.numbers, the numbers of the new batches;
-- message.entries and message.entry_numbers, the entries and the numbers of the batches that are in flight;
-- message.most, the most entries of the stream. ARGV[2], ARGV[3], ...: the contents of the new batches.
-- Result: the entries of the new batches; the numbers of stored batches; the numbers of batches in flight that are
-- neither stored nor in the stream, and must be sent again.
-- Atomic: a batch leaves the stream in the same step as it becomes known as stored.
local STREAM, STORED = prefix .. ':usage', prefix .. ':usage:stored:' .. message.spool
local stored, is_stored, missing, entries = {}, {}, {}, {}
for _, number in ipairs(redis.call('SMEMBERS', STORED)) do
  stored[#stored + 1] = tonumber(number)
  is_stored[tonumber(number)] = true
end
redis.call('DEL', STORED)
for place, entry in ipairs(message.entries) do
  local number = message.entry_numbers[place]
  if not is_stored[number] and #redis.call('XRANGE', STREAM, entry, entry) == 0 then missing[#missing + 1] = number end
end
for place, number in ipairs(message.numbers) do
  entries[place] = redis.call('XADD', STREAM, 'MAXLEN', '~', message.most, '*', 'spool', message.spool,
    'number', number, 'records', ARGV[place + 1])
end
keep(STREAM)
return {entries, stored, missing}
