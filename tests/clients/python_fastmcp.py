"""The client of FastMCP with fastmcp-tasks, which supports tasks: python python_fastmcp.py MODE (stdio PROGRAM ARGUMENT... | http URL)

MODE is "as-is", or "with-name": over HTTP, the requests about tasks then have the header Mcp-Name, which the protocol demands.
"""

import asyncio
import sys
from contextlib import asynccontextmanager

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp_tasks import ToolTask, call_tool_task
from fastmcp_tasks.client_models import CancelTaskRequest, GetTaskRequest, UpdateTaskRequest
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, REQUEST_TIMEOUT
from scenarios import COMPANIONS, OWN_LIMIT, POLL, expect, increasing, kill, recover, run, worked

MODE, TRANSPORT, TARGET, *ARGUMENTS = sys.argv[1:]
if MODE == "with-name":
    for request in (GetTaskRequest, UpdateTaskRequest, CancelTaskRequest):
        request.name_param = "taskId"


class Connected:
    def __init__(self):
        self.questions = 0

    async def answer(self, message, _type, _params, _context):
        self.questions += 1
        expect(message == "Which name?", message)
        return {"name": "Ada"}

    async def call(self, name, arguments, **options):
        return await self.client.call_tool(name, arguments, **options)

    async def start(self, name, arguments):
        return await call_tool_task(self.client, name, arguments)

    def task(self, task):
        """Returns the same task, for use over this connection."""
        return ToolTask(self.client, task._tool_name, task.create_result)


@asynccontextmanager
async def connect():
    connected = Connected()
    server = StdioTransport(TARGET, ARGUMENTS, keep_alive=False) if TRANSPORT == "stdio" else TARGET
    async with Client(server, elicitation_handler=connected.answer) as connected.client:
        yield connected


async def reached(task, wanted):
    """Waits until the state of a task is wanted."""
    while not wanted(state := await task.status()):
        await asyncio.sleep(POLL)
    return state


async def quick(client, _connect):
    tools = {tool.name for tool in await client.client.list_tools()}
    expect(tools and tools.isdisjoint(COMPANIONS), tools)
    # The client claims the result, if it is a task.
    result = await client.client.session.call_tool("work", {"seconds": 0}, allow_claimed=True)
    return worked(result, 0)


async def slow(client, _connect):
    notified = []

    async def note(progress, _total, _message):
        notified.append(progress)

    # This call polls the task.
    result = await client.call("work", {"seconds": 4}, progress_handler=note)
    return "task, " + worked(result, 4) + (", progress" if increasing(notified) else "")


async def question(client, _connect):
    task = await client.start("greet", {})
    result = await task.result()
    expect(client.questions == 1 and result.content[0].text == "Hello, Ada!", result)
    return "task, asked, result"


async def longer(client, _connect):
    task = await client.start("work", {"seconds": 7})
    return "task, " + worked(await task.result(), 7)


async def cancel(client, _connect):
    task = await client.start("wait", {})
    await task.cancel()
    state = await task.wait()
    expect(state.status == "cancelled", state)
    return "task, tasks/cancel, cancelled"


async def limit(client, _connect):
    task = await client.start("work", {"seconds": 2.5})
    try:
        expect(False, await task.wait(timeout=OWN_LIMIT))
    except TimeoutError as error:
        print(f"limit: {error!r}", file=sys.stderr)
    except MCPError as error:
        # The limit may end a request.
        if error.code != REQUEST_TIMEOUT:
            raise
    return "task, gives up, tasks/get, " + worked(await task.result(), 2.5)


async def killed(client, connect):
    task = await client.start("survive", {})
    running = await reached(task, lambda state: "in process" in (state.status_message or ""))
    process = kill(running.status_message)
    client, is_new = await recover(client, connect)
    result = await client.task(task).result()
    expect(result.content[0].text == f"survived process {process} in attempt 2", result)
    return ", ".join(["task", *(["reconnects"] if is_new else []), "tasks/get", "result"])


def refusable(scenario):
    """Plays a scenario in which the server may refuse requests about tasks for want of their header."""

    async def play(client, connect):
        try:
            return await scenario(client, connect)
        except MCPError as error:
            if error.code != HEADER_MISMATCH:
                raise
            return f"task, refused ({error.code})"

    play.__name__ = scenario.__name__
    return play


SCENARIOS = [quick, slow, question, longer, cancel, limit, killed]
asyncio.run(run([refusable(scenario) for scenario in SCENARIOS], connect))
