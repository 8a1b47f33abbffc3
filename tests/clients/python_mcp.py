"""The official Python client: python python_mcp.py MODE (stdio PROGRAM ARGUMENT... | http URL)

MODE is "auto", the default of the client, or "legacy": a protocol version before 2026-07-28.
"""

import asyncio
import re
import sys
from contextlib import asynccontextmanager

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import ElicitResult
from scenarios import COMPANIONS, OWN_LIMIT, POLL, SEEN_WITHIN, expect, fails, increasing, kill, recover, run, worked

MODE, TRANSPORT, TARGET, *ARGUMENTS = sys.argv[1:]


class Connected:
    def __init__(self):
        self.questions = 0

    async def answer(self, _context, params):
        self.questions += 1
        expect(params.message == "Which name?", params)
        return ElicitResult(action="accept", content={"name": "Ada"})

    async def call(self, name, arguments, **options):
        return await self.client.call_tool(name, arguments, **options)


@asynccontextmanager
async def connect():
    connected = Connected()
    server = StdioServerParameters(command=TARGET, args=ARGUMENTS) if TRANSPORT == "stdio" else TARGET
    async with Client(server, mode=MODE, elicitation_callback=connected.answer) as connected.client:
        # From now on the client checks structured content against the output schema.
        connected.tools = {tool.name for tool in (await connected.client.list_tools()).tools}
        yield connected


def is_state(result):
    return "taskId" in (result.structured_content or {})


async def finish(client, task_id):
    """Waits for the result of a call whose task runs on."""
    result = await client.call("task_result", {"taskId": task_id})
    while is_state(result):
        result = await client.call("task_result", {"taskId": task_id})
    return result


async def listed(client, wanted):
    """Waits until the list of the tasks has a task that is wanted."""
    while True:
        tasks = (await client.call("task_list", {})).structured_content["tasks"]
        if task := next(filter(wanted, tasks), None):
            return task
        await asyncio.sleep(POLL)


def is_call_of(tool):
    return lambda task: task["tool"] == tool and task["status"] == "working"


async def quick(client, _connect):
    expect(client.tools > COMPANIONS, client.tools)
    return worked(await client.call("work", {"seconds": 0}), 0)


async def slow(client, _connect):
    notified = []

    async def note(progress, _total, _message):
        notified.append(progress)

    result = await client.call("work", {"seconds": 4}, progress_callback=note)
    return worked(result, 4) + (", progress" if increasing(notified) else "")


async def question(client, _connect):
    result = await client.call("greet", {})
    steps = ["asked"] if client.questions else []
    if is_state(result):
        expect("Which name?" in result.content[0].text, result)
        state = result.structured_content
        answers = {key: {"action": "accept", "content": {"name": "Ada"}} for key in state["inputRequests"]}
        await client.call("task_answer", {"taskId": state["taskId"], "answers": answers})
        result = await finish(client, state["taskId"])
        steps += ["question as text", "task_answer", "task_result"]
    expect(result.content[0].text == "Hello, Ada!", result)
    return ", ".join([*steps, "result"])


async def longer(client, _connect):
    result = await client.call("work", {"seconds": 7})
    if not is_state(result):
        return worked(result, 7)
    return "task_result, " + worked(await finish(client, result.structured_content["taskId"]), 7)


async def cancel(client, _connect):
    call = asyncio.create_task(client.call("wait", {}))
    task_id = (await listed(client, is_call_of("wait")))["taskId"]
    call.cancel()
    await asyncio.wait([call])
    steps = ["gives up"]

    def is_cancelled(task):
        return task["taskId"] == task_id and task["status"] == "cancelled"

    try:
        async with asyncio.timeout(SEEN_WITHIN):
            await listed(client, is_cancelled)
    except TimeoutError:
        await client.call("task_cancel", {"taskId": task_id})
        await listed(client, is_cancelled)
        steps.append("task_cancel")
    return ", ".join([*steps, "cancelled"])


async def limit(client, _connect):
    try:
        result = await client.call("work", {"seconds": 2.5}, read_timeout_seconds=OWN_LIMIT)
    except Exception as error:
        print(f"limit: {error!r}", file=sys.stderr)
    else:
        expect(False, result)
    task_id = (await listed(client, is_call_of("work")))["taskId"]
    return "gives up, task_result, " + worked(await finish(client, task_id), 2.5)


async def killed(client, connect):
    call = asyncio.create_task(client.call("survive", {}))
    running = await listed(client, lambda task: re.search(r"in process \d+", task.get("statusMessage") or ""))
    process = kill(running["statusMessage"])
    steps = [await fails(call)]
    client, is_new = await recover(client, connect)
    if is_new:
        steps.append("reconnects")
    result = await finish(client, running["taskId"])
    expect(result.content[0].text == f"survived process {process} in attempt 2", result)
    return ", ".join([*steps, "task_result", "result"])


asyncio.run(run([quick, slow, question, longer, cancel, limit, killed], connect))
