"""What runs in the server: each call of the contract is one script, judged and done in one step.

A session is a hash under its key, an alias is another. Their fields:

    m    a session's times: the format's version and three doubles, created, touched, deadline
    u d  its user and device
    a    the keys of its aliases, 64 characters each
    =x   the value of the name x
    >    an alias's end, after the version, and the key that it stands for

Beside them ``@due``, all sessions by deadline; ``@ends``, all aliases by end; ``@user:...``, a
user's sessions by deadline; ``@lock:...``. In a cluster all names of one part begin with its tag.

While a cluster moves a slot, a part of what a script needs may be here and a part there. So it
names the lists in its KEYS, and looks at all that it will change before it changes anything: then
it is refused as a whole, as it is when something else lies under one of these names.

Times travel as doubles, so a deadline is exact. Native expiry counts from the app's clock, like
everything: it only removes what nobody purged.
"""

from __future__ import annotations

from hashlib import sha1

from . import replies
from .wire import Meaning

#: Seconds that the server keeps a session beyond its deadline, so that a purge can announce it.
GRACE = 86_400
#: What a script says of a session's name under which something else lies.
DAMAGE = "CORRUPT"

_PRELUDE = (
    f"local GRACE = {GRACE * 1000}\n"
    + """
local space, now = ARGV[1], struct.unpack('<d', ARGV[2])
local due, ends = KEYS[2], KEYS[3]

local function number(x) return string.format('%.17g', x) end

-- Whether a command met something else under a name than what it is for. Other errors go on.
local function is_of_another_type(found)
  if type(found) ~= 'table' or not found.err then return false end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found.err) end
  return true
end

-- What lies under a key: {alias}, or {false, times, user, aliases}, or nothing.
local function look(key)
  local there = redis.pcall('HMGET', space .. key, '>', 'm', 'u', 'a')
  if is_of_another_type(there) then error('CORRUPT') end
  if there[1] then
    if #there[1] ~= 73 or string.byte(there[1]) ~= 1 then error('CORRUPT') end
  elseif there[2] then
    if #there[2] ~= 25 or string.byte(there[2]) ~= 1 then error('CORRUPT') end
  elseif redis.call('EXISTS', space .. key) == 1 then
    error('CORRUPT')
  end
  return there
end

-- The key that a live alias stands for, or the key itself, and the session there, if there is one.
local function find(key)
  local there = look(key)
  if there[1] then
    if now >= struct.unpack('<d', there[1], 2) then return key, {} end
    key = string.sub(there[1], 10)
    there = look(key)
    if there[1] then return key, {} end
  end
  return key, there
end

local function times(there)
  return struct.unpack('<ddd', there[2], 2)
end

local function lives(there)
  if not there[2] then return false end
  local _, _, deadline = times(there)
  return now < deadline
end

local function expire(name, deadline)
  local left = math.max(0, (deadline - now) * 1000)
  if left > 1e14 then
    redis.call('PERSIST', name)
  else
    redis.call('PEXPIRE', name, string.format('%.0f', left + GRACE))
  end
end

local function user_list(user) return space .. '@user:' .. user end

local function enlist(key, deadline, user)
  redis.call('ZADD', due, number(deadline), key)
  if not user then return end
  local list = user_list(user)
  if redis.call('ZADD', list, number(deadline), key) == 1 then
    -- Whoever comes takes two along that have left without a word: so the list cannot grow.
    for _, other in ipairs(redis.call('ZRANGE', list, 0, 1)) do
      if redis.call('EXISTS', space .. other) == 0 then redis.call('ZREM', list, other) end
    end
  end
  expire(list, tonumber(redis.call('ZRANGE', list, -1, -1, 'WITHSCORES')[2]))
end

-- An end must not fail for a user's list that is none.
local function leave(user, key)
  is_of_another_type(redis.pcall('ZREM', user_list(user), key))
end

local function delist(key, user)
  redis.call('ZREM', due, key)
  if user then leave(user, key) end
end

-- {alias, its end} for each alias in the session's list that still leads to the key.
local function aliases_of(key, there)
  local found = {}
  for i = 1, #(there[4] or ''), 64 do
    local alias = string.sub(there[4], i, i + 63)
    local mark = redis.pcall('HGET', space .. alias, '>')
    if not is_of_another_type(mark) and mark and string.sub(mark, 10) == key then
      found[#found + 1] = {alias, (struct.unpack('<d', mark, 2))}
    end
  end
  return found
end

-- All that lies beside a session, looked at before anything is changed.
local function beside(key, there)
  redis.call('ZCARD', due)
  if there[3] then redis.call('EXISTS', user_list(there[3])) end
  if there[4] then redis.call('ZCARD', ends) end
  return aliases_of(key, there)
end

local function drop_alias(alias)
  redis.call('DEL', space .. alias)
  redis.call('ZREM', ends, alias)
end

local function add_alias(alias, key, stops, deadline)
  redis.call('HSET', space .. alias, '>', '\\1' .. struct.pack('<d', stops) .. key)
  redis.call('ZADD', ends, number(stops), alias)
  expire(space .. alias, math.min(stops, deadline))
end

-- Take away what lies under a key: a session with its aliases, or an alias.
local function remove(key, there)
  if there[1] then
    drop_alias(key)
  elseif there[2] then
    local aliases = beside(key, there)
    redis.call('DEL', space .. key)
    delist(key, there[3])
    for _, alias in ipairs(aliases) do drop_alias(alias[1]) end
  end
end

-- Call a command for so many arguments at a time as Lua can pass.
local function in_slices(command, name, list)
  for i = 1, #list, 1000 do
    redis.call(command, name, unpack(list, i, math.min(i + 999, #list)))
  end
end
"""
)


