"""Lua scripts that run atomically in Redis: rate-limit windows of a minute, and what accounts have spent and reserved.

All numbers are integers in hashes under our prefix; USD in billionths. Anything else found under our names is removed.
All names share a hash tag, so that a cluster keeps them on one server: a request may be charged to several accounts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.state import link
from manallm_proxy.state.names import PREFIX


@frozen
class Script:
    """One script. It is sent in full once; after that, only its digest is."""

    text: str = field(repr=False)
    least: int | None = None
    """Min number of integers in its result; None: the result is something else."""
    digest: str = field(init=False)

    @digest.default
    def _digest(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Any, names: Sequence[str], *arguments: str | int) -> list[Any]:
        """The script's result. Raises ValueError for a result that only some other server can have sent."""
        found: list[Any]
        try:
            found = await client.evalsha(self.digest, len(names), *names, *arguments)
        except Exception as error:  # by name, since the library may not be installed
            if type(error).__name__ != "NoScriptError":
                raise
            found = await client.eval(self.text, len(names), *names, *arguments)
        is_sound = type(found) is list and (self.least is None or all(type(each) is int for each in found))
        if not is_sound or len(found) < (self.least or 0):
            raise ValueError("not what the script returns")
        return found


READ: Final = Script("""
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'none' then return {} end
if kind ~= 'string' then
    redis.call('UNLINK', KEYS[1])
    return {}
end
if ARGV[3] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
local part = redis.call('GETRANGE', KEYS[1], ARGV[1], ARGV[2])
return {part, redis.call('PTTL', KEYS[1]), redis.call('STRLEN', KEYS[1])}
""")
"""An entry from one byte to another, its remaining milliseconds, which the third argument resets (0: unchanged), and
its size. Removes anything that cannot be an entry of ours."""


@define(eq=False)
class ServerClock:
    """Estimates the server's time, from its latest answer, to set deadlines after which a script must do nothing."""

    _ahead: float | None = None

    def learn(self, microseconds: int, now: float) -> None:
        """`now`: our own clock, in seconds."""
        self._ahead = microseconds / 1e6 - now

    def until(self, now: float) -> int:
        """The deadline, in the server's microseconds: now plus the longest use of a link; 0: its time is unknown."""
        return round((now + self._ahead + link.longest()) * 1e6) if self._ahead is not None else 0


def name_of(kind: str, whose: str) -> str:
    """The key in Redis. Hashed, so that the names of client keys do not reach the server."""
    return f"{PREFIX}{{spend}}:{kind}:{hashlib.sha256(whose.encode()).hexdigest()[:32]}"


REQUESTS: Final = Script(
    """
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind ~= 'zset' then redis.call('UNLINK', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local span, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - span)
local passed = redis.call('ZCARD', KEYS[1])
if passed < limit then
    redis.call('ZADD', KEYS[1], now, ARGV[3])
    redis.call('PEXPIRE', KEYS[1], math.ceil(span / 1000))
    return {1, passed + 1, 0}
end
local first = redis.call('ZRANGE', KEYS[1], passed - limit, passed - limit, 'WITHSCORES')
return {0, passed, math.ceil(first[2] + span - now)}
""",
    3,
)
"""A request of a sliding window, by the server's clock: whether it passes, how many have, µs until one may."""

