// Runs clients that this project did not write against clients_server, over stdio and over HTTP. Prints what each client got as the
// table of the guide. Fails unless the guide has the same table.
//
//     node run.mjs SERVER RMCP_CLIENT PYTHON REDIS_URL PAGE [--write]
//
// With --write, the table goes into the page instead.

import { randomUUID } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { start, startServer, stop, within } from "../conformance/programs.mjs";
import { roundRobin } from "../conformance/proxy.mjs";
import { pinned } from "./pinned.mjs";
import { SCENARIOS, difference, replaced, rowsOf, table } from "./table.mjs";

const [server, rmcpClient, python, redisUrl, page, write] = process.argv.slice(2);
if (!page || (write && write !== "--write")) {
	console.error("usage: node run.mjs SERVER RMCP_CLIENT PYTHON REDIS_URL PAGE [--write]");
	process.exit(2);
}

const CLIENT_LIMIT_MS = 240_000;
// Most of the time, a client waits.
const AT_ONCE = Number(process.env.CLIENTS_AT_ONCE ?? 8);

// How many instances serve a client over HTTP. Sessions live in one instance.
const HTTP = { "HTTP, two instances": { instances: 2, options: [] }, "HTTP with a session": { instances: 1, options: ["--sessions"] } };
const STATELESS = "HTTP, two instances";
const SESSION = "HTTP with a session";
const STDIO = "stdio";

const here = (file) => fileURLToPath(new URL(file, import.meta.url));
const node = (file, ...args) => [process.execPath, here(file), ...args];
const versions = await pinned();

const CLIENTS = [
	{ name: `TypeScript, sdk ${versions.typescript1}`, protocol: "2025-11-25", command: node("typescript1.mjs"), over: [STDIO, SESSION, STATELESS] },
	{ name: `TypeScript, client ${versions.typescript2}, default`, protocol: "2025-11-25", command: node("typescript2.mjs", "legacy"), over: [STDIO, SESSION, STATELESS] },
	{ name: `TypeScript, client ${versions.typescript2}, \`auto\``, protocol: "2026-07-28", command: node("typescript2.mjs", "auto"), over: [STDIO, STATELESS] },
	{ name: `Python, mcp ${versions.python}, \`legacy\``, protocol: "2025-11-25", command: [python, here("python_mcp.py"), "legacy"], over: [STDIO, SESSION, STATELESS] },
	{ name: `Python, mcp ${versions.python}, default`, protocol: "2026-07-28", command: [python, here("python_mcp.py"), "auto"], over: [STDIO, STATELESS] },
	{ name: `rmcp ${versions.rmcp}, default`, protocol: "2025-11-25", command: [rmcpClient, "legacy"], over: [STDIO, SESSION, STATELESS] },
	{ name: `rmcp ${versions.rmcp}`, protocol: "2026-07-28", command: [rmcpClient, "plain"], over: [STDIO, STATELESS] },
	{ name: `rmcp ${versions.rmcp}, with tasks`, protocol: "2026-07-28", command: [rmcpClient, "tasks"], over: [STDIO, STATELESS] },
	{ name: `FastMCP ${versions.fastmcp} with fastmcp-tasks`, protocol: "2026-07-28", command: [python, here("python_fastmcp.py"), "as-is"], over: [STDIO] },
	// The server refuses all requests about tasks, so the client cannot end them.
	{ name: `FastMCP ${versions.fastmcp} with fastmcp-tasks`, protocol: "2026-07-28", command: [python, here("python_fastmcp.py"), "as-is"], over: [STATELESS], mayLeave: true },
	{ name: `FastMCP ${versions.fastmcp}, with \`Mcp-Name\``, protocol: "2026-07-28", command: [python, here("python_fastmcp.py"), "with-name"], over: [STATELESS] },
];