class Script:
    """A text for the server, after the prelude. Its KEYS are a session, ``@due`` and ``@ends``.

    ``means`` is what it may return.
    """

    def __init__(self, text: str, means: Meaning, writes: bool = True) -> None:
        self.text = (_PRELUDE + text).encode()
        self.means = means
        self.writes = writes
        # The server's name for it, no secret's.
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


#: Follow an alias in one step. -> {key, fields and values}
LOAD = Script(
    """
local key, there = find(ARGV[3])
if not lives(there) then return false end
return {key, redis.call('HGETALL', space .. key)}
""",
    replies.record_or_none,
    writes=False,
)

#: 3 key, 4 flags, 5 deadline, 6 touched, 7 user, 8 device, 9 how many names are expected, each with
#: its value; how many are dropped, and their fields; the rest is put, field by field.
#: -> the key that it landed on, or 'gone', or 'taken', or {key, fields and values}: a conflict
COMMIT = Script(
    """
local create, wipe = ARGV[4] == 'create', ARGV[4] == 'wipe'
local key, there = find(ARGV[3])
local alive = lives(there)
if create and alive then return 'taken' end
if not create and not alive then return 'gone' end

local at = 10
for _ = 1, tonumber(ARGV[9]) do
  local wanted = ARGV[at + 1]
  local held = redis.call('HGET', space .. key, ARGV[at])
  if not create and (held and '=' .. held or '') ~= wanted then
    return {key, redis.call('HGETALL', space .. key)}
  end
  at = at + 2
end

local user = there[3]
if create then user = false end
if ARGV[7] ~= '' then user = ARGV[7] ~= '-' and string.sub(ARGV[7], 2) end
if user then redis.call('ZCARD', user_list(user)) end
local aliases = beside(key, there)

local created, touched, deadline = now, now, math.huge
if create then
  key = ARGV[3]
  remove(key, look(key))
  there, aliases = {}, {}
else
  created, touched, deadline = times(there)
end
local before, hash = deadline, space .. key

if wipe then
  local old = {}
  for _, field in ipairs(redis.call('HKEYS', hash)) do
    if string.sub(field, 1, 1) == '=' then old[#old + 1] = field end
  end
  in_slices('HDEL', hash, old)
end
local dropped, fields = tonumber(ARGV[at]), {}
for i = at + 1, at + dropped do fields[#fields + 1] = ARGV[i] end
in_slices('HDEL', hash, fields)

if ARGV[5] ~= '' then deadline = struct.unpack('<d', ARGV[5]) end
if ARGV[6] ~= '' then touched = struct.unpack('<d', ARGV[6]) end
local times_now, puts = '\\1' .. struct.pack('<ddd', created, touched, deadline), {}
if times_now ~= there[2] then puts = {'m', times_now} end
for i = at + dropped + 1, #ARGV do puts[#puts + 1] = ARGV[i] end
if user then
  if user ~= there[3] then puts[#puts + 1], puts[#puts + 2] = 'u', user end
elseif there[3] then
  redis.call('HDEL', hash, 'u')
end
if ARGV[8] == '-' then
  redis.call('HDEL', hash, 'd')
elseif ARGV[8] ~= '' then
  puts[#puts + 1], puts[#puts + 2] = 'd', string.sub(ARGV[8], 2)
end
in_slices('HSET', hash, puts)

local moved = create or deadline ~= before
if there[3] and there[3] ~= user then leave(there[3], key) end
if moved or user ~= (there[3] or false) then enlist(key, deadline, user) end
if moved then
  expire(hash, deadline)
  for _, alias in ipairs(aliases) do
    expire(space .. alias[1], math.min(alias[2], deadline))
  end
end
return key
""",
    replies.outcome,
)

