// What the TypeScript clients do: one scenario after the other, each over a connection of its own. Prints one JSON line a scenario:
// its name, and what the client got. scenarios.py and rmcp.rs do the same with other clients.

// How long the client waits for a call in the scenario "limit". The call takes longer.
const OWN_LIMIT_MS = 1_000;
const SCENARIO_LIMIT_MS = 60_000;
const POLL_MS = 100;
const COMPANIONS = ["task_result", "task_list", "task_answer", "task_cancel"];
// After this time, a call whose server was killed, or a call that was cancelled, is taken to go on.
const SEEN_WITHIN_MS = 4_000;
// After this time, a connection to a server that was killed is taken to be lost.
const RECOVERS_WITHIN_MS = 2_000;

const SCENARIOS = {
	async quick({ client }) {
		expect(COMPANIONS.every((tool) => client.tools.includes(tool)), client.tools);
		return worked(await client.call("work", { seconds: 0 }), 0);
	},

	// The call takes longer than the client's limit, which each notification of progress extends.
	async slow({ client }) {
		const notified = [];
		const onprogress = ({ progress }) => notified.push(progress);
		const result = await client.call("work", { seconds: 4 }, { onprogress, timeout: 2_000, resetTimeoutOnProgress: true });
		expect(increasing(notified), notified);
		return `${worked(result, 4)}, progress, limit extended`;
	},

	async question({ client }) {
		const result = await client.call("greet", {});
		const steps = client.questions > 0 ? ["asked"] : [];
		const answered = await answer(client, result, steps);
		expect(answered.content[0].text === "Hello, Ada!", answered);
		return [...steps, "result"].join(", ");
	},

	async longer({ client }) {
		const result = await client.call("work", { seconds: 7 });
		const steps = [];
		steps.push(worked(await finish(client, result, steps), 7));
		return steps.join(", ");
	},

	async cancel({ client }) {
		const abort = new AbortController();
		const call = outcome(client.call("wait", {}, { signal: abort.signal }));
		const { taskId } = await listed(client, ({ tool, status }) => tool === "wait" && status === "working");
		abort.abort();
		const steps = ["gives up"];
		expect((await call).error, "the client does not give up a cancelled call");
		const isCancelled = (task) => task.taskId === taskId && task.status === "cancelled";
		if (!(await within(SEEN_WITHIN_MS, listed(client, isCancelled)))) {
			await client.call("task_cancel", { taskId });
			await listed(client, isCancelled);
			steps.push("task_cancel");
		}
		return [...steps, "cancelled"].join(", ");
	},

	async limit({ client }) {
		const { error } = await outcome(client.call("work", { seconds: 2.5 }, { timeout: OWN_LIMIT_MS }));
		expect(error, "the client does not give up at its limit");
		const running = await listed(client, ({ tool, status }) => tool === "work" && status === "working");
		const steps = ["gives up"];
		steps.push(worked(await finish(client, state(running), steps), 2.5));
		return steps.join(", ");
	},

	async killed({ client, connect }) {
		const call = outcome(client.call("survive", {}, {}));
		const running = await listed(client, (task) => /in process \d+/.test(task.statusMessage));
		const [process_id] = running.statusMessage.match(/\d+/);
		process.kill(Number(process_id), "SIGKILL");
		const failed = await within(SEEN_WITHIN_MS, call);
		expect(!failed?.result, failed?.result);
		const steps = [failed ? "call fails" : "call hangs"];
		const { connected, isNew } = await recover(client, connect);
		if (isNew) steps.push("reconnects");
		const result = await finish(connected, state(running), steps);
		expect(result.content[0].text === `survived process ${process_id} in attempt 2`, result);
		return [...steps, "result"].join(", ");
	},
};

// Runs all scenarios. `connect` returns a client: `call(tool, arguments, options)`, the names of the `tools`, how many `questions` it
// was asked, `close()`.
export async function run(connect) {
	for (const [scenario, play] of Object.entries(SCENARIOS)) {
		const clients = [];
		const connected = async () => {
			clients.push(await connect());
			return clients.at(-1);
		};
		const played = (async () => play({ client: await connected(), connect: connected }))();
		const { result, error } = (await within(SCENARIO_LIMIT_MS, outcome(played))) ?? { error: new Error("it takes longer than a minute") };
		console.log(JSON.stringify({ scenario, got: result ?? `FAILED: ${error.message}` }));
		await Promise.allSettled(clients.map((client) => client.close()));
	}
	// A call that hangs must not keep the program alive.
	process.exit(0);
}

export function answerOf(message) {
	return message === "Which name?" ? { action: "accept", content: { name: "Ada" } } : { action: "decline" };
}

// Checks the result of `work`.
function worked(result, seconds) {
	expect(result.structuredContent?.seconds === seconds && result.content[0].text === `worked for ${seconds} s`, result);
	return "result";
}

function state({ taskId, status }) {
	return { structuredContent: { taskId, status } };
}

function isState(result) {
	return typeof result.structuredContent?.taskId === "string";
}

// Waits for the result of a call whose task runs on.
async function finish(client, result, steps) {
	if (isState(result)) steps.push("task_result");
	while (isState(result)) {
		const { taskId } = result.structuredContent;
		result = await client.call("task_result", { taskId });
	}
	return result;
}

// Answers a question that the client got as text.
async function answer(client, result, steps) {
	if (!isState(result)) return result;
	const { taskId, inputRequests } = result.structuredContent;
	expect(result.content[0].text.includes("Which name?"), result);
	const answers = Object.fromEntries(Object.keys(inputRequests).map((key) => [key, answerOf("Which name?")]));
	await client.call("task_answer", { taskId, answers });
	steps.push("question as text", "task_answer");
	return finish(client, result, steps);
}

// Waits until the list of the tasks has a task that is wanted.
async function listed(client, wanted) {
	for (;;) {
		const { structuredContent } = await client.call("task_list", {});
		const task = structuredContent.tasks.find(wanted);
		if (task) return task;
		await new Promise((resolve) => setTimeout(resolve, POLL_MS));
	}
}

// Returns a client that reaches a server again: the same, or a new one.
async function recover(client, connect) {
	if (await within(RECOVERS_WITHIN_MS, succeeds(() => client.call("process", {})))) return { connected: client, isNew: false };
	return { connected: await succeeds(connect), isNew: true };
}

// Tries until it succeeds: the first tries may still reach the process that was killed.
async function succeeds(attempt) {
	for (;;) {
		const { result } = await outcome(attempt());
		if (result) return result;
		await new Promise((resolve) => setTimeout(resolve, POLL_MS));
	}
}

function increasing(numbers) {
	return numbers.length > 0 && numbers.every((number, index) => index === 0 || number > numbers[index - 1]);
}

function outcome(promise) {
	return promise.then(
		(result) => ({ result }),
		(error) => ({ error }),
	);
}

// Returns what a promise resolves with, or undefined after the limit.
async function within(milliseconds, promise) {
	let timer;
	const limit = new Promise((resolve) => (timer = setTimeout(resolve, milliseconds)));
	return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

function expect(condition, got) {
	if (!condition) throw new Error(typeof got === "string" ? got : `unexpected: ${JSON.stringify(got)}`);
}