_COMMON: Final = """
local function whole(number)
    return string.format('%.0f', number)
end
local function numbers(key)
    local kind = redis.call('TYPE', key)['ok']
    if kind == 'none' then return {} end
    local found = (kind == 'hash' and redis.call('HLEN', key) <= 500) and {} or nil
    if found then
        local rows = redis.call('HGETALL', key)
        for at = 1, #rows, 2 do
            local number = tonumber(rows[at + 1])
            if not number or number % 1 ~= 0 or number < 0 or number > 9007199254740992 then
                found = nil
                break
            end
            found[rows[at]] = number
        end
    end
    if not found then redis.call('UNLINK', key) end
    return found or {}
end
local function spent(key, rows, day, month, floor)
    local names = {'d' .. day .. 'u', 'd' .. day .. 't', 'm' .. month .. 'u', 'm' .. month .. 't'}
    local found = {}
    for at, name in ipairs(names) do
        found[at] = rows[name] or 0
        if floor[at] > found[at] then
            found[at] = floor[at]
            redis.call('HSET', key, name, whole(floor[at]))
        end
    end
    return names, found
end
local function lessen(key, name, number)
    local left = (tonumber(redis.call('HGET', key, name) or '') or 0) - number
    if left > 0 then redis.call('HSET', key, name, whole(left)) else redis.call('HDEL', key, name) end
end
local function record(sender, id, rows)
    if redis.call('TYPE', sender)['ok'] ~= 'hash' then redis.call('UNLINK', sender) end
    redis.call('HSET', sender, id, cjson.encode(rows))
    redis.call('EXPIRE', sender, 86400)
end
local LIFETIME = 2851200000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local minute = math.floor(now / 60000000)
local tick = math.floor(now / 500000)
local function is_late(limit)
    return tonumber(limit) > 0 and now > tonumber(limit)
end
"""
"""``spent``: of a day and of a month; what somebody knows to be more (``floor``) was lost here, and stands again."""
TICK: Final = 0.5
"""Seconds of a tick."""
TICKS: Final = 120
"""Ticks after which tokens of a window expire; those of the current one count until its end."""
LATE: Final = -1
MINUTE: Final = 60_000_000
"""Microseconds of a minute."""
HELD_MINUTES: Final = 15
"""Minutes after which a reservation expires: its process has died, or its answer is very long."""

TOKENS: Final = Script(
    f"""{_COMMON}
local limit, sure, likely, id = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]
if is_late(ARGV[4]) then return {{{LATE}, 0, 0, 0, now}} end
local used, ticks = 0, {{}}
for name, number in pairs(numbers(KEYS[1])) do
    local at = tonumber(name)
    if at and at >= tick - {TICKS} and at <= tick + {TICKS} then
        used = used + number
        ticks[#ticks + 1] = {{at, number}}
    else
        redis.call('HDEL', KEYS[1], name)
    end
end
if used >= limit or used + sure > limit then
    table.sort(ticks, function(one, other) return one[1] < other[1] end)
    local left, wait = used, 0
    for _, row in ipairs(ticks) do
        if left < limit and left + sure <= limit then break end
        left, wait = left - row[2], (row[1] + 1 + {TICKS}) * 500000 - now
    end
    return {{0, used, math.ceil(wait), 0, now}}
end
local taken = math.min(sure + likely, limit - used)
redis.call('HINCRBY', KEYS[1], whole(tick), whole(taken))
redis.call('PEXPIRE', KEYS[1], 61000)
record(KEYS[2], id, {{whole(tick), whole(taken)}})
return {{1, used + taken, tick, taken, now}}
""",
    5,
)
"""Tokens of a sliding window: whether they pass, how many have, when, how many it took, and the server's time.

`sure` ones must fit, `likely` ones only as far as there is room. Where they do not pass, the third number is
microseconds until they may. The last arguments are the server's time (microseconds; 0: not known) after which nobody
waits for it any more: then it does nothing, and says `LATE`; and under which name the sender may undo it.
"""

