"""What the Python clients share: they run one scenario after the other, each over a connection of its own, and print one JSON line
a scenario. scenarios.mjs has the scenarios of clients without tasks, too."""

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import AsyncExitStack

# How long the client waits for a call in the scenario "limit". The call takes longer.
OWN_LIMIT = 1.0
SCENARIO_LIMIT = 60.0
POLL = 0.1
COMPANIONS = {"task_result", "task_list", "task_answer", "task_cancel"}
# After this time, a call whose server was killed, or a call that was cancelled, is taken to go on.
SEEN_WITHIN = 4.0
# After this time, a connection to a server that was killed is taken to be lost.
RECOVERS_WITHIN = 2.0


class Unexpected(Exception):
    pass


def expect(condition, got):
    if not condition:
        raise Unexpected(got if isinstance(got, str) else f"unexpected: {got!r}")


def worked(result, seconds):
    """Checks the result of `work`."""
    text = f"worked for {seconds} s"
    expect(result.structured_content == {"seconds": seconds} and result.content[0].text == text, result)
    return "result"


def increasing(numbers):
    return bool(numbers) and all(earlier < later for earlier, later in zip(numbers, numbers[1:]))


def kill(message):
    """Kills the process that a task names. Returns its id."""
    process = re.search(r"\d+", message)[0]
    os.kill(int(process), signal.SIGKILL)
    return process


async def fails(call):
    """Says what a call does whose server was killed."""
    done, _ = await asyncio.wait([call], timeout=SEEN_WITHIN)
    if not done:
        call.cancel()
        await asyncio.wait([call])
        return "call hangs"
    expect(call.exception() is not None, call)
    return "call fails"


async def recover(client, connect):
    """Returns a client that reaches a server again: the same, or a new one; and whether it is new."""
    try:
        async with asyncio.timeout(RECOVERS_WITHIN):
            await succeeds(lambda: client.call("process", {}))
            return client, False
    except TimeoutError:
        return await succeeds(connect), True


async def succeeds(attempt):
    """Tries until it succeeds: the first tries may still reach the process that was killed."""
    while True:
        try:
            return await attempt()
        except Exception as error:
            print(f"not yet: {error!r}", file=sys.stderr)
            await asyncio.sleep(POLL)


async def play(scenario, connect):
    """Runs one scenario. Returns what the client got."""
    got = None
    try:
        async with asyncio.timeout(SCENARIO_LIMIT), AsyncExitStack() as connections:

            async def connected():
                return await connections.enter_async_context(connect())

            got = await scenario(await connected(), connected)
    except Exception as error:
        print(f"{scenario.__name__}: {error!r}", file=sys.stderr)
        # The connection to a killed server may fail to close.
        got = got or f"FAILED: {cause(error)!r}"
    return got


def cause(error):
    """Returns the error in groups of one error each."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def run(scenarios, connect):
    """Runs all scenarios. `connect` returns the context of a client."""
    for scenario in scenarios:
        got = await play(scenario, connect)
        print(json.dumps({"scenario": scenario.__name__, "got": got}), flush=True)
    # A call that hangs must not keep the program alive.
    sys.stdout.flush()
    os._exit(0)