// Keeps instances of the server running behind one URL: an instance that was killed is replaced.
async function startInstances({ instances, options }, prefix) {
	const targets = [];
	const running = [];
	const faults = [];
	let isClosing = false;
	const keep = async (slot) => {
		const instance = startServer(server, ["--http", ...options, "--redis", redisUrl, "--prefix", prefix]);
		running[slot] = instance;
		instance.ended.then((how) => {
			if (isClosing) return;
			if (how !== "SIGKILL") faults.push(`an instance ended with ${how}: ${instance.log}`);
			keep(slot).catch((error) => faults.push(error.message));
		});
		targets[slot] = await instance.listening;
	};
	await Promise.all(Array.from({ length: instances }, (_, slot) => keep(slot)));
	const proxy = await roundRobin(targets);
	const close = async () => {
		isClosing = true;
		proxy.close();
		const ends = await Promise.all(running.map(stop));
		if (ends.some((how) => how !== 0)) faults.push(`the instances ended with ${ends.join(" and ")} instead of exit code 0`);
		if (proxy.counts.includes(0)) faults.push(`the instances received ${proxy.counts.join(" and ")} requests; each must receive some`);
		return faults;
	};
	return { url: proxy.url, close, log: () => running.map(({ log }) => log).join("\n") };
}

// Deletes all that a run has left in the Redis. Every task must have ended.
async function erase(prefix, mayLeave = false) {
	const erasing = start(server, ["--erase", "--redis", redisUrl, "--prefix", prefix]);
	if ((await erasing.ended) !== 0) return [`the keys of the run could not be deleted: ${erasing.log}`];
	const open = Number(erasing.log.split("\n").find((line) => /^\d+$/.test(line)));
	return open === 0 || mayLeave ? [] : [`${open} tasks have not ended`];
}

// Runs all scenarios of a client over one transport.
async function runClient({ name, protocol, command: [program, ...args], mayLeave }, transport) {
	const prefix = `clients-${randomUUID()}`;
	const run = { client: name, protocol, transport, got: {}, faults: [] };
	let instances;
	let client;
	try {
		if (HTTP[transport]) instances = await startInstances(HTTP[transport], prefix);
		const target = instances ? ["http", instances.url] : ["stdio", server, "--redis", redisUrl, "--prefix", prefix];
		client = start(program, [...args, ...target]);
		const how = await within(CLIENT_LIMIT_MS, client.ended, `the client did not end within ${CLIENT_LIMIT_MS / 1000} s`);
		if (how !== 0) run.faults.push(`the client ended with ${how}`);
	} catch (error) {
		run.faults.push(error.message);
	} finally {
		if (client) await stop(client);
		run.faults.push(...((await instances?.close()) ?? []));
		run.faults.push(...(await erase(prefix, mayLeave)));
	}
	for (const line of client?.log.split("\n").filter((line) => line.startsWith('{"')) ?? []) {
		const { scenario, got } = JSON.parse(line);
		if (run.got[scenario]) run.faults.push(`${scenario}: played twice`);
		run.got[scenario] = got;
		if (got.startsWith("FAILED")) run.faults.push(`${scenario}: ${got}`);
	}
	run.faults.push(...SCENARIOS.filter((scenario) => !run.got[scenario]).map((scenario) => `${scenario}: not played`));
	run.log = `${client?.log ?? ""}\n${instances?.log() ?? ""}`;
	return run;
}

const waiting = CLIENTS.flatMap((client) => client.over.map((transport) => [client, transport]));
const runs = new Array(waiting.length);
const next = waiting.entries();
const work = async () => {
	for (const [index, [client, transport]] of next) runs[index] = await runClient(client, transport);
};
await Promise.all(Array.from({ length: AT_ONCE }, work));

const found = table(runs);
console.log(found);
const faulty = runs.filter(({ faults }) => faults.length > 0);
for (const { client, transport, faults, log } of faulty) {
	console.error(`\n${client}, ${transport}: the log:\n${log.trim()}`);
	console.error(`\n${client}, ${transport}:\n${faults.map((fault) => `  ${fault}`).join("\n")}`);
	process.exitCode = 1;
}
const text = await readFile(page, "utf8");
const differences = difference(rowsOf(text), rowsOf(found));
if (write && faulty.length === 0) {
	await writeFile(page, replaced(text, found));
} else if (differences.length > 0) {
	console.error(`\nthe table of the guide is not what the clients got:\n${differences.join("\n")}`);
	console.error("if the change is intended, write the table with: make clients CLIENTS_WRITE=1");
	process.exitCode = 1;
}