HOLD: Final = Script(
    f"""{_COMMON}
local asked = cjson.decode(ARGV[1])
if is_late(ARGV[2]) then return {{{LATE}, now, 0, 0}} end
local room, blocked, told = {{u = math.huge, t = math.huge}}, 0, {{}}
for at, account in ipairs(asked.accounts) do
    local rows, held = numbers(KEYS[at]), {{u = 0, t = 0}}
    for name, number in pairs(rows) do
        local kind, when, unit = string.match(name, '^([dmh])(%d+)([ut])$')
        when = tonumber(when)
        if kind == 'h' and math.abs(when - minute) < {HELD_MINUTES} then
            held[unit] = held[unit] + number
        elseif not (kind == 'd' and math.abs(when - asked.day) <= 1)
            and not (kind == 'm' and math.abs(when - asked.month) <= 1) then
            redis.call('HDEL', KEYS[at], name)
        end
    end
    local _, found = spent(KEYS[at], rows, asked.day, asked.month, account.floor)
    for _, limit in ipairs(account.limits) do
        local unit = limit[2]
        local place = (limit[1] == 'month' and 2 or 0) + (unit == 't' and 2 or 1)
        local left = limit[3] - found[place] - held[unit]
        room[unit] = math.min(room[unit], left)
        if blocked == 0 and (left <= 0 or asked.sure[unit] > left) then blocked = at end
    end
    for _, number in ipairs({{found[1], found[2], found[3], found[4], held.u, held.t}}) do
        told[#told + 1] = number
    end
end
local answer = {{blocked, now, 0, 0}}
if blocked == 0 then
    local u = math.min(asked.sure.u + asked.likely.u, room.u)
    local t = math.min(asked.sure.t + asked.likely.t, room.t)
    local names = {{'h' .. minute .. 'u', 'h' .. minute .. 't'}}
    for at = 1, #asked.accounts do
        redis.call('HINCRBY', KEYS[at], names[1], whole(u))
        redis.call('HINCRBY', KEYS[at], names[2], whole(t))
        redis.call('PEXPIRE', KEYS[at], LIFETIME)
    end
    record(KEYS[#asked.accounts + 1], ARGV[3], {{names[1], whole(u), names[2], whole(t)}})
    answer[3], answer[4] = u, t
end
for _, number in ipairs(told) do answer[#answer + 1] = number end
return answer
""",
    4,
)
"""Reserves what a call may cost, of all accounts or of none.

Returns the first account in which there is too little left (0: all have enough; `LATE`: see `TOKENS`), the server's
time, in whose minute it is reserved, USD and tokens that are; then of each account: spent in the day and in the month
(USD, tokens; USD, tokens), and what was reserved already (USD, tokens). `sure` and `likely`: as in `TOKENS`.
"""

SETTLE: Final = Script(
    f"""{_COMMON}
local asked, told, sender = cjson.decode(ARGV[1]), {{}}, KEYS[1]
if redis.call('TYPE', sender)['ok'] ~= 'hash' then redis.call('UNLINK', sender) end
local is_new = redis.call('HGET', sender, 'number') ~= asked.number
if is_new then
    redis.call('HSET', sender, 'number', asked.number)
    redis.call('EXPIRE', sender, 86400)
    for _, row in ipairs(asked.passed) do
        local key = KEYS[row[1]]
        if redis.call('TYPE', key)['ok'] ~= 'zset' then redis.call('UNLINK', key) end
        redis.call('ZADD', key, now - row[3], row[2])
        redis.call('PEXPIRE', key, 61000)
    end
    for _, row in ipairs(asked.undone) do
        local found = redis.call('HGET', sender, row[2])
        local rows = found and cjson.decode(found) or {{}}
        for _, at in ipairs(row[1]) do
            numbers(KEYS[at])
            for n = 1, #rows, 2 do lessen(KEYS[at], rows[n], tonumber(rows[n + 1])) end
        end
        redis.call('HDEL', sender, row[2])
    end
    for _, id in ipairs(asked.done) do redis.call('HDEL', sender, id) end
    for _, row in ipairs(asked.exceeded) do
        numbers(KEYS[row[1]])
        redis.call('HINCRBY', KEYS[row[1]], whole(tick - row[3]), whole(row[2]))
        redis.call('PEXPIRE', KEYS[row[1]], 61000)
    end
    for _, row in ipairs(asked.unused) do
        numbers(KEYS[row[1]])
        lessen(KEYS[row[1]], whole(row[2]), row[3])
        redis.call('PEXPIRE', KEYS[row[1]], 61000)
    end
    for _, row in ipairs(asked.holds) do
        numbers(KEYS[row[1]])
        lessen(KEYS[row[1]], 'h' .. row[2] .. 'u', row[3])
        lessen(KEYS[row[1]], 'h' .. row[2] .. 't', row[4])
    end
end
for _, row in ipairs(asked.costs) do
    local key, u, t = KEYS[row[1]], row[5], row[6]
    local names, found = spent(key, numbers(key), row[2], row[3], row[4])
    local more = is_new and {{u, t, u, t}} or {{0, 0, 0, 0}}
    for at, name in ipairs(names) do
        if more[at] > 0 then redis.call('HINCRBY', key, name, whole(more[at])) end
        told[#told + 1] = found[at] + more[at]
    end
    redis.call('PEXPIRE', key, LIFETIME)
end
return told
""",
    0,
)
"""Gives back what was reserved and counts what was spent instead, once for each number of a sender. Undoes what it had
asked for and nobody waited for (see `TOKENS`), and counts requests that passed without being asked for.

Returns of each cost what its account has spent in that day and that month (USD, tokens; USD, tokens).
"""
