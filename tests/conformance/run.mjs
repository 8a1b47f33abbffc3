// Runs the `tasks-*` scenarios of the MCP conformance suite against conformance_server: on one instance, and on two instances that
// share one Redis behind a round-robin proxy. Prints one table. Fails unless every check passes that the suite does not skip itself.
//
//     node run.mjs SERVER REDIS_URL

import { rmSync } from "node:fs";
import { mkdtemp, readdir, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { start, startServer, stop } from "./programs.mjs";
import { roundRobin } from "./proxy.mjs";

const SUITE = fileURLToPath(import.meta.resolve("@modelcontextprotocol/conformance/dist/index.js"));
const SCENARIOS = [
	"tasks-lifecycle",
	"tasks-capability-negotiation",
	"tasks-wire-fields",
	"tasks-request-state-removal",
	"tasks-mrtr-input",
	"tasks-request-headers",
	"tasks-dispatch-and-envelope",
	"tasks-status-notifications",
	"tasks-required-task-error",
	"tasks-mrtr-composition",
];
// How many checks of the pinned suite must pass. If fewer pass, the suite has silently left out some.
const LEAST_PASSED = 44;

const [serverProgram, redisUrl] = process.argv.slice(2);
if (!serverProgram || !redisUrl) {
	console.error("usage: node run.mjs SERVER REDIS_URL");
	process.exit(2);
}

const results = await mkdtemp(join(tmpdir(), "conformance-"));
process.on("exit", () => rmSync(results, { recursive: true, force: true }));

function startConformanceServer() {
	return startServer(serverProgram, ["--port", "0", "--redis", redisUrl]);
}

async function checksOf(scenario, url) {
	const folder = await mkdtemp(join(results, `${scenario}-`));
	const args = [SUITE, "server", "--url", url, "--scenario", scenario, "--output-dir", folder, "--timeout", "60000"];
	const suite = start(process.execPath, args);
	await suite.ended;
	const written = (await readdir(folder, { recursive: true })).find((path) => path.endsWith("checks.json"));
	const checks = written ? JSON.parse(await readFile(join(folder, written), "utf8")) : [];
	if (checks.length === 0) console.error(`${scenario}: the suite wrote no checks; its output:\n${suite.log}`);
	return checks;
}

// Starts new servers, and runs all scenarios on them. Returns the checks of each scenario, and all other faults.
async function runForm(form, instances) {
	const servers = [];
	const faults = [];
	const checks = new Map();
	let proxy;
	try {
		while (servers.length < instances) servers.push(startConformanceServer());
		await Promise.all(servers.map((server) => server.listening));
		if (instances > 1) proxy = await roundRobin(servers.map((server) => server.url));
		const { url } = proxy ?? servers[0];
		for (const scenario of SCENARIOS) checks.set(scenario, await checksOf(scenario, url));
		if (proxy?.counts.includes(0)) faults.push(`the proxy sent ${proxy.counts.join(" and ")} requests to the two servers; each must receive some`);
	} catch (error) {
		faults.push(error.message);
	} finally {
		proxy?.close();
		for (const [number, how] of (await Promise.all(servers.map(stop))).entries()) {
			if (how !== 0) faults.push(`server ${number + 1} ended with ${how} instead of exit code 0`);
		}
	}
	for (const scenario of SCENARIOS) {
		const found = checks.get(scenario) ?? [];
		if (found.length === 0) faults.push(`${scenario}: the suite made no checks`);
		for (const check of found.filter((check) => !["SUCCESS", "SKIPPED"].includes(check.status))) {
			faults.push(`${scenario}: ${check.id}: ${check.status}: ${check.errorMessage ?? check.description}`);
		}
	}
	const passed = count([...checks.values()].flat()).passed;
	if (passed < LEAST_PASSED) faults.push(`${passed} checks passed; at least ${LEAST_PASSED} must pass`);
	return { form, checks, faults, servers, requests: proxy?.counts };
}

function count(checks) {
	const passed = checks.filter((check) => check.status === "SUCCESS").length;
	const skipped = checks.filter((check) => check.status === "SKIPPED").length;
	return { passed, skipped, failed: checks.length - passed - skipped };
}

function cell(checks = []) {
	const { passed, skipped, failed } = count(checks);
	const parts = [];
	if (passed > 0) parts.push(`${passed} passed`);
	if (failed > 0) parts.push(`${failed} FAILED`);
	if (skipped > 0) parts.push(`${skipped} skipped by the suite`);
	return parts.join(", ") || "NO CHECKS";
}

function printTable(forms) {
	const rows = [["scenario", ...forms.map(({ form }) => form)]];
	for (const scenario of SCENARIOS) rows.push([scenario, ...forms.map(({ checks }) => cell(checks.get(scenario)))]);
	rows.push(["all", ...forms.map(({ checks }) => cell([...checks.values()].flat()))]);
	const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
	for (const row of rows) console.log(row.map((text, column) => text.padEnd(widths[column])).join(" | ").trimEnd());
}

const forms = [await runForm("one instance", 1), await runForm("behind the proxy", 2)];
printTable(forms);
for (const { form, requests } of forms) {
	if (requests) console.log(`${form}: ${requests.join(" and ")} requests to the two instances`);
}
for (const { form, faults, servers } of forms.filter(({ faults }) => faults.length > 0)) {
	for (const [number, server] of servers.entries()) {
		console.error(`\n${form}: the log of server ${number + 1}:\n${server.log.trimEnd()}`);
	}
	console.error(`\n${form}:\n${faults.map((fault) => `  ${fault}`).join("\n")}`);
	process.exitCode = 1;
}
