// Starts programs and servers, and stops them. Those that still run when this process ends are killed.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const START_LIMIT_MS = 30_000;
const STOP_LIMIT_MS = 10_000;

const children = new Set();
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

// Starts a program and collects its output. `ended` resolves with the exit code, the signal that ended it, or the error of its start.
export function start(program, args) {
	const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
	children.add(child);
	const running = { child, log: "" };
	for (const output of [child.stdout, child.stderr]) {
		output.setEncoding("utf8").on("data", (text) => (running.log += text));
	}
	running.ended = new Promise((resolve) => {
		child.once("error", (error) => resolve(error.message));
		child.once("close", (code, signal) => resolve(code ?? signal));
	});
	running.ended.then(() => children.delete(child));
	return running;
}

// Starts a server. `listening` resolves with its URL, which the server prints as its first line once it accepts connections.
export function startServer(program, args) {
	const server = start(program, args);
	const firstLine = new Promise((resolve) => createInterface({ input: server.child.stdout }).once("line", resolve));
	server.listening = within(
		START_LIMIT_MS,
		Promise.race([firstLine, server.ended.then((how) => Promise.reject(new Error(`a server ended before it listened: ${how}`)))]),
		`a server did not listen within ${START_LIMIT_MS / 1000} s`,
	).then((url) => (server.url = url));
	return server;
}

// Stops a program with SIGTERM, or after the limit with SIGKILL. Returns how it ended.
export async function stop(running) {
	running.child.kill("SIGTERM");
	try {
		return await within(STOP_LIMIT_MS, running.ended, "");
	} catch {
		running.child.kill("SIGKILL");
		return running.ended;
	}
}

export async function within(milliseconds, promise, message) {
	let timer;
	const limit = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(message)), milliseconds)));
	return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}