#: 3 old, 4 new, 5 the alias's end, or nothing. -> the key it had, or 'gone', or 'taken'
RENAME = Script(
    """
local old, there = find(ARGV[3])
local new = ARGV[4]
if not lives(there) then return 'gone' end
local _, other = find(new)
if lives(other) then return 'taken' end
local _, _, deadline = times(there)
local stops = ARGV[5] ~= '' and struct.unpack('<d', ARGV[5])
redis.call('ZCARD', ends)
if there[3] then redis.call('ZCARD', user_list(there[3])) end
local earlier, aliases = beside(old, there), {}
remove(new, look(new))
redis.call('RENAME', space .. old, space .. new)
delist(old, there[3])
enlist(new, deadline, there[3])

for _, alias in ipairs(earlier) do
  if alias[1] == new then
    -- Its place is taken.
  elseif stops and now < alias[2] then
    add_alias(alias[1], new, alias[2], deadline)
    aliases[#aliases + 1] = alias[1]
  else
    drop_alias(alias[1])
  end
end
if stops and now < stops then
  add_alias(old, new, stops, deadline)
  aliases[#aliases + 1] = old
end
if #aliases > 0 then
  redis.call('HSET', space .. new, 'a', table.concat(aliases))
elseif there[4] then
  redis.call('HDEL', space .. new, 'a')
end
return old
""",
    replies.outcome,
)

#: 3 key. -> the key it had, or nothing. Damaged, it goes too: a logout must not fail for that.
DESTROY = Script(
    """
local well, key, there = pcall(find, ARGV[3])
if not well then
  redis.call('ZREM', due, ARGV[3])
  redis.call('ZREM', ends, ARGV[3])
  return redis.call('DEL', space .. ARGV[3]) == 1 and ARGV[3]
end
if not there[2] then return false end
remove(key, there)
return key
""",
    replies.key_or_none,
)

#: -> the time when something ends next, or nothing
FIRST = Script(
    """
local first
for _, list in ipairs({due, ends}) do
  local next = redis.call('ZRANGE', list, 0, 0, 'WITHSCORES')[2]
  if next and (not first or tonumber(next) < tonumber(first)) then first = next end
end
return first
""",
    replies.moment_or_none,
    writes=False,
)

#: 3 how many. -> {whether to ask again, {key, fields and values}, ...}
PURGE = Script(
    """
local limit = tonumber(ARGV[3])
local found = redis.call('ZRANGEBYSCORE', due, '-inf', number(now), 'LIMIT', 0, limit)
local ended = redis.call('ZRANGEBYSCORE', ends, '-inf', number(now), 'LIMIT', 0, 500)
for _, alias in ipairs(ended) do
  local well, there = pcall(look, alias)
  if well and there[1] and now >= struct.unpack('<d', there[1], 2) then
    drop_alias(alias)
  else
    redis.call('ZREM', ends, alias)
  end
end
local claimed = {(#ended == 500 or #found == limit) and 1 or 0}
for _, key in ipairs(found) do
  local well, there = pcall(look, key)
  if not (well and there[2]) then
    redis.call('ZREM', due, key)
  elseif lives(there) then
    local _, _, deadline = times(there)
    pcall(enlist, key, deadline, there[3])
  else
    claimed[#claimed + 1] = {key, redis.call('HGETALL', space .. key)}
    remove(key, there)
  end
end
return claimed
""",
    replies.claimed,
)

#: The rest are keys. -> those that live; what has no session any more leaves the list
LIVING = Script(
    """
local living = {}
for i = 3, #ARGV do
  local well, there = pcall(look, ARGV[i])
  if well and there[2] then
    if lives(there) then living[#living + 1] = ARGV[i] end
  else
    redis.call('ZREM', due, ARGV[i])
  end
end
return living
""",
    replies.keys,
    writes=False,
)

#: 3 user. -> the keys of the user's sessions; what is no longer the user's leaves the list
OF_USER = Script(
    """
local list, living = user_list(ARGV[3]), {}
for _, key in ipairs(redis.call('ZRANGE', list, 0, -1)) do
  local well, there = pcall(look, key)
  if well and there[3] == ARGV[3] then
    if lives(there) then living[#living + 1] = key end
  else
    redis.call('ZREM', list, key)
  end
end
return living
""",
    replies.keys,
    writes=False,
)

#: 3 the lock's name, 4 whose it is.
UNLOCK = Script(
    """
if redis.call('GET', ARGV[3]) ~= ARGV[4] then return 0 end
return redis.call('DEL', ARGV[3])
""",
    replies.number,
)
